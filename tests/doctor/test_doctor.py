"""`doctor` reports each fault, and `doctor --audit` compares rows, history and cached count."""

from __future__ import annotations

import json
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from modelctl.cli.main import main
from modelctl.doctor import check_audit
from tests import commands, fleets
from tests.fleets import everything, opened
from tests.line import Line
from tests.servers import Postgres, Redis
from tests.waiting import at_most
from tests.world import KEY

Look = Callable[[], tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def both(pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Configure PostgreSQL and Redis, with one model; audits pause only for a moment."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    monkeypatch.setattr(check_audit, "PAUSE_SECONDS", 0.01)
    assert main(["add", "a/b"]) == 0
    return pg_database


def audit(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Run the audit as monitoring does."""
    capsys.readouterr()
    code = main(["doctor", "--audit", "-o", "json"])
    return code, json.loads(capsys.readouterr().out)


def looked(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor as monitoring does; return its exit code and the checks by their names."""
    capsys.readouterr()
    code = main(["doctor", "-o", "json"])
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code == (0 if all(check["ok"] for check in checks.values()) else 1)
    return code, checks


def bad(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return what is wrong, and in which words."""
    return {name: check["detail"] for name, check in checks.items() if not check["ok"]}


def warned(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the warnings."""
    return {name: check["detail"] for name, check in checks.items() if check["warning"]}


def wrong(found: dict[str, Any]) -> list[str]:
    """Name the checks that are not well."""
    return [check["check"] for check in found["checks"] if not check["ok"]]


def test_a_true_cache_passes(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where cache and database agree, no comparison differs and the exit code is 0."""
    main(["count"])
    code, found = audit(capsys)
    assert (code, found["ok"]) == (0, True)
    assert found["audit"] == {
        "comparisons": 2,
        "differed": 0,
        "oldest_queued_seconds": None,
        "triggers": True,
    }


def test_a_wrong_number_that_stays_is_found(
    both: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cached number that differs both times is exit 1, and the audit says how often."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.set(KEY, 999, ex=60)
        vouch = f"999 {client.info('server')['run_id']}"
        client.set(f"{{{KEY}}}:vouch", vouch, ex=60)
    code, found = audit(capsys)
    assert (code, found["ok"], found["audit"]["differed"]) == (1, False, 2)
    assert wrong(found) == ["audit"]


def test_a_disabled_trigger_is_found(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor names disabled triggers, and `db upgrade` enables them."""
    with psycopg.connect(both, autocommit=True) as connection:
        connection.execute("ALTER TABLE models DISABLE TRIGGER ALL")
    code, found = audit(capsys)
    assert (code, found["audit"]["triggers"]) == (1, False)
    assert wrong(found) == ["triggers"]
    assert main(["db", "upgrade"]) == 0
    assert audit(capsys)[0] == 0


def test_an_old_undelivered_invalidation_is_found(
    both: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalidation that waits for longer than the TTL is wrong, and its age is given."""
    with psycopg.connect(both, autocommit=True) as connection:
        connection.execute("UPDATE models SET active = false")
        connection.execute("UPDATE modelctl_outbox SET due = due - interval '2 min'")
    code, found = audit(capsys)
    assert code == 1
    assert found["audit"]["oldest_queued_seconds"] >= 120
    assert wrong(found) == ["queue"]


def test_a_contradictory_row_is_found(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that is active and auto-disabled at once is counted."""
    with psycopg.connect(both, autocommit=True) as connection:
        connection.execute("UPDATE models SET auto_disabled = true")
    assert wrong(audit(capsys)[1]) == ["rows"]


def test_redis_away_is_found(
    both: str, redis_server: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """With Redis down the doctor says so, and still runs the other checks."""
    redis_server.stop()
    code, found = audit(capsys)
    assert (code, wrong(found)) == (1, ["cache"])
    assert {"database", "schema", "triggers", "queue", "rows"} <= {
        check["check"] for check in found["checks"]
    }


def test_a_missing_schema_is_found(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the schema the audit cannot compare, and says what to run."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    code, found = audit(capsys)
    assert (code, wrong(found)) == (1, ["schema", "audit"])
    assert "db upgrade" in found["checks"][-2]["detail"]


# ── What may be read and written ────────────────────────────────────────────────────────────────


@pytest.fixture
def role(both: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Role]:
    """Give a role of its own that may do everything, and use it."""
    name = both.rpartition("/")[2]
    made = Role(f"doctor_{name}", name, postgres)
    made.sql(f"CREATE ROLE {made.name} LOGIN")
    made.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public, modelctl TO {made.name}")
    made.sql(f"GRANT USAGE ON SCHEMA modelctl TO {made.name}")
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url(name, user=made.name))
    yield made
    made.sql(f"DROP OWNED BY {made.name}")
    made.sql(f"DROP ROLE {made.name}")


@dataclass(frozen=True)
class Role:
    """A role, and how an administrator changes its database."""

    name: str
    database: str
    server: Postgres

    def sql(self, statement: str) -> None:
        """Run a statement as the superuser."""
        self.server.execute(statement, self.database)


def test_hidden_rows_are_found(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    """Row level security that filters what modelctl reads is wrong, and what to do is said."""
    assert looked(capsys)[0] == 0
    role.sql("ALTER TABLE models ENABLE ROW LEVEL SECURITY")
    code, checks = looked(capsys)
    assert code == 1
    assert "BYPASSRLS" in bad(checks)["row security"]
    assert "public.models" in bad(checks)["row security"]
    role.sql(f"ALTER ROLE {role.name} BYPASSRLS")
    assert looked(capsys)[0] == 0
    role.sql(f"ALTER ROLE {role.name} NOBYPASSRLS")
    role.sql("ALTER TABLE models DISABLE ROW LEVEL SECURITY")
    role.sql("ALTER TABLE modelctl.modelctl_outbox ENABLE ROW LEVEL SECURITY")
    assert "modelctl.modelctl_outbox" in bad(looked(capsys)[1])["row security"]


@pytest.mark.parametrize(
    ("how", "undo", "where"),
    [
        ("ALTER ROLE {role} SET", "ALTER ROLE {role} RESET", "for this role"),
        ("ALTER DATABASE {db} SET", "ALTER DATABASE {db} RESET", "for this database"),
        (
            "ALTER ROLE {role} IN DATABASE {db} SET",
            "ALTER ROLE {role} IN DATABASE {db} RESET",
            "for this role in this database",
        ),
    ],
)
def test_read_only_transactions_are_found(
    role: Role, capsys: pytest.CaptureFixture[str], how: str, undo: str, where: str
) -> None:
    """default_transaction_read_only is reported, with the place where it is set."""
    names = {"role": role.name, "db": role.database}
    role.sql(f"{how.format(**names)} default_transaction_read_only = on")
    try:
        code, checks = looked(capsys)
    finally:
        # From elsewhere: this database may take no changes.
        role.server.execute(f"{undo.format(**names)} default_transaction_read_only")
    assert code == 1
    assert f"default_transaction_read_only is on, set {where}:" in bad(checks)["writing"]
    # What can be read is looked at all the same.
    assert checks["fleet"]["detail"] == "1 active of 1 model"


def test_another_table_of_that_name_is_found(
    role: Role, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor names the table with its schema, and reports a search path that finds another table."""
    assert looked(capsys)[1]["table"]["detail"] == "public.models of owner postgres, 1 row"
    role.sql("CREATE SCHEMA app")
    role.sql(f"GRANT USAGE ON SCHEMA app TO {role.name}")
    role.sql("CREATE TABLE app.models (LIKE public.models INCLUDING ALL)")
    role.sql(f"GRANT ALL ON app.models TO {role.name}")
    role.sql(f"ALTER ROLE {role.name} SET search_path = app, public")
    words = bad(looked(capsys)[1])["table"]
    assert words.startswith("app.models is found first in app, public")
    assert "triggers are also on public.models" in words
    role.sql("DROP TABLE app.models")
    role.sql("CREATE VIEW app.models AS SELECT * FROM public.models")
    role.sql(f"GRANT ALL ON app.models TO {role.name}")
    assert "app.models is a view" in bad(looked(capsys)[1])["table"]
    role.sql(f"ALTER ROLE {role.name} SET search_path = pg_catalog")
    words = bad(looked(capsys)[1])["table"]
    assert "no table models is found" in words
    assert "triggers are on public.models" in words


def test_a_lock_is_named_and_not_waited_for(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor names the holder of a table lock at once, and still runs the other checks."""
    with psycopg.connect(role.server.url(role.database)) as other:
        other.execute("SET application_name = 'a migration'")
        other.execute("LOCK TABLE models IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        code, checks = looked(capsys)
        took = time.monotonic() - began
    found = bad(checks)
    assert code == 1
    assert "public.models is locked by process" in found["rights"]
    assert "(a migration)" in found["rights"]
    assert found["fleet"] == "not checked: models is locked"
    assert checks["holds"]["ok"]
    assert took < 10


def test_the_trial_leaves_no_trace(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor's trial leaves no trace in statement triggers of the application and notifies nobody."""
    with psycopg.connect(both, autocommit=True) as connection:
        connection.execute("CREATE TABLE audit (what text)")
        connection.execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO audit VALUES (TG_OP); PERFORM pg_notify('heard', TG_OP);"
            " RETURN NULL; END $$"
        )
        for each in ("STATEMENT", "ROW"):
            connection.execute(
                f"CREATE TRIGGER tell_{each} AFTER INSERT OR UPDATE OR DELETE ON models"
                f" FOR EACH {each} EXECUTE FUNCTION tell()".encode()
            )
        connection.execute("LISTEN heard")
        before = everything(both)
        assert looked(capsys)[0] == 0
        assert everything(both) == before
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
        assert not list(connection.notifies(timeout=0.2, stop_after=1))


# ── SQLite ──────────────────────────────────────────────────────────────────────────────────────


def in_a_process(
    url: str, before: Callable[[], None] | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor of a SQLite file in a process of its own."""
    done = commands.run("doctor", "-o", "json", before=before, MODELCTL_DATABASE_URL=url)
    return done.code, {check["check"]: check for check in done.json["checks"]}


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_full_disk_is_found(sqlite_database: str, mode: str) -> None:
    """Where the file cannot grow the doctor says so, and the file is as it was."""
    path = Path(sqlite_database.removeprefix("sqlite:///"))
    fleets.sql(sqlite_database, f"PRAGMA journal_mode = {mode}")
    before = path.read_bytes(), everything(sqlite_database)
    assert in_a_process(sqlite_database)[0] == 0
    limit = path.stat().st_size + 4096

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code, checks = in_a_process(sqlite_database, no_room)
    assert (code, list(bad(checks))) == (1, ["writing"])
    assert "room for 1 MB" in bad(checks)["writing"]
    assert everything(sqlite_database) == before[1]
    fleets.sql(sqlite_database, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.read_bytes() == before[0]


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o755), (0o644, 0o555), (0o444, 0o555)])
def test_a_read_only_file_is_found(sqlite_database: str, file: int, folder: int) -> None:
    """A file or a folder that may not be written is wrong; the rest is looked at."""
    path = Path(sqlite_database.removeprefix("sqlite:///"))
    path.chmod(file)
    path.parent.chmod(folder)
    try:
        code, checks = in_a_process(sqlite_database, commands.obey_file_modes)
    finally:
        path.parent.chmod(0o755)
    assert (code, list(bad(checks))) == (1, ["writing"])
    assert "must be writable" in bad(checks)["writing"]


def test_a_long_writer_is_waited_for_briefly(
    sqlite_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program that holds the file's lock is said, and the rest is looked at."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_database)
    path = sqlite_database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, checks = looked(capsys)
    assert (code, list(bad(checks))) == (1, ["writing"])
    assert "locked" in bad(checks)["writing"]


# ── A fleet that works, and where a person should look ──────────────────────────────────────────


def test_looking_makes_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a configuration and a database file the doctor says so, exits 0 and creates nothing."""
    code, checks = looked(capsys)
    assert (code, list(warned(checks))) == (0, ["database"])
    assert "no database is configured" in warned(checks)["database"]
    assert str(commands.database()) in warned(checks)["database"]
    assert not commands.database().parent.exists()
    main(["count"])
    code, checks = looked(capsys)
    assert (code, list(warned(checks))) == (0, ["fleet"])
    assert "no database is configured" in warned(checks)["fleet"]
    main(["add", "a/b"])
    assert not warned(looked(capsys)[1])


def test_a_missing_schema_is_said(
    empty_pg: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A database without the schema is reported with the command to run; nothing is created."""
    (tmp_path / "empty.db").touch()
    for url in (empty_pg, f"sqlite:///{tmp_path}/empty.db"):
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        code, checks = looked(capsys)
        assert (code, list(bad(checks))) == (1, ["schema"])
        assert "lacks modelctl's schema; run: modelctl db upgrade" in bad(checks)["schema"]
    assert not fleets.sql(empty_pg, "SELECT 1 FROM pg_namespace WHERE nspname = 'modelctl'")
    assert (tmp_path / "empty.db").stat().st_size == 0
    monkeypatch.setenv("MODELCTL_DATABASE_URL", f"sqlite:///{tmp_path}/none.db")
    code, checks = looked(capsys)
    assert (code, list(bad(checks))) == (1, ["database"])
    assert "modelctl db upgrade" in bad(checks)["database"]
    assert not (tmp_path / "none.db").exists()


@pytest.fixture
def look(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Look:
    """Run the doctor on a database of each kind."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    return lambda: looked(capsys)


def fleet_words(look: Look) -> str:
    """Return the warning about the fleet; exit code 0."""
    code, checks = look()
    assert code == 0
    return warned(checks).get("fleet", "")


def test_a_fleet_that_is_off_is_a_warning(fleet_url: str, look: Look) -> None:
    """A fleet without an active model is a warning, and the exit code is 0."""
    fleets.sql(fleet_url, "INSERT INTO models (id) VALUES ('a'), ('b')")
    assert not fleet_words(look)
    fleets.sql(fleet_url, "UPDATE models SET active = FALSE")
    assert "0 active of 2 models" in fleet_words(look)


def test_failures_that_never_count_are_a_warning(fleet_url: str, look: Look) -> None:
    """The doctor warns if a tenth of the active models fail with types that do not count."""
    for number in range(20):
        fleets.sql(fleet_url, "INSERT INTO models (id) VALUES (?)", f"m{number}")
    with opened(fleet_url) as fleet:
        fleet.record_failure("m0", "server-error")
        fleet.record_failure("m1", "parse-error")  # counts
        fleet.record_failure("m2", "timeout")
        fleet.record_success("m2")
        assert not fleet_words(look)
        fleet.record_failure("m3", "rate-limit")
        assert "the last call of 2 failed" in fleet_words(look)
        assert "parse-error, client-error" in fleet_words(look)


def test_undelivered_rows_without_redis_are_a_warning_if_they_are_many(
    pg_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Redis some undelivered rows are normal; many mean that nobody keeps them few."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    main(["add", "a/b"])
    code, checks = looked(capsys)
    assert (code, warned(checks)) == (0, {})
    assert "set redis.url" in checks["queue"]["detail"]
    more = "INSERT INTO modelctl.modelctl_outbox (due) SELECT now() FROM generate_series(1, 2000)"
    fleets.sql(pg_database, more)
    code, checks = looked(capsys)
    assert (code, list(warned(checks))) == (0, ["queue"])
    assert "modelctl cache drain" in warned(checks)["queue"]
    assert main(["cache", "drain"]) == 0
    assert not warned(looked(capsys)[1])


def test_one_check_that_fails_hides_no_other(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If a table of modelctl is missing, the other checks still run."""
    fleets.sql(both, "ALTER TABLE modelctl.modelctl_holds RENAME TO away")
    _, checks = looked(capsys)
    assert "modelctl_holds" in bad(checks)["holds"]
    assert checks["fleet"]["ok"]
    assert checks["cache"]["ok"]


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────


def test_a_full_redis_is_found(
    both: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Redis that is out of memory and evicts nothing caches nothing, and the doctor says so."""
    with Redis("--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as full:
        monkeypatch.setenv("MODELCTL_REDIS_URL", full.url())
        fleets.sql(both, "DELETE FROM modelctl.modelctl_state")
        assert looked(capsys)[0] == 0
        full.ask("SET", "filler", "x" * 300_000)
        with suppress(redis.exceptions.OutOfMemoryError):
            for number in range(3000):
                full.ask("SET", f"filler{number}", "x" * 1000)
        code, checks = looked(capsys)
    assert (code, "out of memory" in bad(checks)["cache"]) == (1, True)
    assert "maxmemory" in bad(checks)["cache"]


def test_a_read_only_replica_is_found(
    both: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A replica that takes no changes is reported, with the kind of URL to use instead."""
    with Redis("--replicaof", "127.0.0.1", str(redis_server.port)) as replica:
        while replica.ask("ROLE")[3] != "connected":
            time.sleep(0.02)
        monkeypatch.setenv("MODELCTL_REDIS_URL", replica.url())
        assert "read-only replica" in bad(looked(capsys)[1])["cache"]


def test_trying_deletes_nothing_without_transactions(
    both: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where MULTI is refused, nothing that would follow it is carried out."""
    names = ("db:stats:overall", "db:leaderboard:week", "db:models:count:active")
    with Redis() as server:
        server.ask("ACL", "SETUSER", "u", "on", ">zq7-word", "~*", "+@all", "-multi")
        for name in names:
            server.ask("SET", name, "1")
        url = server.url().replace("redis://", "redis://u:zq7-word@")
        monkeypatch.setenv("MODELCTL_REDIS_URL", url)
        words = bad(looked(capsys)[1])["cache"]
        assert sorted(server.ask("KEYS", "*")) == sorted(names)
    assert "ACL SETUSER u +multi" in words
    assert "zq7" not in words


def test_two_places_of_one_database_are_found(
    both: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes with other count keys or addresses are reported; two names of one address are not."""
    assert looked(capsys)[0] == 0
    monkeypatch.setenv("MODELCTL_CACHE_COUNT_KEY", "db:other")
    code, checks = looked(capsys)  # the last delivery was not here
    assert (code, "db:models:count:active" in bad(checks)["delivery"]) == (1, True)
    main(["disable", "a/b"])
    code, checks = looked(capsys)  # and now it was, but the other is there still
    assert (code, "db:models:count:active" in warned(checks)["delivery"]) == (0, True)
    monkeypatch.delenv("MODELCTL_CACHE_COUNT_KEY")
    assert "db:other" in bad(looked(capsys)[1])["delivery"]
    fleets.sql(both, "DELETE FROM modelctl.modelctl_state")
    main(["enable", "a/b"])
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url.replace("127.0.0.1", "localhost"))
    assert looked(capsys)[1]["delivery"]["ok"]
    assert not warned(looked(capsys)[1])
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url.replace("/0", "/1"))
    assert "delivery" in bad(looked(capsys)[1])
    monkeypatch.delenv("MODELCTL_REDIS_URL")
    assert "set redis.url here too" in bad(looked(capsys)[1])["delivery"]


def test_two_fleets_with_one_key_are_found(
    both: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fleet in another schema of the database that has its count in the same place is wrong."""
    fleets.sql(both, "CREATE SCHEMA other")
    state = "modelctl_state (LIKE modelctl.modelctl_state INCLUDING ALL)"
    fleets.sql(both, f"CREATE TABLE other.{state}")
    assert looked(capsys)[0] == 0
    fleets.sql(both, "INSERT INTO other.modelctl_state SELECT * FROM modelctl.modelctl_state")
    code, checks = looked(capsys)
    assert (code, "schema other" in bad(checks)["delivery"]) == (1, True)
    assert "cache.count_key" in bad(checks)["delivery"]


# ── The triggers, fired ─────────────────────────────────────────────────────────────────────────


def test_triggers_that_reach_nothing_are_found(
    role: Role, capsys: pytest.CaptureFixture[str]
) -> None:
    """A change of status is tried: where it reaches no row of the outbox, that is wrong."""
    assert "they fire" in looked(capsys)[1]["triggers"]["detail"]
    role.sql(
        "CREATE FUNCTION modelctl.swallow() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN NULL; END $$"
    )
    role.sql(
        "CREATE TRIGGER swallow BEFORE INSERT ON modelctl.modelctl_outbox"
        " FOR EACH ROW EXECUTE FUNCTION modelctl.swallow()"
    )
    code, checks = looked(capsys)
    assert (code, "writes no row" in bad(checks)["triggers"]) == (1, True)


def test_a_locked_row_is_not_waited_for(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    """A locked row is not an error; the trial of the triggers is skipped."""
    with psycopg.connect(role.server.url(role.database)) as other:
        other.execute("SELECT FROM models FOR UPDATE")
        with at_most(10):
            code, checks = looked(capsys)
    assert (code, "not tested" in checks["triggers"]["detail"]) == (0, True)


def test_a_server_that_freezes_is_not_waited_for(
    both: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every check ends: a frozen database is said within the deadline, and Redis is looked at."""
    monkeypatch.setenv("MODELCTL_DATABASE_TIMEOUT", "2s")
    postgres.pause()
    try:
        with at_most(10):
            code, checks = looked(capsys)
    finally:
        postgres.recover()
    assert (code, list(bad(checks))) == (1, ["database"])
    assert checks["cache"]["ok"]


@pytest.mark.parametrize("at", [2500, 9000, 15_000])
def test_all_checks_share_one_deadline(postgres: Postgres, pg_database: str, at: int) -> None:
    """A line that goes silent in the middle costs database.timeout once, not once for each check."""
    line = Line(postgres.port)
    line.side, line.at, line.how = "down", at, "stop"
    behind = pg_database.replace(f":{postgres.port}/", f":{line.port}/") + "?sslmode=disable"
    try:
        with fleets.opened(behind, database_timeout="2s") as fleet, at_most(8):
            assert not fleet.doctor().ok
    finally:
        line.close()
