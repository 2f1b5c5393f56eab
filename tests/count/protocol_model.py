"""The cache protocol as a small machine, and a checker that walks through all of its states.

The steps are called what the product calls them: ``read``, ``lease``, ``snapshot``, ``fill``,
``forget``; ``commit``, ``due``, ``del``, ``settle``. A step is one round trip, and steps of
different processes interleave in every order. Kills, expiry, eviction, a wiped Redis, a failover,
a restart from a snapshot, another program's SETEX happen anywhere. Each rule of the protocol can
be left out (``Wrong``): the checker must then find what breaks.

What is abstracted, and why nothing is lost by it:

- **A nonce** is the number of its process. A process forgets the old nonce when it takes a new
  one, and only that process ever sets it: equality means the same as with a random nonce.
- **Time** is not a number. Each key of Redis goes away whenever it likes: it expired, was
  evicted, or another program deleted it. What `count` answers rests on no time at all. Only what
  other programs read from K themselves does (``Promise.OTHERS``): there another program writes a
  number at most 15 s after reading it (``FOREIGN``), and a settle row is due (15 s) only when no
  read of another program that was under way at the first invalidation still is. A world with
  ``rewrites`` has another program that stores any old number, at any moment, for ever.
- **A server** is the number of its run id. A replica, or a snapshot, is a second set of our
  three keys that takes over the first at some moments (``copied``), so it lags by as much as it
  likes. A failover or a restart puts it in the place of the first, under another run id, and
  ends every conversation.
- **A failed Redis call** ends the Redis work of a count, which then answers from the database,
  and ends a change with exit 6, not acknowledged. For the shared state both are a kill. A change
  tries again, from ``due`` on.
- **A count that got no lease** polls for a hit, else answers from the database. A hit then is
  that of a count which reads at that moment, and is judged as strictly: no step of its own.
  ``--strong`` polls only if its question to the outbox was answered with no.
- **Another program's GET** may have missed at any time before, so its read is not tied to K.
- **The identity of an outbox row** is the number of its writer: handed out before the commits,
  whose order is free. A collapse writes a row of its own, and happens once, so its id is new.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

# --- the checker ----------------------------------------------------------------------------


class Machine(Protocol[S]):
    """Something with states and steps."""

    def initial(self) -> S:
        """Return the state everything starts in."""

    def steps(self, state: S) -> Iterator[tuple[str, S]]:
        """Give every step that may come next, with its name and the state after it."""

    def violation(self, state: S) -> str:
        """Say which promise *state* breaks; empty: none."""

    def show(self, state: S) -> str:
        """Write *state* as one short line."""


@dataclass(frozen=True)
class Result(Generic[S]):
    """What a walk found: its size, the names of the steps, and the shortest way to a violation."""

    states: int
    transitions: int
    labels: frozenset[str]
    violation: str
    trace: tuple[tuple[str, S], ...]


def explore(machine: Machine[S], *, most: int = 20_000_000) -> Result[S]:
    """Visit every reachable state, nearest first, up to the first violation.

    Raises:
        RuntimeError: more than *most* states; a walk that did not end proves nothing.
    """
    first = machine.initial()
    came_from: dict[S, tuple[str, S] | None] = {first: None}
    waiting = deque([first])
    labels: set[str] = set()
    transitions = 0
    violation = machine.violation(first)
    found = first
    collecting = gc.isenabled()
    gc.disable()  # millions of small tuples and no cycle among them
    try:
        while waiting and not violation:
            state = waiting.popleft()
            for label, successor in machine.steps(state):
                transitions += 1
                labels.add(label)
                if successor in came_from:
                    continue
                came_from[successor] = (label, state)
                violation = machine.violation(successor)
                if violation:
                    found = successor
                    break
                waiting.append(successor)
            if len(came_from) > most:
                raise RuntimeError(f"more than {most} states")
    finally:
        if collecting:
            gc.enable()
    trace = _way_to(found, came_from) if violation else ()
    return Result(len(came_from), transitions, frozenset(labels), violation, trace)


def _way_to(state: S, came_from: dict[S, tuple[str, S] | None]) -> tuple[tuple[str, S], ...]:
    way: list[tuple[str, S]] = []
    step = came_from[state]
    while step is not None:
        way.append((step[0], state))
        state = step[1]
        step = came_from[state]
    return tuple(reversed(way))


def story(machine: Machine[S], result: Result[S]) -> str:
    """Write the counter-example, one step a line, with the state after each."""
    lines = [f"{'start':<48}{machine.show(machine.initial())}"]
    lines += [
        f"{f'{number:>2}. {label}':<48}{machine.show(state)}"
        for number, (label, state) in enumerate(result.trace, 1)
    ]
    return "\n".join([*lines, f"=> {result.violation}"])


# --- what takes part ------------------------------------------------------------------------


class Promise(StrEnum):
    """What the protocol guarantees."""

    READ_YOUR_WRITES = "after a change exited 0, no count answers a number from before it"
    STRONG = "--strong answers no number from before its start, whoever changed it"
    NOTHING_LOST = "once every row is delivered, K is right or not believed"
    OTHERS = "after the settle pass K is right, for a plain GET too"
    SQLITE = "a count on SQLite answers no number from before its start"


class Wrong(StrEnum):
    """One rule of the protocol left out, or one of its assumptions."""

    FILL_WITHOUT_LEASE = "a fill does not look at the lease"
    DEL_KEEPS_LEASE = "an invalidation deletes K and leaves the lease"
    LEASE_AFTER_COUNT = "the lease is taken after the database was read"
    COUNTER_AS_NONCE = "the nonce is INCR of a counter in Redis"
    WATCH_MISSES_EXPIRY = "EXEC passes although the watched lease expired (Redis before 6.0.9)"
    VOUCH_NOT_CHECKED = "K is believed whatever the vouch says"
    VOUCH_IS_ANY = "K is believed while there is a vouch, whatever number it says"
    DEL_KEEPS_VOUCH = "an invalidation deletes K and the lease, and leaves the vouch"
    LEASE_DELETED_LAST = "DEL K vouch and DEL lease are two commands"
    VOUCH_WITHOUT_RUN_ID = "the vouch says only the number"
    LEASE_WITHOUT_RUN_ID = "the lease says only the nonce"
    RUN_ID_ASKED_BEFORE = "the run id is asked on another connection than K and the vouch"
    PRIMARY_AGAIN = "the run id alone, also of a server that becomes the primary once more"
    VOUCH_BEFORE_K = "a fill writes the vouch, then K, in two commands"
    K_BEFORE_VOUCH = "a fill writes K, then the vouch, in two commands"
    OLD_COUNT_AFTER_FORGET = "a count that forgot takes a new lease for its old number"
    NO_OUTBOX = "a change writes no outbox row"
    DUE_AFTER_DEL = "the due rows are read after the invalidation"
    UP_TO_LAST_ID = "rows are settled by 'id <= the last one seen'"
    SETTLE_JUDGED_LATE = "whether a row had settle is judged at the end, not when it was seen"
    SETTLE_JUDGED_WHEN_DUE = "the same, but a row goes only if it is due by then"
    NO_SETTLE_PASS = "rows go after their first invalidation"
    NO_OP_KEEPS_CACHE = "a change that changes no row does not invalidate"
    COLLAPSE_KEEPS_OLDEST = "of undelivered rows the one with the least id stays, as it is"
    COLLAPSE_KEEPS_NEWEST = "the one with the greatest id stays, as it is"
    STRONG_READS_FIRST = "--strong reads K before it asks the outbox"
    STRONG_POLLS = "--strong polls K when another is filling, and asks the outbox no more"
    NONCE_NOT_IN_FILL = "SQLite: the fill does not name its nonce"
    WRITER_WITHOUT_TRIGGER = "SQLite: one writer fires no trigger"
    SLOW_FOREIGN = "assumption: another program writes a number it read more than 15 s before"


class Kind(StrEnum):
    """A program that uses the cache or the table."""

    COUNT = "count"
    STRONG = "count --strong"
    FRESH = "count --fresh"
    CHANGE = "change"
    ALREADY = "already"  # a change that finds nothing to change
    DRAIN = "drain"
    PSQL = "psql"  # commits, with the row of the trigger, and invalidates nothing
    FOREIGN = "foreign"  # GET, COUNT, SETEX
    COLLAPSE = "collapse"  # a process without Redis: one new row for all undelivered ones


class Program(NamedTuple):
    """A program and, for a writer, by how much it changes the count."""

    kind: Kind
    delta: int = 0


COUNT = Program(Kind.COUNT)
STRONG = Program(Kind.STRONG)
FRESH = Program(Kind.FRESH)
DISABLE = Program(Kind.CHANGE, -1)
ENABLE = Program(Kind.CHANGE, +1)
ALREADY = Program(Kind.ALREADY)
DRAIN = Program(Kind.DRAIN)
PSQL_OFF = Program(Kind.PSQL, -1)
PSQL_ON = Program(Kind.PSQL, +1)
FOREIGN = Program(Kind.FOREIGN)
COLLAPSE = Program(Kind.COLLAPSE)


@dataclass(frozen=True)
class Scenario:
    """A small world: what runs in it, and which faults happen there, at any moment.

    Writers commit once, and a collapse happens once; all the others run over and over.
    """

    name: str
    programs: tuple[Program, ...]
    kill: bool = True
    expiry: bool = True  # or eviction: each key by itself
    rewrites: bool = False  # another program stores old numbers, as late as it likes
    wipe: bool = False
    failovers: int = 0
    snapshots: int = 0  # restarts from one
    out_of_memory: bool = False
    wrong: frozenset[Wrong] = frozenset()
    promises: frozenset[Promise] = frozenset(Promise)

    def keeps(self, promise: Promise) -> bool:
        """Tell whether the protocol gives *promise* in this world."""
        # Who reads K without its vouch sees what another program or an old server left there.
        plain = self.rewrites or self.failovers or self.snapshots
        return promise is not Promise.OTHERS or not plain


class Process(NamedTuple):
    """Where a process is, and what it remembers."""

    at: str
    floor: int = 0  # of a change: its commit; of --strong: the commit it must not be older than
    nonce: int = 0
    number: int = 0
    seen: tuple[tuple[int, bool], ...] = ()  # outbox rows: id, had settle
    forgot: bool = False
    home: int = 0  # the run id of the server that gave the lease


class Row(NamedTuple):
    """A row of the outbox; *waits* is the set of foreign processes whose 15 s are not over."""

    id: int
    settle: bool = False
    waits: int = 0


def names(kinds: list[Kind]) -> list[str]:
    """Number the programs of which there are several."""
    return [
        f"{kind} {kinds[: me + 1].count(kind)}" if kinds.count(kind) > 1 else str(kind)
        for me, kind in enumerate(kinds)
    ]


START = 2  # the count before any change
DONE = Process("done")

# --- PostgreSQL and Redis -------------------------------------------------------------------


class Keys(NamedTuple):
    """What a server stores of ours: K; number and run id of the vouch; nonce and run id of the lease."""

    key: int | None = None
    vouch: tuple[int, int] | None = None
    lease: tuple[int, int] | None = None


NO_KEYS = Keys()


class State(NamedTuple):
    """The database, Redis and all processes. Sets of processes are bit masks."""

    processes: tuple[Process, ...]
    history: tuple[int, ...] = (START,)  # every count ever committed; the last one is now
    outbox: tuple[Row, ...] = ()
    acked: int = 0  # the newest change that a user was told about, as an index of history
    keys: Keys = NO_KEYS
    home: int = 1  # the run id of the server that answers
    copy: Keys = NO_KEYS  # of the replica, or in the snapshot
    failovers: int = 0
    snapshots: int = 0
    counter: int = 0  # COUNTER_AS_NONCE alone
    full: bool = False  # Redis is out of memory
    broken: str = ""  # a promise


Step = tuple[str, State]
Steps = Iterator[Step]


class RedisProtocol:
    """The protocol with PostgreSQL and Redis."""

    # COUNTER_AS_NONCE alone: how far INCR may count before Redis is wiped.
    MOST_TOKENS = 3

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.wrong = scenario.wrong
        self.programs = scenario.programs
        kinds = [program.kind for program in self.programs]
        self.names = names(kinds)
        self.foreign = [me for me, kind in enumerate(kinds) if kind is Kind.FOREIGN]
        self.changes = [me for me, kind in enumerate(kinds) if kind is Kind.CHANGE]
        self.retrying = [me for me, kind in enumerate(kinds) if kind in (Kind.CHANGE, Kind.ALREADY)]
        self.ours = [me for me, kind in enumerate(kinds) if kind not in (Kind.PSQL, Kind.FOREIGN)]
        late = Wrong.LEASE_AFTER_COUNT in self.wrong
        self.after_miss = "snapshot" if late else "lease"
        self.after_lease = "watch" if late else "snapshot"
        self.after_snapshot = "lease" if late else "watch"
        first_step = {
            Kind.COUNT: "read",
            Kind.STRONG: "read" if Wrong.STRONG_READS_FIRST in self.wrong else "owed",
            Kind.FRESH: self.after_miss,
            Kind.CHANGE: "commit",
            Kind.ALREADY: "already",
            Kind.DRAIN: "due",
            Kind.PSQL: "psql",
            Kind.FOREIGN: "get",
            Kind.COLLAPSE: "collapse",
        }
        self.homes = [Process(first_step[kind]) for kind in kinds]
        self.do: dict[str, Callable[[State, int, Process], Steps]] = {
            "read": self.read,
            "look": self.look,
            "owed": self.owed,
            "lease": self.take_lease,
            "poll": self.poll,
            "snapshot": self.snapshot,
            "watch": self.watch,
            "fill": self.fill,
            "fill the rest": self.fill_the_rest,
            "forget": self.forget,
            "commit": self.commit,
            "already": self.already,
            "psql": self.psql,
            "due": self.due,
            "del": self.delete,
            "del lease": self.delete_lease,
            "settle": self.settle,
            "get": self.get,
            "collapse": self.collapse,
            "setex": self.setex,
        }

    def initial(self) -> State:
        """Nobody has begun, Redis is empty."""
        return State(processes=tuple(self.homes))

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Give the next step of each process, and each fault."""
        for me, process in enumerate(state.processes):
            if process.at != "done":
                name = self.names[me]
                for label, successor in self.do[process.at](state, me, process):
                    yield f"{name}: {label}", successor
        yield from self.faults(state)

    # A count.

    def read(self, s: State, me: int, p: Process) -> Steps:
        """MGET K vouch and, on the same connection, the run id."""
        if Wrong.RUN_ID_ASKED_BEFORE in self.wrong:
            yield f"run id {s.home}", self.go(s, me, p._replace(at="look", home=s.home))
        else:
            yield from self.look(s, me, p._replace(home=s.home))

    def look(self, s: State, me: int, p: Process) -> Steps:
        """K is believed if the vouch says the same, and names this server."""
        strong = self.programs[me].kind is Kind.STRONG
        number = self.believed(s, p.home)
        if number is None:
            yield "read, a miss", self.go(s, me, Process(self.after_miss))
        elif strong and Wrong.STRONG_READS_FIRST in self.wrong:
            floor = len(s.history) - 1
            yield "read", self.go(s, me, Process("owed", floor=floor, number=number))
        else:
            yield "read, a hit", self.answer(s, me, number, p.floor if strong else s.acked)

    def owed(self, s: State, me: int, p: Process) -> Steps:
        """EXISTS(outbox row not settled), before the MGET; if so, the cache is not used."""
        waiting = any(not row.settle for row in s.outbox)
        if Wrong.STRONG_READS_FIRST in self.wrong and not waiting:
            yield "owed? no: a hit", self.answer(s, me, p.number, p.floor)
            return
        floor = len(s.history) - 1
        if waiting:
            keep = floor if Wrong.STRONG_POLLS in self.wrong else 0
            yield "owed? yes", self.go(s, me, Process(self.after_miss, floor=keep))
        else:
            yield "owed? no", self.go(s, me, Process("read", floor=floor))

    def take_lease(self, s: State, me: int, p: Process) -> Steps:
        """SET lease nonce NX. Without it, the answer comes from the database and fills nothing."""
        if Wrong.COUNTER_AS_NONCE in self.wrong:
            if s.counter == self.MOST_TOKENS:
                return
            s = s._replace(counter=s.counter + 1)
            nonce = s.counter
        else:
            nonce = me + 1
        if s.keys.lease or s.full:
            if Wrong.STRONG_POLLS in self.wrong and self.programs[me].kind is Kind.STRONG:
                yield "lease, not got", self.go(s, me, Process("poll", floor=p.floor))
            else:
                yield "lease, not got; snapshot", self.rest(s, me)
        else:
            again = p.forgot and Wrong.OLD_COUNT_AFTER_FORGET in self.wrong
            at = "watch" if again else self.after_lease
            taken = Process(at, nonce=nonce, number=p.number, forgot=p.forgot, home=s.home)
            keys = s.keys._replace(lease=(nonce, s.home))
            yield "lease", self.go(s, me, taken, keys=keys)

    def poll(self, s: State, me: int, p: Process) -> Steps:
        """Look for what the other one filled (STRONG_POLLS alone, see the top of the file)."""
        number = self.believed(s, s.home)
        if number is not None:
            yield "poll, a hit", self.answer(s, me, number, p.floor)
        yield "poll in vain; snapshot", self.rest(s, me)

    def snapshot(self, s: State, me: int, p: Process) -> Steps:
        """COUNT(*) and EXISTS(due row), one statement. Owed: forget, then a new lease and COUNT."""
        number = s.history[-1]
        if not p.forgot and any(self.is_due(row) for row in s.outbox):
            yield "snapshot, owed", self.go(s, me, Process("forget", number=number, forgot=True))
        else:
            counted = p._replace(at=self.after_snapshot, number=number, forgot=False)
            yield f"snapshot {number}", self.go(s, me, counted)

    def forget(self, s: State, me: int, p: Process) -> Steps:
        """DEL K vouch lease; the rows stay for those that sweep."""
        old = Wrong.OLD_COUNT_AFTER_FORGET in self.wrong
        after = p._replace(at="lease" if old else self.after_miss)
        yield "forget", self.go(self.touch_lease(s), me, after, keys=NO_KEYS)

    def watch(self, s: State, me: int, p: Process) -> Steps:
        """WATCH lease; give up unless GET lease is the nonce, and this its server."""
        ours = s.keys.lease is not None and s.keys.lease[0] == p.nonce
        if Wrong.LEASE_WITHOUT_RUN_ID not in self.wrong:
            ours = s.keys.lease == (p.nonce, p.home) and s.home == p.home
        if ours or Wrong.FILL_WITHOUT_LEASE in self.wrong:
            yield "watch", self.go(s, me, Process("fill", number=p.number, home=p.home))
        else:
            yield "watch, give up", self.rest(s, me)

    def fill(self, s: State, me: int, p: Process) -> Steps:
        """MULTI; SET vouch; SET K; DEL lease; EXEC. Only watchers untouched are here."""
        if s.full:
            yield "fill, out of memory", self.rest(s, me)
            return
        key: int | None = p.number
        vouch: tuple[int, int] | None = (p.number, s.home)
        after = self.homes[me]
        if Wrong.VOUCH_BEFORE_K in self.wrong:
            key, after = s.keys.key, p._replace(at="fill the rest")
        elif Wrong.K_BEFORE_VOUCH in self.wrong:
            vouch, after = s.keys.vouch, p._replace(at="fill the rest")
        keys = Keys(key, vouch)
        yield f"fill {p.number}", self.touch_lease(self.go(s, me, after))._replace(keys=keys)

    def fill_the_rest(self, s: State, me: int, p: Process) -> Steps:
        """The other key, in a command of its own (VOUCH_BEFORE_K and K_BEFORE_VOUCH alone)."""
        if Wrong.VOUCH_BEFORE_K in self.wrong:
            keys = s.keys._replace(key=p.number)
        else:
            keys = s.keys._replace(vouch=(p.number, s.home))
        yield f"fill the rest {p.number}", self.rest(s, me, keys=keys)

    # A change.

    def commit(self, s: State, me: int, _: Process) -> Steps:
        """UPDATE and COMMIT; the trigger writes the outbox row."""
        yield "commit", self.write(s, me, Process("due", floor=len(s.history)))

    def already(self, s: State, me: int, _: Process) -> Steps:
        """UPDATE finds nothing to change: what is committed now is what the user is told."""
        now = len(s.history) - 1
        if Wrong.NO_OP_KEEPS_CACHE in self.wrong:
            yield "nothing to change, exit 0", s._replace(acked=max(s.acked, now))
        else:
            yield "nothing to change", self.go(s, me, Process("due", floor=now))

    def psql(self, s: State, me: int, _: Process) -> Steps:
        """Raw SQL: the trigger writes the outbox row, and the program does not invalidate."""
        yield "commit", self.write(s, me, DONE)

    def write(self, s: State, me: int, process: Process) -> State:
        """Commit a change of the count with its outbox row."""
        rows = s.outbox if Wrong.NO_OUTBOX in self.wrong else sorted([*s.outbox, Row(me)])
        history = (*s.history, s.history[-1] + self.programs[me].delta)
        return self.go(s, me, process, history=history, outbox=tuple(rows))

    # An invalidation, by a change or a drain.

    def due(self, s: State, me: int, p: Process) -> Steps:
        """Ids of the outbox rows due now. None: a change invalidates still, a drain is done."""
        seen = tuple((row.id, row.settle) for row in s.outbox if self.is_due(row))
        if seen or self.programs[me].kind in (Kind.CHANGE, Kind.ALREADY):
            yield "due", self.go(s, me, p._replace(at="del", seen=seen))

    def delete(self, s: State, me: int, p: Process) -> Steps:
        """DEL K vouch lease: passes even when Redis is out of memory."""
        vouch = s.keys.vouch if Wrong.DEL_KEEPS_VOUCH in self.wrong else None
        keys = Keys(None, vouch, s.keys.lease)
        if Wrong.LEASE_DELETED_LAST in self.wrong:
            yield "del", self.go(s, me, p._replace(at="del lease"), keys=keys)
            return
        if Wrong.DEL_KEEPS_LEASE not in self.wrong:
            s, keys = self.touch_lease(s), keys._replace(lease=None)
        yield "del", self.go(s, me, p._replace(at="settle"), keys=keys)

    def delete_lease(self, s: State, me: int, p: Process) -> Steps:
        """DEL lease, in a command of its own (LEASE_DELETED_LAST alone)."""
        yield "del lease", self.touch_lease(self.go(s, me, p._replace(at="settle")))

    def settle(self, s: State, me: int, p: Process) -> Steps:
        """Delete the rows that had settle, the others get it and are due in 15 s. Then exit 0."""
        seen = dict(p.seen)
        if Wrong.DUE_AFTER_DEL in self.wrong:
            seen = {row.id: row.settle for row in s.outbox if self.is_due(row)}
        if Wrong.UP_TO_LAST_ID in self.wrong and seen:
            seen = {row.id: False for row in s.outbox if row.id <= max(seen)} | seen
        if Wrong.SETTLE_JUDGED_LATE in self.wrong:
            seen = {row.id: row.settle for row in s.outbox if row.id in seen}
        if Wrong.SETTLE_JUDGED_WHEN_DUE in self.wrong:
            rows_due = [row for row in s.outbox if self.is_due(row)]
            seen = {row.id: row.settle for row in rows_due if row.id in seen}
        if Wrong.NO_SETTLE_PASS in self.wrong:
            seen = dict.fromkeys(seen, True)
        waits = self.foreign_reads(s)
        rows = []
        for row in s.outbox:
            if row.id not in seen:
                rows.append(row)
            elif not seen[row.id]:
                rows.append(Row(row.id, settle=True, waits=waits))
        outbox = tuple(rows)
        if self.programs[me].kind in (Kind.CHANGE, Kind.ALREADY):
            acked = max(s.acked, p.floor)
            yield "settle, exit 0", self.rest(s, me, outbox=outbox, acked=acked)
            if self.scenario.kill and outbox != s.outbox:
                yield "database away, exit 0", self.rest(s, me, acked=acked)
        else:
            yield "settle", self.rest(s, me, outbox=outbox)

    # A process without Redis.

    def collapse(self, s: State, me: int, _: Process) -> Steps:
        """Put one new row in the place of all undelivered ones, in one statement."""
        undelivered = [row for row in s.outbox if not row.settle]
        if not undelivered:
            return
        kept = Row(me)
        if Wrong.COLLAPSE_KEEPS_OLDEST in self.wrong:
            kept = undelivered[0]
        if Wrong.COLLAPSE_KEEPS_NEWEST in self.wrong:
            kept = undelivered[-1]
        rows = sorted([*(row for row in s.outbox if row.settle), kept])
        yield "collapse", self.go(s, me, DONE, outbox=tuple(rows))

    # Another program.

    def get(self, s: State, me: int, _: Process) -> Steps:
        """GET K missed, now it reads the database."""
        number = s.history[-1]
        yield f"get, count {number}", self.go(s, me, Process("setex", number=number))

    def setex(self, s: State, me: int, p: Process) -> Steps:
        """SETEX K, within 15 s; or it never does."""
        others = ~(1 << me)
        rows = tuple([Row(row.id, row.settle, row.waits & others) for row in s.outbox])
        ended = self.rest(s, me, outbox=rows)
        yield "gives up", ended
        if not s.full:
            yield f"setex {p.number}", ended._replace(keys=s.keys._replace(key=p.number))

    # What may happen at any moment.

    def faults(self, s: State) -> Steps:
        """Give every kill, expiry and loss that may happen now."""
        world = self.scenario
        if world.kill:
            for me in self.ours:
                if s.processes[me] not in (self.homes[me], DONE):
                    yield f"kill {self.names[me]}", self.rest(s, me)
            for me in self.retrying:
                p = s.processes[me]
                if p.at == "settle":
                    again = Process("due", floor=p.floor)
                    yield f"{self.names[me]}: answer lost, again", self.go(s, me, again)
        if world.expiry:
            if s.keys.key is not None:
                yield "K expires", s._replace(keys=s.keys._replace(key=None))
            if s.keys.vouch is not None:
                yield "vouch expires", s._replace(keys=s.keys._replace(vouch=None))
            if s.keys.lease is not None:
                kept = Wrong.WATCH_MISSES_EXPIRY in self.wrong
                gone = s._replace(keys=s.keys._replace(lease=None))
                yield "lease expires", gone if kept else self.touch_lease(s)
        if world.rewrites and not s.full:
            for number in {*s.history} - {s.keys.key}:
                rewritten = s._replace(keys=s.keys._replace(key=number))
                yield f"another program: setex {number}", rewritten
        if world.wipe and (s.keys != NO_KEYS or s.counter):
            yield "Redis wiped", self.touch_lease(s)._replace(keys=NO_KEYS, counter=0)
        if world.out_of_memory and not s.full:
            yield "Redis out of memory", s._replace(full=True)
        more = s.failovers < world.failovers, s.snapshots < world.snapshots
        if any(more) and s.copy != s.keys:
            yield "copied", s._replace(copy=s.keys)
        if more[0]:
            # The former primary follows from now on, and lags as well.
            over = self.another(s, failovers=s.failovers + 1)
            yield "failover", over._replace(keys=s.copy, copy=s.keys)
        if more[1]:
            restarted = self.another(s, snapshots=s.snapshots + 1)
            yield "restart from the snapshot", restarted._replace(keys=s.copy)

    def another(self, s: State, **changes: Any) -> State:
        """Another server answers from now on; no conversation with the former one goes on."""
        for me, process in enumerate(s.processes):
            if process.at in ("fill", "fill the rest"):
                s = self.rest(s, me)
        s = s._replace(**changes)
        again = Wrong.PRIMARY_AGAIN in self.wrong
        return s._replace(home=1 + (s.failovers % 2 if again else s.failovers + s.snapshots))

    # Words of the above.

    def go(self, s: State, me: int, process: Process, **changes: Any) -> State:
        """Put a process elsewhere, and change what else the step changes."""
        processes = (*s.processes[:me], process, *s.processes[me + 1 :])
        return s._replace(processes=processes, **changes)

    def rest(self, s: State, me: int, **changes: Any) -> State:
        """End a process, well or badly. A writer is gone, the others may run again."""
        return self.go(s, me, DONE if me in self.changes else self.homes[me], **changes)

    def answer(self, s: State, me: int, number: int | None, floor: int) -> State:
        """Print the count; it must have been right at some moment since *floor*."""
        right = s.history[floor:]
        if number not in right:
            strong = self.programs[me].kind is Kind.STRONG
            promise = Promise.STRONG if strong else Promise.READ_YOUR_WRITES
            s = self.broken(s, promise, f"{self.names[me]} answered {number}, not of {right}")
        return self.rest(s, me)

    def broken(self, s: State, promise: Promise, what: str) -> State:
        """Keep for the end that a promise is broken, if it is asked for."""
        return s._replace(broken=f"{promise}: {what}") if self.asked(promise) else s

    def touch_lease(self, s: State) -> State:
        """Delete the lease: a process that watches it does not get through EXEC."""
        if s.keys.lease is None:
            return s
        if Wrong.FILL_WITHOUT_LEASE not in self.wrong:
            for me, process in enumerate(s.processes):
                if process.at == "fill":
                    s = self.rest(s, me)
        return s._replace(keys=s.keys._replace(lease=None))

    def believed(self, s: State, home: int) -> int | None:
        """Return K if the vouch says the same, and names the server."""
        key, vouch, _ = s.keys
        if Wrong.VOUCH_NOT_CHECKED in self.wrong:
            return key
        if key is None or vouch is None:
            return None
        if key != vouch[0] and Wrong.VOUCH_IS_ANY not in self.wrong:
            return None
        if home != vouch[1] and Wrong.VOUCH_WITHOUT_RUN_ID not in self.wrong:
            return None
        return key

    def is_due(self, row: Row) -> bool:
        """A new row is due at once, a settle row 15 s later."""
        return not row.waits

    def foreign_reads(self, s: State) -> int:
        """Return the foreign processes that have read the database and not yet written K."""
        if Wrong.SLOW_FOREIGN in self.wrong:
            return 0
        return sum(1 << me for me in self.foreign if s.processes[me].at == "setex")

    # The promises.

    def violation(self, state: State) -> str:
        """Say which promise is broken: by an answer, or by a wrong K that nothing will remove."""
        if state.broken:
            return state.broken
        key = state.keys.key
        if key is None or key == state.history[-1]:
            return ""
        if Wrong.NO_OUTBOX in self.wrong and any(
            state.processes[me] not in (self.homes[me], DONE) for me in self.changes
        ):
            return ""  # without rows only the processes say that something is still to be done
        delivered = all(row.settle for row in state.outbox)
        believed = self.believed(state, state.home) is not None
        if delivered and believed and self.asked(Promise.NOTHING_LOST):
            return f"{Promise.NOTHING_LOST}: K is {key}"
        if not state.outbox and self.asked(Promise.OTHERS):
            return f"{Promise.OTHERS}: K is {key}"
        return ""

    def asked(self, promise: Promise) -> bool:
        """Tell whether this walk looks for a break of *promise*."""
        return promise in self.scenario.promises and self.scenario.keeps(promise)

    def show(self, state: State) -> str:
        """Write the database, Redis and the outbox."""
        rows = ", ".join(
            self.names[row.id] + (" settle" if row.settle else "") for row in state.outbox
        )
        several = self.scenario.failovers or self.scenario.snapshots

        def word(pair: tuple[int, int] | None) -> str:
            if pair is None:
                return "-"
            return f"{pair[0]} of server {pair[1]}" if several else str(pair[0])

        key = "-" if state.keys.key is None else state.keys.key
        server = f"server {state.home}  " if several else ""
        return (
            f"db {state.history[-1]}  {server}K {key}  vouch {word(state.keys.vouch)}"
            f"  lease {word(state.keys.lease)}  outbox [{rows}]"
        )


