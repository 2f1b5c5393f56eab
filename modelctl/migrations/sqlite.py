"""SQLite: the plan that brings the schema of a file to what is declared."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from modelctl.adoption import adoption
from modelctl.adoption.adoption import free_name
from modelctl.migrations.plan import Plan, listed
from modelctl.schema.declared import (
    CACHE,
    EMPTIED_TEXTS,
    INDEXES,
    MODELS,
    MODELS_COLUMNS,
    STATE,
    TABLES,
    VERSION,
)
from modelctl.schema.triggers import SQLITE, emptying

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from modelctl.schema.declared import DeclaredColumn

_OWN_TABLES = TABLES["sqlite"]


def plan(connection: Connection) -> Plan:
    """Compare the file with the declaration."""
    return _Comparison(connection).compare()


def stored_note(connection: Connection, columns: Collection[str]) -> adoption.Note | None:
    """Return what earlier upgrades noted; *columns*: those of the table modelctl_state."""
    if not {"name", "value"} <= {*columns}:
        return None
    sql = f"SELECT value FROM {STATE} WHERE name = '{adoption.NOTE}'"
    return adoption.Note.read(connection.exec_driver_sql(sql).scalar())


def installed_on(connection: Connection) -> list[tuple[str, str]]:
    """Return modelctl's triggers, each with its table."""
    names = ", ".join(f"'{name}'" for name in SQLITE)
    sql = f"SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name IN ({names})"
    return [(row[0], row[1]) for row in connection.exec_driver_sql(sql)]


