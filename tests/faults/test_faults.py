"""What breaks outside, at every step: Redis, PostgreSQL, the file, and the way to them."""

from __future__ import annotations

import ctypes
import gc
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
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from modelctl import (
    DatabaseUnavailableError,
    Fleet,
    MissingSchemaError,
    StaleCacheError,
    crash_points,
)
from modelctl.database import bulk, database, engines, sqlite
from modelctl.model import CacheState, Count
from tests import commands, fleets, servers
from tests.fleets import opened, seed, sql, trip
from tests.servers import Postgres, Redis
from tests.world import KEY, LEASE, STATS, VOUCH, World

BOARD = "db:leaderboard:7"


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
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Let nobody in any more, and throw out who is inside."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()
        for thread in self._threads:
            thread.join(10)

    def disconnect(self) -> None:
        """Throw out who is inside."""
        while self._clients:
            with suppress(OSError):
                self._clients.pop().shutdown(socket.SHUT_RDWR)

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
                self._clients.append(client)
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
            # X: PostgreSQL's goodbye, which may come late.
            while (request := self._request(asked)) and request[:1] != b"X":
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
                if how in ("cut", "lose"):
                    return
                client.sendall(answer)
                if _ended(server):
                    return


def _ended(server: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    try:
        return not server.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


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


class RelayedWorld(World):
    """A world whose fleet reaches its servers through relays; *other* reaches them directly."""

    def __init__(self, postgres: Postgres, database: str, redis_server: Redis) -> None:
        # What a test takes from the default user it does not take from this user.
        redis_server.ask("ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all")
        super().__init__(postgres.url(database), redis_server.url().replace("//", "//admin:any@"))
        self.to_postgres = Relay(postgres.port, _postgres_request, _postgres_answer)
        self.to_redis = Relay(redis_server.port, _resp, _resp)
        behind, relay = f":{postgres.port}/", f":{self.to_postgres.port}/"
        plain = "?sslmode=disable&gssencmode=disable"
        self.postgres_url = self.database.replace(behind, relay) + plain
        self.other, self.fleet = self.fleet, self.open()

    def open(self, login: str = "", options: str = "") -> Fleet:
        """Return a fleet that goes through the relays, with one connection as a command has."""
        fleet = opened(
            self.postgres_url + (f"&options={quote(options)}" if options else ""),
            redis_url=f"redis://{login}127.0.0.1:{self.to_redis.port}/0",
            database_pool_size=1,
        )
        fleet.on_warning = self.warnings.append
        return fleet

    def close(self) -> None:
        """Close what was opened."""
        self.fleet.close()
        super().close()
        for relay in (self.to_postgres, self.to_redis):
            relay.close()

    def renew(self, *rows: str) -> None:
        """Begin with these rows, nothing queued, a right count and other old values in Redis."""
        self.to_postgres.heal()
        self.to_redis.heal()
        self.warnings.clear()
        self.sql("DELETE FROM models; DELETE FROM modelctl_events; DELETE FROM modelctl_state")
        self.sql("INSERT INTO models (id) SELECT 'm' || n FROM generate_series(0, 4) AS n")
        for row in rows:
            self.sql(row)
        self.forget()
        self.redis.flushall()
        self.redis.mset({STATS: "old", BOARD: "old"})
        self.cache_believed(self.truth, seconds=50)

    def state(self) -> Any:
        """Return what a change may change."""
        columns = "id, provider, active, auto_disabled, consecutive_failures, success_count"
        rows = self.sql(f"SELECT {columns}, failure_count FROM models ORDER BY id")
        columns = "model_id, event, before, after, reason"
        return rows, self.sql(f"SELECT {columns} FROM modelctl_events ORDER BY id")

    def assert_right(self) -> None:
        """Whoever counts now gets the right number, and so do those who find it cached."""
        self.redis.delete(LEASE)  # of a reader that was cut off, which would live for 10 s
        truth = self.truth
        assert self.other.count().active == truth
        hit = self.fleet.count()
        assert (hit.active, hit.source) == (truth, "cache")

    def assert_delivered(self) -> None:
        """Nothing old can be read, and nothing is queued."""
        assert not self.redis.exists(STATS, BOARD)
        assert self.queue[0] == 0
        self.assert_right()


@pytest.fixture(scope="module")
def one_world(postgres: Postgres, pg_template: str) -> Iterator[RelayedWorld]:
    """Make one database and one Redis for the module, with the ways to them."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        world = RelayedWorld(postgres, postgres.create_database(pg_template), server)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
def world(one_world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> RelayedWorld:
    """Give five models in PostgreSQL with their count in Redis; every warning is told."""
    monkeypatch.setattr("modelctl.count.protocol.WARN_SECONDS", 0)
    one_world.renew()
    return one_world


# Redis


def names(requests: list[bytes]) -> str:
    """Return what Redis was asked, but for who it is, which each connection asks once."""
    words = (request.split(b"\r\n")[2] for request in requests)
    return b" ".join(word for word in words if word != b"INFO").decode()


# The connection's ends, and what a server in some state answers.
ENDS = {"ends": "drop", "is reset": "reset", "loses the answer": "lose", "cuts the answer": "cut"}
ANSWERS: dict[str, bytes] = {
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "WRONGTYPE": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
}
REFUSALS: dict[str, bytes] = {
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "WRONGPASS": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    "NOPERM": b"-NOPERM User default has no permissions to run this command\r\n",
}
FAULTS: dict[str, str | bytes] = {**ENDS, **ANSWERS, **REFUSALS}
any_fault = pytest.mark.parametrize("how", FAULTS.values(), ids=FAULTS)
# What a count asks of Redis: with the number there, without, and with a change not delivered.
FILL = "WATCH GET MULTI SET SET DEL EXEC"
COUNTS = {
    "hit": "MGET PTTL",
    "miss": f"MGET PTTL SET {FILL}",
    "owes": f"MGET PTTL SET DEL SET {FILL}",
}
CHANGE = "DEL DEL SCAN UNLINK"


@any_fault
@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_with_a_fault_at_any_step(world: RelayedWorld, kind: str, how: str | bytes) -> None:
    """It is right with one warning, and Redis is asked nothing more."""

    def prepare() -> None:
        world.renew()
        if kind != "hit":
            world.redis.delete(KEY)
        if kind == "owes":
            world.sql("UPDATE models SET active = FALSE WHERE id = 'm4'")

    prepare()
    active = world.truth
    assert world.fleet.count().active == active
    assert names(world.to_redis.requests) == COUNTS[kind]
    steps = ["INFO", *COUNTS[kind].split()]
    for step in range(len(steps)):
        prepare()
        world.fleet.close()
        world.to_redis.break_at(step, how, once=False)
        started = time.monotonic()
        assert world.fleet.count().active == active
        assert time.monotonic() - started < 1.5
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
    world: RelayedWorld, how: str | bytes, monkeypatch: pytest.MonkeyPatch
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
                    patch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.02)
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
                assert world.queue == (1, 0)
                assert world.fleet.drain().cache == CacheState.INVALIDATED
            world.assert_delivered()


# What an administrator does to a server, how it is undone, and what the URL says of the user.
NOBODY = servers.refused_port()
STATES: dict[str, tuple[list[str], list[str], str]] = {
    "read only": ([f"REPLICAOF 127.0.0.1 {NOBODY}"], ["REPLICAOF NO ONE"], ""),
    "Link with MASTER is down": (
        ["CONFIG SET replica-serve-stale-data no", f"REPLICAOF 127.0.0.1 {NOBODY}"],
        ["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
        "",
    ),
    "good replicas": (
        ["CONFIG SET min-replicas-to-write 1"],
        ["CONFIG SET min-replicas-to-write 0"],
        "",
    ),
}
DENIED: dict[str, tuple[list[str], list[str], str]] = {
    "no password": (["CONFIG SET requirepass zq7"], [], ""),
    "wrong password": (["CONFIG SET requirepass zq7"], [], ":zq7wrong@"),
    "a password too many": ([], [], ":zq7wrong@"),
    "unknown user": ([], [], "joe:zq7wrong@"),
    "no rights": (["ACL SETUSER default -@all"], [], ""),
    "other keys": (["ACL SETUSER default resetkeys ~app:*"], [], ""),
}
MEND = ["CONFIG SET requirepass ''", "ACL SETUSER default on nopass ~* &* +@all"]


@contextmanager
def in_state(world: RelayedWorld, commands: list[str], mend: list[str]) -> Iterator[None]:
    """Let an administrator do something, and undo it."""
    ask: Any = world.redis.execute_command
    for command in commands:
        ask(*command.split())
    try:
        yield
    finally:
        for command in mend:
            ask(*(word.strip("'") for word in command.split()))


@pytest.mark.parametrize("state", STATES | DENIED)
def test_a_redis_in_a_state(
    world: RelayedWorld, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts come from the database with a warning, changes queue and are delivered afterwards."""
    commands, mend, login = (STATES | DENIED)[state]
    fleet = world.open(login)
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    world.redis.delete(KEY)
    with in_state(world, commands, mend or MEND):
        assert fleet.count() == Count(5, "database", 0.0, None)
        asked = names(world.to_redis.requests)
        (warning,) = world.warnings
        assert "counted from the database" in warning
        assert "zq7" not in warning
        world.to_redis.requests.clear()
        with monkeypatch.context() as patch:
            patch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.2)
            assert fleet.disable("m1").cache == CacheState.QUEUED
        tried = names(world.to_redis.requests)
        (_, warning) = world.warnings
        assert "queued" in warning
        if state in DENIED:
            assert "refuses this user" in warning
            assert asked == ("AUTH MGET PTTL" if login else "MGET PTTL")
            assert tried.removesuffix(" DEL") == ("AUTH" if login else "DEL")
        else:
            assert state in str(world.warnings)
            assert tried.split().count("DEL") > 1
        assert world.queue == (1, 0)
    fleet.close()
    assert world.fleet.drain().cache == CacheState.INVALIDATED
    world.assert_delivered()


