"""Words that all wings share: statuses, types of failures, states of the cache, ids, tags, texts. No I/O."""

from __future__ import annotations

import re
from enum import StrEnum

from modelctl.errors import CONTROLS, UsageError

TYPE_CHECKING = False  # as type checkers know it; loading typing takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Iterable

# Who holds a model off that `sync` has switched off; the actor of the event is who ran it.
SYNC = "sync"
ID_LENGTH = 200
TAG_LENGTH = 100
MOST_TAGS = 50  # of one model
# The names of the events in the history.
EVENTS = (
    *("added", "updated", "removed", "disabled", "enabled", "recovered", "auto-disabled"),
    *("would-disable", "probe-failed", "incident", "paused", "resumed", "undone"),
    *("edited", "renamed", "restored", "found"),
)


class ModelStatus(StrEnum):
    """The status of a model. It follows from two columns: ``active`` wins, then ``auto_disabled``."""

    ACTIVE = "active"
    DISABLED = "disabled"
    AUTO_DISABLED = "auto-disabled"


class FailureType(StrEnum):
    """The type of a failed call."""

    RATE_LIMIT = "rate-limit"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server-error"
    NETWORK_ERROR = "network-error"
    PARSE_ERROR = "parse-error"
    CLIENT_ERROR = "client-error"
    UNKNOWN = "unknown"


class CacheState(StrEnum):
    """What became of the invalidation that a change needs; ``unchanged``: nothing needed one."""

    INVALIDATED = "invalidated"
    QUEUED = "queued"
    UNCHANGED = "unchanged"
    OFF = "off"


def check_id(model_id: object) -> str:
    """Return *model_id* if it is valid as the id of a new model.

    Raises:
        UsageError: it is not a string of 1-200 characters, or it has control characters, or blanks
            at its ends.
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


def check_tag(tag: object) -> str:
    """Return *tag* as it is stored, in Unicode's normal form C.

    Raises:
        UsageError: it is not a string of 1-100 characters, or it has control characters, commas, or
            blanks at its ends.
    """
    if not isinstance(tag, str):
        raise UsageError(f"a tag is text, not {type(tag).__name__}")
    import unicodedata

    tag = unicodedata.normalize("NFC", tag)
    if not tag:
        raise UsageError("a tag has at least one character")
    if len(tag) > TAG_LENGTH:
        raise UsageError(f"a tag has at most {TAG_LENGTH} characters, this one has {len(tag)}")
    if CONTROLS.search(tag):
        raise UsageError(f"a tag has no control characters: {tag}")
    if "," in tag:
        raise UsageError(f"a tag has no commas: {tag}", hint="give --tag several times")
    if tag != tag.strip():
        raise UsageError(f"a tag has no blanks at its ends: '{tag}'")
    return tag


def check_tags(tags: Iterable[object]) -> tuple[str, ...]:
    """Return tags as they are stored: each once, sorted by code points.

    Raises:
        UsageError: one of them is not a tag, or there are more than 50.
    """
    if isinstance(tags, str) or not hasattr(tags, "__iter__"):
        raise UsageError(f"tags are a list of texts, not {tags!r}")
    checked = tuple(sorted({check_tag(tag) for tag in tags}))
    if len(checked) > MOST_TAGS:
        raise UsageError(f"a model has at most {MOST_TAGS} tags, not {len(checked)}")
    return checked


def storable(text: str, length: int | None = None) -> str:
    """Return *text*, cut to *length* characters, as PostgreSQL can store it.

    NUL and lone surrogates become U+FFFD.

    Raises:
        UsageError: it is not text.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is not text")
    kept = text[:length].replace("\0", "\ufffd")
    return kept if kept.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", kept)


def name_the_text(exc: UsageError, texts: Iterable[tuple[str, object]]) -> UsageError:
    """Say which text has the character that the database cannot store.

    *texts*: each with a description of it. Other errors stay as they are.
    """
    for what, text in texts:
        if isinstance(text, str) and exc.character and exc.character in text:
            return UsageError(f"{what}: {exc.message}", hint=exc.hint)
    return exc


def numbered(number: int, what: str = "model") -> str:
    """Write a number with its noun: ``1 model``, ``2 models``."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"
