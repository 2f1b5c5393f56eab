"""The commands that carry a whole fleet: export and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from modelctl.backup.results import Restored
    from modelctl.tables.selection import Selection


class BackupCommands(OpenedFleet):
    """All that a fleet is, as text."""

    def export(self, *, select: Selection | None = None) -> Iterator[str]:
        """Give the lines of an export, each with its line feed: all that a fleet is at one moment.

        JSON Lines in ASCII: a header, the models, the pauses and incidents that are not over, and
        the totals. *select*: only the models of a `Selection`, and no pauses and incidents.
        All rows are read before the first line is given, to disk if they are many.
        """
        from modelctl.backup.export import export

        selection = None if select is None else arguments.selection(select)
        self._warn_if_nothing_is_configured()
        return iter(export(self._store.database, selection))

    def restore(
        self,
        source: bytes | BinaryIO,
        *,
        enable: bool = False,
        force: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> Restored:
        """Add the models of an export, and bring those that are there to its state; all or nothing.

        No model comes back sooner than it would have: it stays off as it is, and is counted as
        ``left_off``. *enable*: bring these models to the state of the export, too. Models that are
        not in the export stay as they are. A pause is restored if it is not over and no longer one
        is there.
        *source*: the bytes of an export, or a stream of them. *force*: ignore the floor of
        ``recovery.min_active``. *progress* is called with the number of models that are done.

        Raises:
            UsageError: this is not a whole export; the message names the line. Nothing is changed.
            RefusedError: fewer active models than the floor would remain, or the database kept a
                row as it was; nothing is changed.
        """
        import io

        from modelctl.backup.lines import read
        from modelctl.backup.restore import restore
        from modelctl.backup.results import Restored
        from modelctl.operation import written

        if not isinstance(source, bytes) and not hasattr(source, "readline"):
            raise UsageError("an export is bytes, or a stream of them")
        saved = read(io.BytesIO(source) if isinstance(source, bytes) else source)
        done = restore(
            self.config,
            self._store.database,
            saved,
            enable=enable,
            floor=0 if force else self.config.recovery.min_active,
            actor=self._acting(actor),
            dry_run=dry_run,
            progress=progress,
        )
        cache = self._invalidate(owed=not dry_run, changed=bool(done.changes))
        return Restored(
            added=done.counts["added"],
            updated=done.counts["updated"],
            unchanged=done.counts["unchanged"],
            left_off=done.counts["left_off"],
            untouched=done.untouched,
            holds=done.holds,
            changes=done.changes,
            cache=cache,
            dry_run=dry_run,
            operation=None if dry_run else written(),
        )
