"""The commands for the person who runs the database: db, doctor, metrics, prune."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.errors import MissingSchemaError, UsageError
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from datetime import datetime

    from modelctl.doctor.results import Diagnosis
    from modelctl.history.results import Pruned
    from modelctl.metrics.results import FleetMetrics
    from modelctl.migrations.results import SchemaStatus
    from modelctl.removal.results import Uninstalled

# How long `upgrade` may work after the database has answered: an index on a large table takes time.
UPGRADE_SECONDS = 600.0


class UpkeepCommands(OpenedFleet):
    """The schema, and whether everything works."""

    def upgrade(self, *, dry_run: bool = False) -> SchemaStatus:
        """Create the schema, adopt an existing table ``models``, repair what is missing.

        Then the history gets an event for each model whose status it does not say.

        *dry_run*: only return what would be done, and what prevents it.

        Raises:
            InvalidConfigError: the table cannot be adopted, and why. Nothing is changed.
        """
        from modelctl.history.catch_up import catch_up
        from modelctl.migrations import migrate
        from modelctl.opened import embedded

        if dry_run:
            plan = functools.partial(migrate.upgrade, dry_run=True)
            return self._store.inspect(plan) if self._is_there() else embedded.looked_at(plan)
        self._create_file()
        self._store.version()  # so that a database that does not answer fails in the usual time
        with deadline.patience(UPGRADE_SECONDS):
            result = self._store.schema(migrate.upgrade)
            events = catch_up(self._store.database, self._actor)
        if result.repaired:
            self._invalidate_after_schema_change()
        return replace(result, repaired=(*result.repaired, *events))

    def schema_status(self) -> SchemaStatus:
        """Compare the schema with the one that this release needs; nothing is changed."""
        from modelctl.migrations import migrate

        return self._store.inspect(migrate.status)

    def declarations(self, tool: str) -> str:
        """Return what `upgrade` adds to ``models``, for the schema file of an application.

        *tool*: drizzle, prisma, sqlalchemy or sql.

        Raises:
            UsageError: there is no such tool, or on SQLite another one than sql.
        """
        from modelctl.migrations import migrate
        from modelctl.schema.for_tools import Tool, declarations, sqlite_declarations

        on_sqlite = self.config.sqlite_path is not None
        known = (Tool.SQL,) if on_sqlite else tuple(Tool)
        if tool not in known:
            where = " for SQLite" if on_sqlite else ""
            raise UsageError(
                f"no declarations for '{tool}'{where}", hint=f"one of: {', '.join(known)}"
            )
        added = self._store.inspect(migrate.added)
        return sqlite_declarations(added) if on_sqlite else declarations(Tool(tool), added)

    def detach(self) -> tuple[str, ...]:
        """Drop modelctl's triggers and functions; tables and columns stay. Return their names.

        From then on changes by other programs reach the cached count only when it expires.
        `upgrade` creates the triggers again.
        """
        from modelctl.removal import removal

        self._check_that_it_is_there()
        removed = self._store.schema(removal.detach)
        try:
            self._invalidate_after_schema_change()
        except MissingSchemaError:  # there is no modelctl in this database
            self._forget_cached_count()
        return tuple(removed)

    def uninstall(self, *, dry_run: bool = False) -> Uninstalled:
        """Drop all that modelctl has made: of an adopted table, the columns that it added.

        The table, its rows and its other columns stay. *dry_run*: only return what would be dropped.

        Raises:
            RefusedError: invalidations are queued, or something uses a column; nothing is changed.
        """
        from modelctl.removal import removal

        self._check_that_it_is_there()
        delivers = self._cached_count.cache.needs_delivery
        work = functools.partial(
            removal.uninstall, delivers=delivers, forget=self._forget_cached_count, dry_run=dry_run
        )
        if dry_run:
            return self._store.inspect(work)
        with self._forgetting_the_count():
            return self._store.schema(work)

    def doctor(self, *, audit: bool = False) -> Diagnosis:
        """Check everything once: database, schema, triggers, cache, queue, rows, recover.

        *audit*: also compare the cached count with the database twice, 5 s apart. A difference in
        both comparisons is an error; a difference in one was a change on its way.
        """
        from modelctl.doctor.doctor import Doctor

        return Doctor(self.config, lambda: self._store, self._cached_count).diagnose(audit=audit)

    def metrics(self) -> FleetMetrics:
        """Return numbers for monitoring: models, the count, its queue, recover, holds, events.

        Two statements, and one look at the cache. If Redis is unavailable, the count comes from the
        database.
        """
        from modelctl.metrics.measure import measure

        return measure(self._store.database, self._cached_count)

    def prune(self, before: float | datetime, *, dry_run: bool = False) -> Pruned:
        """Delete the events from before a time, but the newest event of each model.

        *before*: a time with its zone, or seconds ago. *dry_run*: only count the events. At most
        5,000 events are deleted in one transaction, so an error leaves the earlier ones deleted.

        Raises:
            UsageError: *before* is neither a time nor from 0 s to ten years.
        """
        from modelctl.history.prune import prune
        from modelctl.history.results import Pruned

        end = arguments.time_or_age(before, self._store.candidates.clock)
        deleted = prune(self._store.database, end.timestamp(), dry_run=dry_run)
        return Pruned(deleted, end, dry_run)
