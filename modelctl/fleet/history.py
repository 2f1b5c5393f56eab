"""The commands around the history: events and undo."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelctl.history.follow import Following
    from modelctl.history.reading import EventFilter
    from modelctl.history.results import Undone
    from modelctl.models.results import Event


class HistoryCommands(OpenedFleet):
    """What happened, by whom and why."""

    def events(
        self,
        id: str | None = None,  # noqa: A002 - its usual name
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        provider: str | None = None,
        actor: str | None = None,
        event: str | Sequence[str] = (),
        operation: str | None = None,
        after: int | None = None,
        oldest_first: bool = False,
        limit: int | None = 100,
    ) -> tuple[Event, ...]:
        """Return the history, newest first.

        *id*: only the events of this model. *provider*: only those of the provider, of its models,
        and of models that it had when they were removed. *actor*, *operation*: only those of this
        one. *event*: only events of this name, or of these.
        *since*, *until*: only events from this time on, or before this time; a time with its zone,
        or seconds ago. *after*: only events with a greater id, the oldest first: a reader who goes
        on after the last id that it got misses none and gets none twice. *limit*: at most so many;
        0 or None: no limit.

        Raises:
            UsageError: an argument makes no sense.
        """
        return tuple(
            self.iter_events(
                id,
                since=since,
                until=until,
                provider=provider,
                actor=actor,
                event=event,
                operation=operation,
                after=after,
                oldest_first=oldest_first,
                limit=limit,
            )
        )

    def iter_events(
        self,
        id: str | None = None,  # noqa: A002 - its usual name
        *,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        provider: str | None = None,
        actor: str | None = None,
        event: str | Sequence[str] = (),
        operation: str | None = None,
        after: int | None = None,
        oldest_first: bool = False,
        limit: int | None = 100,
    ) -> Iterator[Event]:
        """Give what `events` returns, one event at a time, in constant memory.

        The rows are read as by `iter_models`.
        """
        from modelctl.history import follow, reading

        wanted = _wanted(id, since, until, provider, actor, event, operation, after)
        database, limit = self._store.database, arguments.limit(limit)
        if after is not None:
            wanted, oldest_first = follow.up_to_the_horizon(database, wanted), True
        return reading.iter_events(database, wanted, oldest_first=oldest_first, limit=limit)

    def follow_events(
        self,
        id: str | None = None,  # noqa: A002 - its usual name
        *,
        since: float | datetime | None = None,
        provider: str | None = None,
        actor: str | None = None,
        event: str | Sequence[str] = (),
        operation: str | None = None,
        after: int | None = None,
    ) -> Following:
        """Give the new events as they come, oldest first, in lists of at least one; never end.

        The arguments are those of `events`. Without *after* and *since* it begins with the first
        event from now on. While the database is unavailable it waits, and warns once.

        Raises:
            DatabaseUnavailableError: the database is unavailable when it begins.
        """
        from modelctl.history import follow

        wanted = _wanted(id, since, None, provider, actor, event, operation, after)
        database = self._store.database
        return follow.Following(follow.looks(database, wanted, self._warn))

    def undo(
        self,
        operation: str | None = None,
        *,
        reason: str | None = None,
        force: bool = False,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Undone:
        """Put each model back as it was before an operation: status, holder, reason and end.

        *operation*: None: the last one of the same actor. A model that changed since is left alone,
        and its change is a `LeftChange` that says why. The undo is an operation itself, so it can be
        undone. *force*: ignore the floor of ``recovery.min_active``. *actor*: who undoes, in place
        of the actor of the fleet.

        Raises:
            ModelNotFoundError: there is no such operation.
            RefusedError: it changed no model, or fewer active models than the floor would remain;
                nothing is changed.
        """
        from modelctl.history.results import Undone
        from modelctl.operation import written

        who, undo = self._acting(actor), self._store.undo
        wanted = arguments.operation(operation) if operation else undo.last_operation(who)
        changes = undo.undo(
            wanted,
            actor=who,
            reason=self._reason(reason),
            floor=0 if force else self.config.recovery.min_active,
            dry_run=dry_run,
        )
        changed = any(change.changed for change in changes)
        cache = self._invalidate(owed=not dry_run, changed=changed)
        return Undone(changes, cache, dry_run, None if dry_run else written(), wanted)


def _wanted(
    model_id: str | None,
    since: float | datetime | None,
    until: float | datetime | None,
    provider: str | None,
    actor: str | None,
    event: str | Sequence[str],
    operation: str | None,
    after: int | None,
) -> EventFilter:
    from modelctl.history.reading import EventFilter

    since, until = arguments.moment(since, "since"), arguments.moment(until, "until")
    if isinstance(since, datetime) and isinstance(until, datetime):
        empty = until <= since
    else:
        empty = isinstance(since, float | int) and isinstance(until, float | int) and until >= since
    if empty:
        raise UsageError("no time is both since and until", hint="since is the earlier one")
    return EventFilter(
        model_id=model_id,
        provider=arguments.provider(provider),
        actor=arguments.actor(actor),
        events=(event,) if isinstance(event, str) else tuple(event),
        operation=None if operation is None else arguments.operation(operation),
        since=since,
        until=until,
        after=None if after is None else arguments.cursor(after),
    )
