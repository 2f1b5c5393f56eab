"""Under faults no count is older than an acknowledged change; a naive protocol breaks that often."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from modelctl.count.cache import LEASE_SECONDS
from tests.count.history import Event, Figures, History, State, VoidError, judge, story, unexpected
from tests.count.history_faults import ServerGroup, Servers
from tests.count.history_protocols import Naive, Product, Remembering, Tombstone
from tests.count.history_record import record
from tests.servers import Postgres, Redis, redis_cluster, redis_sentinel

MS = 1_000


class Size(NamedTuple):
    """How long a run is, and how much must have happened for it to say something."""

    kind: str  # of Redis: one, sentinel, cluster
    seconds: float
    # The naive one and the first protocol, which show that a run can find stale reads; 0: not run.
    naive_seconds: float
    tombstone_seconds: float
    longest_fault: float
    reads: int
    hits: int
    acknowledged: int
    faults: int
    naive_stale: int
    lease: float = LEASE_SECONDS  # shorter, so that readers are stopped for longer in a short run


SHORT = Size("one", 10, 10, 0, 0.6, 100, 20, 10, faults=1, naive_stale=5, lease=0.5)
SHORT_GROUP = Size("cluster", 5, 0, 0, 0.6, 50, 10, 5, faults=1, naive_stale=0, lease=0.5)
LONG = Size("one", 360, 30, 60, 3.0, 2000, 500, 200, faults=2, naive_stale=100)
LONG_MEMORY = LONG._replace(seconds=120, naive_seconds=0, tombstone_seconds=0)
LONG_GROUP = Size("sentinel", 120, 30, 90, 3.0, 1000, 200, 50, faults=2, naive_stale=100)


@contextmanager
def started(kind: str) -> Iterator[Servers]:
    """Run servers for this history alone."""
    with Postgres() as postgres:
        if kind == "one":
            with Redis() as redis_server:
                yield Servers(postgres, redis_server)
        else:
            groups = redis_sentinel() if kind == "sentinel" else redis_cluster(replicas=True)
            with groups as group:
                yield ServerGroup(postgres, group)


def _run(
    servers: Servers, protocol: type[Product | Naive], size: Size, seconds: float, folder: Path
) -> History:
    folder = folder / protocol.__name__
    folder.mkdir()
    run = record(
        servers,
        protocol,
        seconds,
        folder,
        longest_fault=size.longest_fault,
        each_fault=size.faults,
    )
    # Visible with -s; the line that the documentation quotes.
    sys.stdout.write(f"\n{Figures.of(run, judge(run)).summary(run)}\n")
    return run


def _worth_something(size: Size, servers: Servers, run: History) -> None:
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
            *((fault, figures.faults.get(fault, 0), size.faults) for fault in servers.faults),
        )
        if have < least
    ]
    if missing:
        raise VoidError("; ".join(missing))


def _stale(
    servers: Servers, protocol: type[Naive], size: Size, seconds: float, folder: Path
) -> int:
    """Return how many stale reads a protocol that is wrong has shown."""
    run = _run(servers, protocol, size, seconds, folder)
    if crashes := [event.detail for event in run.events if event.outcome == "crash"]:
        raise VoidError(crashes[0])
    return Figures.of(run, judge(run)).stale


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(SHORT_GROUP, id="short-cluster"),
        pytest.param(LONG, id="long", marks=pytest.mark.long),
        pytest.param(LONG_GROUP, id="long-sentinel", marks=pytest.mark.long),
        pytest.param(
            LONG_GROUP._replace(kind="cluster"), id="long-cluster", marks=pytest.mark.long
        ),
    ],
)
@pytest.mark.timeout(1200)
def test_no_count_is_older_than_an_acknowledged_change(
    size: Size, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, every number was true since the last change that a caller was told of."""
    if size.seconds > 60 and "long" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m long")
    monkeypatch.setattr("modelctl.count.redis.LEASE_SECONDS", size.lease)
    with started(size.kind) as servers:
        servers.stop_seconds = size.lease + 0.5
        # A run of this size must find the faults of wrong protocols, or it says nothing.
        wrong = (
            (Naive, size.naive_seconds, size.naive_stale),
            (Tombstone, size.tombstone_seconds, 1),
        )
        for protocol, seconds, least in wrong:
            if seconds and (stale := _stale(servers, protocol, size, seconds, tmp_path)) < least:
                raise VoidError(f"only {stale} stale reads of the {protocol.__name__}")
        run = _run(servers, Product, size, size.seconds, tmp_path)
        broken = judge(run)
        assert not broken, "\n\n".join(story(run, wrong) for wrong in broken[:5])
        assert not unexpected(run)
        assert not run.leftovers
        _worth_something(size, servers, run)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_remembered_count_is_older_than_it_may_be(tmp_path: Path) -> None:
    """Whatever fails, a remembered number is at most so much older than a count would be."""
    with started("one") as servers:
        servers.stop_seconds = LONG_MEMORY.lease + 0.5
        run = _run(servers, Remembering, LONG_MEMORY, LONG_MEMORY.seconds, tmp_path)
        broken = judge(run)
        assert not broken, "\n\n".join(story(run, wrong) for wrong in broken[:5])
        assert not unexpected(run)
        assert not run.leftovers
        _worth_something(LONG_MEMORY, servers, run)


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
        pytest.param(
            [call("writer-0", "disable", 90, 120, "invalidated"), read(310, 312, 10, "remembered")],
            "",
            id="remembered since before the change",
        ),
        pytest.param(
            [call("writer-0", "disable", 90, 120, "invalidated"), read(330, 340, 10, "remembered")],
            "read your writes",
            id="remembered for too long",
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
    found = judge(run)
    assert [broken.promise for broken in found] == ([promise] if promise else [])
    assert all(broken.promise in story(run, broken) for broken in found)


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
    assert len(unexpected(History("made up", 1, STATES[:1], tuple(events)))) == expected
