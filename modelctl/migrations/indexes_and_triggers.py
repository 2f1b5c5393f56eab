"""Indexes, functions and triggers on PostgreSQL: comparing them with the declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.adoption.adoption import free_name
from modelctl.adoption.system_catalog import plain, quote_name
from modelctl.schema.declared import EMPTIED_TEXTS, INDEXES, MODELS
from modelctl.schema.triggers import FUNCTIONS, TRIGGERS, emptying

if TYPE_CHECKING:
    from modelctl.adoption.system_catalog import Relation, SystemCatalog
    from modelctl.migrations.plan import Plan
    from modelctl.schema.triggers import Function


def compare_indexes(plan: Plan, catalogue: SystemCatalog, models: Relation) -> None:
    """Compare the indexes by their definitions.

    Their names may differ: a table that replaced ``models`` may have a name already.
    """
    for name, index in INDEXES.items():
        table = models if index.table == MODELS else catalogue.own[index.table]
        if not index.postgresql or plain(index.postgresql) in table.indexes:
            continue
        free = free_name(name, catalogue.names(table.schema))
        create = f"CREATE INDEX {free} ON {table.sql} {index.postgresql}"
        plan.add(f"{table.shown} has no index {name}", create)


def compare_functions(plan: Plan, catalogue: SystemCatalog, models: Relation) -> None:
    """Compare the trigger functions, the rights on them, and those of their owner."""
    schema = catalogue.schema
    found = {
        name: facts
        for name, *facts in catalogue.ask(
            """
            SELECT p.proname, pg_get_userbyid(p.proowner), p.prorettype = CAST('trigger' AS regtype),
                p.prosrc, l.lanname, p.prosecdef, p.proconfig,
                EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                    WHERE a.grantee = 0)
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            JOIN pg_language l ON l.oid = p.prolang
            WHERE n.nspname = %s AND p.proname = ANY(%s) AND p.pronargs = 0
            """,
            schema,
            [*FUNCTIONS],
        )
    }
    never_null = [n for n in EMPTIED_TEXTS if n in models.columns and models.columns[n].required]
    for name, function in FUNCTIONS.items():
        shown = f"{schema}.{name}()"
        body = emptying(function.body, never_null)
        owner, is_trigger, *facts = found.get(name, ("", True))
        if not is_trigger:
            plan.obstruct(f"{shown} is a function of another program: drop it")
            continue
        if facts != [body, "plpgsql", function.definer, [*function.settings], False]:
            what = "is not as declared" if name in found else "is missing"
            plan.add(f"the function {shown} {what}", *_create_function(schema, name, body))
        for table in _without_rights(catalogue, owner, function) if name in found else ():
            rights = ", ".join(right for of, right in function.needs if of == table)
            plan.add(
                f"{owner}, the owner of the function {shown}, may not write {table}",
                f"GRANT USAGE ON SCHEMA {quote_name(schema)} TO {quote_name(owner)}",
                f"GRANT {rights} ON {quote_name(schema)}.{table} TO {quote_name(owner)}",
            )


def _without_rights(catalogue: SystemCatalog, owner: str, function: Function) -> list[str]:
    """Return the tables on which the owner of a function lacks a right that it needs."""
    found = catalogue.ask(
        """
        SELECT DISTINCT needed.name FROM unnest(
            CAST(%s AS text[]), CAST(%s AS oid[]), CAST(%s AS text[])
        ) AS needed (name, oid, kind)
        WHERE NOT has_schema_privilege(CAST(%s AS name), CAST(%s AS text), 'USAGE')
            OR has_table_privilege(CAST(%s AS name), needed.oid, needed.kind) IS FALSE
        """,
        [table for table, _ in function.needs],
        [catalogue.own[table].oid for table, _ in function.needs],
        [right for _, right in function.needs],
        owner,
        catalogue.schema,
        owner,
    )
    return [row[0] for row in found]


def _create_function(schema: str, name: str, body: str) -> list[str]:
    function = FUNCTIONS[name]
    definer = " SECURITY DEFINER" if function.definer else ""
    settings = " ".join(f"SET {setting.replace('=', ' = ')}" for setting in function.settings)
    signature = f"{quote_name(schema)}.{name}()"
    return [
        f"CREATE OR REPLACE FUNCTION {signature} RETURNS trigger LANGUAGE plpgsql{definer}"
        f" {settings} AS $modelctl${body}$modelctl$",
        f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC",
    ]


def compare_triggers(plan: Plan, catalogue: SystemCatalog, models: Relation) -> None:
    """Compare the triggers on ``models``."""
    table = models.sql
    found = {
        name: facts
        for name, *facts in catalogue.ask(
            """
            SELECT t.tgname, t.tgenabled, p.proname, n.nspname, pg_get_triggerdef(t.oid)
            FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE t.tgrelid = CAST(%s AS oid) AND t.tgname = ANY(%s)
            """,
            models.oid,
            [*TRIGGERS],
        )
    }
    different: dict[str, list[str]] = {}
    statements: list[str] = []
    for name, trigger in TRIGGERS.items():
        enable = f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}"
        if name in found:
            enabled, function, schema, definition = found[name]
            declared = plain(f"{trigger.event} ON models {trigger.how}")
            executed = (function, schema) == (trigger.function, catalogue.schema)
            if executed and plain(_without_names(definition, name, table)) == declared:
                plan.triggers[name] = enabled == "A"
                if enabled != "A":
                    different.setdefault("disabled, or not ENABLE ALWAYS", []).append(name)
                    statements.append(enable)
                continue
            statements.append(f"DROP TRIGGER {name} ON {table}")
        different.setdefault("not as declared" if name in found else "missing", []).append(name)
        statements += [
            f"CREATE TRIGGER {name} {trigger.event} ON {table} {trigger.how}"
            f" EXECUTE FUNCTION {quote_name(catalogue.schema)}.{trigger.function}()",
            enable,
        ]
    extra = [each for each, on in catalogue.triggers if on == table and each not in TRIGGERS]
    if extra:
        different["not declared"] = extra
        statements += [f"DROP TRIGGER {each} ON {table}" for each in extra]
    if different:
        plan.add_triggers(models.shown, different, statements)
        plan.touches_models = True


def _without_names(definition: str, name: str, table: str) -> str:
    """Return a trigger's definition without its name and function, and with "models" as its table."""
    inner = definition.removeprefix(f"CREATE TRIGGER {name} ").rpartition(" EXECUTE ")[0]
    return inner.replace(f" ON {table} ", " ON models ", 1)
