"""What a person disabled for good stays disabled, and its facts are not rewritten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from modelctl import Fleet, RefusedError, crash_points
from modelctl.model import FailureType
from modelctl.models.results import KeptChange
from tests import fleets
from tests.commands import Cli
from tests.fleets import (
    ACTIVE,
    AUTO,
    DISABLED,
    HOUR,
    ago,
    everything,
    opened,
    rows,
    seed,
    sql,
    trip,
)

BAD = FailureType.PARSE_ERROR
END = datetime(2100, 6, 1, 8, tzinfo=UTC)
LATER = datetime(2200, 6, 1, 8, tzinfo=UTC)
END_WORDS, LATER_WORDS = "2100-06-01T08:00:00.000Z", "2200-06-01T08:00:00.000Z"
FACTS = ("disabled_at", "disabled_by", "disabled_reason", "disabled_until")


def facts(fleet: Fleet, model_id: str) -> tuple[Any, ...]:
    """Return since when, by whom, why and until when a model is off."""
    model = fleet.show(model_id)
    return tuple(getattr(model, name) for name in FACTS)


def last(fleet: Fleet, model_id: str) -> tuple[Any, ...]:
    """Return the newest event of a model: what, status before and after, why, and its details."""
    event = fleet.events(model_id, limit=1)[0]
    return event.event, event.before, event.after, event.reason, event.details


# Off for good, and a timed disable


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("how", [{"duration": HOUR}, {"until": END}])
def test_a_timed_disable_gives_no_end(
    fleet: Fleet, fleet_url: str, how: dict[str, Any], dry_run: bool
) -> None:
    """A timed disable of a permanently disabled model leaves row and history as they are."""
    seed(fleet, "a")
    fleet.disable("a", reason="broken")
    before = everything(fleet_url)
    with opened(fleet_url) as other:  # another operator
        result = other.disable("a", reason="maintenance", dry_run=dry_run, **how)
    (change,) = result.changes
    assert (change.before, change.after, change.changed) == (DISABLED, DISABLED, False)
    assert isinstance(change, KeptChange)
    assert everything(fleet_url) == before


def test_a_mass_timed_disable_keeps_those_for_good(fleet: Fleet, fleet_url: str) -> None:
    """When a mass timed disable ends, models that were disabled permanently stay disabled."""
    seed(fleet, ["on", "ann", "psql", "auto", "timed"])
    fleet.disable("ann")
    sql(fleet_url, "UPDATE models SET active = false WHERE id = 'psql'")
    trip(fleet, "auto")
    fleet.disable("timed", until=LATER)
    fleet.pause(HOUR)  # nothing else brings models back meanwhile
    ids = ["on", "ann", "psql", "auto", "timed"]
    result = fleet.disable(*ids, duration=HOUR)
    assert [c.id for c in result.changes if not c.changed] == ["ann", "psql"]
    fleet.resume()
    sql(
        fleet_url,
        f"UPDATE models SET disabled_until = {ago(fleet_url, 1)} WHERE disabled_until IS NOT NULL",
    )
    rehearsed = fleet.recover(cooldown=0, dry_run=True)
    assert sorted(rehearsed.recovered) == ["auto", "on", "timed"]
    assert sorted(fleet.recover(cooldown=0).recovered) == ["auto", "on", "timed"]
    assert [fleet.show(i).status for i in ("ann", "psql")] == [DISABLED] * 2


@pytest.mark.parametrize(
    "off",
    [
        "active = false",
        "active = false, disabled_reason = 'x'",
    ],
)
@pytest.mark.parametrize("leftover", [False, True])
def test_a_flip_by_raw_sql_is_for_good(
    fleet: Fleet, fleet_url: str, off: str, leftover: bool
) -> None:
    """A model disabled in SQL is disabled by a person, and a timed disable gives it no end."""
    seed(fleet, "a")
    if leftover:  # of a time before
        sql(fleet_url, f"UPDATE models SET disabled_until = {ago(fleet_url, HOUR)}")
    sql(fleet_url, f"UPDATE models SET {off}")
    assert not fleet.disable("a", duration=HOUR).changes[0].changed
    assert fleet.recover(cooldown=0).recovered == ()
    assert fleet.show("a").retry_at is None


def test_raw_sql_on_a_model_that_is_off_is_no_disable(fleet: Fleet, fleet_url: str) -> None:
    """SET active = false on what the rule switched off changes nothing: it stays the rule's."""
    seed(fleet, "a")
    trip(fleet, "a")
    sql(fleet_url, "UPDATE models SET active = false")
    assert fleet.show("a").status is AUTO
    assert fleet.recover(cooldown=0).recovered == ("a",)


