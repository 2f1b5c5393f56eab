"""What every command speaks about: statuses, failures, ids, the count. Frozen data, no I/O.

The other results are in `results` and `reports`, which a cached count does not need to load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from modelctl.errors import CONTROLS, UsageError

ID_LENGTH = 200


class ModelStatus(StrEnum):
    """Derived from two columns: ``active`` wins, then ``auto_disabled``."""

    ACTIVE = "active"
    DISABLED = "disabled"
    AUTO_DISABLED = "auto-disabled"


class FailureType(StrEnum):
    """How a call of a model failed."""

    RATE_LIMIT = "rate-limit"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server-error"
    NETWORK_ERROR = "network-error"
    PARSE_ERROR = "parse-error"
    CLIENT_ERROR = "client-error"
    UNKNOWN = "unknown"


class CacheState(StrEnum):
    """What became of the invalidation that a change owed."""

    INVALIDATED = "invalidated"
    QUEUED = "queued"
    UNCHANGED = "unchanged"
    OFF = "off"


def check_id(model_id: object) -> str:
    """Return *model_id* if a new model may carry it.

    Raises:
        UsageError: not a string of 1-200 characters without control characters
            or blanks at its ends.
    """
    if not isinstance(model_id, str):
        raise UsageError(f"a model id is text, not {type(model_id).__name__}")
    if not model_id:
        raise UsageError("a model id has at least one character")
    if len(model_id) > ID_LENGTH:
        raise UsageError(
            f"a model id has at most {ID_LENGTH} characters, this one has {len(model_id)}"
        )
    if CONTROLS.search(model_id):
        raise UsageError(f"a model id has no control characters: {model_id}")
    if model_id != model_id.strip():
        raise UsageError(f"a model id has no blanks at its ends: '{model_id}'")
    return model_id


def storable(text: str, length: int | None = None) -> str:
    """Cut *text* to *length* characters, with U+FFFD for what PostgreSQL cannot hold.

    That is NUL and lone surrogates.

    Raises:
        UsageError: it is not text.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is not text")
    kept = text[:length].replace("\0", "\ufffd")
    return kept if kept.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", kept)


def numbered(number: int, what: str = "model") -> str:
    """Say how many: ``1 model``, ``2 models``."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True, slots=True)
class Count:
    """How many models are active, where the number came from and how old it is (seconds)."""

    active: int
    source: str
    age_seconds: float
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class VerifiedCount(Count):
    """A fresh count beside the cached one (None: nothing believable is cached)."""

    cached: int | None
    database: int
    match: bool
