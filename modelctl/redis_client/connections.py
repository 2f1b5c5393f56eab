"""Connections to one server of Redis, each conversation on them under a deadline of ours.

A deadline is kept here and not left to a client library, because every wait has to end whatever
is at the other end: a name server that is silent, a port that takes connections and says nothing, a
server that sends a byte a second.
"""

from __future__ import annotations

import math
import os
import re
import select
import socket
import threading
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.redis_client.wire import (
    INFO,
    Command,
    NonsenseError,
    Reader,
    checked,
    home,
    is_ok,
    request,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

_NUMERIC = re.compile(r"[0-9.]+|.*:.*")  # an IP address needs no name server


class Address(NamedTuple):
    """Where a server listens; a *path* is a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Access(NamedTuple):
    """How to be let in, and whether to ask the server who it is."""

    username: str = ""
    password: str = ""
    database: int = 0
    tls: Callable[[], ssl.SSLContext] | None = None
    asks_home: bool = True
    home_seconds: float = math.inf  # then it is asked again

    def greeting(self) -> list[Command]:
        """What comes first on a connection."""
        commands = []
        if self.username or self.password:
            user = [self.username] if self.username else []
            commands.append(Command(("AUTH", *user, self.password), is_ok))
        if self.database:
            commands.append(Command(("SELECT", str(self.database)), is_ok))
        return commands


def left(end: float) -> float:
    """Return the seconds until *end*; TimeoutError where it is over."""
    seconds = end - monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


class Connection:
    """A socket on which commands are asked and answered."""

    def __init__(self, address: Address, access: Access, end: float) -> None:
        """Connect before *end*.

        Raises:
            OSError: there is nobody; a TimeoutError: nobody answered before *end*.
        """
        self._home = ""
        self._end = end
        self._greeting: list[Command] | None = access.greeting()
        self._asks_home = access.asks_home
        self._home_seconds = access.home_seconds
        self._ask_home_at = 0.0
        self._socket = _connect(address, end)
        try:
            if access.tls:
                self._socket.settimeout(left(end))  # for the whole handshake
                self._socket = access.tls().wrap_socket(self._socket, server_hostname=address.host)
        except BaseException:
            self._socket.close()
            raise
        self._reader = Reader(self._receive)

    def ask(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Send all commands in one piece, and return the answer to each, before *end*.

        The first time, the login goes ahead of them, and now and then the question who it is.

        Raises:
            ReplyError: the server said no.
            NonsenseError: what came is no answer to that.
            OSError: the connection is lost; a TimeoutError: there was no answer in time.
        """
        self._end = end
        greeting, self._greeting = self._greeting, None
        first = greeting or []
        asks_home = self._must_ask_home()
        asked = [*first, *([INFO] if asks_home else []), *commands]
        self._send(b"".join(request(command.words) for command in asked))
        answers = [self._reader.reply() for _ in asked]
        if self._reader.has_more():
            raise NonsenseError("more answers than questions")
        info = answers.pop(len(first)) if asks_home else None
        found = checked([*first, *commands], answers)
        if asks_home:
            self._home = home(info)
            self._ask_home_at = monotonic() + self._home_seconds
        return found[len(first) :]

    def home(self, end: float) -> str:
        """Return who the server is, see `wire.home`; empty: it does not tell."""
        if self._must_ask_home():
            self.ask((), end)
        return self._home

    def _must_ask_home(self) -> bool:
        return self._asks_home and monotonic() >= self._ask_home_at

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(left(self._end))
            rest = rest[self._socket.send(rest) :]

    def _receive(self) -> bytes:
        self._socket.settimeout(left(self._end))
        part = self._socket.recv(65536)
        if not part:
            raise ConnectionError("the server closed the connection")
        return part

    def is_quiet(self) -> bool:
        """Whether nothing came since the last answer: neither its end nor anything unasked."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Server:
    """One server and at most *size* connections to it, kept for the next conversation."""

    def __init__(self, address: Address, access: Access, size: int) -> None:
        self.address = address
        self._access = access
        self._size = size
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free: list[Connection] = []
        # A signal's handler may come in between and ask Redis, too: this queue allows it.
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._size):
            self._places.put(None)

    @contextmanager
    def connection(self, end: float) -> Iterator[Connection]:
        """Give a connection, before *end*; one on which anything failed is not used again."""
        if os.getpid() != self._process:  # a fork: the sockets are the parent's
            self._begin()
        places = self._places
        try:
            places.get(timeout=left(end))
        except Empty:
            raise ConnectionError(
                "all connections to Redis are in use; see redis.pool_size"
            ) from None
        connection = None
        try:
            connection = self._kept() or Connection(self.address, self._access, end)
            yield connection
            self._free.append(connection)
            if self._closed:
                self.close()
        except BaseException as exc:
            if connection is not None:
                connection.close()  # there may be an answer that was not read
            exc.add_note(str(self.address))
            raise
        finally:
            places.put(None)

    def _kept(self) -> Connection | None:
        while self._free:
            try:
                connection = self._free.pop()
            except IndexError:  # another thread was faster
                return None
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Close the connections, those that are in use when they are given back."""
        self._closed = True
        while self._free:
            self._free.pop().close()


def _connect(address: Address, end: float) -> socket.socket:
    """Connect to the first place of an address that answers, all of them before *end*."""
    if address.path:
        places: list[Any] = [(socket.AF_UNIX, 0, 0, "", address.path)]
    else:
        places = _resolve(address.host, address.port, end)
    for number, (family, _, _, _, place) in enumerate(places):
        connection = socket.socket(family)
        try:
            # Those that are silent leave time for the others.
            connection.settimeout(left(end) / (len(places) - number))
            connection.connect(place)
            if not address.path:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as exc:
            connection.close()
            if number + 1 == len(places) or not isinstance(exc, OSError):
                raise
        else:
            return connection
    raise OSError(f"{address} has no address")


def _resolve(host: str, port: int, end: float) -> list[Any]:
    """Look the name up before *end*; a silent name server would hold us for 20 s."""
    if _NUMERIC.fullmatch(host):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return _Lookup.of(host, port).result(end)


class _Lookup(threading.Thread):
    """One question to the name server, in a thread; all who wait for it share it."""

    _asked: dict[tuple[int, str, int], _Lookup] = {}  # noqa: RUF012 - shared on purpose
    _lock = threading.RLock()

    def __init__(self, key: tuple[int, str, int]) -> None:
        super().__init__(name="modelctl-resolve", daemon=True)
        self._key = key
        self._found: list[Any] | OSError | UnicodeError | None = None

    @classmethod
    def of(cls, host: str, port: int) -> _Lookup:
        """Ask, unless the same question waits for its answer."""
        key = os.getpid(), host, port
        with cls._lock:
            if key not in cls._asked:
                cls._asked[key] = cls(key)
                cls._asked[key].start()
            return cls._asked[key]

    def run(self) -> None:
        """Ask."""
        _, host, port = self._key
        try:
            self._found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            self._found = exc
        with self._lock:
            self._asked.pop(self._key, None)

    def result(self, end: float) -> list[Any]:
        """Return the places, or raise what the name server said."""
        self.join(left(end))
        if self._found is None:
            raise TimeoutError(f"the name {self._key[1]} was not resolved in time")
        if isinstance(self._found, list):
            return self._found
        raise self._found
