"""Say what type of failure an exception is, without importing the SDK that raised it.

`classify` walks from the exception to its causes and asks each for its evidence: its class, the status that
a server sent, the error code in the answer. The tables are in `tables`.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.failures import facts, reading, tables
from modelctl.health import failure_type_of_status
from modelctl.model import FailureType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# How many exceptions are looked at: the chain of causes, and the members of groups.
_MOST = 64
_TOO_MANY = re.compile(tables.TOO_MANY)
_members = vars(BaseExceptionGroup)["exceptions"].__get__


class _Strength(IntEnum):
    """How much an exception is to be believed."""

    GUESS = 1  # a wrapper, which calls many things by one name
    CONNECTION = 2  # the connection failed, for a reason that its cause may know
    EXACT = 3  # a class that says what happened
    SENT = 4  # a status or an error code that a server sent


class _Evidence(NamedTuple):
    """What an exception says; *type* None: it is the caller's own doing."""

    type: FailureType | None
    strength: _Strength


# What a wrapper says of a failure that it does not understand.
_VAGUE = (FailureType.SERVER_ERROR, FailureType.NETWORK_ERROR, FailureType.UNKNOWN)
_OWN_DOING = _Evidence(None, _Strength.EXACT)
_TIMEOUT = _Evidence(FailureType.TIMEOUT, _Strength.EXACT)
_UNUSABLE = _Evidence(FailureType.PARSE_ERROR, _Strength.EXACT)


def classify(exception: BaseException) -> FailureType | None:
    """Return the failure type of the exception that a call of a model raised.

    None: the caller's own doing. It says nothing about the model, so nothing is to be recorded: a prompt
    that is too long or was refused, a cancelled call, a request that was never sent, or an exception of
    the application's own code.

    Knows the exceptions of openai, anthropic, google-genai, mistralai, cohere, litellm, botocore, grpc,
    httpx, httpx2, requests, aiohttp and urllib3, those of the standard library, and every exception that
    has one of these as its cause. docs/applications.md has the table.

    Never raises, also for an exception that resists being looked at, and for an object that is no
    exception: these are ``unknown``. Takes a fraction of a millisecond, and the first time some
    milliseconds, however long the message is.
    """
    return classify_without(exception, ())


def classify_without(
    exception: BaseException, others: Iterable[BaseException]
) -> FailureType | None:
    """Do what `classify` does, but conclude nothing from *others*: they are of calls of other models."""
    try:
        if not issubclass(type(exception), BaseException):
            return FailureType.UNKNOWN
        found = _follow(exception, [_MOST], frozenset(map(id, others)))
        return found.type if found else None
    except Exception:
        return FailureType.UNKNOWN


def classify_answer(status: int | None, body: bytes | dict[str, Any]) -> FailureType | None:
    """Return the failure type of an error that a server sent, for code that has no exception.

    *status*: from 400 on; None: the error came in the middle of a stream. None has the same meaning as in
    `classify`. Never raises.
    """
    try:
        found = _of_answer(facts.said(_AnswerError(status, body)), real=True)
        return found.type if found else FailureType.SERVER_ERROR
    except Exception:
        return FailureType.UNKNOWN


class _AnswerError(Exception):
    """An error that a server sent, as the exception of an SDK holds it."""

    def __init__(self, status: int | None, body: bytes | dict[str, Any]) -> None:
        self.status_code = status
        self.body = body


def _follow(exception: BaseException, left: list[int], others: frozenset[int]) -> _Evidence | None:
    """Return the evidence that decides, of an exception and its causes; None: there is none.

    *left*: how many exceptions may still be looked at. *others*: not at these, nor at their causes.
    """
    best: _Evidence | None = None
    wrapped = by_chance = False
    at: BaseException | None = exception
    seen = set(others)
    while at is not None and id(at) not in seen and left[0] > 0:
        seen.add(id(at))
        left[0] -= 1
        found = _of_group(at, left, others) if issubclass(type(at), BaseExceptionGroup) else None
        found = found or _evidence(at, wrapped=wrapped)
        if found and _is_better(found, best, by_chance=by_chance):
            best, by_chance = found, False
        if best and (best.strength is _Strength.SENT or best == _OWN_DOING):
            return best
        wrapped = _is_made_up(at) and best is not None and best.type in _VAGUE
        at, explicit = facts.cause(at)
        by_chance |= not explicit
    return best


def _is_better(found: _Evidence, best: _Evidence | None, *, by_chance: bool) -> bool:
    """Whether the evidence of a cause counts more than *best*, which is nearer to what was raised.

    *by_chance*: the cause may be an earlier try: the code that raised does not name it as its cause.
    """
    if best is None or best.strength is _Strength.GUESS:
        return True
    if found.strength is _Strength.SENT:
        # An error page is no JSON: the status says more than the parser.
        return best == _UNUSABLE or not by_chance
    return best.strength is _Strength.CONNECTION and found == _TIMEOUT


