"""PostgreSQL: makes the plan of an upgrade, and drops the triggers and functions for `db detach`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.migrations import application_table, indexes_and_triggers, own_tables
from modelctl.migrations.plan import Plan
from modelctl.migrations.system_catalog import SystemCatalog, installed_triggers, quote_name
from modelctl.schema.declared import VERSION
from modelctl.schema.triggers import FUNCTIONS, TRIGGERS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelctl.migrations.system_catalog import Relation


def plan(connection: Connection, schema: str) -> Plan:
    """Compare the database with the declaration."""
    catalogue = SystemCatalog(connection, schema)
    plan = Plan(_versions(catalogue), installed=bool(catalogue.own))
    plan.triggers = dict.fromkeys(TRIGGERS, False)
    existing = [*catalogue.own.values()]
    models = application_table.compare(plan, catalogue)
    plan.on_models = len(plan.steps)
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
    return plan


def _versions(catalogue: SystemCatalog) -> list[str]:
    """Return the revisions that are recorded, the newest first."""
    table = catalogue.own.get(VERSION)
    if table is None or table.kind != "table" or "version_num" not in table.columns:
        return []
    rows = catalogue.ask(f"SELECT version_num FROM {table.sql} ORDER BY version_num DESC")
    return [row[0] for row in rows]


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
        missing.append(
            f"the role {role} may not create the schema {schema}, or tables in it:"
            f" CREATE SCHEMA {schema} AUTHORIZATION {role}, as a role that may"
        )
    return missing


def detach(connection: Connection, schema: str) -> list[str]:
    """Drop triggers and functions; return what was dropped."""
    dropped = []
    for trigger, table in installed_triggers(connection, schema):
        connection.exec_driver_sql(
            f"DROP TRIGGER {trigger} ON {table}", execution_options={"no_parameters": True}
        )
        dropped.append(f"trigger {trigger} of {table}")
    functions = connection.exec_driver_sql(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = %s AND p.proname = ANY(%s) AND p.pronargs = 0 ORDER BY 1",
        (schema, [*FUNCTIONS]),
    )
    for (name,) in functions.all():
        connection.exec_driver_sql(f"DROP FUNCTION {quote_name(schema)}.{name}()")
        dropped.append(f"function {schema}.{name}()")
    return dropped
