"""Outcomes that could not be recorded: they are counted, and a warning says why."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from modelctl import forks
from modelctl.errors import ModelctlError, ModelNotFoundError, clean
from modelctl.model import ID_LENGTH
from modelctl.redact import storable_reason

if TYPE_CHECKING:
    from collections.abc import Callable

# A cause is told again after so many seconds; of so many unknown ids each is a cause of its own.
WARN_SECONDS = 60.0
_MOST_CAUSES = 1000


class Unrecorded:
    """Counts the outcomes of calls that could not be recorded in this process, and warns.

    Each cause is told at once, then at most once a minute: while the database is away, thousands of
    calls fail to be recorded in a second.
    """

    def __init__(self, warn: Callable[..., object]) -> None:
        """*warn* is called with a text, and with ``model_id=``."""
        self._warn = warn
        self._begin()
        forks.watch(self, Unrecorded._begin)

    def _begin(self) -> None:
        self.number = 0
        self._lock = threading.Lock()
        # Of each cause: when it was told, and how many outcomes it has cost since then.
        self._told: dict[str, tuple[float, int]] = {}

    def tell(self, model_id: str | None, why: Exception) -> None:
        """Count an outcome that is not recorded. Never raises."""
        model_id = None if model_id is None else clean(model_id, longest=ID_LENGTH)
        cause = f"{type(why).__name__} {model_id if isinstance(why, ModelNotFoundError) else ''}"
        now = time.monotonic()
        with self._lock:
            self.number += 1
            if cause not in self._told and len(self._told) >= _MOST_CAUSES:
                cause = ""
            at, since = self._told.get(cause, (0.0, 0))
            due = not at or now >= at + WARN_SECONDS
            self._told[cause] = (now, 0) if due else (at, since + 1)
        if due:
            # The function of an application may raise. Its call must not fail for that.
            with suppress(Exception):
                self._warn(_words(model_id, why, since), model_id=model_id)


def _words(model_id: str | None, why: Exception, since: int) -> str:
    which = "a call" if model_id is None else f"a call of '{model_id}'"
    more = f" (nor {since} others since the last warning)" if since else ""
    if isinstance(why, ModelctlError):
        reason = f"{why.message}; {why.hint}" if why.hint else why.message
    else:
        reason = f"{type(why).__name__}: {storable_reason(str(why), 300)}"
    return f"the outcome of {which} is not recorded{more}: {reason}"
