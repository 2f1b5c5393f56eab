"""A fleet without Redis keeps its outbox small, and no invalidation is lost by it."""

from __future__ import annotations

import threading

import psycopg
import pytest

from modelctl import Fleet
from modelctl.count import outbox as module
from modelctl.count.outbox import Outbox
from tests import fleets
from tests.fleets import put, sql
from tests.world import World


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let more than two rows be many."""
    monkeypatch.setattr(module, "COLLAPSED_ABOVE", 2)


@pytest.fixture
def world(pg_database: str, redis_url: str) -> World:
    """Give a fleet with a Redis, on a database with two models."""
    put(pg_database, "a", "b")
    world = World(pg_database, redis_url)
    world.forget()
    return world


def rows(url: str) -> list[tuple[int, bool]]:
    """Return the id of each row, and whether it settles."""
    found = sql(url, "SELECT id, settle FROM modelctl_outbox ORDER BY id")
    return [(int(row[0]), bool(row[1])) for row in found]


def flip(url: str, times: int = 4) -> None:
    """Change a status as another program does, each time in a transaction of its own."""
    for _ in range(times):
        sql(url, "UPDATE models SET active = NOT active WHERE id = 'a'")


def outbox_of(fleet: Fleet) -> Outbox:
    """Return the outbox of a fleet."""
    return fleet._store.outbox


@pytest.mark.parametrize("command", ["recover", "drain"])
def test_one_new_row_for_many(pg_database: str, command: str) -> None:
    """Without Redis, recover and drain leave one undelivered row, with a new id and the oldest age."""
    put(pg_database, "a")
    flip(pg_database)
    sql(pg_database, "UPDATE modelctl_outbox SET due = due - interval '1 hour' WHERE id = 2")
    before = rows(pg_database)
    with fleets.opened(pg_database) as fleet:
        getattr(fleet, command)()
        ((row_id, settle),) = rows(pg_database)
        assert row_id > max(before)[0]
        assert not settle
        assert (outbox_of(fleet).queue()[2] or 0) >= 3600
        getattr(fleet, command)()
    assert rows(pg_database) == [(row_id, False)]


def test_few_rows_stay_as_they_are(pg_database: str) -> None:
    """As many rows as are allowed are not touched."""
    put(pg_database, "a")
    flip(pg_database, 1)
    before = rows(pg_database)
    with fleets.opened(pg_database) as fleet:
        fleet.recover()
    assert rows(pg_database) == before
    assert len(before) == 2


def test_with_redis_nothing_is_collapsed(world: World) -> None:
    """A process that has a Redis delivers all rows, each with its second delivery."""
    with world:
        flip(world.database)
        world.fleet.recover()
        assert world.queue == (0, 4)


def test_a_row_that_settles_stays(world: World) -> None:
    """Rows whose first invalidation was delivered are not collapsed: their second one comes."""
    with world, fleets.opened(world.database) as other:
        flip(world.database, 3)
        world.fleet.drain()
        settling = rows(world.database)
        flip(world.database, 3)
        other.recover()
        assert rows(world.database)[:3] == settling
        assert world.queue == (1, 3)


def test_a_delivery_that_read_before_the_collapse_settles_nothing_of_it(world: World) -> None:
    """A change that commits after a delivery has read what is due is still undelivered after both."""
    with world, fleets.opened(world.database) as other:
        flip(world.database, 3)
        deliverer = outbox_of(world.fleet)
        seen = deliverer.due()
        world.ask("DEL", "db:models:count:active")  # its invalidation comes too early for the next
        flip(world.database, 1)
        outbox_of(other).collapse()
        deliverer.settle(seen, "redis", "id")
        assert world.queue == (1, 0)
        assert deliverer.unsettled()
        assert world.fleet.count(strong=True).active == world.truth
        assert world.fleet.drain().delivered == 1
        assert world.queue == (0, 1)


def test_rows_that_are_being_settled_are_left_out(world: World) -> None:
    """A collapse neither waits for a delivery that holds rows, nor deletes what it settles."""
    with world, fleets.opened(world.database) as other:
        flip(world.database, 5)
        with psycopg.connect(world.database) as deliverer:
            deliverer.execute("UPDATE modelctl_outbox SET settle = true WHERE id IN (1, 2, 3, 4)")
            outbox_of(other).collapse()
        assert world.queue[0] == 1
        assert world.queue[1] == len([row for row in rows(world.database) if row[1]])


def test_readers_always_see_a_row(world: World) -> None:
    """While rows are collapsed and written, no reader finds the outbox without an undelivered row."""
    with world, fleets.opened(world.database) as other:
        flip(world.database, 3)
        done = threading.Event()
        found: list[bool] = []

        def read() -> None:
            with psycopg.connect(world.database, autocommit=True) as connection:
                while not done.is_set():
                    sql = b"SELECT EXISTS (SELECT FROM modelctl_outbox WHERE settle IS NOT TRUE)"
                    found.append(connection.execute(sql).fetchone() == (True,))

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(20):
            flip(world.database, 3)
            outbox_of(other).collapse()
        done.set()
        reader.join()
        assert found
        assert all(found)


def test_sqlite_has_no_outbox(sqlite_database: str) -> None:
    """On SQLite recover and drain have nothing to collapse."""
    with fleets.opened(sqlite_database) as fleet:
        fleet.recover()
        assert fleet.drain().queued == 0
