"""The count is right and cached, and invalidations are delivered, on every kind of database."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from modelctl import Fleet, crash_points
from modelctl.count.results import Count
from modelctl.errors import MissingSchemaError, StaleCacheError
from modelctl.model import CacheState
from tests import commands, servers
from tests.fleets import DEFAULT_PATIENCE, is_sqlite
from tests.servers import Postgres, Redis
from tests.waiting import at_most
from tests.world import KEY, World

LEADERBOARD = "db:leaderboard:1"
MODELS = 10
INSERT = "INSERT INTO models (id) VALUES " + ", ".join(f"('m{i}')" for i in range(MODELS))


def ten_models(database: str, redis_url: str = "") -> World:
    """Return a fleet of ten active models."""
    world = World(database, redis_url)
    if is_sqlite(database):
        world.fleet.upgrade()
    world.sql(INSERT)
    world.forget()
    return world


@pytest.fixture
def shared(pg_database: str, redis_url: str) -> Iterator[World]:
    """Give a fleet in PostgreSQL with its count in Redis."""
    with ten_models(pg_database, redis_url) as world:
        yield world


@pytest.fixture
def plain(pg_database: str) -> Iterator[World]:
    """Give a fleet in PostgreSQL without a cache."""
    with ten_models(pg_database) as world:
        yield world


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[World]:
    """Give a fleet in an SQLite file."""
    with ten_models(f"sqlite:///{_create(tmp_path / 'models.db')}") as world:
        yield world


def _create(path: Path) -> Path:
    """Make an empty database as the product makes its own: with a write-ahead log."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    return path


@pytest.fixture(params=["shared", "embedded"])
def cached(request: pytest.FixtureRequest) -> World:
    """Give each kind of fleet that has a cache."""
    world: World = request.getfixturevalue(request.param)
    return world


@pytest.fixture(params=["shared", "plain", "embedded"])
def world(request: pytest.FixtureRequest) -> World:
    """Give each kind of fleet."""
    world: World = request.getfixturevalue(request.param)
    return world


def from_database(active: int) -> Count:
    """Return what a count from the database looks like."""
    return Count(active, "database", 0.0, None)


def at(monkeypatch: pytest.MonkeyPatch, point: str, action: Callable[[], object]) -> list[object]:
    """Do something the first time that a point is reached; the list tells whether it was."""
    done: list[object] = []

    def hook(reached: str) -> None:
        if reached == point:
            monkeypatch.setattr(crash_points, "hook", None)
            done.append(action())

    monkeypatch.setattr(crash_points, "hook", hook)
    return done


# Where the number comes from


def test_first_from_the_database_then_from_the_cache(cached: World) -> None:
    """A miss counts and fills; a hit says how old it is and how long it will be shown."""
    assert cached.fleet.count() == from_database(MODELS)
    hit = cached.another().count()
    assert (hit.active, hit.source) == (MODELS, "cache")
    assert 0 <= hit.age_seconds < 10
    cached.age(40)
    hit = cached.fleet.count()
    assert hit.source == "cache"
    assert hit.expires_in_seconds is not None
    assert 40 <= hit.age_seconds < 55
    assert hit.age_seconds + hit.expires_in_seconds == pytest.approx(60)
    cached.age(60)
    assert cached.fleet.count() == from_database(MODELS)
    assert not cached.warnings


def test_a_fresh_count_fills_the_cache(cached: World) -> None:
    """A fresh count comes from the database whatever is cached, and its number is cached anew."""
    cached.fleet.count()
    cached.age(40)
    assert cached.fleet.count(fresh=True) == from_database(MODELS)
    hit = cached.fleet.count()
    assert hit.source == "cache"
    assert hit.age_seconds < 10


def test_a_fresh_count_does_not_read_the_cache(shared: World) -> None:
    """A plain count shows the cached number; a fresh count does not, and replaces it."""
    shared.cache_believed(999)
    assert shared.fleet.count().active == 999
    assert shared.fleet.count(fresh=True) == from_database(MODELS)
    assert shared.fleet.count().active == MODELS


