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
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from modelctl import Fleet, crash_points
from modelctl.config.config import Config
from modelctl.count.cache import LEASE_SECONDS
from modelctl.errors import DatabaseUnavailableError, StaleCacheError
from tests.servers import Postgres, Redis, RedisGroup

KEY = "db:models:count:active"
TTL = 60
SLACK = 1_000
# So long after a fault a session may notice that it was hit (microseconds).
AFTERMATH = 500_000
READERS, WRITERS, MODELS = 4, 3, 40
READS = ("count", "strong", "fresh")
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
    """At each moment, the state that nobody who begins to read then may fall behind."""

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
        floors = [(name, *promise.at(read.start)) for name, promise in promises.items()]
        if read.what != "count":
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
    """Write what led to a wrong read: the promise, the states, and who did what meanwhile."""
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


# ── The three protocols ───────────────────────────────────────────────────────────────────────────


def slow_fill(dice: random.Random) -> None:
    """Wait between counting and storing, as a slow reader does; the same for both protocols."""
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, 0.1))


class Client(Protocol):
    """What a process uses: the product, or a naive program in its place."""

    reads: ClassVar[tuple[str, ...]]

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Called in the process, before all else; *mortal*: it may die at any step."""

    def count(self, what: str) -> tuple[int, bool]:
        """Return the number and whether it came from the cache."""

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Return the outcome and whether a status changed."""


class Product:
    """modelctl."""

    reads: ClassVar[tuple[str, ...]] = ("count",) * 17 + ("strong",) * 2 + ("fresh",)

    def __init__(self, database: str, redis_url: str, who: str) -> None:
        self.fleet = Fleet(
            Config.load(
                environ={
                    "MODELCTL_CONFIG": os.devnull,
                    "MODELCTL_DATABASE_URL": f"{database}?application_name={who}",
                    "MODELCTL_REDIS_URL": redis_url,
                }
            ),
            actor=who,
        )
        self.fleet.on_warning = lambda _: None

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Make some steps slow, and some the last."""

        def hook(name: str) -> None:
            if name == "after-snapshot":
                slow_fill(dice)
            elif mortal and dice.random() < 0.01:
                os.kill(os.getpid(), signal.SIGKILL)
            elif dice.random() < 0.05:
                time.sleep(dice.uniform(0, 0.03))

        crash_points.hook = hook

    def count(self, what: str) -> tuple[int, bool]:
        """Count."""
        found = self.fleet.count(strong=what == "strong", fresh=what == "fresh")
        return found.active, found.source == "cache"

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Call the method of that name."""
        if what == "recover":
            recovery = self.fleet.recover(cooldown=0)
            return str(recovery.cache), bool(recovery.recovered)
        if what == "record-failure":
            result = self.fleet.record_failure(ids[0], "parse-error")
        elif what == "record-success":
            result = self.fleet.record_success(ids[0])
        else:
            result = (self.fleet.disable if what == "disable" else self.fleet.enable)(*ids)
        return str(result.cache), any(change.changed for change in result.changes)


class _Sql:
    """A connection to PostgreSQL that is made when needed, and again after an error."""

    def __init__(self, database: str, who: str) -> None:
        self._url = f"{database}?application_name={who}"
        self._made: psycopg.Connection | None = None

    def execute(self, sql: str) -> Any:
        """Run one statement in a transaction of its own; return the first field, or the count."""
        try:
            if self._made is None:
                self._made = psycopg.connect(self._url, autocommit=True, connect_timeout=5)
            cursor = self._made.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else None
        except psycopg.Error:
            if self._made is not None:
                self._made.close()
            self._made = None
            raise
        return row[0] if row else cursor.rowcount


