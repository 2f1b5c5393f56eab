"""A world whose fleet reaches its servers through relays that can break each request."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import quote

from modelctl import Fleet
from tests.fleets import opened
from tests.servers import Postgres, Redis
from tests.world import LEASE, STATS, World

BOARD = "db:leaderboard:7"


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
        """Accept no connection any more, and end the open ones."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()
        for thread in self._threads:
            thread.join(10)

    def disconnect(self) -> None:
        """End the open connections."""
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
    return _postgres_messages(stream, b"QSXc")  # c: the end of the rows of a COPY


def _postgres_answer(stream: BinaryIO) -> bytes:
    return _postgres_messages(stream, b"ZG")  # G: the server waits for the rows of a COPY


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
        self.sql("DELETE FROM modelctl_events")
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
        """Every count from now on is right, from the database and from the cache."""
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


# The connection's ends, and what a server in some state answers.
ENDS = {"ends": "drop", "is reset": "reset", "loses the answer": "lose", "cuts the answer": "cut"}
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
READS: dict[str, Callable[[Fleet], Any]] = {
    "count": lambda fleet: fleet.count(fresh=True),
    "list": lambda fleet: fleet.list_models(),
    "show": lambda fleet: fleet.show("m1"),
    "stats": lambda fleet: fleet.stats(),
    "events": lambda fleet: fleet.events(),
    "dry run": lambda fleet: fleet.disable("m1", dry_run=True),
}