def test_without_a_cache_every_count_is_fresh(plain: World) -> None:
    """On PostgreSQL alone the number comes from the database, and changes say the cache is off."""
    for how in ({}, {"fresh": True}, {"strong": True}, {}):
        assert plain.fleet.count(**how) == from_database(MODELS)
    assert plain.fleet.disable("m1").cache == CacheState.OFF
    assert plain.fleet.count() == from_database(MODELS - 1)
    assert not plain.warnings


def test_read_your_writes(world: World) -> None:
    """After each kind of change the next two counts of every process are right."""
    other = world.another()
    expected = MODELS
    for change, difference in (
        (lambda: world.fleet.disable("m1", "m2"), -2),
        (lambda: world.fleet.enable("m1"), 1),
        (lambda: world.fleet.remove("m3"), -1),
        (lambda: world.fleet.add("new"), 1),
        (lambda: world.fleet.disable("m2"), 0),
        (lambda: world.fleet.import_models(b'{"id": "newer"}\n{"id": "newest"}\n'), 2),
        (lambda: world.fleet.record_batch([dict(BAD) for _ in range(5)]), -1),
        (lambda: world.fleet.recover(cooldown=0), 1),
    ):
        other.count()
        change()
        expected += difference
        # Where the cache is in the database, what changed nothing left it alone.
        if difference or world.redis:
            assert other.count() == from_database(expected)
        assert other.count().active == world.fleet.count(strong=True).active == expected
    assert not world.warnings


BAD = {"id": "m4", "outcome": "failure", "type": "parse-error"}


def test_only_a_change_of_status_costs_the_cache(cached: World) -> None:
    """Outcomes leave the cached count alone until the fifth failure switches the model off."""
    cached.fleet.count()
    cached.fleet.record_success("m1")
    for _ in range(4):
        cached.fleet.record_failure("m1", "parse-error")
    assert cached.fleet.count().source == "cache"
    cached.fleet.record_failure("m1", "parse-error")
    assert cached.fleet.count() == from_database(MODELS - 1)


# Other programs


def test_a_foreign_number_is_not_believed(shared: World) -> None:
    """A number of another program is a miss, unless modelctl stored the same number."""
    shared.cache_foreign(999)
    assert shared.fleet.count() == from_database(MODELS)
    shared.cache_foreign(999)
    assert shared.fleet.count() == from_database(MODELS)
    shared.cache_foreign(MODELS)
    assert shared.fleet.count().source == "cache"
    assert shared.fleet.disable("m1").cache == CacheState.INVALIDATED
    shared.cache_foreign(MODELS)
    assert shared.fleet.count() == from_database(MODELS - 1)
    assert shared.fleet.count().source == "cache"


RAW = "UPDATE models SET active = false WHERE id IN ('m1', 'm2', 'm3')"


def test_raw_sql_is_seen_at_once_by_a_strong_count(shared: World) -> None:
    """The next strong count sees a change made in psql, and so do plain counts after it."""
    shared.fleet.count()
    shared.sql(RAW)
    assert shared.fleet.count().active == MODELS
    assert shared.fleet.count(strong=True) == from_database(MODELS - 3)
    assert shared.fleet.count().source == "cache"
    assert shared.fleet.count().active == MODELS - 3
    # The cache is not asked until the invalidation is delivered.
    assert shared.fleet.count(strong=True).source == "database"
    shared.fleet.drain()
    shared.fleet.count()
    assert shared.fleet.count(strong=True).source == "cache"


def test_raw_sql_is_seen_after_a_drain(shared: World) -> None:
    """A change by psql is in every count after the queue was delivered."""
    shared.fleet.count()
    shared.sql(RAW)
    drained = shared.another().drain()
    assert (drained.delivered, drained.queued, drained.cache) == (1, 0, "invalidated")
    assert shared.fleet.count() == from_database(MODELS - 3)
    again = shared.another().drain()
    assert (again.delivered, again.queued, again.cache) == (0, 0, "unchanged")
    assert shared.fleet.count().source == "cache"


