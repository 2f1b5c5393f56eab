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

**Another program** stores what it counted late, and at times any number that it ever counted, on
whatever server answers: nothing that it does may reach a count.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

TTL = 60
SLACK = 1_000
# So long after a fault a session may notice that it was hit (microseconds).
AFTERMATH = 500_000
READERS, WRITERS, MODELS = 4, 3, 40
READS = ("count", "strong", "fresh", "remembered")
# How old the number of a remembered read may be (seconds).
MAX_AGE = 0.2
# These invalidate also when no row changed, and so speak for everything committed before them.
ALWAYS = ("disable", "enable", "recover")
# The outcomes of a change whose COMMIT was answered.
ANSWERED = ("invalidated", "queued", "unchanged", "committed")


class VoidError(Exception):
    """The run proves nothing."""


def clock() -> int:
    """Return the wall clock in microseconds, as PostgreSQL does."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000


def clock_setting() -> int:
    """Return a number that changes only when the wall clock is set (microseconds)."""
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
    alone is an acknowledgement, ``queued``, ``unchanged``, with psql ``committed``; of both:
    ``unavailable``, when the call failed as it may during a fault, and ``crash``, which it never
    may.
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
    """For each moment, the oldest state that a read which begins then may show."""

    def __init__(self, floors: Iterable[tuple[int, int, Event | None]]) -> None:
        self._from: list[int] = []
        self._best: list[tuple[int, Event | None]] = [(0, None)]
        for since, index, why in sorted(floors, key=lambda floor: floor[:2]):
            self._from.append(since)
            self._best.append(max(self._best[-1], (index, why), key=lambda best: best[0]))

    def at(self, moment: int) -> tuple[int, Event | None]:
        """Return the state, and the event that promised it."""
        return self._best[bisect.bisect_left(self._from, moment - SLACK)]


def own_commits(history: History) -> dict[Event, int]:
    """Return the last state that each change made, for those that made one.

    A process does one thing at a time, so what it committed between the start and the end of a
    call belongs to that call; what a killed process committed belongs to none.
    """
    found: dict[Event, int] = {}
    calls: dict[str, list[Event]] = {}
    for event in sorted(history.events, key=lambda event: event.start):
        if event.what not in (*READS, "killed"):
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
    - of a remembered read: what was promised `MAX_AGE` before it began;
    - *committed*: not more than has happened.
    """
    states, own = history.states, own_commits(history)
    commits = [state.commit for state in states]
    # Later states got the lock later.
    assert commits == sorted(commits), "the order of the audit is not the order of the commits"
    visible = [state.visible for state in states]
    for event, index in own.items():
        if event.outcome in ANSWERED:
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

    first: dict[int, int] = {}
    for index, state in enumerate(states):
        first.setdefault(state.number, index)

    broken = []
    for read in history.events:
        if read.what not in READS or read.number is None:
            continue
        ceiling = bisect.bisect_right(commits, read.end + SLACK) - 1
        since_when = read.start - (round(MAX_AGE * 1e6) if read.what == "remembered" else 0)
        floors = [(name, *promise.at(since_when)) for name, promise in promises.items()]
        if read.what in ("strong", "fresh"):
            floors.append(("strong", max(floors[-1][1], before(read.start - SLACK)), None))
        if first.get(read.number, ceiling + 1) > ceiling:
            floors = [("committed", 0, None)]
        for name, floor, since in floors:
            if all(state.number != read.number for state in states[floor : ceiling + 1]):
                broken.append(Broken(name, read, floor, ceiling, since))
                break
    return broken


