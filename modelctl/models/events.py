"""The history: an event for each change, written in the transaction of the change, and read."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from modelctl.database.bulk import rows_of
from modelctl.database.sql import text
from modelctl.model import ModelStatus, storable
from modelctl.models.results import Event
from modelctl.tables.columns import events_table
from modelctl.tables.odd_values import OddRows, as_declared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelctl.database.database import Database


class NewEvent(NamedTuple):
    """An event to write; *details* as in `results.Event`."""

    model_id: str  # "" where the event is of a provider or the fleet
    event: str
    before: str | None = None
    after: str | None = None
    reason: str | None = None
    failure_type: str | None = None
    provider: str | None = None
    details: dict[str, Any] | None = None


_NEW_EVENT = dict.fromkeys(NewEvent._fields, "text") | {"details": "jsonb"}
_STATUSES = frozenset(ModelStatus)


def log(
    database: Database, connection: sa.Connection, events: Sequence[NewEvent], actor: str
) -> None:
    """Write events, in one statement."""
    if not events:
        return
    # Only the columns that some event has: each one more costs the server as much as the first.
    lists = zip(_NEW_EVENT.items(), zip(*events, strict=True), strict=True)
    used = {
        column: (kind, values)
        for (column, kind), values in lists
        if any(v is not None for v in values)
    }
    names = ", ".join(used)
    given = database.sql.rows("given", {column: kind for column, (kind, _) in used.items()})
    sql = (
        f"INSERT INTO {database.own}modelctl_events ({names}, actor)"
        f" SELECT {names}, CAST(:actor AS text) FROM {given}"
    )
    values = database.sql.values(
        used, [*zip(*(values for _, values in used.values()), strict=True)]
    )
    connection.execute(text(sql), values | {"actor": actor})


def differences(
    names: Sequence[str], old: Sequence[Any], new: Sequence[Any]
) -> dict[str, Any] | None:
    """Return the old and new values that differ, as the details of an event; None: none differs."""
    was: dict[str, Any] = {}
    is_now: dict[str, Any] = {}
    for name, one, other in zip(names, old, new, strict=True):
        if one != other:
            was[name], is_now[name] = one, other
    return {"old": was, "new": is_now} if was else None


def iter_events(
    database: Database,
    model_id: str | None,
    *,
    since: float | datetime | None,
    limit: int | None,
) -> Iterator[Event]:
    """Give the newest *limit* events, newest first.

    *since*: no events before this time, or older than this many seconds.
    """
    events = events_table(None if database.on_sqlite else database.schema)
    c = events.c
    query = events.select().order_by(c.id.desc()).limit(limit)
    if model_id is not None:
        query = query.where(c.model_id == storable(model_id))
    if since is not None:
        query = query.where(c.at >= _since(since, database.on_sqlite))
    odd = OddRows(database.warn)
    for row in rows_of(database, query, limit):
        yield _event(c, row, odd)
    odd.finish()


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


def _since(since: float | datetime, on_sqlite: bool) -> Any:
    """An expression: a time, or the time of the database's clock this many seconds ago."""
    if isinstance(since, datetime):
        shown = f"{since.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
        return sa.literal(shown, sa.Text) if on_sqlite else sa.literal(since)
    if on_sqlite:
        return sa.func.strftime("%Y-%m-%dT%H:%M:%fZ", "now", f"-{since:.3f} seconds")
    return sa.func.statement_timestamp() - timedelta(seconds=since)
