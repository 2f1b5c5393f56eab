"""A remembered count is not older than max_age, and never older than a change of this process."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from modelctl import Fleet, Selection, UsageError, crash_points
from modelctl.count.results import Count
from modelctl.memory import memory
from tests import ROOT
from tests.backup.exports import export_of, held
from tests.fleets import alter, opened, put_off, seed, sql, trip
from tests.servers import Redis
from tests.waiting import until

IDS = [f"m{number}" for number in range(8)]
LONG = 50.0


class Clock:
    """The clock of the memory, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time (seconds)."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the memory's time stand still until the test moves it."""
    clock = Clock()
    monkeypatch.setattr(memory, "monotonic", clock)
    return clock


@pytest.fixture
def full(fleet: Fleet) -> Fleet:
    """Give a fleet of eight models, on SQLite and on PostgreSQL without Redis."""
    seed(fleet, IDS)
    return fleet


@pytest.fixture
def cached(pg_cleared: str, redis_url: str, redis_server: Redis) -> Iterator[Fleet]:
    """Give a fleet of eight models on PostgreSQL and a Redis that does not tell of changes."""
    words = ("on", ">s3cret", "~*", "+@all", "-client|tracking")
    redis_server.ask("ACL", "SETUSER", "deaf", *words)
    url = redis_url.replace("redis://", "redis://deaf:s3cret@")
    with opened(pg_cleared, redis_url=url) as fleet:
        seed(fleet, IDS)
        fleet.count(max_age=0)
        until(lambda: "modelctl-count" not in {thread.name for thread in threading.enumerate()})
        memory.forget()  # the listener may have ended before that call
        yield fleet


def change_elsewhere(url: str, *ids: str) -> None:
    """Switch models off as a process that invalidates nothing."""
    alter(url, *ids, active=False)


# ── How old an answer may be ──


def test_an_answer_is_remembered_for_max_age(pg: Fleet, pg_cleared: str, clock: Clock) -> None:
    """A change of another program shows after max_age, for each call's own max_age."""
    seed(pg, IDS)
    assert pg.count(max_age=1.0).source == "database"
    change_elsewhere(pg_cleared, "m0")
    clock.now += 0.5
    assert pg.count(max_age=1.0) == Count(8, "memory", 0.5, pg.config.cache.ttl - 0.5)
    assert pg.count(max_age=0.5) == Count(7, "database", 0.0, None)
    clock.now += 0.75
    assert pg.count(max_age=1).age_seconds == 0.75
    assert pg.count(max_age=0).source == "database"
    clock.now += 1.0
    assert pg.count(max_age=1.0).source == "database"


def test_the_age_is_that_of_the_number(cached: Fleet, clock: Clock) -> None:
    """The time that the number was in Redis counts; it is not remembered beyond its end there."""
    cached.count()
    hit = cached.count(max_age=LONG)
    assert hit.source == "cache"
    assert hit.expires_in_seconds
    clock.now += 2.0
    remembered = cached.count(max_age=LONG)
    assert remembered == Count(8, "memory", hit.age_seconds + 2.0, hit.expires_in_seconds - 2.0)
    clock.now += hit.expires_in_seconds
    assert cached.count(max_age=3600).source == "cache"


def test_no_number_is_remembered_longer_than_it_may_be_cached(
    pg: Fleet, pg_cleared: str, clock: Clock
) -> None:
    """cache.ttl is the end, whatever max_age says, where no Redis keeps the number."""
    seed(pg, IDS)
    pg.count(max_age=3600)
    clock.now += pg.config.cache.ttl - 1
    assert pg.count(max_age=3600).expires_in_seconds == 1
    clock.now += 1
    assert pg.count(max_age=3600).source == "database"


def test_calls_within_a_millisecond_share_an_answer(full: Fleet, clock: Clock) -> None:
    """The age in an answer is right to a millisecond."""
    full.count(max_age=1.0)
    first = full.count(max_age=1.0)
    clock.now += 0.0009
    assert full.count(max_age=1.0) is first
    clock.now += 0.0002
    assert math.isclose(
        full.count(max_age=1.0).age_seconds, first.age_seconds + 0.0011, abs_tol=1e-6
    )


