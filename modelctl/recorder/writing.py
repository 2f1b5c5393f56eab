"""Writes batches of waiting outcomes: again if the database is away, in parts if it refuses some."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from modelctl.database.database import RETRIED
from modelctl.errors import DatabaseUnavailableError, ModelctlError, RefusedError, UsageError, clean
from modelctl.model import numbered
from modelctl.tables.ids import quoted, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from modelctl.health import Outcome
    from modelctl.models.results import BatchResult
    from modelctl.recorder.waiting import Entry

# Seconds between two tries, at most: the first and the last pause. Random, so that the processes of an
# application do not all come back at the same moment.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
# The recorders of many processes may wait for the same rows. It is worth a warning if that lasts.
_TRIES_IF_BUSY = 5
# How many models are named in warnings, each once.
_MOST_NAMED = 1000


class Target(Protocol):
    """Where batches are written."""

    def record(self, outcomes: Iterable[Outcome]) -> BatchResult:
        """Record outcomes in one transaction, without those of unknown ids."""

    def was_recorded(self, transaction: tuple[str, object]) -> bool | None:
        """Return whether a transaction in doubt was committed; None: that cannot be known any more."""


class BatchWriter:
    """Writes the batches of one recorder; only its thread calls `write`.

    *recorded*, *unknown*, *refused*: how many outcomes were committed, named no model, were refused by
    the database. *retries*: how often a batch was tried again. *trouble*: why the last try failed, None:
    it did not. *give_up_at*: when to stop trying (`time.monotonic`). *hurry*: set it to end a pause.
    """

    def __init__(
        self,
        target: Target,
        lock: threading.RLock,
        warn: Callable[[str], None],
    ) -> None:
        """*lock* protects the counters, which other threads read."""
        self._target = target
        self._lock = lock
        self._warn = warn
        self.recorded = self.unknown = self.refused = self.retries = 0
        self.trouble: str | None = None
        self.give_up_at = float("inf")
        self.hurry = threading.Event()
        self._told = False  # of this outage
        self._in_doubt: tuple[str, object] | None = None
        self._named: set[str] = set()

    def write(self, batch: Sequence[Entry]) -> bool:
        """Write the outcomes of *batch* in their order; return False if that was given up.

        What is done is taken out of the entries. If an entry was not recorded, it has the error.
        """
        try:
            result = self._until_it_answers(batch)
        except (UsageError, RefusedError) as exc:
            return self._write_in_parts(batch, exc)
        except Exception as exc:
            self.trouble = _words(exc)
            return False
        missing = {*result.unknown} if result else set()
        with self._lock:
            self.trouble, self._told = None, False
            self.recorded += result.recorded if result else sum(entry.size for entry in batch)
            self.unknown += result.skipped if result else 0
            for entry in batch:
                if entry.id in missing:
                    entry.error = unknown([entry.id])
                entry.empty()
        if new := self._not_yet_named(missing):
            self._warn(f"no model {quoted(new)}: such outcomes are not recorded")
        return True

    def _write_in_parts(self, batch: Sequence[Entry], exc: ModelctlError) -> bool:
        """Write what the database does not refuse: one outcome must not stop the others."""
        first = batch[0]
        if len(batch) > 1:
            half = len(batch) // 2
            parts = batch[:half], batch[half:]
        elif first.failures and first.successes:
            parts = [first], [first.keep_first(first.failures)]
        else:
            with self._lock:
                self.refused += first.size
                first.error = exc
                first.empty()
            if self._not_yet_named([first.id]):
                self._warn(f"outcomes of {quoted([first.id])} are dropped: {exc.message}")
            return True
        return all(self.write(part) for part in parts)

    def _until_it_answers(self, batch: Sequence[Entry]) -> BatchResult | None:
        """Record a batch; try again as long as the database is away.

        None: it was recorded by a try whose COMMIT got no answer.
        """
        import tenacity

        size = sum(entry.size for entry in batch)

        def record() -> BatchResult | None:
            if self._given_up():  # during the pause before this try
                raise DatabaseUnavailableError(self.trouble)
            if self._in_doubt and self._was_recorded(self._in_doubt, size):
                return None
            return self._target.record(o for entry in batch for o in entry.outcomes())

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_help),
            wait=tenacity.wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
            stop=lambda _: self._given_up(),
            sleep=self._pause,
            before_sleep=self._failed,
            reraise=True,
        )
        return retrying(record)

    def _given_up(self) -> bool:
        return time.monotonic() >= self.give_up_at

    def _pause(self, seconds: float) -> None:
        self.hurry.wait(seconds)
        self.hurry.clear()

    def _was_recorded(self, transaction: tuple[str, object], size: int) -> bool:
        """Whether the try in doubt recorded the batch. If nobody knows, it may be recorded twice."""
        recorded = self._target.was_recorded(transaction)
        self._in_doubt = None
        if recorded is None:
            self._warn(
                f"{numbered(size, 'outcome')} may be recorded twice: the connection was lost during"
                " COMMIT, and the server has been restarted or replaced"
            )
        return bool(recorded)

    def _failed(self, state: Any) -> None:
        """Note that a try failed; warn once for each outage."""
        exc = state.outcome.exception()
        self.trouble = _words(exc)
        with self._lock:
            self.retries += 1
        self._in_doubt = getattr(exc, "in_doubt", None) or self._in_doubt
        busy = getattr(exc, "sqlstate", None) in RETRIED
        if not self._told and (not busy or state.attempt_number >= _TRIES_IF_BUSY):
            self._told = True
            self._warn(f"outcomes wait in memory, and will be tried again: {self.trouble}")

    def _not_yet_named(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that no warning has named yet, as long as they are not too many."""
        new = [model_id for model_id in ids if model_id not in self._named]
        new = sorted(new)[: _MOST_NAMED - len(self._named)]
        self._named.update(new)
        return new


def _may_help(exc: BaseException) -> bool:
    """Whether the same batch may be recorded at another time."""
    return isinstance(exc, Exception) and not isinstance(exc, UsageError | RefusedError)


def _words(exc: BaseException) -> str:
    if isinstance(exc, ModelctlError):
        return exc.message
    return clean(f"{type(exc).__name__}: {exc}", longest=300)
