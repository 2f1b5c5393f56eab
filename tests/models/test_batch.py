"""A batch of outcomes has the effect of its outcomes one by one, in bounded memory, all or nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelctl import (
    FailureType,
    Fleet,
    ModelNotFoundError,
    ModelStatus,
    Outcome,
    StatusChange,
    UsageError,
)
from modelctl.database import bulk
from modelctl.health import read_outcomes
from tests import ROOT, fleets
from tests.commands import run
from tests.fleets import Ago, ago, everything, opened, put_hold, rows, seed, sql
from tests.waiting import until

SUCCESS = {"outcome": "success"}
FAILURE = {"outcome": "failure", "type": "client-error", "reason": "no"}
BRISK = {"health_threshold": 1, "recovery_restart_failures": 0}


def of(ids: str, what: dict[str, str]) -> list[dict[str, str]]:
    """Return the same outcome for each letter."""
    return [{"id": model_id, **what} for model_id in ids]


# Equal to one by one

MODELS = {"p/a": "p", "p/b": "p", "p/c": "p", "q/d": "q"}
RUNS = st.lists(
    st.builds(
        lambda model_id, type_, reason, times: [Outcome(model_id, type_, reason)] * times,
        st.sampled_from([*MODELS]),
        st.sampled_from(
            [None, None, *["parse-error", "client-error"] * 2, "parse-error", "timeout"]
        ).map(lambda name: name and FailureType(name)),
        st.sampled_from([None, "", "why", "it's [red] %s \x1b"]),
        st.sampled_from([1, 1, 2, 3]),
    ),
    min_size=6,
    max_size=20,
).map(lambda runs: [outcome for run in runs for outcome in run])
RULES = st.fixed_dictionaries(
    {
        "health_threshold": st.sampled_from([1, 1, 2]),
        "recovery_restart_failures": st.just(0),
        "recovery_cooldown": st.sampled_from(["0s", "1h", "1h"]),
        "recovery_max_ejections": st.sampled_from([0, 0, 1, 2]),
    }
)
GUARDS = st.fixed_dictionaries(
    {},
    optional={
        "recovery_min_active": st.sampled_from([1, 2, 3]),
        "recovery_max_auto_disabled_percent": st.sampled_from([0, 50, 70]),
        "recovery_incident_models": st.sampled_from([1, 2, 2]),
    },
)
HOLDS = st.sets(
    st.tuples(
        st.sampled_from("pq"),
        st.sampled_from([None, "parse-error", "client-error"]),
        st.sampled_from([60, 700]),  # seconds: an incident of ten minutes is prolonged, or not yet
    ),
    max_size=1,
)


@pytest.mark.timeout(900)
@settings(
    max_examples=40,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # it takes minutes, as does making a failure smaller
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rule=RULES,
    guards=GUARDS,
    starts=st.tuples(*[fleets.STARTS] * len(MODELS)),
    held=HOLDS,
    outcomes=RUNS,
    chunk=st.sampled_from([1, 2, 3, 7, 5000]),
)
def test_a_batch_equals_one_by_one(
    fleet_url: str,
    rule: dict[str, Any],
    guards: dict[str, Any],
    starts: tuple[fleets.Start, ...],
    held: set[tuple[str, str | None, int]],
    outcomes: list[Outcome],
    chunk: int,
) -> None:
    """Apart from times: the same rows, events, holds and changes, whatever the size of a chunk.

    Of a hold also whether it went on: then it lasts for a quarter of an hour.
    """
    models = {
        i: replace(start, provider=provider)
        for (i, provider), start in zip(MODELS.items(), starts, strict=True)
    }

    def left_by(record: Callable[[Fleet], Any]) -> Any:
        fleets.clear(fleet_url)
        fleets.put_starts(fleet_url, models)
        for provider, kind, left in held:
            scope, until = f"incident:{kind}:{provider}", Ago(-left)
            put_hold(fleet_url, scope, provider=provider, failure_type=kind, until=until)
        with opened(fleet_url, **rule, **guards) as fleet:
            before = {m.id: m.status for m in fleet.list_models()}
            result = record(fleet)
            after = {m.id: m.status for m in fleet.list_models()}
        changes = tuple(
            StatusChange(i, before[i], now, True)
            for i, now in after.items()
            if now is not before[i]
        )
        assert result is None or (result.recorded, result.changes) == (len(outcomes), changes)
        # An incident is written at the end of a chunk, behind what its models did.
        events = sorted(fleets.events(fleet_url), key=lambda event: not event[0])
        long = sql(
            fleet_url, f"SELECT scope FROM modelctl_holds WHERE until > {ago(fleet_url, -800)}"
        )
        return rows(fleet_url), events, fleets.holds(fleet_url), sorted(long), changes

    def one_by_one(fleet: Fleet) -> None:
        for outcome in outcomes:
            if outcome.type is None:
                fleet.record_success(outcome.id)
            else:
                fleet.record_failure(outcome.id, outcome.type, reason=outcome.reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "CHUNK", chunk)
        together = left_by(lambda fleet: fleet.record_batch(outcomes))
    assert together == left_by(one_by_one)


def test_a_batch_remembers_the_last_failure_of_one_that_is_spared(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in its row: an incident is of those that fail alike in the end, not of all they ever did."""
    spared = {"recovery_min_active": 2, "recovery_incident_models": 2, **BRISK}
    lines = of("a", {"outcome": "failure", "type": "parse-error"})
    lines += of("a", {"outcome": "failure", "type": "timeout"})
    lines += of("b", {"outcome": "failure", "type": "parse-error"})
    for chunk in (1, 5000):
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        fleets.clear(fleet_url)
        with opened(fleet_url, **spared) as fleet:
            seed(fleet, "ab")
            sql(fleet_url, "UPDATE models SET would_disable = 'floor'")  # long ago
            fleet.record_batch(lines)
            assert fleet.holds() == ()
            fleet.record_batch(of("a", {"outcome": "failure", "type": "parse-error"}))
            assert [hold.reason for hold in fleet.holds()] == ["2 models"]


