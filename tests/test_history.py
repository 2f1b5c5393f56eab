"""Under faults no count is older than an acknowledged change; a naive protocol breaks that often."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import history
from tests.history import Event, Figures, History, Naive, Product, State, VoidError, World
from tests.servers import Postgres, Redis

MS = 1_000


class Size(NamedTuple):
    """How long a run is, and how much must have happened for it to say something."""

    seconds: float
    longest_fault: float
    reads: int
    hits: int
    acknowledged: int
    faults: int
    naive_stale: int


SHORT = Size(10, 0.6, reads=100, hits=20, acknowledged=10, faults=1, naive_stale=5)
LONG = Size(60, 3.0, reads=2000, hits=500, acknowledged=200, faults=2, naive_stale=100)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Run servers that nobody else uses."""
    with Postgres() as postgres, Redis() as redis_server:
        yield World(postgres, redis_server)


@pytest.fixture
def size(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Size:
    """Show on a naive protocol that a run of this size finds stale reads, or there is no test."""
    if request.param is LONG and "long" not in request.config.option.markexpr:
        pytest.skip("takes two minutes; run with -m long")
    size: Size = request.param
    run = _run(world, Naive, size, tmp_path)
    _worth_something(size, run)
    stale = Figures.of(run, history.judge(run)).stale
    if stale < size.naive_stale:
        raise VoidError(f"only {stale} stale reads of a naive protocol")
    return size


def _run(world: World, protocol: type[Product] | type[Naive], size: Size, folder: Path) -> History:
    folder = folder / protocol.__name__
    folder.mkdir()
    run = history.run(
        world,
        protocol,
        size.seconds,
        folder,
        longest_fault=size.longest_fault,
        each_fault=size.faults,
    )
    # Visible with -s; the line that the documentation quotes.
    sys.stdout.write(f"\n{Figures.of(run, history.judge(run)).summary(run)}\n")
    return run


def _worth_something(size: Size, run: History) -> None:
    """Refuse a run that found nothing because it did nothing."""
    if crashes := [event.detail for event in run.events if event.outcome == "crash"]:
        raise VoidError(crashes[0])
    figures = Figures.of(run, ())
    missing = [
        f"{what}: {have}, not {least}"
        for what, have, least in (
            ("reads", figures.reads, size.reads),
            ("hits", figures.hits, size.hits),
            ("acknowledged changes", figures.acknowledged, size.acknowledged),
            *((fault, figures.faults.get(fault, 0), size.faults) for fault in history.FAULTS),
        )
        if have < least
    ]
    if missing:
        raise VoidError("; ".join(missing))


@pytest.mark.parametrize(
    "size",
    [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.long)],
    indirect=True,
)
def test_no_count_is_older_than_an_acknowledged_change(
    size: Size, world: World, tmp_path: Path
) -> None:
    """Whatever fails, every number was true since the last change that a caller was told of."""
    run = _run(world, Product, size, tmp_path)
    broken = history.judge(run)
    assert not broken, "\n\n".join(history.story(run, wrong) for wrong in broken[:5])
    assert not history.unexpected(run)
    assert not run.leftovers
    _worth_something(size, run)


# ── The judge itself ────────────────────────────────────────────────────────────────────────────

# 10 becomes 9, 8 and 7; each change is visible at most 2 ms after its commit.
STATES = (
    State(10, 0, 0),
    State(9, 100 * MS, 102 * MS, "writer-0"),
    State(8, 200 * MS, 202 * MS, "person"),
    State(7, 300 * MS, 302 * MS, "writer-1"),
)


def call(who: str, what: str, start: int, end: int, outcome: str) -> Event:
    """Make a change or a drain; times are in milliseconds."""
    return Event(who, what, start * MS, end * MS, outcome, changed=True)


def read(start: int, end: int, number: int, what: str = "count") -> Event:
    """Make a read; times are in milliseconds."""
    return Event("reader-0", what, start * MS, end * MS, "cache", number)


