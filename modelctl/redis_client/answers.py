"""Which answers of Redis make sense: what comes may be from anything that listens on the port."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# One answer at most: a page of a SCAN is some 100 KB.
LONGEST = 16_000_000
HEADER = re.compile(rb"[*$](-1|[0-9]{1,19})|:[+-]?[0-9]{1,19}|[+-].*", re.DOTALL)
_CURSOR = re.compile(rb"[0-9]{1,20}")
_RUN_ID = re.compile(rb"^run_id:([!-~]{1,100})\r?$", re.MULTILINE)
_REPLICATION_ID = re.compile(rb"^master_replid:([!-~]{1,100})\r?$", re.MULTILINE)
# Where the replication id changed: -1 before the first promotion of a server.
_CHANGED_AT = re.compile(rb"^second_repl_offset:[0-9]+\r?$", re.MULTILINE)


class NonsenseError(ValueError):
    """What came is no answer of a Redis server."""


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


def is_pair(answer: Any) -> bool:
    """Two strings, each of which may be missing."""
    return isinstance(answer, list) and len(answer) == 2 and all(map(is_text_or_none, answer))


def is_page(answer: Any) -> bool:
    """A cursor and keys."""
    match answer:
        case [bytes(cursor), [*keys]]:
            return bool(_CURSOR.fullmatch(cursor)) and all(map(is_text, keys))
    return False


def is_transaction(answer: Any) -> bool:
    """A transaction of SET and DEL that was carried out, or (None) that a WATCH stopped."""
    if isinstance(answer, list):
        return bool(answer) and all(is_ok(one) or is_number(one) for one in answer)
    return answer is None


# All sections: before Redis 7 it is one or all, and two are needed. An error is an answer: see `home`.
INFO = Command(("INFO",), lambda _: True)