# --- SQLite ---------------------------------------------------------------------------------


class CacheRow(NamedTuple):
    """The row of ``modelctl_cache``: a lease has a nonce, the count a value."""

    nonce: int | None
    value: int | None = None
    expired: bool = False


class SqliteState(NamedTuple):
    """One file: the table, the cache, and all processes."""

    processes: tuple[Process, ...]
    history: tuple[int, ...] = (START,)
    row: CacheRow | None = None
    broken: str = ""


SqliteSteps = Iterator[tuple[str, SqliteState]]


class SqliteProtocol:
    """The cache in the same file. Every statement is a transaction of its own."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.wrong = scenario.wrong
        self.programs = scenario.programs
        kinds = [program.kind for program in self.programs]
        self.names = names(kinds)
        late = Wrong.LEASE_AFTER_COUNT in self.wrong
        self.after_read = "snapshot" if late else "lease"
        self.after_lease = "fill" if late else "snapshot"
        self.after_snapshot = "lease" if late else "fill"
        first_step = {Kind.COUNT: "read", Kind.FRESH: self.after_read, Kind.CHANGE: "commit"}
        self.homes = [Process(first_step[kind]) for kind in kinds]
        self.do: dict[str, Callable[[SqliteState, int, Process], SqliteSteps]] = {
            "read": self.read,
            "lease": self.take_lease,
            "snapshot": self.snapshot,
            "fill": self.fill,
            "commit": self.commit,
        }

    def initial(self) -> SqliteState:
        """Nobody has begun, nothing is cached."""
        return SqliteState(processes=tuple(self.homes))

    def steps(self, state: SqliteState) -> SqliteSteps:
        """Give the next step of each process, and each fault."""
        for me, process in enumerate(state.processes):
            if process.at != "done":
                for label, successor in self.do[process.at](state, me, process):
                    yield f"{self.names[me]}: {label}", successor
                if self.scenario.kill and process != self.homes[me]:
                    yield f"kill {self.names[me]}", self.go(state, me, self.homes[me])
        if self.scenario.expiry and state.row is not None and not state.row.expired:
            yield "row expires", state._replace(row=state.row._replace(expired=True))

    def read(self, s: SqliteState, me: int, _: Process) -> SqliteSteps:
        """SELECT the row; an expired one is a miss, and so is a lease."""
        if s.row is None or s.row.expired or s.row.value is None:
            yield "read, a miss", self.go(s, me, Process(self.after_read))
        elif s.row.value == s.history[-1]:
            yield "read, a hit", s
        else:
            what = f"{self.names[me]} answered {s.row.value}, not {s.history[-1]}"
            yield "read, a hit", s._replace(broken=f"{Promise.SQLITE}: {what}")

    def take_lease(self, s: SqliteState, me: int, p: Process) -> SqliteSteps:
        """INSERT a lease row, over an expired row or a value (--fresh) if need be."""
        if s.row is None or s.row.expired or s.row.value is not None:
            taken = self.go(s, me, p._replace(at=self.after_lease))
            yield "lease", taken._replace(row=CacheRow(nonce=me + 1))
        else:
            yield "lease, not got; snapshot", self.go(s, me, self.homes[me])

    def snapshot(self, s: SqliteState, me: int, p: Process) -> SqliteSteps:
        """COUNT(*)."""
        number = s.history[-1]
        counted = p._replace(at=self.after_snapshot, number=number)
        yield f"snapshot {number}", self.go(s, me, counted)

    def fill(self, s: SqliteState, me: int, p: Process) -> SqliteSteps:
        """UPDATE ... WHERE nonce = the own one."""
        ended = self.go(s, me, self.homes[me])
        if s.row is not None and (s.row.nonce == me + 1 or Wrong.NONCE_NOT_IN_FILL in self.wrong):
            yield f"fill {p.number}", ended._replace(row=CacheRow(None, p.number))
        else:
            yield "fill, give up", ended

    def commit(self, s: SqliteState, me: int, _: Process) -> SqliteSteps:
        """Change the count; the trigger deletes the row in the same transaction."""
        history = (*s.history, s.history[-1] + self.programs[me].delta)
        fires = Wrong.WRITER_WITHOUT_TRIGGER not in self.wrong
        row = None if fires else s.row
        yield "commit", self.go(s, me, DONE)._replace(history=history, row=row)

    def go(self, s: SqliteState, me: int, process: Process) -> SqliteState:
        """Put a process elsewhere."""
        return s._replace(processes=(*s.processes[:me], process, *s.processes[me + 1 :]))

    def violation(self, state: SqliteState) -> str:
        """Say which answer was wrong."""
        return state.broken

    def show(self, state: SqliteState) -> str:
        """Write the count and the row."""
        row = state.row
        if row is None:
            return f"db {state.history[-1]}  no row"
        what = f"lease {row.nonce}" if row.value is None else f"value {row.value}"
        return f"db {state.history[-1]}  {what}{', expired' if row.expired else ''}"
