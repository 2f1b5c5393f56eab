"""The health rule keeps the floor and the share of each provider, with many recording at once."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from modelctl import Fleet, RefusedError, crash_points
from modelctl.database import database
from tests import fleets
from tests.commands import Cli, plain, run_together, seen
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    environ,
    everything,
    opened,
    put,
    put_off,
    status,
)
from tests.recovery.outcomes import BAD, Fail, in_a_batch, listed, one_by_one, story, would

# ── The floor ───────────────────────────────────────────────────────────────────────────────────


def test_the_floor_holds(fleet_url: str, fail: Fail) -> None:
    """The rule stops at the floor, notes each spared model once, and disables it once there is room."""
    put(fleet_url, *"abcde")
    with opened(fleet_url, recovery_min_active=3) as fleet:
        fail(fleet, *"abcde")
        assert status(fleet, *"abcde") == [AUTO, AUTO, ACTIVE, ACTIVE, ACTIVE]
        assert would(fleet, *"abcde") == [None, None, "floor", "floor", "floor"]
        fail(fleet, *"cde", times=3)
        fail(fleet, "c", times=2, kind="timeout")
        assert would(fleet, "c") == ["floor"]
        assert [story(fleet, i) for i in "bc"] == [["auto-disabled"], ["would-disable"]]
        model = fleet.show("c")
        assert (model.consecutive_failures, model.failure_count, model.ejections) == (8, 10, 0)
        (event,) = fleet.events("c")
        assert (event.before, event.after, event.failure_type) == (ACTIVE, ACTIVE, BAD)
        assert (event.reason, event.actor) == ("no JSON", ACTOR)
        # A success takes the note away.
        fleet.record_success("d")
        assert would(fleet, *"cde") == ["floor", None, "floor"]
        fleet.enable("a")
        fail(fleet, *"ce", times=1)
        assert status(fleet, *"ace") == [ACTIVE, AUTO, ACTIVE]
        assert would(fleet, *"ce") == [None, "floor"]
        assert story(fleet, "c") == ["would-disable", "auto-disabled"]
        assert story(fleet, "e") == ["would-disable"]


def test_a_success_makes_room_within_a_batch(fleet_url: str) -> None:
    """What a batch itself switches on and off counts for the rest of it."""
    put_off(fleet_url, "back")
    put(fleet_url, *"abc", consecutive_failures=4)
    failure = {"outcome": "failure", "type": BAD}
    with opened(fleet_url, recovery_min_active=2) as fleet:
        lines = [{"id": i, **failure} for i in "ab"]
        lines += [{"id": "back", "outcome": "success"}, {"id": "c", **failure}]
        fleet.record_batch(lines)
        assert status(fleet, "a", "b", "back", "c") == [AUTO, ACTIVE, ACTIVE, AUTO]
        assert would(fleet, "b") == ["floor"]


@pytest.mark.parametrize(("percent", "off"), [(0, 1), (25, 1), (50, 2), (74, 2), (100, 4)])
def test_the_share_of_a_provider_holds(fleet_url: str, fail: Fail, percent: int, off: int) -> None:
    """The rule disables at most the percentage of a provider's models, but always allows one."""
    put(fleet_url, *"abcd", provider="p", consecutive_failures=4)
    put(fleet_url, "x", provider="q", consecutive_failures=4)
    put(fleet_url, "nobody's", consecutive_failures=4)
    with opened(fleet_url, recovery_max_auto_disabled_percent=percent) as fleet:
        fail(fleet, *"abcd", "x", "nobody's", times=1)
        assert status(fleet, *"abcd") == [AUTO] * off + [ACTIVE] * (4 - off)
        assert would(fleet, *"abcd") == [None] * off + ["share"] * (4 - off)
        assert status(fleet, "x", "nobody's") == [AUTO, AUTO]


def test_the_share_is_of_all_models_and_those_that_the_rule_switched_off(
    fleet_url: str, fail: Fail
) -> None:
    """Models that a person switched off belong to the provider, and do not count as off."""
    put(fleet_url, *"abcd", provider="p", consecutive_failures=4)
    put(fleet_url, *"efgh", provider="p", active=False)
    with opened(fleet_url, recovery_max_auto_disabled_percent=25) as fleet:
        fail(fleet, *"abcd", times=1)
        assert status(fleet, *"abcd") == [AUTO, AUTO, ACTIVE, ACTIVE]