@pytest.mark.parametrize("end", ["infinity", "zzz", "12:00"])
def test_an_end_that_never_comes_is_none(fleet: Fleet, fleet_url: str, end: str) -> None:
    """An end that another program wrote and that never comes is kept from a timed disable, too."""
    seed(fleet, "a")
    fleet.disable("a")
    sqlite = fleets.is_sqlite(fleet_url)
    sql(fleet_url, "UPDATE models SET disabled_until = ?", end if sqlite else "infinity")
    assert isinstance(fleet.disable("a", duration=HOUR).changes[0], KeptChange)
    assert fleet.disable("a", duration=HOUR, force=True).changes[0].changed
    assert fleet.show("a").retry_at is not None


def test_force_gives_an_end(fleet: Fleet, fleet_url: str) -> None:
    """With --force a permanently disabled model comes back at the given time; the history has both ends."""
    seed(fleet, "a")
    fleet.disable("a", reason="broken")
    before = facts(fleet, "a")
    assert fleet.disable("a", until=END, force=True, dry_run=True).changes[0].changed
    assert facts(fleet, "a") == before
    assert fleet.disable("a", until=END, force=True).changes[0].changed
    assert facts(fleet, "a") == (*before[:3], END)
    details: Any = {
        "until": END_WORDS,
        "old": {"disabled_until": None},
        "new": {"disabled_until": END_WORDS},
    }
    assert last(fleet, "a") == ("disabled", DISABLED, DISABLED, None, details)


def test_the_command_line_says_that_it_is_kept(tool: Cli, fleet_url: str) -> None:
    """A kept model is "already disabled, without an end; kept", exit 0, also in a dry run."""
    with opened(fleet_url) as fleet:
        seed(fleet, "abc")
        fleet.disable("a", "b")
    kept = "disabled\tdisabled\talready disabled, without an end; kept\tfalse\twithout an end; kept"
    for more in ([], ["--dry-run"], ["--reason", "new"]):
        for end in (["--for", "2h"], ["--until", "2100-06-01T08:00Z"]):
            done = tool("disable", "a", *end, *more)
            assert (done.code, done.out) == (0, f"a\t{kept}\n")
    done = tool("disable", "a", "b", "c", "--for", "2h", "--dry-run")
    assert done.lines == [
        f"a\t{kept}",
        f"b\t{kept}",
        "c\tactive\tdisabled\twould be disabled\ttrue\t",
    ]
    (change,) = tool("disable", "a", "--for", "2h", "-o", "json").json["changes"]
    assert (change["before"], change["after"], change["changed"]) == ("disabled", "disabled", False)
    assert change["note"] == "without an end; kept"
    assert tool("disable", "a", "--for", "2h", "--force").lines[0].endswith("\tdisabled\ttrue")


def test_force_is_for_the_floor_too(fleet_url: str) -> None:
    """What is kept does not hide the floor: without force the whole command is refused."""
    with opened(fleet_url, recovery_min_active=1) as fleet:
        seed(fleet, "ab")
        fleet.disable("a")
        before = everything(fleet_url)
        with pytest.raises(RefusedError):
            fleet.disable("a", "b", duration=HOUR)
        assert everything(fleet_url) == before
        assert not fleet.disable("a", duration=HOUR).changes[0].changed


@pytest.mark.parametrize("first", ["for good", "timed"])
@pytest.mark.parametrize("many", [False, True])
def test_two_disables_at_once_end_for_good(
    pg_cleared: str, monkeypatch: pytest.MonkeyPatch, first: str, many: bool
) -> None:
    """A timed and a permanent disable at once leave the model permanently disabled."""
    reached, go_on = threading.Event(), threading.Event()

    def stop(point: str) -> None:
        if point == "before-commit" and threading.current_thread().name.startswith("first"):
            reached.set()
            assert go_on.wait(10)

    ids = ["a", "b"] if many else ["a"]
    durations = (None, HOUR) if first == "for good" else (HOUR, None)
    with opened(pg_cleared) as fleet, ThreadPoolExecutor(1, "first") as pool:
        seed(fleet, "ab")
        monkeypatch.setattr(crash_points, "hook", stop)
        one = pool.submit(fleet.disable, *ids, duration=durations[0])
        assert reached.wait(10)
        with psycopg.connect(pg_cleared, autocommit=True) as other:
            two = ThreadPoolExecutor(1, "second").submit(fleet.disable, *ids, duration=durations[1])
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            )
            while other.execute(waits).fetchone() != (1,):
                assert not two.done()
        go_on.set()
        assert all(c.changed for c in one.result().changes)
        assert all(c.changed is (first == "timed") for c in two.result().changes)
        assert {fleet.show(i).disabled_until for i in ids} == {None}


