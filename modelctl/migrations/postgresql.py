"""PostgreSQL: what is in the catalogue, against what is declared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelctl.migrations import adoption
from modelctl.migrations.declared import (
    EMPTIED_TEXTS,
    HEAD,
    INDEXES,
    MODELS,
    MODELS_COLUMNS,
    OUTBOX,
    TABLES,
    VERSION,
)
from modelctl.migrations.plan import Plan, are, numbered
from modelctl.migrations.triggers import FUNCTIONS, TRIGGERS, emptying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from modelctl.migrations.declared import Column

_OWN_TABLES = TABLES["postgresql"]
# How the catalogue writes the types of the declaration.
_TYPES = {"timestamptz": "timestamp with time zone", "varchar(32)": "character varying(32)"}
_KINDS = {
    "r": "table",
    "p": "table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "c": "composite type",
}


@dataclass(frozen=True, slots=True)
class _Column:
    number: int
    declared: str
    base: str
    required: bool
    generated: bool
    default: str | None
    identity: bool


@dataclass(slots=True)
class _Relation:
    oid: int
    schema: str
    name: str
    sql: str
    kind: str
    partition: bool
    partitioned: bool
    logged: bool
    # Of its primary key, as SQL.
    key: str | None
    owner: str
    owned: bool
    columns: dict[str, _Column] = field(default_factory=dict)
    # Columns that are unique on their own.
    unique: set[str] = field(default_factory=set)
    # Valid indexes, as `_plain` writes them.
    indexes: set[str] = field(default_factory=set)

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"


def plan(connection: Connection, schema: str) -> Plan:
    """Compare the catalogue with the declaration."""
    return _Comparison(connection, schema).compare()


def installed_on(connection: Connection, schema: str) -> list[tuple[str, str]]:
    """Return the triggers that execute a function of this schema: each with its table, as SQL."""
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


def detach(connection: Connection, schema: str) -> list[str]:
    """Drop triggers and functions; return what was dropped."""
    done = []
    for trigger, table in installed_on(connection, schema):
        connection.exec_driver_sql(
            f"DROP TRIGGER {trigger} ON {table}", execution_options={"no_parameters": True}
        )
        done.append(f"trigger {trigger} of {table}")
    functions = connection.exec_driver_sql(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = %s AND p.proname = ANY(%s) AND p.pronargs = 0 ORDER BY 1",
        (schema, [*FUNCTIONS]),
    )
    for (name,) in functions.all():
        connection.exec_driver_sql(f"DROP FUNCTION {_quoted(schema)}.{name}()")
        done.append(f"function {schema}.{name}()")
    return done


class _Comparison:
    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._plan = Plan()
        # A role may have it on, and then the catalogue's functions write "text".
        self._ask("SELECT set_config('quote_all_identifiers', 'off', true)")
        relations = _relations(
            connection,
            "n.nspname = %s AND c.relname = ANY(%s)",
            (
                schema,
                [*_OWN_TABLES],
            ),
        )
        self._own = {relation.name: relation for relation in relations}
        found = _relations(connection, "c.oid = to_regclass('models')", ())
        self._models = found[0] if found else None
        self._installed = installed_on(connection, schema)
        self._touches_models = False
        self._new_in = ""  # the schema in which models is to be made

    def _ask(self, sql: str, *values: Any) -> list[Any]:
        return list(self._connection.exec_driver_sql(sql, values))

    def compare(self) -> Plan:
        plan = self._plan
        plan.triggers = dict.fromkeys(TRIGGERS, False)
        plan.installed = bool(self._own)
        plan.current = self._version()
        table = self._table()
        plan.on_models = len(plan.steps)
        if plan.obstacles:
            return plan
        self._own_tables()
        self._indexes(table)
        self._functions()
        self._triggers(table)
        if plan.current != HEAD or self._versions > 1:
            version = f"{_quoted(self._schema)}.{VERSION}"
            plan.add(
                f"the record of the revision is {plan.current or 'missing'}, not {HEAD}",
                f"DELETE FROM {version}",
                f"INSERT INTO {version} (version_num) VALUES ('{HEAD}')",
            )
        if self._models and self._touches_models:
            # In the order in which changes lock them, and once: a lock that grows can deadlock.
            plan.lock = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
        if plan.steps:
            self._rights()
        return plan

    def _version(self) -> str | None:
        self._versions = 0
        there = self._own.get(VERSION)
        if there is None or there.kind != "table" or "version_num" not in there.columns:
            return None
        found = self._ask(f"SELECT version_num FROM {there.sql} ORDER BY version_num DESC")
        self._versions = len(found)
        return found[0][0] if found else None

    # ── The application's table ──

    def _table(self) -> str:
        """Compare ``models``; return its name in SQL."""
        plan, relation = self._plan, self._models
        if relation is None:
            return self._new_table()
        plan.table = relation.shown
        plan.obstruct(*self._unusable(relation))
        self._moved(relation)
        if plan.obstacles:
            return relation.sql
        missing = [name for name in MODELS_COLUMNS if name not in relation.columns]
        if missing:
            was = self._was_active(relation) if "active" in missing else None
            added = ", ".join(
                f"ADD COLUMN {name} {MODELS_COLUMNS[name].postgresql}" for name in missing
            )
            words = f"{relation.shown} has no {numbered('column', missing)}"
            statements = [f"ALTER TABLE {relation.sql} {added}"]
            if was:
                words += f" ({was[0]})"
                statements.append(f"UPDATE {relation.sql} SET active = false WHERE {was[1]}")
            plan.add(words, *statements)
            self._touches_models = True
        return relation.sql

    def _new_table(self) -> str:
        """Where ``models`` is to be made."""
        elsewhere = sorted({table for _, table in self._installed})
        path = self._ask("SHOW search_path")[0][0]
        if elsewhere:
            self._plan.obstruct(
                f"there is no table models in the search path ({path}), and modelctl's triggers are"
                f" on {', '.join(elsewhere)}: name the schema of that table in database.url"
                " (?options=-csearch_path%3DNAME), or give the table its name back"
            )
            return MODELS
        # Not into the schema of the own tables, which "$user" may find.
        where = self._ask(
            "SELECT s FROM unnest(current_schemas(false)) s WHERE s <> %s", self._schema
        )
        if not where:
            self._plan.obstruct(f"the search path ({path}) has no schema for the table models")
            return MODELS
        schema = self._new_in = where[0][0]
        table = f"{_quoted(schema)}.{MODELS}"
        body = ", ".join(f"{name} {c.postgresql}" for name, c in MODELS_COLUMNS.items())
        self._plan.add(f"there is no table {schema}.models", f"CREATE TABLE {table} ({body})")
        return table

    def _moved(self, relation: _Relation) -> None:
        """Take the triggers off a table that was ``models`` before."""
        found = [each for each in self._installed if each[1] != relation.sql]
        same = sorted({table for _, table in found if table.rpartition(".")[2] == MODELS})
        if same:
            path = self._ask("SHOW search_path")[0][0]
            self._plan.obstruct(
                f"modelctl's triggers are on {', '.join(same)}, and the search path ({path}) finds"
                f" {relation.shown}: name the schema of the right table in database.url"
                " (?options=-csearch_path%3DNAME), or run modelctl db detach first"
            )
        elif found:
            tables = sorted({table for _, table in found})
            self._plan.add(
                f"modelctl's triggers are on {', '.join(tables)}, which is not models",
                *(f"DROP TRIGGER {trigger} ON {table}" for trigger, table in found),
            )

    def _unusable(self, relation: _Relation) -> list[str]:
        """Why ``models`` cannot be used."""
        if relation.kind != "table":
            return [
                f"{relation.shown} is a {relation.kind}, and modelctl needs a table of that name"
            ]
        shown = relation.shown
        problems = []
        if relation.partition:
            problems.append(
                f"{shown} is a partition: statements on the table above it fire none of its triggers"
            )
        else:
            parents = self._related("inhparent", "inhrelid", relation)
            if parents:
                problems.append(
                    f"{shown} inherits from {parents}: statements on that table fire none of its"
                    " triggers"
                )
        children = "" if relation.partitioned else self._related("inhrelid", "inhparent", relation)
        if children:
            problems.append(
                f"{shown} has tables that inherit from it ({children}): its triggers do not reach"
                " their rows, and the same id can be there twice"
            )
        rules = self._ask(
            "SELECT rulename FROM pg_rewrite WHERE ev_class = %s AND ev_type <> '1' ORDER BY 1",
            relation.oid,
        )
        if rules:
            problems.append(
                f"{shown} has {numbered('rule', [row[0] for row in rules])}: a rule changes or"
                " suppresses statements before a trigger sees them; use a trigger instead"
            )
        problems += adoption.problems(
            shown,
            {
                name: adoption.Column(c.declared, c.base, c.required, c.generated)
                for name, c in relation.columns.items()
            },
            relation.unique,
            "postgresql",
        )
        problems += self._of_another_fleet(relation)
        return problems

    def _related(self, wanted: str, given: str, relation: _Relation) -> str:
        sql = f"SELECT CAST({wanted} AS regclass)::text FROM pg_inherits WHERE {given} = %s ORDER BY 1"
        return ", ".join(row[0] for row in self._ask(sql, relation.oid))

    def _of_another_fleet(self, relation: _Relation) -> list[str]:
        found = self._ask(
            """
            SELECT DISTINCT n.nspname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            JOIN pg_namespace n ON n.oid = p.pronamespace
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = %s
            WHERE t.tgrelid = %s AND n.nspname <> %s AND p.proname = ANY(%s)
            """,
            OUTBOX,
            relation.oid,
            self._schema,
            [*FUNCTIONS],
        )
        return [
            f"{relation.shown} belongs to the fleet whose tables are in the schema {schema}: set"
            f' database.schema = "{schema}", or run modelctl db detach with that setting first'
            for (schema,) in found
        ]

    def _was_active(self, relation: _Relation) -> tuple[str, str] | None:
        """In words and in SQL: which rows were off before the column ``active`` was gone."""
        renamed = self._ask(
            """
            SELECT DISTINCT a.attname, quote_ident(a.attname)
            FROM pg_trigger t JOIN pg_depend d ON d.classid = CAST('pg_trigger' AS regclass)
                AND d.objid = t.oid AND d.refobjid = t.tgrelid AND d.refobjsubid > 0
            JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = d.refobjsubid
            WHERE t.tgrelid = %s AND t.tgname IN ('modelctl_enabled', 'modelctl_disabled')
                AND a.atttypid = CAST('boolean' AS regtype)
            """,
            relation.oid,
        )
        if len(renamed) == 1:
            name, quoted = renamed[0]
            return f"it is called {name} now; a new one takes its values", f"{quoted} IS NOT TRUE"
        if self._own and {"auto_disabled", "disabled_at"} <= relation.columns.keys():
            off = "auto_disabled IS TRUE OR disabled_at IS NOT NULL"
            return "what modelctl switched off stays off, all others are active", off
        return None

    # ── The own tables ──

    def _own_tables(self) -> None:
        if not self._ask("SELECT FROM pg_namespace WHERE nspname = %s", self._schema):
            # IF NOT EXISTS would ask for the right to create one even where it is there.
            self._plan.add(
                f"there is no schema {self._schema}", f"CREATE SCHEMA {_quoted(self._schema)}"
            )
        missing = []
        create = []
        for name, columns in _OWN_TABLES.items():
            if name in self._own:
                self._own_table(self._own[name], columns)
                continue
            body = ", ".join(f"{column} {c.postgresql}" for column, c in columns.items())
            missing.append(name)
            create.append(f"CREATE TABLE {_quoted(self._schema)}.{name} ({body})")
        if missing:
            words = f"the schema {self._schema} has no {numbered('table', missing)}"
            self._plan.add(words, *create)

    def _own_table(self, relation: _Relation, columns: dict[str, Column]) -> None:
        plan, shown, table = self._plan, relation.shown, relation.sql
        if relation.kind != "table":
            plan.obstruct(f"{shown} is a {relation.kind}, and modelctl needs a table of that name")
            return
        steps: list[tuple[str, list[str]]] = []
        if not relation.logged:
            words = f"{shown} is unlogged, so that a crash would empty it"
            steps.append((words, [f"ALTER TABLE {table} SET LOGGED"]))
        for name, column in columns.items():
            found = relation.columns.get(name)
            key = "PRIMARY KEY" in column.postgresql and name not in relation.unique
            drop_key = f"ALTER TABLE {table} DROP CONSTRAINT {relation.key}"
            free = [drop_key] if key and relation.key else []
            if found is None:
                words = f"{shown} has no column {name}"
                steps.append((words, [*free, *_added(table, name, column)]))
                continue
            wrong, statements = _mended(table, name, column, found)
            if found.identity and not wrong and self._counts_wrong(relation, name):
                wrong, statements = ["numbers rows wrongly"], _numbering(table, name)
            if wrong:
                steps.append((f"the column {name} of {shown} {' and '.join(wrong)}", statements))
            if key:
                steps.append((f"{shown} has no primary key {name}", [*free, *_keyed(table, name)]))
        for name, found in relation.columns.items():
            odd = found.required and not (found.default or found.identity or found.generated)
            if name not in columns and odd:
                words = (
                    f"{shown} has a column {name} of somebody else, NOT NULL and without a default"
                )
                drop = f"ALTER TABLE {table} ALTER COLUMN {_quoted(name)} DROP NOT NULL"
                steps.append((words, [drop]))
        for words, statement in self._in_the_way(relation):
            steps.append((f"{shown} has a {words} of somebody else", [statement]))
        if steps and relation.name == OUTBOX:
            # All that its rows say is that an invalidation is due, and every repair says so too.
            steps[0][1].insert(0, f"TRUNCATE {table}")
        for words, statements in steps:
            plan.add(words, *statements)

    def _in_the_way(self, relation: _Relation) -> list[tuple[str, str]]:
        """What keeps rows out of an own table, or keeps them in it; each with its removal."""
        rules = "SELECT quote_ident(rulename) FROM pg_rewrite WHERE ev_class = %s ORDER BY 1"
        constraints = (
            "SELECT quote_ident(conname) FROM pg_constraint"
            " WHERE conrelid = %s AND contype IN ('c', 'f', 'x') ORDER BY 1"
        )
        return [
            *(
                (f"rule {name}", f"DROP RULE {name} ON {relation.sql}")
                for (name,) in self._ask(rules, relation.oid)
            ),
            *(
                (f"constraint {name}", f"ALTER TABLE {relation.sql} DROP CONSTRAINT {name}")
                for (name,) in self._ask(constraints, relation.oid)
            ),
        ]

    def _counts_wrong(self, relation: _Relation, name: str) -> bool:
        """Whether a number that the column gives next may be there already, or none may be left."""
        found = self._ask(
            """
            SELECT s.seqincrement = 1 AND s.seqmax = 9223372036854775807 AND NOT s.seqcycle,
                has_sequence_privilege(s.seqrelid, 'SELECT')
                    AND has_table_privilege(d.refobjid, 'SELECT'),
                CAST(s.seqrelid AS bigint)
            FROM pg_depend d JOIN pg_sequence s ON s.seqrelid = d.objid
            WHERE d.refobjid = %s AND d.refobjsubid = %s AND d.deptype = 'i'
            """,
            relation.oid,
            relation.columns[name].number,
        )
        if not found or not found[0][0]:
            return True
        if not found[0][1]:  # this role cannot look
            return False
        sql = (
            f"SELECT coalesce(pg_sequence_last_value(CAST({found[0][2]} AS oid)), 0)"
            f" < (SELECT coalesce(max({name}), 0) FROM {relation.sql})"
        )
        return bool(self._ask(sql)[0][0])

    # ── Indexes, functions, triggers ──

    def _indexes(self, table: str) -> None:
        for name, index in INDEXES.items():
            if not index.postgresql:
                continue
            on_models = index.table == MODELS
            relation = self._models if on_models else self._own.get(index.table)
            if relation and _plain(index.postgresql) in relation.indexes:
                continue
            where = table if on_models else f"{_quoted(self._schema)}.{index.table}"
            schema = relation.schema if relation else self._schema
            if on_models and not relation:
                schema = self._new_in
            free = self._free_name(schema, name)
            words = f"{relation.shown if relation else index.table} has no index {name}"
            self._plan.add(words, f"CREATE INDEX {free} ON {where} {index.postgresql}")

    def _free_name(self, schema: str, name: str) -> str:
        """Return *name*, with a number where something else has it: a table that was swapped, say."""
        taken = "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        found = {row[0] for row in self._ask(f"{taken} WHERE n.nspname = %s", schema)}
        names = (name, *(f"{name}_{number}" for number in range(2, 1000)))
        return next(each for each in names if each not in found)

    def _functions(self) -> None:
        found = {
            row[0]: row[1:]
            for row in self._ask(
                """
                SELECT p.proname, p.prosrc, l.lanname, p.prosecdef, p.proconfig,
                    p.prorettype = CAST('trigger' AS regtype),
                    EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                        WHERE a.grantee = 0),
                    quote_ident(pg_get_userbyid(p.proowner)), has_schema_privilege(p.proowner, n.oid, 'USAGE')
                        AND has_table_privilege(p.proowner, CAST(%s AS oid), 'INSERT') IS NOT FALSE
                FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                JOIN pg_language l ON l.oid = p.prolang
                WHERE n.nspname = %s AND p.proname = ANY(%s) AND p.pronargs = 0
                """,
                self._own[OUTBOX].oid if OUTBOX in self._own else 0,
                self._schema,
                [*FUNCTIONS],
            )
        }
        for name, function in FUNCTIONS.items():
            shown = f"{self._schema}.{name}()"
            body = emptying(function.body, self._never_null())
            well = (body, "plpgsql", function.definer, [*function.settings], True, False)
            if name in found and not found[name][4]:
                self._plan.obstruct(f"{shown} is a function of somebody else: drop it")
                continue
            if tuple(found.get(name, ())[:6]) != well:
                what = "is not as it must be" if name in found else "is missing"
                self._plan.add(f"the function {shown} {what}", *_function(self._schema, name, body))
            if function.definer and name in found and not found[name][7]:
                owner, schema = found[name][6], _quoted(self._schema)
                self._plan.add(
                    f"{owner}, the owner of the function {shown}, may not write {OUTBOX}",
                    f"GRANT USAGE ON SCHEMA {schema} TO {owner}",
                    f"GRANT INSERT ON {schema}.{OUTBOX} TO {owner}",
                )

    def _never_null(self) -> list[str]:
        columns = self._models.columns if self._models else {}
        return [name for name in EMPTIED_TEXTS if name in columns and columns[name].required]

    def _triggers(self, table: str) -> None:
        here = self._models.sql if self._models else table
        found = {
            row[0]: row[1:]
            for row in self._ask(
                """
                SELECT t.tgname, t.tgenabled, p.proname, n.nspname, pg_get_triggerdef(t.oid)
                FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE t.tgrelid = CAST(%s AS oid) AND t.tgname = ANY(%s)
                """,
                self._models.oid if self._models else 0,
                [*TRIGGERS],
            )
        }
        missing: list[str] = []
        changed: list[str] = []
        silent: list[str] = []
        statements: list[str] = []
        for name, trigger in TRIGGERS.items():
            always = f"ALTER TABLE {here} ENABLE ALWAYS TRIGGER {name}"
            if name in found:
                enabled, function, schema, definition = found[name]
                well = _plain(f"{trigger.event} ON models {trigger.how}")
                executed = (function, schema) == (trigger.function, self._schema)
                if executed and _plain(_without_names(definition, name, here)) == well:
                    self._plan.triggers[name] = enabled == "A"
                    if enabled != "A":
                        silent.append(name)
                        statements.append(always)
                    continue
                statements.append(f"DROP TRIGGER {name} ON {here}")
            (changed if name in found else missing).append(name)
            statements += [
                f"CREATE TRIGGER {name} {trigger.event} ON {here} {trigger.how}"
                f" EXECUTE FUNCTION {_quoted(self._schema)}.{trigger.function}()",
                always,
            ]
        words = [
            f"{numbered('trigger', names)} of {self._shown(here)} {what}"
            for names, what in (
                (missing, f"{are(missing)} missing"),
                (changed, f"{are(changed)} not as {'it' if len(changed) == 1 else 'they'} must be"),
                (silent, f"{are(silent)} disabled, or not ENABLE ALWAYS"),
            )
            if names
        ]
        extra = [each for each, on in self._installed if on == here and each not in TRIGGERS]
        if extra:
            what = f"{are(extra)} {'one' if len(extra) == 1 else 'ones'} too many"
            words.append(f"{numbered('trigger', extra)} of {self._shown(here)} {what}")
            statements += [f"DROP TRIGGER {each} ON {here}" for each in extra]
        if words:
            self._plan.add("the " + "; the ".join(words), *statements)
            self._touches_models = True

    def _shown(self, table: str) -> str:
        return self._models.shown if self._models else table.replace('"', "")

    def _rights(self) -> None:
        """What the role of this connection may not do, in the place of a refusal in the middle."""
        role = self._ask("SELECT current_user")[0][0]
        relations = [self._models, *self._own.values()] if self._models else [*self._own.values()]
        others = [relation for relation in relations if not relation.owned]
        if others:
            shown = ", ".join(relation.shown for relation in others)
            owners = ", ".join(sorted({relation.owner for relation in others}))
            self._plan.rights.append(
                f"the role {role} does not own {shown}: run db upgrade as {owners}"
            )
        sql = """
            SELECT CASE WHEN n.oid IS NULL
                THEN has_database_privilege(current_database(), 'CREATE')
                ELSE has_schema_privilege(n.oid, 'CREATE') END
            FROM (SELECT CAST(%s AS name) AS name) wanted
            LEFT JOIN pg_namespace n ON n.nspname = wanted.name
            """
        if not self._ask(sql, self._schema)[0][0]:
            self._plan.rights.append(
                f"the role {role} may not create the schema {self._schema}, or tables in it:"
                f" CREATE SCHEMA {self._schema} AUTHORIZATION {role}, as a role that may"
            )


def _relations(connection: Connection, condition: str, values: Sequence[Any]) -> list[_Relation]:
    found = connection.exec_driver_sql(
        f"""
        SELECT c.oid, n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
            c.relkind, c.relispartition, c.relkind = 'p', c.relpersistence = 'p', (
                SELECT quote_ident(k.conname) FROM pg_constraint k
                WHERE k.conrelid = c.oid AND k.contype = 'p'
            ), pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {condition}
        """,
        tuple(values),
    )
    relations: dict[int, _Relation] = {}
    for oid, schema, name, sql, kind, *rest in found:
        relations[oid] = _Relation(oid, schema, name, sql, _KINDS.get(kind, "index"), *rest)
    oids = ([*relations],)
    columns = connection.exec_driver_sql(
        """
        SELECT a.attrelid, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod),
            format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL),
            a.attnotnull OR t.typnotnull, a.attgenerated <> '', pg_get_expr(d.adbin, d.adrelid),
            a.attidentity <> ''
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
        """,
        oids,
    )
    for oid, name, *column in columns:
        relations[oid].columns[name] = _Column(*column)
    # A deferrable constraint is no use to ON CONFLICT, a partial one does not hold for all rows.
    indexes = connection.exec_driver_sql(
        """
        SELECT i.indrelid, pg_get_indexdef(i.indexrelid), (
            SELECT a.attname FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND i.indnkeyatts = 1
                AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
        )
        FROM pg_index i WHERE i.indrelid = ANY(%s) AND i.indisvalid
        """,
        oids,
    )
    for oid, definition, unique in indexes:
        relations[oid].indexes.add(_plain(definition[definition.index(" USING ") :]))
        if unique:
            relations[oid].unique.add(unique)
    return [*relations.values()]


def _plain(definition: str) -> str:
    """A definition without what the catalogue writes differently: parentheses, quotes, case."""
    words = re.sub(r"[()']", "", definition.lower().replace("using btree", ""))
    return re.sub(r"\s*=\s*", "=", " ".join(words.split()))


def _without_names(definition: str, name: str, table: str) -> str:
    """The definition of a trigger from its event on, on "models", without its function."""
    inner = definition.removeprefix(f"CREATE TRIGGER {name} ").rpartition(" EXECUTE ")[0]
    return inner.replace(f" ON {table} ", " ON models ", 1)


def _added(table: str, name: str, column: Column) -> list[str]:
    """Add a column to an own table that has rows."""
    definition = column.postgresql
    add = f"ALTER TABLE {table} ADD COLUMN {name} {definition}"
    if "IDENTITY" in definition or " DEFAULT " in definition or " NOT " not in definition:
        # Without their key the rows of a small table say nothing.
        keyed = "PRIMARY KEY" in definition and "IDENTITY" not in definition
        return [f"DELETE FROM {table}", add] if keyed else [add]
    fill = f"{add} DEFAULT {column.filler}"
    return [fill, f"ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"]


def _mended(table: str, name: str, column: Column, found: _Column) -> tuple[list[str], list[str]]:
    """What is wrong with a column of an own table, in words, and the statements against it."""
    definition = column.postgresql
    type_ = re.split(" NOT NULL| GENERATED| PRIMARY| DEFAULT", definition)[0]
    default = definition.partition(" DEFAULT ")[2] or None
    identity = "IDENTITY" in definition
    required = "NOT NULL" in definition or "PRIMARY KEY" in definition
    alter = f"ALTER TABLE {table} ALTER COLUMN {name}"
    wrong: list[str] = []
    statements: list[str] = []
    retyped = found.declared != _TYPES.get(type_, type_)
    if retyped:
        wrong.append(f"is {found.declared}, not {type_}")
        statements += [f"{alter} DROP IDENTITY IF EXISTS", f"{alter} DROP DEFAULT"]
        # There may be no cast, and the outbox is empty now.
        value = "NULL" if table.endswith(f".{OUTBOX}") else name
        statements.append(f"{alter} TYPE {type_} USING CAST({value} AS {type_})")
    if found.required and not required:
        wrong.append("is NOT NULL")
        statements.append(f"{alter} DROP NOT NULL")
    if identity and (retyped or not found.identity):
        if not found.identity:
            wrong.append("numbers no rows")
        statements += _numbering(table, name)
    elif not identity and (retyped or found.default != default or found.identity):
        if found.identity or found.default != default:
            wrong.append("has another default" if found.default else "has no default")
            statements.append(f"{alter} DROP IDENTITY IF EXISTS")
        statements.append(f"{alter} {f'SET DEFAULT {default}' if default else 'DROP DEFAULT'}")
    if required and not found.required and not identity:
        wrong.append("is not NOT NULL")
        if "PRIMARY KEY" not in definition:
            filler = default or column.filler
            statements.append(f"UPDATE {table} SET {name} = {filler} WHERE {name} IS NULL")
            statements.append(f"{alter} SET NOT NULL")
    return wrong, statements


def _numbering(table: str, name: str) -> list[str]:
    """Let a column number the rows from the greatest number on, whatever numbered them before."""
    alter = f"ALTER TABLE {table} ALTER COLUMN {name}"
    return [
        f"{alter} DROP IDENTITY IF EXISTS",
        f"{alter} DROP DEFAULT",
        f"UPDATE {table} t SET {name} = n.number FROM (SELECT ctid AS place, row_number() OVER ()"
        f" + (SELECT coalesce(max({name}), 0) FROM {table}) AS number FROM {table}"
        f" WHERE {name} IS NULL) n WHERE t.ctid = n.place",
        f"{alter} SET NOT NULL",
        f"{alter} ADD GENERATED ALWAYS AS IDENTITY",
        f"SELECT setval(pg_get_serial_sequence('{table}', '{name}'),"
        f" coalesce(max({name}), 1), max({name}) IS NOT NULL) FROM {table}",
    ]


def _keyed(table: str, name: str) -> list[str]:
    return [
        f"DELETE FROM {table} a USING {table} b WHERE a.{name} = b.{name} AND a.ctid < b.ctid",
        f"DELETE FROM {table} WHERE {name} IS NULL",
        f"ALTER TABLE {table} ADD PRIMARY KEY ({name})",
    ]


def _function(schema: str, name: str, body: str) -> list[str]:
    function = FUNCTIONS[name]
    definer = " SECURITY DEFINER" if function.definer else ""
    settings = " ".join(f"SET {setting.replace('=', ' = ')}" for setting in function.settings)
    shown = f"{_quoted(schema)}.{name}()"
    return [
        f"CREATE OR REPLACE FUNCTION {shown} RETURNS trigger LANGUAGE plpgsql{definer}"
        f" {settings} AS $modelctl${body}$modelctl$",
        f"REVOKE ALL ON FUNCTION {shown} FROM PUBLIC",
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
