"""Which answers of Redis make sense: anything may listen on the port, so every answer is checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# The longest answer (bytes); a page of a SCAN is about 100 KB.
LONGEST = 16_000_000
HEADER = re.compile(rb"[*$](-1|[0-9]{1,19})|:[+-]?[0-9]{1,19}|[+-].*", re.DOTALL)
_CURSOR = re.compile(rb"[0-9]{1,20}")
_RUN_ID = re.compile(rb"^run_id:([!-~]{1,100})\r?$", re.MULTILINE)
_REPLICATION_ID = re.compile(rb"^master_replid:([!-~]{1,100})\r?$", re.MULTILINE)
# The offset at which the replication id changed; -1: the server was never promoted.
_CHANGED_AT = re.compile(rb"^second_repl_offset:[0-9]+\r?$", re.MULTILINE)


class NonsenseError(ValueError):
    """The answer is not one that a Redis server gives."""


class Command(NamedTuple):
    """The words of a command, and a function that says whether an answer to it makes sense."""

    words: tuple[str | bytes, ...]
    makes_sense: Callable[[Any], bool]


def checked(commands: Sequence[Command], answers: Sequence[Any]) -> list[Any]:
    """Return the answers.

    Raises:
        NonsenseError: an answer makes no sense. An answer that is an error is raised as it is.
    """
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        if not command.makes_sense(answer):
            raise NonsenseError(f"no answer to {command.words[0]!r}: {answer!r:.100}")
    return list(answers)


def server_id(info: Any) -> str:
    """Return the identity of the server, from its answer to `INFO`; empty if it gives none.

    The identity is the run id, which is new at each start. A server that was promoted to primary keeps its
    run id, and it may have keys from an earlier time as a primary: so its replication id, which is new
    at each promotion, is added.
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
    """SET NX: it was stored, or (None) the key was there."""
    return answer is None or answer == b"OK"


def is_queued(answer: Any) -> bool:
    """A command inside of a transaction."""
    return bool(answer == b"QUEUED")


def is_number(answer: Any) -> bool:
    """A whole number."""
    return type(answer) is int


def is_text(answer: Any) -> bool:
    """A string."""
    return isinstance(answer, bytes)


def is_text_or_none(answer: Any) -> bool:
    """A string, or None."""
    return answer is None or isinstance(answer, bytes)


def is_pair(answer: Any) -> bool:
    """Two strings, each of which may be None."""
    return isinstance(answer, list) and len(answer) == 2 and all(map(is_text_or_none, answer))


def is_page(answer: Any) -> bool:
    """A cursor and keys."""
    match answer:
        case [bytes(cursor), [*keys]]:
            return bool(_CURSOR.fullmatch(cursor)) and all(map(is_text, keys))
    return False


def is_transaction(answer: Any) -> bool:
    """EXEC of SETs and DELs: their answers, or None if a watched key changed."""
    if isinstance(answer, list):
        return bool(answer) and all(is_ok(one) or is_number(one) for one in answer)
    return answer is None


# Without a section: two sections are needed, and Redis before 7 accepts at most one name. Any answer is
# accepted, also an error: see `server_id`.
INFO = Command(("INFO",), lambda _: True)