def test_events_of_a_batch_are_in_the_order_of_its_outcomes(fleet: Fleet, fleet_url: str) -> None:
    """The history of a batch reads as it happened, over all models."""
    seed(fleet, "ab")
    fleet.record_batch(of("bbbbb", FAILURE) + of("aaaaa", FAILURE) + of("b", SUCCESS))
    assert [e[:2] for e in fleets.events(fleet_url)[2:]] == [
        ("b", "auto-disabled"),
        ("a", "auto-disabled"),
        ("b", "recovered"),
    ]


def test_changes_are_those_of_the_end(fleet: Fleet) -> None:
    """A model that went and came back did not change; its events tell the story."""
    seed(fleet, "abc")
    fleet.disable("c")
    result = fleet.record_batch(
        of("aaaaa", FAILURE) + of("bbbbb", FAILURE) + of("a", SUCCESS) + of("cccccc", FAILURE)
    )
    assert result.recorded == 17
    assert result.changes == (
        StatusChange("b", ModelStatus.ACTIVE, ModelStatus.AUTO_DISABLED, True),
    )
    assert [e.event for e in fleet.events("a")] == ["recovered", "auto-disabled", "added"]
    assert fleet.show("c").status is ModelStatus.DISABLED


def test_a_batch_of_nothing(fleet: Fleet, fleet_url: str) -> None:
    """An empty batch succeeds and writes nothing."""
    seed(fleet, "a")
    before = everything(fleet_url)
    result = fleet.record_batch([])
    assert (result.recorded, result.changes) == (0, ())
    assert everything(fleet_url) == before


# All or nothing


