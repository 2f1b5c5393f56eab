"""Judge an answer: is the model healthy, has it failed, or is the probe itself wrong?"""

from __future__ import annotations

import json
import re
from typing import Any

from modelctl.health import failure_type_of_status
from modelctl.model import FailureType
from modelctl.outbound.post import LARGEST_ANSWER
from modelctl.probe.results import Failure

REASON_LENGTH = 500
# Statuses that say nothing about the model, only about the request: the key (401, 403, 407), an
# unpaid bill (402), the method or path (405), formats and sizes (406, 411, 413, 414, 415, 417, 431),
# too many requests (429), a caller that went away (499).
_OF_THE_REQUEST = {401, 402, 403, 405, 406, 407, 411, 413, 414, 415, 417, 429, 431, 499}
# Words of a 400, 404 or 422 whose reason is the request: a parameter, the kind of endpoint, the path,
# the key, the bill. Everything else is a failure of the model: it is gone, or refuses a plain "ping".
_REQUEST_DOES_NOT_FIT = re.compile(
    r"unsupported[ _](?:parameter|value|country)|(?:unknown|unrecognized|invalid|unexpected|extra)[ _]"
    r"(?:request[ _])?(?:parameter|argument|field|key|input|property|url|path|route|endpoint)"
    r"|missing[ _]required|field required|extra[ _](?:inputs|fields)?[ _]?(?:are not permitted|forbidden)"
    r"|max_(?:completion_|output_)?tokens|not a chat model|chat model|chat/completions|v1/\w+"
    r"|chat[ _]completions?|(?:only|not) support\w*[^.]*(?:stream|chat|audio|image|embedding|messages)"
    r"|stream(?:ing)?['\"` ]*(?:must|is required|=|only|parameter)|(?:embedding|rerank\w*|image|audio"
    r"|speech|transcription|moderation) model|api[ _-]?key|credit|billing|quota|balance|payment",
    re.IGNORECASE,
)
# Server-Sent Events begin with a field or a comment; JSON never begins like that.
_EVENT_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")
# The message of a server whose path leads to no API; other servers answer with a page.
_NO_SUCH_PATH = re.compile(r"(?:404 )?(?:(?:page|path|route|url) )?not found\.?", re.IGNORECASE)


def judge(status: int, body: bytes, *, stream: bool) -> Failure | None:
    """Return what is wrong with an answer, None: the model is healthy.

    *stream*: whether an event stream was asked for.
    """
    if status == 200 and _EVENT_STREAM.match(body):
        return _judge_stream(body, stream=stream)
    document = _json(body) if len(body) <= LARGEST_ANSWER else None
    said = document if isinstance(document, dict) else {}
    if status == 200 and isinstance(choices := said.get("choices"), list) and choices:
        return None
    message, words = _error(said)
    if status == 200 and (status_inside := _status_of(said)):
        # A gateway (OpenRouter, for example) passes the error of a provider on with status 200.
        return judge(status_inside, json.dumps(said).encode(), stream=stream)
    if len(body) > LARGEST_ANSWER:
        message = message or "larger than 64 KiB"
    if status == 400 and re.search("max_(completion_|output_)?tokens.*reached", message):
        return None  # a reasoning model used up all tokens that the probe allowed
    if 300 <= status <= 399:
        return Failure(None, f"HTTP {status}: a redirect, refused")
    if 400 <= status <= 599:
        fault_of_the_probe = (
            status in _OF_THE_REQUEST
            or (status in (400, 404, 422) and _REQUEST_DOES_NOT_FIT.search(words))
            or (status == 404 and (not message or _NO_SUCH_PATH.fullmatch(message.strip())))
        )
        kind = None if fault_of_the_probe else failure_type_of_status(status)
        return Failure(kind, f"HTTP {status}: {message}" if message else f"HTTP {status}")
    what = message or "not a JSON object with choices"
    return Failure(FailureType.PARSE_ERROR, f"HTTP {status}: {what}")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _status_of(said: dict[str, Any]) -> int | None:
    """Return the HTTP status inside of an error that came with status 200, None: there is none."""
    error = said.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code <= 599 else None


def _error(said: dict[str, Any]) -> tuple[str, str]:
    """Return the message of an error, and the message with all codes beside it.

    Servers that are compatible with OpenAI's write it in several ways.
    """
    error = said.get("error", said)
    message = error.get("message") if isinstance(error, dict) else error
    if isinstance(error, dict) and not isinstance(message, str):
        message = error.get("detail")  # FastAPI; a list where fields are wrong
        if isinstance(message, list):
            message = json.dumps(message)[:REASON_LENGTH]
    message = message if isinstance(message, str) else ""
    if not isinstance(error, dict):
        return message, message
    codes = (error.get(name) for name in ("code", "type", "param", "status"))
    return message, " ".join([message, *(code for code in codes if isinstance(code, str))])


def _chunks(body: bytes) -> list[Any]:
    """Return the JSON values of the whole events in *body* (Server-Sent Events)."""
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    found = (line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:"))
    return [_json(data) for data in found if data != b"[DONE]"]


def has_answered(body: bytes) -> bool:
    """Whether a stream has said enough: a choice, or an error."""
    return any(isinstance(c, dict) and (c.get("choices") or "error" in c) for c in _chunks(body))


def _judge_stream(body: bytes, *, stream: bool) -> Failure | None:
    """Return what is wrong with an event stream."""
    if not stream:
        return Failure(
            None, "HTTP 200: an event stream where JSON was asked for; set stream = true"
        )
    for chunk in _chunks(body + b"\n"):
        said = chunk if isinstance(chunk, dict) else {}
        if status_inside := _status_of(said):
            return judge(status_inside, json.dumps(said).encode(), stream=stream)
        if "error" in said:
            message, _ = _error(said)
            what = message or "an error in the stream"
            return Failure(FailureType.SERVER_ERROR, f"HTTP 200: {what}")
        if isinstance(choices := said.get("choices"), list) and choices:
            return None
    large = " in its first 64 KiB" if len(body) > LARGEST_ANSWER else ""
    return Failure(FailureType.PARSE_ERROR, f"HTTP 200: a stream without choices{large}")
