"""Recorder: what an application calls to record outcomes without waiting for the database."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from modelctl import forks
from modelctl.calls.unrecorded import Unrecorded
from modelctl.errors import DatabaseUnavailableError, UsageError
from modelctl.health import Outcome
from modelctl.model import ID_LENGTH
from modelctl.opened import arguments
from modelctl.recorder import ending
from modelctl.recorder.background import Background
from modelctl.redact import storable_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.calls.call import Call
    from modelctl.config.config import Config
    from modelctl.model import FailureType
    from modelctl.recorder.results import RecorderStats
    from modelctl.recorder.writing import Target

# An application's own table may have longer ids than ours, but no index of PostgreSQL has such a key.
_LONGEST_ID = 10 * ID_LENGTH
# Characters of a reason in which keys are looked for, while the caller waits: some milliseconds.
_LONGEST_REASON = 8192


class Recorder:
    """Records the outcomes of calls without making the caller wait for the database.

    `success` and `failure` only put the outcome in memory. A thread writes what waits with
    `Fleet.record_batch`: every second, as soon as 5,000 outcomes wait, and at once for a failure that
    counts. Outcomes of one model are recorded in the order in which they came. Threads may share a
    recorder. Coroutines may call it in the event loop, but not what waits: ``wait=True``, `flush`, `close`
    and ``when_full="block"``.

    **The database is away**: outcomes are kept, and tried again with growing pauses of at most 5 s.
    `Fleet.on_warning` is told once for each outage. If the connection was lost during a COMMIT, the
    server is asked later what became of it. Only if it was restarted or replaced meanwhile, nobody knows:
    then the batch is written again, up to 5,000 outcomes may be recorded twice, and a warning says so. The
    recorder never leaves them out instead, because a failure that counts could be among them.

    **It is full**: *capacity* is the number of entries that may wait. All successes of a model that come
    after each other are one entry, together with the failure before them; and so are equal failures.
    What finds no room is dropped, with a warning and counted in `stats`; the last tenth is kept for
    failures that count. With ``when_full="block"`` the caller waits for room instead. An entry has some
    200 bytes, and the reason of its failure.

    **What may be lost**: what waits if the process is killed with SIGKILL, crashes, or ends by `os._exit`.
    `close`, the end of the interpreter and SIGTERM write it first. A failure with ``wait=True`` is
    committed when `failure` returns.

    **After a fork** the child begins without outcomes, and with a thread of its own. What waited is
    written by the parent.
    """

    def __init__(
        self,
        target: Target,
        config: Config,
        warn: Callable[..., None],
        *,
        capacity: int,
        block: bool,
    ) -> None:
        """*block*: wait for room if it is full."""
        self._config = config
        self._tell = warn
        self._blocks = block
        self._unrecorded = Unrecorded(self._warn)
        self._make = partial(Background, target, config, self._warn, capacity=capacity, block=block)
        self._background = self._make()
        forks.watch(self, Recorder._begin_again)
        ending.watch(self)

    def _begin_again(self) -> None:
        """Start without outcomes and without a thread, in the child of a fork."""
        closed = self._background.closed
        self._background = self._make()
        self._background.closed = closed

    def success(self, id: str) -> None:  # noqa: A002 - its usual name
        """Record a successful call.

        Raises:
            UsageError: the id is not text, or it cannot be the id of a model; the recorder is closed.
        """
        self._background.add(Outcome(_checked(id), None))

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
        if self._background.closed:  # before anything is imported: the interpreter may be ending
            self._background.add(Outcome(model_id, None), wait=wait)
            return
        kind = arguments.failure(type, http_status)
        if kind is None:  # it says nothing about the model
            return
        if reason is None and isinstance(type, BaseException):
            from modelctl.failures.facts import reason as reason_of

            reason = reason_of(type)
        if isinstance(reason, str):
            reason = reason[: max(_LONGEST_REASON, self._config.health.reason_length)]
        reason = storable_reason(reason, self._config.health.reason_length)
        self._background.add(Outcome(model_id, kind, reason), wait=wait)

    def call(self, id: str | None = None) -> Call:  # noqa: A002 - its usual name
        """Return a `Call` of a model: ``with recorder.call(id):``, ``async with``, or a decorator.

        As `Fleet.call`, but the outcome is recorded here: nothing waits for the database. An outcome
        that the recorder refuses, because it is closed or no model can have the id, is dropped.

        Raises:
            UsageError: the id is not text.
        """
        from modelctl.calls.call import Call, Sink, in_thread

        run = in_thread if self._blocks else None
        return Call(Sink(self.success, self.failure, self._unrecorded, run), id)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was recorded before is committed.

        *timeout*: in seconds; None: ``database.timeout``.

        Raises:
            DatabaseUnavailableError: it took longer; what is not committed stays in memory.
        """
        self._background.flush(self._seconds(timeout))

    def close(self, timeout: float | None = None) -> None:
        """Write what waits, and end. What cannot be written is lost: a warning says so.

        *timeout*: in seconds, None: ``database.timeout``.
        """
        self._background.close(self._seconds(timeout))
        ending.forget(
            self
        )  # not if Ctrl-C interrupts that: then the end of the interpreter goes on

    @property
    def stats(self) -> RecorderStats:
        """What became of the outcomes of this process."""
        stats = self._background.stats()
        return replace(stats, dropped=stats.dropped + self._unrecorded.number)

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

    def _seconds(self, timeout: float | None) -> float:
        if timeout is None:
            return self._config.database.timeout
        arguments.seconds(timeout, "a timeout")
        return timeout

    def _warn(self, message: str, **fields: str | None) -> None:
        # An error of the application's own function must not end the thread or fail its call.
        with suppress(Exception):
            self._tell(message, **fields)


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
