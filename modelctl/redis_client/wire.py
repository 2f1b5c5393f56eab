"""RESP, the language of Redis: commands out, answers in, whatever it is that answers.

Strict, because a proxy, another service on the port or a broken server may send anything, for
ever: what is no RESP2, nests too deeply or grows too long is a `NonsenseError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# One answer at most: a page of a SCAN is some 100 KB.
LONGEST = 16_000_000
DEEPEST = 16
_CURSOR = re.compile(rb"[0-9]{1,20}")
_INTEGER = re.compile(rb"[+-]?[0-9]{1,19}")
_RUN_ID = re.compile(rb"^run_id:([!-~]{1,100})\r?$", re.MULTILINE)
_REPLICATION_ID = re.compile(rb"^master_replid:([!-~]{1,100})\r?$", re.MULTILINE)
# Where the replication id changed: -1 before the first promotion of a server.
_CHANGED_AT = re.compile(rb"^second_repl_offset:[0-9]+\r?$", re.MULTILINE)


class ReplyError(Exception):
    """Redis said no, in these words."""


class NonsenseError(ValueError):
    """What came is no answer of a Redis server."""


def request(words: Sequence[str | bytes]) -> bytes:
    """Write a command."""
    encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


def home(info: Any) -> str:
    """Find in the answer to `INFO` who the server is; empty where it does not or may not say.

    That is its run id. A server that was made the primary, for the second time perhaps, has the
    keys of before, so its replication id stands there too: that is new at each promotion.
    """
    if isinstance(info, Exception):
        return ""
    if not isinstance(info, bytes):
        raise NonsenseError(f"no answer to INFO: {info!r:.100}")
    found = _RUN_ID.search(info)
    if found is None:
        return ""
    words = [found[1]]
    if _CHANGED_AT.search(info) and (replication := _REPLICATION_ID.search(info)):
        words.append(replication[1])
    return b" ".join(words).decode()


class Reader:
    """Reads answers from *receive*, which returns the next bytes or raises when none come."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = b""
        self._at = 0
        self._taken = 0  # of the answer that is being read

    def reply(self) -> Any:
        """Return the next answer: bytes, int, None, a list of such, or a `ReplyError`.

        Raises:
            NonsenseError: it is none.
        """
        self._taken = 0
        return self._reply(0)

    def has_more(self) -> bool:
        """Whether something came that was not read."""
        return self._at < len(self._buffer)

    def _reply(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest.decode("utf-8", "replace"))
        if kind not in (b":", b"$", b"*") or not _INTEGER.fullmatch(rest):
            raise NonsenseError(f"no answer of Redis: {line[:60]!r}")
        number = int(rest)
        if kind == b":":
            return number
        if number == -1:
            return None
        if not 0 <= number <= LONGEST or depth == DEEPEST:
            raise NonsenseError(f"an answer too long or too deep: {line[:60]!r}")
        if kind == b"$":
            return self._bytes(number)
        return [self._reply(depth + 1) for _ in range(number)]

    def _line(self) -> bytes:
        end = self._buffer.find(b"\r\n", self._at)
        while end < 0:
            seen = max(self._at, len(self._buffer) - 1)
            seen -= self._more()
            end = self._buffer.find(b"\r\n", seen)
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _bytes(self, size: int) -> bytes:
        if self._at + size + 2 > len(self._buffer):
            parts = [self._buffer[self._at :]]
            have = len(parts[0])
            while have < size + 2:
                parts.append(self._next())
                have += len(parts[-1])
            self._buffer, self._at = b"".join(parts), 0
        end = self._at + size
        if self._buffer[end : end + 2] != b"\r\n":
            raise NonsenseError("a string without its end")
        found = self._buffer[self._at : end]
        self._at = end + 2
        return found

    def _more(self) -> int:
        """Append what comes next; return by how much the places in the buffer moved."""
        moved, self._at = self._at, 0
        self._buffer = self._buffer[moved:] + self._next()
        return moved

    def _next(self) -> bytes:
        part = self._receive()
        self._taken += len(part)
        if self._taken > LONGEST:
            raise NonsenseError("an answer without an end")
        return part


# ── Commands, and which answers to them make sense ──


class Command(NamedTuple):
    """What is asked, and whether an answer to it makes sense."""

    words: tuple[str | bytes, ...]
    makes_sense: Callable[[Any], bool]


def checked(commands: Sequence[Command], answers: Sequence[Any]) -> list[Any]:
    """Return the answers.

    Raises:
        NonsenseError: one makes no sense; an answer that is an error is raised itself.
    """
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        if not command.makes_sense(answer):
            raise NonsenseError(f"no answer to {command.words[0]!r}: {answer!r:.100}")
    return list(answers)


def is_ok(answer: Any) -> bool:
    """``OK``."""
    return bool(answer == b"OK")


def is_ok_or_none(answer: Any) -> bool:
    """Of SET NX: done, or it was there."""
    return answer is None or answer == b"OK"


def is_queued(answer: Any) -> bool:
    """Of a command in a transaction."""
    return bool(answer == b"QUEUED")


def is_number(answer: Any) -> bool:
    """A whole number."""
    return type(answer) is int


def is_text(answer: Any) -> bool:
    """A string."""
    return isinstance(answer, bytes)


def is_text_or_none(answer: Any) -> bool:
    """A string, or there is none."""
    return answer is None or isinstance(answer, bytes)


def _items(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else []


def is_list(answer: Any) -> bool:
    """A list of whatever."""
    return isinstance(answer, list)


def is_pair(answer: Any) -> bool:
    """Two strings, each of which may be missing."""
    return len(_items(answer)) == 2 and all(map(is_text_or_none, answer))


def is_page(answer: Any) -> bool:
    """A cursor and keys."""
    if len(_items(answer)) != 2 or not is_text(answer[0]) or not _CURSOR.fullmatch(answer[0]):
        return False
    return isinstance(answer[1], list) and all(map(is_text, answer[1]))


def is_transaction(answer: Any) -> bool:
    """A transaction of SET and DEL that was carried out, or (None) that a WATCH stopped."""
    return answer is None or all(is_ok(one) or is_number(one) for one in _items(answer) or [None])


# All sections: before Redis 7 it is one or all, and two are needed.
INFO = Command(("INFO",), is_text)
