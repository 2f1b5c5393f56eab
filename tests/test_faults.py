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
    answer in the place of the server.
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
            while request := self._request(asked):
                self.requests.append(request)
                how = self.fault(request)
                if how == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if how in ("drop", "reset"):
                    return
                if isinstance(how, bytes):
                    client.sendall(how)
                    continue
                server.sendall(request)
                answer = self._answer(answered)
                if how == "cut":
                    client.sendall(answer[: len(answer) // 2])
                if how in ("cut", "lose") or not answer:
                    return
                client.sendall(answer)


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
        self.url = url
        self.relay = relay
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.warnings: list[str] = []
        self.fleet = self.open(f"redis://127.0.0.1:{relay.port}/0")
        self.other = opened(database, redis_url=url)
        seed(self.other, MODELS)

    def open(self, redis_url: str) -> Fleet:
        """Return another fleet on the same database."""
        fleet = opened(self.database, redis_url=redis_url)
        fleet.on_warning = self.warnings.append
        return fleet

    def close(self) -> None:
        """Close what was opened."""
        for it in (self.fleet, self.other, self.redis):
            it.close()

    def renew(self, *, cached: bool) -> None:
        """All models on, nothing queued; old values in Redis, of which the count is right."""
        self.relay.heal()
        self.warnings.clear()
        sql(self.database, "UPDATE models SET active = TRUE")
        sql(self.database, "DELETE FROM modelctl_outbox")
        self.redis.flushall()
        self.redis.mset({STATS: "old", BOARD: "old"})
        if cached:
            self.redis.execute_command("SETEX", K, 50, len(MODELS))  # type: ignore[no-untyped-call]

    def truth(self) -> int:
        """Return the count that everybody must see."""
        return int(sql(self.database, "SELECT count(*) FROM models WHERE active")[0][0])

    def queue(self) -> tuple[int, int]:
        """Return how many invalidations are queued, and how many settle."""
        queued, settling = sql(self.database, f"{QUEUE} FROM modelctl_outbox")[0]
        return queued, settling

    def assert_repaired(self) -> None:
        """Nothing old can be read, and nothing is queued."""
        assert not self.redis.exists(STATS, BOARD)
        assert self.queue()[0] == 0
        self.redis.delete(LEASE)  # of a reader that was cut off; it would live for 10 s
        for source in ("database", "cache"):
            count = self.other.count()
            assert count.active == self.truth()
        assert count.source == source


@pytest.fixture
def world(pg_cleared: str, redis_server: Redis, redis_url: str) -> Iterator[World]:
    """Give five models in PostgreSQL, and Redis behind a relay."""
    with Relay(redis_server.port, _resp, _resp) as relay:
        world = World(pg_cleared, redis_url, relay)
        try:
            yield world
        finally:
            world.close()


COUNTS: dict[str, Callable[[Fleet], Count]] = {
    "hit": lambda fleet: fleet.count(),
    "miss": lambda fleet: fleet.count(),
    "fresh": lambda fleet: fleet.count(fresh=True),
    "strong": lambda fleet: fleet.count(strong=True),
}
# The connection's ends, and what a server in some state answers.
BREAKS: dict[str, str | bytes] = {
    "ends": "drop",
    "is reset": "reset",
    "loses the answer": "lose",
    "cuts the answer": "cut",
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
broken = pytest.mark.parametrize("how", (BREAKS | REFUSALS).values(), ids=BREAKS | REFUSALS)


@broken
@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_with_a_fault_at_any_step(world: World, kind: str, how: str | bytes) -> None:
    """It is right with one warning, and Redis is asked nothing more."""
    call = COUNTS[kind]
    world.renew(cached=kind == "hit")
    assert call(world.fleet).active == len(MODELS)
    steps = len(world.relay.requests)
    assert steps == (2 if kind == "hit" else 8 if kind == "fresh" else 10)
    for step in range(steps):
        for once in (True, False):
            world.renew(cached=kind == "hit")
            world.relay.break_at(step, how, once=once)
            started = time.monotonic()
            assert call(world.fleet).active == len(MODELS)
            assert time.monotonic() - started < 1.0
            (warning,) = world.warnings
            assert "counted from the database" in warning
            assert ("refuses this user" in warning) == (how in REFUSALS.values())
            assert len(world.relay.requests) <= steps
            world.relay.heal()
            assert world.fleet.count().active == world.other.count().active == len(MODELS)
            assert len(world.warnings) == 1


@broken
def test_a_change_with_a_fault_at_any_step(
    world: World, how: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fault is overcome, one that stays is queued; being refused is not tried again."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    refused = how in REFUSALS.values()
    world.renew(cached=True)
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    steps = [request.split(b"\r\n")[2] for request in world.relay.requests]
    assert steps == [b"DEL", b"SET", b"DEL", b"SCAN", b"UNLINK"]
    for step in range(len(steps)):
        for once in (True, False):
            world.renew(cached=True)
            world.relay.break_at(step, how, once=once)
            with monkeypatch.context() as patch:
                if not once:
                    patch.setattr("modelctl.fleet.INVALIDATE_SECONDS", 0.02)
                result = world.fleet.disable("m1", "m2")
            assert [change.changed for change in result.changes] == [True, True]
            tried = len(world.relay.requests)
            world.relay.heal()
            if once and not refused:
                assert result.cache == CacheState.INVALIDATED
                assert world.warnings == []
            else:
                assert result.cache == CacheState.QUEUED
                (warning,) = world.warnings
                assert "queued" in warning
                assert ("refuses this user" in warning) == refused
                assert world.queue()[0] == 1
                if refused:
                    assert tried == step + 1
                assert world.fleet.drain().cache == CacheState.INVALIDATED
            world.assert_repaired()


# What an administrator does to a server, and undoes. A password that the URL has.
STATES: dict[str, tuple[str, str, str, type[ModelctlError]]] = {
    "READONLY": ("REPLICAOF 127.0.0.1 {port}", "REPLICAOF NO ONE", "", DatabaseUnavailableError),
}


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """Run a Redis whose settings a test may change."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        yield server
