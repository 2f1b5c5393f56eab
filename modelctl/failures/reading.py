"""Find out whether an ordinary exception says that an answer of a model was not usable.

A server may answer 200 and leave out what the answer should have. SDKs pass that on, and the application
gets a TypeError from ``answer.choices[0]``. The traceback says where an exception was raised, and Python
knows the expression.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from modelctl.failures import tables
from modelctl.failures.facts import attribute, package, status_of, text

if TYPE_CHECKING:
    import ast
    from collections.abc import Sequence
    from types import FrameType, TracebackType

_PLAIN = (LookupError, AttributeError, TypeError)
_MOST_FRAMES = 2000
_MOST_LINES = 20
_READING = re.compile(tables.READING)
_MAKING = re.compile(tables.MAKING)
_READERS = tables.SDKS | tables.JSON_READERS | tables.SCHEMA_READERS


def of_answer(exception: BaseException) -> bool:
    """Whether an exception was raised because an answer lacks what it should have."""
    frames = _frames(exception)
    if not frames:
        return False
    innermost = _package(frames[-1].tb_frame)
    if innermost in tables.JSON_READERS:
        return isinstance(exception, ValueError)
    if innermost in _READERS:  # what an SDK asserts is about the answer, not about arguments
        return isinstance(exception, AssertionError) or _passes(frames, _READING)
    return isinstance(exception, _PLAIN) and _reads_answer(exception, frames[-1])


def of_request(exception: BaseException) -> bool:
    """Whether an exception was raised while an SDK made a request, before it was sent."""
    return _passes(_frames(exception), _MAKING)


def _passes(frames: Sequence[TracebackType], functions: re.Pattern[str]) -> bool:
    """Whether a traceback passes through one of these functions of an SDK."""
    return any(
        _package(frame.tb_frame) in tables.SDKS and functions.search(frame.tb_frame.f_code.co_name)
        for frame in frames
    )


def _frames(exception: BaseException) -> list[TracebackType]:
    """Return the traceback, the innermost frame last; empty if it is too long."""
    found: list[TracebackType] = []
    frame = exception.__traceback__
    while frame is not None and len(found) < _MOST_FRAMES:
        found.append(frame)
        frame = frame.tb_next
    return found if frame is None else []


def _package(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""


def _reads_answer(exception: BaseException, frame: TracebackType) -> bool:
    """Whether the expression that raised reads an answer, such as ``answer.choices[0].message``."""
    if isinstance(exception, AttributeError):
        holder, name = attribute(exception, "obj"), attribute(exception, "name")
        if isinstance(holder, str | bytes):
            return name in tables.HTML_LACKS
        if package(type(holder)) in tables.SDKS:  # the application asks for what the class lacks
            return name in tables.ANSWER_ATTRIBUTES
    node = _expression(frame)
    attributes, root = _parts(node) if node else (None, None)
    if attributes is None:
        return False
    scopes = (frame.tb_frame.f_locals, frame.tb_frame.f_globals)
    value = next((scope[root] for scope in scopes if root in scope), None)
    if _says_why(value):
        return False
    if not tables.ANSWER_ATTRIBUTES.isdisjoint(attributes):
        return True
    if isinstance(value, dict):
        return "ResponseMetadata" in value  # botocore
    return package(type(value)) in tables.SDKS and (status_of(value) or 200) < 400


def _says_why(answer: object) -> bool:
    """Whether an answer is good and says why it has no text: it was refused, or is a call of a tool."""
    if attribute(attribute(answer, "prompt_feedback"), "block_reason") is not None:
        return True
    holders = [answer]
    for name in ("choices", "candidates"):
        if isinstance(items := attribute(answer, name), list):
            holders += items[:1]
    reasons = [
        text(attribute(holder, name), 30).lower()
        for holder in holders
        for name in ("finish_reason", "stop_reason")
    ]
    if isinstance(answer, dict):  # botocore
        reasons.append(text(dict.get(answer, "stopReason"), 30))
    return not tables.REASONS_FOR_NO_TEXT.isdisjoint(reasons)


def _expression(frame: TracebackType) -> ast.expr | None:
    """Return the expression that raised, None: its source is not there."""
    import ast
    import itertools
    import linecache

    code = frame.tb_frame.f_code
    at = next(itertools.islice(code.co_positions(), frame.tb_lasti // 2, None), (None,) * 4)
    first, last, start, end = at
    if first is None or last is None or start is None or end is None or last - first > _MOST_LINES:
        return None
    lines = [
        linecache.getline(code.co_filename, number, frame.tb_frame.f_globals).encode()
        for number in range(first, last + 1)
    ]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        return ast.parse(b"(" + b"".join(lines) + b"\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError):  # the file has changed
        return None


def _parts(node: Any) -> tuple[list[str] | None, str | None]:
    """Return the attributes that an expression reads, and the variable with which it begins.

    The attributes are None if it reads nothing, or if it calls a function that raised.
    """
    import ast

    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        node = node.generators[0].iter
    if not isinstance(node, ast.Attribute | ast.Subscript):
        return None, None
    attributes = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            attributes.append(node.attr)
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Await):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return attributes, None
    return attributes, node.id