def test_without_guards_every_failing_model_is_disabled(fleet_url: str, fail: Fail) -> None:
    """Without a configured guard every model that fails is disabled."""
    put(fleet_url, *"abc", provider="p")
    put(fleet_url, *"def")
    with opened(fleet_url) as fleet:
        fail(fleet, *"abcdef")
        assert status(fleet, *"abcdef") == [AUTO] * 6


def test_a_spared_model_is_shown(fleet_url: str, tool: Cli) -> None:
    """list, show, doctor and the history name the model that stays on, and why."""
    put(fleet_url, "acme/one", consecutive_failures=4)
    floor = {"recovery_min_active": 1}
    result = tool("record-failure", "acme/one", "--type", BAD, **floor)
    assert (result.code, result.out.split("\t")[3]) == (0, "counted, 5 of 5; kept on (floor)")
    row = listed(tool)["acme/one"]
    assert (row["status"], row["would_disable"]) == ("active", "floor")
    assert tool("list", "-o", "json").json[0]["would_disable"] == "floor"
    assert tool("show", "acme/one", "-o", "json").json["would_disable"] == "floor"
    assert "would have switched it off, but" in tool("show", "acme/one").out
    doctor = {c["check"]: c for c in tool("doctor", "-o", "json").json["checks"]}
    assert doctor["spared"] == {
        "check": "spared",
        "ok": True,
        "detail": "would be off without a guard: acme/one (floor)",
        "warning": False,
        "result": "ok",
    }
    event = tool("events", "acme/one", "-o", "json").json[0]
    assert (event["event"], event["before"], event["after"]) == (
        "would-disable",
        "active",
        "active",
    )
    code, shown = seen("list", environ=environ(fleet_url))
    assert (code, "floor" in plain(shown)) == (0, True)
    assert event["details"] == {"guard": "floor"}
    assert tool("enable", "acme/one").out == "acme/one\tactive\tactive\talready active\tfalse\n"
    model = tool("show", "acme/one", "-o", "json").json
    assert (model["would_disable"], model["consecutive_failures"]) == (None, 0)


# ── The floor, by many at once ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("guard", "value", "why"),
    [
        ("recovery_min_active", 4, "floor"),
        ("recovery_max_auto_disabled_percent", 75, "share"),
    ],
)
def test_many_at_the_same_moment_do_not_pass_the_floor(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, guard: str, value: int, why: str
) -> None:
    """Calls and batches of six threads switch off exactly as many as may go, without a deadlock."""
    monkeypatch.setattr(database, "_TRIES", 1)
    ids = [f"m{number:02}" for number in range(16)]
    put(fleet_url, *ids, provider="p", consecutive_failures=3)
    start = threading.Barrier(6)

    def work(number: int) -> None:
        own = ids[number::6]
        with opened(fleet_url, **{guard: value}) as fleet:
            fleet.list_models()
            start.wait(20)
            if number % 2:
                in_a_batch(fleet, *own, times=2)
                in_a_batch(fleet, *reversed(own), times=1)
            else:
                one_by_one(fleet, *own, times=3)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    with opened(fleet_url) as fleet:
        models = fleet.list_models()
    assert [m.would_disable for m in models if m.active] == [why] * 4
    assert {m.consecutive_failures for m in models} == {6}
    happened = [row[1] for row in fleets.events(fleet_url)]
    assert sorted(happened) == ["auto-disabled"] * 12 + ["would-disable"] * 4


CROWD = """
import sys
from modelctl import DatabaseUnavailableError, Fleet

def patiently(call, *arguments):
    while True:
        try:
            return call(*arguments)
        except DatabaseUnavailableError as exc:
            if "deadlock" in exc.message:
                raise

with Fleet.open() as fleet:
    fleet.list_models()
    print("ready", flush=True)
    sys.stdin.readline()
    for number, model_id in enumerate(sys.argv[1:]):
        failure = {"id": model_id, "outcome": "failure", "type": "parse-error"}
        if number % 2:
            patiently(fleet.record_batch, [failure] * 2)
        else:
            patiently(fleet.record_failure, model_id, "parse-error")
            patiently(fleet.record_failure, model_id, "parse-error")
"""


