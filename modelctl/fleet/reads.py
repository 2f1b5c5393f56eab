"""The commands that only read: list, show, stats, leaderboard and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.model import storable
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from modelctl.availability.results import Availability
    from modelctl.health import Hold
    from modelctl.model import ModelStatus
    from modelctl.models.results import ExplainedModel, LeaderboardEntry, Model, Stats
    from modelctl.tables.selection import Selection
    from modelctl.watch.results import Snapshot


class ReadCommands(OpenedFleet):
    """What can be asked about models. Everything comes from the database."""

    def list_models(
        self,
        *,
        status: ModelStatus | str | None = None,
        provider: str | None = None,
        select: Selection | None = None,
        off: bool = False,
        sort: str = "id",
        limit: int | None = None,
        with_source: bool = False,
    ) -> list[Model]:
        """Return the models that match.

        *select*: those of a `Selection`. *off*: those that are off, and those that a guard keeps on
        although the health rule would switch them off.
        *sort*: ``id``, ``name``, ``provider``, ``status``, ``failures`` (most first), ``updated``
        or ``since`` (newest first). Text is sorted by code points, so capitals come first.
        *with_source*: each as a `SourcedModel`, which says where it comes from.

        Raises:
            UsageError: an unknown status or sort key, or a limit below 0 (0 and None: no limit).
        """
        return list(
            self.iter_models(
                status=status,
                provider=provider,
                select=select,
                off=off,
                sort=sort,
                limit=limit,
                with_source=with_source,
            )
        )

    def iter_models(
        self,
        *,
        status: ModelStatus | str | None = None,
        provider: str | None = None,
        select: Selection | None = None,
        off: bool = False,
        sort: str = "id",
        limit: int | None = None,
        with_source: bool = False,
    ) -> Iterator[Model]:
        """Give what `list_models` returns, one model at a time, in constant memory.

        All rows are read when the first model is asked for, to disk if they are many. So a slow
        caller holds no connection.
        """
        from modelctl.tables.selection import Selection

        if (status, provider) != (None, None):
            if select is not None:
                raise UsageError("give status and provider in the selection")
            select = Selection(provider, status)
        wanted = None if select is None else arguments.selection(select)
        sort, limit = arguments.sort_key(sort), arguments.limit(limit)
        return self._store.models.iter_models(
            wanted, off=off, sort=sort, limit=limit, with_source=with_source
        )

    def show(self, id: str) -> ExplainedModel:  # noqa: A002 - its usual name
        """Return one model, with sentences that explain its status.

        Raises:
            ModelNotFoundError: the id is unknown.
        """
        from modelctl.recovery.explain import explained

        store = self._store
        model = store.models.get(id)
        return explained(model, self.config, store.database, store.holds, store.candidates)

    def stats(self) -> Stats:
        """Return the totals by status and provider, and the pauses and incidents of now."""
        from dataclasses import replace

        from modelctl.models.totals import stats

        return replace(stats(self._store.database), holds=self._store.holds.current())

    def holds(self) -> tuple[Hold, ...]:
        """Return the pauses and incidents that are not over yet."""
        return self._store.holds.current()

    def complete(self, prefix: str) -> list[str]:
        """Return at most 100 ids that begin with *prefix*, for the completion of a shell."""
        path, prefix = self.config.sqlite_path, storable(prefix)
        if path is None:
            from modelctl.tables import similar

            return similar.complete(self._store.database, prefix)
        from modelctl.database import sqlite

        return sqlite.complete(path, prefix)

    def tags(self) -> tuple[str, ...]:
        """Return the tags that models have, by code points."""
        from modelctl.tables.tags import all_tags

        return all_tags(self._store.database)

    def look_alikes(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of ids that a person would mistake for each other.

        The first of a pair is one of *ids*, the second belongs to another model.
        """
        from modelctl.tables import similar

        wanted = list(dict.fromkeys(map(storable, ids)))
        return similar.look_alikes(self._store.database, wanted)

    def snapshot(self, *, rows: int = 20) -> Snapshot:
        """Return what `watch` shows: the count, totals, what is off, holds, events, the queue.

        *rows*: at most so many models, events and holds each, from 1 to 1000. Two statements, and one
        look at the cache, which is not filled.
        """
        from modelctl.watch.snapshot import snapshot

        if not isinstance(rows, int) or not 1 <= rows <= 1000:
            raise UsageError(f"a snapshot has 1 to 1000 rows, not {rows}")
        store = self._store
        found = snapshot(store.database, store.models, self._cached_count.cache, rows)
        if not found.active:
            self._warn_if_nothing_is_configured()
        return found

    def leaderboard(
        self, *, top: int | None = 10, provider: str | None = None, untested: bool = False
    ) -> tuple[LeaderboardEntry, ...]:
        """Return the *top* active models by success rate; 0 or None: all active models.

        They are ranked by the lower bound of the rate with 95 % confidence, so that one success in
        one call ranks below 420 in 421. *untested*: also the models without a call, last.
        """
        from modelctl.models import totals

        top = arguments.limit(top)
        return totals.leaderboard(
            self._store.database, top=top, provider=provider, untested=untested
        )

    def availability(
        self,
        *ids: str,
        since: float | datetime = 7 * 86400,
        until: datetime | None = None,
        provider: str | None = None,
        parts: int = 24,
    ) -> Availability:
        """Return for how long models were on within a period, and what their outages were.

        *ids*: only these models, also removed ones. *since*: the period begins so many seconds ago,
        or at a time with its zone. *until*: it ends then, and no later than now; None: now.
        *provider*: only models of this provider. *parts*: into how many equal parts the strips
        divide the period, from 1 to 1000. The clock is that of the database.

        Raises:
            ModelNotFoundError: an id is unknown, also in the history.
            UsageError: the period is empty, or *since*, *until* or *parts* is not what it may be.
        """
        from modelctl.availability.measure import measure

        start = arguments.moment(since, "since")
        if start is None:
            raise UsageError("since is seconds or a time")
        if until is not None:
            until = arguments.time(until, "until")
        return measure(
            self._store.database,
            since=start,
            until=until,
            ids=arguments.distinct(ids) if ids else (),
            provider=provider,
            parts=arguments.parts(parts),
        )
