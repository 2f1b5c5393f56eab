"""Read the history: the events that match, and up to which id it is complete."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.database.bulk import rows_of
from modelctl.database.sql import text
from modelctl.model import ModelStatus, storable
from modelctl.models.results import Event
from modelctl.tables.columns import events_table
from modelctl.tables.odd_values import OddRows, as_declared
from modelctl.times import written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelctl.database.database import Database

_STATUSES = frozenset(ModelStatus)
# How long a transaction that has taken an id for an event may need until it commits.
_LONGEST_TRANSACTION = 600.0


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None: all.

    *since* (inclusive) and *until* (exclusive): a time, or seconds before now. *after*: only events
    with a greater id; *up_to*: none with a greater one.
    """

    model_id: str | None = None
    provider: str | None = None
    actor: str | None = None
    events: tuple[str, ...] = ()
    operation: str | None = None
    since: float | datetime | None = None
    until: float | datetime | None = None
    after: int | None = None
    up_to: int | None = None


def iter_events(
    database: Database, wanted: EventFilter, *, oldest_first: bool, limit: int | None
) -> Iterator[Event]:
    """Give the newest (or oldest) *limit* events that match, newest (or oldest) first."""
    events = events_table(None if database.on_sqlite else database.schema)
    c = events.c
    order = c.id.asc() if oldest_first else c.id.desc()
    query = events.select().order_by(order).limit(limit)
    for name in ("model_id", "actor", "operation"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(c[name] == storable(value))
    if wanted.events:
        query = query.where(c.event.in_([*map(storable, wanted.events)]))
    if wanted.provider is not None:
        query = query.where(_of_provider(database)).params(provider=storable(wanted.provider))
    if wanted.since is not None:
        query = query.where(c.at >= _time(wanted.since, database.on_sqlite))
    if wanted.until is not None:
        query = query.where(c.at < _time(wanted.until, database.on_sqlite))
    if wanted.after is not None:
        query = query.where(c.id > wanted.after)
    if wanted.up_to is not None:
        query = query.where(c.id <= wanted.up_to)
    odd = OddRows(database.warn)
    for row in rows_of(database, query, limit):
        yield _event(c, row, odd)
    odd.finish()


def _of_provider(database: Database) -> Any:
    """SQL: whether an event belongs to the provider :provider, or to one of its models.

    The row of a removed model is gone, so its events tell the provider: that of its removal and that
    of its addition name it.
    """
    own, path = database.own, database.sql.text_at
    events = f"{own}modelctl_events"
    named = " OR ".join(f"{path('h.details', when, 'provider')} = :provider" for when in _WHEN)
    return sa.text(
        f"(coalesce({events}.provider, '') = :provider OR EXISTS (SELECT 1 FROM models"
        f" WHERE models.id = {events}.model_id AND coalesce(models.provider, '') = :provider)"
        f" OR (NOT EXISTS (SELECT 1 FROM models WHERE models.id = {events}.model_id)"
        f" AND EXISTS (SELECT 1 FROM {events} h WHERE h.model_id = {events}.model_id"
        f" AND h.model_id <> '' AND ({named}))))"
    )


_WHEN = ("old", "new")


def _event(columns: Any, row: Any, odd: OddRows) -> Event:
    values, unreadable = as_declared(columns, row)
    event_id, at, of, event, before, after, *rest = values
    unreadable += [
        name
        for name, status in (("before", before), ("after", after))
        if status and status not in _STATUSES
    ]
    before, after = (ModelStatus(s) if s in _STATUSES else None for s in (before, after))
    if unreadable:
        odd.add(f"event {event_id}", unreadable)
    return Event(event_id, at, of or None, event, before, after, *rest)


def _time(time: float | datetime, on_sqlite: bool) -> Any:
    """An expression: a time, or the time of the database's clock this many seconds ago."""
    if isinstance(time, datetime):
        return sa.literal(written(time), sa.Text) if on_sqlite else sa.literal(time)
    if on_sqlite:
        return sa.func.strftime("%Y-%m-%dT%H:%M:%fZ", "now", f"-{time:.3f} seconds")
    return sa.func.statement_timestamp() - timedelta(seconds=time)


class Horizon:
    """The id up to which the history is complete, so that a reader can go on from there.

    On PostgreSQL an event gets its id before its transaction commits, so an event with a smaller id
    may appear later. Where an id is missing, the history is complete up to there, until all
    transactions that were running have ended, or the event after the missing id is older than a
    transaction may last.
    """

    def __init__(self, database: Database, after: int) -> None:
        """*after*: the id from which to go on."""
        self._database = database
        self.id = after
        # While an id is missing: the newest event, and the first transaction that had not begun, when
        # that was noticed.
        self._waiting: tuple[int, int] | None = None

    def advance(self) -> bool:
        """Set `id` as far as the history is complete; return whether that is its newest event."""
        own, on_sqlite = self._database.own, self._database.on_sqlite
        events = f"{own}modelctl_events"
        if on_sqlite:  # only one transaction writes at a time
            with self._database.reading() as connection:
                newest = connection.scalar(text(f"SELECT max(id) FROM {events}"))
            self.id = max(self.id, newest or 0)
            return True
        gap = (
            f"WITH gap AS (SELECT min(e.id) AS id FROM {events} e WHERE e.id > :after + 1"
            f" AND e.at > {self._database.sql.seconds_from_now('-:longest')}"
            f" AND NOT EXISTS (SELECT 1 FROM {events} p WHERE p.id = e.id - 1))"
            f" SELECT gap.id, (SELECT max(id) FROM {events}),"
            f" (SELECT max(id) FROM {events} WHERE id < gap.id AND id > :after) FROM gap"
        )
        running = (
            "SELECT CAST(CAST(pg_snapshot_xmin(s) AS text) AS bigint),"
            " CAST(CAST(pg_snapshot_xmax(s) AS text) AS bigint) FROM pg_current_snapshot() s"
        )
        parameters = {"after": self.id, "longest": _LONGEST_TRANSACTION}
        with self._database.reading() as connection:
            missing, newest, before = connection.execute(text(gap), parameters).one()
            if missing is None:
                self.id, self._waiting = max(self.id, newest or 0), None
                return True
            self.id = max(self.id, before or 0)
            oldest_running, next_one = connection.execute(text(running)).one()
        upto, begun_before = self._waiting or (newest, next_one)
        if oldest_running < begun_before:
            self._waiting = upto, begun_before
            return False
        self.id, self._waiting = max(self.id, upto), None
        return bool(upto == newest)
