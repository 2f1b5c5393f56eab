"""A first look at the count in Redis without redis-py, whose import takes longer than all the rest.

For the usual address and the usual answer alone: whatever is unusual is left to redis-py.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_LONGEST = 1024
_Found = tuple[bytes | None, bytes | None, int]


class ReplyError(Exception):
    """Redis said no, in these words."""


def glance(url: str, key: str, tomb: str, timeout: float) -> _Found | None:
    """Return value, tombstone and time to live (ms) of the count; None: ask with redis-py.

    *timeout*: seconds, for everything. The same two commands as `RedisCache.peek`.

    Raises:
        ReplyError: Redis answered with an error.
        TimeoutError: nothing came in time; asking again would take as long again.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "unix") or parts.query or not (parts.path or parts.hostname):
        return None
    requests = []
    if parts.username or parts.password:
        user = [unquote(parts.username)] if parts.username else []
        requests.append(["AUTH", *user, unquote(parts.password or "")])
    database = int(parts.path.strip("/") or 0) if parts.scheme == "redis" else 0
    if database:
        requests.append(["SELECT", str(database)])
    before = len(requests)
    requests += [["MGET", key, tomb], ["PTTL", key]]
    end = monotonic() + timeout
    try:
        with _connect(parts, end) as connection:
            connection.sendall(b"".join(map(request, requests)))
            answer = b""
            while len(answer) < _LONGEST:
                connection.settimeout(max(0.001, end - monotonic()))
                part = connection.recv(_LONGEST)
                answer += part
                found = _read(answer, before)
                if found or not part:
                    return found
    except TimeoutError:
        raise
    except (OSError, ValueError):  # refused, no such host, a port that is none
        return None
    return None


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


def request(words: list[str]) -> bytes:
    """Write a command as RESP."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


def _read(answer: bytes, before: int) -> _Found | None:
    """Read +OK (*before* times), two strings in an array, and a number; None: more is to come.

    Raises:
        ReplyError: it ends with an error.
        ValueError: it is something else.
    """
    if not answer.endswith(b"\r\n"):
        return None
    lines = answer.split(b"\r\n")[:-1]
    for line in (*lines[:before], lines[-1]):
        if line.startswith(b"-") and line[1:2].isalpha():
            raise ReplyError(line[1:].decode("utf-8", "replace"))
    for line, expected in zip(lines, [b"+OK"] * before + [b"*2"], strict=False):
        if line != expected:
            raise ValueError
    strings: list[bytes | None] = []
    rest = lines[before + 1 :]
    while len(strings) < 2 and rest:
        length = int(rest.pop(0).removeprefix(b"$"))
        if length < 0:
            strings.append(None)
        elif rest:
            strings.append(rest.pop(0))
            if length != len(strings[-1] or b""):
                raise ValueError  # a line end inside, which no count has
    if not rest:
        return None
    [number] = rest
    return strings[0], strings[1], int(number.removeprefix(b":"))
