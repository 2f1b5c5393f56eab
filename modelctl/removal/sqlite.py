"""SQLite: what modelctl has made in a file."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from modelctl.adoption.adoption import has_created
from modelctl.migrations.sqlite import declared_indexes, installed_on, plain_index, stored_note
from modelctl.removal.parts import WILL_COME_BACK, Part, Parts
from modelctl.schema.declared import CACHE, MODELS, STATE, TABLES

if TYPE_CHECKING:
    from sqlalchemy import Connection


def watching(connection: Connection) -> list[Part]:
    """Return the triggers."""
    return [
        Part(f"trigger {name} of {table}", f"DROP TRIGGER {name}")
        for name, table in installed_on(connection)
    ]


def tried(connection: Connection, parts: Parts) -> str | None:
    """Drop the parts in an empty copy of the schema, in memory; return why that fails."""
    rows = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        " ORDER BY type NOT IN ('table', 'view'), rowid"
    )
    with (
        closing(sqlite3.connect(":memory:", isolation_level=None)) as copy,
        suppress(sqlite3.Error, UnicodeError),  # a table of an extension, bytes that are no text
    ):
        for (sql,) in rows.all():
            copy.execute(sql)
        try:
            for part in parts.dropped:
                copy.execute(part.sql)
        except sqlite3.Error as exc:
            return str(exc)
    return None


def stays_off(connection: Connection) -> int:
    """Return how many models modelctl would bring back."""
    if not {"active", "auto_disabled", "disabled_until"} <= {*_columns(connection, MODELS)}:
        return 0
    sql = f"SELECT count(*) FROM {MODELS} WHERE {WILL_COME_BACK}"
    return int(connection.exec_driver_sql(sql).scalar_one())


def has_cache(connection: Connection) -> bool:
    """Whether the table of the cached count is there."""
    return bool(_columns(connection, CACHE))


def everything(connection: Connection) -> Parts:
    """Return all parts: triggers, indexes, columns and tables."""
    parts = Parts(watching(connection))
    things = connection.exec_driver_sql(
        "SELECT type, lower(name), lower(tbl_name), coalesce(sql, '') FROM sqlite_master"
    )
    there = {(kind, name): (table, definition) for kind, name, table, definition in things}
    own = [name for name in TABLES["sqlite"] if ("table", name) in there]
    if own and ("table", MODELS) in there:
        note = stored_note(connection, _columns(connection, STATE))
        declared = declared_indexes().values()
        parts.dropped += [
            Part(f"index {name}", f"DROP INDEX {name}")
            for (kind, name), (table, definition) in there.items()
            if kind == "index"
            and table == MODELS
            and has_created(note, name, as_declared=plain_index(definition) in declared)
        ]
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