def unexpected(history: History) -> list[str]:
    """Return what no fault explains.

    A call may fail while PostgreSQL is in trouble, a drain also while Redis is, and a change is
    queued only while Redis is. What a caller was told to be changed is in the database.
    """
    faults = [event for event in history.events if event.who == "nemesis"]

    def trouble(event: Event, server: str) -> bool:
        return any(
            fault.what.startswith(server)
            and fault.start <= event.end
            and event.start <= fault.end + AFTERMATH
            for fault in faults
        )

    own, wrong = own_commits(history), []
    for event in history.events:
        if event.outcome == "crash":
            wrong.append(f"{event.who} crashed: {event.detail}")
        elif event.outcome == "unavailable":
            servers = ("PostgreSQL", "Redis") if event.what == "drain" else ("PostgreSQL",)
            if not any(trouble(event, server) for server in servers):
                wrong.append(f"failed without a reason: {event}")
        elif event.outcome == "queued" and not trouble(event, "Redis"):
            wrong.append(f"queued without a reason: {event}")
        if event.changed and event not in own:
            wrong.append(f"acknowledged and not in the database: {event}")
    return wrong


def story(history: History, broken: Broken) -> str:
    """Write what led to a wrong read: the promise, the states, and what each process did meanwhile."""
    read, states = broken.read, history.states
    zero = read.start

    def moment(at: int) -> str:
        return f"{(at - zero) / 1000:+.3f} ms"

    def line(event: Event) -> str:
        number = "" if event.number is None else f" {event.number}"
        return (
            f"{moment(event.start)} .. {moment(event.end)}  {event.who} {event.what}"
            f" -> {event.outcome}{number} {event.detail}"
        )

    lines = [f"{broken.promise}: {line(read)}"]
    if broken.since:
        lines.append(f"  promised by {line(broken.since)}")
    for index in range(max(0, broken.floor - 6), min(len(states), broken.ceiling + 3)):
        state, allowed = states[index], broken.floor <= index <= broken.ceiling
        lines.append(
            f"  {'allowed' if allowed else '       '} state {index}: {state.number}"
            f" committed {moment(state.commit)} by {state.who}"
        )
    old = [i for i, s in enumerate(states) if s.number == read.number and i < broken.floor]
    if old:
        lines.append(f"  it was true last as state {old[-1]}, {moment(states[old[-1]].commit)}")
    near = [
        event
        for event in history.events
        if event.start < read.end + 50_000
        and event.end > read.start - (5_000_000 if event.what not in READS else 300_000)
        and (event.what not in READS or event.outcome == "database" or event == read)
    ]
    lines += [f"    {line(event)}" for event in sorted(near, key=lambda event: event.start)[-80:]]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Figures:
    """How much happened in a run."""

    reads: int
    hits: int
    changes: int
    acknowledged: int
    queued: int
    unavailable: int
    drains: int
    stale: int
    broken: int
    kills: int
    faults: dict[str, int]

    @classmethod
    def of(cls, history: History, broken: Sequence[Broken]) -> Self:
        """Count; acknowledged are the changes of a status, not their repetitions."""
        reads = [e for e in history.events if e.what in READS]
        changes = [e for e in history.events if e.who.startswith("writer") and e.changed]
        return cls(
            reads=sum(e.number is not None for e in reads),
            hits=sum(e.outcome == "cache" for e in reads),
            changes=len(changes),
            acknowledged=sum(e.outcome == "invalidated" for e in changes),
            queued=sum(e.outcome == "queued" for e in changes),
            unavailable=sum(e.outcome == "unavailable" for e in history.events),
            drains=sum(e.what == "drain" and e.outcome == "invalidated" for e in history.events),
            stale=sum(b.promise == "read your writes" for b in broken),
            broken=len(broken),
            kills=sum(e.what == "killed" for e in history.events),
            faults=dict(Counter(e.what for e in history.events if e.who == "nemesis")),
        )

    def summary(self, history: History) -> str:
        """Say it in one line."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"{history.name}, {history.seconds:.0f} s: {self.reads:,} reads ({self.hits:,} from the"
            f" cache), {self.changes:,} changes ({self.acknowledged:,} acknowledged,"
            f" {self.queued:,} queued), {self.drains:,} deliveries by drain,"
            f" {self.unavailable:,} calls refused, {self.stale:,} stale reads after an acknowledged"
            f" change, {self.broken - self.stale:,} other wrong reads; writers killed"
            f" {self.kills}, faults: {faults}"
        )
