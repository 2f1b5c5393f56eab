"""Recorder: gathers outcomes in memory; a thread of its own writes them to the database."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from modelctl import forks
from modelctl.errors import DatabaseUnavailableError, UsageError
from modelctl.health import Outcome
from modelctl.model import ID_LENGTH, numbered
from modelctl.opened import arguments
from modelctl.recorder import ending
from modelctl.recorder.results import RecorderStats
from modelctl.recorder.waiting import WaitingOutcomes
from modelctl.recorder.writing import BatchWriter
from modelctl.redact import storable_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from modelctl.config.config import Config
    from modelctl.model import FailureType
    from modelctl.models.results import BatchResult
    from modelctl.recorder.waiting import Entry

CAPACITY = 100_000
# Outcomes are written when the oldest has waited for so long, or when there are so many.
SECONDS = 1.0
BATCH = 5000
# An application's own table may have longer ids than ours, but no index of PostgreSQL has such a key.
_LONGEST_ID = 10 * ID_LENGTH


class Recorder:
    """Records the outcomes of calls without making the caller wait for the database.

    `success` and `failure` only put the outcome in memory. A thread writes what waits with
    `Fleet.record_batch`: every second, as soon as 5,000 outcomes wait, and at once for a failure that
    counts. Outcomes of one model are recorded in the order in which they came. Threads may share a
    recorder; coroutines may call it in the event loop.

    **The database is away**: outcomes are kept, and tried again with growing pauses of at most 5 s.
    `Fleet.on_warning` is told once for each outage. If the connection was lost during a COMMIT, and it
    cannot be found out whether the batch was written, the batch is written again: up to 5,000 outcomes
    may then be recorded twice, and the warning says so. The recorder never leaves them out instead,
    because a failure that counts could be among them.

    **It is full**: *capacity* is the number of entries that may wait. All successes of a model that come
    after each other are one entry, together with the failure before them; and so are equal failures.
    What finds no room is dropped, with a warning and counted in `stats`; the last tenth is kept for
    failures that count. With ``when_full="block"`` the caller waits for room instead. An entry has some
    300 bytes, and the reason of its failure.

    **What may be lost**: what waits if the process is killed with SIGKILL, crashes, or ends by `os._exit`.
    `close`, the end of the interpreter and SIGTERM write it first. A failure with ``wait=True`` is
    committed when `failure` returns.

    **After a fork** the child begins without outcomes, and with a thread of its own. What waited is
    written by the parent.
    """

    def __init__(
        self,
        record_batch: Callable[[Iterable[Outcome]], BatchResult],
        config: Config,
        warn: Callable[[str], None],
        *,
        capacity: int = CAPACITY,
        block: bool = False,
    ) -> None:
        """*record_batch* writes outcomes and skips unknown ids. *block*: wait for room if it is full."""
        self._record_batch = record_batch
        self._config = config
        self._tell = warn
        self._capacity = capacity
        self._blocks = block
        self._closed = False
        self._over = False  # closed, and nothing will be written any more
        self._begin()
        forks.watch(self, Recorder._begin)
        ending.watch(self)

    def _begin(self) -> None:
        """Start without outcomes and without a thread; the child of a fork starts again."""
        # A signal handler may interrupt a thread that holds the lock: hence it is an RLock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # the thread waits for outcomes
        self._written = threading.Condition(self._lock)  # callers wait for the thread
        self._waiting = WaitingOutcomes(self._capacity, self._config.health.counted)
        self._writer = BatchWriter(self._record_batch, self._lock, self._warn)
        self._thread: threading.Thread | None = None
        self._batch: list[Entry] = []  # what the thread is writing
        self._oldest = 0.0  # when the oldest outcome came
        self._at_once = False  # do not wait for more outcomes
        self._dropped = 0
        self._was_full = False

    # ── What an application calls ──

    def success(self, id: str) -> None:  # noqa: A002 - its usual name
        """Record a successful call.

        Raises:
            UsageError: the id is not text, or it cannot be the id of a model; the recorder is closed.
        """
        self._add(Outcome(_checked(id), None))

    def failure(
        self,
        id: str,  # noqa: A002 - its usual name
        type: FailureType | str | BaseException | None = "unknown",  # noqa: A002 - its usual name
        *,
        http_status: int | None = None,
        reason: str | None = None,
        wait: bool = False,
    ) -> None:
        """Record a failed call; the arguments are those of `Fleet.record_failure`.

        *wait*: return when the failure is committed. Waits at most ``database.timeout``; if that was too
        short, the failure stays in memory and will be tried again.

        Raises:
            UsageError: an argument is wrong, or the recorder is closed.
            DatabaseUnavailableError: *wait*, and the failure is not committed yet.
            ModelNotFoundError: *wait*, and the id is unknown.
            RefusedError: *wait*, and the database refused the change.
        """
        model_id = _checked(id)
        if self._closed:  # before anything is imported: the interpreter may be ending
            self._add(Outcome(model_id, None), wait=wait)
            return
        kind = arguments.failure(type, http_status)
        if kind is None:  # it says nothing about the model
            return
        if reason is None and isinstance(type, BaseException):
            from modelctl.failures.facts import reason as reason_of

            reason = reason_of(type)
        reason = storable_reason(reason, self._config.health.reason_length)
        self._add(Outcome(model_id, kind, reason), wait=wait)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was recorded before is committed.

        *timeout*: in seconds; None: ``database.timeout``.

        Raises:
            DatabaseUnavailableError: it took longer; what is not committed stays in memory.
        """
        seconds = self._patience(timeout)
        with self._lock:
            self._at_once = True
            self._work.notify()
            self._writer.hurry.set()
            if not self._wait_until(self._waiting.last_number, seconds):
                left = self._left
                raise self._not_yet(f"{numbered(left, 'outcome')} could not be recorded yet")

    def close(self, timeout: float | None = None) -> None:
        """Write what waits, and end. What cannot be written is lost: a warning says so.

        *timeout*: in seconds, None: ``database.timeout``.
        """
        self._close(self._patience(timeout))

    @property
    def stats(self) -> RecorderStats:
        """What became of the outcomes of this process."""
        with self._lock:
            writer = self._writer
            return RecorderStats(
                writer.recorded,
                0 if self._over else self._left,
                self._dropped + writer.refused,
                writer.unknown,
                writer.retries,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush_before_end(self, seconds: float) -> None:
        """Write what waits before the process is ended by a signal; warn about what is lost."""
        try:
            self.flush(seconds)
        except DatabaseUnavailableError as exc:
            self._warn(f"the process is ending: {exc.message}")

    # ── Adding ──

    def _add(self, outcome: Outcome, *, wait: bool = False) -> None:
        full = False
        with self._lock:
            self._check_open(wait)
            entry = None if self._closed else self._waiting.add(outcome, alone=wait)
            if entry is None and not self._closed and (wait or self._blocks):
                entry = self._add_when_there_is_room(outcome, wait)
            if entry is None:
                self._dropped += 1
                full, self._was_full = not self._was_full, True
            else:
                self._wake(outcome, wait)
        if full:
            why = "the process is ending" if self._closed else "the recorder is full"
            self._warn(f"{why}: outcomes are dropped, first one of '{outcome.id}'; see its stats")
        if wait and entry:
            self._wait_for(entry)

    def _check_open(self, wait: bool) -> None:
        """Raise an error if the recorder is closed.

        After the interpreter has closed it, an outcome is only dropped: who records in a finalizer
        cannot handle an error.
        """
        if self._closed and (wait or not ending.has_begun()):
            raise UsageError("the recorder is closed", hint="open another: fleet.recorder()")

    def _add_when_there_is_room(self, outcome: Outcome, wait: bool) -> Entry | None:
        end = time.monotonic() + self._config.database.timeout if wait else float("inf")
        while True:
            left = end - time.monotonic()
            if left <= 0:
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
        # At the end of the interpreter no thread can start: then `_close` writes.
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

    def _patience(self, timeout: float | None) -> float:
        if timeout is None:
            return self._config.database.timeout
        arguments.seconds(timeout, "a timeout")
        return timeout

    def _wait_until(self, number: int, seconds: float) -> bool:
        """Wait until the entries up to *number* are finished; return whether they are."""
        if threading.current_thread() is self._thread:
            raise UsageError("on_warning cannot wait for the recorder that calls it")
        return self._written.wait_for(lambda: self._finished >= number, seconds)

    def _wait_for(self, entry: Entry) -> None:
        with self._lock:
            done = self._wait_until(entry.number, self._config.database.timeout)
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
                if self._writer.trouble is None:
                    self._was_full = False
                self._written.notify_all()

    def _take_batch(self) -> bool:
        """Wait until a batch is to be written, and take it; False: the recorder is closed."""
        with self._lock:
            while not self._is_due():
                if self._closed:
                    return False
                waiting = self._waiting.size
                seconds = self._oldest + SECONDS - time.monotonic() if waiting else None
                self._work.wait(seconds)
            self._batch = self._waiting.take(BATCH)
            if not self._waiting.size:
                self._at_once = False
            return True

    def _is_due(self) -> bool:
        size = self._waiting.size
        if not size:
            self._at_once = False
            return False
        late = time.monotonic() >= self._oldest + SECONDS
        return self._at_once or self._closed or late or size >= BATCH

    def _close(self, seconds: float) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._writer.give_up_at = time.monotonic() + seconds
            self._writer.hurry.set()
            self._work.notify()
            self._written.notify_all()
            thread = self._thread
        ending.forget(self)
        if thread is None:
            self._run()
        elif thread is not threading.current_thread():
            thread.join(seconds)
        with self._lock:
            lost = self._left
            self._dropped += lost
            self._over = True
        if lost:
            why = self._writer.trouble or "the database is too slow"
            self._warn(
                f"the recorder ended before {numbered(lost, 'outcome')} could be recorded; lost, unless"
                f" the try that is running succeeds: {why}"
            )

    def _warn(self, message: str) -> None:
        # An error of the application's own function must not end the thread or fail its call.
        with suppress(Exception):
            self._tell(message)


def _checked(model_id: str) -> str:
    """Return the id as a string of Python's own class.

    Raises:
        UsageError: it is not text, or no model can have it.
    """
    arguments.distinct([model_id])
    if not model_id:
        raise UsageError("a model id has at least one character")
    if len(model_id) > _LONGEST_ID:
        raise UsageError(f"no model has an id of {len(model_id)} characters")
    return model_id if type(model_id) is str else str.__str__(model_id)
