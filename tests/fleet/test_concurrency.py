"""With several processes and threads at once nothing is lost, counted twice, or stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from modelctl import DatabaseUnavailableError, Fleet, ModelNotFoundError
from modelctl.database import bulk, database
from modelctl.database.locks import RECOVER_LOCK
from tests import fleets
from tests.commands import run_together
from tests.fleets import ACTIVE, AUTO, DISABLED, everything, opened, seed, sql, trip
from tests.waiting import at_most, until

WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def until_waiting(url: str, count: int = 1) -> None:
    """Return when *count* statements wait for a lock."""
    until(lambda: sql(url, WAITING) == [(count,)], seconds=10)


@contextmanager
def blocked(url: str, statement: str, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Let *call* wait for another program's *statement*, which is committed at the end."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(url) as other:
        other.execute(statement.encode())
        future = pool.submit(call)
        until_waiting(url)
        yield future
        other.commit()


# Processes

HAMMER = """
import sys
from modelctl import Fleet
with Fleet.open(actor=sys.argv[1]) as fleet:
    fleet.count()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        fleet.record_failure("a", "parse-error", reason="from " + sys.argv[1])
"""
# A file has one writer at a time, and syncs to the disk for each.
EACH = {"sqlite": 40, "postgresql": 300}


def test_eight_processes_lose_no_failure(fleet: Fleet, fleet_url: str) -> None:
    """Every failure is counted once, and exactly one process switches the model off."""
    hammer(fleet, fleet_url, EACH[fleet_url.partition(":")[0]])


@pytest.mark.long
def test_eight_processes_lose_no_failure_for_long(fleet: Fleet, fleet_url: str) -> None:
    """The same holds for 1,000 failures each, which takes a minute on a file."""
    hammer(fleet, fleet_url, 1000)


def hammer(fleet: Fleet, fleet_url: str, each: int) -> None:
    """Let eight processes record *each* failures of one model, and check the model."""
    seed(fleet, "a")
    variables = {"MODELCTL_DATABASE_URL": fleet_url}
    run_together(HAMMER, [[f"p{number}", str(each)] for number in range(8)], variables)
    model = fleet.show("a")
    assert model.failure_count == model.consecutive_failures == 8 * each
    assert (model.status, model.ejections) == (AUTO, 1)
    assert [e.event for e in fleet.events("a")] == ["auto-disabled", "added"]


# Threads


def test_threads_share_a_fleet(fleet_url: str) -> None:
    """More threads than connections wait for each other, and no outcome is lost."""
    with opened(fleet_url, database_pool_size=2) as fleet:
        seed(fleet, "ab")
        with ThreadPoolExecutor(6) as pool:
            calls = [lambda: fleet.record_success("a"), lambda: fleet.record_failure("b")]
            for future in [pool.submit(call) for call in calls * 30]:
                future.result()
        assert (fleet.show("a").success_count, fleet.show("b").failure_count) == (30, 30)


def test_a_pool_that_stays_empty_is_an_error_to_retry(
    pg: Fleet, pg_cleared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that gets no connection fails with the advice to retry or to allow more connections."""
    monkeypatch.setattr(pg._store.database.engine.pool, "_timeout", 0.1)
    seed(pg, "a")
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(pg._store.database.reading())
        with pytest.raises(DatabaseUnavailableError, match="in use") as caught:
            pg.show("a")
    assert "pool_size" in str(caught.value.hint)
    assert pg.show("a").id == "a"


@pytest.mark.parametrize("verbs", [("disable", "enable"), ("disable", "record_batch")])
def test_opposite_orders_never_deadlock(
    pg: Fleet, monkeypatch: pytest.MonkeyPatch, verbs: tuple[str, str]
) -> None:
    """Rows are locked in the order of their ids, whatever the order in which they are named."""
    monkeypatch.setattr(database, "_TRIES", 1)
    ids = [f"m{n:03}" for n in range(200)]
    seed(pg, ids)

    def work(verb: str, order: list[str]) -> None:
        for _ in range(15):
            if verb == "record_batch":
                pg.record_batch({"id": i, "outcome": "success"} for i in order)
            else:
                getattr(pg, verb)(*order)

    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(work, verb, order)
            for verb, order in zip(verbs * 2, [ids, ids[::-1], ids[::-1], ids], strict=True)
        ]
        for job in jobs:
            job.result()


