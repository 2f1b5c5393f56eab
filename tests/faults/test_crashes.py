"""A process killed at any point leaves a whole change or none, and others deliver for it."""

from __future__ import annotations

import ast
import json
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pytest

from modelctl.crash_points import POINTS
from tests import ROOT
from tests.faults.crashing import Call, Job, Nursery, fleet
from tests.servers import Postgres, Redis
from tests.waiting import at_most, until
from tests.world import KEY, LEASE, STATS, STATUSES, VOUCH, World

BYSTANDER = "db:stats:daily"
# More than one page of a sweep.
BOARDS = 1100
OLD = {f"db:leaderboard:{n}": "old" for n in range(BOARDS)} | {STATS: "old", BYSTANDER: "mine"}
WRONG = "777"
# So that five rows are three chunks.
CHUNK = 2

# An active model that one more failure switches off, and some of each status. The first
# auto-disabled one has waited longest.
ROWS = """
    INSERT INTO models (id, display_name, active, auto_disabled, consecutive_failures, last_failure_at)
    VALUES ('on-1', 'One', true, false, 0, NULL), ('on-2', 'Two', true, false, 0, NULL),
           ('on-3', 'Three', true, false, 0, NULL), ('weak', 'Weak', true, false, 4, {ago}),
           ('off-1', 'Off', false, false, 0, NULL), ('off-2', 'Off', false, false, 0, NULL);
    INSERT INTO models (id, display_name, active, auto_disabled, consecutive_failures, last_failure_at)
    SELECT 'auto-' || n, 'Auto', false, true, 5, {ago_n} FROM {series};
"""
CLEAN = "DELETE FROM models; DELETE FROM modelctl_events; DELETE FROM modelctl_state;"
POSTGRES_ROWS = ROWS.format(
    ago="now() - interval '1 hour'",
    ago_n="now() - interval '3 hours' + n * interval '1 minute'",
    series="generate_series(1, 5) AS n",
)
SQLITE_ROWS = ROWS.format(
    ago="strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hours')",
    ago_n="strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-3 hours', '+' || n || ' minutes')",
    series="(SELECT value AS n FROM json_each('[1, 2, 3, 4, 5]'))",
)
AUTOS = [f"auto-{n}" for n in range(1, 6)]
ANOTHER_PROGRAM = "UPDATE models SET active = false WHERE id = 'on-3'"

BATCH = [
    {"id": "weak", "outcome": "failure", "type": "parse-error"},
    {"id": "auto-1", "outcome": "success"},
    *({"id": "on-2", "outcome": "failure", "type": "client-error"} for _ in range(5)),
]
CATALOG = "\n".join(
    json.dumps({"id": model_id, "name": name})
    for model_id, name in (("new-1", "N"), ("on-1", "Uno"), ("new-2", "N"), ("new-3", "N"))
)

DELIVERY = ("after-due", "after-del", "in-sweep", "before-settle")
CHANGE = ("after-commit", *DELIVERY)
# What marks an invalidation as delivered is a transaction too.
PATH = ("before-commit", "after-commit", *DELIVERY)
READ = ("after-lease", "after-snapshot")
FILL = (*READ, "in-fill")


@dataclass(frozen=True)
class Operation:
    """A call, the points it passes, and what it has done once it is committed."""

    call: Call
    path: tuple[str, ...]
    after: dict[str, str] = field(default_factory=dict)  # id -> status
    events: tuple[tuple[str, str], ...] = ()
    # What another program did before it, so that it has something to deliver.
    prepare: str = ""

    @property
    def points(self) -> list[str]:
        """Each point once."""
        return list(dict.fromkeys(self.path))


def change(
    method: str,
    *args: Any,
    after: dict[str, str],
    events: list[tuple[str, str]] | None = None,
    **options: Any,
) -> Operation:
    """Return a change; without *events*, each model that it touches has one of the same name."""
    return Operation(Call(method, args, options), PATH, after, tuple(events or []))


