"""Switching off and on by itself, and what stops it: the same on every database."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import (
    DatabaseUnavailableError,
    Fleet,
    ModelStatus,
    Pause,
    RefusedError,
    UsageError,
    crash_points,
)
from modelctl.database import bulk, database
from modelctl.database.sql import RECOVER_LOCK
from tests import ROOT, fleets
from tests.commands import Cli, Result, plain, run, seen
from tests.faults.crashing import Call, Job, Nursery
from tests.fleets import (
    ACTOR,
    HOUR,
    Ago,
    ago,
    alter,
    everything,
    is_sqlite,
    let_pass,
    opened,
    put,
    put_off,
    sql,
    status,
)
from tests.servers import Redis

ACTIVE, DISABLED, AUTO = ModelStatus
BAD = "parse-error"
OTHER = "client-error"
GUARDED = {"recovery_incident_models": 3, "recovery_incident_window": "10m"}

Fail = Callable[..., None]


# ── A fleet to work on ──────────────────────────────────────────────────────────────────────────


def patiently(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call again where the database was busy, as an application does; a deadlock is an error."""
    for _ in range(10):
        try:
            call(*arguments, **options)
        except DatabaseUnavailableError as exc:
            if "deadlock" in exc.message:
                raise
        else:
            return
    raise AssertionError("the database stays busy")


def one_by_one(fleet: Fleet, *ids: str, times: int = 5, kind: str = BAD) -> None:
    """Record failures in calls of their own."""
    for model_id in ids:
        for _ in range(times):
            patiently(fleet.record_failure, model_id, kind, reason="no JSON")


def in_a_batch(fleet: Fleet, *ids: str, times: int = 5, kind: str = BAD) -> None:
    """Record failures in one batch."""
    failure = {"outcome": "failure", "type": kind, "reason": "no JSON"}
    patiently(fleet.record_batch, [{"id": i, **failure} for i in ids for _ in range(times)])


def succeed_one_by_one(fleet: Fleet, *ids: str) -> None:
    """Record successes in calls of their own."""
    for model_id in ids:
        fleet.record_success(model_id)


def succeed_in_a_batch(fleet: Fleet, *ids: str) -> None:
    """Record successes in one batch."""
    fleet.record_batch({"id": i, "outcome": "success"} for i in ids)


@pytest.fixture(params=[one_by_one, in_a_batch], ids=["calls", "batch"])
def fail(request: pytest.FixtureRequest) -> Fail:
    """Give both ways to record failures."""
    how: Fail = request.param
    return how


@pytest.fixture(params=[succeed_one_by_one, succeed_in_a_batch], ids=["calls", "batch"])
def succeed(request: pytest.FixtureRequest) -> Fail:
    """Give both ways to record successes."""
    how: Fail = request.param
    return how


