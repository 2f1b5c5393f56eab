"""The commands work on PostgreSQL and Redis, with either alone, and while Redis is away."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from modelctl.errors import ExitCode
from tests import commands
from tests.cli.examples import EVERYTHING, TIME, batch, find
from tests.commands import Cli, Result, add, plain, start
from tests.servers import Redis, refused_port

# ── PostgreSQL and Redis ──


@pytest.fixture
def served(pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the program at a fresh PostgreSQL database and an empty Redis."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    fill(pg_database)
    return pg_database


def fill(url: str) -> None:
    """Let the database have the models of `commands.FLEET` and no others."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM models")
        connection.execute("DELETE FROM modelctl_tags")  # the triggers may be detached
        for table in ("modelctl_ignored", "modelctl_origins"):
            connection.execute(f"DELETE FROM {table}".encode())
        text = commands.FLEET.replace("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", "now()")
        text += commands.BESIDE.replace('["', '{"').replace('"]', '"}')
        for statement in filter(str.strip, text.split(";")):
            connection.execute(statement.encode())
        connection.execute("DELETE FROM modelctl_events WHERE operation IS NULL")


def test_every_command_on_servers(
    served: str, redis_server: Redis, cli: Cli, files: dict[str, str]
) -> None:
    """Every command has the same JSON with PostgreSQL and Redis as on SQLite."""
    for line, code, keys in EVERYTHING:
        fill(served)
        words = [files.get(word, word) for word in line.split()]
        result = cli("--config", files["CONFIG"], *words, "-o", "json")
        assert (result.code, result.err) == (code, ""), line
        value = result.json
        for item in value if isinstance(value, list) else [value]:
            assert keys <= item.keys(), line
        times = find(value, lambda key: key == "at" or key.endswith("_at"))
        assert all(time is None or TIME.fullmatch(time) for time in times), line


def test_cached_count_on_servers(served: str, redis_server: Redis, cli: Cli) -> None:
    """The count is cached in Redis under the shared name and gone after a change."""
    cli("cache", "drain")
    assert cli("count", "-o", "json").json["source"] == "database"
    assert redis_server.ask("GET", "db:models:count:active") == "2"
    assert cli("count", "-o", "json").json["source"] == "cache"
    assert "db:models:count:active\t2\t" in cli("cache", "show").out
    redis_server.ask("SET", "db:stats:overall", "theirs")
    redis_server.ask("SET", "db:leaderboard:top", "theirs")
    changed = cli("disable", "acme/one", "-o", "json").json
    assert (changed["cache"], redis_server.ask("EXISTS", "db:models:count:active")) == (
        *("invalidated", 0),
    )
    assert redis_server.ask("EXISTS", "db:stats:overall", "db:leaderboard:top") == 0
    assert cli("count") == Result(0, "1\n", "")


def test_a_wrong_cached_number_is_found(served: str, redis_server: Redis, cli: Cli) -> None:
    """A wrong number that a count would show is exit 6 for --verify; that of another is not."""
    redis_server.ask("SETEX", "db:models:count:active", "60", "999")
    assert cli("count", "--verify").code == ExitCode.OK
    run_id = redis_server.ask("INFO", "server")["run_id"]
    redis_server.ask("SETEX", "{db:models:count:active}:vouch", "60", f"999 {run_id}")
    result = cli("count", "--verify", "-o", "json")
    assert result.code == ExitCode.STALE_CACHE
    assert (result.json["cached"], result.json["database"], result.json["match"]) == (
        *(999, 2, False),
    )


def test_strong_count(served: str, cli: Cli) -> None:
    """A change that another program committed is seen by --strong before any delivery."""
    cli("cache", "drain")
    cli("count")
    with psycopg.connect(served, autocommit=True) as connection:
        connection.execute("UPDATE models SET active = FALSE WHERE id = 'acme/one'")
    assert cli("count", "--strong", "-o", "json").json["source"] == "database"
    assert cli("count", "--strong") == Result(0, "1\n", "")