CHANGES = {
    "disable": change("disable", "on-1", after={"on-1": "disabled"}, events=[("on-1", "disabled")]),
    "disable several": change(
        "disable",
        "on-2",
        "auto-1",
        "on-1",
        after=dict.fromkeys(("on-1", "on-2", "auto-1"), "disabled"),
        events=[(model_id, "disabled") for model_id in ("auto-1", "on-1", "on-2")],
    ),
    "enable": change("enable", "off-1", after={"off-1": "active"}, events=[("off-1", "enabled")]),
    "enable several": change(
        "enable",
        "off-1",
        "auto-1",
        after={"off-1": "active", "auto-1": "active"},
        events=[("auto-1", "enabled"), ("off-1", "enabled")],
    ),
    "remove": change(
        "remove",
        "on-1",
        after={"on-1": "gone"},
        events=[("on-1", "removed")],
    ),
    "record-failure": change(
        "record_failure",
        "weak",
        "parse-error",
        after={"weak": "auto-disabled"},
        events=[("weak", "auto-disabled")],
    ),
    "record-success": change(
        "record_success",
        "auto-1",
        after={"auto-1": "active"},
        events=[("auto-1", "recovered")],
    ),
    "record-batch": change(
        "record_batch",
        BATCH,
        after={"weak": "auto-disabled", "auto-1": "active", "on-2": "auto-disabled"},
        events=[("auto-1", "recovered"), ("on-2", "auto-disabled"), ("weak", "auto-disabled")],
    ),
    "add": change("add", "new", after={"new": "active"}, events=[("new", "added")]),
    "import": change(
        "import_models",
        CATALOG,
        after=dict.fromkeys(("new-1", "new-2", "new-3"), "active"),
        events=[("new-1", "added"), ("new-2", "added"), ("new-3", "added"), ("on-1", "updated")],
    ),
    "recover": change(
        "recover",
        after=dict.fromkeys(AUTOS, "active"),
        events=[(model_id, "recovered") for model_id in AUTOS],
    ),
}
OTHERS = {
    "drain": Operation(Call("drain"), DELIVERY, prepare=ANOTHER_PROGRAM),
    "clear": Operation(Call("clear_cache"), DELIVERY, prepare=ANOTHER_PROGRAM),
}
OWING = {
    "count that owes": Operation(
        Call("count", options={"strong": True}),
        (*READ, "after-del", "in-fill"),
        prepare=ANOTHER_PROGRAM,
    ),
}
COUNTS = {
    "count": Operation(Call("count"), FILL),
    "count --fresh": Operation(Call("count", options={"fresh": True}), FILL),
}
OPERATIONS = CHANGES | OTHERS | OWING | COUNTS


class CrashWorld(World):
    """A world whose processes come to their end: children of the *nursery*."""

    def __init__(self, url: str, redis_url: str, nursery: Nursery) -> None:
        super().__init__(url, redis_url)
        self.nursery = nursery

    def reset(self) -> None:
        """Bring the fleet back to where each test begins, with nothing in Redis."""
        self.mourn()
        self.sql(f"{CLEAN} {POSTGRES_ROWS} DELETE FROM modelctl_events")
        self.forget()
        self.redis.flushall()

    def plant(self) -> None:
        """Put a wrong number that is believed, old stats and an old leaderboard there."""
        self.redis.mset(OLD)
        self.cache_believed(int(WRONG))

    def job(self, call: Call, point: str = "", arrival: int = 1, number: int = 9) -> Job:
        """Return a job for a child that is to die, or stop, at a point."""
        url = f"{self.database}?application_name=victim"
        return Job(url, self.redis_url, (call,), point, arrival, number, CHUNK)

    def kill(self, call: Call, point: str, arrival: int = 1) -> None:
        """Run a call in a child that is killed at the point, and see that it was."""
        end = self.nursery.run(self.job(call, point, arrival))
        assert end.killed, end
        self.mourn()

    def stop(self, call: Call, point: str) -> int:
        """Run a call in a child that is stopped at the point; return its process id."""
        pid = self.nursery.start(self.job(call, point, number=signal.SIGSTOP))
        assert self.nursery.wait(pid).stopped
        return pid

    def expire_lease(self) -> None:
        """Let the lease of a reader that died run out at once, rather than in 10 s."""
        self.redis.delete(LEASE)

    def mourn(self) -> None:
        """Wait until the server has noticed that the killed are gone."""
        self.until_server("count(*) = 0")

    def until_server(self, condition: str) -> None:
        """Wait until something is true of the server's connections from children."""
        sql = f"""
            SELECT {condition} FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'victim'"""
        until(lambda: self.sql(sql)[0][0], seconds=20, what=condition)

    # What is there

    @property
    def rows(self) -> dict[str, tuple[Any, ...]]:
        """Every row as it is, by id."""
        return {row[0]: row for row in self.sql("SELECT * FROM models")}

    @property
    def leftovers(self) -> int:
        """How many keys are there that an invalidation clears, besides the count."""
        return int(self.redis.exists(STATS)) + len(self.redis.keys("db:leaderboard:*"))

    def assert_repaired(self) -> None:
        """Nothing that was wrong can be read any more, and nothing remains to be delivered."""
        assert self.leftovers == 0
        assert self.redis.get(BYSTANDER) == "mine"
        assert self.fleet.verify().match
        assert self.redis.get(KEY) != WRONG
        assert self.fleet.count().active == self.truth
        assert self.queue[0] == 0
        assert self.fleet.drain().delivered == 0
        # A later change is seen by every count that starts after it.
        self.fleet.enable("off-2")
        counts = [self.fleet.count() for _ in range(2)]
        assert [count.active for count in counts] == [self.truth] * 2
        assert counts[1].source == "cache"

    def assert_settles(self) -> None:
        """It is all deleted once more when other programs' readers are done, and then no more."""
        self.plant()
        _, settling = self.queue
        assert settling
        self.sql("UPDATE modelctl_outbox SET due = clock_timestamp()")
        assert self.fleet.drain().delivered == settling
        assert (self.leftovers, self.queue) == (0, (0, 0))
        assert self.fleet.drain().delivered == 0
        assert self.fleet.count().active == self.truth