@pytest.fixture
def tool(cli: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the program on the database; keywords are settings like ``recovery_limit=2``."""

    def call(*arguments: str, **configured: object) -> Result:
        with monkeypatch.context() as environment:
            for name, value in environ(fleet_url, **configured).items():
                environment.setenv(name, value)
            return cli(*arguments)

    return call


def environ(url: str, **configured: object) -> dict[str, Any]:
    """Return the environment of a program that works on this database."""
    names = {f"MODELCTL_{name}".upper(): str(value) for name, value in configured.items()}
    return {"MODELCTL_DATABASE_URL": url, "MODELCTL_ACTOR": ACTOR, **names}


def listed(tool: Cli, *words: str, **configured: object) -> dict[str, dict[str, str]]:
    """Return what `list` says of each model, by column."""
    rows = csv.DictReader(tool("list", *words, "-o", "csv", **configured).lines)
    return {row["id"]: row for row in rows}


def story(fleet: Fleet, model_id: str | None = None) -> list[str]:
    """Return what happened, the oldest first; of a provider with its name."""
    events = reversed(fleet.events(model_id, limit=10_000))
    return [e.event if e.model_id else f"{e.event} {e.provider}" for e in events]


def would(fleet: Fleet, *ids: str) -> list[str | None]:
    """Return why each model was spared."""
    return [fleet.show(model_id).would_disable for model_id in ids]


def why(fleet: Fleet, **how: Any) -> dict[str, str]:
    """Return what a dry run of recover says of each model."""
    told = fleet.recover(dry_run=True, **how)
    return dict.fromkeys(told.recovered, "due") | {w.id: w.why for w in told.waiting}


# ── The cooldown ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("factor", "cap", "hours"),
    [
        (1, "1d", [1, 1, 1, 1]),
        (2, "5h", [1, 2, 4, 5, 5]),
        (1.5, "1d", [1, 1.5, 2.25, 3.375]),
        (10, "2h", [1, 2, 2]),
        (2, "1h", [1, 1, 1]),
    ],
)
def test_the_cooldown_grows_with_each_ejection(
    fleet_url: str, factor: float, cap: str, hours: list[float]
) -> None:
    """It is base times factor for each ejection, at most the cap, which never shortens the base."""
    for ejections, after in enumerate(hours, 1):
        put_off(fleet_url, f"soon-{ejections}", failed=after * HOUR - 60, ejections=ejections)
        put_off(fleet_url, f"due-{ejections}", failed=after * HOUR + 60, ejections=ejections)
    due = {f"due-{ejections}" for ejections in range(1, len(hours) + 1)}
    rule = {"recovery_cooldown_factor": factor, "recovery_max_cooldown": cap}
    with opened(fleet_url, **rule) as fleet:
        told = fleet.recover(dry_run=True)
        assert set(told.recovered) == due
        assert {(w.id, w.why) for w in told.waiting} == {
            (i.replace("due", "soon"), "cooldown") for i in due
        }
        for waiting in told.waiting:
            model = fleet.show(waiting.id)
            assert model.last_failure_at is not None
            ends = model.last_failure_at + timedelta(hours=hours[model.ejections - 1])
            assert model.retry_at == waiting.retry_at == ends
            for left in (model.seconds_left, waiting.seconds_left):
                assert left is not None
                assert 30 < left < 61
        assert set(fleet.recover().recovered) == due
        assert {m.id for m in fleet.list_models(status=AUTO)} == {w.id for w in told.waiting}


def test_by_default_every_cooldown_is_the_same(fleet_url: str) -> None:
    """Without a factor an hour is an hour, however often the model was ejected."""
    put_off(fleet_url, "often", failed=1.01 * HOUR, ejections=99)
    put_off(fleet_url, "never", failed=1.01 * HOUR, ejections=0)
    put_off(fleet_url, "soon", failed=0.99 * HOUR, ejections=1)
    with opened(fleet_url) as fleet:
        assert why(fleet) == {"often": "due", "never": "due", "soon": "cooldown"}


def test_a_model_that_keeps_failing_waits_longer_each_time(fleet_url: str) -> None:
    """Each ejection doubles the wait, and the model comes back with two failures of five."""
    put(fleet_url, "a")
    with opened(fleet_url, recovery_cooldown_factor=2) as fleet:
        one_by_one(fleet, "a")
        for ejections, hours in enumerate([1, 2, 4], 1):
            assert fleet.show("a").ejections == ejections
            alter(fleet_url, "a", last_failure_at=Ago(hours * HOUR - 60))
            assert fleet.recover().recovered == ()
            alter(fleet_url, "a", last_failure_at=Ago(hours * HOUR + 1))
            assert fleet.recover().recovered == ("a",)
            model = fleet.show("a")
            assert (model.consecutive_failures, model.ejections) == (2, ejections)
            one_by_one(fleet, "a", times=2)
            assert fleet.show("a").status is ACTIVE
            one_by_one(fleet, "a", times=1)
        assert story(fleet, "a") == ["auto-disabled", *["recovered", "auto-disabled"] * 3]


@pytest.mark.parametrize(
    ("failed", "disabled", "updated", "is_due"),
    [
        (2, 0, 0, True),
        (0, 2, 2, False),
        (None, 2, 0, True),
        (None, 0, 2, False),
        (None, None, 2, True),
        (None, None, 0, False),
    ],
)
def test_the_cooldown_counts_from_the_last_failure(
    fleet_url: str, failed: float | None, disabled: float | None, updated: float, is_due: bool
) -> None:
    """The last failure decides, without one the disabling, without that the last change."""
    put_off(fleet_url, "a")
    sql(fleet_url, "UPDATE models SET last_failure_at = NULL, disabled_at = NULL")
    times = {"last_failure_at": failed, "disabled_at": disabled, "updated_at": updated}
    for column, hours in times.items():
        if hours is not None:
            alter(fleet_url, "a", **{column: Ago(hours * HOUR)})
    with opened(fleet_url) as fleet:
        assert why(fleet) == {"a": "due" if is_due else "cooldown"}
        assert (fleet.show("a").seconds_left == 0) is is_due
        assert fleet.recover().recovered == (("a",) if is_due else ())


def test_a_cooldown_for_one_run(fleet_url: str, tool: Cli) -> None:
    """--cooldown stands in place of the configured one and of its growth."""
    put_off(fleet_url, "a", failed=100, ejections=5)
    grows = {"recovery_cooldown_factor": 2}
    assert tool("recover", "--cooldown", "2m", **grows).out == ""
    assert tool("recover", "--cooldown", "90s", **grows).out == "a\n"


def test_trust_comes_back_by_a_success_after_a_cooldown(fleet_url: str, succeed: Fail) -> None:
    """Only a success at least one cooldown, its own grown one, after the return is trusted."""
    for model_id, ejections, back in (("young", 3, 3.9), ("old", 3, 4.1), ("first", 1, 1.1)):
        put(fleet_url, model_id, ejections=ejections, consecutive_failures=2)
        alter(fleet_url, model_id, last_failure_at=Ago(9 * HOUR))
        alter(fleet_url, model_id, recovered_at=Ago(back * HOUR))
    put_off(fleet_url, "back", failed=9 * HOUR, ejections=2)
    with opened(fleet_url, recovery_cooldown_factor=2) as fleet:
        succeed(fleet, "young", "old", "first", "back")
        assert [fleet.show(i).ejections for i in ("young", "old", "first", "back")] == [3, 0, 0, 2]
        assert fleet.show("back").status is ACTIVE
        # The one that the success brought back has to wait from then on.
        succeed(fleet, "back")
        assert fleet.show("back").ejections == 2
        alter(fleet_url, "back", recovered_at=Ago(2.1 * HOUR))
        succeed(fleet, "back")
        assert fleet.show("back").ejections == 0


def test_failures_alone_never_bring_trust(fleet_url: str, fail: Fail) -> None:
    """A failure long after the return leaves the ejections; the next one counts on."""
    put(fleet_url, "a", ejections=2)
    alter(fleet_url, "a", recovered_at=Ago(99 * HOUR))
    with opened(fleet_url) as fleet:
        fail(fleet, "a", times=4)
        assert fleet.show("a").ejections == 2
        fail(fleet, "a", times=1)
        assert fleet.show("a").ejections == 3


def test_enable_trusts_one_that_is_on(fleet_url: str, tool: Cli) -> None:
    """Who enables a model that came back already has its ejections forgotten at once."""
    put(fleet_url, "a", ejections=3, consecutive_failures=2)
    assert tool("enable", "a", "--dry-run").code == 0
    assert tool("show", "a", "-o", "json").json["ejections"] == 3
    assert tool("enable", "a").out == "a\tactive\tactive\talready active\tfalse\n"
    assert tool("show", "a", "-o", "json").json["ejections"] == 0


def test_enable_trusts_at_once(fleet_url: str, tool: Cli) -> None:
    """Whoever is enabled has no ejections and no failures, and waits an hour next time."""
    put_off(fleet_url, "a", failed=2 * HOUR, ejections=4)
    grows = {"recovery_cooldown_factor": 2}
    assert tool("recover", **grows).out == ""
    assert tool("enable", "a", **grows).code == 0
    model = tool("show", "a", "-o", "json").json
    assert (model["ejections"], model["consecutive_failures"]) == (0, 0)
    with opened(fleet_url, **grows) as fleet:
        one_by_one(fleet, "a")
        alter(fleet_url, "a", last_failure_at=Ago(1.01 * HOUR))
        assert fleet.recover().recovered == ("a",)


# ── The floor ───────────────────────────────────────────────────────────────────────────────────


def test_the_floor_holds(fleet_url: str, fail: Fail) -> None:
    """The rule stops at the floor, notes once whom it spared and why, and acts once there is room."""
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
    """No more of a provider than the percentage goes off by the rule, but one always may."""
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


def test_without_guards_all_may_go(fleet_url: str, fail: Fail) -> None:
    """Whoever configured no guard has none: every model that fails goes off."""
    put(fleet_url, *"abc", provider="p")
    put(fleet_url, *"def")
    with opened(fleet_url) as fleet:
        fail(fleet, *"abcdef")
        assert status(fleet, *"abcdef") == [AUTO] * 6


def test_who_was_spared_is_shown(fleet_url: str, tool: Cli) -> None:
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
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CROWD, *ids[number::3]],
                    cwd=ROOT,
                    env=os.environ | environ(fleet_url, recovery_min_active=5),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
    assert [process.returncode for process in processes] == [0] * 3
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
    """Disable as a person does, who may be refused."""
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
def test_who_comes_second_waits_for_the_first(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, first: Fail, second: Fail
) -> None:
    """While a change is not committed yet no other one decides whether the floor is reached."""
    put(fleet_url, *"ab", consecutive_failures=4)
    stopped, go = threading.Event(), threading.Event()
    passing: list[int] = []

    def stop(name: str) -> None:
        # What only looks whether the threshold is reached passes; the change itself is stopped.
        if name == "before-commit" and threading.current_thread().name == "first":
            passing.append(1)
            if len(passing) == (2 if first is fail_once else 1):
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
    """Exit 8 says why and how to do it all the same, a dry run says the same, nothing is changed."""
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


# ── An incident of a provider ───────────────────────────────────────────────────────────────────


def test_an_incident_of_a_provider(fleet_url: str, fail: Fail) -> None:
    """Three models, half of the active ones, that fail alike are one event, and spare the rest."""
    put(fleet_url, *"abcdef", provider="p")
    put(fleet_url, *"xy", provider="q")
    put(fleet_url, "off", provider="p", active=False)
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        assert fleet.holds() == ()
        fail(fleet, "c")
        (hold,) = fleet.holds()
        assert (hold.provider, hold.failure_type, hold.reason) == ("p", BAD, "3 models")
        assert 890 < hold.seconds_left <= 900
        event = next(e for e in fleet.events() if e.event == "incident")
        assert (event.model_id, event.provider, event.failure_type) == (None, "p", BAD)
        assert (event.before, event.after) == (None, None)
        fail(fleet, "d")
        # Another type of failure, another provider.
        fail(fleet, "e", kind=OTHER)
        fail(fleet, "x")
        assert status(fleet, *"abcdefx") == [AUTO, AUTO, AUTO, ACTIVE, AUTO, ACTIVE, AUTO]
        assert would(fleet, "d") == ["incident"]
        fail(fleet, "d", times=3)
        assert story(fleet, "d") == ["would-disable"]
        assert story(fleet).count("incident p") == 1


def test_a_batch_that_is_an_incident(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch that fails a whole provider switches three models off, whatever its chunks."""
    put(fleet_url, *"abcdef", provider="p")
    for chunk in (4, 5000):
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        with opened(fleet_url, **GUARDED) as fleet:
            in_a_batch(fleet, *"abcdef")
            assert status(fleet, *"abcdef") == [AUTO] * 3 + [ACTIVE] * 3
            assert would(fleet, *"def") == ["incident"] * 3
            assert story(fleet).count("incident p") == 1
            assert [story(fleet, i) for i in "cd"] == [["auto-disabled"], ["would-disable"]]
        fleets.clear(fleet_url)
        put(fleet_url, *"abcdef", provider="p")


def test_an_incident_is_half_of_the_active_ones(fleet_url: str, fail: Fail) -> None:
    """Three of eight are three bad models; the fourth makes it the provider's fault."""
    put(fleet_url, *"abcdefgh", provider="p")
    put(fleet_url, *(f"off-{n}" for n in range(9)), provider="p", active=False)
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abc")
        assert fleet.holds() == ()
        fail(fleet, *"de")
        assert status(fleet, *"abcde") == [AUTO] * 4 + [ACTIVE]
        assert [h.reason for h in fleet.holds()] == ["4 models"]


def test_an_incident_is_of_one_type_of_failure(fleet_url: str, fail: Fail) -> None:
    """Models that fail in different ways are no incident."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        fail(fleet, *"cd", kind=OTHER)
        assert fleet.holds() == ()
        assert status(fleet, *"abcd") == [AUTO] * 4


def test_an_incident_is_within_the_window(fleet_url: str, fail: Fail) -> None:
    """Failures of longer ago than the window do not add up to an incident."""
    put(fleet_url, *"abcdef", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        let_pass(fleet_url, 601)
        fail(fleet, *"cd")
        assert fleet.holds() == ()
        fail(fleet, "e")
        assert len(fleet.holds()) == 1
        assert status(fleet, *"abcde") == [AUTO] * 5


def test_an_incident_goes_on_and_ends(fleet_url: str, fail: Fail) -> None:
    """It lasts a window and a half from the last failure that is written; a new one is a new event."""
    put(fleet_url, *"abcdef", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abcd")
        let_pass(fleet_url, 400)
        began = fleet.holds()[0].since
        assert fleet.holds()[0].seconds_left < 501
        # What does not count, or does not reach the threshold, prolongs nothing.
        fail(fleet, "e", times=4)
        fail(fleet, "d", kind="timeout")
        assert fleet.holds()[0].seconds_left < 501
        fail(fleet, "d", times=1)
        assert fleet.holds()[0].seconds_left > 890
        fail(fleet, "d", times=1)
        assert fleet.holds()[0].since == began
        let_pass(fleet_url, 890)
        assert would(fleet, "d") == ["incident"]
        assert len(fleet.holds()) == 1
        let_pass(fleet_url, 20)
        assert fleet.holds() == ()
        fail(fleet, "d", times=1)
        assert status(fleet, *"def") == [AUTO, ACTIVE, ACTIVE]
        fleet.enable(*"abc")
        fail(fleet, *"ab")
        assert story(fleet).count("incident p") == 2
        fail(fleet, *"ef")
        assert status(fleet, *"abcdef") == [AUTO, AUTO, ACTIVE, AUTO, ACTIVE, ACTIVE]
        assert would(fleet, *"ef") == ["incident"] * 2


def test_an_incident_outlasts_a_silence_of_a_window(fleet_url: str, fail: Fail) -> None:
    """However the failures are spread, one that comes within a window of the last is spared."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abcd")
        for silence in (280, 590, 10, 290, 595, 301, 299, 590):
            let_pass(fleet_url, silence)
            fail(fleet, "d", times=1)
            assert fleet.show("d").active
        let_pass(fleet_url, 901)
        assert not fleet.holds()


