"""Whether a table ``models`` that exists already, an application's own, can be used as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

# Declared types that will do. SQLite goes by parts of the word, INT before all others.
SUITABLE = {
    "postgresql": {
        "text": "text|character varying",
        "boolean": "boolean",
        "integer": "smallint|integer|bigint",
        "timestamp": "timestamp with time zone|timestamp without time zone",
    },
    "sqlite": {
        "text": "(?!.*INT).*(CHAR|CLOB|TEXT).*",
        "boolean": ".*(BOOL|INT).*",
        "integer": ".*INT.*",
        "timestamp": "(?!.*INT).*(CHAR|CLOB|TEXT|DATE|TIME).*",
    },
}

ELSEWHERE = "or give modelctl a database of its own (database.url)"


@dataclass(frozen=True, slots=True)
class Column:
    """A column as declared; *base*: its type without length, and behind a domain."""

    declared: str
    base: str
    required: bool
    generated: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """What carries the name ``models``: a ``table`` or something else."""

    kind: str
    columns: dict[str, Column]
    id_unique: bool


def columns_to_keep(
    connection: Connection, needed: dict[str, str], emptied: Collection[str]
) -> set[str] | None:
    """Return which of the *needed* columns ``models`` has already; None: there is no such table.

    *needed*: the columns that a revision brings, and what each must be where it exists already.
    *emptied*: what modelctl sets to NULL. A NOT NULL there would fail every success or enable.

    Raises:
        InvalidConfigError: it cannot be used; says everything that is in the way.
    """
    database = connection.dialect.name
    relation = _postgresql(connection) if database == "postgresql" else _sqlite(connection)
    if relation is None:
        return None
    if relation.kind != "table":
        raise InvalidConfigError(
            f"models is a {relation.kind}, and modelctl needs a table of that name",
            hint=f"rename it, {ELSEWHERE}",
        )
    problems = _problems(relation, SUITABLE[database], needed, emptied)
    if problems:
        raise InvalidConfigError(
            "the table models cannot be used as it is: " + "; ".join(problems),
            hint=f"change the table, {ELSEWHERE}; nothing was changed",
        )
    return needed.keys() & relation.columns.keys()


def _problems(
    relation: Relation, suitable: dict[str, str], needed: dict[str, str], emptied: Collection[str]
) -> list[str]:
    problems = []
    if "id" not in relation.columns:
        problems.append("it has no column id, a text that names each model")
    elif not relation.id_unique:
        problems.append("id has no primary key or unique index of its own")
    for name, column in relation.columns.items():
        kind = needed.get(name)
        if kind is None:
            continue
        if not re.fullmatch(suitable[kind], column.base, re.IGNORECASE):
            problems.append(f"{name} is {column.declared or 'of no type'}, not {kind}")
        if column.generated:
            problems.append(f"{name} is a generated column, so modelctl could not write it")
        if column.required and name in emptied:
            problems.append(f"{name} is NOT NULL, so modelctl could not empty it")
    return problems


def _postgresql(connection: Connection) -> Relation | None:
    kind = connection.exec_driver_sql(
        """
        SELECT CASE relkind
            WHEN 'r' THEN 'table' WHEN 'p' THEN 'table'
            WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
            WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
            WHEN 'c' THEN 'composite type' ELSE 'index'
        END
        FROM pg_class WHERE oid = to_regclass('models')
        """
    ).scalar_one_or_none()
    if kind is None:
        return None
    columns = connection.exec_driver_sql(
        """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod),
            format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL),
            a.attnotnull, a.attgenerated <> ''
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = to_regclass('models') AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
        """
    )
    # A deferrable constraint is no use to ON CONFLICT, a partial one does not hold for all rows.
    id_unique = connection.exec_driver_sql(
        """
        SELECT EXISTS (
            SELECT FROM pg_index i
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = to_regclass('models') AND a.attname = 'id' AND i.indnkeyatts = 1
              AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
        )
        """
    ).scalar_one()
    return Relation(kind, {row[0]: Column(*row[1:]) for row in columns}, id_unique)


def _sqlite(connection: Connection) -> Relation | None:
    found = connection.exec_driver_sql(
        "SELECT CASE WHEN sql LIKE 'CREATE VIRTUAL%' THEN 'virtual table' ELSE type END"
        " FROM sqlite_master WHERE name = 'models' COLLATE NOCASE AND type <> 'trigger'"
    ).scalar_one_or_none()
    if found is None:
        return None
    columns = {}
    key = []
    for _, name, declared, required, _, place, hidden in connection.exec_driver_sql(
        "PRAGMA table_xinfo('models')"
    ):
        columns[name.lower()] = Column(declared, declared, bool(required), hidden in (2, 3))
        if place:
            key.append(name.lower())
    unique = [key] + [
        [
            name and name.lower()
            for _, _, name in connection.exec_driver_sql(f"PRAGMA index_info({_quoted(index)})")
        ]
        for _, index, is_unique, _, partial in connection.exec_driver_sql(
            "PRAGMA index_list('models')"
        ).all()
        if is_unique and not partial
    ]
    return Relation(found, columns, ["id"] in unique)


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
