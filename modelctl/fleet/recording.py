"""The recorder of a fleet: outcomes of an application, gathered in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.fleet.changes import ChangeCommands
from modelctl.opened import arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelctl.health import Outcome
    from modelctl.models.results import BatchResult
    from modelctl.recorder.recorder import Recorder

_MOST_ENTRIES = 2**31


class RecordingCommands(ChangeCommands):
    """Recording at a high rate."""

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
        who = self._acting(actor)

        def write(outcomes: Iterable[Outcome]) -> BatchResult:
            # A method of the fleet, so that it has a deadline of its own.
            return self.record_batch(outcomes, unknown="skip", actor=who)

        made = Recorder(
            write,
            self.config,
            lambda warning: self.on_warning(warning),
            capacity=capacity,
            block=block,
        )
        self._before_closing.add(made)
        return made