def test_a_long_outage_does_not_darken_a_small_provider(fleet_url: str, fail: Fail) -> None:
    """Hours of it switch off those that made it an incident, once; after it a bad model goes again."""
    put(fleet_url, *"abcd", provider="p")
    put_off(fleet_url, "dead", "gone", failed=9 * HOUR, ejections=5, provider="p")
    with opened(fleet_url, **GUARDED, recovery_max_ejections=5) as fleet:

        def hours_go_by(*failing: str) -> None:
            for _ in range(12):
                let_pass(fleet_url, 500)
                fail(fleet, *failing, times=1)

        fail(fleet, *"abcd")
        hours_go_by("d")
        assert fleet.holds()[0].seconds_left > 290
        assert sorted(fleet.recover().recovered) == ["a", "b", "c"]
        fail(fleet, *"abc", times=3)
        assert would(fleet, *"abcd") == ["incident"] * 4
        hours_go_by(*"abcd")
        assert story(fleet).count("incident p") == 1
        assert status(fleet, *"abcd") == [ACTIVE] * 4
        fleet.record_batch({"id": i, "outcome": "success"} for i in "abc")
        hours_go_by("d")
        assert fleet.holds() == ()
        assert status(fleet, *"abcd") == [ACTIVE] * 3 + [AUTO]


