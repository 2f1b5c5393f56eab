"""redis-py's connections, with a time limit for a whole conversation and a size limit for an answer.

redis-py speaks with servers, Sentinels and clusters, keeps connections and opens new ones. Three
things it does not do: its time limit is for each read of a socket, so a server that sends one byte a
second holds it for minutes; it resolves names without a time limit; it reads an answer however long
it is. Therefore the sockets are connected by `waiting`, every read and write goes through `_Socket`,
and an answer that does not follow the protocol is an error.
"""

# mypy: disable-error-code="no-untyped-call, misc"
# (redis-py's connections have few types)

from __future__ import annotations

import math
from io import SEEK_CUR
from typing import TYPE_CHECKING, Any

from redis._parsers import _RESP2Parser
from redis._parsers.socket import SocketBuffer
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import SentinelManagedConnection

from modelctl.redis_client import waiting
from modelctl.redis_client.answers import HEADER, LONGEST, NonsenseError

if TYPE_CHECKING:
    import socket

_SLOTS = 16384
_MOST_NODES = 1000


class _Socket:
    """A socket whose reads and writes end when the conversation's time is over, and that limits an answer."""

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self._waits = True
        self._taken = 0

    def settimeout(self, seconds: float | None) -> None:
        """0: do not wait. Any other number of redis-py's is ignored: the conversation has a time limit."""
        self._waits = seconds != 0

    def recv(self, size: int) -> bytes:
        self.connected.settimeout(waiting.left() if self._waits else 0)
        part = self.connected.recv(size)
        self._taken += len(part)
        if self._taken > LONGEST:
            raise NonsenseError("an answer without an end")
        return part

    def sendall(self, data: bytes) -> None:
        self._taken = 0
        rest = memoryview(data)
        while rest:
            self.connected.settimeout(waiting.left())
            rest = rest[self.connected.send(rest) :]

    def shutdown(self, how: int) -> None:
        self.connected.shutdown(how)

    def close(self) -> None:
        self.connected.close()


class _Buffer(SocketBuffer):
    """redis-py's buffer, which also checks the first line of an answer and the end of a string."""

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        line: bytes = super().readline(*args, **kwargs)
        if not HEADER.fullmatch(line):
            raise NonsenseError(f"no answer of Redis: {line[:60]!r}")
        return line

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        found: bytes = super().read(*args, **kwargs)
        self._buffer.seek(-2, SEEK_CUR)
        if self._buffer.read(2) != b"\r\n":
            raise NonsenseError("a string without its end")
        return found


class _Parser(_RESP2Parser):
    _buffer: _Buffer | None

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)
        self._buffer = _Buffer(connection._sock, self.socket_read_size, connection.socket_timeout)

    def has_more(self) -> bool:
        """Whether more arrived than was read."""
        return self._buffer is not None and self._buffer.unread_bytes() > 0


class _Watched:
    """Mixin for redis-py's connection classes: adds the limits and the identity of the server."""

    server_id = ""  # see `answers.server_id`
    server_id_asked_at = ask_server_id_at = 0.0
    _asked: Any = ""

    def __init__(self, *, server_id_seconds: float = math.inf, **kwargs: Any) -> None:
        # After so many seconds the server is asked for its identity again.
        self.server_id_seconds = server_id_seconds
        super().__init__(parser_class=_Parser, **kwargs)  # type: ignore[call-arg]

    def __str__(self) -> str:
        return str(self._host_error())  # type: ignore[attr-defined]

    @property
    def socket(self) -> socket.socket:
        """The connected socket, for an event loop, which waits by itself."""
        return self._sock.connected  # type: ignore[attr-defined, no-any-return]

    def has_more(self) -> bool:
        """Whether more arrived than was read."""
        return self._parser.has_more()  # type: ignore[attr-defined, no-any-return]

    def _connect(self) -> _Socket:
        self.ask_server_id_at = 0.0
        connected = None
        try:
            connected = waiting.connect(self._place())
            if isinstance(self, SSLConnection):
                connected.settimeout(waiting.left())  # for the whole handshake
                connected = self._wrap_socket_with_ssl(connected)
        except BaseException as exc:
            exc.add_note(str(self))
            if connected is not None:
                connected.close()
            raise
        return _Socket(connected)

    def _place(self) -> tuple[str, int] | str:
        if isinstance(self, UnixDomainSocketConnection):
            return str(self.path)
        return self.host, self.port  # type: ignore[attr-defined]

    def send_command(self, *words: Any, **kwargs: Any) -> None:
        self._asked = words[0]  # "CLUSTER SLOTS" is one word
        super().send_command(*words, **kwargs)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().read_response(*args, **kwargs)
        asked, self._asked = self._asked, ""
        if asked == "CLUSTER SLOTS":
            _check_slots(answer)
        return answer


class Plain(_Watched, Connection):
    """Over TCP."""


class Tls(_Watched, SSLConnection):
    """Over TLS."""


class Unix(_Watched, UnixDomainSocketConnection):
    """Over a unix socket."""


class PlainMaster(_Watched, SentinelManagedConnection):
    """To the master that a Sentinel names, over TCP."""


class TlsMaster(_Watched, SentinelManagedConnection, SSLConnection):
    """To the master that a Sentinel names, over TLS."""


def _check_slots(answer: Any) -> None:
    """Refuse an answer to CLUSTER SLOTS that makes no sense: redis-py loops over every slot in it."""
    slots, nodes = 0, set()
    for first, last, *servers in answer:
        if not 0 <= first <= last < _SLOTS:
            raise NonsenseError(f"no slots of a cluster: {first!r:.20} to {last!r:.20}")
        slots += last - first + 1
        for server in servers:
            server[0] = (
                server[0] or b""
            )  # unknown: the one that answers, which redis-py knows as ""
            nodes.add((bytes(server[0]), int(server[1])))
    if slots > _SLOTS or len(nodes) > _MOST_NODES:
        raise NonsenseError("too many slots or nodes of a cluster")
