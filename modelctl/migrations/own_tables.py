"""modelctl's own tables on PostgreSQL: creating them, and repairing their columns and keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelctl.adoption.system_catalog import Relation, quote_name
from modelctl.migrations.plan import listed
from modelctl.schema.declared import OUTBOX, TABLES

if TYPE_CHECKING:
    from modelctl.adoption.adoption import FoundColumn
    from modelctl.adoption.system_catalog import SystemCatalog
    from modelctl.migrations.plan import Plan
    from modelctl.schema.declared import DeclaredColumn

# How the catalogue writes the types of the declaration.
_TYPES = {"timestamptz": "timestamp with time zone", "varchar(32)": "character varying(32)"}


def compare(plan: Plan, catalogue: SystemCatalog) -> None:
    """Compare the own tables with the declaration; add those that will be created to *catalogue*."""
    schema = catalogue.schema
    if not catalogue.ask("SELECT FROM pg_namespace WHERE nspname = %s", schema):
        # Not always with IF NOT EXISTS: that needs the right to create a schema even if it exists.
        plan.add(f"there is no schema {schema}", f"CREATE SCHEMA {quote_name(schema)}")
    create: dict[str, str] = {}
    for name, columns in TABLES["postgresql"].items():
        table = catalogue.own.get(name)
        if table is None:
            table = catalogue.own[name] = Relation.missing(schema, name)
            create[name] = table.create(columns)
        elif plan.is_table(table.shown, table.kind):
            for words, statements in _repairs(table, columns, catalogue):
                plan.add(words, *statements)
    if create:
        plan.add(f"the schema {schema} has no {listed('table', [*create])}", *create.values())


Repair = tuple[str, list[str]]  # a difference in words, and the statements that repair it


def _repairs(
    table: Relation, columns: dict[str, DeclaredColumn], catalogue: SystemCatalog
) -> list[Repair]:
    """Return the repairs of a table that is there."""
    repairs: list[Repair] = []
    if not table.logged:
        words = f"{table.shown} is unlogged, so that a crash would empty it"
        repairs.append((words, [f"ALTER TABLE {table.sql} SET LOGGED"]))
    for name, column in columns.items():
        repairs += _column_repairs(table, name, column, catalogue)
    repairs += _foreign_parts(table, columns)
    if repairs and table.name == OUTBOX:
        # A row of the outbox only means that an invalidation is due, and every repair queues one.
        repairs[0][1].insert(0, f"TRUNCATE {table.sql}")
    return repairs


def _foreign_parts(table: Relation, columns: dict[str, DeclaredColumn]) -> list[Repair]:
    """Drop the NOT NULLs, rules and constraints of other programs, which reject or change our rows."""
    alter = f"ALTER TABLE {table.sql}"
    required = [
        name
        for name, found in table.columns.items()
        if name not in columns
        and found.required
        and not (found.default or found.identity or found.generated)
    ]
    parts = [
        *(
            (
                f"column {name} of another program, NOT NULL and without a default",
                f"{alter} ALTER COLUMN {quote_name(name)} DROP NOT NULL",
            )
            for name in required
        ),
        *(
            (f"rule {rule} of another program", f"DROP RULE {rule} ON {table.sql}")
            for rule in table.rules
        ),
        *(
            (f"constraint {name} of another program", f"{alter} DROP CONSTRAINT {name}")
            for name in table.constraints
        ),
    ]
    return [(f"{table.shown} has a {part}", [statement]) for part, statement in parts]


def _column_repairs(
    table: Relation, name: str, column: DeclaredColumn, catalogue: SystemCatalog
) -> list[Repair]:
    found = table.columns.get(name)
    no_key = "PRIMARY KEY" in column.postgresql and name not in table.unique
    drop_key = [f"ALTER TABLE {table.sql} DROP CONSTRAINT {table.key}"] if table.key else []
    if found is None:
        add = _add_column(table, name, column)
        return [(f"{table.shown} has no column {name}", [*drop_key, *add] if no_key else add)]
    repairs: list[Repair] = []
    wrong, statements = _mend_column(table, name, column, found)
    if found.identity and not wrong and _numbers_wrongly(table, name, catalogue):
        wrong, statements = ["numbers rows wrongly"], _number_rows(table, name)
    if wrong:
        words = f"the column {name} of {table.shown} {' and '.join(wrong)}"
        repairs.append((words, statements))
    if no_key:
        words = f"{table.shown} has no primary key {name}"
        repairs.append((words, [*drop_key, *_make_key(table, name)]))
    return repairs


def _add_column(table: Relation, name: str, column: DeclaredColumn) -> list[str]:
    """Add a column to a table that may have rows."""
    definition = column.postgresql
    add = f"ALTER TABLE {table.sql} ADD COLUMN {name} {definition}"
    if "IDENTITY" in definition or " DEFAULT " in definition:
        return [add]
    if "PRIMARY KEY" in definition:  # rows without a key are of no use
        return [f"DELETE FROM {table.sql}", add]
    if " NOT " not in definition:
        return [add]
    drop_default = f"ALTER TABLE {table.sql} ALTER COLUMN {name} DROP DEFAULT"
    return [f"{add} DEFAULT {column.filler}", drop_default]


def _mend_column(
    table: Relation, name: str, column: DeclaredColumn, found: FoundColumn
) -> tuple[list[str], list[str]]:
    """Return what is wrong with a column, in words, and the statements that repair it."""
    definition = column.postgresql
    type_ = re.split(" NOT NULL| GENERATED| PRIMARY| DEFAULT", definition)[0]
    default = definition.partition(" DEFAULT ")[2] or None
    identity = "IDENTITY" in definition
    required = "NOT NULL" in definition or "PRIMARY KEY" in definition
    alter = f"ALTER TABLE {table.sql} ALTER COLUMN {name}"
    wrong: list[str] = []
    statements: list[str] = []
    retyped = found.declared != _TYPES.get(type_, type_)
    if retyped:
        wrong.append(f"is {found.declared}, not {type_}")
        statements += [f"{alter} DROP IDENTITY IF EXISTS", f"{alter} DROP DEFAULT"]
        # There may be no cast between the types; the outbox is empty at this point.
        value = "NULL" if table.name == OUTBOX else name
        statements.append(f"{alter} TYPE {type_} USING CAST({value} AS {type_})")
    if found.required and not required:
        wrong.append("is NOT NULL")
        statements.append(f"{alter} DROP NOT NULL")
    if identity and (retyped or not found.identity):
        if not found.identity:
            wrong.append("numbers no rows")
        statements += _number_rows(table, name)
    elif not identity and (retyped or found.default != default or found.identity):
        if found.identity or found.default != default:
            wrong.append("has another default" if found.default else "has no default")
            statements.append(f"{alter} DROP IDENTITY IF EXISTS")
        statements.append(f"{alter} {f'SET DEFAULT {default}' if default else 'DROP DEFAULT'}")
    if required and not found.required and not identity:
        wrong.append("is not NOT NULL")
        if "PRIMARY KEY" not in definition:
            filler = default or column.filler
            statements.append(f"UPDATE {table.sql} SET {name} = {filler} WHERE {name} IS NULL")
            statements.append(f"{alter} SET NOT NULL")
    return wrong, statements


def _numbers_wrongly(table: Relation, name: str, catalogue: SystemCatalog) -> bool:
    """Whether the next number of the column may be in use already, or none may be left."""
    found = catalogue.ask(
        """
        SELECT s.seqincrement = 1 AND s.seqmax = 9223372036854775807 AND NOT s.seqcycle,
            has_sequence_privilege(s.seqrelid, 'SELECT')
                AND has_table_privilege(d.refobjid, 'SELECT'),
            CAST(s.seqrelid AS bigint)
        FROM pg_depend d JOIN pg_sequence s ON s.seqrelid = d.objid
        WHERE d.refobjid = %s AND d.refobjsubid = %s AND d.deptype = 'i'
        """,
        table.oid,
        table.columns[name].number,
    )
    if not found or not found[0][0]:
        return True
    if not found[0][1]:  # this role may not read the numbers
        return False
    sql = (
        f"SELECT coalesce(pg_sequence_last_value(CAST({found[0][2]} AS oid)), 0)"
        f" < (SELECT coalesce(max({name}), 0) FROM {table.sql})"
    )
    return bool(catalogue.ask(sql)[0][0])


def _number_rows(table: Relation, name: str) -> list[str]:
    """Number the rows that have no number, and the next ones from the greatest number on."""
    alter = f"ALTER TABLE {table.sql} ALTER COLUMN {name}"
    return [
        f"{alter} DROP IDENTITY IF EXISTS",
        f"{alter} DROP DEFAULT",
        f"UPDATE {table.sql} t SET {name} = n.number FROM (SELECT ctid AS place,"
        f" row_number() OVER () + (SELECT coalesce(max({name}), 0) FROM {table.sql}) AS number"
        f" FROM {table.sql} WHERE {name} IS NULL) n WHERE t.ctid = n.place",
        f"{alter} SET NOT NULL",
        f"{alter} ADD GENERATED ALWAYS AS IDENTITY",
        f"SELECT setval(pg_get_serial_sequence('{table.sql}', '{name}'),"
        f" coalesce(max({name}), 1), max({name}) IS NOT NULL) FROM {table.sql}",
    ]


def _make_key(table: Relation, name: str) -> list[str]:
    return [
        f"DELETE FROM {table.sql} a USING {table.sql} b WHERE a.{name} = b.{name} AND a.ctid < b.ctid",
        f"DELETE FROM {table.sql} WHERE {name} IS NULL",
        f"ALTER TABLE {table.sql} ADD PRIMARY KEY ({name})",
    ]