@pytest.mark.parametrize(
    ("events", "promise"),
    [
        pytest.param([read(50, 60, 10)], "", id="before all changes"),
        pytest.param([read(50, 60, 9)], "committed", id="from the future"),
        pytest.param([read(500, 510, 3)], "committed", id="never true"),
        pytest.param([read(50, 150, 9)], "", id="committed meanwhile"),
        pytest.param([read(400, 410, 10)], "", id="old, but nobody was told"),
        pytest.param(
            [call("writer-0", "disable", 90, 120, "invalidated"), read(130, 140, 10)],
            "read your writes",
            id="older than an acknowledged change",
        ),
        pytest.param(
            [call("writer-0", "record-failure", 90, 120, "invalidated"), read(130, 140, 10)],
            "read your writes",
            id="older than an outcome that switched off",
        ),
        pytest.param(
            [call("writer-0", "disable", 90, 120, "invalidated"), read(110, 140, 10)],
            "",
            id="begun before the acknowledgement",
        ),
        pytest.param(
            [call("writer-0", "disable", 90, 120, "invalidated"), read(400, 410, 9)],
            "",
            id="older only than others' changes",
        ),
        pytest.param(
            [call("writer-0", "disable", 90, 120, "queued"), read(130, 140, 10)],
            "",
            id="older than a queued change",
        ),
        pytest.param(
            [call("writer-0", "disable", 90, 99, "invalidated"), read(130, 140, 10)],
            "",
            id="committed by a killed process after its last call",
        ),
        pytest.param(
            [call("writer-0", "enable", 220, 230, "invalidated"), read(240, 250, 9)],
            "read your writes",
            id="older than what was committed before a repetition",
        ),
        pytest.param(
            [call("writer-0", "record-success", 220, 230, "unchanged"), read(240, 250, 9)],
            "",
            id="an outcome that changed nothing promises nothing",
        ),
        pytest.param(
            [call("drainer", "drain", 220, 230, "invalidated"), read(240, 250, 9)],
            "drain",
            id="older than a drain",
        ),
        pytest.param(
            [call("drainer", "drain", 220, 230, "unavailable"), read(240, 250, 9)],
            "",
            id="a drain that failed",
        ),
        pytest.param([read(240, 250, 9, "strong")], "strong", id="strong"),
        pytest.param([read(240, 250, 9, "fresh")], "strong", id="fresh"),
        pytest.param([read(201, 203, 9, "strong")], "", id="strong, not visible for certain"),
        pytest.param([read(240, 250, 8, "strong")], "", id="strong and right"),
    ],
)
def test_the_judge_knows_right_from_wrong(events: list[Event], promise: str) -> None:
    """A read is wrong exactly if it breaks a promise that held when it began."""
    run = History("made up", 1, STATES, tuple(events))
    found = history.judge(run)
    assert [broken.promise for broken in found] == ([promise] if promise else [])
    assert all(broken.promise in history.story(run, broken) for broken in found)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([Event("reader-0", "count", 0, 9, "crash", detail="x")], 1, id="a crash"),
        pytest.param([Event("reader-0", "count", 0, 9, "unavailable")], 1, id="no fault"),
        pytest.param(
            [
                Event("nemesis", "Redis paused", 0, 9, "over"),
                Event("reader-0", "count", 0, 9, "unavailable"),
            ],
            1,
            id="a read that failed because of Redis",
        ),
        pytest.param(
            [
                Event("nemesis", "PostgreSQL restarted", 0, 9, "over"),
                Event("reader-0", "count", 5, 20, "unavailable"),
            ],
            0,
            id="a read that failed because of PostgreSQL",
        ),
        pytest.param([Event("writer-0", "enable", 0, 9, "queued")], 1, id="queued for nothing"),
        pytest.param(
            [
                Event("nemesis", "Redis paused", 0, 9, "over"),
                Event("writer-0", "enable", 5, 20, "queued"),
                Event("drainer", "drain", 5, 20, "unavailable"),
            ],
            0,
            id="queued because of Redis",
        ),
        pytest.param(
            [Event("writer-0", "enable", 10, 20, "invalidated", changed=True)],
            1,
            id="a change that is not in the database",
        ),
    ],
)
def test_failures_need_a_fault_that_explains_them(events: list[Event], expected: int) -> None:
    """A call fails or is queued only while the server it needs is in trouble."""
    assert len(history.unexpected(History("made up", 1, STATES[:1], tuple(events)))) == expected
