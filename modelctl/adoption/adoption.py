"""Adopting the table ``models`` of an application: whether its columns can be used."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from modelctl.schema.declared import INDEXES, MODELS, MODELS_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Mapping

    from modelctl.schema.declared import Index

# The types that can be used. SQLite derives a type from parts of its name, first of all from INT.
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
# The name of the note in modelctl_state.
NOTE = "adoption"
_NAMES = {"counter": "integer"}


class FoundColumn(NamedTuple):
    """A column that is there. The last three are known on PostgreSQL alone.

    *generated*: no statement may write it; also an identity that is GENERATED ALWAYS.
    *declared*: its type; *base*: the type without a length, or the one that a domain is made of.
    """

    declared: str
    base: str
    required: bool
    generated: bool
    number: int = 0
    default: str | None = None
    identity: bool = False


class Note(NamedTuple):
    """What modelctl has added, for `db uninstall`; it is stored in modelctl_state.

    *created*: the table itself. *columns*: those that were added to the table of an application.
    *schema*: the schema of the own tables. *indexes*: those that were created on the table; None: an
    earlier release did not note them.
    """

    created: bool
    columns: tuple[str, ...]
    schema: bool
    indexes: tuple[str, ...] | None = None

    @classmethod
    def read(cls, value: str | None) -> Note | None:
        """Return the note that is stored; None: there is none that can be read."""
        try:
            created, columns, schema, *more = json.loads(value or "")
            indexes = tuple(map(str, more[0])) if more and more[0] is not None else None
            return cls(bool(created), tuple(map(str, columns)), bool(schema), indexes)
        except (ValueError, TypeError):
            return None

    def written(self) -> str:
        """Return the note as it is stored."""
        return json.dumps(self)


def has_created(note: Note | None, index: str, *, as_declared: bool) -> bool:
    """Whether an upgrade has created an index on ``models``.

    If that was not noted: one that is *as_declared*, with a name that an upgrade gives.
    """
    if note is not None and note.indexes is not None:
        return index in note.indexes
    ours = [name for name, of in INDEXES.items() if of.table == MODELS]
    return as_declared and re.sub(r"_\d+$", "", index) in ours


def names_of_indexes(
    definitions: Mapping[str, str], there: Mapping[str, str], taken: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the indexes on ``models`` with their real names, and those that will be created.

    *definitions*: those of the declared indexes, by name. *there*: the indexes that are there, by
    definition. *taken*: names that are in use.
    """
    missing = {name: free_name(name, taken) for name, of in definitions.items() if of not in there}
    names = {name: missing.get(name) or there[of] for name, of in definitions.items()}
    return names, tuple(missing.values())


def free_name(name: str, taken: Container[str]) -> str:
    """Return *name*, with a number if something else has it already."""
    names = (name, *(f"{name}_{number}" for number in range(2, 1000)))
    return next(each for each in names if each not in taken)


def declared_indexes(definition: Callable[[Index], str]) -> dict[str, str]:
    """Return the definitions of the declared indexes on ``models``, by name."""
    return {name: definition(of) for name, of in INDEXES.items() if of.table == MODELS}


def next_note(
    before: Note | None,
    missing: Collection[str],
    indexes: Collection[str],
    *,
    installed: bool,
    watched: bool,
    schema: bool,
) -> Note | None:
    """Return the note after *missing* columns were added; None: what was there first is not known.

    *indexes*: those that will be created. *installed*: whether parts of modelctl are there;
    *watched*: whether its triggers are on the table. *schema*: whether the schema of the own tables
    is missing, too.
    """
    if before is None:
        return None if installed else Note(False, tuple(missing), schema, tuple(indexes))
    if missing and not watched:  # another table took the place of the one that the note is about
        return Note(False, tuple(missing), before.schema or schema, tuple(indexes))
    return before._replace(
        columns=_added(before.columns, missing),
        schema=before.schema or schema,
        indexes=None if before.indexes is None else _added(before.indexes, indexes),
    )


def _added(before: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*before, *names)))


class RowsOff(NamedTuple):
    """Which rows were off before the column ``active`` was lost, in words and as a condition."""

    words: str
    condition: str


def rows_off(
    renamed: tuple[str, str] | None, installed: bool, columns: Collection[str]
) -> RowsOff | None:
    """Return the rows that were off; None if all are active.

    *renamed*: the new name of the column, as text and as SQL, if that is known.
    """
    if renamed:
        name, sql = renamed
        return RowsOff(f"it is called {name} now; a new one takes its values", f"{sql} IS NOT TRUE")
    if installed and "auto_disabled" in columns and "disabled_at" in columns:
        return RowsOff(
            "what modelctl switched off stays off, all others are active",
            "auto_disabled IS TRUE OR disabled_at IS NOT NULL",
        )
    return None


def problems(
    table: str,
    columns: Mapping[str, FoundColumn],
    unique: Collection[str],
    database: str,
    table_sql: str = MODELS,
) -> list[str]:
    """Return the reasons why modelctl cannot use these columns.

    *table*: its name in words, *table_sql*: as SQL. *unique*: the columns that are unique on their own.
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
            # We do not widen it: that would rewrite the table, with all other programs waiting.
            found.append(
                f"{name} is smallint, and every outcome would fail at 32,767: ALTER TABLE"
                f" {table_sql} ALTER COLUMN {name} TYPE {wanted.postgresql.partition(' ')[0]}"
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
