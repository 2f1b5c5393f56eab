"""What breaks outside, at every step: Redis, PostgreSQL, the file, and the way to them."""

from __future__ import annotations

import resource
import shutil
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pytest
import redis
import sqlalchemy as sa

from modelctl import (
    DatabaseUnavailableError,
    Fleet,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    points,
    sqlite,
    store,
)
from modelctl.model import CacheState, Count
from tests import commands, fleets, servers
from tests.fleets import opened, seed, sql, trip
from tests.servers import Postgres, Redis

K = "db:models:count:active"
LEASE, TOMB = f"{{{K}}}:lease", f"{{{K}}}:tomb"
STATS, BOARD = "db:stats:overall", "db:leaderboard:7"
QUEUE = "SELECT count(*) FILTER (WHERE NOT settle), count(*) FILTER (WHERE settle)"


# A way to a server that breaks


class Relay:
    """Stands between a client and a server that answers one request after the other.

    `fault` is asked for every request what becomes of it: None (nothing special), ``drop`` (the
    connection ends before the server gets it), ``lose`` (it ends when the server has answered),
    ``cut`` (in the middle of the answer), ``reset`` (like drop, without a goodbye), or bytes to
    answer in the place of Redis.
    """

    def __init__(
        self, server: int, request: Callable[[BinaryIO], bytes], answer: Callable[[BinaryIO], bytes]
    ) -> None:
        self.requests: list[bytes] = []
        self.fault: Callable[[bytes], str | bytes | None] = _no_fault
        self._server = server
        self._request = request
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Let nobody in any more, and wait for those inside to leave."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def heal(self) -> None:
        """Break nothing from now on, and forget the requests."""
        self.fault = _no_fault
        self.requests.clear()

    def break_at(self, step: int, how: str | bytes, *, once: bool) -> None:
        """Break a request, and all that follow unless *once*; the first one is step 0."""
        self.requests.clear()

        def fault(request: bytes) -> str | bytes | None:
            now = len(self.requests) - 1
            return how if now == step or (now > step and not once) else None

        self.fault = fault

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[client])
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            client.makefile("rb") as asked,
            socket.create_connection(("127.0.0.1", self._server)) as server,
            server.makefile("rb") as answered,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while request := self._request(asked):
                self.requests.append(request)
                how = self.fault(request)
                if how == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if how in ("drop", "reset"):
                    return
                server.sendall(_refused(request) if isinstance(how, bytes) else request)
                answer = self._answer(answered)
                if isinstance(how, bytes):
                    answer = how
                if how == "cut":
                    client.sendall(answer[: len(answer) // 2])
                if how in ("cut", "lose") or not answer:
                    return
                client.sendall(answer)


def _refused(request: bytes) -> bytes:
    """Return what lets Redis fail as if it had refused the request, also for a transaction."""
    return b"DISCARD\r\n" if b"EXEC" in request else b"GET\r\n"


def _no_fault(request: bytes) -> None:
    """Everything works."""


def _resp(stream: BinaryIO) -> bytes:
    """Read one value of Redis's protocol, which is what requests and answers are."""
    read = stream.readline()
    if read[:1] == b"$" and int(read[1:]) >= 0:
        read += stream.read(int(read[1:]) + 2)
    elif read[:1] == b"*":
        for _ in range(int(read[1:])):
            read += _resp(stream)
    return read


def _postgres_messages(stream: BinaryIO, last: bytes) -> bytes:
    """Read messages of PostgreSQL's protocol until one of the types in *last*."""
    read = b""
    while len(head := stream.read(5)) == 5:
        if not head[0]:  # the first message of a connection has a length alone
            return head + stream.read(int.from_bytes(head[:4]) - 5)
        read += head + stream.read(int.from_bytes(head[1:]) - 4)
        if head[:1] in last:
            break
    return read


def _postgres_request(stream: BinaryIO) -> bytes:
    return _postgres_messages(stream, b"QSX")


def _postgres_answer(stream: BinaryIO) -> bytes:
    return _postgres_messages(stream, b"Z")


class World:
    """A fleet on servers that are behind relays, and the servers as other programs see them."""

    def __init__(self, postgres: Postgres, database: str, redis_server: Redis) -> None:
        self.url = postgres.url(database)
        self.server = redis_server
        self.to_postgres = Relay(postgres.port, _postgres_request, _postgres_answer)
        self.to_redis = Relay(redis_server.port, _resp, _resp)
        self.redis = redis.Redis.from_url(redis_server.url(), decode_responses=True)
        self.warnings: list[str] = []
        self.fleet = self.open("")
        self.other = opened(self.url, redis_url=redis_server.url())
        self._postgres = psycopg.connect(self.url, autocommit=True)

    def open(self, login: str, query: str = "", **settings: object) -> Fleet:
        """Return a fleet that goes through the relays, with one connection as a command has."""
        fleet = opened(
            self.url.replace(self.url.split("/")[2], f"postgres@127.0.0.1:{self.to_postgres.port}")
            + "?sslmode=disable&gssencmode=disable"
            + query,
            redis_url=f"redis://{login}127.0.0.1:{self.to_redis.port}/0",
            database_pool_size=1,
            **settings,
        )
        fleet.on_warning = self.warnings.append
        return fleet

    def close(self) -> None:
        """Close what was opened."""
        for it in (self.fleet, self.other, self.redis, self._postgres):
            it.close()
        for relay in (self.to_postgres, self.to_redis):
            relay.close()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as another program."""
        cursor = self._postgres.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def renew(self, *rows: str) -> None:
        """Begin with these rows, nothing queued, a right count and other old values in Redis."""
        self.to_postgres.heal()
        self.to_redis.heal()
        self.warnings.clear()
        self.sql("DELETE FROM models; DELETE FROM modelctl_events; DELETE FROM modelctl_state")
        self.sql("INSERT INTO models (id) SELECT 'm' || n FROM generate_series(0, 4) AS n")
        for row in rows:
            self.sql(row)
        self.sql("DELETE FROM modelctl_outbox")
        self.redis.flushall()
        self.redis.mset({STATS: "old", BOARD: "old"})
        self.setex(self.truth())

    def setex(self, value: object) -> None:
        """Store a count as another program does."""
        self.redis.execute_command("SETEX", K, 50, value)  # type: ignore[no-untyped-call]

    def truth(self) -> int:
        """Return the count that everybody must see."""
        return int(self.sql("SELECT count(*) FROM models WHERE active")[0][0])

    def state(self) -> Any:
        """Return what a change may change."""
        columns = "id, provider, active, auto_disabled, consecutive_failures, success_count"
        rows = self.sql(f"SELECT {columns}, failure_count FROM models ORDER BY id")
        columns = "model_id, event, before, after, reason"
        return rows, self.sql(f"SELECT {columns} FROM modelctl_events ORDER BY id")

    def queue(self) -> tuple[int, int]:
        """Return how many invalidations are queued, and how many settle."""
        queued, settling = self.sql(f"{QUEUE} FROM modelctl_outbox")[0]
        return queued, settling

    def assert_right(self) -> None:
        """Whoever counts now gets the right number, and so do those who find it cached."""
        self.redis.delete(LEASE)  # of a reader that was cut off, which would live for 10 s
        truth = self.truth()
        assert self.other.count().active == truth
        hit = self.fleet.count()
        assert (hit.active, hit.source) == (truth, "cache")

    def assert_delivered(self) -> None:
        """Nothing old can be read, and nothing is queued."""
        assert not self.redis.exists(STATS, BOARD)
        assert self.queue()[0] == 0
        self.assert_right()


@pytest.fixture(scope="module")
def one_world(postgres: Postgres, pg_template: str) -> Iterator[World]:
    """Make one database and one Redis for the module, with the ways to them."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        world = World(postgres, postgres.create_database(pg_template), server)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
def world(one_world: World) -> World:
    """Give five models in PostgreSQL with their count in Redis."""
    one_world.renew()
    return one_world


# Redis


def names(requests: list[bytes]) -> str:
    """Return what Redis was asked."""
    return b" ".join(request.split(b"\r\n")[2] for request in requests).decode()


# The connection's ends, and what a server in some state answers.
ENDS = {"ends": "drop", "is reset": "reset", "loses the answer": "lose", "cuts the answer": "cut"}
ANSWERS: dict[str, bytes] = {
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "MISCONF": b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
    "WRONGTYPE": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "BUSY": b"-BUSY Redis is busy running a script.\r\n",
}
REFUSALS: dict[str, bytes] = {
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "WRONGPASS": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    "NOPERM": b"-NOPERM User default has no permissions to run this command\r\n",
}
FAULTS: dict[str, str | bytes] = {**ENDS, **ANSWERS, **REFUSALS}
any_fault = pytest.mark.parametrize("how", FAULTS.values(), ids=FAULTS)
# What a count asks of Redis: with the number there, without, and with a change to deliver.
FILL = "WATCH GET MULTI SET SET DEL EXEC"
COUNTS = {
    "hit": "MGET PTTL",
    "miss": f"MGET PTTL SET {FILL}",
    "delivers": f"MGET PTTL SET DEL SET DEL SCAN UNLINK SET {FILL}",
}
CHANGE = "DEL SET DEL SCAN UNLINK"


@any_fault
@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_with_a_fault_at_any_step(world: World, kind: str, how: str | bytes) -> None:
    """It is right with one warning, and Redis is asked nothing more."""

    def prepare() -> None:
        world.renew()
        if kind != "hit":
            world.redis.delete(K)
        if kind == "delivers":
            world.sql("UPDATE models SET active = FALSE WHERE id = 'm4'")

    prepare()
    active = world.truth()
    assert world.fleet.count().active == active
    assert names(world.to_redis.requests) == COUNTS[kind]
    steps = COUNTS[kind].split()
    for step, command in enumerate(steps):
        for once in (True, False):
            if command == "MULTI" and once and isinstance(how, bytes):
                continue  # who refuses this refuses the rest, too
            prepare()
            world.to_redis.break_at(step, how, once=once)
            started = time.monotonic()
            assert world.fleet.count().active == active
            assert time.monotonic() - started < 1.0
            # redis-py takes what ends a connection that watches for a lost race: no fault.
            ends = isinstance(how, str) or how[1:5] in (b"LOAD", b"NOAU", b"WRON")
            if world.warnings or not (ends and command == "GET"):
                (warning,) = world.warnings
                assert "counted from the database" in warning
                assert ("refuses this user" in warning) == (how in REFUSALS.values())
            assert len(world.to_redis.requests) <= len(steps)
            world.to_redis.heal()
            world.warnings.clear()
            world.assert_right()
            assert not world.warnings


@any_fault
def test_a_change_with_a_fault_at_any_step(
    world: World, how: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fault is overcome, one that stays is queued; being refused is not tried again."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    refused = how in REFUSALS.values()
    world.renew()
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    assert names(world.to_redis.requests) == CHANGE
    for step in range(len(CHANGE.split())):
        for once in (True, False):
            world.renew()
            world.to_redis.break_at(step, how, once=once)
            with monkeypatch.context() as patch:
                if not once:
                    patch.setattr("modelctl.fleet.INVALIDATE_SECONDS", 0.02)
                result = world.fleet.disable("m1", "m2")
            assert [change.changed for change in result.changes] == [True, True]
            asked = len(world.to_redis.requests)
            world.to_redis.heal()
            if once and not refused:
                assert result.cache == CacheState.INVALIDATED
                assert not world.warnings
            else:
                assert result.cache == CacheState.QUEUED
                (warning,) = world.warnings
                assert "queued" in warning
                assert ("refuses this user" in warning) == refused
                assert not refused or asked == step + 1
                assert world.queue() == (1, 0)
                assert world.fleet.drain().cache == CacheState.INVALIDATED
            world.assert_delivered()


# What an administrator does to a server, how it is undone, and what the URL says of the user.
NOBODY = servers.refused_port()
STATES: dict[str, tuple[list[str], list[str], str]] = {
    "READONLY": ([f"REPLICAOF 127.0.0.1 {NOBODY}"], ["REPLICAOF NO ONE"], ""),
    "MASTERDOWN": (
        ["CONFIG SET replica-serve-stale-data no", f"REPLICAOF 127.0.0.1 {NOBODY}"],
        ["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
        "",
    ),
    "memory": (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"], ""),
    "good replicas": (
        ["CONFIG SET min-replicas-to-write 1"],
        ["CONFIG SET min-replicas-to-write 0"],
        "",
    ),
}
DENIED = {
    "no password": (["CONFIG SET requirepass zq7"], [], ""),
    "wrong password": (["CONFIG SET requirepass zq7"], [], ":zq7wrong@"),
    "a password too many": ([], [], ":zq7wrong@"),
    "unknown user": ([], [], "joe:zq7wrong@"),
    "no rights": (["ACL SETUSER default -@all"], [], ""),
    "other keys": (["ACL SETUSER default resetkeys ~app:*"], [], ""),
}
MEND = ["CONFIG SET requirepass ''", "ACL SETUSER default on nopass ~* &* +@all"]


@contextmanager
def in_state(world: World, commands: list[str], mend: list[str]) -> Iterator[None]:
    """Let an administrator do something, and undo it over the connection that was there."""
    with world.server.client() as admin:
        for command in commands:
            admin.execute_command(*command.split())  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for command in mend:
                admin.execute_command(*(w.strip("'") for w in command.split()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("state", STATES | DENIED)
def test_a_redis_in_a_state(world: World, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts come from the database with a warning, changes queue and are delivered afterwards."""
    commands, mend, login = (STATES | DENIED)[state]
    fleet = world.open(login)
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    world.redis.delete(K)
    with in_state(world, commands, mend or MEND):
        assert fleet.count() == Count(5, "database", 0.0, None)
        asked = names(world.to_redis.requests)
        (warning,) = world.warnings
        assert "counted from the database" in warning
        assert "zq7" not in warning
        world.to_redis.requests.clear()
        with monkeypatch.context() as patch:
            patch.setattr("modelctl.fleet.INVALIDATE_SECONDS", 0.2)
            assert fleet.disable("m1").cache == CacheState.QUEUED
        tried = names(world.to_redis.requests)
        (_, warning) = world.warnings
        assert "queued" in warning
        if state in DENIED:
            assert "refuses this user" in warning
            assert asked == ("AUTH" if login else "MGET PTTL")
            assert tried == ("AUTH" if login else "DEL")
        else:
            assert state in warning
            assert tried.split().count("DEL") > 1
        assert world.queue() == (1, 0)
    fleet.close()
    assert world.fleet.drain().cache == CacheState.INVALIDATED
    world.assert_delivered()


@pytest.mark.parametrize(
    "command", ["MGET", "PTTL", "SET", "WATCH", "GET", "MULTI", "EXEC", "DEL", "SCAN", "UNLINK"]
)
def test_one_right_that_is_missing(world: World, command: str) -> None:
    """It is named as a matter of configuration, and a change does not try again."""
    world.redis.delete(K)
    with in_state(world, [f"ACL SETUSER default -{command.lower()}"], MEND):
        assert world.fleet.count().active == 5
        world.to_redis.requests.clear()
        queued = world.fleet.disable("m1", "m2").cache == CacheState.QUEUED
        assert queued == (command in CHANGE.split())
        tried = names(world.to_redis.requests)
        assert CHANGE.startswith(tried)
        assert world.fleet.count().active == 3
        assert world.warnings
        for warning in world.warnings:
            assert f"'{command.lower()}'" in warning
            assert "refuses this user" in warning
    world.fleet.close()
    world.redis.flushall()
    world.assert_right()


def test_a_redis_that_loads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it reads its file counts work and changes queue; then the same fleet delivers."""
    slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    monkeypatch.setattr("modelctl.fleet.INVALIDATE_SECONDS", 0.1)
    with Redis(*slow) as server, opened(world.url, redis_url=server.url()) as fleet:
        fleet.on_warning = world.warnings.append
        assert fleet.count().active == 5
        server.ask("DEBUG", "POPULATE", 2000)
        server.ask("SAVE")
        server.kill()
        server.start()
        assert fleet.count() == Count(5, "database", 0.0, None)
        assert fleet.disable("m1").cache == CacheState.QUEUED
        assert [("loading" in warning) for warning in world.warnings] == [True, True]
        deadline = time.monotonic() + 30
        while server.ask("PING") and time.monotonic() < deadline:
            with suppress(ModelctlError):
                fleet.drain()
                break
        assert world.queue() == (0, 1)
        assert [fleet.count().source for _ in range(2)] == ["database", "cache"]


# Values of any kind where a count is expected, written by another program.
VALUES: dict[str, list[list[str]]] = {
    "a word": [["SET", "{}", "abc", "EX", "50"]],
    "negative": [["SET", "{}", "-5", "EX", "50"]],
    "a list": [["RPUSH", "{}", "1"], ["EXPIRE", "{}", "50"]],
    "a hash": [["HSET", "{}", "1", "2"], ["EXPIRE", "{}", "50"]],
    "ten megabytes": [["SETRANGE", "{}", "10000000", "9"], ["EXPIRE", "{}", "50"]],
    "for ever": [["SET", "{}", "77"]],
}


@pytest.mark.parametrize("key", [K, TOMB, STATS, BOARD])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_other_kinds(world: World, key: str, value: list[list[str]]) -> None:
    """Whatever is there is no count, and is replaced or deleted like a right value."""

    def put() -> None:
        world.redis.delete(key)
        for command in value:
            world.redis.execute_command(*(word.format(key) for word in command))  # type: ignore[no-untyped-call]

    put()
    for _ in range(2):
        assert world.fleet.count().active == 5
    put()
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()
    put()
    assert world.fleet.count(fresh=True).active == 4
    assert not world.warnings


def test_a_lease_of_another_kind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in its place costs the fill: the number is right, and a change ends it."""
    world.redis.delete(K)

    def spoil(point: str) -> None:
        if point == "after-snapshot":
            world.redis.delete(LEASE)
            world.redis.rpush(LEASE, "x")

    monkeypatch.setattr(points, "hook", spoil)
    assert world.fleet.count().active == 5
    (warning,) = world.warnings
    assert "WRONGTYPE" in warning
    monkeypatch.setattr(points, "hook", None)
    assert world.fleet.count().source == "database"
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()