def test_redis_away(served: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis a read answers with a warning; a change is done, queued, exit 6, and said."""
    monkeypatch.setenv("MODELCTL_REDIS_URL", f"redis://:s3cret@127.0.0.1:{refused_port()}/0")
    result = cli("count")
    assert (result.code, result.out) == (0, "2\n")
    assert result.err.startswith("warning: ")
    result = cli("disable", "acme/one")
    assert (result.code, result.out) == (6, "acme/one\tactive\tdisabled\tdisabled\ttrue\n")
    assert "committed, but the invalidation is queued" in result.err
    result = cli("enable", "acme/one", "-o", "json")
    assert (result.code, result.json["cache"]) == (6, "queued")
    result = cli("disable", "acme/one", "-o", "table")
    assert "CACHE STALE" in result.out
    assert "modelctl cache drain" in result.out
    cli("cache", "drain").failed(6)
    cli("cache", "clear").failed(6)
    cli("cache", "show").failed(6)
    problem = cli("cache", "drain", "-o", "json")
    assert (problem.code, problem.json["error"]["code"]) == (6, "stale_cache")
    result = cli("doctor")
    assert (result.code, "cache\twrong" in result.out) == (1, True)
    assert "s3cret" not in result.out


def test_postgres_alone(served: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis in the configuration every count is fresh and the cache is off."""
    monkeypatch.delenv("MODELCTL_REDIS_URL")
    for _ in range(2):
        assert cli("count", "-o", "json").json["source"] == "database"
    assert cli("disable", "acme/one", "-o", "json").json["cache"] == "off"
    assert cli("cache", "drain", "-o", "json").json["cache"] == "off"


def test_second_recover_is_busy(served: str, postgres: Any, cli: Cli) -> None:
    """While another run is at work, recover says so, changes nothing and succeeds."""

    from modelctl.database.locks import RECOVER_LOCK

    with psycopg.connect(served) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({RECOVER_LOCK})".encode())
        result = cli("recover")
        assert result == Result(0, "", "another recover is running\n")
        result = cli("recover", "-o", "json")
        assert (result.json["busy"], result.json["recovered"]) == (True, [])
    assert cli("recover") == Result(0, "other/due\n", "")


def test_drain_follows(served: str, redis_server: Redis, cli: Cli) -> None:
    """A follower delivers what other programs change, goes on, and ends on SIGINT with 130."""
    cli("cache", "drain")
    switch = "UPDATE models SET active = NOT active WHERE id = 'acme/one'"
    with (
        psycopg.connect(served, autocommit=True) as connection,
        start("cache", "drain", "--follow") as follower,
    ):
        assert follower.stdout
        for _ in range(2):  # the second time it is known to follow
            redis_server.ask("SET", "db:stats:overall", "theirs")
            connection.execute(switch.encode())
            began = time.monotonic()
            assert re.fullmatch(rb"[1-9]\d*\t0\tinvalidated\n", follower.stdout.readline())
            assert redis_server.ask("EXISTS", "db:stats:overall") == 0
        assert time.monotonic() - began < 5
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=commands.SECONDS)
    assert follower.returncode == 130
    assert err.startswith(b"error: Interrupted")


def test_follow_prints_no_single_json(cli: Cli) -> None:
    """A command that runs for ever refuses -o json, and its hint names jsonl."""
    problem = cli("cache", "drain", "--follow", "-o", "json")
    assert (problem.code, problem.err) == (2, "")
    assert "jsonl" in problem.json["error"]["hint"]


# ── progress ──


def test_progress_is_for_people(fleet: None, tmp_path: Path) -> None:
    """A terminal on stderr sees a running number that is gone in the end; a pipe sees nothing."""
    add(*(f"many/{n}" for n in range(2000)))
    lines = batch(*[{"id": f"many/{n}", "outcome": "success"} for n in range(2000)] * 10)
    (tmp_path / "batch").write_text(lines)
    piped = commands.run("record-batch", str(tmp_path / "batch"))
    assert piped == Result(0, "", "")
    code, shown = commands.seen("record-batch", str(tmp_path / "batch"))
    assert code == 0
    assert "recording" in plain(shown)
    assert "20000 outcomes recorded" in plain(shown)
