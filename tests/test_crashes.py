from __future__ import annotations

import ast
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlite3

from modelctl.fleet import Fleet
from modelctl.points import POINTS
from tests.conftest import ROOT
from tests.crashing import Call, End, Job, Nursery, fleet
from tests.servers import Postgres, Redis

K = "db:models:count:active"
LEASE, TOMB = f"{{{K}}}:lease", f"{{{K}}}:tomb"
STATS, BOARD, BYSTANDER = "db:stats:overall", "db:leaderboard:{}", "db:stats:daily"
# More than one page of a sweep.
BOARDS = 1500
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
    series="(VALUES (1), (2), (3), (4), (5)) AS v(n)".replace(
        "(VALUES (1), (2), (3), (4), (5)) AS v(n)",
        "(SELECT value AS n FROM json_each('[1,2,3,4,5]'))",
    ),
)
AUTOS = [f"auto-{n}" for n in range(1, 6)]
ANOTHER_PROGRAM = "UPDATE models SET active = false WHERE id = 'on-3'"

BATCH = [
    {"id": "weak", "outcome": "failure", "type": "parse-error"},
    {"id": "on-1", "outcome": "success"},
    {"id": "auto-1", "outcome": "success"},
    *({"id": "on-2", "outcome": "failure", "type": "client-error"} for _ in range(5)),
]
CATALOG = "\n".join(
    json.dumps({"id": model_id, "name": name})
    for model_id, name in (("new-1", "N"), ("on-1", "Uno"), ("new-2", "N"), ("new-3", "N"))
)

DELIVERY = ("after-due", "after-del", "after-tomb", "in-sweep", "before-settle")
CHANGE = ("after-commit", *DELIVERY)
READ = ("after-lease", "after-snapshot")


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
    one_statement: bool = False,
    **options: Any,
) -> Operation:
    """Return a change; without *events*, each model that it touches has one of the same name."""
    path = CHANGE if one_statement else ("before-commit", *CHANGE)
    return Operation(Call(method, args, options), path, after, tuple(events or []))


CHANGES = {
    "disable": change(
        "disable",
        "on-1",
        after={"on-1": "disabled"},
        events=[("on-1", "disabled")],
        one_statement=True,
    ),
    "disable several": change(
        "disable",
        "on-2",
        "auto-1",
        "on-1",
        after=dict.fromkeys(("on-1", "on-2", "auto-1"), "disabled"),
        events=[(model_id, "disabled") for model_id in ("auto-1", "on-1", "on-2")],
    ),
    "enable": change(
        "enable",
        "off-1",
        after={"off-1": "active"},
        events=[("off-1", "enabled")],
        one_statement=True,
    ),
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
        one_statement=True,
    ),
    "record-failure": change(
        "record_failure",
        "weak",
        "parse-error",
        after={"weak": "auto-disabled"},
        events=[("weak", "auto-disabled")],
        one_statement=True,
    ),
    "record-success": change(
        "record_success",
        "auto-1",
        after={"auto-1": "active"},
        events=[("auto-1", "recovered")],
        one_statement=True,
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
    "clear": Operation(
        Call("clear_cache"), ("after-del", "after-tomb", "in-sweep"), prepare=ANOTHER_PROGRAM
    ),
    "count that delivers": Operation(
        Call("count", options={"strong": True}),
        (*READ, *DELIVERY, "in-fill"),
        prepare=ANOTHER_PROGRAM,
    ),
}
COUNTS = {
    "count": Operation(Call("count"), (*READ, "in-fill")),
    "count --fresh": Operation(Call("count", options={"fresh": True}), (*READ, "in-fill")),
}
OPERATIONS = CHANGES | OTHERS | COUNTS

# Whatever comes next after a crash has to deliver what the dead one owed.
DELIVERERS: dict[str, Callable[[World], object]] = {
    "drain": lambda world: world.fleet.drain(),
    "a change that finds nothing to do": lambda world: world.fleet.disable("off-2"),
    "a count that missed": lambda world: (world.redis.delete(K), world.fleet.count()),
    "a strong count": lambda world: world.fleet.count(strong=True),
    "recover": lambda world: world.fleet.recover(),
}


