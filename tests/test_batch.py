"""Many outcomes at once: the same as one by one, in bounded memory, all or nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import (
    FailureType,
    Fleet,
    ModelNotFoundError,
    ModelStatus,
    Outcome,
    StatusChange,
    UsageError,
    tables,
)
from modelctl.health import read_outcomes
from tests import fleets
from tests.fleets import everything, rows, seed, sql, trip

ROOT = Path(__file__).parent.parent
SUCCESS = {"outcome": "success"}
FAILURE = {"outcome": "failure", "type": "client-error", "reason": "no"}


def of(ids: str, what: dict[str, str]) -> list[dict[str, str]]:
    """Return the same outcome for each letter."""
    return [{"id": model_id, **what} for model_id in ids]


# Equal to one by one

NAMES = "abcde"
TYPES = [None, *FailureType, FailureType.CLIENT_ERROR, FailureType.PARSE_ERROR]
RUNS = st.lists(
    st.builds(
        lambda name, type_, reason, times: [(name, type_, reason)] * times,
        st.sampled_from(NAMES),
        st.sampled_from(TYPES),
        st.sampled_from([None, "", "why", "it's [red] %s \x1b"]),
        st.sampled_from([1, 1, 2, 5, 6]),
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(runs=RUNS, chunk=st.sampled_from([1, 2, 3, 7, 5000]), mixed=st.booleans())
def test_a_batch_equals_one_by_one(
    fleet: Fleet, fleet_url: str, runs: list[Any], chunk: int, mixed: bool
) -> None:
    """Apart from times: the same rows, events and changes, whatever the size of a chunk."""
    fleets.clear(fleet_url)
    seed(fleet, [f"{side}/{name}" for side in ("one", "all") for name in NAMES])
    for side in ("one", "all"):  # every status, and one that has failed before
        fleet.disable(f"{side}/b")
        trip(fleet, f"{side}/c", f"{side}/d")
        fleet.record_success(f"{side}/d")
        for _ in range(3):
            fleet.record_failure(f"{side}/e", "parse-error", reason="before")
        if mixed:
            sql(fleet_url, "UPDATE models SET auto_disabled = true WHERE id = ?", f"{side}/a")
    start = len(fleets.events(fleet_url))
    outcomes = [outcome for run in runs for outcome in run]

    before = {m.id: m.status for m in fleet.list_models()}
    for name, type_, reason in outcomes:
        if type_ is None:
            fleet.record_success(f"one/{name}")
        else:
            fleet.record_failure(f"one/{name}", type_, reason=reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "CHUNK", chunk)
        result = fleet.record_batch(
            Outcome(f"all/{name}", type_, reason) for name, type_, reason in outcomes
        )

    def part(name: str, found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [(row[0].removeprefix(name), *row[1:]) for row in found if row[0].startswith(name)]

    assert part("all/", rows(fleet_url)) == part("one/", rows(fleet_url))
    events = fleets.events(fleet_url)[start:]
    # One model's events have an order; those of a chunk's several models are of the same moment.
    assert sorted(part("all/", events), key=lambda e: e[0]) == sorted(
        part("one/", events), key=lambda e: e[0]
    )
    assert result.recorded == len(outcomes)
    after = {m.id: m.status for m in fleet.list_models() if m.id.startswith("all/")}
    assert result.changes == tuple(
        StatusChange(i, before[i], now, True) for i, now in after.items() if now is not before[i]
    )


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
    """The last of many outcomes names no model: none is recorded."""
    monkeypatch.setattr(tables, "CHUNK", chunk)
    seed(fleet, "ab")
    before = everything(fleet_url)
    with pytest.raises(ModelNotFoundError, match="'nope'"):
        fleet.record_batch([*of("aaaaabbbbb", FAILURE), {"id": "nope", "outcome": "success"}])
    assert everything(fleet_url) == before


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
    monkeypatch.setattr(tables, "CHUNK", 2)
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


def until(condition: Any) -> None:
    """Wait for what will come, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    monkeypatch.setattr(tables, "CHUNK", 4)
    seed(fleet, "a")
    seen: list[int] = []
    fleet.record_batch(of("a" * 10, SUCCESS), progress=seen.append)
    assert seen == [4, 8, 10]