@pytest.mark.parametrize("chunk", [1, 2, 5000])
def test_an_unknown_id_anywhere_and_nothing_is_written(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """If the last of many outcomes names no model, no outcome is recorded."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    seed(fleet, "ab")
    before = everything(fleet_url)
    with pytest.raises(ModelNotFoundError, match="'nope'"):
        fleet.record_batch([*of("aaaaabbbbb", FAILURE), {"id": "nope", "outcome": "success"}])
    assert everything(fleet_url) == before


UNKNOWN_IDS = ["nobody", "nul\0", "\ud800", "x" * 300]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_unknown_ids_can_be_skipped(
    fleet: Fleet, fleet_url: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With unknown="skip" the other outcomes are recorded, and the ids that are not there named."""
    monkeypatch.setattr(bulk, "CHUNK", size)
    seed(fleet, "ab")
    strangers = [{"id": model_id, **FAILURE} for model_id in UNKNOWN_IDS]
    outcomes = [*strangers, *of("aaaaa", FAILURE), strangers[0], *of("b", SUCCESS)]
    result = fleet.record_batch(outcomes, unknown="skip")
    assert (result.recorded, result.skipped) == (6, 5)
    assert set(result.unknown) == {"nobody", "nul\0", "\ud800", "x" * 300}
    assert [change.id for change in result.changes] == ["a"]
    assert [row[0] for row in rows(fleet_url)] == ["a", "b"]
    assert {
        model.id: model.success_count + model.failure_count for model in fleet.list_models()
    } == {
        "a": 5,
        "b": 1,
    }


def test_a_batch_of_strangers(fleet: Fleet, fleet_url: str) -> None:
    """A batch that names no model of the fleet records nothing, and says so."""
    before = everything(fleet_url)
    result = fleet.record_batch(of("xyx", FAILURE), unknown="skip")
    assert (result.recorded, result.skipped, result.unknown) == (0, 3, ("x", "y"))
    assert everything(fleet_url) == before


def test_an_unknown_policy_is_refused(fleet: Fleet) -> None:
    """Another word than fail or skip is a usage error."""
    with pytest.raises(UsageError, match="no policy 'ignore'"):
        fleet.record_batch([], unknown="ignore")


def test_skipped_ids_on_the_command_line(fleet: Fleet, fleet_url: str) -> None:
    """Skipped ids are named on stderr, a few of many, or in the JSON; the exit code is 0."""
    seed(fleet, "a")
    line = '{"id": "%s", "outcome": "success"}\n'
    lines = "".join(line % model_id for model_id in ["a", "q\\u001b[31m", "q\\u001b[31m", "z"])
    how: dict[str, Any] = {"stdin": lines.encode(), "MODELCTL_DATABASE_URL": fleet_url}
    run("record-batch", "-", **how).failed(4, "no model")
    done = run("record-batch", "-", "--unknown", "skip", **how)
    assert done.code == 0
    assert "warning: skipped 3 outcomes of 2 unknown ids: 'q\\x1b[31m', 'z'" in done.err
    many = "".join(line % f"m{n:03}" for n in range(100))
    done = run("record-batch", "-", "--unknown=skip", **(how | {"stdin": many.encode()}))
    assert "'m019' and 80 more (-o json names all)" in done.err
    done = run("record-batch", "-", "--unknown=skip", "-o", "json", **how)
    assert (done.json["recorded"], done.json["skipped"]) == (1, 3)
    assert done.json["unknown"] == ["q\x1b[31m", "z"]
    assert done.err == ""
    run("record-batch", "-", "--unknown=drop", **how).failed(2, "no policy 'drop'")


@pytest.mark.parametrize(
    "bad", [{}, {"id": "a"}, {"id": "a", "outcome": "failure", "type": "x"}, "a", None, 5]
)
def test_a_bad_outcome_is_named_and_nothing_is_written(
    fleet: Fleet, fleet_url: str, bad: Any
) -> None:
    """All outcomes are checked before the first is recorded; the number counts from 1."""
    seed(fleet, "a")
    before = everything(fleet_url)
    with pytest.raises(UsageError, match=r"^outcome 3: "):
        fleet.record_batch([*of("aa", SUCCESS), bad, *of("a", SUCCESS)])
    assert everything(fleet_url) == before


def test_a_bad_line_and_nothing_is_written(fleet: Fleet, fleet_url: str) -> None:
    """Lines are read and checked to the end before the first is recorded."""
    seed(fleet, "a")
    before = everything(fleet_url)
    lines = io.BytesIO(b'{"id": "a", "outcome": "success"}\n' * 4 + b"oops\n")
    with pytest.raises(UsageError, match=r"^line 5: "):
        fleet.record_batch(read_outcomes(lines, 500))
    assert everything(fleet_url) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interruption_in_the_middle_records_nothing(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Between two chunks or while the outcomes are read: nothing of the batch stays."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    seed(fleet, "a")
    before = everything(fleet_url)

    def after_one_chunk(done: int) -> None:
        assert done == 2
        raise error

    def breaks_off() -> Iterator[dict[str, str]]:
        yield from of("aaa", FAILURE)
        raise error

    with pytest.raises(error):
        fleet.record_batch(of("aaaaaa", FAILURE), progress=after_one_chunk)
    with pytest.raises(error):
        fleet.record_batch(breaks_off())
    assert everything(fleet_url) == before
    assert fleet.record_batch(of("aaaaaa", FAILURE)).recorded == 6


WAITS = """
import sys
from modelctl import Fleet
with Fleet.open() as fleet:
    fleet.record_batch({"id": i, "outcome": "failure", "type": "client-error"} for i in "aaaaab")
"""


def test_ctrl_c_while_waiting_records_nothing(pg_database: str) -> None:
    """A process that is interrupted while it waits for a lock ends at once, with nothing done."""
    with fleets.opened(pg_database) as fleet:
        seed(fleet, "ab")
    before = everything(pg_database)
    patient = f"{pg_database}?options=-c%20lock_timeout%3D0"
    waits = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with psycopg.connect(pg_database) as other:
        other.execute("SELECT FROM models WHERE id = 'b' FOR UPDATE")
        with subprocess.Popen(
            [sys.executable, "-c", WAITS],
            cwd=ROOT,
            env=os.environ | {"MODELCTL_DATABASE_URL": patient},
            stderr=subprocess.PIPE,
        ) as process:
            try:
                until(lambda: process.poll() is not None or sql(pg_database, waits) != [])
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == -signal.SIGINT, stderr.decode()
    until(lambda: sql(pg_database, waits) == [])
    assert everything(pg_database) == before


# Size

BIG = """
import resource, sys
from modelctl import Fleet

def outcomes(count):
    for n in range(count):
        failure = {"type": "timeout", "reason": "x" * 300} if n % 2 else {}
        yield {"id": f"m{n % 50}", "outcome": "failure" if n % 2 else "success", **failure}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with Fleet.open() as fleet:
    fleet.record_batch(outcomes(6_000))
    before = peak()
    assert fleet.record_batch(outcomes(100_000)).recorded == 100_000
    print(peak() - before)
"""


def test_a_large_batch_needs_little_memory(fleet: Fleet, fleet_url: str) -> None:
    """100,000 outcomes with 30 MB of reasons take no more memory than a few thousand."""
    seed(fleet, [f"m{n}" for n in range(50)])
    done = subprocess.run(
        [sys.executable, "-c", BIG],
        cwd=ROOT,
        env=os.environ | {"MODELCTL_DATABASE_URL": fleet_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12  # MiB
    model = fleet.show("m1")
    assert (model.success_count + model.failure_count) == 2120


def test_progress_tells_how_many_are_recorded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each chunk, up to the whole."""
    monkeypatch.setattr(bulk, "CHUNK", 4)
    seed(fleet, "a")
    seen: list[int] = []
    fleet.record_batch(of("a" * 10, SUCCESS), progress=seen.append)
    assert seen == [4, 8, 10]