class World:
    """A database and a Redis with a fleet, and the processes that come to their end there."""

    def __init__(self, url: str, redis_url: str, server: Redis, nursery: Nursery) -> None:
        self.url, self.redis_url, self.nursery = url, redis_url, nursery
        self.redis = server.client()
        self.fleet = fleet(url, redis_url)
        self.sql = psycopg.connect(url, autocommit=True, connect_timeout=10)

    def close(self) -> None:
        """Close all connections."""
        self.sql.close()
        self.fleet.close()
        self.redis.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL as another program would; return the rows of the last statement."""
        cursor = self.sql.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    def reset(self) -> None:
        """Bring the fleet back to where each test begins, with nothing in Redis."""
        self.mourn()
        self.query(f"{CLEAN} {POSTGRES_ROWS} DELETE FROM modelctl_outbox")
        self.redis.flushall()

    def plant(self) -> None:
        """Put a wrong number, old stats and an old leaderboard there, as other programs do."""
        boards = {BOARD.format(n): "old" for n in range(BOARDS)}
        self.redis.mset(boards | {STATS: "old", BYSTANDER: "mine"})
        self.redis.setex(K, 60, WRONG)

    def job(self, call: Call, point: str = "", arrival: int = 1, number: int = 9) -> Job:
        """Return a job for a child that is to die, or stop, at a point."""
        url = f"{self.url}?application_name=victim"
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

    def mourn(self) -> None:
        """Wait until the server has noticed that the killed are gone."""
        self.until("count(*) = 0")

    def until(self, condition: str) -> None:
        """Wait until something is true of the server's connections from children."""
        sql = f"""
            SELECT {condition} FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'victim'"""
        deadline = time.monotonic() + 20
        while not self.query(sql)[0][0]:
            assert time.monotonic() < deadline, condition
            time.sleep(0.002)

    # What is there

    @property
    def truth(self) -> int:
        """COUNT(*) of the active models."""
        return int(self.query("SELECT count(*) FROM models WHERE active")[0][0])

    @property
    def rows(self) -> dict[str, tuple[Any, ...]]:
        """Every row as it is, by id."""
        return {row[0]: row for row in self.query("SELECT * FROM models")}

    @property
    def statuses(self) -> dict[str, str]:
        """Every model's status."""
        return {model.id: str(model.status) for model in self.fleet.list_models()}

    @property
    def events(self) -> list[tuple[Any, ...]]:
        """The history as model and event, in the order of the ids."""
        return self.query("SELECT model_id, event FROM modelctl_events ORDER BY model_id, id")

    @property
    def outbox(self) -> tuple[int, int]:
        """How many invalidations are queued, and how many wait for their settle pass."""
        report = self.fleet.cache_report()
        return report.queued, report.settling

    @property
    def leftovers(self) -> int:
        """How many keys are there that an invalidation clears, besides the count."""
        return int(self.redis.exists(STATS)) + len(list(self.redis.scan_iter("db:leaderboard:*")))

    def assert_repaired(self) -> None:
        """Nothing that was wrong can be read any more, and nothing remains to be delivered."""
        assert self.leftovers == 0
        assert self.redis.get(BYSTANDER) == "mine"
        assert self.fleet.verify().match
        assert self.redis.get(K) != WRONG
        assert self.fleet.count().active == self.truth
        assert self.outbox[0] == 0
        assert self.fleet.drain().delivered == 0
        # A later change is seen by every count that starts after it.
        self.fleet.enable("off-2")
        counts = [self.fleet.count() for _ in range(2)]
        assert [count.active for count in counts] == [self.truth] * 2
        assert counts[1].source == "cache"
        # And once more when other programs' readers have settled.
        _, settling = self.outbox
        assert settling
        self.query("UPDATE modelctl_outbox SET due = clock_timestamp()")
        assert self.fleet.drain().delivered == settling
        assert self.outbox == (0, 0)
        assert self.fleet.count().active == self.truth


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Run one process for the module that forks the children."""
    with Nursery() as process:
        yield process


@pytest.fixture(scope="module")
def crash_database(postgres: Postgres, pg_template: str) -> Iterator[str]:
    """Give the URL of one database for the module; `world` empties it."""
    postgres.recover()
    name = postgres.create_database(pg_template)
    yield postgres.url(name)
    postgres.recover()
    postgres.drop_database(name)


@pytest.fixture
def world(
    crash_database: str, redis_url: str, redis_server: Redis, nursery: Nursery
) -> Iterator[World]:
    """Give a fleet of eleven models and an empty Redis."""
    with closing(World(crash_database, redis_url, redis_server, nursery)) as made:
        made.reset()
        yield made


def short(points: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Each point once in a row: how often a sweep turns a page is Redis's choice."""
    return tuple(name for name, _ in groupby(points))