def test_a_plain_count_uses_no_memory(pg: Fleet, pg_cleared: str) -> None:
    """Only a call with max_age is answered from memory."""
    seed(pg, IDS)
    pg.count(max_age=LONG)
    change_elsewhere(pg_cleared, "m0")
    assert pg.count().active == 7
    assert pg.count(fresh=True).active == 7
    assert pg.count(max_age=LONG).active == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_age": -1},
        {"max_age": -0.001},
        {"max_age": math.nan},
        {"max_age": math.inf},
        {"max_age": 1e12},
        {"max_age": True},
        {"max_age": "1"},
        {"max_age": [1.0]},
        {"max_age": 1.0, "fresh": True},
        {"max_age": 1.0, "strong": True},
        {"max_age": 0, "strong": True},
    ],
    ids=str,
)
def test_a_wrong_max_age_is_an_error(full: Fleet, arguments: Any) -> None:
    """It is refused whether or not a number is remembered."""
    for _ in range(2):
        with pytest.raises(UsageError, match="max_age"):
            full.count(**arguments)
        full.count(max_age=LONG)


# ── Changes of this process ──


def _undo(fleet: Fleet) -> object:
    return fleet.undo(fleet.disable("m0", "m1").operation or "")


def _restore(fleet: Fleet) -> object:
    return fleet.restore(export_of(*map(held, IDS)), force=True)