def test_two_imports_of_the_same_models(pg: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is added once, whatever the order of the catalogues, without a deadlock."""
    monkeypatch.setattr(database, "_TRIES", 1)
    monkeypatch.setattr(bulk, "CHUNK", 10)
    lines = [b'{"id": "m%03d"}' % n for n in range(200)]
    with ThreadPoolExecutor(2) as pool:
        catalogues = [b"\n".join(lines), b"\n".join(reversed(lines))]
        results = list(pool.map(pg.import_models, catalogues))
    assert sum(r.added for r in results) == 200
    assert sum(r.unchanged for r in results) == 200
    assert len(pg.events(limit=1000)) == 200


# Waiting for another program's transaction


@pytest.mark.parametrize(
    ("meanwhile", "verb", "change", "events"),
    [
        ("active = false", "disable", (DISABLED, DISABLED, False), []),
        ("active = false", "enable", (DISABLED, ACTIVE, True), ["enabled"]),
        ("active = false", "record_failure", (DISABLED, DISABLED, False), []),
        ("active = false", "record_success", (DISABLED, DISABLED, False), []),
        ("consecutive_failures = 4", "record_failure", (ACTIVE, AUTO, True), ["auto-disabled"]),
        ("consecutive_failures = 3", "record_failure", (ACTIVE, ACTIVE, False), []),
        ("active = false, auto_disabled = true", "disable", (AUTO, DISABLED, True), ["disabled"]),
        (
            "active = false, auto_disabled = true",
            "record_success",
            (AUTO, ACTIVE, True),
            ["recovered"],
        ),
        ("display_name = 'new'", "remove", (ACTIVE, None, True), ["removed"]),
    ],
)
def test_a_waiting_change_sees_what_it_waited_for(
    pg: Fleet, pg_cleared: str, meanwhile: str, verb: str, change: tuple[Any, ...], events: Any
) -> None:
    """Rows, events and results are those of the row as the other program left it."""
    seed(pg, "a")
    args = ["a", "client-error"] if verb == "record_failure" else ["a"]
    before = pg.events()[0].id
    with blocked(
        pg_cleared, f"UPDATE models SET {meanwhile}", lambda: getattr(pg, verb)(*args)
    ) as result:
        assert not result.done()
    (done,) = result.result().changes
    assert (done.before, done.after, done.changed) == change
    assert [e.event for e in pg.events(after=before, actor=fleets.ACTOR)] == events
    if change[1] is None:
        assert pg.list_models() == []
    else:
        assert pg.show("a").status is change[1]


@pytest.mark.parametrize("verb", ["disable", "remove", "record_success", "record_batch"])
def test_what_was_removed_meanwhile_is_not_found(pg: Fleet, pg_cleared: str, verb: str) -> None:
    """A model that goes while a change waits for it is unknown, or removed already; nothing is written."""
    seed(pg, "a")
    before = fleets.events(pg_cleared)
    args: Any = [{"id": "a", "outcome": "success"}] if verb == "record_batch" else "a"
    call = getattr(pg, verb)
    with blocked(pg_cleared, "DELETE FROM models", lambda: call(args)) as result:
        pass
    if verb == "remove":
        assert [change.changed for change in result.result().changes] == [False]
    else:
        with pytest.raises(ModelNotFoundError):
            result.result()
    *rest, other = fleets.events(pg_cleared)
    assert (rest, other[:2], other[4]) == (before, ("a", "removed"), "postgres")


# Trying again


def two_batches(fleet: Fleet, first: str, second: str) -> list[Any]:
    """Record two batches that have both locked their first model before either goes on."""
    both = threading.Barrier(2)

    def work(order: str) -> Any:
        met: list[int] = []

        def meet(done: int) -> None:
            if not met:
                met.append(done)
                both.wait(10)

        return fleet.record_batch(({"id": i, "outcome": "failure"} for i in order), progress=meet)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (first, second)))


def test_batches_that_deadlock_are_both_recorded(
    pg: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that loses its locks to a deadlock is recorded again from its first outcome."""
    monkeypatch.setattr(bulk, "CHUNK", 1)
    seed(pg, "ab")
    slept: list[float] = []
    monkeypatch.setattr(database, "time", _Clock(slept))
    results = two_batches(pg, "ab", "ba")
    assert [r.recorded for r in results] == [2, 2]
    assert [pg.show(i).failure_count for i in "ab"] == [2, 2]
    assert slept


class _Clock:
    """The time, with a note of each pause."""

    def __init__(self, slept: list[float]) -> None:
        self.slept = slept

    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        time.sleep(seconds)


@pytest.fixture
def strict(pg_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Give a fleet whose writes are serialized strictly, and refused when they cannot be."""
    level = database._WRITE.replace("READ COMMITTED", "REPEATABLE READ")
    monkeypatch.setattr(database, "_WRITE", level)
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        yield fleet


@pytest.mark.parametrize("ids", [["a"], ["a", "b"]])
def test_a_serialization_failure_is_tried_again(
    strict: Fleet, pg_database: str, ids: list[str]
) -> None:
    """Under a stricter isolation a change that conflicts with another succeeds at its second try."""
    with blocked(
        pg_database, "UPDATE models SET provider = 'p'", lambda: strict.disable(*ids)
    ) as result:
        pass
    assert all(change.changed for change in result.result().changes)
    assert [e.event for e in strict.events("a")] == ["disabled", "added"]


def test_three_tries_are_enough(
    strict: Fleet, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails three times, and for 2 s, is "busy, try again", with nothing recorded."""
    monkeypatch.setattr(database, "_RETRY_SECONDS", 0)
    monkeypatch.setattr(bulk, "CHUNK", 1)
    tries: list[int] = []

    def in_between(done: int) -> None:
        tries.append(done)
        sql(pg_database, "UPDATE models SET provider = provider || 'x' WHERE id = 'b'")

    with pytest.raises(DatabaseUnavailableError, match="busy") as caught:
        strict.record_batch(({"id": i, "outcome": "failure"} for i in "ab"), progress=in_between)
    assert tries == [1, 1, 1]
    assert caught.value.hint == "try again"
    assert [strict.show(i).failure_count for i in "ab"] == [0, 0]


# recover beside others


def off(fleet: Fleet, ids: str) -> None:
    """Add models that the health rule has switched off."""
    seed(fleet, ids)
    trip(fleet, *ids)


def test_a_second_recover_is_busy(pg: Fleet, pg_cleared: str) -> None:
    """While another run is active nothing is recovered, but the waiting models are listed."""
    off(pg, "ab")
    before = everything(pg_cleared)
    with psycopg.connect(pg_cleared) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [RECOVER_LOCK])
        result = pg.recover(cooldown=0)
        assert (result.busy, result.recovered) == (True, ())
        assert sorted(w.id for w in result.waiting) == ["a", "b"]
    assert everything(pg_cleared) == before
    assert sorted(pg.recover(cooldown=0).recovered) == ["a", "b"]


def test_recover_does_not_wait_for_a_locked_row(pg: Fleet, pg_cleared: str) -> None:
    """A model that another program is changing is left for the next run."""
    off(pg, "abc")
    with psycopg.connect(pg_cleared) as other:
        other.execute("UPDATE models SET auto_disabled = false WHERE id = 'b'")
        with at_most(1.5):
            result = pg.recover(cooldown=0)
        assert sorted(result.recovered) == ["a", "c"]
        assert [w.id for w in result.waiting] == ["b"]
        other.commit()
    assert pg.recover(cooldown=0).recovered == ()
    assert pg.show("b").status is DISABLED


def test_two_recovers_at_the_same_time(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them every model comes back once."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    off(fleet, "abcdefghi")
    with opened(fleet_url) as other, ThreadPoolExecutor(2) as pool:
        start = threading.Barrier(2)

        def run(which: Fleet) -> Any:
            start.wait(10)
            return which.recover(cooldown=0)

        results = list(pool.map(run, (fleet, other)))
    recovered = [i for r in results for i in r.recovered]
    # A run that finds the other at work ends with what it did; then the rest is for the next.
    recovered += fleet.recover(cooldown=0).recovered
    assert sorted(recovered) == list("abcdefghi")
    assert [e.event for e in fleet.events()].count("recovered") == 9


# A file has one writer


def test_a_locked_file_is_busy(sqlite_database: str) -> None:
    """A writer waits five seconds for another writer; reads do not wait at all."""
    import sqlite3
    from contextlib import closing

    path = sqlite_database.removeprefix("sqlite:///")
    with (
        opened(sqlite_database) as fleet,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        seed(fleet, "a")
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert fleet.count(fresh=True).active == 1
        assert fleet.list_models()[0].id == "a"
        assert time.monotonic() - started < 2
        with pytest.raises(DatabaseUnavailableError, match="locked"):
            fleet.disable("a")
        assert 4 < time.monotonic() - started < 9
        other.execute("ROLLBACK")
        assert fleet.disable("a").changes[0].changed
