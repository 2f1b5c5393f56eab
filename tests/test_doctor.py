"""What monitoring reads: `doctor`, and `doctor --audit`."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import redis

from modelctl import doctor
from modelctl.cli import main
from tests.servers import Redis

K = "db:models:count:active"


@pytest.fixture
def both(pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Configure PostgreSQL and Redis, with one model; audits pause only for a moment."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    monkeypatch.setattr(doctor, "AUDIT_PAUSE_SECONDS", 0.01)
    assert main(["add", "a/b"]) == 0
    return pg_database


def audit(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Run the audit as monitoring does."""
    capsys.readouterr()
    code = main(["doctor", "--audit", "-o", "json"])
    return code, json.loads(capsys.readouterr().out)


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
        client.set(K, 999, ex=60)
        vouch = f"999 {client.info('server')['run_id']}"
        client.set(f"{{{K}}}:vouch", vouch, ex=60)
    code, found = audit(capsys)
    assert (code, found["ok"], found["audit"]["differed"]) == (1, False, 2)
    assert wrong(found) == ["audit"]


def test_a_disabled_trigger_is_found(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Triggers that somebody disabled are named, and `db upgrade` puts them back."""
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
    """With Redis down the doctor says so, and the rest is looked at all the same."""
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
