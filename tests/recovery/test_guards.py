"""The guards hold beside other programs, other settings and slow probes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from modelctl import Fleet, InvalidConfigError, ModelStatus, crash_points
from modelctl.config.probes import ProbeConfig
from modelctl.config.sections import RecoveryConfig
from modelctl.database.locks import GUARD_LOCK
from modelctl.health import Guards, Share
from modelctl.model import FailureType
from modelctl.views.views import view_of
from tests.commands import Cli
from tests.fleets import ACTOR, HOUR, configured, opened, put_off, seed, sql

BAD = FailureType.PARSE_ERROR
FLOOR: dict[str, object] = {
    "health_threshold": 1,
    "recovery_min_active": 1,
    "recovery_restart_failures": 0,
}


def probed(url: str, *command: str, **settings: Any) -> Fleet:
    """Open a fleet whose provider "p" is asked by a command."""
    config = replace(configured(url, **settings), probes={"p": ProbeConfig("p", command=command)})
    return Fleet(config, actor=ACTOR)


def test_one_broken_model_does_not_keep_an_incident_alive() -> None:
    """An incident goes on only while as many models are spared or off as would begin it."""
    rule, key = RecoveryConfig(incident_models=3), ("p", BAD)

    def goes_on(share: Share, spared: str = "", out: str = "") -> bool:
        guards = Guards(rule, incidents={key}, shares={"p": share})
        guards.spared[key], guards.ejected["p"] = set(spared), set(out)
        guards.failed("m", "p", BAD)
        guards.reached("m", "p", BAD, None)
        return guards.went_on == {key}

    assert not goes_on(Share(6, 6, 0))
    assert not goes_on(Share(6, 4, 2))  # two that are off for longer
    assert goes_on(Share(6, 4, 2), out="ab")
    assert goes_on(Share(6, 6, 0), spared="ab")
    assert goes_on(Share(6, 5, 1), spared="a", out="b")
    # A few bad models of many are no fault of the provider.
    assert not goes_on(Share(60, 55, 5), spared="abc", out="de")


def test_the_floor_is_exact_whatever_the_isolation_of_the_database(pg_cleared: str) -> None:
    """Where transactions are REPEATABLE READ by default, two at once do not both pass."""
    name = sql(pg_cleared, "SELECT current_database()")[0][0]
    sql(pg_cleared, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    try:
        with opened(pg_cleared, **FLOOR) as fleet:
            for _ in range(5):
                sql(pg_cleared, "DELETE FROM models")
                seed(fleet, "ab")
                both = threading.Barrier(2)

                def fail(model_id: str, both: threading.Barrier = both) -> None:
                    both.wait()
                    fleet.record_failure(model_id, BAD)

                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(fail, "ab"))
                assert fleet.count().active == 1
    finally:
        sql(pg_cleared, f"ALTER DATABASE {name} RESET default_transaction_isolation")


def test_a_forced_disable_takes_its_turn(pg_cleared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forced disable waits for a running change of the rule, which then sees the fleet that it leaves."""
    reached, go_on = threading.Event(), threading.Event()

    def stop(point: str) -> None:
        if point != "before-commit" or not threading.current_thread().name.startswith("rule"):
            return
        reached.set()
        assert go_on.wait(10)

    with opened(pg_cleared, **FLOOR) as fleet, ThreadPoolExecutor(2, "rule") as pool:
        seed(fleet, "ab")
        monkeypatch.setattr(crash_points, "hook", stop)
        rule = pool.submit(fleet.record_failure, "a", BAD)
        assert reached.wait(10)
        with psycopg.connect(pg_cleared, autocommit=True) as other:
            by_hand = ThreadPoolExecutor(1, "hand").submit(fleet.disable, "b", force=True)
            waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while other.execute(waits).fetchone() != (1,):
                assert not by_hand.done()
        go_on.set()
        assert rule.result().changes[0].after is ModelStatus.AUTO_DISABLED
        assert by_hand.result().changes[0].after is ModelStatus.DISABLED


def test_a_batch_without_counted_failures_does_not_wait(pg_cleared: str) -> None:
    """A batch without counted failures does not wait for the guard lock; other batches do."""
    harmless = [{"id": "a", "outcome": "success"}]
    harmless += [{"id": "b", "outcome": "failure", "type": "timeout"}]
    waits = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    with opened(pg_cleared, **FLOOR) as fleet, ThreadPoolExecutor(1) as pool:
        seed(fleet, "ab")
        with psycopg.connect(pg_cleared) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s)", [GUARD_LOCK])
            assert fleet.record_batch(harmless).recorded == 2
            counted = [*harmless, {"id": "b", "outcome": "failure", "type": BAD}]
            waiting = pool.submit(fleet.record_batch, counted)
            while sql(pg_cleared, waits) != [(1,)]:
                assert not waiting.done()
            # It holds no row meanwhile.
            other.execute("SELECT FROM models FOR UPDATE NOWAIT")
        assert waiting.result().changes[0].after is ModelStatus.AUTO_DISABLED


