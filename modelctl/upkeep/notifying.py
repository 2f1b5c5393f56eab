"""The command that tells people what happened: notify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import InvalidConfigError
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from modelctl.notify.results import Notified


class NotifyCommands(OpenedFleet):
    """What people are told of."""

    def notify(self, *, patience: float = 30.0, dry_run: bool = False) -> Notified:
        """Send the events that are new since the last run to the receiver of ``[notify]``.

        At least once and in order: the cursor moves after the receiver accepted a message. The first
        run sends nothing that is older. If the receiver does not accept a message, it is tried again
        for *patience* seconds (and at last for the timeout of one try); then the result says why, and
        the next run goes on. An event that it
        did not accept for a day is dropped. If another run is at work, this run does nothing.
        *dry_run*: send and store nothing.

        Raises:
            InvalidConfigError: there is no ``[notify]``, or its URL or token cannot be read.
            UsageError: *patience* is not from 0 s to ten years.
        """
        from modelctl.notify.run import NotifyRun

        arguments.seconds(patience, "a patience")
        config = self.config.notify
        if config is None:
            hint = "see [notify] in: modelctl config example"
            raise InvalidConfigError("no receiver of notifications is configured", hint=hint)
        run = NotifyRun(
            self._store.database,
            config,
            max_ejections=self.config.recovery.max_ejections,
            count=lambda: self._cached_count.count(fresh=False, strong=True).active,
            patience=patience,
            warn=self._warn,
        )
        return run.rehearse() if dry_run else run.run()
