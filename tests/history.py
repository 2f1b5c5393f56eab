"""A history checker: real processes and faults, and every read held against what was committed.

Writers, readers, a drainer, a person with psql and another program that fills the same key work
on servers of their own, while faults are injected one after the other. Each process writes down
what it did and when. Afterwards `judge` decides for every read whether its number may be shown.

**The truth.** A trigger of this harness writes a row for every statement that touches ``models``:
the transaction, who, and the count after it. It takes a lock that is held until the change is
visible, so the rows stand in the order in which the changes became visible, and the counts are
exact. (What the lock hides: two commits within the same microseconds. Outbox rows are written
before it is taken, so they still commit out of their order.) ``pg_xact_commit_timestamp`` is a
moment just *before* a change becomes visible. Just *after* it come the moment at which the next
change got the lock, and the end of the call that made the change.

**The clock.** Everybody, PostgreSQL too, reads CLOCK_REALTIME of one machine, in microseconds
rounded down, which keeps every order. A clock that is set during a run makes the run void. So the
comparisons need no slack; `SLACK` (1 ms) is there for machines whose cores disagree a little. It
only makes the judge milder: it hides a wrong read that began less than 1 ms after the
acknowledgement, or a number that was shown less than 1 ms before it was true.

**The limit that is left out.** A Redis that restarts empty forgets the tombstone too: another
program that counted before a change, and stores its number after the restart, is believed until
the next invalidation. So the foreign filler stores on the connection on which it missed, and
drops its number when that connection is gone.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import psycopg
import redis

from modelctl import Fleet, points
from modelctl.config import Config
from modelctl.errors import DatabaseUnavailableError, StaleCacheError
from tests.servers import Postgres, Redis

KEY = "db:models:count:active"
TTL = 60
SLACK = 1_000
READERS, WRITERS, MODELS = 4, 3, 40
READS = ("count", "strong", "fresh")
# These invalidate also when no row changed, and so speak for everything committed before them.
ALWAYS = ("disable", "enable", "recover")


class Void(Exception):
    """The run proves nothing."""


def clock() -> int:
    """Return the wall clock in microseconds, as PostgreSQL does."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000


def clock_setting() -> int:
    """Return what changes only when somebody sets the wall clock (microseconds)."""
    samples = []
    for _ in range(20):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        samples.append((after - before, (wall - before) // 1000))
    return min(samples)[1]


# ── What is written down ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Event:
    """One call of one process, or one fault.

    *outcome* of a read: ``cache``, ``database``; of a change or drain: ``invalidated``, which
    alone is an acknowledgement, ``queued``, ``unchanged``; of both: ``unavailable``, when the
    call failed as it may during a fault, and ``crash``, which it never may.
    """

    who: str
    what: str
    start: int
    end: int
    outcome: str
    number: int | None = None
    changed: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """One committed state: its count, and the moments between which it became visible."""

    number: int
    commit: int
    visible: int
    who: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """A read that no state allows."""

    promise: str
    read: Event
    floor: int
    ceiling: int
    since: Event | None


@dataclass(frozen=True, slots=True)
class History:
    """What happened in one run."""

    name: str
    seconds: float
    states: tuple[State, ...]
    events: tuple[Event, ...]
    # What was wrong after the faults had ended and everything queued was delivered.
    leftovers: tuple[str, ...] = ()


# ── The judge ───────────────────────────────────────────────────────────────────────────────────


class _Floors:
    """At each moment, the state that nobody who begins to read then may fall behind."""

    def __init__(self, floors: Iterable[tuple[int, int, Event | None]]) -> None:
        ordered = sorted(floors, key=lambda floor: floor[:2])
        self._from = [since for since, _, _ in ordered]
        self._best = list(
            itertools.accumulate(
                ((index, why) for _, index, why in ordered), lambda a, b: max(a, b, key=_index)
            )
        )

    def at(self, moment: int) -> tuple[int, Event | None]:
        """Return the state, and the event that promised it."""
        place = bisect.bisect_left(self._from, moment - SLACK)
        return self._best[place - 1] if place else (0, None)


def _index(floor: tuple[int, Event | None]) -> int:
    return floor[0]


def own_commits(history: History) -> dict[Event, int]:
    """Return the last state that each change made, for those that made one.

    A process does one thing at a time, so what it committed between the start and the end of a
    call belongs to that call; what a killed process committed belongs to none.
    """
    found: dict[Event, int] = {}
    calls: dict[str, list[Event]] = {}
    for event in sorted(history.events, key=lambda event: event.start):
        if event.what not in READS:
            calls.setdefault(event.who, []).append(event)
    for index, state in enumerate(history.states[1:], 1):
        mine = calls.get(state.who, [])
        place = bisect.bisect_right(mine, state.commit, key=lambda event: event.start)
        if place and state.commit <= mine[place - 1].end:
            found[mine[place - 1]] = index
    return found


def judge(history: History) -> list[Broken]:
    """Return the reads whose number was at no allowed moment the count of a committed state.

    Allowed are the states from the last one that was promised when the read began to the last
    one that was committed when it ended. Promised are, by the first that is broken:

    - *read your writes*: the change of a call that was acknowledged, and everything committed
      before a call that invalidates in any case;
    - *drain*: everything committed before a drain that ended well;
    - *strong* (and fresh): everything that was visible when the read began;
    - *committed*: not more than has happened.
    """
    states, own = history.states, own_commits(history)
    commits = [state.commit for state in states]
    # Later states got the lock later.
    assert commits == sorted(commits), "the order of the audit is not the order of the commits"
    visible = [state.visible for state in states]
    for event, index in own.items():
        if event.outcome != "unavailable":  # the COMMIT was answered
            visible[index] = min(visible[index], event.end)

    def before(moment: int) -> int:
        """The last state that was visible for certain."""
        return max(0, bisect.bisect_left(visible, moment) - 1)

    writes: list[tuple[int, int, Event | None]] = []
    drains: list[tuple[int, int, Event | None]] = []
    for event in history.events:
        if event.what == "drain":
            if event.outcome in ("invalidated", "unchanged"):
                drains.append((event.end, before(event.start), event))
        elif event.outcome == "invalidated":
            floor = own.get(event, 0)
            if event.what in ALWAYS:
                floor = max(floor, before(event.start))
            writes.append((event.end, floor, event))
    promises = {"read your writes": _Floors(writes), "drain": _Floors(writes + drains)}

    broken = []
    for read in history.events:
        if read.what not in READS or read.number is None:
            continue
        ceiling = bisect.bisect_right(commits, read.end + SLACK) - 1
        floors = [(name, *promise.at(read.start)) for name, promise in promises.items()]
        if read.what != "count":
            floors.append(("strong", max(floors[-1][1], before(read.start - SLACK)), None))
        # A number that comes later breaks no promise about old ones.
        numbers = [state.number for state in states[floors[0][1] :]]
        floors.append(("committed", floors[-1][1], None))
        for name, floor, since in floors:
            numbers = [state.number for state in states[floor:]]
            if name == "committed":
                numbers = numbers[: ceiling + 1 - floor]
            if read.number not in numbers:
                broken.append(Broken(name, read, floor, ceiling, since))
                break
    return broken
