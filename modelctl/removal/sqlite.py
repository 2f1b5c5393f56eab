"""SQLite: what modelctl has made in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.migrations.sqlite import installed_on, stored_note
from modelctl.removal.parts import Part, Parts, is_own_index
from modelctl.schema.declared import MODELS, STATE, TABLES

if TYPE_CHECKING:
    from sqlalchemy import Connection


def watching(connection: Connection) -> list[Part]:
    """Return the triggers."""
    return [
        Part(f"trigger {name} of {table}", f"DROP TRIGGER {name}")
        for name, table in installed_on(connection)
    ]


def everything(connection: Connection) -> Parts:
    """Return all parts: triggers, indexes, columns and tables."""
    parts = Parts(watching(connection))
    things = connection.exec_driver_sql(
        "SELECT type, lower(name), lower(tbl_name) FROM sqlite_master"
    )
    there = {(kind, name): table for kind, name, table in things}
    own = [name for name in TABLES["sqlite"] if ("table", name) in there]
    if own and ("table", MODELS) in there:
        parts.dropped += [
            Part(f"index {name}", f"DROP INDEX {name}")
            for (kind, name), table in there.items()
            if kind == "index" and table == MODELS and is_own_index(name)
        ]
        note = stored_note(connection, _columns(connection, STATE))
        columns = parts.columns(MODELS, note, _columns(connection, MODELS))
        parts.dropped += [
            Part(f"column {name} of {MODELS}", f"ALTER TABLE {MODELS} DROP COLUMN {name}")
            for name in columns
        ]
    parts.dropped += [Part(f"table {name}", f"DROP TABLE {name}") for name in own]
    return parts


def _columns(connection: Connection, table: str) -> list[str]:
    rows = connection.exec_driver_sql(f"PRAGMA main.table_xinfo('{table}')")
    return [row[1].lower() for row in rows]
