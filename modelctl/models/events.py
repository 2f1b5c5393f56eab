"""The events of changes, written in the transaction of the change; `history` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import operation
from modelctl.database.database import Query
from modelctl.database.sql import json_text, text
from modelctl.models.results import by_whom
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

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


def log(
    database: Database, connection: sa.Connection, events: Sequence[NewEvent], actor: str
) -> None:
    """Write events of the running operation, in one statement."""
    if not events:
        return
    # Only the columns that some event has: each one more costs the server as much as the first.
    used = {
        column: (kind, values)
        for (column, kind), values in zip(
            _NEW_EVENT.items(), zip(*events, strict=True), strict=True
        )
        if any(v is not None for v in values)
    }
    names = ", ".join(used)
    given = database.sql.rows("given", {column: kind for column, (kind, _) in used.items()})
    sql = (
        f"INSERT INTO {database.own}modelctl_events ({names}, actor, operation)"
        f" SELECT {names}, CAST(:actor AS text), CAST(:operation AS text) FROM {given}"
    )
    values = database.sql.values(
        used, [*zip(*(values for _, values in used.values()), strict=True)]
    )
    del events, used  # thousands of them may be large; the statement has what it needs
    common = {"actor": actor, "operation": operation.current()}
    connection.execute(text(sql), values | common)


def insert_one(database: Database, event: NewEvent, actor: str) -> Query:
    """Return the statement with which a transaction of two messages writes an event; see `log`."""
    values: dict[str, Any] = {f"event_{name}": value for name, value in event._asdict().items()}
    values["event_details"] = event.details and json_text(event.details)
    values |= {"event_actor": actor, "event_operation": operation.current()}
    given = ", ".join(f":event_{name}" for name in NewEvent._fields if name != "details")
    names = ", ".join(name for name in NewEvent._fields if name != "details")
    sql = (
        f"INSERT INTO {database.own}modelctl_events ({names}, details, actor, operation)"
        f" VALUES ({given}, CAST(:event_details AS jsonb), :event_actor, :event_operation)"
    )
    return Query(sql, values)


def other_program(database: Database, model_id: str) -> tuple[str, str] | None:
    """Return when another program changed the status of a model last (UTC), and `by_whom`.

    None: the last change was by modelctl, or the history does not have it.
    """
    sql = (
        f"SELECT {database.sql.time_as_text('at')}, actor,"
        f" {database.sql.text_at('details', 'application_name')} FROM {database.own}modelctl_events"
        f" WHERE model_id = :id AND {database.sql.differs('before', 'after')} ORDER BY id DESC LIMIT 1"
    )
    with database.reading() as connection:
        found = connection.execute(text(sql), {"id": model_id}).first()
    if found is None or found[2] is None:
        return None
    return f"{readable(found[0])[:19]}Z", by_whom(readable(found[1]), readable(found[2]))


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