def test_who_is_spared_by_an_incident_is_forgotten_with_it(fleet_url: str) -> None:
    """A model that failed early in a long incident does not make the next one."""
    put(fleet_url, *"abcdefgh", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        one_by_one(fleet, *"abcdefg")
        assert status(fleet, *"abcdefgh") == [AUTO] * 4 + [ACTIVE] * 4
        let_pass(fleet_url, 901)
        one_by_one(fleet, "e", times=1)
        assert fleet.holds() == ()
        assert status(fleet, "e") == [AUTO]


def test_recover_goes_on_during_an_incident(fleet_url: str) -> None:
    """An incident stops switching off alone: successes and recover bring back."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        one_by_one(fleet, *"abc")
        assert len(fleet.holds()) == 1
        fleet.record_success("a")
        alter(fleet_url, "b", last_failure_at=Ago(2 * HOUR))
        assert fleet.recover().recovered == ("b",)
        assert status(fleet, *"ab") == [ACTIVE, ACTIVE]


def test_a_model_is_noted_once_whatever_spares_it(fleet_url: str, fail: Fail) -> None:
    """Failures of two types that are spared for two reasons are one event; the column follows."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED, recovery_min_active=1) as fleet:
        fail(fleet, *"abcd")
        for kind, reason in ((OTHER, "floor"), (BAD, "incident")) * 2:
            fail(fleet, "d", times=1, kind=kind)
            assert would(fleet, "d") == [reason]
        assert story(fleet, "d") == ["would-disable"]
        # A success ends it: the next time is news.
        fleet.record_success("d")
        fail(fleet, "d")
        assert story(fleet, "d") == ["would-disable"] * 2


def test_an_incident_is_shown(fleet_url: str, tool: Cli) -> None:
    """stats, doctor and a listing on a terminal say that a provider has an incident."""
    put(fleet_url, *"abcd", provider="acme")
    with opened(fleet_url, **GUARDED) as fleet:
        in_a_batch(fleet, *"abcd")
    (hold,) = tool("stats", "-o", "json").json["holds"]
    assert (hold["provider"], hold["failure_type"]) == ("acme", BAD)
    doctor = tool("doctor")
    assert (doctor.code, f"incident at acme: {BAD} since " in doctor.out) == (0, True)
    assert "Incident at acme" in tool("show", "d").out
    last = tool("events", "-o", "json").json
    (event,) = [e for e in last if e["event"] == "incident"]
    assert (event["model_id"], event["provider"], event["actor"]) == (None, "acme", "health rule")
    assert ["", "incident", "acme"] in [
        [row.split("\t")[i] for i in (1, 2, 9)] for row in tool("events").lines
    ]
    assert f"incident at acme: {BAD} since" in tool("stats", "-o", "table").out
    code, shown = seen("list", environ=environ(fleet_url))
    assert (code, f"incident at acme: {BAD} since" in plain(shown)) == (0, True)


# ── Disabled for a time ─────────────────────────────────────────────────────────────────────────


def test_disabled_for_a_time(fleet_url: str, tool: Cli) -> None:
    """--for says when it comes back, in show and list, and recover brings it back healthy."""
    put_off(fleet_url, "a", failed=9 * HOUR, ejections=4, failure_reason="no JSON")
    put(fleet_url, "b", active=False)
    done = tool("disable", "a", "--for", "2h", "--reason", "maintenance")
    assert (done.code, done.out) == (0, "a\tauto-disabled\tdisabled\tdisabled\ttrue\n")
    model = tool("show", "a", "-o", "json").json
    assert model["retry_at"] == model["disabled_until"]
    assert 7100 < model["seconds_left"] <= 7200
    rows = listed(tool, "--status", "disabled")
    assert {i: row["retry_at"] for i, row in rows.items()} == {
        "a": model["retry_at"],
        "b": "",
    }
    code, shown = seen("list", "--status", "disabled", columns=80, environ=environ(fleet_url))
    assert (code, f"{model['retry_at'][:19]}Z" in shown, "never" in shown) == (0, True, True)
    assert tool("recover").out == ""
    waiting = tool("recover", "--dry-run", "-o", "json").json["waiting"]
    assert [(w["id"], w["why"], w["retry_at"]) for w in waiting] == [
        ("a", "timed", model["retry_at"])
    ]
    alter(fleet_url, "a", disabled_until=Ago(1))
    assert tool("recover").out == "a\n"
    model = tool("show", "a", "-o", "json").json
    assert (model["status"], model["consecutive_failures"], model["ejections"]) == ("active", 0, 0)
    unset = ("disabled_at", "disabled_by", "disabled_reason", "disabled_until")
    assert [model[name] for name in unset] == [None] * 4
    assert model["failure_reason"] == "no JSON"
    last = tool("events", "a", "-o", "json").json[0]
    assert (last["event"], last["before"], last["after"]) == ("recovered", "disabled", "active")


def test_disabled_until_a_time(fleet_url: str, tool: Cli) -> None:
    """--until is a time with its zone, to the second, in whatever zone it is written."""
    put(fleet_url, *"ab")
    assert tool("disable", "a", "--until", "2100-06-01T08:00Z").code == 0
    assert tool("disable", "b", "--until", "2100-06-01T08:00:30+02:00").code == 0
    shown = [tool("show", i, "-o", "json").json["retry_at"] for i in "ab"]
    assert shown == ["2100-06-01T08:00:00.000Z", "2100-06-01T06:00:30.000Z"]
    assert "2100-06-01T08:00:00Z" in tool("show", "a").out


@pytest.mark.parametrize(
    "words",
    [
        ["--until", "2020-01-01T00:00Z"],
        ["--until", "tomorrow"],
        ["--until", ""],
        ["--until", "\x1b[31m2100-06-01T08:00Z"],
        ["--until", "2100-06-01T08:00Z\n"],
        ["--until", "2100-13-01T08:00Z"],
        ["--until", "10000-01-01T00:00Z"],
        ["--for", "0s"],
        ["--for", "-1h"],
        ["--for", "1"],
        ["--for", "forever"],
        ["--for", ""],
        ["--for", "99999d"],
        ["--until", "9999-12-31T23:59-12:00"],
        ["--for", "1h", "--until", "2100-06-01T08:00Z"],
    ],
)
def test_an_end_that_is_none(fleet_url: str, tool: Cli, words: list[str]) -> None:
    """A time that is past, without zone or no time is exit 2, and nothing is written."""
    put(fleet_url, "a")
    before = everything(fleet_url)
    for more in ([], ["--dry-run"]):
        result = tool("disable", "a", *words, *more)
        result.failed(2)
        assert len(result.err.splitlines()) <= 2
    assert everything(fleet_url) == before


def test_the_last_time_there_is(fleet_url: str, tool: Cli) -> None:
    """The end of the calendar is a time like any other, not for good."""
    put(fleet_url, "a")
    assert tool("disable", "a", "--until", "9999-12-31T23:59:59Z").code == 0
    assert tool("show", "a", "-o", "json").json["retry_at"] == "9999-12-31T23:59:59.000Z"
    (waiting,) = tool("recover", "--dry-run", "-o", "json").json["waiting"]
    assert (waiting["why"], waiting["retry_at"]) == ("timed", "9999-12-31T23:59:59.000Z")


def test_a_time_that_never_comes(pg_cleared: str) -> None:
    """Where another program wrote infinity the JSON is JSON all the same, and nothing comes back."""
    put_off(pg_cleared, "a")
    put(pg_cleared, "b", active=False)
    sql(pg_cleared, "UPDATE models SET last_failure_at = 'infinity' WHERE id = 'a'")
    sql(pg_cleared, "UPDATE models SET disabled_until = 'infinity' WHERE id = 'b'")
    result = run("recover", "-o", "json", **environ(pg_cleared))
    told = json.loads(result.out, parse_constant=lambda word: pytest.fail(word))
    assert told["recovered"] == []
    # An end that never comes is none: b waits for a person, not for recover.
    assert {w["id"]: w["why"] for w in told["waiting"]} == {"a": "cooldown"}


def test_a_plain_disable_makes_it_permanent(fleet_url: str, tool: Cli) -> None:
    """What was off for a time is off for good, the change is said and in the history."""
    put(fleet_url, "a")
    tool("disable", "a", "--for", "2h")
    done = tool("disable", "a", "--reason", "for good")
    assert done.out == "a\tdisabled\tdisabled\tdisabled\ttrue\n"
    assert tool("disable", "a").out == "a\tdisabled\tdisabled\talready disabled\tfalse\n"
    model = tool("show", "a", "-o", "json").json
    assert (model["retry_at"], model["disabled_reason"]) == (None, "for good")
    with opened(fleet_url) as fleet:
        assert story(fleet, "a") == ["disabled", "disabled"]
        assert why(fleet, cooldown=0) == {}
        assert fleet.recover(cooldown=0).recovered == ()


def test_a_permanent_one_can_be_given_a_time(fleet_url: str, tool: Cli) -> None:
    """--force gives an end to what is off for good; said again, the new time counts."""
    put(fleet_url, "a")
    tool("disable", "a")
    for hours in (5, 1):
        done = tool("disable", "a", "--for", f"{hours}h", *(["--force"] if hours == 5 else []))
        assert done.out == "a\tdisabled\tdisabled\tdisabled\ttrue\n"
        left = tool("show", "a", "-o", "json").json["seconds_left"]
        assert hours * HOUR - 60 < left <= hours * HOUR
    with opened(fleet_url) as fleet:
        assert story(fleet, "a") == ["disabled"] * 3
        alter(fleet_url, "a", disabled_until=Ago(1))
        assert fleet.recover().recovered == ("a",)


def test_enable_ends_the_time(fleet_url: str, tool: Cli) -> None:
    """Whoever is enabled before its time stays on, and a later disable in psql is for good."""
    put(fleet_url, "a")
    tool("disable", "a", "--for", "2h")
    assert tool("enable", "a").code == 0
    assert tool("show", "a", "-o", "json").json["disabled_until"] is None
    sql(fleet_url, "UPDATE models SET active = false")
    assert tool("recover", "--cooldown", "0s").out == ""
    assert tool("recover", "--dry-run").out == ""


@pytest.mark.parametrize("over", [False, True])
def test_raw_sql_ends_the_time(fleet_url: str, tool: Cli, over: bool) -> None:
    """Whoever is switched on and off again in psql is off for good, whatever it was before."""
    put(fleet_url, *"abc")
    tool("disable", "a", "--for", "2h")
    put_off(fleet_url, "d", failed=9 * HOUR)
    with opened(fleet_url) as fleet:
        one_by_one(fleet, "b")
    if over:
        alter(fleet_url, "a", disabled_until=Ago(60))
        alter(fleet_url, "b", last_failure_at=Ago(9 * HOUR))
    sql(fleet_url, "UPDATE models SET active = true")
    sql(fleet_url, "UPDATE models SET active = false")
    assert tool("recover", "--cooldown", "0s").out == ""
    assert tool("recover", "--dry-run", "--cooldown", "0s").out == ""
    rows = listed(tool).values()
    assert {(row["status"], row["retry_at"]) for row in rows} == {("disabled", "")}


def test_the_rule_leaves_a_timed_one_alone(fleet_url: str, succeed: Fail) -> None:
    """Successes are recorded and do not bring back before the time; failures change nothing."""
    put(fleet_url, "a")
    with opened(fleet_url) as fleet:
        fleet.disable("a", duration=HOUR)
        succeed(fleet, "a")
        one_by_one(fleet, "a", times=6)
        model = fleet.show("a")
        assert (model.status, model.success_count, model.failure_count) == (DISABLED, 1, 6)
        alter(fleet_url, "a", disabled_until=Ago(1))
        assert fleet.recover().recovered == ("a",)
        assert fleet.show("a").consecutive_failures == 0


def test_an_end_from_python(fleet_url: str) -> None:
    """A duration or an end with its zone; anything else is a UsageError that writes nothing."""
    put(fleet_url, "a")
    end = datetime(2100, 1, 1, tzinfo=UTC)
    before = everything(fleet_url)
    with opened(fleet_url) as fleet:
        for wrong in (
            {"duration": 0},
            {"duration": -1},
            {"duration": float("nan")},
            {"duration": float("inf")},
            {"until": end.replace(tzinfo=None)},
            {"until": end.replace(year=2020)},
            {"duration": 60, "until": end},
        ):
            with pytest.raises(UsageError):
                fleet.disable("a", **wrong)
        assert everything(fleet_url) == before
        assert fleet.disable("a", until=end).changes[0].changed
        assert fleet.show("a").retry_at == end


# ── Ejected too often ───────────────────────────────────────────────────────────────────────────


def test_ejected_too_often_waits_for_a_person(fleet_url: str, tool: Cli, succeed: Fail) -> None:
    """Neither time nor a success brings it back, every output says so, and enable frees it."""
    put_off(fleet_url, "twice", failed=99 * HOUR, ejections=2)
    put_off(fleet_url, "once", failed=99 * HOUR, ejections=1)
    most = {"recovery_max_ejections": 2}
    with opened(fleet_url, **most) as fleet:
        succeed(fleet, "twice", "once")
        assert status(fleet, "twice", "once") == [AUTO, ACTIVE]
        model = fleet.show("twice")
        assert (model.success_count, model.retry_at, model.seconds_left) == (1, None, None)
    for more in ([], ["--cooldown", "0s"], ["--limit", "0"]):
        assert tool("recover", *more, **most).out == ""
    for words in (["--dry-run"], []):
        told = tool("recover", *words, "-o", "json", **most).json
        assert told["recovered"] == []
        assert told["waiting"] == [
            {"id": "twice", "retry_at": None, "seconds_left": None, "why": "person"}
        ]
        line = tool("recover", *words, "-o", "tsv", **most).out
        assert line == "twice\twaiting\t\tperson\t\n"
    assert "off until a person enables them: twice" in tool("doctor", **most).out
    assert listed(tool, **most)["twice"]["retry_at"] == ""
    assert tool("enable", "twice", **most).code == 0
    model = tool("show", "twice", "-o", "json", **most).json
    assert (model["status"], model["ejections"]) == ("active", 0)


def test_ejected_by_the_rule_until_a_person_comes(fleet_url: str, fail: Fail) -> None:
    """The second ejection in a row is one too many where two are, and trust starts the count again."""
    put(fleet_url, *"ab")
    with opened(fleet_url, recovery_max_ejections=2) as fleet:
        fail(fleet, *"ab")
        alter(fleet_url, *"ab", last_failure_at=Ago(2 * HOUR))
        assert sorted(fleet.recover().recovered) == ["a", "b"]
        alter(fleet_url, "a", recovered_at=Ago(2 * HOUR))
        fleet.record_success("a")
        fail(fleet, *"ab")
        alter(fleet_url, *"ab", last_failure_at=Ago(2 * HOUR))
        assert why(fleet) == {"a": "due", "b": "person"}
        assert fleet.recover().recovered == ("a",)
        fleet.enable("b")
        fail(fleet, "b")
        alter(fleet_url, "b", last_failure_at=Ago(2 * HOUR))
        assert fleet.recover().recovered == ("b",)


# ── recover ─────────────────────────────────────────────────────────────────────────────────────


def test_the_longest_waiting_come_first(fleet_url: str, tool: Cli) -> None:
    """--limit, else the configured limit, is how many come back at most; 0 is no limit."""
    for hours, model_id in enumerate("edcba", 2):
        put_off(fleet_url, model_id, failed=hours * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(4.5 * HOUR))
    limit = {"recovery_limit": 2}
    told = tool("recover", "--dry-run", "-o", "json", **limit).json
    assert told["recovered"] == ["a", "timed"]
    assert [(w["id"], w["why"]) for w in told["waiting"]] == [(i, "limit") for i in "bcde"]
    assert tool("recover", **limit).lines == ["a", "timed"]
    assert tool("recover", "--limit", "1", **limit).lines == ["b"]
    assert tool("recover", "--limit", "0", **limit).lines == ["c", "d", "e"]
    tool("recover", "--limit", "-1").failed(2)
    tool("recover", "--limit", "x").failed(2)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_a_limit_is_kept_in_chunks(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Whatever the size of a chunk, those that waited longest are the ones that a limit lets through."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    ids = [f"m{number}" for number in range(8)]
    for number, model_id in reversed([*enumerate(ids)]):
        put_off(fleet_url, model_id, failed=(20 - number) * HOUR)
    with opened(fleet_url) as fleet:
        assert fleet.recover(limit=3).recovered == tuple(ids[:3])
        assert fleet.recover(dry_run=True).recovered == tuple(ids[3:])
        assert sorted(fleet.recover().recovered) == ids[3:]
        assert [e.model_id for e in fleet.events(limit=8)][5:] == ids[2::-1]


def test_a_dry_run_has_a_reason_for_every_model(fleet_url: str, tool: Cli) -> None:
    """One line each for all that are off by the rule or for a time, and then it happens so."""
    put_off(fleet_url, "due", failed=9 * HOUR)
    put_off(fleet_url, "beyond", failed=2 * HOUR)
    put_off(fleet_url, "fresh", failed=HOUR / 2)
    put_off(fleet_url, "often", failed=9 * HOUR, ejections=7)
    put_off(fleet_url, "held", failed=9 * HOUR, provider="p")
    put(fleet_url, *("timed", "for good"), active=False)
    put(fleet_url, "on")
    alter(fleet_url, "timed", disabled_until=Ago(-HOUR / 2))
    tool("pause", "--for", "1h", "--provider", "p")
    rule = {"recovery_max_ejections": 7, "recovery_limit": 1}
    before = everything(fleet_url)
    table = tool("recover", "--dry-run", "-o", "table", **rule).lines[2:8]
    lines = [re.split("  +", line.strip()) for line in table]
    assert everything(fleet_url) == before
    assert {row[0]: (row[1], row[3]) for row in lines} == {
        "due": ("would recover", "its time off is over"),
        "beyond": ("waiting", "due, but beyond the limit of one run"),
        "fresh": ("waiting", "its cooldown ends in 30 min"),
        "timed": ("waiting", "switched off for a time that ends in 30 min"),
        "held": ("waiting", "automatic switching is paused"),
        "often": ("waiting", "ejected too often: waits for a person (modelctl enable)"),
    }
    assert len(lines) == 6
    told = tool("recover", "--dry-run", "-o", "json", **rule).json
    assert {w["id"]: w["why"] for w in told["waiting"]} == {
        "beyond": "limit",
        "fresh": "cooldown",
        "timed": "timed",
        "held": "paused",
        "often": "person",
    }
    done = tool("recover", "-o", "json", **rule).json
    assert (done["recovered"], [w["id"] for w in done["waiting"]]) == (
        told["recovered"],
        [w["id"] for w in told["waiting"]],
    )


def test_silent_unless_something_came_back(fleet_url: str) -> None:
    """In a pipe not a byte is printed when nothing came back, and else one line for each model."""
    put_off(fleet_url, "fresh")
    put_off(fleet_url, "often", failed=9 * HOUR, ejections=9)
    variables = environ(fleet_url, recovery_max_ejections=9)
    assert run("recover", **variables) == Result(0, "", "")
    put_off(fleet_url, "one", "the other", failed=9 * HOUR)
    assert run("recover", "--actor", "cron", **variables) == Result(0, "one\nthe other\n", "")
    with opened(fleet_url) as fleet:
        assert [(e.event, e.actor) for e in fleet.events(limit=2)] == [("recovered", "cron")] * 2


def test_silent_while_paused(fleet_url: str, tool: Cli) -> None:
    """A pause is no reason for cron to send a mail."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    tool("pause", "--for", "1h")
    assert tool("recover") == Result(0, "", "")


def test_an_error_is_one_line_and_a_hint(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database is not there, cron gets one line, what to do, and a non-zero exit."""
    urls = {
        f"sqlite:///{tmp_path}/gone.db": 7,
        "postgresql://nobody@127.0.0.1:1/none": 5,
    }
    for url, code in urls.items():
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        result = cli("recover")
        result.failed(code)
        error, hint = result.err.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")


def test_a_second_run_leaves_it_to_the_first(
    fleet_url: str, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs at the same time one works, and the other exits 0 and brings nothing back."""
    put_off(fleet_url, *"abc", failed=9 * HOUR)
    stopped, go = threading.Event(), threading.Event()

    def stop(name: str) -> None:
        if name == "before-commit" and threading.current_thread() is not threading.main_thread():
            stopped.set()
            assert go.wait(20)

    monkeypatch.setattr(crash_points, "hook", stop)
    with opened(fleet_url) as fleet, ThreadPoolExecutor(1) as pool:
        first = pool.submit(fleet.recover)
        assert stopped.wait(20)
        if is_sqlite(fleet_url):  # a file has one writer: the other one waits, and finds nothing
            threading.Timer(0.3, go.set).start()
            assert tool("recover") == Result(0, "", "")
        else:
            assert tool("recover") == Result(0, "", "another recover is running\n")
            told = tool("recover", "-o", "json")
            assert (told.code, told.json["busy"], told.json["recovered"]) == (0, True, [])
            go.set()
        assert first.result().recovered == ("a", "b", "c")
        assert story(fleet) == ["recovered"] * 3


def test_a_run_that_loses_the_lock_says_what_it_did(
    pg_cleared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another run comes in between two chunks, the rest is left to it."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    put_off(pg_cleared, *"abcde", failed=9 * HOUR)
    with opened(pg_cleared) as fleet, psycopg.connect(pg_cleared) as other:

        def come_in_between(done: int) -> None:
            other.execute("SELECT pg_advisory_xact_lock(%s)", [RECOVER_LOCK])

        result = fleet.recover(progress=come_in_between)
        assert (len(result.recovered), result.busy) == (2, False)
        left = sorted({*"abcde"} - {*result.recovered})
        assert sorted(w.id for w in result.waiting) == left
        assert fleet.last_recover().at is None
        other.rollback()
        assert sorted(fleet.recover().recovered) == left
        assert fleet.last_recover().at is not None


def fill(url: str, count: int, name: str = "some-provider/model") -> None:
    """Add so many models that are due, in one statement."""
    numbers = (
        "(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n"
        f" WHERE n < {count}) SELECT n FROM n) AS numbers"
    )
    sql(
        url,
        "INSERT INTO models (id, active, auto_disabled, consecutive_failures, ejections,"
        f" last_failure_at) SELECT '{name}-' || n, false, true, 5, 1, {ago(url, 9 * HOUR)}"
        f" FROM {numbers}",
    )


def test_twenty_thousand_in_chunks(fleet_url: str, tool: Cli) -> None:
    """All come back in one run, each with one event, in several transactions."""
    fill(fleet_url, 20_000)
    result = tool("recover")
    assert (result.code, result.err) == (0, "")
    assert len(set(result.lines)) == len(result.lines) == 20_000
    assert sql(fleet_url, "SELECT count(*), count(DISTINCT model_id) FROM modelctl_events") == [
        (20_000, 20_000)
    ]
    assert tool("count", "--fresh").out == "20000\n"


def test_many_small_chunks(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is one transaction, and progress is told after each."""
    monkeypatch.setattr(bulk, "CHUNK", 7)
    fill(fleet_url, 50)
    commits: list[str] = []
    told: list[int] = []
    monkeypatch.setattr(crash_points, "hook", commits.append)
    with opened(fleet_url) as fleet:
        result = fleet.recover(progress=told.append)
    assert len(set(result.recovered)) == 50
    assert told == [7, 14, 21, 28, 35, 42, 49, 50]
    # And one more, which remembers that the run is through.
    assert commits.count("before-commit") == 9
    assert commits.count("after-commit") == 1


def test_one_invalidation_for_all_chunks(
    pg_database: str, redis_server: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks a run has, the cached count is deleted once, at its end."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    fill(pg_database, 9)
    put(pg_database, "on")
    with opened(pg_database, redis_url=redis_url) as fleet:
        fleet.drain()
        assert fleet.count().active == 1
        reached: list[str] = []
        monkeypatch.setattr(crash_points, "hook", reached.append)
        assert len(fleet.recover().recovered) == 9
        assert reached.count("after-del") == 1
        assert reached.index("after-del") > reached.index("after-commit")
        monkeypatch.setattr(crash_points, "hook", None)
        assert fleet.count().active == 10


MEMORY = """
import sys
from pathlib import Path
from modelctl.cli import main as cli
code = cli.main(sys.argv[1:])
assert code == 0, code
sys.stderr.write(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak of memory")
@pytest.mark.parametrize(
    "words", [["-o", "tsv"], ["--limit", "50000", "-o", "json"]], ids=["tsv", "json"]
)
def test_memory_does_not_grow_with_the_fleet(
    sqlite_database: str, tmp_path: Path, words: list[str]
) -> None:
    """A hundred thousand due models take less than 16 MiB more than a thousand do."""
    peaks = []
    file = Path(sqlite_database.removeprefix("sqlite:///"))
    empty = file.read_bytes()
    for count in (1000, 100_000):
        for rest in tmp_path.glob("fleet.db*"):
            rest.unlink()
        file.write_bytes(empty)
        fill(sqlite_database, count)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, "recover", *words],
            cwd=ROOT,
            env=os.environ | environ(sqlite_database),
            capture_output=True,
            check=True,
        )
        assert done.stdout.count(b"some-provider/model-") == count
        if "json" in words:
            told = json.loads(done.stdout)
            assert len(told["recovered"]) == min(count, 50_000)
            assert len(told["waiting"]) == max(0, count - 50_000)
        peaks.append(int(done.stderr) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks


@pytest.mark.parametrize(
    ("count", "words"), [(8000, []), (5000, ["--dry-run", "--limit", "1", "-o", "json"])]
)
def test_a_full_temporary_folder(pg_cleared: str, count: int, words: list[str]) -> None:
    """What is longer than the memory and cannot be kept is an error that says where and what to do."""
    fill(pg_cleared, count, name="x" * 180)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = run("recover", *words, before=full, **environ(pg_cleared))
    said = result.json["error"] if words else {"message": result.err, "hint": result.err}
    assert (result.code, "cannot write to /" in said["message"]) == (1, True)
    assert "TMPDIR" in said["hint"]
    assert len(result.err.splitlines()) == (0 if words else 2)
    with opened(pg_cleared) as fleet:
        assert fleet.count().active == 0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Give a process that starts children to be killed."""
    with Nursery() as forking:
        yield forking


@pytest.mark.parametrize("arrival", [1, 2, 3, 4, 5])
def test_killed_in_the_middle(fleet_url: str, nursery: Nursery, arrival: int) -> None:
    """Killed before any commit, or after the last chunk, a run loses nothing, and the next goes on."""
    put_off(fleet_url, *"abcde", failed=9 * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(HOUR))
    put(fleet_url, "for good", active=False)
    point = ("before-commit", arrival) if arrival < 5 else ("after-commit", 1)
    job = Job(fleet_url, "", (Call("recover"),), point[0], point[1], chunk=2)
    assert nursery.run(job).killed
    # Three chunks of two, then it is remembered that it is through, and then the invalidation.
    back = {1: 0, 2: 2, 3: 4, 4: 6, 5: 6}[arrival]
    with opened(fleet_url) as fleet:
        assert fleet.count().active == back
        assert story(fleet) == ["recovered"] * back
        assert (fleet.last_recover().at is None) == (arrival < 5)
        assert len(fleet.recover().recovered) == 6 - back
        assert story(fleet) == ["recovered"] * 6
        assert {e.model_id for e in fleet.events()} == {*"abcde", "timed"}
        assert fleet.show("for good").status is DISABLED
        assert fleet.count().active == 6


# ── Pause and resume ────────────────────────────────────────────────────────────────────────────


def test_a_pause_freezes_switching(fleet_url: str, fail: Fail, succeed: Fail) -> None:
    """Meanwhile nothing is switched off or on by itself, outcomes are recorded, people still can."""
    put(fleet_url, *"ab", consecutive_failures=4)
    put_off(fleet_url, "auto", failed=9 * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(HOUR))
    with opened(fleet_url) as fleet:
        pause = fleet.pause(HOUR, reason="maintenance")
        assert (pause.provider, pause.paused, pause.changed) == (None, True, True)
        fail(fleet, *"ab", times=2)
        succeed(fleet, "auto")
        result = fleet.recover()
        assert (result.recovered, result.paused and result.paused.reason) == ((), "maintenance")
        assert {w.id: w.why for w in result.waiting} == {"auto": "paused", "timed": "paused"}
        assert fleet.recover(cooldown=0).recovered == ()
        assert status(fleet, "a", "b", "auto", "timed") == [ACTIVE, ACTIVE, AUTO, DISABLED]
        assert would(fleet, *"ab") == ["paused"] * 2
        assert story(fleet, "a") == ["would-disable"]
        assert [fleet.show(i).failure_count for i in "ab"] == [2, 2]
        assert fleet.show("auto").success_count == 1
        fleet.disable("a")
        fleet.enable("timed")
        assert status(fleet, "a", "timed") == [DISABLED, ACTIVE]
        # It ends by itself.
        sql(fleet_url, f"UPDATE modelctl_holds SET until = {ago(fleet_url, 1)}")
        assert fleet.holds() == ()
        fail(fleet, "b", times=1)
        assert fleet.recover().recovered == ("auto",)
        assert status(fleet, "b", "auto") == [AUTO, ACTIVE]


def test_a_pause_of_one_provider(fleet_url: str, fail: Fail, succeed: Fail) -> None:
    """Other providers, and models of none, go on."""
    for model_id, provider in (("p", "p"), ("q", "q"), ("none", "")):
        put(fleet_url, f"on-{model_id}", provider=provider, consecutive_failures=4)
        put_off(fleet_url, f"off-{model_id}", provider=provider, failed=9 * HOUR)
        put_off(fleet_url, f"good-{model_id}", provider=provider, failed=9 * HOUR)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR, provider="p")
        fail(fleet, "on-p", "on-q", "on-none", times=1)
        assert status(fleet, "on-p", "on-q", "on-none") == [ACTIVE, AUTO, AUTO]
        succeed(fleet, "good-p", "good-q", "good-none")
        assert status(fleet, "good-p", "good-q", "good-none") == [AUTO, ACTIVE, ACTIVE]
        result = fleet.recover()
        assert sorted(result.recovered) == ["off-none", "off-q"]
        assert result.paused is None
        assert {w.id for w in result.waiting if w.why == "paused"} == {"off-p", "good-p"}


def test_pausing_models_of_no_provider(fleet_url: str, tool: Cli) -> None:
    """An empty provider is the models that have none, and is not called the fleet."""
    put(fleet_url, "none", consecutive_failures=4)
    put(fleet_url, "p", provider="p", consecutive_failures=4)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR, provider="")
        one_by_one(fleet, "none", "p", times=1)
        assert status(fleet, "none", "p") == [ACTIVE, AUTO]
        assert [e.provider for e in fleet.events() if e.event == "paused"] == [""]
    assert tool("events").lines[-1].split("\t")[1:3] == ["", "paused"]
    assert tool("resume", "--provider", "").out == "\tfalse\t\t\ttrue\n"


def test_pause_and_resume_on_the_command_line(fleet_url: str, tool: Cli) -> None:
    """Pausing again replaces, resume ends it, twice is "was not paused", and all is in the history."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    assert tool("pause", "--for", "2h", "--reason", "first").code == 0
    done = tool("pause", "--for", "1h", "--reason", "second", "--actor", "ann")
    provider, paused, until, reason, _ = done.out.rstrip("\n").split("\t")
    assert (provider, paused, reason) == ("", "true", "second")
    (hold,) = tool("stats", "-o", "json").json["holds"]
    assert (hold["reason"], hold["actor"], hold["failure_type"]) == ("second", "ann", None)
    assert hold["until"][:19] == until[:19]
    assert 3500 < hold["seconds_left"] <= 3600
    assert tool("pause", "--for", "1h", "--provider", "p").code == 0
    assert len(tool("stats", "-o", "json").json["holds"]) == 2
    assert tool("recover").out == ""
    assert tool("resume", "--reason", "over").out == "\tfalse\t\t\ttrue\n"
    assert tool("resume").out == "\tfalse\t\t\tfalse\n"
    assert tool("resume", "--provider", "p").out == "p\tfalse\t\t\ttrue\n"
    assert tool("recover").out == "a\n"
    events = tool("events", "-o", "json").json
    assert [
        (e["event"], e["model_id"], e["provider"], e["reason"], e["actor"]) for e in events[::-1]
    ] == [
        ("paused", None, None, "first", ACTOR),
        ("paused", None, None, "second", "ann"),
        ("paused", None, "p", None, ACTOR),
        ("resumed", None, None, "over", ACTOR),
        ("resumed", None, "p", None, ACTOR),
        ("recovered", "a", None, None, ACTOR),
    ]


def test_a_pause_of_nobody(fleet_url: str, tool: Cli) -> None:
    """A provider that no model has is paused all the same, and a warning says that it may be mistyped."""
    put(fleet_url, "a", provider="openai")
    done = tool("pause", "--for", "1h", "--provider", "opnai")
    assert (done.code, "no model has the provider 'opnai'" in done.err) == (0, True)
    assert tool("pause", "--for", "1h", "--provider", "openai").err == ""


@pytest.mark.parametrize(
    "words", [[], ["--for", "0s"], ["--for", "-1h"], ["--for", "soon"], ["--for", "99999d"]]
)
def test_a_pause_has_an_end(fleet_url: str, tool: Cli, words: list[str]) -> None:
    """A pause without a duration that makes sense is exit 2, and nothing is paused."""
    before = everything(fleet_url)
    tool("pause", *words).failed(2)
    assert everything(fleet_url) == before


def test_a_resumed_fleet_acts_at_once(fleet_url: str, fail: Fail) -> None:
    """After resume the next counted failure switches off, and the pause's end is not waited for."""
    put(fleet_url, "a", consecutive_failures=9)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR)
        fail(fleet, "a", times=1)
        assert fleet.resume().changed
        fail(fleet, "a", times=1)
        assert (status(fleet, "a"), would(fleet, "a")) == ([AUTO], [None])


def test_a_pause_in_the_middle_of_a_recover(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that come after it bring nothing back."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    put_off(fleet_url, *"abcde", failed=9 * HOUR)
    pauses: list[Pause] = []
    with opened(fleet_url) as fleet, opened(fleet_url) as other:
        result = fleet.recover(progress=lambda done: pauses.append(other.pause(HOUR)))
        assert len(result.recovered) == 2  # which ones is the table's order
        assert {w.why for w in result.waiting} == {"paused"}


def test_everything_says_that_it_is_paused(fleet_url: str, tool: Cli) -> None:
    """Tables of recover, list, stats, doctor and show name the pause, by whom, until when and why."""
    put_off(fleet_url, "acme/one", failed=9 * HOUR, provider="acme")
    tool("pause", "--for", "1h", "--reason", "maintenance")
    words = f"utomatic switching is paused by {ACTOR} until "
    for command in ("recover", "recover --dry-run", "list", "stats", "doctor", "show acme/one"):
        result = tool(*command.split(), "-o", "table")
        text = " ".join(result.out.split())
        assert (result.code, words in text, "(in 60 min): maintenance" in text) == (0, True, True)
    assert "leaves it off while automatic switching is paused" in text
    code, shown = seen("list", columns=160, environ=environ(fleet_url))
    assert (code, words in plain(shown)) == (0, True)


# ── The dead man ────────────────────────────────────────────────────────────────────────────────


def test_the_last_run_is_remembered(fleet_url: str, tool: Cli) -> None:
    """--check and doctor exit 1 when no run finished for longer than expected, or ever."""
    expect = {"recovery_expect_every": "15m"}

    def doctor() -> tuple[int, str]:
        result = tool("doctor", "-o", "json", **expect)
        (check,) = [c for c in result.json["checks"] if c["check"] == "recover"]
        assert check["ok"] == (result.code == 0)
        return result.code, check["detail"]

    check = tool("recover", "--check", **expect)
    assert (check.code, check.out) == (1, "\t\t900.0\ttrue\n")
    assert check.err.startswith("error: recover has not finished")
    assert doctor() == (1, "never ran, expected every 900 s")
    tool("recover", "--dry-run")
    assert tool("recover", "--check", **expect).code == 1
    assert tool("recover") == Result(0, "", "")
    check = tool("recover", "--check", "-o", "json", **expect)
    assert (check.code, check.json["overdue"], check.json["expect_every"]) == (0, False, 900)
    assert doctor()[0] == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, 890)} WHERE name = 'recover'")
    assert tool("recover", "--check", **expect).code == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, 910)} WHERE name = 'recover'")
    check = tool("recover", "--check", "-o", "json", **expect)
    assert (check.code, check.json["overdue"], check.err) == (1, True, "")
    assert 909 < check.json["seconds_ago"] < 970
    assert doctor()[0] == 1


