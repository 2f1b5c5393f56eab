"""Reads the system catalog of PostgreSQL: tables with their columns, functions and triggers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelctl.adoption.adoption import FoundColumn
from modelctl.schema.declared import MODELS, TABLES
from modelctl.schema.triggers import FUNCTIONS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelctl.schema.declared import DeclaredColumn

_KINDS = {
    "r": "table",
    "p": "table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "c": "composite type",
}


@dataclass(slots=True)
class Relation:
    """A table, or what else has its name. *oid* 0: it is not there yet, and will be created.

    *sql*: its name as SQL. *unique*: columns that are unique on their own. *indexes*: the names of the
    valid ones, by their definitions as `plain` writes them. Names of keys, rules and constraints are SQL.
    *typed*: made of a composite type. *numbers*: how many columns it has had.
    """

    oid: int
    schema: str
    name: str
    sql: str
    kind: str = "table"
    partition: bool = False
    partitioned: bool = False
    logged: bool = True
    key: str | None = None
    owner: str = ""
    owned: bool = True
    typed: bool = False
    numbers: int = 0
    parents: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    columns: dict[str, FoundColumn] = field(default_factory=dict)
    unique: set[str] = field(default_factory=set)
    indexes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def missing(cls, schema: str, name: str) -> Relation:
        """Return a table that will be created."""
        return cls(0, schema, name, f"{quote_name(schema)}.{name}")

    def create(self, columns: dict[str, DeclaredColumn]) -> str:
        """Return the statement that creates the table."""
        body = ", ".join(f"{name} {column.postgresql}" for name, column in columns.items())
        return f"CREATE TABLE {self.sql} ({body})"

    @property
    def shown(self) -> str:
        """Its name in a message."""
        return f"{self.schema}.{self.name}"


class SystemCatalog:
    """The application's table ``models``, the own tables in *schema*, and modelctl's triggers.

    *triggers*: each with its table, as SQL. *models* is None as long as it is not there.
    """

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self.schema = schema
        # If the role has set it to on, functions such as format_type write "text" in quotes.
        self.ask("SELECT set_config('quote_all_identifiers', 'off', true)")
        own = self._relations(
            "n.nspname = %s AND c.relname = ANY(%s)", schema, [*TABLES["postgresql"]]
        )
        self.own = {relation.name: relation for relation in own}
        found = self._relations("c.oid = to_regclass(%s)", MODELS)
        self.models = found[0] if found else None
        self.triggers = installed_triggers(connection, schema)

    def ask(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows of a query."""
        return list(self._connection.exec_driver_sql(sql, values))

    def names(self, schema: str) -> list[str]:
        """Return the names of tables, indexes and the like that are in use in a schema."""
        sql = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        return [row[0] for row in self.ask(f"{sql} WHERE n.nspname = %s", schema)]

    def search_path(self) -> str:
        """Return the search path as it is set."""
        return str(self.ask("SHOW search_path")[0][0])

    def _relations(self, condition: str, *values: Any) -> list[Relation]:
        found = self.ask(
            f"""
            SELECT c.oid, n.nspname, c.relname,
                quote_ident(n.nspname) || '.' || quote_ident(c.relname),
                c.relkind, c.relispartition, c.relkind = 'p', c.relpersistence = 'p',
                (SELECT quote_ident(k.conname) FROM pg_constraint k
                    WHERE k.conrelid = c.oid AND k.contype = 'p'),
                pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE'), c.reloftype <> 0, c.relnatts,
                ARRAY(SELECT CAST(CAST(i.inhparent AS regclass) AS text) FROM pg_inherits i
                    WHERE i.inhrelid = c.oid ORDER BY 1),
                ARRAY(SELECT CAST(CAST(i.inhrelid AS regclass) AS text) FROM pg_inherits i
                    WHERE i.inhparent = c.oid ORDER BY 1),
                ARRAY(SELECT quote_ident(r.rulename) FROM pg_rewrite r
                    WHERE r.ev_class = c.oid AND r.ev_type <> '1' ORDER BY 1),
                ARRAY(SELECT quote_ident(k.conname) FROM pg_constraint k
                    WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f', 'x') ORDER BY 1)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {condition}
            """,
            *values,
        )
        relations = {
            oid: Relation(oid, schema, name, sql, _KINDS.get(kind, "index"), *rest)
            for oid, schema, name, sql, kind, *rest in found
        }
        columns = self.ask(
            """
            SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod),
                format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL),
                a.attnotnull OR t.typnotnull, a.attgenerated <> '' OR a.attidentity = 'a',
                a.attnum,
                pg_get_expr(d.adbin, d.adrelid), a.attidentity <> ''
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum
            """,
            [*relations],
        )
        for oid, name, *column in columns:
            relations[oid].columns[name] = FoundColumn(*column)
        # ON CONFLICT cannot use a deferrable constraint, and a partial index covers only some rows.
        indexes = self.ask(
            """
            SELECT i.indrelid, c.relname, pg_get_indexdef(i.indexrelid), (
                SELECT a.attname FROM pg_attribute a
                WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND i.indnkeyatts = 1
                    AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
            )
            FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = ANY(%s) AND i.indisvalid ORDER BY c.relname
            """,
            [*relations],
        )
        for oid, name, definition, unique in indexes:
            relations[oid].indexes.setdefault(plain_index(definition), name)
            if unique:
                relations[oid].unique.add(unique)
        return [*relations.values()]


def installed_triggers(connection: Connection, schema: str) -> list[tuple[str, str]]:
    """Return the triggers that execute a function of *schema*: each with its table, as SQL."""
    found = connection.exec_driver_sql(
        """
        SELECT quote_ident(t.tgname), quote_ident(n.nspname) || '.' || quote_ident(c.relname)
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace f ON f.oid = p.pronamespace
        WHERE f.nspname = %s AND p.proname = ANY(%s) AND t.tgparentid = 0
        ORDER BY 2, 1
        """,
        (schema, [*FUNCTIONS]),
    )
    return [(row[0], row[1]) for row in found]


def quote_name(name: str) -> str:
    """Return *name* as SQL."""
    return '"' + name.replace('"', '""') + '"'


def in_words(name: str) -> str:
    """Return *name* for a message that shows SQL: in quotes if it needs them."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else quote_name(name)


def plain_index(definition: str) -> str:
    """Return what follows the table in the definition of an index, as `plain` writes it."""
    return plain(definition[definition.index(" USING ") :])


def plain(definition: str) -> str:
    """Remove what the catalogue writes differently: parentheses, quotes, case, the usual index."""
    words = re.sub(r"[()']", "", definition.lower().replace("using btree", ""))
    return re.sub(r"\s*=\s*", "=", " ".join(words.split()))