def _of_group(group: BaseException, left: list[int], others: frozenset[int]) -> _Evidence | None:
    """Return the evidence of the first member that says something about the model."""
    found = [
        evidence
        for member in _members(group)[: left[0]]
        if (evidence := _follow(member, left, others)) is not None
    ]
    return next((each for each in found if each.type), found[0] if found else None)


def _evidence(exception: BaseException, *, wrapped: bool) -> _Evidence | None:
    """Return what one exception says, without its causes.

    *wrapped*: it is the cause of an exception whose status is made up and vague.
    """
    classes = facts.classes(exception)
    packages = {package for package, _ in classes}
    if packages & tables.ELSEWHERE:
        return _OWN_DOING
    by_class = _lookup(classes, tables.CLASSES)
    if by_class == (None,):
        return _OWN_DOING
    said = facts.said(exception)
    made_up = _is_made_up(exception)
    real = not made_up and (bool(packages & tables.SDKS) or facts.has_response(exception))
    if found := _of_answer(said, real=real):
        return found
    if by_class:
        strength = _Strength.EXACT
        if by_class == (FailureType.NETWORK_ERROR,):
            strength = _Strength.CONNECTION
        return _Evidence(by_class[0], strength)
    if said.status and 200 <= said.status <= 299:
        return _UNUSABLE
    if made_up and any(words in said.text for words in tables.UNUSABLE):
        return _UNUSABLE
    if isinstance(exception, OSError) and exception.errno in tables.ERRNOS:
        return _Evidence(FailureType.NETWORK_ERROR, _Strength.CONNECTION)
    if packages == {"builtins"}:
        return _of_plain(exception, wrapped=wrapped)
    return _guess(exception, classes, packages)


def _of_answer(said: facts.Said, *, real: bool) -> _Evidence | None:
    """Return what the answer of a server says: codes first, then the status.

    *real*: the status was sent by a server.
    """
    failed = said.status if said.status and said.status >= 400 else None
    for code in said.codes:
        if code in tables.CODES:
            return _Evidence(tables.CODES[code], _Strength.SENT)
    if failed and failed < 500:
        if any(words in said.text for words in tables.REFUSALS):
            return _Evidence(None, _Strength.SENT)
        if any(words in said.text for words in tables.BILLS):
            return _Evidence(FailureType.CLIENT_ERROR, _Strength.SENT)
    if not real:
        return None
    if not failed and (retried := _TOO_MANY.search(said.text)):
        failed = int(retried[1])
    if failed:
        return _Evidence(_of_status(failed), _Strength.SENT)
    for code in said.codes:
        if code == "unavailable" and any(words in said.text for words in tables.UNREACHABLE):
            return _Evidence(FailureType.NETWORK_ERROR, _Strength.SENT)
        if code in tables.CODES_WITHOUT_STATUS:
            return _Evidence(tables.CODES_WITHOUT_STATUS[code], _Strength.SENT)
    return None


def _of_status(status: int) -> FailureType | None:
    if status in tables.STATUSES:
        return tables.STATUSES[status]
    return failure_type_of_status(status) if 400 <= status <= 599 else FailureType.UNKNOWN


def _of_plain(exception: BaseException, *, wrapped: bool) -> _Evidence | None:
    """Return what an exception of Python itself says: nothing, unless it is about an answer."""
    if reading.of_answer(exception):
        return _UNUSABLE
    if wrapped and reading.of_request(exception):
        return _Evidence(None, _Strength.GUESS)
    if wrapped and exception.__traceback__ is None:  # it came from another process
        return _Evidence(FailureType.PARSE_ERROR, _Strength.GUESS)
    return None


def _guess(
    exception: BaseException, classes: Sequence[tuple[str, str]], packages: set[str]
) -> _Evidence | None:
    """Return what a wrapper says of itself, or a class that no table has."""
    by_class = _lookup(classes, tables.WRAPPERS)
    known = bool(packages & tables.SDKS) or facts.has_response(exception)
    # `code` and `status` of any other class may be anything.
    status = facts.status_of(exception) if known else facts.status_code_of(exception)
    if status and by_class != (FailureType.NETWORK_ERROR,):
        return _Evidence(_of_status(status), _Strength.GUESS)
    if by_class:
        return _Evidence(by_class[0], _Strength.GUESS)
    return _Evidence(FailureType.UNKNOWN, _Strength.GUESS) if known else None


def _lookup(
    classes: Sequence[tuple[str, str]], table: Mapping[str, FailureType | None]
) -> tuple[FailureType | None] | None:
    """Return what a table says of the nearest of these classes, None: nothing."""
    for package, name in classes:
        for key in (f"{package}.{name}", name):
            if key in table:
                return (table[key],)
        if table is tables.CLASSES and name.endswith(tables.TIMEOUT_NAMES):
            return (FailureType.TIMEOUT,)
    return None


def _is_made_up(exception: BaseException) -> bool:
    """Whether the status of an exception was sent by no server."""
    classes = facts.classes(exception)
    if any(name == "HTTPStatusError" for _, name in classes):
        return False
    return any(
        package in tables.MADE_UP_STATUSES or f"{package}.{name}" in tables.MADE_UP_STATUSES
        for package, name in classes
    )