def test_a_limit_is_one_of_requests_too(fleet_url: str) -> None:
    """`recover --probe` asks no more models than it may bring back, as its dry run says."""
    with probed(fleet_url, "false") as fleet:
        put_off(fleet_url, *"abcd", failed=2 * HOUR, provider="p")
        put_off(fleet_url, *"ef", failed=2 * HOUR)
        rehearsed = fleet.recover(probe=True, limit=3, dry_run=True)
        done = fleet.recover(probe=True, limit=3)
        assert (rehearsed.requests, done.requests) == (3, 3)
        assert [answer.healthy for answer in done.unhealthy] == [False] * 3
        assert done.recovered == ()


def test_the_rest_comes_back_beside_unhealthy_ones(fleet_url: str) -> None:
    """Providers without a probe come back by time, unhealthy models say why they do not."""
    with probed(fleet_url, "sh", "-c", "test {id} = a") as fleet:
        put_off(fleet_url, *"ab", failed=2 * HOUR, provider="p")
        put_off(fleet_url, "c", failed=2 * HOUR, provider="q")
        done = fleet.recover(probe=True, cooldown=0)
        assert sorted(done.recovered) == ["a", "c"]
        assert [(w.id, w.why) for w in done.waiting] == [("b", "probe")]
        assert fleet.show("b").failure_reason == "exit 1"


def test_what_could_not_be_asked_is_not_called_unhealthy(
    fleet_url: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that cannot be run says so of each model, in recover and in probe."""
    with probed(fleet_url, "/no/such/command") as fleet:
        put_off(fleet_url, *"ab", failed=2 * HOUR, provider="p")
        done = fleet.recover(probe=True, cooldown=0)
        assert [w.why for w in done.waiting] == ["unasked", "unasked"]
    file = tmp_path / "config.toml"
    file.write_text('[probe.p]\ncommand = ["/no/such/command"]\n')
    file.chmod(0o600)
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    asked = cli("--config", str(file), "probe", "a")
    assert asked.code == 1
    assert asked.out.startswith("a\tcould not be asked\t")
    run = cli("--config", str(file), "recover", "--probe", "--cooldown", "0s", "-o", "table")
    assert run.code == 0
    assert "due, but it could not be asked" in run.out
    note = view_of(done).note or ""
    assert "0 models asked, 0 not healthy, 2 could not be asked" in note


def test_asking_can_begin_again_after_an_error(fleet_url: str) -> None:
    """A run whose probes could not start leaves no lock that stops the next run."""
    keyless = ProbeConfig("p", url="https://example.com/v1", key_env="NO_SUCH_KEY")
    put_off(fleet_url, "a", failed=2 * HOUR, provider="p")
    config = configured(fleet_url)
    for _ in range(2):
        with (
            Fleet(replace(config, probes={"p": keyless})) as broken,
            pytest.raises(InvalidConfigError, match="NO_SUCH_KEY"),
        ):
            broken.recover(probe=True)
    with probed(fleet_url, "true") as fleet:
        assert fleet.recover(probe=True).recovered == ("a",)


def test_pausing_a_provider_without_models_warns(fleet_url: str) -> None:
    """A mistyped provider is paused, but not in silence."""
    said: list[str] = []
    with opened(fleet_url) as fleet:
        fleet.on_warning = said.append
        fleet.pause(60, provider="opnai")
    assert said == ["no model has the provider 'opnai'"]


def test_times_of_holds_that_cannot_be_read(fleet_url: str) -> None:
    """An unreadable time of a hold or of the last run stops no command."""
    endless = "infinity" if "postgresql" in fleet_url else "zzz"
    values = "('fleet', ?)"
    sql(fleet_url, f"INSERT INTO modelctl_holds (scope, until) VALUES {values}", endless)
    sql(fleet_url, "INSERT INTO modelctl_state (name, at) VALUES ('recover', ?)", endless)
    with opened(fleet_url) as fleet:
        assert [hold.until.year for hold in fleet.holds()] == [9999]
        assert fleet.stats().holds
        assert fleet.last_recover().at is None
        assert fleet.recover().paused


def test_ejections_that_are_no_whole_number(sqlite_database: str) -> None:
    """SQLite keeps what another program writes; half an ejection stops no recover."""
    with opened(sqlite_database, recovery_cooldown_factor=2) as fleet:
        put_off(sqlite_database, "a", failed=2 * HOUR)
        sql(sqlite_database, "UPDATE models SET ejections = 1.5")
        assert fleet.recover().recovered == ("a",)


def test_a_garbled_end_brings_nothing_back(sqlite_database: str) -> None:
    """What SQLite takes for a time of the year 2000 is no end that a person said."""
    with opened(sqlite_database) as fleet:
        seed(fleet, "a")
        fleet.disable("a", duration=3600)
        sql(sqlite_database, "UPDATE models SET disabled_until = '12:00'")
        assert fleet.recover().recovered == ()