# Facts are not rewritten


def test_another_end_keeps_since_when_and_why(fleet: Fleet) -> None:
    """A new end changes only the end; without an end the disable becomes permanent."""
    seed(fleet, "a")
    fleet.disable("a", reason="broken", until=END)
    before = facts(fleet, "a")
    assert fleet.disable("a", until=LATER).changes[0].changed
    assert facts(fleet, "a") == (*before[:3], LATER)
    details: Any = {
        "until": LATER_WORDS,
        "old": {"disabled_until": END_WORDS},
        "new": {"disabled_until": LATER_WORDS},
    }
    assert last(fleet, "a") == ("disabled", DISABLED, DISABLED, None, details)
    assert fleet.disable("a").changes[0].changed
    assert facts(fleet, "a") == (*before[:3], None)
    details = {
        "until": None,
        "old": {"disabled_until": LATER_WORDS},
        "new": {"disabled_until": None},
    }
    assert last(fleet, "a") == ("disabled", DISABLED, DISABLED, None, details)


def test_the_same_end_is_already(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """`--until` the same time, in whatever zone, changes nothing; `--for` moves the end."""
    seed(fleet, "a")
    fleet.disable("a", until=END)
    before = everything(fleet_url)
    for words in ("2100-06-01T08:00Z", "2100-06-01T10:00:00+02:00"):
        assert tool("disable", "a", "--until", words).out.endswith("\talready disabled\tfalse\n")
    assert everything(fleet_url) == before
    assert tool("disable", "a", "--for", "2h").out.endswith("\tdisabled\ttrue\n")


@pytest.mark.parametrize("timed", [False, True])
def test_a_new_reason_is_stored(fleet: Fleet, timed: bool) -> None:
    """A new reason is stored, and the old reason is in the history as `updated`.

    An empty reason is none, so the one that is there stays.
    """
    how: dict[str, Any] = {"until": END} if timed else {}
    end = END_WORDS if timed else None
    seed(fleet, "a")
    fleet.disable("a", **how)
    at, by, _, until = facts(fleet, "a")
    old = None
    for reason in ("first", "second"):
        (change,) = fleet.disable("a", reason=reason, **how).changes
        assert (change.before, change.after, change.changed) == (DISABLED, DISABLED, True)
        assert facts(fleet, "a") == (at, by, reason, until)
        details = {
            "until": end,
            "old": {"disabled_reason": old},
            "new": {"disabled_reason": reason},
        }
        assert last(fleet, "a") == ("updated", DISABLED, DISABLED, reason, details)
        old = reason
    assert not fleet.disable("a", reason="", **how).changes[0].changed
    assert facts(fleet, "a") == (at, by, "second", until)


def test_a_new_reason_of_what_raw_sql_switched_off(fleet: Fleet, fleet_url: str) -> None:
    """A new reason of a model disabled in SQL invents neither a time nor an actor."""
    seed(fleet, "a")
    sql(fleet_url, "UPDATE models SET active = false")
    fleet.disable("a", reason="why")
    assert facts(fleet, "a") == (None, None, "why", None)


@pytest.mark.parametrize("reason", [None, "mine"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_disable_of_an_auto_disabled_model(
    fleet: Fleet, fleet_url: str, reason: str | None, timed: bool
) -> None:
    """The model is off since the rule disabled it, with that reason unless a new reason is given."""
    seed(fleet, "a")
    trip(fleet, "a")
    at = fleet.show("a").disabled_at
    assert at is not None
    fleet.disable("a", reason=reason, until=END if timed else None)
    new = reason or "no JSON"
    assert facts(fleet, "a") == (at, fleets.ACTOR, new, END if timed else None)
    event, before, _, _, details = last(fleet, "a")
    assert (event, before) == ("disabled", AUTO)
    assert details["old"]["disabled_by"] == "health rule"
    assert details["new"]["disabled_by"] == fleets.ACTOR
    assert details["until"] == (END_WORDS if timed else None)
    assert ("disabled_reason" in details["new"]) is bool(reason)
    assert fleet.recover(cooldown=0).recovered == ()
    if timed:
        sql(fleet_url, f"UPDATE models SET disabled_until = {ago(fleet_url, 1)}")
        assert fleet.recover().recovered == ("a",)


def test_enabled_and_disabled_again_is_a_new_disable(fleet: Fleet) -> None:
    """A second disable has a new time, actor and reason."""
    seed(fleet, "a")
    fleet.disable("a", reason="first", until=END)
    first = facts(fleet, "a")
    fleet.enable("a")
    fleet.disable("a")
    at, by, reason, until = facts(fleet, "a")
    assert (by, reason, until) == (fleets.ACTOR, None, None)
    assert at > first[0]


def test_enable_keeps_what_failed_last(fleet: Fleet) -> None:
    """Type, time and text of the last failure stay when a model is enabled."""
    seed(fleet, "ab")
    trip(fleet, "a")
    fleet.record_failure("b", BAD, reason="no JSON")
    names = ("failure_type", "failure_reason", "last_failure_at", "failure_count")
    for model_id in "ab":
        before = fleet.show(model_id)
        fleet.enable(model_id)
        model = fleet.show(model_id)
        assert [getattr(model, n) for n in names] == [getattr(before, n) for n in names]
        assert model.failure_reason == "no JSON"
        assert (model.consecutive_failures, model.ejections) == (0, 0)
    assert last(fleet, "a")[4] == {
        "old": {
            "disabled_by": "health rule",
            "disabled_reason": "no JSON",
            "consecutive_failures": 5,
            "ejections": 1,
        },
        "new": {
            "disabled_by": None,
            "disabled_reason": None,
            "consecutive_failures": 0,
            "ejections": 0,
        },
    }


def test_enable_of_a_model_that_is_on(fleet: Fleet, fleet_url: str) -> None:
    """Enabling an active model clears its failures without an event and keeps when it came back."""
    seed(fleet, "abc")
    for _ in range(3):
        fleet.record_failure("a", BAD)
    fleet.pause(HOUR)
    fleet.record_batch([{"id": "b", "outcome": "failure", "type": BAD}] * 6)
    trip(fleet, "c")
    fleet.resume()
    assert [fleet.show(i).would_disable for i in "abc"] == [None, "paused", "paused"]
    history = len(fleet.events(limit=100))
    for change in fleet.enable(*"abc").changes:
        assert (change.before, change.after, change.changed) == (ACTIVE, ACTIVE, False)
    for model_id in "abc":
        model = fleet.show(model_id)
        found = (model.consecutive_failures, model.ejections, model.would_disable)
        assert found == (0, 0, None)
        assert model.recovered_at is None
    assert len(fleet.events(limit=100)) == history
    before = rows(fleet_url)
    fleet.enable(*"abc")
    assert rows(fleet_url) == before
    fleet.record_batch([{"id": "b", "outcome": "failure", "type": BAD}] * 4)
    assert fleet.show("b").status is ACTIVE


@pytest.mark.parametrize("batch", [False, True])
def test_the_rule_clears_an_old_end(fleet_url: str, batch: bool) -> None:
    """The rule clears an old end when it switches, by single calls and by a batch alike."""
    with opened(fleet_url, health_threshold=1, recovery_restart_failures=0) as fleet:
        seed(fleet, "ab")
        sql(
            fleet_url,
            "UPDATE models SET disabled_until = ?",
            LATER if not fleets.is_sqlite(fleet_url) else LATER_WORDS,
        )
        failure = {"outcome": "failure", "type": BAD}
        if batch:
            fleet.record_batch([{"id": "a", **failure}, {"id": "b", "outcome": "success"}])
            fleet.record_batch([{"id": "b", **failure}, {"id": "b", "outcome": "success"}])
        else:
            fleet.record_failure("a", BAD)
            fleet.record_failure("b", BAD)
            fleet.record_success("b")
        assert [fleet.show(i).disabled_until for i in "ab"] == [None, None]