@pytest.mark.parametrize(
    "command", ["MGET", "PTTL", "SET", "WATCH", "GET", "DEL", "SCAN", "UNLINK"]
)
def test_one_right_that_is_missing(world: RelayedWorld, command: str) -> None:
    """It is named as a matter of configuration, and a change does not try again."""
    world.redis.delete(KEY)
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


def test_a_redis_that_loads(world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it reads its file counts work and changes queue; then the same fleet delivers."""
    # A second for 1,000 keys; it answers after each kilobyte.
    slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    slow += ["--enable-debug-command", "local"]
    monkeypatch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.1)
    with Redis(*slow) as server, opened(world.database, redis_url=server.url()) as fleet:
        fleet.on_warning = world.warnings.append
        assert fleet.count().active == 5
        server.ask("DEBUG", "POPULATE", 1000)
        server.ask("SAVE")
        server.kill()
        server.start()
        assert fleet.count() == Count(5, "database", 0.0, None)
        assert fleet.disable("m1").cache == CacheState.QUEUED
        assert [("loading" in warning) for warning in world.warnings] == [True, True]
        deadline = time.monotonic() + 30
        while world.queue == (1, 0):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            with suppress(StaleCacheError):
                fleet.drain()
        assert world.queue == (0, 1)
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


@pytest.mark.parametrize("key", [KEY, VOUCH, STATS, BOARD])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_other_kinds(world: RelayedWorld, key: str, value: list[list[str]]) -> None:
    """Whatever is there is no count, and is replaced or deleted like a right value."""

    def put() -> None:
        world.redis.delete(key)
        for command in value:
            world.redis.execute_command(*(word.format(key) for word in command))

    put()
    for _ in range(2):
        assert world.fleet.count().active == 5
    put()
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()
    put()
    assert world.fleet.count(fresh=True).active == 4
    assert not world.warnings


def test_a_lease_of_another_kind(world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in its place costs the fill: the number is right, and a change ends it."""
    world.redis.delete(KEY)

    def spoil(point: str) -> None:
        if point == "after-snapshot":
            world.redis.delete(LEASE)
            world.redis.rpush(LEASE, "x")

    monkeypatch.setattr(crash_points, "hook", spoil)
    assert world.fleet.count().active == 5
    (warning,) = world.warnings
    assert "WRONGTYPE" in warning
    monkeypatch.setattr(crash_points, "hook", None)
    assert world.fleet.count().source == "database"
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()


# PostgreSQL

ROWS = (
    "UPDATE models SET consecutive_failures = 4 WHERE id = 'm3'",
    "INSERT INTO models (id, active, auto_disabled, last_failure_at) SELECT 'off' || n, FALSE,"
    " TRUE, now() - interval '1 day' FROM generate_series(1, 3) AS n",
)
COMMIT = b"COMMIT\0"
BATCH = [
    {"id": "m1", "outcome": "failure", "type": "timeout"},
    {"id": "m3", "outcome": "failure", "type": "parse-error"},
    {"id": "off1", "outcome": "success"},
]
CATALOG = b'{"id": "m1", "provider": "acme"}\n{"id": "new"}\n{"id": "other"}'
# One model: a message that begins the transaction and makes the change, and COMMIT.
SINGLE: dict[str, Callable[[Fleet], Any]] = {
    "disable": lambda fleet: fleet.disable("m1"),
    "failure": lambda fleet: fleet.record_failure("m3", "parse-error", reason="no JSON"),
    "success": lambda fleet: fleet.record_success("off1"),
}
# Transactions of several messages; recover has one for each of two chunks.
MULTIPLE: dict[str, Callable[[Fleet], Any]] = {
    "disable several": lambda fleet: fleet.disable("m1", "m2"),
    "batch": lambda fleet: fleet.record_batch(BATCH),
    "import": lambda fleet: fleet.import_models(CATALOG),
    "add": lambda fleet: fleet.add("new"),
    "recover": lambda fleet: fleet.recover(limit=100),  # in order
}
# The other ways to end mean the same to the client.
WAYS = [
    (kind, how)
    for kind in SINGLE | MULTIPLE
    for how in ENDS.values()
    if how in ("drop", "lose") or kind in ("failure", "batch")
]


def dry(world: RelayedWorld, call: Callable[[Fleet], Any]) -> tuple[Any, list[Any], list[bytes]]:
    """Make a change without a fault: its result, all states on the way, what was asked."""
    world.renew(*ROWS)
    world.fleet.stats()  # the first connection of all asks the server more
    world.to_postgres.heal()
    world.to_postgres.disconnect()
    states = [world.state()]

    def look(request: bytes) -> None:
        if states[-1] != (now := world.state()):
            states.append(now)

    world.to_postgres.fault = look
    result = call(world.fleet)
    look(b"")
    assert result.cache == CacheState.INVALIDATED
    return result, states, list(world.to_postgres.requests)


@pytest.mark.parametrize(("kind", "how"), WAYS)
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open:ResourceWarning")
def test_a_change_whose_connection_ends_at_any_step(
    world: RelayedWorld,
    kind: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a result or an error says of the change is true; nothing is half done or done twice."""
    monkeypatch.setattr(bulk, "CHUNK", 2 if kind == "recover" else 5)
    call = (SINGLE | MULTIPLE)[kind]
    result, states, requests = dry(world, call)
    assert len(states) == (3 if kind == "recover" else 2)
    commits = [step for step, request in enumerate(requests) if COMMIT in request]
    for step in range(len(requests)):
        world.renew(*ROWS)
        world.to_postgres.disconnect()
        world.to_postgres.break_at(step, how, once=True)
        done = error = None
        try:
            done = call(world.fleet)
        except DatabaseUnavailableError as exc:
            error = exc.message
        state = world.state()
        if error is None:
            assert (done, state) == (result, states[-1])
            assert not world.redis.exists(KEY, STATS, BOARD)
        else:
            assert state in states[: 1 if kind != "recover" else None]
            assert "it is not known" not in error
            assert ("the change was not made" in error) == (step in commits)
        if step in commits:
            assert (error is None) == (how in ("lose", "cut"))
        world.to_postgres.heal()
        assert not world.warnings
        # What recover lists is read by a cursor that cannot be closed any more.
        assert set(caplog.messages) <= {"Error closing cursor"}
        assert world.fleet.drain().queued == 0
        world.sql("DELETE FROM modelctl_outbox WHERE settle")
        world.assert_right()
        if state != states[0]:
            world.assert_delivered()
    gc.collect()  # a cursor that could not be closed warns now, not in another test


@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_failure_whose_commit_is_not_answered(world: RelayedWorld, how: str) -> None:
    """It is recorded exactly once and reported as done, or not at all, and the error says so."""
    result, _, requests = dry(world, SINGLE["failure"])
    world.renew(*ROWS)
    world.to_postgres.disconnect()
    commit = next(step for step, request in enumerate(requests) if COMMIT in request)
    world.to_postgres.break_at(commit, how, once=True)
    arrived = how in ("lose", "cut")
    if arrived:
        assert SINGLE["failure"](world.fleet) == result
    else:
        with pytest.raises(DatabaseUnavailableError, match="the change was not made"):
            SINGLE["failure"](world.fleet)
    tried = [b"failure_count = " in request for request in world.to_postgres.requests]
    assert tried.count(True) == 1
    model = world.fleet.show("m3")
    assert (model.failure_count, model.status) == (
        (1, "auto-disabled") if arrived else (0, "active")
    )
    assert len(world.fleet.events("m3")) == arrived


@pytest.mark.parametrize("kind", [*SINGLE, *MULTIPLE])
@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_nobody_can_say_what_became_of_it(world: RelayedWorld, how: str, kind: str) -> None:
    """A COMMIT without an answer and no server to ask: the error says that it is not known."""
    call = (SINGLE | MULTIPLE)[kind]
    _, states, requests = dry(world, call)
    commit = next(n for n, request in enumerate(requests) if COMMIT in request)
    world.renew(*ROWS)
    world.to_postgres.disconnect()
    world.to_postgres.break_at(commit, how, once=False)
    with pytest.raises(DatabaseUnavailableError, match="it is not known whether"):
        call(world.fleet)
    assert world.state() == states[how in ("lose", "cut")]
    world.to_postgres.heal()
    world.fleet.drain()
    world.assert_right()


@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_commit_of_which_nobody_knows_the_id(
    world: RelayedWorld, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of several models without a transaction id: it is not known, and nothing is claimed."""
    call = MULTIPLE["disable several"]
    _, states, _ = dry(world, call)
    world.renew(*ROWS)
    world.fleet.close()
    monkeypatch.setattr(database, "_WRITE", engines.BEGIN)  # which asks for no id
    world.to_postgres.fault = lambda request: how if COMMIT in request else None
    with pytest.raises(DatabaseUnavailableError, match="it is not known whether") as caught:
        call(world.fleet)
    assert "nothing was changed" not in f"{caught.value.message} {caught.value.hint}"
    assert world.state() == states[how in ("lose", "cut")]
    world.to_postgres.heal()
    world.fleet.drain()
    world.assert_right()


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_an_interrupt_before_commit(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C rolls the change back, and the next one is made on the same connection."""
    call = (SINGLE | MULTIPLE)[kind]
    result, states, _ = dry(world, call)
    world.renew(*ROWS)
    asked = world.to_postgres.requests
    before: list[bytes] = []

    def interrupt(point: str) -> None:
        monkeypatch.setattr(crash_points, "hook", None)
        before.extend(asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(crash_points, "hook", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(world.fleet)
    assert world.state() == states[0]
    assert b"ROLLBACK\0" in asked[len(before)]
    assert call(world.fleet) == result
    # Its first message begins with a length, whose first byte is 0.
    assert not any(request.startswith(b"\0") for request in asked)
    assert world.state() == states[-1]
    world.assert_delivered()


READS: dict[str, Callable[[Fleet], Any]] = {
    "count": lambda fleet: fleet.count(fresh=True),
    "list": lambda fleet: fleet.list_models(),
    "show": lambda fleet: fleet.show("m1"),
    "stats": lambda fleet: fleet.stats(),
    "events": lambda fleet: fleet.events(),
    "dry run": lambda fleet: fleet.disable("m1", dry_run=True),
}


@pytest.mark.parametrize("how", ["reset", "cut"])
@pytest.mark.parametrize("kind", READS)
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open:ResourceWarning")
def test_a_read_whose_connection_ends_at_any_step(world: RelayedWorld, kind: str, how: str) -> None:
    """It is an error to try again, and the next call works."""
    call = READS[kind]
    world.to_postgres.disconnect()
    world.to_postgres.heal()
    call(world.fleet)
    for step in range(len(world.to_postgres.requests)):
        world.renew()
        world.to_postgres.disconnect()
        world.to_postgres.break_at(step, how, once=True)
        with pytest.raises(DatabaseUnavailableError, match="not available"):
            call(world.fleet)
        world.to_postgres.heal()
        assert call(world.fleet) == call(world.other)
    gc.collect()  # a cursor that could not be closed warns now, not in another test


def test_a_listing_whose_connection_ends(
    world: RelayedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says it in one JSON value, and nobody prints a traceback."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", world.postgres_url)
    world.to_postgres.fault = lambda request: "lose" if b"CLOSE" in request else None
    done = commands.run("list", "-o", "json")
    assert (done.code, done.json["error"]["code"], done.err) == (5, "database_unavailable", "")


# Other programs in the way


@contextmanager
def another(world: RelayedWorld, statement: str) -> Iterator[psycopg.Connection]:
    """Let another program do something in a transaction, which is committed at the end."""
    with psycopg.connect(world.database) as other:
        other.execute("SET deadlock_timeout = '1min'")
        other.execute(statement.encode())
        yield other


@contextmanager
def waiting(world: RelayedWorld, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Let a call run in a thread until it waits for a lock."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        deadline = time.monotonic() + 10
        while not world.sql(f"SELECT 1 FROM pg_stat_activity WHERE {WAITS}"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield future


WAITS = (
    "wait_event_type = 'Lock' AND datname = current_database() AND application_name = 'modelctl'"
)
WRITE_LOCK = "LOCK TABLE models IN SHARE MODE"
LIMITS = {
    "lock timeout": "lock_timeout=100",
    "statement timeout": "lock_timeout=0 -c statement_timeout=150",
}


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_change_that_waits_too_long(world: RelayedWorld, limit: str, kind: str) -> None:
    """It is "busy", nothing is changed, and afterwards the same fleet makes the change."""
    call = (SINGLE | MULTIPLE)[kind]
    world.renew(*ROWS)
    before = world.state()
    with world.open(options=f"-c {LIMITS[limit]}") as fleet:
        with (
            another(world, WRITE_LOCK),
            pytest.raises(DatabaseUnavailableError, match=rf"busy.*{limit}"),
        ):
            call(fleet)
        assert world.state() == before
        assert call(fleet).cache == CacheState.INVALIDATED
    assert world.state() != before
    world.assert_delivered()


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_a_change_whose_server_process_ends(world: RelayedWorld, kind: str) -> None:
    """Terminated in the middle of its statement it changes nothing, and is made when repeated."""
    call = (SINGLE | MULTIPLE)[kind]
    world.renew(*ROWS)
    before = world.state()
    with another(world, WRITE_LOCK), waiting(world, lambda: call(world.fleet)) as future:
        world.sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {WAITS}")
        with pytest.raises(DatabaseUnavailableError, match=r"not available.*terminating") as caught:
            future.result()
    assert "it is not known" not in caught.value.message
    assert world.state() == before
    assert call(world.fleet).cache == CacheState.INVALIDATED
    world.assert_delivered()


def test_a_server_that_crashes_in_the_middle(world: RelayedWorld, postgres: Postgres) -> None:
    """A batch that was under way is not recorded; after the restart the same fleet records it."""
    world.renew(*ROWS)
    before = world.state()
    with (
        another(world, WRITE_LOCK) as other,
        waiting(world, lambda: world.fleet.record_batch(BATCH)) as future,
    ):
        postgres.kill()
        with pytest.raises(DatabaseUnavailableError):
            future.result()
        other.close()
    with pytest.raises(DatabaseUnavailableError):
        world.fleet.record_batch(BATCH)
    assert world.fleet.count().source == world.other.count().source == "cache"
    postgres.start()
    world.disconnect()
    assert world.state() == before
    assert world.fleet.record_batch(BATCH).recorded == 3
    world.assert_delivered()


def test_too_many_connections(world: RelayedWorld) -> None:
    """A server that lets nobody else in is unavailable; a cached count needs no connection."""
    world.sql("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    url = world.database.replace("postgres@", "crowd@")
    with opened(url, redis_url=f"redis://127.0.0.1:{world.to_redis.port}/0") as fleet:
        assert fleet.count().source == "cache"
        for call in (*READS.values(), *SINGLE.values(), *MULTIPLE.values()):
            with pytest.raises(DatabaseUnavailableError, match="too many connections"):
                call(fleet)
    world.sql("DROP ROLE crowd")


@pytest.mark.parametrize("kind", ["disable several", "import"])
def test_a_deadlock_with_another_program(world: RelayedWorld, kind: str) -> None:
    """Who is broken off makes the change again from the beginning, once."""
    world.renew(*ROWS)
    result, states, _ = dry(world, MULTIPLE[kind])
    world.renew(*ROWS)
    with another(world, "SELECT 1 FROM models WHERE id IN ('m2', 'new') FOR UPDATE") as other:
        if kind == "import":
            other.execute("INSERT INTO models (id) VALUES ('new')")
        with waiting(world, lambda: MULTIPLE[kind](world.fleet)) as future:
            other.execute("SELECT 1 FROM models WHERE id = 'm1' FOR UPDATE")
            other.rollback()
            assert future.result() == result
    assert world.state() == states[-1]
    assert any(b"ROLLBACK\0" in request for request in world.to_postgres.requests)
    world.assert_delivered()


# It watches the rows that it has read; in a scan of the table that is all of them.
STRICT = "-c enable_indexscan=off"
STRICT += " -c enable_bitmapscan=off -c enable_indexonlyscan=off"


def serializable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writes be of a level at which the server refuses them, as a pooler might."""
    strict = database._WRITE.replace("READ COMMITTED", "SERIALIZABLE")
    monkeypatch.setattr(database, "_WRITE", strict)


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_a_serialization_failure_at_the_end(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction whose COMMIT another one makes impossible is made again, once."""
    call = (SINGLE | MULTIPLE)[kind]
    result, states, _ = dry(world, call)
    world.renew(*ROWS)
    met: list[str] = []

    def interfere(point: str) -> None:
        met.append(point)
        if len(met) > 1:
            return
        with psycopg.connect(world.database) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            other.execute("SELECT sum(failure_count) FROM models")
            other.execute("SELECT count(*) FROM modelctl_events")
            other.execute("UPDATE models SET display_name = 'x' WHERE id = 'm4'")

    monkeypatch.setattr(crash_points, "hook", interfere)
    serializable(monkeypatch)
    with world.open(options=STRICT) as fleet:
        assert call(fleet) == result
    # That of recover has a transaction more, which notes that it ran.
    tries = 3 if kind == "recover" else 2
    assert met[: tries + 1] == ["before-commit"] * tries + ["after-commit"]
    assert world.state() == states[-1]
    world.assert_delivered()


@pytest.mark.parametrize("kind", SINGLE)
def test_a_serialization_failure_of_one_statement(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that changed while a change waited for it is changed at the second try, once."""
    result, states, _ = dry(world, SINGLE[kind])
    world.renew(*ROWS)
    serializable(monkeypatch)
    with (
        world.open(options=STRICT) as fleet,
        another(world, "UPDATE models SET display_name = 'x'") as other,
        waiting(world, lambda: SINGLE[kind](fleet)) as future,
    ):
        other.commit()
        assert future.result() == result
    assert world.state() == states[-1]
    world.assert_delivered()


# SQLite


class File:
    """A SQLite fleet in its journal mode, for the command line and as other programs see it."""

    def __init__(self, url: str, mode: str) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))
        with opened(url) as fleet:
            seed(fleet, ["m1", "m2", "m3"])
            trip(fleet, "m3")
        assert sql(url, f"PRAGMA journal_mode = {mode}") == [(mode,)]

    def assert_whole(self, before: Any) -> None:
        """Nothing is damaged or changed, and the next change works."""
        assert sql(self.url, "PRAGMA integrity_check") == [("ok",)]
        assert fleets.everything(self.url) == before
        with opened(self.url) as fleet:
            active = fleet.count().active
            assert fleet.disable("m1").changes[0].changed
            assert fleet.count().active == active - 1


@pytest.fixture(params=["wal", "delete"])
def file(
    request: pytest.FixtureRequest, sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> File:
    """Give three models in a file, the last one auto-disabled, that commands use by default."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_database)
    return File(sqlite_database, request.param)


WRITES = {
    "disable": ["disable", "m1", "m2"],
    "enable": ["enable", "m3"],
    "add": ["add", "new"],
    "remove": ["remove", "m1", "--yes"],
    "success": ["record-success", "m3"],
    "failure": ["record-failure", "m1", "--type", "parse-error"],
    "recover": ["recover", "--cooldown", "0s"],
    "cache clear": ["cache", "clear"],
}


def test_a_file_that_stays_locked(
    file: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another writer that does not end is exit 5, nothing is changed, and counting goes on."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    before = fleets.everything(file.url)
    cli = commands.inside(capsys)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for arguments in WRITES.values():
            cli(*arguments).failed(5, "database is locked", "try again")
        assert cli("count").out == "2\n"
    file.assert_whole(before)


def test_a_file_that_nobody_else_may_read(
    file: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that locks out readers, too, makes a count exit 5."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    before = fleets.everything(file.url)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE models SET provider = 'p'")
        commands.inside(capsys)("count").failed(5, "database is locked", "try again")
        other.execute("ROLLBACK")
    file.assert_whole(before)


def test_a_file_that_is_locked_for_a_moment(file: File) -> None:
    """A change waits for another writer, and is made once."""
    with (
        opened(file.url) as fleet,
        closing(sqlite3.connect(file.path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        tried: list[Any] = []

        @sa.event.listens_for(sa.Engine, "handle_error")
        def let_in(context: sa.ExceptionContext) -> None:
            tried.append(context.original_exception)
            if len(tried) == 3:
                other.execute("ROLLBACK")

        try:
            assert fleet.record_failure("m1").changes[0].id == "m1"
        finally:
            sa.event.remove(sa.Engine, "handle_error", let_in)
        assert len(tried) == 3
        assert fleet.show("m1").failure_count == 1


def no_larger_than(size: int) -> Callable[[], None]:
    """Return what lets a process write no file beyond this size, as on a full disk."""
    # Python ignores the signal, so that writing fails.
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("file", "what"), [("wal", "import"), ("delete", "record-batch")], indirect=["file"]
)
def test_a_disk_that_is_full(file: File, what: str) -> None:
    """A change that finds no room is exit 5 and not half made; the file is whole."""
    with opened(file.url) as fleet:
        seed(fleet, [f"filler{number}" for number in range(1000)])
    before = fleets.everything(file.url)
    # The command's copy of what it reads has room; what it writes to the database has not.
    text = "x" * 120
    lines = [f'{{"id": "new{number}", "name": "{text}"}}' for number in range(1000)]
    if what == "record-batch":
        outcome = f'"outcome": "failure", "type": "timeout", "reason": "{text}"'
        lines = [f'{{"id": "filler{number}", {outcome}}}' for number in range(1000)]
    room = no_larger_than(file.path.stat().st_size + 4096)
    data = "\n".join(lines).encode()
    full = commands.run(what, "-", stdin=data, before=room)
    full.failed(5, "not available")
    file.assert_whole(before)
    assert commands.run(what, "-", stdin=data).code == 0


def test_a_count_on_a_full_disk(file: File) -> None:
    """It needs no room, only its cache does."""
    sql(file.url, "DELETE FROM modelctl_cache")
    with closing(sqlite3.connect(file.path)) as other:
        other.execute("SELECT 1 FROM models")  # so that the files of the log are there
        done = commands.run("count", "-o", "json", before=no_larger_than(0))
        assert (done.code, done.json["active"], done.err) == (0, 2, "")


def test_a_damaged_page(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage is exit 3, not "try again"; what is whole stays so, and a backup brings all back."""
    sql(file.url, "PRAGMA wal_checkpoint(TRUNCATE)")
    backup = shutil.copy(file.path, file.path.with_suffix(".bak"))
    before = fleets.everything(file.url)
    ((page,),) = sql(file.url, "SELECT rootpage FROM sqlite_schema WHERE name = 'models'")
    ((size,),) = sql(file.url, "PRAGMA page_size")
    with file.path.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    damaged = file.path.read_bytes()
    cli = commands.inside(capsys)
    for arguments in (["count", "--fresh"], ["list"], ["show", "m1"], *WRITES.values()):
        if arguments != WRITES["cache clear"]:
            cli(*arguments).failed(3, "damaged", "backup")
    assert len(file.path.read_bytes()) == len(damaged)
    shutil.copy(backup, file.path)
    file.assert_whole(before)


def test_a_file_that_goes_and_comes_back(file: File) -> None:
    """A long-lived fleet sees what is there at each call, and makes no empty file by itself."""
    with opened(file.url) as fleet:
        assert fleet.count().active == 2
        moved = file.path.rename(file.path.with_suffix(".moved"))
        for call in (*READS.values(), SINGLE["disable"], MULTIPLE["recover"]):
            with pytest.raises(MissingSchemaError, match="no database at"):
                call(fleet)
        assert not file.path.exists()
        shutil.copy(moved, file.path)
        sql(file.url, "DELETE FROM models WHERE id = 'm1'")
        assert fleet.count().active == 1
        moved.replace(file.path)
        assert fleet.count().active == 2
        assert fleet.disable("m1").changes[0].changed


def obey_folder_modes() -> None:
    """Take from root the right to go where a mode forbids it; others have none to lose."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP: gone after exec


def test_a_folder_that_may_not_be_entered(sqlite_database: str) -> None:
    """It is a matter of configuration, and so is a path that no file system takes."""
    folder = Path(sqlite_database.removeprefix("sqlite:///")).parent
    folder.chmod(0)
    closed = commands.run("count", before=obey_folder_modes, MODELCTL_DATABASE_URL=sqlite_database)
    folder.chmod(0o700)
    closed.failed(3, "permission")
    too_long = f"sqlite:///{folder}/{'x' * 300}.db"
    commands.run("count", MODELCTL_DATABASE_URL=too_long).failed(3, "too long")
