"""The first question that a process asks Redis, without redis-py.

`modelctl count` asks only once, and importing redis-py takes longer than the rest of that command:
with redis-py a cached count took 1.93 times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.redis_client import waiting
from modelctl.redis_client.answers import (
    HEADER,
    INFO,
    Command,
    NonsenseError,
    checked,
    is_ok,
    server_id,
)
from modelctl.redis_client.url import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 65_536
_DEEPEST = 2


class ReplyError(Exception):
    """Redis answered with this error."""


class _IncompleteError(Exception):
    """The answer is not complete yet."""


def first_look(url: str, commands: Sequence[Command]) -> tuple[list[Any], str] | None:
    """Send *commands*; return the answers and the identity of the server.

    None: the address or the answer is an unusual one (cluster, Sentinel, TLS, parameters, more than
    64 KiB), so ask through redis-py.

    Raises:
        ReplyError: Redis answered with an error.
        NonsenseError: the answer does not fit the commands.
        OSError: the server cannot be reached; TimeoutError: it did not answer in time.
    """
    target = target_of(url)
    if target.kind not in ("", "unix") or target.tls or target.parameters:
        return None
    asked = []
    if target.username or target.password:
        user = [target.username] if target.username else []
        asked.append(Command(("AUTH", *user, target.password), is_ok))
    if target.database:
        asked.append(Command(("SELECT", str(target.database)), is_ok))
    before = len(asked)
    asked += [*commands, INFO]
    place = target.path or target.addresses[0]
    try:
        with waiting.connect(place) as connection:
            connection.settimeout(waiting.left())
            connection.sendall(b"".join(request(command.words) for command in asked))
            data = b""
            while (answers := read_answers(data, len(asked))) is None:
                connection.settimeout(waiting.left())
                part = connection.recv(LONGEST)
                data += part
                if not part:
                    raise ConnectionError("the server closed the connection")
                if len(data) > LONGEST:
                    return None
    except Exception as exc:
        exc.add_note(place if isinstance(place, str) else f"{place[0]}:{place[1]}")
        raise
    info = answers.pop()
    return checked(asked[:-1], answers)[before:], server_id(info)


def request(words: Sequence[str | bytes]) -> bytes:
    """Return a command as Redis reads it."""
    encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


def read_answers(data: bytes, count: int) -> list[Any] | None:
    """Read *count* answers; None: they are not complete yet."""
    found, at = [], 0
    try:
        for _ in range(count):
            answer, at = _read(data, at, 0)
            found.append(answer)
    except _IncompleteError:
        return None
    if at < len(data):
        raise NonsenseError("more answers than questions")
    return found


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Read the answer that begins at *at*; return it and where the next one begins."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _IncompleteError
    line, at = data[at:end], end + 2
    if not HEADER.fullmatch(line) or depth > _DEEPEST:
        raise NonsenseError(f"no answer of Redis: {line[:60]!r}")
    kind, rest = line[:1], line[1:]
    if kind == b"+":
        return rest, at
    if kind == b"-":
        return ReplyError(rest.decode("utf-8", "replace")), at
    number = int(rest)
    if kind == b":":
        return number, at
    if number == -1:
        return None, at
    if kind == b"$":
        after = at + number + 2
        if len(data) < after:
            raise _IncompleteError
        if data[after - 2 : after] != b"\r\n":
            raise NonsenseError("a string without its end")
        return data[at : after - 2], after
    items = []
    for _ in range(number):
        item, at = _read(data, at, depth + 1)
        items.append(item)
    return items, at
