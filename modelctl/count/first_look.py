"""A first look at the count in Redis without redis-py, whose import takes longer than all the rest.

For the usual address alone: whatever is unusual is left to redis-py.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from modelctl.count.wire import (
    INFO,
    Command,
    NonsenseError,
    Reader,
    checked,
    is_ok,
    request,
    run_id,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

_Found = tuple[str, list[Any]]


def look(url: str, commands: Sequence[Command], timeout: float) -> _Found | None:
    """Return the server's run id and its answers to *commands*; None: ask with redis-py.

    *timeout*: seconds, for everything.

    Raises:
        ReplyError: Redis answered with an error.
        NonsenseError: what came is no answer.
        TimeoutError: nothing came in time; asking again would take as long again.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "unix") or parts.query or not (parts.path or parts.hostname):
        return None
    requests: list[tuple[str, ...]] = []
    if parts.username or parts.password:
        user = [unquote(parts.username)] if parts.username else []
        requests.append(("AUTH", *user, unquote(parts.password or "")))
    database = int(parts.path.strip("/") or 0) if parts.scheme == "redis" else 0
    if database:
        requests.append(("SELECT", str(database)))
    asked = [*(Command(words, is_ok) for words in requests), INFO, *commands]
    end = monotonic() + timeout
    try:
        with _connect(parts, end) as connection:
            connection.sendall(b"".join(request(command.words) for command in asked))
            reader = Reader(lambda: _receive(connection, end))
            answers = [reader.reply() for _ in asked]
    except (TimeoutError, NonsenseError):
        raise
    except (OSError, ValueError):  # refused, no such host, a port that is none
        return None
    home = run_id(answers.pop(len(requests)))
    del asked[len(requests)]
    return home, checked(asked, answers)[len(requests) :]


def _receive(connection: socket.socket, end: float) -> bytes:
    connection.settimeout(max(0.001, end - monotonic()))
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("Connection closed by server.")
    return part


def _connect(parts: SplitResult, end: float) -> socket.socket:
    """Connect to the first address that answers, all of them before *end*."""
    places: list[tuple[Any, ...]] = [(socket.AF_UNIX, 0, 0, "", unquote(parts.path))]
    if parts.scheme == "redis":
        host, port = parts.hostname or "localhost", parts.port or 6379
        places = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for number, (family, _, _, _, address) in enumerate(places, 1):
        connection = socket.socket(family)
        try:
            connection.settimeout(max(0.001, (end - monotonic()) / (1 + len(places) - number)))
            connection.connect(address)
        except OSError:
            connection.close()
            if number == len(places):
                raise
        else:
            return connection
    raise OSError("no address")