class _Comparison:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._plan = Plan()
        # Names are case-insensitive, and a trigger may have the name of a table.
        self._things: dict[str, tuple[str, str]] = {}
        self._triggers_there: dict[str, tuple[str, str]] = {}
        self._indexes_there: dict[str, dict[str, str]] = {}
        sql = "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"
        for kind, name, table, definition in connection.exec_driver_sql(sql):
            if kind == "trigger":
                self._triggers_there[name.lower()] = (table.lower(), definition)
                continue
            virtual = definition[:14].upper() == "CREATE VIRTUAL"
            self._things[name.lower()] = ("virtual table" if virtual else kind, definition)
            if kind == "index":
                there = self._indexes_there.setdefault(table.lower(), {})
                there.setdefault(plain_index(definition), name.lower())

    def _ask(self, sql: str) -> list[Any]:
        return list(self._connection.exec_driver_sql(sql))

    def compare(self) -> Plan:
        plan = self._plan
        plan.triggers = dict.fromkeys(SQLITE, False)
        plan.installed = any(name in self._things for name in _OWN_TABLES)
        if self._kind(VERSION) == "table" and "version_num" in self._columns(VERSION):
            found = self._ask(f"SELECT version_num FROM {VERSION} ORDER BY version_num DESC")
            plan.versions = [str(row[0]) for row in found]
        self._models()
        plan.on_models = len(plan.steps)
        if plan.obstacles:
            return plan
        for name, columns in _OWN_TABLES.items():
            self._own_table(name, columns)
        self._indexes()
        self._triggers()
        plan.add_version(VERSION)
        return plan

    def _kind(self, name: str) -> str | None:
        return self._things[name][0] if name in self._things else None

    def _columns(self, table: str) -> dict[str, Any]:
        rows = self._ask(f"PRAGMA main.table_xinfo('{table}')")
        return {row[1].lower(): row for row in rows}

    def _models(self) -> None:
        """Compare the application's table."""
        plan, kind = self._plan, self._kind(MODELS)
        plan.indexes, created = adoption.names_of_indexes(
            declared_indexes(), self._indexes_there.get(MODELS, {}), self._things
        )
        if kind is None:
            elsewhere = sorted({table for _, table in installed_on(self._connection)})
            if elsewhere:
                plan.obstruct(
                    f"there is no table models, and modelctl's triggers are on"
                    f" {', '.join(elsewhere)}: give the table its name back"
                )
            plan.add("there is no table models", _create(MODELS, MODELS_COLUMNS))
            plan.note = adoption.Note(True, (), False, created).written()
            return
        plan.table = MODELS
        if not plan.is_table(MODELS, kind):
            return
        columns = self._columns(MODELS)
        found = {
            name: adoption.FoundColumn(declared, declared, bool(required), hidden in (2, 3))
            for name, (_, _, declared, required, _, _, hidden) in columns.items()
        }
        plan.obstruct(*adoption.problems(MODELS, found, self._unique(columns), "sqlite"))
        if not plan.installed:
            foreign = sorted(name for name in self._triggers_there if name in SQLITE)
            plan.obstruct(
                *(f"the trigger {name} belongs to another program: rename it" for name in foreign)
            )
        plan.width = len(columns)
        missing = [name for name in MODELS_COLUMNS if name not in columns]
        note = adoption.next_note(
            stored_note(self._connection, self._columns(STATE)),
            missing,
            created,
            installed=plan.installed,
            watched=any(table == MODELS for table, _ in self._triggers_there.values()),
            schema=False,
        )
        plan.note = note.written() if note else None
        if plan.obstacles or not missing:
            return
        words = f"models has no {listed('column', missing)}"
        statements = [
            f"ALTER TABLE models ADD COLUMN {name} {self._literal(MODELS_COLUMNS[name].sqlite)}"
            for name in missing
        ]
        if "active" in missing:
            off = adoption.rows_off(self._renamed_active(columns), plan.installed, columns)
            if off:
                words += f" ({off.words})"
                statements.append(f"UPDATE models SET active = 0 WHERE {off.condition}")
        plan.add(words, *statements)

    def _literal(self, definition: str) -> str:
        # SQLite cannot add a column with a computed default, so the default becomes the present time.
        # A STRICT table accepts only INTEGER and TEXT.
        now = re.search(r"\(strftime.*\)", definition)
        if now:
            text = self._ask(f"SELECT {now[0]}")[0][0]
            definition = definition.replace(now[0], f"'{text}'")
        return definition.replace("BOOLEAN", "INTEGER")

    def _renamed_active(self, columns: dict[str, Any]) -> tuple[str, str] | None:
        """Return the column that ``active`` was renamed to, as text and as SQL: a trigger names it."""
        definition = self._triggers_there.get("modelctl_enabled", ("", ""))[1]
        renamed = re.search(r'UPDATE OF ("(?:[^"]|"")+"|\w+) ON', definition, re.IGNORECASE)
        if renamed and renamed[1].strip('"').replace('""', '"').lower() in columns:
            return renamed[1].strip('"'), renamed[1]
        return None

    def _unique(self, columns: dict[str, Any]) -> set[str]:
        """Return the columns of models that are unique on their own."""
        keys = [[name for name, row in columns.items() if row[5]]]
        for _, index, unique, _, partial in self._ask("PRAGMA main.index_list('models')"):
            if unique and not partial:
                quoted = index.replace("'", "''")
                members = self._ask(f"PRAGMA main.index_info('{quoted}')")
                keys.append([(name or "").lower() for _, _, name in members])
        return {key[0] for key in keys if len(key) == 1}

    def _own_table(self, table: str, columns: dict[str, DeclaredColumn]) -> None:
        plan, kind = self._plan, self._kind(table)
        create = _create(table, columns)
        if kind is None:
            plan.add(f"there is no table {table}", create)
            return
        if not plan.is_table(table, kind):
            return
        there = self._columns(table)
        missing = [name for name in columns if name not in there]
        keys = [name for name, column in columns.items() if "PRIMARY KEY" in column.sqlite]
        keyless = [name for name in keys if name not in there or not there[name][5]]
        if table == CACHE and (missing or keyless):
            plan.add(f"{table} is not as declared", f"DROP TABLE {table}", create)
            return
        if keyless:
            plan.obstruct(f"{table} has no primary key {keyless[0]}: rename or drop it")
            return
        for name in missing:
            definition = self._literal(columns[name].sqlite)
            if "NOT NULL" in definition and "DEFAULT" not in definition:
                definition += " DEFAULT ''"
            add = f"ALTER TABLE {table} ADD COLUMN {name} {definition}"
            plan.add(f"{table} has no column {name}", add)
        for name, (_, _, _, required, default, key, _) in there.items():
            if required and default is None and not key and name not in columns:
                plan.obstruct(
                    f"{table} has a column {name} of another program, which is NOT NULL and has no"
                    " default: drop it"
                )

    def _indexes(self) -> None:
        for name, index in INDEXES.items():
            there = self._indexes_there.get(index.table, {})
            if not index.sqlite or _plain(index.sqlite) in there:
                continue
            free = free_name(name, self._things)
            create = f"CREATE INDEX {free} ON {index.table} {index.sqlite}"
            self._plan.add(f"{index.table} has no index {name}", create)

    def _triggers(self) -> None:
        different: dict[str, list[str]] = {}
        statements: list[str] = []
        columns = self._columns(MODELS)
        never_null = [name for name in EMPTIED_TEXTS if name in columns and columns[name][3]]
        for name, definition in SQLITE.items():
            create = f"CREATE TRIGGER {name} {emptying(definition, never_null)}"
            table, found = self._triggers_there.get(name, ("", ""))
            there = found and table == MODELS
            if there and _plain(found) == _plain(create):
                self._plan.triggers[name] = True
                continue
            different.setdefault("not as declared" if there else "missing", []).append(name)
            statements += [f"DROP TRIGGER IF EXISTS {name}", create]
        if different:
            self._plan.add_triggers(MODELS, different, statements)


def _create(table: str, columns: dict[str, DeclaredColumn]) -> str:
    body = ", ".join(f"{name} {column.sqlite}" for name, column in columns.items())
    return f"CREATE TABLE {table} ({body})"


def declared_indexes() -> dict[str, str]:
    """Return the definitions of the declared indexes on ``models``, by name."""
    return adoption.declared_indexes(lambda index: _plain(index.sqlite))


def plain_index(definition: str) -> str:
    """Return what follows the table in the definition of an index."""
    return _plain(re.sub(r'^.*?\sON\s+("(?:[^"]|"")*"|\w+)', "", definition, flags=re.I | re.S))


def _plain(definition: str) -> str:
    """Remove from a definition what SQLite writes differently after a table was renamed."""
    return " ".join(re.sub('["()]', " ", definition.lower()).split())