CHANGES: dict[str, Callable[[Fleet], object]] = {
    "disable": lambda fleet: fleet.disable("m0"),
    "disable a selection": lambda fleet: fleet.disable(select=Selection(match="m[1-3]")),
    "enable": lambda fleet: fleet.enable("off"),
    "add": lambda fleet: fleet.add("new"),
    "remove": lambda fleet: fleet.remove("m0"),
    "import": lambda fleet: fleet.import_models(b'{"id": "new"}'),
    "record": lambda fleet: [fleet.record_failure("m0", "parse-error") for _ in range(5)],
    "record_batch": lambda fleet: trip(fleet, "m0", "m1"),
    "recover": lambda fleet: fleet.recover(),
    "undo": _undo,
    "restore": _restore,
    "rename": lambda fleet: fleet.rename("m0", "other"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_this_process_shows_at_once(
    full: Fleet, fleet_url: str, change: Callable[[Fleet], object]
) -> None:
    """Also one by another fleet of the same process."""
    put_off(fleet_url, "off", failed=7200)
    with opened(fleet_url) as other:
        full.count(max_age=LONG)
        change(other)
        active = sql(fleet_url, "SELECT count(*) FROM models WHERE active")
        assert [(full.count(max_age=LONG).active,)] == active


def test_a_drain_and_a_cleared_cache_are_seen(cached: Fleet, pg_cleared: str) -> None:
    """After a drain, a count shows what other programs committed before."""
    for number, deliver in enumerate((cached.drain, cached.clear_cache)):
        cached.count(max_age=LONG)
        sql(pg_cleared, "UPDATE models SET active = false WHERE id = ?", f"m{number}")
        assert cached.count(max_age=LONG).active == 8 - number
        deliver()
        assert cached.count(max_age=LONG).active == 7 - number


def test_recorded_outcomes_keep_the_memory(full: Fleet) -> None:
    """An application records each call; only a change of status forgets."""
    full.count(max_age=LONG)
    full.record_success("m0")
    full.record_failure("m0", "timeout")
    full.record_batch([{"id": "m0", "outcome": "success"}])
    full.disable("m0", dry_run=True)
    assert full.count(max_age=LONG).source == "memory"


@contextmanager
def stopped_at(point: str, work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run *work* in a thread that waits at *point* while the block runs; then give what it returned."""
    arrived, go, returned = threading.Event(), threading.Event(), list[Any]()

    def stop(name: str) -> None:
        if name == point and threading.current_thread() is thread:
            arrived.set()
            go.wait(30)

    thread = threading.Thread(target=lambda: returned.append(work()))
    crash_points.hook = stop
    try:
        thread.start()
        assert arrived.wait(30)
        yield returned
    finally:
        crash_points.hook = None
        go.set()
        thread.join(30)


def _stopped_reader(fleet: Fleet) -> None:
    """A reader has counted and is stopped; a change is acknowledged; then the reader goes on."""
    fleet.clear_cache()
    with stopped_at("after-snapshot", lambda: fleet.count(max_age=LONG)) as returned:
        fleet.disable("m0", "m1")
    assert [count.active for count in returned] == [8]
    assert fleet.count(max_age=LONG).active == 6


def test_a_reader_that_began_before_a_change_remembers_nothing(cached: Fleet) -> None:
    """Its number is older than a change that was acknowledged meanwhile, with Redis."""
    _stopped_reader(cached)


def test_a_reader_of_sqlite_that_began_before_a_change_remembers_nothing(
    sqlite_database: str,
) -> None:
    """The same with the cache in the file."""
    with opened(sqlite_database) as fleet:
        seed(fleet, IDS)
        _stopped_reader(fleet)


def test_a_reader_during_a_change_is_forgotten(cached: Fleet) -> None:
    """A reader that saw the old number while a change was being invalidated keeps it no longer."""
    cached.count()
    with stopped_at("after-due", lambda: cached.disable("m0")):
        assert cached.count(max_age=LONG).source == "cache"
        assert cached.count(max_age=LONG).active == 8
    assert cached.count(max_age=LONG).active == 7


# ── The life of a fleet ──


def test_a_closed_fleet_forgets(pg: Fleet, pg_cleared: str) -> None:
    """It may be used again, and then reads anew."""
    seed(pg, IDS)
    pg.count(max_age=LONG)
    change_elsewhere(pg_cleared, "m0")
    pg.close()
    assert pg.count(max_age=LONG).active == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_begins_without_a_memory(pg: Fleet, pg_cleared: str) -> None:
    """The child of a fork reads anew; the parent keeps what it has."""
    seed(pg, IDS)
    pg.count(max_age=LONG)
    change_elsewhere(pg_cleared, "m0")
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = 0 if pg.count(max_age=LONG).active == 7 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert pg.count(max_age=LONG).active == 8


def test_the_example_of_the_page(full: Fleet) -> None:
    """The example in docs/applications.md shows the number of active models."""
    page = (ROOT / "docs" / "applications.md").read_text()
    section = page[page.index("## A count on every page") :]
    found = re.search(r"```python\n(.+?)```", section, re.DOTALL)
    assert found
    scope: dict[str, Any] = {"fleet": full}
    exec(found[1], scope)  # noqa: S102 - our own page
    assert [scope["heading"]() for _ in range(2)] == ["8 models"] * 2


# ── All interleavings ──


def ask(remembering: memory.Memory, max_age: float) -> Count:
    """Count as a fleet does."""
    return remembering.recall(max_age) or remembering.read()


class Reader:
    """A thread in `Memory.read`, stopped between what it read and what it stores."""

    def __init__(self, world: Interleavings, which: int, max_age: float) -> None:
        self.least = world.least(max_age)
        self.go = threading.Event()
        self.has_read = threading.Event()
        self.answer: Count | None = None
        self.which = which
        self._memory, self._max_age = world.memories[which], max_age
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.answer = ask(self._memory, self._max_age)
        self.has_read.set()  # it was answered from memory


class Interleavings(RuleBasedStateMachine):
    """Two fleets of one process, their cache, changes in steps, readers that stop, and time.

    The number grows with each change, so an answer is too old exactly if it is too small.
    """

    @initialize()
    def begin(self) -> None:
        """Nothing is changed, cached or remembered."""
        self.now = 1000.0
        self.database = 0
        self.cache: int | None = None
        self.acknowledged = 0
        self.committed: list[int] = []  # changes that are not invalidated yet
        self.invalidated: list[int] = []  # and those that are not acknowledged yet
        self.past = [(self.now, 0)]  # from when on a read would return which number
        self.readers: list[Reader] = []
        self.memories = [memory.Memory(self._read, 20.0) for _ in range(2)]
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(memory, "monotonic", lambda: self.now)

    def teardown(self) -> None:
        """Let the readers end."""
        self._patch.undo()
        for reader in self.readers:
            reader.go.set()
            reader.thread.join(30)

    def _read(self) -> Count:
        source = "database" if self.cache is None else "cache"
        self.cache = self.database if self.cache is None else self.cache
        count = Count(self.cache, source, 0.0, None)
        me = threading.current_thread()
        for reader in self.readers:
            if reader.thread is me:
                reader.has_read.set()
                reader.go.wait()
        return count

    def _note(self) -> None:
        self.past.append((self.now, self.database if self.cache is None else self.cache))

    def least(self, max_age: float) -> int:
        """Return the least number that a call which begins now may return."""
        since = self.now - min(max_age, 20.0)
        visible = [number for at, number in self.past if at <= since] or [0]
        return max(visible[-1], self.acknowledged)

    @rule(seconds=st.sampled_from([0.0005, 0.5, 1.0, 7.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule()
    def commit(self) -> None:
        """A process commits a change."""
        self.database += 1
        self.committed.append(self.database)
        self._note()

    @rule()
    def expire(self) -> None:
        """The cached number goes."""
        self.cache = None
        self._note()

    @precondition(lambda self: self.committed)
    @rule(mine=st.booleans())
    def invalidate(self, mine: bool) -> None:
        """By this process, or by another, which this one does not hear of."""
        number = self.committed.pop(0)
        self.cache = None
        self._note()
        if mine:
            self.invalidated.append(number)

    @precondition(lambda self: self.invalidated)
    @rule()
    def acknowledge(self) -> None:
        """A change of this process is at its end."""
        memory.forget()
        self.acknowledged = max(self.acknowledged, self.invalidated.pop(0))

    @rule(which=st.integers(0, 1), max_age=st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    def ask(self, which: int, max_age: float) -> None:
        """No answer is too old."""
        least = self.least(max_age)
        assert ask(self.memories[which], max_age).active >= least

    @precondition(lambda self: len(self.readers) < 3)
    @rule(which=st.integers(0, 1), max_age=st.sampled_from([0.0, 1.0, 100.0]))
    def start_reader(self, which: int, max_age: float) -> None:
        """A thread asks, and is stopped when it has read."""
        reader = Reader(self, which, max_age)
        self.readers.append(reader)
        reader.thread.start()
        assert reader.has_read.wait(30)

    @rule()
    def change(self) -> None:
        """A change of this process from its beginning to its end."""
        self.commit()
        self.committed.remove(self.database)
        self.cache = None
        self._note()
        self.invalidated.insert(0, self.database)
        self.acknowledge()

    @precondition(lambda self: self.readers)
    @rule(number=st.integers(0, 2))
    def finish_reader(self, number: int) -> None:
        """It stores what it read; neither its answer nor the next one is too old."""
        reader = self.readers[number % len(self.readers)]
        reader.go.set()
        reader.thread.join(30)
        self.readers.remove(reader)
        assert reader.answer is not None
        assert reader.answer.active >= reader.least
        self.ask(reader.which, 5.0)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_threads_that_ask_and_change_at_once(full: Fleet) -> None:
    """Threads ask and change without a pause: after its change, a thread never sees an older number."""
    off = IDS[:4]
    wrong: list[int] = []
    stop = time.monotonic() + 1.5

    def change(model_id: str) -> None:
        while time.monotonic() < stop:
            full.disable(model_id)
            if (active := full.count(max_age=LONG).active) > 7:
                wrong.append(active)
            full.enable(model_id)

    threads = [threading.Thread(target=change, args=(name,)) for name in off]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert full.count(max_age=LONG).active == 8
