"""The exit codes, their errors, and `clean`, which makes foreign text safe to print."""

from __future__ import annotations

import re
from enum import IntEnum, unique
from typing import ClassVar

# Characters that can move the cursor, or colour, reorder or end a line: C0, DEL, C1, bidi controls,
# line and paragraph separators, lone surrogates. A new id must not contain any of them.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# Characters that show nothing or only a blank, so that two different ids look the same: Unicode's
# Default_Ignorable_Code_Point, the format characters (Cf), blanks other than the space, the empty
# Braille pattern, the musical null notehead, and the code points that will never be characters. A
# test compares the list with Python's Unicode data.
_HIDDEN = (
    "\xa0\xad\u034f\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u1680\u17b4\u17b5"
    "\u180b-\u180f\u2000-\u200f\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ufdd0-\ufdef\ufffe\uffff"
) + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(1 << 16, 17 << 16, 1 << 16)
)
CONTROLS = re.compile(f"[{_CONTROLS}]")
UNSAFE = re.compile(f"[{_CONTROLS}{_HIDDEN}]")
_MAX_MESSAGE_LENGTH = 2000


def _escape(match: re.Match[str]) -> str:
    point = ord(match[0])
    if point in (9, 10, 13):
        return {9: r"\t", 10: r"\n", 13: r"\r"}[point]
    if point < 256:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def clean(text: str, *, longest: int | None = None) -> str:
    """Return text that is safe to print: control and invisible characters become escapes.

    *longest*: longer text is cut to this many characters and ends with an ellipsis.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable():  # the usual case, and fast
        return text
    return UNSAFE.sub(_escape, text)


@unique
class ExitCode(IntEnum):
    """The exit codes of the program; a table in docs/commands.md explains each."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    INVALID_CONFIG = 3
    MODEL_NOT_FOUND = 4
    DATABASE_UNAVAILABLE = 5
    STALE_CACHE = 6
    MISSING_SCHEMA = 7
    REFUSED = 8
    INTERRUPTED = 130


class ModelctlError(Exception):
    """Something unexpected went wrong."""

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED
    # The error code of PostgreSQL, if the error came from there.
    sqlstate: str | None = None
    # The character that the encoding of the database cannot store, if that was the error.
    character: str | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """*message*: what is wrong and where (default: the docstring); *hint*: what to do."""
        self.message = clean(message or (self.__doc__ or "").strip(), longest=_MAX_MESSAGE_LENGTH)
        self.hint = None if hint is None else clean(hint, longest=_MAX_MESSAGE_LENGTH)
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The name of the error for scripts, such as ``model_not_found``; it never changes."""
        return self.exit_code.name.lower()


class UsageError(ModelctlError):
    """Wrong arguments or input data."""

    exit_code = ExitCode.USAGE


class InvalidConfigError(ModelctlError):
    """The configuration is wrong; trying again does not help."""

    exit_code = ExitCode.INVALID_CONFIG


class ModelNotFoundError(ModelctlError):
    """No such model."""

    exit_code = ExitCode.MODEL_NOT_FOUND
    # The ids that name no model.
    missing: tuple[str, ...] = ()


class DatabaseUnavailableError(ModelctlError):
    """The database cannot be reached or is too busy; try again later."""

    exit_code = ExitCode.DATABASE_UNAVAILABLE
    # The transaction that may have been committed: the answer to its COMMIT was lost. Its id, and when
    # its server started.
    in_doubt: tuple[str, object] | None = None


class StaleCacheError(ModelctlError):
    """The cache cannot be reached, so an invalidation was not delivered."""

    exit_code = ExitCode.STALE_CACHE


class MissingSchemaError(ModelctlError):
    """The database lacks modelctl's tables or columns."""

    exit_code = ExitCode.MISSING_SCHEMA


class RefusedError(ModelctlError):
    """A guard refused the change; nothing was changed."""

    exit_code = ExitCode.REFUSED


class InterruptedError(ModelctlError):  # noqa: A001 - as its exit code and its error code, which a test compares
    """Interrupted; what was not committed is not done."""

    exit_code = ExitCode.INTERRUPTED
