"""Loggers of the library, all under ``modelctl.``, with the same extra fields on every record."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from modelctl.errors import clean

if TYPE_CHECKING:
    import logging


@functools.cache
def logger(name: str) -> logging.Logger:
    """Return the logger ``modelctl.NAME``. Where the application set no handler, nothing is printed."""
    import logging

    top = logging.getLogger("modelctl")
    if not any(isinstance(handler, logging.NullHandler) for handler in top.handlers):
        top.addHandler(logging.NullHandler())
    return logging.getLogger(f"modelctl.{name}")


def fields(
    *, model_id: str | None = None, operation: str | None = None, cache: str | None = None
) -> dict[str, str | None]:
    """Return the ``extra`` of a record; each record has all of these fields.

    *model_id*: if it is about one model. *operation*: that of the events. *cache*: what became of the
    invalidation.
    """
    model_id = None if model_id is None else clean(model_id)
    return {"model_id": model_id, "operation": operation, "cache": cache and str(cache)}