class _Redis:
    """A client of whatever a URL of ours names, made when needed, and again after an error."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: Any = None

    @contextlib.contextmanager
    def home(self) -> Iterator[redis.Redis]:
        """Give the server that has K; every error is a RedisError."""
        try:
            if self._made is None:
                self._made = self._client()
            client = self._made
            if isinstance(client, redis.RedisCluster):
                client = client.get_redis_connection(client.get_node_from_key(KEY))  # type: ignore[no-untyped-call]
            yield client
        except (redis.RedisError, RedisClusterException, OSError) as exc:
            self._made = None
            raise redis.RedisError(str(exc)) from exc

    def _client(self) -> Any:
        how: dict[str, Any] = {
            "decode_responses": True,
            "socket_timeout": 0.5,
            "socket_connect_timeout": 0.5,
            "retry": Retry(NoBackoff(), 0),
        }
        scheme, _, rest = self._url.partition("://")
        if "+" not in scheme:
            return redis.Redis.from_url(self._url, **how)
        addresses = [(h, int(p)) for h, _, p in (a.partition(":") for a in _hosts(rest))]
        if scheme == "redis+cluster":
            nodes = [redis.cluster.ClusterNode(*a) for a in addresses]  # type: ignore[no-untyped-call]
            return redis.RedisCluster(startup_nodes=nodes, **how)
        timeouts = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
        watchers = redis.Sentinel(addresses, sentinel_kwargs=timeouts)  # type: ignore[no-untyped-call]
        return watchers.master_for("mymaster", **how)  # type: ignore[no-untyped-call]


def _hosts(rest: str) -> list[str]:
    return rest.partition("/")[0].split(",")


COUNT = "SELECT count(*) FROM models WHERE active"


class Naive:
    """GET; on a miss COUNT(*) and SETEX. A change commits and then deletes the key."""

    reads: ClassVar[tuple[str, ...]] = ("count",)

    def __init__(self, database: str, redis_url: str, who: str) -> None:
        self._database, self._redis_url, self._who = database, redis_url, who

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Connect."""
        self._dice = dice
        self._sql = _Sql(self._database, self._who)
        self._redis = _Redis(self._redis_url)

    def count(self, what: str) -> tuple[int, bool]:
        """Read through the cache."""
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            if (value := client.get(KEY)) is not None:
                return int(str(value)), True
        number = self._query(COUNT)
        slow_fill(self._dice)
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            client.set(KEY, number, ex=TTL)
        return number, False

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Switch, then delete."""
        active, names = what == "enable", ", ".join(f"'{name}'" for name in ids)
        rows = self._query(
            f"UPDATE models SET active = {active} WHERE id IN ({names}) AND active <> {active}"
        )
        try:
            self._invalidate()
        except redis.RedisError:
            return "queued", rows > 0
        return "invalidated", rows > 0

    def _invalidate(self) -> None:
        with self._redis.home() as client:
            client.delete(KEY)

    def _query(self, sql: str) -> int:
        try:
            return int(self._sql.execute(sql))
        except psycopg.Error as exc:
            raise DatabaseUnavailableError(str(exc)) from exc


class Tombstone(Naive):
    """The first protocol: what was stored before an invalidation is denied for 75 s.

    K is believed if the tombstone is absent or says the same. What denies is lost together with
    everything else, and that is how it is wrong.
    """

    _LEASE = f"{{{KEY}}}:lease"
    _TOMB = f"{{{KEY}}}:tomb"

    def count(self, what: str) -> tuple[int, bool]:
        """Read through the cache; fill under a lease that was taken before the count."""
        nonce = os.urandom(16).hex()
        got = False
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            value, tomb = client.mget(KEY, self._TOMB)
            if value is not None and tomb in (None, value):
                return int(value), True
            got = bool(client.set(self._LEASE, nonce, nx=True, px=10_000))
        number = self._query(COUNT)
        slow_fill(self._dice)
        if got:
            with contextlib.suppress(redis.RedisError):
                self._fill(nonce, number)
        return number, False

    def _fill(self, nonce: str, number: int) -> None:
        with self._redis.home() as client, client.pipeline(transaction=True) as pipe:
            pipe.watch(self._LEASE)  # type: ignore[no-untyped-call]
            if pipe.get(self._LEASE) == nonce:
                pipe.multi()
                pipe.set(KEY, number, px=TTL * 1000)
                pipe.set(self._TOMB, number, xx=True, keepttl=True)
                pipe.delete(self._LEASE)
                pipe.execute()

    def _invalidate(self) -> None:
        with self._redis.home() as client:
            client.delete(KEY, self._LEASE)
            client.set(self._TOMB, "", px=TTL * 1000 + 15_000)


# ── The processes ───────────────────────────────────────────────────────────────────────────────


class Journal:
    """Where a process writes; every line is on its way before the next call begins."""

    def __init__(self, file: Path, who: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._who = who

    def write(self, what: str, start: int, outcome: str, **more: Any) -> None:
        """Write an event that ends now."""
        event = Event(self._who, what, start, clock(), outcome, **more)
        os.write(self._file, json.dumps(asdict(event)).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Work:
    """What a process is given."""

    who: str
    client: Client
    database: str
    redis_url: str
    dice: random.Random
    journal: Journal
    over: mmap.mmap
    boss: int

    def going(self) -> bool:
        """Whether to go on: nobody says stop, and somebody waits."""
        return not self.over[0] and os.getppid() == self.boss


def reader(work: Work) -> None:
    """Count, over and over; now and then strongly or afresh."""
    work.client.prepare(work.dice, mortal=False)
    while work.going():
        what = work.dice.choice(work.client.reads)
        start = clock()
        try:
            number, hit = work.client.count(what)
        except DatabaseUnavailableError as exc:
            work.journal.write(what, start, "unavailable", detail=str(exc))
        else:
            work.journal.write(what, start, "cache" if hit else "database", number=number)
        time.sleep(work.dice.uniform(0, 0.01))


def _models_of(who: str) -> list[str]:
    return [f"{who}/{number}" for number in range(MODELS)]


def writer(work: Work) -> None:
    """Change some of its own models, in all the ways there are."""
    dice, own = work.dice, _models_of(work.who)
    work.client.prepare(dice, mortal=work.who == "writer-0")
    naive, last = isinstance(work.client, Naive), ("enable", own[:1])
    while work.going():
        # At times no writer does anything: then only drain delivers what psql changed, and what
        # was lost earlier is not made good by the next change at once.
        while clock() % 5_000_000 > 3_500_000 and work.going():
            time.sleep(0.02)
        way = dice.random()
        if way < 0.8 or naive:
            # Many at once: a number that comes back soon would hide a stale read.
            last = (dice.choice(["disable", "enable"]), dice.sample(own, dice.randint(1, 12)))
            calls = [last]
        elif way < 0.88:
            calls = [last]
        elif way < 0.96:
            one = dice.sample(own, 1)
            calls = [("record-failure", one)] * 5 + [("record-success", one)] * dice.randint(0, 1)
        else:
            calls = [("recover", own[:0])]
        for what, ids in calls:
            start = clock()
            try:
                outcome, changed = work.client.change(what, ids)
            except (DatabaseUnavailableError, StaleCacheError) as exc:
                work.journal.write(what, start, "unavailable", detail=str(exc))
            else:
                work.journal.write(what, start, outcome, changed=changed)
        time.sleep(dice.choice((0.0, 0.02, 0.1, 0.2)) * dice.uniform(0.5, 1.5))


def mortal(work: Work) -> None:
    """Be a writer that dies between two steps and is started again."""
    while work.going():
        start, seed, me = clock(), work.dice.random(), os.getpid()
        if (child := os.fork()) == 0:
            try:
                _run(writer, replace(work, dice=random.Random(seed), boss=me))
            finally:
                os._exit(0)  # what went wrong is in the journal
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            work.journal.write("killed", start, "killed")


def filler(work: Work) -> None:
    """Be another program that keeps the same key: slow, and at times with a number of long ago."""
    sql, cache, known = _Sql(work.database, work.who), _Redis(work.redis_url), deque[int]([], 100)
    while work.going():
        start, dice = clock(), work.dice
        try:
            with cache.home() as client:
                missed = client.get(KEY) is None
            if missed:
                known.append(sql.execute(COUNT))
                time.sleep(dice.choice((0.0, 0.1, 0.5, 3.0)) * dice.random())
            if missed or (known and dice.random() < 0.2):
                number = known[-1] if missed else dice.choice(known)
                with cache.home() as client:
                    client.set(KEY, number, ex=TTL)
                work.journal.write("fill", start, "stored", number=number)
        except (redis.RedisError, psycopg.Error):
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 0.1))


def person(work: Work) -> None:
    """Be somebody with psql."""
    sql, own = _Sql(work.database, work.who), _models_of(work.who)
    while work.going():
        active = work.dice.choice(["true", "false"])
        names = ", ".join(f"'{name}'" for name in work.dice.sample(own, work.dice.randint(1, 12)))
        start = clock()
        try:
            sql.execute(f"UPDATE models SET active = {active} WHERE id IN ({names})")
        except psycopg.Error as exc:
            work.journal.write("psql", start, "unavailable", detail=str(exc))
        else:
            work.journal.write("psql", start, "committed")
        time.sleep(work.dice.uniform(0.05, 0.6))


def drainer(work: Work) -> None:
    """Deliver what is queued, every second or so."""
    assert isinstance(work.client, Product)
    work.client.prepare(work.dice, mortal=False)
    while work.going():
        start = clock()
        try:
            outcome = str(work.client.fleet.drain().cache)
        except (DatabaseUnavailableError, StaleCacheError) as exc:
            work.journal.write("drain", start, "unavailable", detail=str(exc))
        else:
            work.journal.write("drain", start, outcome)
        time.sleep(work.dice.uniform(0.5, 1.2))


def _run(role: Callable[[Work], None], work: Work) -> None:
    """Run a process; whatever else it raises goes into the journal."""
    start = clock()
    try:
        role(work)
    except Exception:
        work.journal.write(role.__name__, start, "crash", detail=traceback.format_exc())
        raise SystemExit(1) from None


# ── The faults ──────────────────────────────────────────────────────────────────────────────────


class World:
    """A PostgreSQL and a Redis for histories alone, and what can happen to them."""

    def __init__(self, postgres: Postgres, redis_server: Redis) -> None:
        self.postgres, self.redis = postgres, redis_server
        self.redis_url = redis_server.url()
        self.readers: list[int] = []  # their process ids
        self.stop_seconds = LEASE_SECONDS + 1

    @property
    def faults(self) -> dict[str, Callable[[Any, float], None]]:
        """Each fault by its name: a server first, if the fault is one of it."""
        return FAULTS

    @property
    def primary(self) -> Redis:
        """The server that has K."""
        return self.redis

    def recover(self) -> None:
        """Let every server run, and work."""
        self.postgres.recover()
        self.redis.recover()
        self._usual_memory()

    def empty(self) -> None:
        """Forget every key."""
        self.redis.ask("FLUSHALL")

    def stop_readers(self, _: float) -> None:
        """SIGSTOP some of the readers for longer than a lease lasts, and SIGCONT."""
        stopped = self.readers[::2]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.stop_seconds)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    def flush_redis(self, seconds: float) -> None:
        """FLUSHALL, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.redis.ask("FLUSHALL")
            time.sleep(0.1)

    def restore_redis(self, seconds: float) -> None:
        """SAVE; some time later SIGKILL, and it comes back with what it saved."""
        self.redis.ask("SAVE")
        time.sleep(seconds)
        self.redis.kill()
        self.redis.start()
        (self.redis.folder / "dump.rdb").unlink()

    def fill_redis(self, seconds: float) -> None:
        """Let another program fill the memory of a Redis that then evicts any key."""
        with self.redis.client() as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", used + 2_000_000)
            until, number = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                pipe = client.pipeline(transaction=False)
                for _ in range(100):
                    number += 1
                    pipe.set(f"other:{number}", "x" * 2000, px=5000)
                pipe.execute(raise_on_error=False)
                time.sleep(0.005)
        self._usual_memory()

    def _usual_memory(self) -> None:
        self.redis.ask("CONFIG", "SET", "maxmemory", 0)
        self.redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

    def pause_redis(self, seconds: float) -> None:
        """SIGSTOP and SIGCONT."""
        self.redis.pause()
        time.sleep(seconds)
        self.redis.resume()

    def restart_redis(self, seconds: float) -> None:
        """SIGKILL; it comes back without a key."""
        self.redis.kill()
        time.sleep(seconds)
        self.redis.start()

    def exhaust_redis(self, seconds: float) -> None:
        """Let it refuse every write that needs memory."""
        self.redis.ask("CONFIG", "SET", "maxmemory", 1)
        time.sleep(seconds)
        self.redis.ask("CONFIG", "SET", "maxmemory", 0)

    def drop_redis_connections(self, seconds: float) -> None:
        """Close all connections, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.redis.ask("CLIENT", "KILL", "TYPE", "normal")
            time.sleep(0.1)

    def terminate_backends(self, seconds: float) -> None:
        """End all sessions, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            time.sleep(0.2)

    def restart_postgres(self, seconds: float) -> None:
        """Stop fast, and start."""
        self.postgres.stop()
        time.sleep(seconds / 2)
        self.postgres.start()

    def crash_postgres(self, seconds: float) -> None:
        """Stop at once; it comes back after a recovery."""
        self.postgres.kill()
        time.sleep(seconds / 2)
        self.postgres.start()