# Whatever comes next after a crash has to deliver what the dead one owed.
DELIVERERS: dict[str, Callable[[CrashWorld], object]] = {
    "drain": lambda world: world.fleet.drain(),
    "a change that finds nothing to do": lambda world: world.fleet.disable("off-2"),
    "clear": lambda world: world.fleet.clear_cache(),
    "recover": lambda world: world.fleet.recover(),
}


@pytest.fixture(scope="module")
def crash_database(postgres: Postgres, pg_template: str) -> Iterator[str]:
    """Give the URL of one database for the module; `world` empties it."""
    postgres.recover()
    name = postgres.create_database(pg_template)
    yield postgres.url(name)
    postgres.recover()
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def one_world(crash_database: str, redis_server: Redis, nursery: Nursery) -> Iterator[CrashWorld]:
    """Connect once for the module."""
    redis_server.recover()
    with CrashWorld(crash_database, redis_server.url(), nursery) as made:
        yield made


@pytest.fixture
def world(one_world: CrashWorld) -> CrashWorld:
    """Give a fleet of eleven models and an empty Redis."""
    one_world.reset()
    return one_world


def short(points: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Each point once in a row: how often a sweep turns a page is Redis's choice."""
    return tuple(name for name, _ in groupby(points))


# ── The points themselves ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_undisturbed_operation_passes_its_points(name: str, world: CrashWorld) -> None:
    """Without a kill the points come in this order, and everything is right afterwards."""
    operation = OPERATIONS[name]
    world.sql(operation.prepare or "SELECT")
    if name not in COUNTS:
        world.plant()
    before = world.statuses
    end = world.nursery.run(world.job(operation.call))
    assert (end.signal, end.error, end.warnings) == (0, "", ())
    assert short(end.points) == operation.path
    after = before | operation.after
    assert world.statuses == {k: status for k, status in after.items() if status != "gone"}
    assert world.events == list(operation.events)
    # A count neither sweeps nor takes the order to sweep away.
    assert world.queue[0] == (name in OWING)
    assert world.fleet.verify().match
    assert world.leftovers == (BOARDS + 1 if name in OWING else 0)


def test_every_point_is_reached() -> None:
    """The source names no point that is not listed, and an operation here passes each that is.

    tests/notify passes that of notifications.
    """
    named = []
    for path in (ROOT / "modelctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash_points.reach":
                named.append(ast.literal_eval(node.args[0]))
    assert set(named) == set(POINTS)
    passed = {name for operation in OPERATIONS.values() for name in operation.path}
    assert passed == set(POINTS) - {"after-send"}


# ── Killed ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "point"),
    [
        (name, point)
        for name, operation in (CHANGES | OTHERS).items()
        for point in operation.points
        if point not in FILL
        # All changes deliver alike: of two of a kind one is enough.
        and not (point in DELIVERY and name in ("enable several", "record-success"))
    ],
)
def test_what_a_killed_process_owed_is_delivered_by_whatever_comes_next(
    name: str, point: str, world: CrashWorld
) -> None:
    """kill -9 before COMMIT changed nothing; after it, any next step repairs all that is cached."""
    operation = OPERATIONS[name]
    for turn, deliver in enumerate(DELIVERERS.values()):
        world.reset()
        world.sql(operation.prepare or "SELECT")
        world.plant()
        rows, statuses = world.rows, world.statuses
        arrival = 1 + turn % _arrivals(name, point)
        world.kill(operation.call, point, arrival)

        after, events = _committed(operation, point, arrival)
        assert world.statuses == _changed(statuses, after)
        assert world.events == events
        touched = {model_id for model_id, _ in events}
        now = world.rows
        assert all(
            now[model_id] == row for model_id, row in rows.items() if model_id not in touched
        )
        queued, settling = world.queue
        assert settling == 0
        assert bool(queued) == bool(after or operation.prepare)
        delivering = name in OTHERS and point == "before-commit"
        _assert_cleared_so_far(world, "before-settle" if delivering else point)

        if queued:
            world.expire_lease()
            assert world.fleet.count(strong=True).active == world.truth
            assert world.fleet.count().active == world.truth
            deliver(world)
        else:
            assert world.fleet.drain().delivered == 0
            end = world.nursery.run(world.job(operation.call))
            assert (end.error, end.warnings) == ("", ())
            assert world.events == list(operation.events)
        world.assert_repaired()
        if name == "recover":
            world.fleet.recover()
            recovered = [event for event in world.events if event[1] == "recovered"]
            assert recovered == list(operation.events)
    world.assert_settles()


def _arrivals(name: str, point: str) -> int:
    """How often an operation comes by a point, at least."""
    if point == "before-commit" and name == "recover":
        return 4  # three chunks, and the note that it ran
    return 2 if point == "in-sweep" else 1


def _committed(
    operation: Operation, point: str, arrival: int
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What is committed, and its events: all or nothing, but `recover` commits each chunk."""
    if point != "before-commit":
        return operation.after, list(operation.events)
    if operation is CHANGES["recover"]:
        back = AUTOS[: CHUNK * (arrival - 1)]
        return dict.fromkeys(back, "active"), [(model_id, "recovered") for model_id in back]
    return {}, []


def _changed(statuses: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    changed = statuses | after
    return {model_id: status for model_id, status in changed.items() if status != "gone"}


def _assert_cleared_so_far(world: CrashWorld, point: str) -> None:
    """Redis is as the point says, no further and not less."""
    order = ("after-del", "in-sweep", "before-settle")
    step = order.index(point) + 1 if point in order else 0
    assert world.redis.get(KEY) == (None if step else WRONG)
    assert not (step and world.redis.exists(LEASE))
    assert not (step and world.redis.exists(VOUCH))
    assert world.redis.exists(STATS) == (step < 2)
    low, high = {2: (0, BOARDS - 1), 3: (0, 0)}.get(step, (BOARDS + 1, BOARDS + 1))
    assert low <= world.leftovers <= high


@pytest.mark.parametrize("point", FILL)
@pytest.mark.parametrize("name", [*COUNTS, *OWING])
def test_a_killed_reader_leaves_no_number_and_blocks_no_process(
    name: str, point: str, world: CrashWorld
) -> None:
    """Others count right at once; the cache works again after 10 s, or after the next change."""
    operation = OPERATIONS[name]
    for turn in range(5):
        world.reset()
        world.sql(operation.prepare or "SELECT")
        world.plant()
        world.redis.delete(VOUCH)  # so the number there is one that nobody believes
        world.kill(operation.call, point)

        assert 0 < world.redis.pttl(LEASE) <= 10_000
        assert world.redis.get(KEY) in (None, WRONG)
        with at_most(2):
            count = world.fleet.count(strong=True)
            assert (count.active, count.source) == (world.truth, "database")
        assert world.redis.get(VOUCH) is None

        if turn % 2:
            assert world.fleet.disable("on-1").cache == "invalidated"
        else:
            world.expire_lease()
        counts = [world.fleet.count() for _ in range(2)]
        assert [count.active for count in counts] == [world.truth] * 2
        assert [count.source for count in counts] == ["database", "cache"]
        assert world.queue[0] == (name in OWING and turn % 2 == 0)


@pytest.mark.parametrize("ids", [("on-1",), ("on-1", "on-2")])
def test_a_statement_whose_client_died_changes_nothing(
    ids: tuple[str, ...], world: CrashWorld
) -> None:
    """If the client is killed while the server works, nothing is committed."""
    for _ in range(5):
        world.reset()
        world.plant()
        with psycopg.connect(world.database) as holder:
            holder.execute("SELECT FROM models WHERE id = 'on-1' FOR UPDATE")
            pid = world.nursery.start(world.job(Call("disable", ids)))
            world.until_server("bool_or(wait_event_type = 'Lock')")
            assert world.nursery.end(pid).killed
        world.mourn()
        assert [world.statuses[model_id] for model_id in ids] == ["active"] * len(ids)
        assert (world.events, world.queue) == ([], (0, 0))
        world.fleet.disable("off-2")
        world.assert_repaired()


# ── Stopped, and going on later ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("point", FILL)
@pytest.mark.parametrize("name", COUNTS)
def test_a_reader_that_slept_through_a_change_stores_nothing(
    name: str, point: str, world: CrashWorld
) -> None:
    """What it counted is not in the cache afterwards, and the next count is right."""
    old = world.truth
    pid = world.stop(COUNTS[name].call, point)
    assert world.fleet.disable("on-1").cache == "invalidated"
    end = world.nursery.resume(pid)
    assert end.error == ""
    # It began before the change, so it may answer what was true then.
    assert end.results[0]["active"] == (old - 1 if point == "after-lease" else old)
    assert world.redis.get(KEY) is None
    counts = [world.fleet.count() for _ in range(2)]
    assert [(count.active, count.source) for count in counts] == [
        (old - 1, "database"),
        (old - 1, "cache"),
    ]


@pytest.mark.parametrize("point", FILL)
def test_a_reader_that_slept_longer_than_its_lease_takes_no_other_lease(
    point: str, world: CrashWorld
) -> None:
    """A reader that slept longer than its lease neither stores its number nor ends the next lease."""
    first = world.stop(Call("count"), point)
    world.fleet.disable("on-1")
    second = world.stop(Call("count"), "after-snapshot")
    nonce = world.redis.get(LEASE)
    assert nonce
    assert world.nursery.resume(first).error == ""
    assert world.redis.get(KEY) is None
    assert world.redis.get(LEASE) == nonce
    assert world.nursery.resume(second).results[0]["active"] == world.truth
    assert world.redis.get(KEY) == str(world.truth)
    assert world.fleet.count().source == "cache"


@pytest.mark.parametrize("point", CHANGE)
def test_a_writer_that_slept_while_another_delivered_ends_well(
    point: str, world: CrashWorld
) -> None:
    """The invalidation of a writer that slept is delivered a second time, which is harmless."""
    world.plant()
    pid = world.stop(Call("disable", ("on-1",)), point)
    assert world.fleet.drain().delivered == 1
    assert world.fleet.count().active == world.truth
    end = world.nursery.resume(pid)
    assert end.error == ""
    assert end.results[0]["cache"] == "invalidated"
    world.assert_repaired()


@pytest.mark.parametrize("point", DELIVERY)
def test_a_delivery_takes_nothing_along_that_it_did_not_see(point: str, world: CrashWorld) -> None:
    """A change that commits during another invalidation stays queued for its own."""
    world.plant()
    pid = world.stop(Call("disable", ("on-1",)), point)
    world.sql(ANOTHER_PROGRAM)
    assert world.nursery.resume(pid).results[0]["cache"] == "invalidated"
    assert world.queue == (1, 1)
    assert world.fleet.drain().delivered == 1
    world.assert_repaired()


def test_a_reader_that_finds_its_debt_paid_by_another_fills(world: CrashWorld) -> None:
    """A reader fills the cache if the invalidation that it saw queued is delivered meanwhile."""
    writer = world.stop(Call("disable", ("on-1",)), "before-settle")
    reader = world.stop(Call("count"), "after-snapshot")
    assert world.nursery.resume(writer).results[0]["cache"] == "invalidated"
    assert world.nursery.resume(reader).results[0]["active"] == world.truth
    assert world.redis.exists(LEASE) == 0
    count = world.fleet.count()
    assert (count.active, count.source) == (world.truth, "cache")


def test_a_number_written_after_the_del_is_not_believed(world: CrashWorld) -> None:
    """Another program's old number that comes right after the DEL has nothing that vouches for it."""
    pid = world.stop(Call("disable", ("on-1",)), "after-del")
    world.redis.mset(OLD)
    world.redis.set(KEY, WRONG, ex=60)
    assert world.nursery.resume(pid).error == ""
    assert world.redis.get(KEY) == WRONG
    count = world.fleet.count()
    assert (count.active, count.source) == (world.truth, "database")
    world.assert_repaired()


# ── SQLite ──────────────────────────────────────────────────────────────────────────────────────


class FileWorld(World):
    """The same fleet in a SQLite file."""

    def job(self, call: Call, point: str = "", arrival: int = 1) -> Job:
        """Return a job for a child that is to die at a point."""
        return Job(self.database, "", (call,), point, arrival, chunk=CHUNK)

    def assert_right(self) -> None:
        """The file is intact, and the count is that of the rows: read, filled, and from the cache."""
        assert self.sql("PRAGMA integrity_check") == [("ok",)]
        counts = [self.fleet.count() for _ in range(2)]
        assert [count.active for count in counts] == [self.truth] * 2
        assert counts[1].source == "cache"


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a SQLite database with the fleet in it."""
    path = tmp_path_factory.mktemp("crashes") / "models.db"
    with fleet(f"sqlite:///{path}", "") as made:
        made.upgrade()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SQLITE_ROWS)
    return path


@pytest.fixture
def files(sqlite_template: Path, tmp_path: Path) -> Iterator[FileWorld]:
    """Give copies of the database, one after the other."""

    def copies() -> Iterator[FileWorld]:
        for number in range(5):
            path = tmp_path / f"{number}.db"
            shutil.copy(sqlite_template, path)
            with FileWorld(f"sqlite:///{path}") as file:
                yield file

    return copies()


@pytest.mark.parametrize("point", ["", "before-commit", "after-commit"])
@pytest.mark.parametrize("name", ["disable", "record-failure", "record-batch", "import", "recover"])
def test_a_killed_change_leaves_a_sqlite_file_whole(
    name: str, point: str, files: Iterator[FileWorld], nursery: Nursery
) -> None:
    """kill -9 changes nothing or all; the cached count is right with nothing to deliver."""
    operation = CHANGES[name]
    for turn, file in enumerate(files):
        file.assert_right()  # and the count is cached now
        statuses = file.statuses
        arrival = 1 + turn % _arrivals(name, point)
        end = nursery.run(file.job(operation.call, point, arrival))
        if point:
            assert end.killed, end
        else:
            assert (end.signal, end.error) == (0, "")
            assert short(end.points) == ("before-commit", "after-commit")
        after, events = _committed(operation, point, arrival)
        assert file.statuses == _changed(statuses, after)
        assert file.events == events
        assert file.fleet.count().source == ("database" if after else "cache")
        file.assert_right()
        if turn == 0:
            assert nursery.run(file.job(operation.call)).error == ""
            file.assert_right()
        if not point:
            break


@pytest.mark.parametrize("point", READ)
def test_a_killed_reader_blocks_no_process_on_sqlite(
    point: str, files: Iterator[FileWorld], nursery: Nursery
) -> None:
    """Others count right at once; the cache works again after 10 s, or after the next change."""
    for turn, file in enumerate(files):
        assert nursery.run(file.job(Call("count"), point)).killed
        count = file.fleet.count()
        assert (count.active, count.source) == (file.truth, "database")
        assert file.sql("SELECT value FROM modelctl_cache") == [(None,)]
        if turn % 2:
            file.fleet.disable("on-1")
        else:
            file.sql("UPDATE modelctl_cache SET expires_at = expires_at - 10")
        file.assert_right()


# ── For long ────────────────────────────────────────────────────────────────────────────────────

FLEET = ["on-1", "on-2", "on-3", "weak", "off-1", "off-2", *AUTOS, "new"]
# In one statement: the active models, their number, whether a first invalidation is queued.
STATE = """
    SELECT (SELECT coalesce(string_agg(id, ' ' ORDER BY id), '') FROM models WHERE active),
           (SELECT count(*) FROM models WHERE active),
           EXISTS (SELECT FROM modelctl_outbox WHERE NOT settle)"""
# Models whose last event does not say what they are.
UNTOLD = f"""
    SELECT * FROM ({STATUSES}) AS now (id, status) FULL JOIN (
        SELECT DISTINCT ON (model_id) model_id, after
        FROM modelctl_events ORDER BY model_id, id DESC
    ) AS told ON now.id = told.model_id
    WHERE model_id IS NOT NULL AND status IS DISTINCT FROM after"""


def _random_call(dice: random.Random) -> tuple[Call, list[str]]:
    """Return something that a person or a program may do now, and the points on its way."""
    some = dice.sample(FLEET, dice.choice((1, 1, 2, 3)))
    outcomes = ("success", "failure")
    batch = [
        {"id": dice.choice(some), "outcome": dice.choice(outcomes), "type": "parse-error"}
        for _ in range(12)
    ]
    for outcome in batch:
        if outcome["outcome"] == "success":
            del outcome["type"]
    calls: dict[str, Call] = {
        "disable": Call("disable", tuple(some)),
        "enable several": Call("enable", tuple(some)),
        "remove": Call("remove", ("new",)),
        "add": Call("add", ("new",)),
        "record-failure": Call("record_failure", (some[0], "client-error")),
        "record-success": Call("record_success", (some[0],)),
        "record-batch": Call("record_batch", (batch,)),
        "import": Call("import_models", (CATALOG,)),
        "recover": Call("recover", options={"cooldown": 0}),
        "drain": Call("drain"),
    }
    name = dice.choice(list(calls))
    return calls[name], OPERATIONS[name].points


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_kills_lose_no_invalidation(
    world: CrashWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """With two writers and a reader, one of them killed anywhere, nothing wrong stays cached."""
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    begin = time.monotonic()
    kills: Counter[str] = Counter()
    rounds = owed_rounds = 0
    while kills.total() < 1000:
        rounds += 1
        told = f"seed {seed}, round {rounds}"
        active, truth, owed = world.sql(STATE)[0]
        assert not owed, told
        # As they are now: what is there later must still be so, or a delivery is owed.
        world.redis.mset(
            {"db:leaderboard:top": active, "db:leaderboard:new": active, STATS: active}
        )
        chance = dice.random()
        if chance < 0.3:
            world.redis.set(KEY, truth, ex=60)
        elif chance < 0.6:
            world.redis.delete(KEY)

        jobs = [_random_call(dice), _random_call(dice)]
        fresh = dice.choice(({}, {"fresh": True}, {"strong": True}))
        jobs.append((Call("count", options=fresh), [*FILL, *FILL, *DELIVERY]))
        dice.shuffle(jobs)
        victim = dice.randrange(3)
        pids = []
        for index, (call, way) in enumerate(jobs):
            point = dice.choice(way) if index == victim else ""
            pids.append(world.nursery.start(world.job(call, point, dice.choice((1, 1, 1, 2)))))
        ends = [world.nursery.wait(pid) for pid in pids]
        for index, end in enumerate(ends):
            if end.killed:
                assert index == victim, told
                kills[jobs[index][0].method] += 1
            # Somebody may have removed it; a change never fails for another reason.
            assert end.error in ("", "model_not_found"), (told, jobs[index], end)
        world.mourn()

        active, truth, owed = world.sql(STATE)[0]
        owed_rounds += owed
        if not owed:
            _assert_nothing_old(world, active, truth, told)
        assert world.sql(UNTOLD) == [], told
        assert world.fleet.count(strong=True).active == truth, told
        dice.choice(list(DELIVERERS.values()))(
            world
        ) if dice.random() < 0.5 else world.fleet.drain()
        world.fleet.drain()
        active, truth, owed = world.sql(STATE)[0]
        assert not owed, told
        _assert_nothing_old(world, active, truth, told)
        assert world.fleet.count().active == truth, told
    seconds = time.monotonic() - begin
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kills.total()} kills in {rounds} rounds and {seconds:.0f} s; {owed_rounds} rounds"
            f" owed an invalidation; killed: {dict(kills)}\n"
        )
    assert kills.total() >= 1000


def _assert_nothing_old(world: CrashWorld, active: str, truth: int, told: str) -> None:
    """Every value that can be read is of the models as they are."""
    verified = world.fleet.verify()
    assert verified.cached in (None, truth), told
    left = {STATS, *world.redis.keys("db:leaderboard:*")}
    assert {world.redis.get(key) for key in left} <= {None, active}, told