# ── The points themselves ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_undisturbed_operation_passes_its_points(name: str, world: World) -> None:
    """Nobody is killed: the points come in this order, and everything is right afterwards."""
    operation = OPERATIONS[name]
    world.query(operation.prepare or "SELECT")
    if name not in COUNTS:
        world.plant()
    before = world.statuses
    end = world.nursery.run(world.job(operation.call))
    assert (end.signal, end.error, end.warnings) == (0, "", ())
    assert short(end.points) == operation.path
    after = before | operation.after
    assert world.statuses == {k: status for k, status in after.items() if status != "gone"}
    assert world.events == list(operation.events)
    assert world.outbox[0] == 0
    assert world.fleet.verify().match
    assert world.leftovers == 0


def test_every_point_is_reached() -> None:
    """The source names no point that is not listed, and an operation here passes each that is."""
    named = []
    for path in (ROOT / "modelctl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("points.reach", "reach"):
                named.append(ast.literal_eval(node.args[0]))
    assert set(named) == set(POINTS)
    assert {name for operation in OPERATIONS.values() for name in operation.path} == set(POINTS)


# ── Killed ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "point"),
    [
        (name, point)
        for name, operation in (CHANGES | OTHERS).items()
        for point in operation.points
        if point not in READ
    ],
)
def test_a_killed_operation_is_whole_and_what_it_owed_is_delivered(
    name: str, point: str, world: World
) -> None:
    """kill -9 before COMMIT changed nothing; after it, whatever comes next repairs all caches."""
    operation = OPERATIONS[name]
    for turn, deliver in enumerate(DELIVERERS.values()):
        world.reset()
        world.query(operation.prepare or "SELECT")
        world.plant()
        rows, statuses = world.rows, world.statuses
        commits = 4 if name == "recover" else 1
        arrivals = {"before-commit": commits, "in-sweep": 2}.get(point, 1)
        arrival = 1 + turn % arrivals
        world.kill(operation.call, point, arrival)

        done = _done(operation, point, arrival)
        assert world.statuses == {
            model_id: status
            for model_id, status in (statuses | done).items()
            if status != "gone"
        }
        named = {model_id for model_id, _ in operation.events} if done else set()
        assert world.events == [event for event in operation.events if event[0] in (done or ()) or point != "before-commit"]
        untouched = set(rows) - named - ({"on-1"} if name == "record-batch" else set())
        assert all(world.rows[model_id] == rows[model_id] for model_id in untouched)
        queued, settling = world.outbox
        assert settling == 0
        assert bool(queued) == bool(done or operation.prepare)
        _assert_cleared_so_far(world, point, arrival)

        if not queued:
            assert world.fleet.drain().delivered == 0
            end = world.nursery.run(world.job(operation.call))
            assert (end.error, end.warnings) == ("", ())
            assert world.events == list(operation.events)
        else:
            deliver(world)
        world.assert_repaired()


def _done(operation: Operation, point: str, arrival: int) -> dict[str, str]:
    """What is committed: all or nothing, but `recover` commits each chunk."""
    if point != "before-commit":
        return operation.after
    if operation is CHANGES["recover"]:
        return dict.fromkeys(AUTOS[: CHUNK * (arrival - 1)], "active")
    return {}


def _assert_cleared_so_far(world: World, point: str, arrival: int) -> None:
    """The caches are as far as the point says."""
    order = ("after-del", "after-tomb", "in-sweep", "before-settle", "in-fill")
    step = order.index(point) + 1 if point in order else 0
    assert world.redis.get(K) == (WRONG if step == 0 else None)
    assert world.redis.exists(LEASE) == (point == "in-fill")
    assert world.redis.exists(TOMB) == (step >= 2)
    assert world.redis.exists(STATS) == (step < 3)
    assert (world.leftovers == 0) == (step > 3 or (step == 3 and arrival == 2))