FAULTS: dict[str, Callable[[Any, float], None]] = {
    "Redis paused": World.pause_redis,
    "Redis restarted empty": World.restart_redis,
    "Redis restarted from a snapshot": World.restore_redis,
    "Redis flushed": World.flush_redis,
    "Redis full and evicting": World.fill_redis,
    "Redis out of memory": World.exhaust_redis,
    "Redis connections dropped": World.drop_redis_connections,
    "readers stopped": World.stop_readers,
    "PostgreSQL backends terminated": World.terminate_backends,
    "PostgreSQL restarted": World.restart_postgres,
    "PostgreSQL crashed": World.crash_postgres,
}


class Group(World):
    """A PostgreSQL, and a primary of Redis with a replica: watched by Sentinels, or in a cluster."""

    def __init__(self, postgres: Postgres, group: RedisGroup) -> None:
        super().__init__(postgres, group.nodes[0])
        self.group, self.redis_url = group, group.url
        for sentinel in group.sentinels:
            # On a busy machine a second is too short: they would name another primary while the
            # old one answers, and of two primaries the protocol promises nothing.
            sentinel.ask("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 3000)

    @property
    def faults(self) -> dict[str, Callable[[Any, float], None]]:
        """The database works all the time, so that changes are acknowledged."""
        return {
            "Redis failed over": Group.fail_over,
            "Redis flushed": Group.flush_redis,
            "readers stopped": World.stop_readers,
        }

    @property
    def primary(self) -> Redis:
        """The server that has K, once there is one."""
        self._until(lambda: self._primary() is not None)
        found = self._primary()
        assert found is not None
        return found

    def _primary(self) -> Redis | None:
        if self.group.sentinels:
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            port = int(self.group.sentinels[0].ask(*question)[1])
            nodes = [node for node in self.group.nodes if node.port == port]
        else:
            nodes = self.group.nodes
        for node in nodes:
            # The others of a cluster say where K is.
            with contextlib.suppress(redis.RedisError):
                if node.running and node.ask("ROLE")[0] == "master":
                    node.ask("GET", KEY)
                    return node
        return None

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise VoidError("no primary, or no replica follows it")
            time.sleep(0.05)

    def _is_followed(self) -> bool:
        primary = self._primary()
        return primary is not None and self._replica_of(primary) is not None

    def _replica_of(self, primary: Redis) -> Redis | None:
        for node in self.group.nodes:
            role = node.ask("ROLE")
            if role[0] == "slave" and (role[2], role[3]) == (primary.port, "connected"):
                return node
        return None

    def fail_over(self, seconds: float) -> None:
        """Cut the replica off, and kill the primary after some more changes."""
        self._until(self._is_followed)
        home = self.primary
        heir = self._replica_of(home)
        assert heir is not None
        heir.pause()
        home.ask("CLIENT", "KILL", "TYPE", "replica")
        # Not for as long as the others would take to think that it is gone.
        time.sleep(min(seconds, 0.7))
        home.kill()
        heir.resume()
        self._until(lambda: self._primary() is heir)
        home.start()
        if self.group.sentinels:
            # A Sentinel would see to it, later.
            home.ask("REPLICAOF", "127.0.0.1", heir.port)
        # On a busy machine the Sentinels may have named the other one meanwhile.
        self._until(self._is_followed)

    def flush_redis(self, seconds: float) -> None:
        """FLUSHALL, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.primary.ask("FLUSHALL")
            time.sleep(0.1)

    def recover(self) -> None:
        """Let every server run."""
        self.postgres.recover()
        for node in self.group.nodes:
            node.recover()

    def empty(self) -> None:
        """Forget every key."""
        self.primary.ask("FLUSHALL")


_AUDIT = """
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY,
    -- A transaction of its own for each statement, or the judge would see its steps.
    xid xid8 DEFAULT pg_current_xact_id() UNIQUE,
    who text DEFAULT current_setting('application_name'),
    locked_at timestamptz DEFAULT clock_timestamp(),
    active bigint
);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    -- A statement of its own: it sees all that was committed before the lock was ours.
    INSERT INTO audit (active) SELECT count(*) FROM models WHERE active;
    RETURN NULL;
