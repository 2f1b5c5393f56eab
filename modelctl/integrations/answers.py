"""Find out from an HTTP request and its answer how the call of a model went."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.failures.classification import classify_answer
from modelctl.model import FailureType

if TYPE_CHECKING:
    from collections.abc import Mapping

# The longest body that is parsed: longer ones would block an event loop for milliseconds.
LONGEST_BODY = 1 << 20
_LONGEST_REQUEST = 1 << 18
_LONGEST_REASON = 1000
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*("(?:[^"\\]|\\.){1,2000}")?')
# Why a good answer may be empty (`status` of OpenAI's Responses, `stop_reason` of Anthropic).
_FINISHED = ("completed", "end_turn", None)


class Verdict(NamedTuple):
    """How a call went: a success (*good*), a failure of this type, or neither: it says nothing."""

    type: FailureType | None
    reason: str = ""
    good: bool = False


SUCCESS = Verdict(None, good=True)
NOTHING = Verdict(None)


def endpoint_of(path: str, endpoints: Mapping[str, str | None]) -> str | None:
    """Return the end of a path that asks a model; None: this request asks no model."""
    path = path.rstrip("/")
    return next((end for end in endpoints if path.endswith(f"/{end}")), None)


def model_of(body: bytes) -> str | None:
    """Return the model that a request names in its JSON."""
    # Prompts with pictures are long: nothing is parsed if only one thing in them is a model. A quote that is
    # part of a text has a backslash.
    found = _MODEL.findall(body) if len(body) > _LONGEST_REQUEST else []
    try:
        model = json.loads(found[0]) if len(found) == 1 and found[0] else json.loads(body)["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return model if isinstance(model, str) and model else None


def judge(status: int, content_type: str, body: bytes, field: str | None) -> Verdict:
    """Return what a whole answer says. *field*: what a good one has; None: it is no JSON."""
    if status >= 400:
        kind = classify_answer(status, body)
        return Verdict(kind, f"HTTP {status}: {_message(body)}")
    if status >= 300:
        return Verdict(FailureType.UNKNOWN, f"HTTP {status}: a redirect that was not followed")
    if field is None or len(body) > LONGEST_BODY:
        return SUCCESS
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        what = f"of the type {content_type[:100]}" if body else "empty"
        return Verdict(FailureType.PARSE_ERROR, f"the answer is no JSON, but {what}")
    return _judge_document(document, field)


def _judge_document(document: Any, field: str) -> Verdict:
    if not isinstance(document, dict):
        return Verdict(FailureType.PARSE_ERROR, "the answer is no JSON object")
    finished = document.get("status", document.get("stop_reason")) in _FINISHED
    if document.get("error"):
        if document.get("status") == "failed":  # OpenAI's Responses: the model has failed
            return of_error(document)
        reason = f"an error in an answer with status 200: {_message(document)}"
        return Verdict(FailureType.PARSE_ERROR, reason)
    if document.get(field):
        # Still running in the background, or cancelled by the caller.
        running = document.get("status") in ("queued", "in_progress", "cancelled")
        return NOTHING if running else SUCCESS
    if not finished:
        return NOTHING
    return Verdict(FailureType.PARSE_ERROR, f"the answer has no {field}")


def of_error(document: dict[str, Any]) -> Verdict:
    """Return what an error says that came without a status."""
    return Verdict(classify_answer(None, document), _message(document))


def _message(body: bytes | dict[str, Any]) -> str:
    """Return the text of an error."""
    document: Any = body
    if isinstance(body, bytes):
        try:
            document = json.loads(body[:LONGEST_BODY])
        except (ValueError, RecursionError):
            return body[:_LONGEST_REASON].decode(errors="replace").strip()
    for key in ("error", "detail", "message"):
        if isinstance(document, dict) and document.get(key):
            document = document[key]
    return str(document)[:_LONGEST_REASON]


class Events:
    """Reads server-sent events as they come, and says how the stream went as soon as it is known."""

    # Names of events after which a stream is complete.
    _LAST = ("message_stop", "response.completed", "response.incomplete", "response.done")

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._skipping = False
        self.any = False

    def feed(self, chunk: bytes) -> Verdict | None:
        """Return the verdict, if these bytes say it."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if len(self._rest) > LONGEST_BODY:  # the text of an answer, and no end
            self._rest, self._skipping = b"", True
        found = (self._read(line.rstrip(b"\r")) for line in lines)
        return next((verdict for verdict in found if verdict), None)

    def _read(self, line: bytes) -> Verdict | None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value.decode(errors="replace")
        if name != b"data":
            return None
        self.any = True
        event, self._name = self._name, ""
        if value.startswith(b"[DONE]") or event in self._LAST:
            return SUCCESS
        if event == "error" or b'"error"' in value:
            return self._error(value, event)
        return None

    def _error(self, value: bytes, event: str) -> Verdict | None:
        try:
            document = json.loads(value)
        except (ValueError, RecursionError):
            document = {"error": {"message": value.decode(errors="replace")}}
        if isinstance(document, dict) and isinstance(document.get("response"), dict):
            document = document["response"]
        is_error = isinstance(document, dict) and (event == "error" or document.get("error"))
        return of_error(document) if is_error else None
