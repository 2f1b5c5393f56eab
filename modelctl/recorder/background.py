"""The thread of a recorder, and what the callers and the thread have in common: the waiting outcomes."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from modelctl.errors import DatabaseUnavailableError, UsageError
from modelctl.model import numbered
from modelctl.recorder import ending
from modelctl.recorder.results import RecorderStats
from modelctl.recorder.waiting import WaitingOutcomes
from modelctl.recorder.writing import BatchWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.config import Config
    from modelctl.health import Outcome
    from modelctl.recorder.waiting import Entry
    from modelctl.recorder.writing import Target

# Outcomes are written when the oldest has waited for so long, or when there are so many.
SECONDS = 1.0
BATCH = 5000


class Background:
    """Takes outcomes from callers and lets a thread write them, one batch after the other."""

    def __init__(
        self,
        target: Target,
        config: Config,
        warn: Callable[[str], None],
        *,
        capacity: int,
        block: bool,
    ) -> None:
        """*block*: wait for room if it is full."""
        self._timeout = config.database.timeout
        self._warn = warn
        self._blocks = block
        # A finalizer or a signal handler may record, in a thread that holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # the thread waits for outcomes
        self._written = threading.Condition(self._lock)  # callers wait for the thread
        self._waiting = WaitingOutcomes(capacity, config.health.counted)
        self._writer = BatchWriter(target, self._lock, warn)
        self._thread: threading.Thread | None = None
        self._batch: list[Entry] = []  # what the thread is writing
        self._oldest = 0.0  # when the oldest outcome came
        self._at_once = False  # do not wait for more outcomes
        self._dropped = 0
        self._was_full = False
        self.closed = False
        self._over = False  # closed, and nothing will be written any more

    def stats(self) -> RecorderStats:
        """Return what became of the outcomes."""
        with self._lock:
            writer = self._writer
            return RecorderStats(
                writer.recorded,
                0 if self._over else self._left,
                self._dropped + writer.refused,
                writer.unknown,
                writer.retries,
            )

    # ── Adding ──

    def add(self, outcome: Outcome, *, wait: bool = False) -> None:
        """Put an outcome in memory; *wait* until it is committed."""
        full = False
        with self._lock:
            self._check_open(wait)
            entry = None if self.closed else self._waiting.add(outcome, alone=wait)
            if entry is None and not self.closed and (wait or self._blocks):
                entry = self._add_when_there_is_room(outcome, wait)
            if entry is None:
                self._dropped += 1
                full, self._was_full = not self._was_full, True
            else:
                self._wake(outcome, wait)
        if full:
            why = "the process is ending" if self.closed else "the recorder is full"
            self._warn(f"{why}: outcomes are dropped, first one of '{outcome.id}'; see its stats")
        if wait and entry:
            self._wait_for(entry)

    def _check_open(self, wait: bool) -> None:
        """Raise an error if the recorder is closed.

        After the interpreter has closed it, an outcome is only dropped: a finalizer that records cannot
        handle an error.
        """
        if self.closed and (wait or not ending.has_begun()):
            raise UsageError("the recorder is closed", hint="open another: fleet.recorder()")

    def _add_when_there_is_room(self, outcome: Outcome, wait: bool) -> Entry:
        end = time.monotonic() + self._timeout if wait else float("inf")
        while True:
            left = end - time.monotonic()
            if left <= 0:
                self._dropped += 1
                raise self._not_yet(f"the failure of '{outcome.id}' found no room and is dropped")
            self._written.wait(min(left, threading.TIMEOUT_MAX))
            self._check_open(True)
            if entry := self._waiting.add(outcome, alone=wait):
                return entry

    def _wake(self, outcome: Outcome, wait: bool) -> None:
        """Start the thread, or tell it what it has to know."""
        size = self._waiting.size
        if size == 1:
            self._oldest = time.monotonic()
        if wait or self._waiting.is_counted(outcome):
            self._at_once = True
        if self._at_once or size == 1 or size == BATCH:
            self._work.notify()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        ending.prepare()  # in the child of a fork
        thread = threading.Thread(target=self._run, name="modelctl-recorder", daemon=True)
        # At the end of the interpreter no thread can start: then `close` writes.
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    # ── Waiting for the thread ──

    @property
    def _left(self) -> int:
        """How many outcomes are in memory."""
        return self._waiting.size + sum(entry.size for entry in self._batch)

    @property
    def _finished(self) -> int:
        """The number up to which the thread is done with all entries."""
        return self._batch[0].number - 1 if self._batch else self._waiting.finished

    def flush(self, seconds: float) -> None:
        """Wait until what has been added is committed."""
        with self._lock:
            self._at_once = bool(self._waiting.size)
            self._work.notify()
            self._writer.hurry.set()
            if not self._wait_until(self._waiting.last_number, seconds):
                raise self._not_yet(f"{numbered(self._left, 'outcome')} could not be recorded yet")

    def _wait_until(self, number: int, seconds: float) -> bool:
        """Wait until the entries up to *number* are finished; return whether they are."""
        if threading.current_thread() is self._thread:
            raise UsageError("on_warning cannot wait for the recorder that calls it")
        return self._written.wait_for(lambda: self._finished >= number, seconds)

    def _wait_for(self, entry: Entry) -> None:
        with self._lock:
            done = self._wait_until(entry.number, self._timeout)
        if entry.error:
            raise entry.error
        if not done:
            raise self._not_yet(f"the failure of '{entry.id}' is not recorded yet")

    def _not_yet(self, what: str) -> DatabaseUnavailableError:
        why = self._writer.trouble
        return DatabaseUnavailableError(
            f"{what}: {why}" if why else what, hint="the recorder keeps what waits, and tries again"
        )

    # ── The thread ──

    def _run(self) -> None:
        while self._take_batch():
            if not self._writer.write(self._batch):
                return
            with self._lock:
                self._batch = []
                if self._waiting.has_much_room:
                    self._was_full = False
                self._written.notify_all()

    def _take_batch(self) -> bool:
        """Wait until a batch is to be written, and take it; False: the recorder is closed."""
        with self._lock:
            while not self._is_due():
                if self.closed:
                    return False
                waiting = self._waiting.size
                self._work.wait(self._oldest + SECONDS - time.monotonic() if waiting else None)
            self._batch = self._waiting.take(BATCH)
            # What comes while this batch is written waits for its second again.
            self._at_once = self._at_once and bool(self._waiting.size)
            return True

    def _is_due(self) -> bool:
        size = self._waiting.size
        if not size:
            return False
        late = time.monotonic() >= self._oldest + SECONDS
        return self._at_once or self.closed or late or size >= BATCH

    def close(self, seconds: float) -> None:
        """Write what waits, and end the thread; give up after so many seconds, and say what is lost."""
        with self._lock:
            if self._over:
                return
            self.closed = True
            self._writer.give_up_at = time.monotonic() + seconds
            self._writer.hurry.set()
            self._work.notify()
            self._written.notify_all()
            thread = self._thread
        if thread is None:
            self._run()
        elif thread is not threading.current_thread():
            thread.join(seconds)
        with self._lock:
            lost = 0 if self._over else self._left
            self._dropped += lost
            self._over = True
        if lost:
            why = self._writer.trouble or "the database is too slow"
            self._warn(
                f"the recorder ended before {numbered(lost, 'outcome')} could be recorded; lost, unless"
                f" the try that is running succeeds: {why}"
            )
