"""Whether the columns of a table ``models`` that an application has made can be used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.migrations.declared import MODELS_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# Declared types that will do. SQLite goes by parts of the word, INT before all others.
_SUITABLE = {
    "postgresql": {
        "text": "text|character varying",
        "boolean": "boolean",
        "counter": "integer|bigint",
        "timestamp": "timestamp with time zone|timestamp without time zone",
    },
    "sqlite": {
        "text": "(?!.*INT).*(CHAR|CLOB|TEXT).*",
        "boolean": ".*(BOOL|INT).*",
        "counter": ".*INT.*",
        "timestamp": "(?!.*INT).*(CHAR|CLOB|TEXT|DATE|TIME).*",
    },
}
_NAMES = {"counter": "integer"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column as declared; *base*: its type without length, and behind a domain."""

    declared: str
    base: str
    required: bool
    generated: bool


def problems(
    table: str, columns: Mapping[str, Column], unique: Collection[str], database: str
) -> list[str]:
    """Return everything in the way, in words.

    *unique*: the columns that are unique on their own.
    """
    found = []
    if "id" not in columns:
        found.append(f"{table} has no column id, a text that names each model")
    elif "id" not in unique:
        found.append(f"id of {table} has no primary key or unique index of its own")
    for name, column in columns.items():
        wanted = MODELS_COLUMNS.get(name)
        if wanted is None:
            continue
        kind = wanted.kind
        if column.base == "smallint" and kind == "counter" and database == "postgresql":
            # Not widened here: that would rewrite the table while everybody waits.
            found.append(
                f"{name} is smallint, and every outcome would fail at 32,767: ALTER TABLE {table}"
                f" ALTER COLUMN {name} TYPE {wanted.postgresql.partition(' ')[0]}"
            )
        elif not re.fullmatch(_SUITABLE[database][kind], column.base, re.IGNORECASE):
            found.append(
                f"{name} is {column.declared or 'of no type'}, not {_NAMES.get(kind, kind)}"
            )
        if column.generated:
            found.append(f"{name} is a generated column, so modelctl could not write it")
        if column.required and wanted.emptied and kind != "text":  # a text can be ''
            found.append(f"{name} is NOT NULL, so modelctl could not empty it")
    return found
