"""Tries the triggers: whether a change of status reaches the cache. Only doctor does this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.schema.declared import CACHE, OUTBOX

if TYPE_CHECKING:
    from sqlalchemy import Connection


def try_triggers(connection: Connection, schema: str) -> list[str]:
    """Change the status of one model and roll back; return what is wrong.

    A fleet without models has nothing to change, so nothing is wrong.
    """
    raw: Any = connection.connection.driver_connection
    connection.exec_driver_sql("SELECT 1")  # with this, most engines begin a transaction
    postgres = connection.dialect.name == "postgresql"
    begun = raw.info.transaction_status if postgres else raw.in_transaction
    if not begun:
        connection.exec_driver_sql("BEGIN" if postgres else "BEGIN IMMEDIATE")
    try:
        return _try_on_postgres(connection, schema) if postgres else _try_on_sqlite(connection)
    finally:
        connection.exec_driver_sql("ROLLBACK")
        connection.rollback()


_FLIP = (
    "UPDATE models SET active = NOT coalesce(active, false)"
    " WHERE id = (SELECT id FROM models WHERE length(id) <= 200 ORDER BY id LIMIT 1)"
)


def _try_on_postgres(connection: Connection, schema: str) -> list[str]:
    events, outbox = f'"{schema}".modelctl_events', f'"{schema}".{OUTBOX}'
    attempts = (
        (
            f"INSERT INTO {events} (model_id, event) VALUES ('doctor', 'tried')",
            "events are not kept",
        ),
        (
            f"UPDATE {outbox} SET settle = settle WHERE xid = pg_current_xact_id()",
            f"a change of status writes no row into {schema}.{OUTBOX}, or that row cannot be changed",
        ),
        (
            f"DELETE FROM {outbox} WHERE xid = pg_current_xact_id()",
            f"rows of {schema}.{OUTBOX} cannot be deleted",
        ),
    )
    # This transaction does not name itself as modelctl's, so it is one of another program.
    if not connection.exec_driver_sql(_FLIP).rowcount:
        return []
    told = (
        f"SELECT 1 FROM {events} WHERE at >= transaction_timestamp() AND actor = session_user"
        " AND model_id = (SELECT id FROM models WHERE length(id) <= 200 ORDER BY id LIMIT 1)"
    )
    if connection.exec_driver_sql(told).first() is None:
        return [f"a change by another program writes no event into {events}"]
    for statement, wrong in attempts:
        if not connection.exec_driver_sql(statement).rowcount:
            return [wrong]
    return []


def _try_on_sqlite(connection: Connection) -> list[str]:
    connection.exec_driver_sql(f"INSERT INTO {CACHE} (key, expires_at) VALUES ('doctor', 0)")
    seen = f"SELECT 1 FROM {CACHE} WHERE key = 'doctor'"
    if connection.exec_driver_sql(_FLIP).rowcount and connection.exec_driver_sql(seen).first():
        return ["a change of status does not empty the cache"]
    return []
