"""Tell a recorder how calls went, without ever failing the call that is told about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelctl.model import FailureType

_logger = logging.getLogger("modelctl.integrations")
# How many different warnings are given; each is given once.
_MOST_WARNINGS = 100


class RecordsOutcomes(Protocol):
    """What an integration needs of a recorder (`Fleet.recorder`)."""

    def success(self, id: str) -> None:  # noqa: A002 - its usual name
        """Record a successful call."""

    def failure(
        self,
        id: str,  # noqa: A002 - its usual name
        type: FailureType | str | BaseException | None = ...,  # noqa: A002 - its usual name
        *,
        reason: str | None = ...,
    ) -> None:
        """Record a failed call."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What an integration has told its recorder.

    *ignored*: calls that say nothing about a model of the fleet. *errors*: calls whose outcome could not
    be told; a warning says why.
    """

    successes: int = 0
    failures: int = 0
    ignored: int = 0
    errors: int = 0


class Reporter:
    """Hands outcomes to a recorder, and counts them. Its methods never raise."""

    def __init__(
        self, recorder: RecordsOutcomes, on_warning: Callable[[str], None] | None = None
    ) -> None:
        """*on_warning* receives the text of a warning; None: the log ``modelctl.integrations``."""
        self._recorder = recorder
        self._on_warning = on_warning
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Reported.__slots__, 0)
        self._warned: set[str] = set()

    @property
    def stats(self) -> Reported:
        """What was told so far."""
        with self._lock:
            return Reported(**self._counts)

    def success(self, model_id: str) -> None:
        """Record a successful call."""
        with self.guarded():
            self._recorder.success(model_id)
            self._count("successes")

    def raised(self, model_id: str, exception: BaseException) -> None:
        """Record what the exception of a call says."""
        with self.guarded():
            from modelctl.failures.classification import classify

            if classify(exception) is None:
                self._count("ignored")
                return
            self._recorder.failure(model_id, exception)
            self._count("failures")

    def failure(self, model_id: str, kind: FailureType, reason: str) -> None:
        """Record a failed call."""
        with self.guarded():
            self._recorder.failure(model_id, kind, reason=reason)
            self._count("failures")

    def ignored(self) -> None:
        """Count a call that says nothing about a model of the fleet."""
        self._count("ignored")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around code that must not fail the call of the application: count its errors, and warn."""
        try:
            yield
        except Exception as exc:
            self._count("errors")
            self._warn(f"the outcome of a call is not recorded: {type(exc).__name__}: {exc}")

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _warn(self, message: str) -> None:
        message = message[:1000]
        with self._lock:
            if message in self._warned or len(self._warned) >= _MOST_WARNINGS:
                return
            self._warned.add(message)
        try:
            (self._on_warning or _log)(message)
        except Exception:
            _logger.exception("on_warning has raised")


def _log(message: str) -> None:
    _logger.warning("%s", message)


def named(ids: Mapping[str, str] | None, *names: str) -> str | None:
    """Return the id of the first of these names that a mapping has; None: it has none of them."""
    return next((ids[name] for name in names if ids and name in ids), None)