def test_raw_sql_is_seen_at_once_on_sqlite(embedded: World) -> None:
    """On SQLite the triggers invalidate the count of a change in SQL."""
    embedded.fleet.count()
    embedded.sql(RAW)
    assert embedded.fleet.count() == from_database(MODELS - 3)


def test_a_missed_count_does_not_sweep(shared: World) -> None:
    """What is queued makes it forget the count at once; the rest is left to those that sweep."""
    shared.sql(RAW)
    shared.redis.set(LEADERBOARD, "x")
    shared.cache_believed(MODELS)
    assert shared.fleet.count(fresh=True) == from_database(MODELS - 3)
    assert shared.queue == (1, 0)
    assert shared.redis.exists(LEADERBOARD)
    assert shared.fleet.count().source == "cache"
    assert shared.fleet.count().active == MODELS - 3


@pytest.mark.parametrize("cached", ["shared", "embedded"], indirect=True)
def test_a_count_that_fails_gives_its_lease_back(cached: World) -> None:
    """The next count need not wait 10 s before it may fill the cache."""
    away = "ALTER TABLE models RENAME TO gone"
    cached.sql(away)
    with pytest.raises(MissingSchemaError):
        cached.fleet.count()
    cached.sql("ALTER TABLE gone RENAME TO models")
    assert cached.fleet.count() == from_database(MODELS)
    assert cached.fleet.count().source == "cache"


def test_the_second_pass_comes_later_and_ends_it(shared: World) -> None:
    """A delivered invalidation is repeated once after 15 s, for what others wrote meanwhile."""
    shared.fleet.disable("m1")
    assert shared.queue == (0, 1)
    due = "SELECT extract(epoch FROM due - clock_timestamp()) FROM modelctl_outbox"
    assert 5 < shared.sql(due)[0][0] <= 15
    assert shared.fleet.drain().delivered == 0
    # Another program writes a number that it read before the change.
    shared.cache_foreign(MODELS)
    shared.redis.set(LEADERBOARD, "x")
    shared.sql("UPDATE modelctl_outbox SET due = clock_timestamp()")
    assert shared.fleet.count() == from_database(MODELS - 1)
    shared.cache_foreign(MODELS)
    drained = shared.fleet.drain()
    assert (drained.delivered, drained.queued, drained.cache) == (1, 0, "invalidated")
    assert shared.queue == (0, 0)
    assert not shared.redis.exists(LEADERBOARD, KEY)
    assert shared.fleet.count() == from_database(MODELS - 1)


def test_many_queued_invalidations_are_one(shared: World, redis_server: Redis) -> None:
    """However many changes are queued, they are delivered by one invalidation."""
    for number in range(20):
        shared.sql(f"UPDATE models SET active = NOT active WHERE id = 'm{number % 3}'")
    assert shared.queue == (20, 0)
    redis_server.ask("CONFIG", "RESETSTAT")
    assert shared.fleet.drain().delivered == 20
    assert redis_server.ask("INFO", "commandstats")["cmdstat_scan"]["calls"] == 1
    assert shared.queue == (0, 20)


# Redis away


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_a_count_without_redis(shared: World, redis_server: Redis, trouble: str) -> None:
    """Without Redis a count comes from the database within a second, with one warning a minute."""
    fleet = shared.another(redis_timeout=DEFAULT_PATIENCE)
    fleet.count()
    getattr(redis_server, trouble)()
    for how in ({}, {"fresh": True}, {"strong": True}):
        with at_most(1):
            assert fleet.count(**how) == from_database(MODELS)
        assert len(shared.warnings) == 1
    assert "counted from the database" in shared.warnings[0]


