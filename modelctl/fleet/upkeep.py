"""The commands for the person who runs the database: upgrade, detach, doctor."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.fleet.opened import OpenedFleet

if TYPE_CHECKING:
    from modelctl.doctor.results import Diagnosis
    from modelctl.migrations.results import SchemaStatus

# How long `upgrade` may work after the database has answered: an index on a large table takes time.
UPGRADE_SECONDS = 600.0


class UpkeepCommands(OpenedFleet):
    """The schema, and whether everything works."""

    def upgrade(self, *, dry_run: bool = False) -> SchemaStatus:
        """Create the schema, adopt an existing table ``models``, repair what is missing.

        *dry_run*: only return what would be done, and what prevents it.

        Raises:
            InvalidConfigError: the table cannot be adopted; the message says why. Nothing is
                changed.
        """
        from modelctl.migrations import migrate

        if dry_run:
            return self._store.schema(functools.partial(migrate.upgrade, dry_run=True))
        self._create_file()
        self._store.version()  # so that a database that does not answer fails in the usual time
        with deadline.patience(UPGRADE_SECONDS):
            result = self._store.schema(migrate.upgrade)
        if result.repaired:
            self._invalidate_after_schema_change()
        return result

    def schema_status(self) -> SchemaStatus:
        """Compare the schema with the one that this release needs; nothing is changed."""
        from modelctl.migrations import migrate

        return self._store.inspect(migrate.status)

    def detach(self) -> tuple[str, ...]:
        """Drop modelctl's triggers and functions; tables and columns stay. Return their names.

        From then on changes by other programs reach the cached count only when it expires.
        `upgrade` creates the triggers again.
        """
        from modelctl.migrations import migrate

        removed = self._store.schema(migrate.detach)
        self._invalidate_after_schema_change()
        return tuple(removed)

    def _invalidate_after_schema_change(self) -> None:
        """Clear a count that was cached while no trigger reported changes, or will report none."""
        if self._cached_count.cache.needs_delivery:
            self._cached_count.invalidate(owed=True)

    def doctor(self, *, audit: bool = False) -> Diagnosis:
        """Check everything once: database, schema, triggers, cache, queue, rows, recover.

        *audit*: also compare the cached count with the database twice, 5 s apart. A difference in
        both comparisons is an error; a difference in one was a change on its way.
        """
        from modelctl.doctor.doctor import Doctor

        return Doctor(self.config, lambda: self._store, self._cached_count).diagnose(audit=audit)
