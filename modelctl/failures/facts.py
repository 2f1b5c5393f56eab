"""Read facts from an exception of any class, in bounded time, and without raising.

Only `reason` formats an exception (``str`` of it may be slow, huge, or raise). An attribute is read only if
the object or its class has it, so that no ``__getattr__`` runs, and a mock says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.failures import tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Characters of a message that are searched, and the longest JSON that is parsed.
_LONGEST_TEXT, _LONGEST_JSON = 2000, 65536
# Characters of a reason: more than are stored, because hiding keys makes it shorter.
_LONGEST_REASON = 20_000
_STATUSES = ("status_code", "http_status", "status", "code")
_RESPONSES = ("response", "raw_response")
_BODIES = ("body", "details", "response", "text", "message")
_CODES = ("code", "type", "status", "error_code", "Code")
_MESSAGES = ("message", "Message", "msg", "detail")
# Fields of the JSON of an error that hold the error itself.
_INSIDE = ("error", "Error", "innererror", "detail", "message")

_cause = vars(BaseException)["__cause__"].__get__
_context = vars(BaseException)["__context__"].__get__
_suppressed = vars(BaseException)["__suppress_context__"].__get__
_args = vars(BaseException)["args"].__get__


class Said(NamedTuple):
    """What an exception says of the answer of a server: status, error codes, text (lower case)."""

    status: int | None
    codes: tuple[str, ...]
    text: str


def attribute(of: object, name: str) -> Any:
    """Return an attribute that an object or its class has, else None; also where reading it raises."""
    own = _own(of)
    if name in own:
        return own[name]
    try:
        return getattr(of, name) if any(name in vars(cls) for cls in type(of).__mro__) else None
    except Exception:  # a property that raises
        return None


def package(cls: type) -> str:
    """Return the top-level package of a class."""
    module = cls.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def classes(exception: BaseException) -> list[tuple[str, str]]:
    """Return package and name of the class of an exception and of its base classes."""
    return [(package(cls), cls.__name__) for cls in type(exception).__mro__]


def cause(exception: BaseException) -> tuple[BaseException | None, bool]:
    """Return what caused an exception, and whether the code that raised it says so.

    If it does not, the exception was raised while the other one was handled.
    """
    if (found := _cause(exception)) is not None:
        return found, True
    if not _suppressed(exception) and (found := _context(exception)) is not None:
        return found, False
    linked = [attribute(exception, name) for name in tables.LINKS]
    for value in (*linked, *_args(exception)[:1]):
        if issubclass(type(value), BaseException):
            return value, True
    return None, True


def said(exception: BaseException) -> Said:
    """Return what an exception says of the answer of a server."""
    try:
        return _said(exception)
    except Exception:  # a value that only looks like a text, a number or a dictionary
        return Said(None, (), "")


def _said(exception: BaseException) -> Said:
    documents = list(_documents(exception))
    # Only its own values: a property `code` may be deprecated, and warn.
    codes = [_own(exception).get(name) for name in _CODES]
    codes += [dict.get(document, name) for document in documents for name in _CODES]
    codes += [_called(exception, "code")]
    texts = [attribute(exception, "message"), *_args(exception)[:1], attribute(exception, "body")]
    texts += [dict.get(document, name) for document in documents for name in _MESSAGES]
    texts += [attribute(exception, "text"), _called(exception, "details")]
    texts += [_content(exception)]
    words = [text(code, 100).lower() for code in codes if isinstance(code, str)]
    status = status_of(exception) or _status_of_response(exception)
    return Said(status, tuple(words), "\n".join(filter(None, map(text, texts))).lower())


def text(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Return the beginning of a text, '' for any other value."""
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(0, longest)).decode(errors="replace")
    return str.__getitem__(value, slice(0, longest)) if isinstance(value, str) else ""


def reason(exception: BaseException) -> str:
    """Return the text of an exception, as the reason of a failure: its beginning, if it is long.

    The name of the class, if it has no text, or its `__str__` raises. An exception that holds a text of
    more than 64 KiB is not formatted: its `__str__` could copy that text many times.
    """
    args = _args(exception)
    held = [*args, *_own(exception).values()]
    long = [value for value in held if text(value, _LONGEST_JSON + 1)[_LONGEST_JSON:]]
    if long:
        return text(long[0], _LONGEST_REASON)
    try:
        said = text(str(exception), _LONGEST_REASON)
    except Exception:
        said = ""
    return said.strip() or type(exception).__name__


def has_response(exception: BaseException) -> bool:
    """Whether an exception has the response of a server, with its status."""
    return _status_of_response(exception) is not None


def _own(of: object) -> dict[str, Any]:
    try:
        found = object.__getattribute__(of, "__dict__")
    except Exception:  # no __dict__
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int | None:
    """Return an HTTP status, also one that is text; None: it is none."""
    if isinstance(value, str) and len(value) == 3 and str.isdecimal(value) and str.isascii(value):
        value = int(text(value))
    if isinstance(value, int) and not isinstance(value, bool):
        number = int.__add__(value, 0)
        return number if 100 <= number <= 599 else None
    return None


def status_of(of: object, names: Sequence[str] = _STATUSES) -> int | None:
    """Return the HTTP status that an exception or a response has as an attribute."""
    found = (_number(attribute(of, name)) for name in names)
    return next((number for number in found if number), None)


def status_code_of(exception: BaseException) -> int | None:
    """Return the HTTP status of an exception of any class, if the attribute can mean nothing else."""
    return status_of(exception, ("status_code", "http_status"))


def _status_of_response(exception: BaseException) -> int | None:
    for response in (attribute(exception, name) for name in _RESPONSES):
        if isinstance(response, dict):  # botocore
            meta = dict.get(response, "ResponseMetadata")
            status = _number(dict.get(meta, "HTTPStatusCode")) if isinstance(meta, dict) else None
        else:
            status = status_of(response)
        if status:
            return status
    return None


def _content(exception: BaseException) -> bytes | None:
    """Return the body of the response, if it was read already.

    httpx and requests keep it in `_content`. Their `content` may read from the network.
    """
    for name in _RESPONSES:
        content = _own(attribute(exception, name)).get("_content")
        if isinstance(content, bytes):
            return content
    return None


def _documents(exception: BaseException) -> Iterator[dict[str, Any]]:
    """Return the JSON objects of an error, from the outside to the inside."""
    for value in (*(attribute(exception, name) for name in _BODIES), _content(exception)):
        document = value
        if type(value) in (str, bytes) and len(value) <= _LONGEST_JSON:
            document = _json(value)
        for _ in range(4):
            if type(document) is list and len(document) == 1:
                document = document[0]
            if not isinstance(document, dict):
                break
            yield document
            inner = (dict.get(document, name) for name in _INSIDE)
            document = next((value for value in inner if isinstance(value, dict)), None)


def _json(value: str | bytes) -> Any:
    import json

    if value[:1] not in ("{", "[", b"{", b"["):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _called(exception: BaseException, name: str) -> str | None:
    """Return what a method of an exception of gRPC says: the name of its code, or its details."""
    if not any(package == "grpc" for package, _ in classes(exception)):
        return None
    try:
        value = getattr(exception, name)()
    except Exception:  # a class that only looks like one of gRPC
        return None
    value = (
        value if isinstance(value, str) else attribute(value, "name") or _own(value).get("_name_")
    )
    return value if isinstance(value, str) else None
