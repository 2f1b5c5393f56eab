"""A first look at the count in Redis without redis-py, whose import takes longer than all the rest.

For the usual address and the usual answer alone: whatever is unusual is left to redis-py.
"""

from __future__ import annotations

import socket
from time import monotonic
from urllib.parse import unquote, urlsplit

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
    if parts.password:
        user = [unquote(parts.username)] if parts.username else []
        requests.append(["AUTH", *user, unquote(parts.password)])
    database = parts.path.strip("/") if parts.scheme == "redis" else ""
    if database not in ("", "0"):
        requests.append(["SELECT", database])
    before = len(requests)
    requests += [["MGET", key, tomb], ["PTTL", key]]
    end = monotonic() + timeout
    try:
        with _connect(parts.scheme, parts, timeout) as connection:
            connection.sendall(b"".join(map(_request, requests)))
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


def _connect(scheme: str, parts: object, timeout: float) -> socket.socket:
    if scheme == "redis":
        host, port = parts.hostname or "localhost", parts.port or 6379  # type: ignore[attr-defined]
        return socket.create_connection((host, port), timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(unquote(parts.path))  # type: ignore[attr-defined]
    return connection


def _request(words: list[str]) -> bytes:
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
        if line.startswith(b"-"):
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
