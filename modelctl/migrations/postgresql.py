"""PostgreSQL: makes the plan of an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.adoption import adoption
from modelctl.adoption.adoption import NOTE, Note, next_note
from modelctl.adoption.system_catalog import SystemCatalog, in_words, plain, quote_name
from modelctl.errors import InvalidConfigError
from modelctl.migrations import application_table, indexes_and_triggers, own_tables
from modelctl.migrations.plan import Plan
from modelctl.schema.declared import MODELS_COLUMNS, STATE, VERSION
from modelctl.schema.triggers import TRIGGERS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelctl.adoption.system_catalog import Relation


def plan(connection: Connection, schema: str) -> Plan:
    """Compare the database with the declaration."""
    catalogue = SystemCatalog(connection, schema)
    require_reading(catalogue)
    plan = Plan(_versions(catalogue), installed=bool(catalogue.own))
    plan.triggers = dict.fromkeys(TRIGGERS, False)
    existing = [*catalogue.own.values()]
    models = application_table.compare(plan, catalogue)
    plan.on_models = len(plan.steps)
    if models.schema:
        plan.table_sql, plan.schema = models.sql, models.schema
    plan.indexes, created = _indexes(models, catalogue)
    plan.note = _note(plan, catalogue, created)
    if plan.obstacles:
        return plan
    own_tables.compare(plan, catalogue)
    indexes_and_triggers.compare_indexes(plan, catalogue, models)
    indexes_and_triggers.compare_functions(plan, catalogue, models)
    indexes_and_triggers.compare_triggers(plan, catalogue, models)
    plan.add_version(f"{quote_name(schema)}.{VERSION}")
    if models.oid:
        existing.insert(0, models)
        if plan.touches_models:
            # Before everything else, as changes lock it first, and with its final strength: a lock
            # that is made stronger later can deadlock.
            plan.lock = f"LOCK TABLE {models.sql} IN ACCESS EXCLUSIVE MODE"
    if plan.steps:
        plan.rights += _missing_rights(catalogue, existing)
        plan.rights += _missing_rights_beside(catalogue, models, plan.statements)
    return plan


def require_reading(catalogue: SystemCatalog) -> None:
    """Check that the role may read what a plan is made of.

    Raises:
        InvalidConfigError: it may not; who may.
    """
    tables = [table for name, table in catalogue.own.items() if name in (STATE, VERSION)]
    sql = """
        SELECT current_user, has_schema_privilege(c.relnamespace, 'USAGE')
            AND has_any_column_privilege(c.oid, 'SELECT')
        FROM pg_class c WHERE c.oid = %s
        """
    for table in tables:
        role, may_read = catalogue.ask(sql, table.oid)[0]
        if not may_read:
            raise InvalidConfigError(
                f"the role {role} may not read {table.shown} of owner {table.owner}",
                hint=f"db commands are for {table.owner}; modelctl doctor names the rights that"
                " other roles need",
            )


def _versions(catalogue: SystemCatalog) -> list[str]:
    """Return the revisions that are recorded, the newest first."""
    table = catalogue.own.get(VERSION)
    if table is None or table.kind != "table" or "version_num" not in table.columns:
        return []
    rows = catalogue.ask(f"SELECT version_num FROM {table.sql} ORDER BY version_num DESC")
    return [row[0] for row in rows]


def stored_note(catalogue: SystemCatalog) -> Note | None:
    """Return what earlier upgrades noted about the table."""
    state = catalogue.own.get(STATE)
    if state is None or not {"name", "value"} <= state.columns.keys():
        return None
    rows = catalogue.ask(f"SELECT value FROM {state.sql} WHERE name = %s", NOTE)
    return Note.read(rows[0][0]) if rows else None


def _indexes(models: Relation, catalogue: SystemCatalog) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the indexes on ``models`` with their names, and those that will be created."""
    declared = adoption.declared_indexes(lambda index: plain(index.postgresql))
    taken = catalogue.names(models.schema)
    return adoption.names_of_indexes(declared, models.indexes, taken)


def _note(plan: Plan, catalogue: SystemCatalog, created: tuple[str, ...]) -> str | None:
    models = catalogue.models
    schema = not catalogue.ask("SELECT FROM pg_namespace WHERE nspname = %s", catalogue.schema)
    if models is None:
        return Note(True, (), schema, created).written()
    missing = [name for name in MODELS_COLUMNS if name not in models.columns]
    watched = any(table == models.sql for _, table in catalogue.triggers)
    note = next_note(
        stored_note(catalogue),
        missing,
        created,
        installed=plan.installed,
        watched=watched,
        schema=schema,
    )
    return note.written() if note else None


def _missing_rights(catalogue: SystemCatalog, relations: list[Relation]) -> list[str]:
    """Return what the role may not do, so that an upgrade fails before its first statement."""
    role, schema = catalogue.ask("SELECT current_user")[0][0], catalogue.schema
    missing = []
    others = [relation for relation in relations if not relation.owned]
    if others:
        shown = ", ".join(relation.shown for relation in others)
        owners = ", ".join(sorted({relation.owner for relation in others}))
        missing.append(f"the role {role} does not own {shown}: run db upgrade as {owners}")
    sql = """
        SELECT CASE WHEN n.oid IS NULL
            THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege(n.oid, 'CREATE') END
        FROM (SELECT CAST(%s AS name) AS name) wanted
        LEFT JOIN pg_namespace n ON n.nspname = wanted.name
        """
    if not catalogue.ask(sql, schema)[0][0]:
        there = catalogue.ask("SELECT FROM pg_namespace WHERE nspname = %s", schema)
        cure = (
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {in_words(role)}"
            if there
            else f"CREATE SCHEMA {schema} AUTHORIZATION {in_words(role)}"
        )
        missing.append(
            f"the role {role} may not create the schema {schema}, or tables in it: {cure}, as a role"
            " that may"
        )
    return missing


def _missing_rights_beside(
    catalogue: SystemCatalog, models: Relation, statements: list[str]
) -> list[str]:
    """Return the rights that the role lacks in the schema of ``models`` and on the language plpgsql."""
    role, missing = catalogue.ask("SELECT current_user")[0][0], []
    on_models = any(
        sql.startswith(f"CREATE TABLE {models.sql} ")
        or (sql.startswith("CREATE INDEX ") and f" ON {models.sql} " in sql)
        for sql in statements
    )
    sql = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s"
    if on_models and not catalogue.ask(sql, models.schema)[0][0]:
        what = f"the indexes of {models.shown}" if models.oid else models.shown
        missing.append(
            f"the role {role} may not create {what}, because it may create nothing in that schema:"
            f" GRANT CREATE ON SCHEMA {in_words(models.schema)} TO {in_words(role)}"
        )
    if any(sql.startswith("CREATE OR REPLACE FUNCTION ") for sql in statements):
        language = catalogue.ask(
            "SELECT has_language_privilege(oid, 'USAGE') FROM pg_language WHERE lanname = 'plpgsql'"
        )
        if not language:
            missing.append("the database has no language plpgsql: CREATE EXTENSION plpgsql")
        elif not language[0][0]:
            missing.append(
                f"the role {role} may not use the language plpgsql, which the triggers are written in:"
                f" GRANT USAGE ON LANGUAGE plpgsql TO {in_words(role)}"
            )
    return missing
