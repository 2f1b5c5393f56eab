"""Deletes old events, a few thousand in each transaction, so that no other transaction waits long."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from modelctl import deadline
from modelctl.database.bulk import chunks, spooled
from modelctl.database.sql import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

# How many events one run of recover deletes at most.
IN_ONE_RUN = 50_000
# In modelctl_state: how many events of a kind were deleted; the kind follows.
PRUNED = "pruned "


def prune(
    database: Database, before: float, *, limit: int | None = None, dry_run: bool = False
) -> int:
    """Delete the events from before *before* (seconds since 1970); return how many.

    The newest event of each model stays: it says why the model is off, or that it was removed.
    *limit*: at most so many. *dry_run*: only count them.
    """
    values = {"before": before, "limit": 2**62 if limit is None else limit}
    # All ids are read first, to disk if they are many: searching again for each chunk would read
    # the deleted rows again and again.
    ids = spooled(database, text(_old_events(database)), values, lambda row: row[0])
    if dry_run:
        return len(ids)
    delete = _delete_on_sqlite if database.on_sqlite else _delete_on_postgres
    deleted = 0
    for chunk in chunks(ids):
        deadline.renew()
        deleted += database.write(functools.partial(delete, database, ids=chunk))
    return deleted


def _old_events(database: Database) -> str:
    events = f"{database.own}modelctl_events"
    return (
        f"SELECT id FROM {events} AS old"
        f" WHERE at < {database.sql.time('CAST(:before AS double precision)')}"
        f" AND EXISTS (SELECT 1 FROM {events} AS newer"
        " WHERE newer.model_id = old.model_id AND newer.id > old.id) LIMIT :limit"
    )


def _delete_on_postgres(database: Database, connection: sa.Connection, ids: Sequence[int]) -> int:
    """Delete events, and add to the numbers of deleted events by kind, from which metrics counts on.

    In one statement: another run may delete the same events, and only one may count them. The kinds
    are in order, so that two runs do not wait for each other.
    """
    sql = (
        f"WITH gone AS (DELETE FROM {database.own}modelctl_events"
        " WHERE id = ANY(CAST(:ids AS bigint[])) RETURNING event),"
        f" counted AS (INSERT INTO {database.own}modelctl_state AS state (name, at, value)"
        f" SELECT '{PRUNED}' || event, statement_timestamp(), CAST(count(*) AS text)"
        " FROM gone GROUP BY event ORDER BY event"
        " ON CONFLICT (name) DO UPDATE SET at = excluded.at,"
        " value = CAST(CAST(state.value AS bigint) + CAST(excluded.value AS bigint) AS text))"
        " SELECT count(*) FROM gone"
    )
    return int(connection.execute(text(sql), {"ids": list(ids)}).scalar_one())


def _delete_on_sqlite(database: Database, connection: sa.Connection, ids: Sequence[int]) -> int:
    """Do the same in two statements: no other program writes meanwhile."""
    these = "id IN (SELECT value FROM json_each(:ids))"
    values: dict[str, Any] = {"ids": json.dumps(list(ids))}
    count = (
        "INSERT INTO modelctl_state (name, at, value)"
        f" SELECT '{PRUNED}' || event, {database.sql.now}, count(*)"
        f" FROM modelctl_events WHERE {these} GROUP BY event"
        " ON CONFLICT (name) DO UPDATE SET at = excluded.at,"
        " value = CAST(value AS integer) + CAST(excluded.value AS integer)"
    )
    connection.execute(text(count), values)
    delete = f"DELETE FROM modelctl_events WHERE {these}"
    return connection.execute(text(delete), values).rowcount
