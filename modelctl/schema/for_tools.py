"""The columns and indexes on ``models`` as declarations for the tools of an application.

A tool that brings a database to what the application declares drops columns and indexes that it does not
know. With these lines in the application's own schema file it finds nothing to do.

A field has the name of its column: an application often has a field ``createdAt`` of its own.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from modelctl.schema.declared import INDEXES, MODELS, MODELS_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_LONG_AGO = "1970-01-01T00:00:00.000Z"


class Tool(StrEnum):
    """The tools for which there are declarations; SQL is for any that takes SQL."""

    DRIZZLE = "drizzle"
    PRISMA = "prisma"
    SQLALCHEMY = "sqlalchemy"
    SQL = "sql"


class Added(NamedTuple):
    """What modelctl adds to a database.

    *table*: as SQL; *schema*: of the table. *indexes*: the declared indexes, each with the name that it
    has there. *whole*: the table with all its columns.
    """

    table: str
    schema: str
    columns: tuple[str, ...]
    indexes: dict[str, str]
    whole: bool

    @property
    def foreign_schema(self) -> str:
        """The schema that a declaration of the whole table must name."""
        return self.schema if self.whole and self.schema != "public" else ""


class _Facts(NamedTuple):
    name: str
    kind: str
    key: bool
    required: bool
    default: str | None


def declarations(tool: Tool, added: Added) -> str:
    """Return the declarations for PostgreSQL."""
    columns = [_facts(name) for name in added.columns]
    write: Callable[[Added, list[_Facts]], Iterator[str]] = {
        Tool.DRIZZLE: _drizzle,
        Tool.PRISMA: _prisma,
        Tool.SQLALCHEMY: _sqlalchemy,
        Tool.SQL: _sql,
    }[tool]
    return "\n".join(write(added, columns)) + "\n"


def sqlite_declarations(added: Added) -> str:
    """Return the SQL for SQLite."""
    columns = {name: MODELS_COLUMNS[name].sqlite for name in added.columns}
    if not added.whole:  # SQLite adds no column whose default is computed
        columns = {
            name: re.sub(r"\(strftime.*\)", f"'{_LONG_AGO}'", definition)
            for name, definition in columns.items()
        }
    lines = _statements(
        added,
        columns,
        {real: INDEXES[name].sqlite for name, real in added.indexes.items()},
        "ADD COLUMN",
    )
    return "\n".join(lines) + "\n"


def _facts(name: str) -> _Facts:
    definition = MODELS_COLUMNS[name].postgresql
    kind = re.split(" NOT NULL| PRIMARY| DEFAULT", definition)[0]
    default = definition.partition(" DEFAULT ")[2] or None
    key = "PRIMARY KEY" in definition
    return _Facts(name, kind, key, key or "NOT NULL" in definition, default)


def _indexes(added: Added) -> dict[str, tuple[str, str]]:
    """Return the indexes by name: the column, and the condition."""
    found = {}
    for name, real in added.indexes.items():
        column, _, condition = INDEXES[name].postgresql.partition(" WHERE ")
        found[real] = column.strip("()"), condition
    return found


def _quoted(text: str) -> str:
    """Return a string as Python, TypeScript and Prisma write it."""
    return json.dumps(text)


def _as_postgresql_shows(condition: str) -> str:
    """Return the condition as it is in the catalog, with which Prisma compares the text."""
    parts = [f"({part})" for part in condition.split(" AND ")]
    return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"


def _drizzle(added: Added, columns: Sequence[_Facts]) -> Iterator[str]:
    types = {
        "text": 'text("{}")',
        "boolean": 'boolean("{}")',
        "integer": 'integer("{}")',
        "bigint": 'bigint("{}", {{ mode: "number" }})',
        "timestamptz": 'timestamp("{}", {{ withTimezone: true }})',
    }
    yield 'import { sql } from "drizzle-orm";'
    table = "pgSchema" if added.foreign_schema else "pgTable"
    names = sorted({column.kind.removesuffix("tz") for column in columns} | {"index", table})
    yield f'import {{ {", ".join(names)} }} from "drizzle-orm/pg-core";'
    yield ""
    if not added.whole:
        yield "// For the table that you have: the columns that it does not declare yet, and the indexes."
    if added.foreign_schema:
        # Exported, too: drizzle-kit drops a schema that it does not see.
        yield f"export const schema = pgSchema({_quoted(added.foreign_schema)});"
        table = "schema.table"
    yield f'export const models = {table}("{MODELS}", {{'
    for column in columns:
        text = types[column.kind].format(column.name)
        text += ".primaryKey()" if column.key else ".notNull()" if column.required else ""
        if column.default == "now()":
            text += ".defaultNow()"
        elif column.default is not None:
            value = '""' if column.default == "''" else column.default
            text += f".default({value})"
        yield f"  {column.name}: {text},"
    yield "}, (table) => ["
    for name, (indexed, condition) in _indexes(added).items():
        yield f'  index("{name}").on(table.{indexed}).where(sql`{condition}`),'
    yield "]);"


def _prisma(added: Added, columns: Sequence[_Facts]) -> Iterator[str]:
    types = {
        "text": "String",
        "boolean": "Boolean",
        "integer": "Int",
        "bigint": "BigInt",
        "timestamptz": "DateTime",
    }
    if not added.whole:
        yield "// For the model that you have: the fields that it does not declare yet."
    yield "// @ignore: not in Prisma Client, because JSON.stringify refuses a row with a BigInt."
    yield "model Models {"
    for column in columns:
        words = [column.name, types[column.kind] + "?" * (not column.required)]
        words += ["@id"] if column.key else []
        if column.default is not None:
            value = '""' if column.default == "''" else column.default
            words.append(f"@default({value})")
        if column.kind == "timestamptz":
            words.append("@db.Timestamptz(6)")
        if column.kind == "bigint":
            words.append("@ignore")
        yield f"  {' '.join(words)}"
    yield ""
    yield "  // Only with the preview feature partialIndexes. Without it Prisma leaves such indexes as they are."
    for name, (indexed, condition) in _indexes(added).items():
        where = f'raw("{_as_postgresql_shows(condition)}")'
        yield f'  // @@index([{indexed}], map: "{name}", where: {where})'
    yield f'  @@map("{MODELS}")'
    if added.foreign_schema:
        yield f"  @@schema({_quoted(added.foreign_schema)})"
    yield "}"


def _sqlalchemy(added: Added, columns: Sequence[_Facts]) -> Iterator[str]:
    types = {
        "text": "Text()",
        "boolean": "Boolean()",
        "integer": "Integer()",
        "bigint": "BigInteger()",
        "timestamptz": "DateTime(timezone=True)",
    }
    yield "import sqlalchemy as sa"
    base = "DeclarativeBase, " if added.whole else ""
    yield f"from sqlalchemy.orm import {base}mapped_column"
    yield ""
    yield ""
    if added.whole:
        yield "class Base(DeclarativeBase):"
        yield "    pass"
        yield ""
        yield ""
    else:
        yield "# For the class that you have: the columns that it does not declare yet, and the indexes."
    yield "class Models(Base):"
    yield f'    __tablename__ = "{MODELS}"'
    yield "    __table_args__ = ("
    for name, (indexed, condition) in _indexes(added).items():
        yield f'        sa.Index("{name}", "{indexed}", postgresql_where=sa.text("{condition}")),'
    if added.foreign_schema:
        yield f'        {{"schema": {_quoted(added.foreign_schema)}}},'
    yield "    )"
    for column in columns:
        words = [f"sa.{types[column.kind]}"]
        words.append("primary_key=True" if column.key else f"nullable={not column.required}")
        if column.default is not None:
            words.append(f'server_default=sa.text("{column.default}")')
        yield f"    {column.name} = mapped_column({', '.join(words)})"


def _sql(added: Added, columns: Sequence[_Facts]) -> Iterator[str]:
    yield from _statements(
        added,
        {column.name: MODELS_COLUMNS[column.name].postgresql for column in columns},
        {real: INDEXES[name].postgresql for name, real in added.indexes.items()},
        "ADD COLUMN IF NOT EXISTS",
    )


def _statements(
    added: Added, columns: dict[str, str], indexes: dict[str, str], add: str
) -> Iterator[str]:
    if added.whole:
        yield f"CREATE TABLE IF NOT EXISTS {added.table} ("
        yield ",\n".join(f"    {name} {definition}" for name, definition in columns.items())
        yield ");"
    else:
        for name, definition in columns.items():
            yield f"ALTER TABLE {added.table} {add} {name} {definition};"
    for name, definition in indexes.items():
        yield f"CREATE INDEX IF NOT EXISTS {name} ON {added.table} {definition};"
