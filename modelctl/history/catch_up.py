"""Writes an event for each model whose status, or absence, the history does not say.

There are such models in a table that was just adopted; after changes while a trigger was missing or
disabled; and on SQLite after each change by another program.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.database.bulk import chunks, spooled
from modelctl.database.sql import text
from modelctl.model import numbered
from modelctl.models.events import NewEvent, log
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import is_storable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

# The trigger writes no events of longer ids either: they may not fit into the index of the events.
_LONGEST_ID = 2000


def catch_up(database: Database, actor: str) -> tuple[str, ...]:
    """Bring the history up to date with the table; say of how many models it said nothing."""
    # All ids are read first, to disk if they are many, so that no lock is held meanwhile.
    ids = spooled(database, text(_differing(database)), make=lambda row: row[0])
    storable = (i for i in ids if is_storable(i) and len(i.encode()) <= _LONGEST_ID)
    written = 0
    for chunk in chunks(storable):
        written += database.write(functools.partial(_write, database, ids=chunk, actor=actor))
        deadline.renew()
    if not written:
        return ()
    return (f"the history did not say the status of {numbered(written)}",)


def _told(database: Database, model_id: str) -> str:
    """SQL: the status that the last event of a model says, '' if it was removed, NULL without events."""
    return (
        f"(SELECT coalesce(e.after, '') FROM {database.own}modelctl_events e"
        f" WHERE e.model_id = {model_id} AND (e.before IS NOT NULL OR e.after IS NOT NULL)"
        " ORDER BY e.id DESC LIMIT 1)"
    )


def _differing(database: Database) -> str:
    """SQL: the ids of the models of which the history says another status, or none."""
    events = f"{database.own}modelctl_events"
    return (
        "SELECT id FROM models WHERE id IS NOT NULL"
        f" AND {STATUS} <> coalesce({_told(database, 'models.id')}, '')"
        f" UNION ALL SELECT known.model_id FROM (SELECT DISTINCT model_id FROM {events}"
        " WHERE model_id <> '') AS known"
        f" WHERE {_told(database, 'known.model_id')} <> ''"
        " AND NOT EXISTS (SELECT 1 FROM models WHERE models.id = known.model_id)"
    )


def _write(database: Database, connection: sa.Connection, *, ids: Sequence[str], actor: str) -> int:
    """Compare these models again, while nobody changes one, and write their events."""
    if not database.on_sqlite:
        # A transaction that has not committed may have written an event that we do not see.
        connection.execute(text("LOCK TABLE models IN SHARE MODE"))
    select = (
        f"SELECT id, {_told(database, 'asked.id')},"
        f" (SELECT {STATUS} FROM models WHERE models.id = asked.id)"
        f" FROM {database.sql.rows('asked', {'id': 'text'})} ORDER BY {database.sql.by_id}"
    )
    values = database.sql.values(("id",), [(model_id,) for model_id in ids])
    events = [
        # A model without events was as it is now, as far as anybody knows.
        NewEvent(model_id, "found", status if told is None else told or None, status)
        for model_id, told, status in connection.execute(text(select), values)
        if (told or None) != status
    ]
    log(database, connection, events, actor)
    return len(events)