def test_processes_do_not_pass_the_floor(fleet_url: str) -> None:
    """Three processes that fail all models at once leave exactly the floor."""
    ids = [f"m{number:02}" for number in range(16)]
    put(fleet_url, *ids, consecutive_failures=3)
    variables = environ(fleet_url, recovery_min_active=5)
    run_together(CROWD, [ids[number::3] for number in range(3)], variables)
    with opened(fleet_url) as fleet:
        assert fleet.count(fresh=True).active == 5
        assert len(fleet.list_models(status=AUTO)) == 11


def fail_once(fleet: Fleet, model_id: str) -> None:
    """Record one failure."""
    fleet.record_failure(model_id, BAD)


def fail_in_a_batch(fleet: Fleet, model_id: str) -> None:
    """Record one failure in a batch."""
    fleet.record_batch([{"id": model_id, "outcome": "failure", "type": BAD}])


def switch_off(fleet: Fleet, model_id: str) -> None:
    """Disable as a person does; the change may be refused."""
    with contextlib.suppress(RefusedError):
        fleet.disable(model_id)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (fail_once, fail_once),
        (fail_once, fail_in_a_batch),
        (fail_in_a_batch, fail_once),
        (fail_in_a_batch, switch_off),
        (switch_off, fail_once),
        (switch_off, switch_off),
    ],
)
def test_the_second_change_waits_for_the_first(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, first: Fail, second: Fail
) -> None:
    """While a change is not committed, no other change decides whether the floor is reached."""
    put(fleet_url, *"ab", consecutive_failures=4)
    stopped, go = threading.Event(), threading.Event()

    def stop(name: str) -> None:
        if name == "before-commit" and threading.current_thread().name == "first":
            stopped.set()
            assert go.wait(20)

    monkeypatch.setattr(crash_points, "hook", stop)

    def work() -> None:
        threading.current_thread().name = "first"
        first(one, "a")
        threading.current_thread().name = "done"

    with (
        opened(fleet_url, recovery_min_active=1) as one,
        opened(fleet_url, recovery_min_active=1) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        one.list_models()
        other.list_models()
        done: list[Future[None]] = [pool.submit(work)]
        assert stopped.wait(20)
        done.append(pool.submit(second, other, "b"))
        with pytest.raises(TimeoutError):
            done[1].result(timeout=0.2)
        go.set()
        for future in done:
            future.result()
        assert status(one, "b") == [ACTIVE]
        assert status(one, "a") != [ACTIVE]
        if second is not switch_off:
            assert would(one, "b") == ["floor"]


# ── The floor, and people ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ids", [["a"], ["off", "a"], ["a", "b"]])
@pytest.mark.parametrize("time", [[], ["--for", "2h"], ["--until", "2100-01-01T00:00Z"]])
def test_a_person_is_refused_below_the_floor(
    fleet_url: str, tool: Cli, ids: list[str], time: list[str]
) -> None:
    """Exit 8 says why and how to override it, in a dry run too, and nothing is changed."""
    put(fleet_url, *"ab")
    put_off(fleet_url, "off")
    floor = {"recovery_min_active": 2}
    arguments = [*ids, *time]
    before = everything(fleet_url)
    for more in ([], ["--dry-run"]):
        tool("disable", *arguments, *more, **floor).failed(
            8, "would stay on", "recovery.min_active is 2", "nothing was changed", "--force"
        )
    told = tool("disable", *arguments, "-o", "json", **floor)
    assert (told.code, told.json["error"]["code"]) == (8, "refused")
    assert everything(fleet_url) == before
    forced = tool("disable", *arguments, "--force", "--dry-run", **floor)
    assert (forced.code, "would be disabled" in forced.out) == (0, True)
    assert everything(fleet_url) == before
    assert tool("disable", *arguments, "--force", **floor).code == 0
    with opened(fleet_url) as fleet:
        assert status(fleet, *ids) == [DISABLED] * len(ids)


def test_a_person_may_do_what_leaves_the_floor_alone(fleet_url: str, tool: Cli) -> None:
    """At and below the floor, what is off already may be disabled, and enabling is no question."""
    put(fleet_url, "on")
    put(fleet_url, "off", active=False)
    put_off(fleet_url, "auto")
    floor = {"recovery_min_active": 3}
    assert tool("disable", "off", "auto", **floor).code == 0
    assert tool("enable", "off", **floor).code == 0
    tool("disable", "on", **floor).failed(8, "1 model would stay on")