END $$;
-- After modelctl's triggers, which fire in the order of their names.
CREATE TRIGGER zz_audit AFTER INSERT OR UPDATE OR DELETE ON models
FOR EACH STATEMENT EXECUTE FUNCTION audit();
"""


def run(
    world: World,
    protocol: type[Product | Naive],
    seconds: float,
    folder: Path,
    *,
    longest_fault: float,
    each_fault: int = 1,
    seed: int | None = None,
) -> History:
    """Let everybody work for so long, with one fault after the other, and collect what they wrote.

    *folder* keeps the journals. Faults last up to *longest_fault*, and however slow the machine
    is, it goes on until each came *each_fault* times.

    Raises:
        VoidError: somebody set the clock, or a process did not end.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    world.recover()
    world.empty()
    name = world.postgres.create_database()
    database, redis_url = world.postgres.url(name), world.redis_url
    clerk = Product(database, redis_url, "clerk").fleet
    with clerk:
        clerk.upgrade()
    roles: dict[str, Callable[[Work], None]] = {f"reader-{n}": reader for n in range(READERS)}
    roles |= {f"writer-{n}": writer for n in range(WRITERS)}
    roles |= {"person": person, "filler": filler}
    if protocol is Product:
        roles |= {"writer-0": mortal, "drainer": drainer}
    writing = [who for who in roles if who.startswith("writer") or who == "person"]
    world.postgres.execute(
        "INSERT INTO models (id) VALUES"
        + ", ".join(f"('{model}')" for who in writing for model in _models_of(who)),
        name,
    )
    world.postgres.execute(_AUDIT, name)
    world.postgres.execute("TRUNCATE modelctl.modelctl_outbox", name)

    initial = int(world.postgres.execute(COUNT, name)[0][0])
    setting, began = clock_setting(), time.monotonic()
    over = mmap.mmap(-1, 1)  # shared with the processes
    # Made before the fork and used after it, as a server with workers does.
    clients = {who: protocol(database, redis_url, who) for who in roles}
    fork = multiprocessing.get_context("fork")
    processes = []
    journal = Journal(folder / "nemesis", "nemesis")
    try:
        for who, role in roles.items():
            work = Work(
                who,
                clients[who],
                database,
                redis_url,
                random.Random(f"{seed} {who}"),
                Journal(folder / who, who),
                over,
                os.getpid(),
            )
            processes.append(fork.Process(target=_run, args=(role, work), name=who))
            processes[-1].start()
            if role is reader:
                world.readers.append(processes[-1].pid or 0)
        dice, coming, left = random.Random(seed), list[str](), each_fault * len(world.faults)
        while left > 0 or time.monotonic() < began + seconds:
            time.sleep(dice.uniform(0.3, 1) * min(1.0, longest_fault))
            coming = coming or dice.sample(list(world.faults), len(world.faults))
            fault, start = coming.pop(), clock()
            world.faults[fault](world, dice.uniform(0.2, longest_fault))
            journal.write(fault, start, "over")
            left -= 1
        over[0] = 1
        seconds = time.monotonic() - began
        for process in processes:
            process.join(30)
            if process.is_alive():
                raise VoidError(f"{process.name} does not end")
    finally:
        for process in processes:
            process.kill()
            process.join()
        world.readers.clear()
        world.recover()
    if abs(clock_setting() - setting) > SLACK:
        raise VoidError("somebody set the clock")
    with clerk:
        leftovers = list(_leftovers(world, clerk, name)) if protocol is Product else []
    return History(
        f"{protocol.__name__.lower()} (seed {seed})",
        seconds,
        (State(initial, 0, 0), *_states(world.postgres, name)),
        tuple(_events(folder)),
        tuple(leftovers),
    )