def test_a_count_while_redis_goes_away(
    shared: World, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count returns its number also when Redis goes away before the number is stored."""
    assert not at(monkeypatch, "after-snapshot", redis_server.kill)
    assert shared.fleet.count() == from_database(MODELS)
    assert len(shared.warnings) == 1


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_a_change_without_redis_is_queued(shared: World, redis_server: Redis, trouble: str) -> None:
    """Without Redis a change is committed and says within three seconds that its invalidation is queued."""
    fleet = shared.another(redis_timeout=DEFAULT_PATIENCE)
    fleet.count()
    getattr(redis_server, trouble)()
    with at_most(3):
        result = fleet.disable("m1")
    assert result.cache == CacheState.QUEUED
    assert [change.changed for change in result.changes] == [True]
    assert len(shared.warnings) == 1
    assert "queued" in shared.warnings[0]
    assert fleet.count() == from_database(MODELS - 1)
    assert shared.queue == (1, 0)


DELIVERIES: dict[str, Callable[[Fleet], object]] = {
    "drain": lambda fleet: fleet.drain(),
    "next change": lambda fleet: fleet.disable("m9"),
    "already done": lambda fleet: fleet.disable("m1"),
    "recover": lambda fleet: fleet.recover(),
    "clear": lambda fleet: fleet.clear_cache(),
}


@pytest.mark.parametrize("deliver", DELIVERIES.values(), ids=DELIVERIES)
def test_what_is_queued_is_delivered(
    shared: World, monkeypatch: pytest.MonkeyPatch, deliver: Callable[[Fleet], object]
) -> None:
    """When Redis is back with its old contents, each of these clears what a change had queued."""
    down = shared.another(redis_url=f"redis://127.0.0.1:{servers.refused_port()}/0")
    shared.fleet.count()
    shared.redis.set(LEADERBOARD, "x")
    with monkeypatch.context() as impatient:
        impatient.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.0)
        assert down.disable("m1").cache == CacheState.QUEUED
    assert shared.fleet.count().active == MODELS
    assert shared.queue == (1, 0)
    deliver(shared.fleet)
    queued, settling = shared.queue
    assert not queued
    assert settling
    assert not shared.redis.exists(LEADERBOARD)
    actual = shared.sql("SELECT count(*) FROM models WHERE active")[0][0]
    assert shared.fleet.count().active == actual < MODELS


@pytest.mark.parametrize("call", ["drain", "clear_cache", "cache_report"])
def test_the_commands_for_the_cache_need_redis(shared: World, call: str) -> None:
    """To drain, clear or show the cache without Redis is an error, and nothing is lost."""
    shared.sql(RAW)
    down = shared.another(redis_url=f"redis://127.0.0.1:{servers.refused_port()}/0")
    with pytest.raises(StaleCacheError):
        getattr(down, call)()
    assert shared.queue == (1, 0)


def test_a_redis_that_refuses_us(shared: World) -> None:
    """With a wrong password a count works with a warning, and a change is queued at once."""
    with Redis(password="right") as guarded:
        fleet = shared.another(redis_url=f"redis://:zq7wrong@127.0.0.1:{guarded.port}/0")
        assert fleet.count() == from_database(MODELS)
        with at_most(1):
            assert fleet.disable("m1").cache == CacheState.QUEUED
        assert len(shared.warnings) == 2
        assert "zq7" not in str(shared.warnings)


def test_the_same_place_has_one_identity(shared: World, redis_server: Redis) -> None:
    """Where invalidations go is compared by what a URL names, not by how it is written."""
    place = f"127.0.0.1:{redis_server.port}"

    def identity(url: str) -> str:
        return shared.another(redis_url=url)._cached_count.cache.identity

    assert (
        identity(f"redis://{place}/5")
        == identity(f"redis://me:zq7@{place}?db=5")
        == f"{place}/5 {KEY}"
    )
    assert identity(f"redis://{place}") == identity(f"redis://{place}/0") != identity("redis://h")
    assert identity("redis+sentinel://a:1,b/m") == identity("redis+sentinel://b:26379,a:1/m/0")


# Races


@pytest.mark.parametrize(
    ("cached", "point"),
    [
        ("shared", "after-lease"),
        ("shared", "after-snapshot"),
        ("shared", "in-fill"),
        ("embedded", "after-lease"),
        ("embedded", "after-snapshot"),
    ],
    indirect=["cached"],
)
def test_a_reader_that_is_overtaken_does_not_bring_back_the_old_number(
    cached: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A change between a reader's claim, its count and its fill makes the fill void."""
    writer = cached.another()
    done = at(monkeypatch, point, lambda: writer.disable("m1"))
    seen = cached.fleet.count()
    assert done
    assert seen == from_database(MODELS - (point == "after-lease"))
    assert cached.fleet.count() == from_database(MODELS - 1)
    assert cached.fleet.count().source == "cache"
    assert cached.fleet.count().active == MODELS - 1


@pytest.mark.parametrize("point", ["after-commit", "after-del", "in-sweep"])
def test_a_reader_between_the_steps_of_a_change(
    shared: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Whatever a reader fills while a change is at work, after it the number is right."""
    shared.fleet.count()
    done = at(monkeypatch, point, lambda: shared.another().count(strong=True).active)
    shared.fleet.disable("m1")
    assert done == [MODELS - 1]
    assert [shared.fleet.count().active for _ in range(2)] == [MODELS - 1] * 2


def test_a_change_by_others_while_a_change_delivers(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit after the queue was read is not taken for delivered, and counts soon."""
    shared.sql(RAW)
    done = at(
        monkeypatch,
        "after-due",
        lambda: shared.sql("UPDATE models SET active = false WHERE id = 'm9'"),
    )
    assert shared.fleet.disable("m8").cache == CacheState.INVALIDATED
    assert done
    assert shared.queue == (1, 2)
    assert shared.fleet.count() == from_database(MODELS - 5)


def test_one_thread_counts_for_all(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads that find the count expired do not each count, and all get the number."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.fleet.count(), range(8)))
        shared.redis.delete(KEY)
        # Time enough, however slow this machine is.
        monkeypatch.setattr("modelctl.count.protocol.POLL_SECONDS", 0.5)
        counted: list[str] = []
        start = threading.Barrier(8)

        def hook(point: str) -> None:
            if point == "after-lease":
                counted.append(point)

        def count(_: int) -> int:
            start.wait(10)
            return shared.fleet.count().active

        monkeypatch.setattr(crash_points, "hook", hook)
        assert list(pool.map(count, range(8))) == [MODELS] * 8
    # One that looked before the fill may take the lease after it; seven others do not.
    assert len(counted) <= 2


# Verify


def test_verify_compares(shared: World) -> None:
    """`verify` tells what is cached, what is counted and whether they agree; an empty cache agrees."""
    for prepare, cached, match in (
        (lambda: None, None, True),
        (lambda: shared.fleet.count(), MODELS, True),
        (lambda: shared.cache_foreign(999), None, True),
        (lambda: shared.cache_believed(999), 999, False),
        (lambda: shared.fleet.clear_cache(), None, True),
    ):
        prepare()
        found = shared.fleet.verify()
        assert (found.active, found.database) == (MODELS, MODELS)
        assert (found.cached, found.match) == (cached, match)
        assert (found.source, found.age_seconds) == ("database", 0.0)
    shared.fleet.count()
    shared.sql(RAW)
    found = shared.fleet.verify()
    assert (found.cached, found.database, found.match) == (MODELS, MODELS - 3, False)


@pytest.mark.parametrize("kind", ["plain", "embedded"])
def test_verify_without_redis(request: pytest.FixtureRequest, kind: str) -> None:
    """Without a cache there is nothing to differ; SQLite's agrees always."""
    world: World = request.getfixturevalue(kind)
    assert world.fleet.verify().match
    world.fleet.count()
    world.sql(RAW)
    found = world.fleet.verify()
    assert (found.cached, found.database, found.match) == (None, MODELS - 3, True)
    world.fleet.count()
    assert world.fleet.verify().cached == (None if kind == "plain" else MODELS - 3)


def test_verify_is_not_fooled_by_a_change_in_between(shared: World) -> None:
    """A change between its two looks is no difference."""
    shared.fleet.count()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(shared.database) as writer:
        writer.execute("LOCK TABLE models")
        looked = pool.submit(shared.fleet.verify)
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'models'::regclass"
        deadline = time.monotonic() + 1.5
        while not shared.sql(waiting):
            assert time.monotonic() < deadline
        writer.execute("UPDATE models SET active = false WHERE id = 'm1'")
        shared.redis.delete(KEY)
        writer.commit()
        found = looked.result(10)
    assert (found.cached, found.database, found.match) == (None, MODELS - 1, True)


# The commands for the cache


def test_clear_cache(world: World) -> None:
    """`clear_cache` empties the cache and delivers what is queued; without a cache it says that it is off."""
    world.fleet.count()
    if world.redis:
        world.redis.set(LEADERBOARD, "x")
        world.sql(RAW)
    result = world.fleet.clear_cache()
    state = CacheState.INVALIDATED if cacheable(world) else CacheState.OFF
    assert (result.delivered, result.queued) == (1 if world.redis else 0, 0)
    assert result.cache == state
    assert world.fleet.count().source == "database"
    if world.redis:
        assert not world.redis.exists(LEADERBOARD)


def cacheable(world: World) -> bool:
    """Whether there is a cache."""
    return bool(world.redis) or world.database.startswith("sqlite")


def test_drain_without_redis(world: World) -> None:
    """A drain with an empty queue does nothing, and without a cache it says that the cache is off."""
    result = world.fleet.drain()
    state = CacheState.UNCHANGED if cacheable(world) else CacheState.OFF
    assert (result.delivered, result.queued, result.cache) == (0, 0, state)


def test_cache_report(world: World) -> None:
    """The report shows the keys as they are, and the queue with its age."""
    world.fleet.count()
    report = world.fleet.cache_report()
    assert (report.queued, report.settling, report.oldest_queued_seconds) == (0, 0, None)
    values = {key.value for key in report.keys}
    if not cacheable(world):
        assert (report.backend, report.keys) == ("off", ())
        return
    assert str(MODELS) in values
    assert report.backend == ("redis" if world.redis else "sqlite")
    if not world.redis:
        return
    world.fleet.disable("m1")
    world.sql(RAW)
    world.sql("UPDATE modelctl_outbox SET due = due - interval '5 s' WHERE NOT settle")
    report = world.fleet.cache_report()
    assert (report.queued, report.settling) == (1, 1)
    assert report.oldest_queued_seconds is not None
    assert 5 <= report.oldest_queued_seconds < 30


def test_what_has_expired_is_not_in_the_report(embedded: World) -> None:
    """On SQLite the report leaves out an expired row, as Redis has no expired key."""
    embedded.fleet.count()
    assert embedded.fleet.cache_report().keys
    embedded.sql("UPDATE modelctl_cache SET expires_at = expires_at - 61")
    assert embedded.fleet.cache_report().keys == ()


# SQLite and other processes


def count_in_a_process(world: World) -> str:
    """Run `modelctl count` on the same database and return what it prints."""
    return commands.run("count", MODELCTL_DATABASE_URL=world.database).out


def test_other_processes_see_a_change_at_once(embedded: World) -> None:
    """On SQLite the cached count is right in every process after a change in any of them."""
    assert count_in_a_process(embedded) == f"{MODELS}\n"
    assert embedded.fleet.count().source == "cache"
    commands.run("disable", "m1", MODELCTL_DATABASE_URL=embedded.database)
    assert embedded.fleet.count() == from_database(MODELS - 1)
    embedded.fleet.disable("m2")
    assert count_in_a_process(embedded) == f"{MODELS - 2}\n"
    assert embedded.fleet.count().source == "cache"


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE models SET active = 0")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("filled", [True, False])
def test_a_count_beside_a_long_write(embedded: World, filled: bool) -> None:
    """While another process writes, a count soon tells what was committed last."""
    if filled:
        embedded.fleet.count()
    path = embedded.database.removeprefix("sqlite:///")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"held\n"
        with at_most(3):
            for how in ({}, {"fresh": True}, {"strong": True}):
                assert embedded.fleet.count(**how).active == MODELS
        assert writer.stdin
        writer.stdin.close()
    assert embedded.fleet.count().active == MODELS
    assert not embedded.warnings


READ_ONLY = """
import os, sys
from modelctl import Fleet
from modelctl.config.config import Config
from modelctl.config.sections import DatabaseConfig
def fleet(path):
    return Fleet(Config(DatabaseConfig("sqlite:///" + path)), actor="test")
fleet(sys.argv[1]).count()  # loads what a count needs, while it can be read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
for path in sys.argv[3:]:
    for how in ({}, {"fresh": True}, {"strong": True}, {}):
        count = fleet(path).count(**how)
        print(count.active, count.source)
"""


def test_a_file_that_cannot_be_written_still_counts(embedded: World) -> None:
    """Without the right to write the file or its folder every count comes from the database."""
    path = Path(embedded.database.removeprefix("sqlite:///"))
    embedded.fleet.close()
    # Where another user than ours can reach it.
    place = Path(tempfile.mkdtemp(prefix="modelctl-test-", dir="/tmp"))
    place.chmod(0o755)
    copies = []
    try:
        for file, folder in ((0o444, 0o777), (0o444, 0o555), (0o666, 0o555)):
            below = place / f"{file:o}-{folder:o}"
            below.mkdir()
            copies.append(Path(shutil.copy(path, below)))
            copies[-1].chmod(file)
            below.chmod(folder)
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, path, str(nobody), *copies],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for copy in copies:
            copy.parent.chmod(0o700)
        shutil.rmtree(place)
    assert done.stderr == ""
    assert done.stdout == f"{MODELS} database\n" * 4 * len(copies)


def test_an_embedded_database_is_created_by_the_first_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without any configuration the first count makes the database, and the second is cached."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with Fleet.open() as fleet:
        assert fleet.count() == from_database(0)
        assert fleet.count().source == "cache"
        assert fleet.verify().match
    assert (tmp_path / "data" / "modelctl" / "modelctl.db").stat().st_mode & 0o777 == 0o600


def test_a_fleet_survives_a_restart_of_its_servers(
    shared: World, postgres: Postgres, redis_server: Redis
) -> None:
    """A long-lived fleet counts on after both servers were restarted, without an error."""
    shared.fleet.count()
    redis_server.kill()
    redis_server.start()
    postgres.stop()
    postgres.start()
    assert shared.fleet.count() == from_database(MODELS)
    assert shared.fleet.count().source == "cache"
    assert not shared.warnings


def test_a_count_answers_while_another_holds_the_queue(shared: World) -> None:
    """A queued invalidation that is locked costs a count nothing."""
    shared.sql("UPDATE models SET active = false WHERE id = 'm1'")
    with psycopg.connect(shared.database) as other:
        other.execute("SELECT * FROM modelctl_outbox FOR UPDATE")
        assert shared.fleet.count() == from_database(MODELS - 1)
        assert shared.fleet.count().source == "cache"
    assert not shared.warnings


def test_nothing_is_queued_where_nothing_changed(shared: World, redis_server: Redis) -> None:
    """With Redis away, a change that finds nothing to do is queued only behind an undelivered one."""
    shared.fleet.disable("m1")
    redis_server.stop()
    assert shared.fleet.disable("m1").cache == CacheState.UNCHANGED
    assert shared.fleet.recover().cache == CacheState.UNCHANGED
    assert shared.warnings == []
    shared.sql("UPDATE models SET active = false WHERE id = 'm2'")
    assert shared.fleet.disable("m1").cache == CacheState.QUEUED
    assert "queued" in shared.warnings[0]


def test_a_doctor_tries_what_a_change_needs(shared: World, redis_server: Redis) -> None:
    """The doctor reports a Redis user that may only read, and leaves no lease behind."""
    assert shared.fleet.doctor().ok
    assert shared.redis is not None
    assert shared.redis.exists("{db:models:count:active}:lease") == 0
    reader = ["reader", "on", ">zq7-word", "~*", "+get", "+mget", "+pttl", "+type"]
    redis_server.ask("ACL", "SETUSER", *reader)
    url = shared.redis_url.replace("redis://", "redis://reader:zq7-word@")
    found = shared.another(redis_url=url).doctor()
    redis_server.ask("ACL", "DELUSER", "reader")
    assert [c.check for c in found.checks if not c.ok] == ["cache"]
    assert "zq7" not in str(found)
