"""What an application records calls with: a block around each call, and a recorder for many."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.errors import UsageError
from modelctl.fleet.changes import ChangeCommands
from modelctl.opened import arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelctl.calls.call import Call
    from modelctl.calls.unrecorded import Unrecorded
    from modelctl.health import Outcome
    from modelctl.models.results import BatchResult
    from modelctl.recorder.recorder import Recorder

_MOST_ENTRIES = 2**31


class RecordingCommands(ChangeCommands):
    """Recording the calls of models where they happen, and at a high rate."""

    def call(
        self,
        id: str | None = None,  # noqa: A002 - its usual name
        *,
        actor: str | None = None,
    ) -> Call:
        """Return a `Call` of a model: ``with fleet.call(id):``, ``async with``, or a decorator.

        Its outcome is written to the database when it ends, which takes as long as `record_success`,
        and at most ``database.timeout``. With `Recorder.call` nothing waits for the database.
        *id*: None, if only the block will know it; then it says ``call.model(id)``.

        An unknown id does not fail the call of the model: `on_warning` is told.

        Raises:
            UsageError: the id or the actor is not text.
        """
        from modelctl.calls.call import Call, Sink, in_thread

        arguments.actor(actor)
        success, failure = (
            partial(method, actor=actor) for method in (self.record_success, self.record_failure)
        )
        return Call(Sink(success, failure, self._unrecorded, in_thread), id)

    @property
    def unrecorded_calls(self) -> int:
        """How many outcomes of calls this process could not record with `call`."""
        return self._unrecorded.number

    @property
    def _unrecorded(self) -> Unrecorded:
        from modelctl.calls.unrecorded import Unrecorded

        found: Unrecorded | None = self.__dict__.get("_unrecorded_made")
        # If two threads come first at the same time, both get the same one.
        return found or self.__dict__.setdefault(
            "_unrecorded_made", Unrecorded(partial(self._warn, logger="calls"))
        )

    def recorder(
        self, *, capacity: int = 100_000, when_full: str = "drop", actor: str | None = None
    ) -> Recorder:
        """Return a `Recorder`, which records outcomes without making their callers wait.

        Use it as a context manager, or `close` it; closing the fleet closes it too. Open it once for
        each process, and in the main thread: otherwise SIGTERM does not write what waits.

        *capacity*: how many entries may wait, one or more. *when_full*: ``drop`` what finds no room, or
        ``block`` the caller until there is room.

        Raises:
            UsageError: an argument is wrong.
        """
        from modelctl.recorder.recorder import Recorder

        whole = isinstance(capacity, int) and not isinstance(capacity, bool)
        if not whole or not 1 <= capacity <= _MOST_ENTRIES:
            raise UsageError(f"a capacity is a whole number from 1 on, not {capacity!r}")
        block = arguments.policy(when_full, ("drop", "block")) == "block"
        made = Recorder(
            _Batches(self, self._acting(actor)),
            self.config,
            partial(self._warn, logger="recorder"),
            capacity=capacity,
            block=block,
        )
        self._before_closing.add(made)
        return made

    def _outcome_of_doubt(self, transaction: tuple[str, object]) -> bool | None:
        """Return whether a transaction was committed, and invalidate the caches if it was."""
        with deadline.call(self.config.database.timeout):
            committed = self._store.database.was_committed(transaction)
            if committed:
                self._invalidate(owed=True)
            return committed


class _Batches:
    """The batches of a recorder, recorded in a fleet by *actor*."""

    def __init__(self, fleet: RecordingCommands, actor: str) -> None:
        self._fleet = fleet
        self._actor = actor

    def record(self, outcomes: Iterable[Outcome]) -> BatchResult:
        """Record outcomes in one transaction, without those of unknown ids."""
        return self._fleet.record_batch(outcomes, unknown="skip", actor=self._actor)

    def was_recorded(self, transaction: tuple[str, object]) -> bool | None:
        """Return whether a transaction in doubt was committed; None: that cannot be known any more."""
        return self._fleet._outcome_of_doubt(transaction)