def _states(postgres: Postgres, database: str) -> Iterator[State]:
    rows = postgres.execute(
        "SELECT xid::text, who, active, (extract(epoch FROM locked_at) * 1000000)::bigint,"
        " (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint"
        " FROM audit ORDER BY id",
        database,
    )
    ended = clock()
    for number, (_, who, active, _, commit) in enumerate(rows):
        following = rows[number + 1][3] if number + 1 < len(rows) else ended
        yield State(active, commit, following, who)


def _events(folder: Path) -> Iterator[Event]:
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            yield Event(**json.loads(line))


def _leftovers(world: World, fleet: Fleet, database: str) -> Iterator[str]:
    """Deliver everything, and say what is still wrong then."""
    truth = int(world.postgres.execute(COUNT, database)[0][0])
    fleet.drain()
    if queued := fleet.cache_report().queued:
        yield f"{queued} invalidations are queued after a drain"
    # Another program stores an old number, as late as it may; that is what settling is for.
    world.primary.ask("SETEX", KEY, TTL, truth + 1)
    world.postgres.execute("UPDATE modelctl.modelctl_outbox SET due = clock_timestamp()", database)
    fleet.drain()
    if waiting := world.postgres.execute("SELECT count(*) FROM modelctl.modelctl_outbox", database)[
        0
    ][0]:
        yield f"{waiting} invalidations wait after they settled"
    if (raw := world.primary.ask("GET", KEY)) not in (None, str(truth)):
        yield f"the raw key says {raw}, the database {truth}"
    for source in ("database", "cache"):
        count = fleet.count()
        if (count.active, count.source) != (truth, source):
            yield f"the count says {count}, the database {truth}"
    if (raw := world.primary.ask("GET", KEY)) != str(truth):
        yield f"filled, the raw key says {raw}, the database {truth}"
