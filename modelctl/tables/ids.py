"""Ids of models as a caller gives them: which can be in a database, and which were not found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.database.sql import LONE_SURROGATE
from modelctl.errors import ModelNotFoundError, UsageError, clean

if TYPE_CHECKING:
    from collections.abc import Container, Sequence


def is_storable(text: str) -> bool:
    """Whether a database can hold *text*: PostgreSQL takes no NUL and no lone surrogate."""
    return "\0" not in text and (text.isascii() or not LONE_SURROGATE.search(text))


def check_storable(ids: Sequence[str]) -> None:
    """Check that each id can be the id of a model.

    Raises:
        UsageError: an id is not text.
        ModelNotFoundError: no database can hold it, so that no model has it.
    """
    for model_id in ids:
        if not isinstance(model_id, str):
            raise UsageError(f"a model id is text, not {type(model_id).__name__}")
    if not all(map(is_storable, ids)):
        check_found(ids, {*filter(is_storable, ids)})


def check_found(wanted: Sequence[str], found: Container[str]) -> None:
    """Raise `ModelNotFoundError` unless every id that is *wanted* is *found*."""
    missing = [model_id for model_id in wanted if model_id not in found]
    if missing:
        raise unknown(missing, "; nothing was changed" if len(wanted) > 1 else "")


def unknown(ids: Sequence[str], remark: str = "") -> ModelNotFoundError:
    """Return the error that no model has one of these ids."""
    error = ModelNotFoundError(f"no model {quoted(ids)}{remark}", hint="see: modelctl list")
    error.missing = tuple(ids)
    return error


def quoted(ids: Sequence[str]) -> str:
    """Write ids for a message: the first three, and how many more there are."""
    shown = ", ".join(f"'{clean(model_id, longest=200)}'" for model_id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"
