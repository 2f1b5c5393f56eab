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
from typing import Any, BinaryIO, Self

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
MODELS = [f"m{number}" for number in range(5)]
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        for thread in self._threads:
            thread.join(10)

    def hang_up(self) -> None:
        """Let nobody in any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

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

    def break_if(self, word: bytes, how: str, then: Callable[[], object] = lambda: None) -> None:
        """Break the next request that has this word in it."""

        def fault(request: bytes) -> str | None:
            if word not in request:
                return None
            self.fault = _no_fault
            then()
            return how

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


# Redis


class World:
    """A fleet whose Redis is behind a relay, and both servers as other programs see them."""

    def __init__(self, database: str, url: str, relay: Relay) -> None:
        self.database = database
        self.relay = relay
        self.warnings: list[str] = []
        self.fleet = self.open(f"redis://127.0.0.1:{relay.port}/0")
        self.other = opened(database, redis_url=url)
        seed(self.other, MODELS)
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self._postgres = psycopg.connect(database, autocommit=True)

    def open(self, redis_url: str) -> Fleet:
        """Return another fleet on the same database."""
        fleet = opened(self.database, redis_url=redis_url)
        fleet.on_warning = self.warnings.append
        return fleet

    def close(self) -> None:
        """Close what was opened."""
        for it in (self.fleet, self.other, self.redis, self._postgres):
            it.close()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as another program."""
        cursor = self._postgres.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def renew(self) -> None:
        """All models on, nothing queued; old values in Redis, of which the count is right."""
        self.relay.heal()
        self.warnings.clear()
        self.sql("UPDATE models SET active = TRUE WHERE NOT active")
        self.sql("DELETE FROM modelctl_outbox")
        self.redis.flushall()
        self.redis.mset({STATS: "old", BOARD: "old"})
        self.redis.execute_command("SETEX", K, 50, len(MODELS))  # type: ignore[no-untyped-call]

    def truth(self) -> int:
        """Return the count that everybody must see."""
        return int(self.sql("SELECT count(*) FROM models WHERE active")[0][0])

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


@pytest.fixture
def world(pg_cleared: str, redis_server: Redis, redis_url: str) -> Iterator[World]:
    """Give five models in PostgreSQL, and Redis behind a relay."""
    with Relay(redis_server.port, _resp, _resp) as relay:
        world = World(pg_cleared, redis_url, relay)
        try:
            yield world
        finally:
            world.close()


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
    assert names(world.relay.requests) == COUNTS[kind]
    steps = COUNTS[kind].split()
    for step, command in enumerate(steps):
        for once in (True, False):
            if command == "MULTI" and once and isinstance(how, bytes):
                continue  # who refuses this refuses the rest, too
            prepare()
            world.relay.break_at(step, how, once=once)
            started = time.monotonic()
            assert world.fleet.count().active == active
            assert time.monotonic() - started < 1.0
            # redis-py takes what ends a connection that watches for a lost race: no fault.
            ends = isinstance(how, str) or how[1:5] in (b"LOAD", b"NOAU", b"WRON")
            if world.warnings or not (ends and command == "GET"):
                (warning,) = world.warnings
                assert "counted from the database" in warning
                assert ("refuses this user" in warning) == (how in REFUSALS.values())
            assert len(world.relay.requests) <= len(steps)
            world.relay.heal()
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
    assert names(world.relay.requests) == CHANGE
    for step in range(len(CHANGE.split())):
        for once in (True, False):
            world.renew()
            world.relay.break_at(step, how, once=once)
            with monkeypatch.context() as patch:
                if not once:
                    patch.setattr("modelctl.fleet.INVALIDATE_SECONDS", 0.02)
                result = world.fleet.disable("m1", "m2")
            assert [change.changed for change in result.changes] == [True, True]
            asked = len(world.relay.requests)
            world.relay.heal()
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