def test_a_run_in_the_future_is_overdue(fleet_url: str, tool: Cli) -> None:
    """Where the clock was set back nobody knows how old the last run is: not "not overdue"."""
    expect = {"recovery_expect_every": "15m"}
    tool("recover")
    # As with two servers whose clocks differ a little.
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, -2)} WHERE name = 'recover'")
    assert tool("recover", "--check", **expect).code == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, -600)} WHERE name = 'recover'")
    check = tool("recover", "--check", **expect)
    assert (check.code, "clock was set back" in check.err) == (1, True)
    doctor = tool("doctor", **expect)
    assert (doctor.code, "clock was set back" in doctor.out) == (1, True)
    tool("recover")
    assert tool("recover", "--check", **expect).code == 0


def test_nothing_is_expected_by_default(fleet_url: str, tool: Cli) -> None:
    """Without expect_every --check is a wrong configuration, and doctor does not mind."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    before = everything(fleet_url)
    tool("recover", "--check").failed(3, "recovery.expect_every", "hint: ")
    assert tool("doctor").code == 0
    assert everything(fleet_url) == before


def test_a_run_that_failed_is_none(fleet_url: str, tool: Cli) -> None:
    """A run that ended with an error has not finished."""
    sql(fleet_url, "ALTER TABLE modelctl_holds RENAME TO away")
    try:
        assert tool("recover").code == 7
    finally:
        sql(fleet_url, "ALTER TABLE away RENAME TO modelctl_holds")
    assert tool("recover", "--check", recovery_expect_every="15m").code == 1


def test_a_paused_run_is_a_run(fleet_url: str, tool: Cli) -> None:
    """Cron is alive also where nothing may come back."""
    tool("pause", "--for", "1h")
    tool("recover")
    assert tool("recover", "--check", recovery_expect_every="15m").code == 0


# ── Nothing raw ─────────────────────────────────────────────────────────────────────────────────

HOSTILE = "\x1b[31m[bold]x[/]\x07\u202egnp\x9b2J\u2028\n- FORGED\r\x1b]0;title\x07"


def test_hostile_words_never_reach_the_terminal(fleet_url: str, tool: Cli) -> None:
    """Names and reasons full of controls are escaped in every output, and begin no line."""
    put_off(fleet_url, HOSTILE, provider=HOSTILE, failed=9 * HOUR, failure_reason=HOSTILE)
    put(fleet_url, "timed", "on", provider=HOSTILE)
    rule = {"recovery_min_active": 1, "recovery_expect_every": "1h", "recovery_max_ejections": 1}
    outputs = [
        tool("pause", "--for", "1h", "--reason", HOSTILE, "--actor", HOSTILE),
        tool("pause", "--for", "1h", "--reason", HOSTILE, "--provider", HOSTILE),
        tool("disable", "timed", "--for", "1h", "--reason", HOSTILE),
        tool("disable", HOSTILE, "--until", HOSTILE),
        tool("disable", HOSTILE, "--for", HOSTILE),
        tool("pause", "--for", HOSTILE),
    ]
    reads = [
        ["show", HOSTILE],
        ["show", "timed"],
        ["recover", "--dry-run"],
        ["recover"],
        ["list"],
        ["stats"],
        ["doctor"],
        ["events"],
        ["resume", "--provider", HOSTILE + "other"],
    ]
    for words in reads:
        outputs += [tool(*words, "-o", form, **rule) for form in ("table", "json", "tsv")]
        # CSV quotes newlines, and nothing else of it.
        quoted = tool(*words, "-o", "csv", **rule).out
        rows = [*csv.reader(io.StringIO(quoted, newline=""))]
        assert not any(row[0].startswith("- FORGED") for row in rows)
    for result in outputs:  # that there are no controls is checked of every run
        for line in (result.out + result.err).splitlines():
            assert not line.strip().startswith("- FORGED"), line
    for words in (["show", HOSTILE], ["list"], ["recover", "--dry-run"]):
        code, shown = seen(*words, columns=200, environ=environ(fleet_url, **rule))
        # Colours and the line that shows progress are ours.
        text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", shown)
        assert code == 0
        assert text.replace("\n", "").isprintable(), repr(text)
        assert "\\x1b[31m[bold]x[/]" in text
        assert not any(line.strip().startswith("- FORGED") for line in text.splitlines()), text


# ── Manual is sacred ────────────────────────────────────────────────────────────────────────────

IDS = "abc"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("disable", "disable", "disable --for", "enable"),
                *("raw off", "raw off", "raw on", "raw off and on"),
                *("fail", "fail", "fail in a batch", "succeed", "succeed in a batch"),
                *("recover", "recover", "recover at once", "time", "time", "pause", "resume"),
            ]
        ),
        st.sampled_from(IDS),
    ),
    min_size=4,
    max_size=14,
)


@pytest.fixture
def sacred(sqlite_database: str) -> Iterator[tuple[Fleet, Callable[..., Any]]]:
    """Give a fleet that guards itself, and its file as another program sees it, without waiting."""
    path = sqlite_database.removeprefix("sqlite:///")
    guards = {
        "recovery_min_active": 1,
        "recovery_max_ejections": 3,
        "recovery_cooldown_factor": 2,
        "recovery_incident_models": 2,
    }
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as file,
        opened(sqlite_database, **guards) as fleet,
    ):
        file.execute("PRAGMA synchronous = OFF")
        yield fleet, file.execute


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_what_a_person_switched_off_only_a_person_switches_on(
    sacred: tuple[Fleet, Callable[..., Any]], steps: list[tuple[str, str]]
) -> None:
    """Whatever is recorded, recovered, paused or goes by: off for good is off for good."""
    fleet, ask = sacred
    for table in ("models", "modelctl_events", "modelctl_holds"):
        ask(f"DELETE FROM {table}")
    ask("INSERT INTO models (id, provider) VALUES ('a', 'p'), ('b', 'p'), ('c', '')")
    for_good: set[str] = set()
    for step, model_id in steps:
        was_on = ask("SELECT active FROM models WHERE id = ?", [model_id]).fetchone()[0]
        match step:
            case "disable":
                fleet.disable(model_id, force=True)
                for_good.add(model_id)
            case "disable --for":
                fleet.disable(model_id, duration=HOUR, force=True)
                for_good.discard(model_id)
            case "enable":
                fleet.enable(model_id)
                for_good.discard(model_id)
            case "raw off":
                ask("UPDATE models SET active = 0 WHERE id = ?", [model_id])
                if was_on:
                    for_good.add(model_id)
            case "raw on":
                ask("UPDATE models SET active = 1 WHERE id = ?", [model_id])
                for_good.discard(model_id)
            case "raw off and on":
                ask("UPDATE models SET active = 1 WHERE id = ?", [model_id])
                ask("UPDATE models SET active = 0 WHERE id = ?", [model_id])
                for_good.add(model_id)
            case "fail":
                one_by_one(fleet, model_id, times=3)
            case "fail in a batch":
                in_a_batch(fleet, *IDS)
            case "succeed":
                fleet.record_success(model_id)
            case "succeed in a batch":
                succeed_in_a_batch(fleet, *IDS)
            case "recover":
                fleet.recover()
            case "recover at once":
                fleet.recover(cooldown=0)
            case "time":
                for column in ("last_failure_at", "disabled_at", "disabled_until", "recovered_at"):
                    ask(
                        f"UPDATE models SET {column} ="
                        f" strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '-5 hours')"
                    )
                ask("UPDATE modelctl_events SET at = '2026-01-01T00:00:00.000Z'")
                ask("DELETE FROM modelctl_holds")
            case "pause":
                fleet.pause(HOUR, provider="p")
            case "resume":
                fleet.resume(provider="p")
        on = {row[0] for row in ask("SELECT id FROM models WHERE active").fetchall()}
        assert not on & for_good, (step, on, for_good)
