"""PostgreSQL: what modelctl has made in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.adoption.adoption import declared_indexes, has_created
from modelctl.adoption.system_catalog import (
    SystemCatalog,
    installed_triggers,
    plain,
    plain_index,
    quote_name,
)
from modelctl.count.outbox import recent_places
from modelctl.migrations.postgresql import require_reading, stored_note
from modelctl.removal.parts import WILL_COME_BACK, Part, Parts
from modelctl.schema.declared import OUTBOX, STATE, TABLES
from modelctl.schema.triggers import FUNCTIONS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelctl.adoption.adoption import Note
    from modelctl.adoption.system_catalog import Relation


def watching(connection: Connection, schema: str) -> list[Part]:
    """Return the triggers and their functions."""
    parts = [
        Part(f"trigger {trigger} of {table}", f"DROP TRIGGER {trigger} ON {table}")
        for trigger, table in installed_triggers(connection, schema)
    ]
    functions = connection.exec_driver_sql(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = %s AND p.proname = ANY(%s) AND p.pronargs = 0 ORDER BY 1",
        (schema, [*FUNCTIONS]),
    )
    return parts + [
        Part(f"function {schema}.{name}()", f"DROP FUNCTION {quote_name(schema)}.{name}()")
        for (name,) in functions.all()
    ]


def why_not_detach(connection: Connection, schema: str) -> list[str]:
    """Return why this role may not drop the triggers."""
    catalogue, parts = SystemCatalog(connection, schema), Parts()
    if catalogue.models and catalogue.triggers:
        _check_owners(parts, [catalogue.models], catalogue)
    return parts.refused


def everything(connection: Connection, schema: str) -> Parts:
    """Return all parts: triggers, functions, indexes, columns, tables and the schema."""
    catalogue = SystemCatalog(connection, schema)
    require_reading(catalogue)
    parts = Parts(watching(connection, schema))
    note = stored_note(catalogue)
    models = catalogue.models
    elsewhere = {table for _, table in catalogue.triggers if not models or table != models.sql}
    if elsewhere:
        parts.refused.append(
            f"modelctl's triggers are on {', '.join(sorted(elsewhere))}, which the search path"
            f" ({catalogue.search_path()}) does not find as models: name its schema in database.url,"
            " or give the table its name back"
        )
    elif models is None and note and note.columns:
        parts.kept.append(parts.lost(note))
    own = [catalogue.own[name] for name in TABLES["postgresql"] if name in catalogue.own]
    own = [table for table in own if table.kind == "table"]
    if models and models.kind == "table" and own:
        parts.lock = f"LOCK TABLE {models.sql} IN ACCESS EXCLUSIVE MODE"
        _parts_of_models(parts, models, note, catalogue)
    parts.dropped += [Part(f"table {table.shown}", f"DROP TABLE {table.sql}") for table in own]
    parts.refused += _users_of_tables(own, catalogue)
    if note and note.schema:
        parts.dropped.append(Part(f"schema {schema}", _drop_if_empty(schema)))
    elif own:
        parts.kept.append(f"the schema {schema}: modelctl did not create it")
    _check_owners(parts, [models, *own] if models else own, catalogue)
    return parts


def _parts_of_models(
    parts: Parts, models: Relation, note: Note | None, catalogue: SystemCatalog
) -> None:
    """Add the indexes and columns of ``models``."""
    indexes = catalogue.ask(
        """
        SELECT c.relname, c.oid, pg_get_indexdef(c.oid) FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s ORDER BY 1
        """,
        models.oid,
    )
    declared = declared_indexes(lambda index: plain(index.postgresql)).values()
    own = {
        name: oid
        for name, oid, definition in indexes
        if has_created(note, name, as_declared=plain_index(definition) in declared)
    }
    parts.dropped += [
        Part(
            f"index {models.schema}.{name}",
            f"DROP INDEX {quote_name(models.schema)}.{quote_name(name)}",
        )
        for name in own
    ]
    columns = parts.columns(models.shown, note, models.columns)
    if not columns:
        return
    users = catalogue.ask(
        """
        SELECT DISTINCT a.attname, pg_describe_object(d.classid, d.objid, d.objsubid)
        FROM pg_depend d JOIN pg_attribute a
            ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.refclassid = CAST('pg_class' AS regclass) AND a.attname = ANY(%s)
            AND d.refobjid IN (SELECT CAST(%s AS oid) UNION SELECT relid FROM pg_partition_tree(%s))
            AND NOT (d.classid = CAST('pg_class' AS regclass) AND d.objid IN (
                SELECT coalesce(tree.relid, own) FROM unnest(CAST(%s AS oid[])) AS own
                LEFT JOIN pg_partition_tree(own) AS tree ON true))
            AND NOT (d.classid = CAST('pg_attrdef' AS regclass) AND EXISTS (
                SELECT FROM pg_attrdef f WHERE f.oid = d.objid AND f.adrelid = a.attrelid
                    AND f.adnum = a.attnum))
            AND NOT EXISTS (SELECT FROM pg_constraint k WHERE d.classid = k.tableoid
                AND k.oid = d.objid AND k.contype = 'n')
            AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                JOIN pg_namespace n ON n.oid = p.pronamespace WHERE d.classid = t.tableoid
                AND t.oid = d.objid AND n.nspname = %s AND p.proname = ANY(%s))
        ORDER BY 2, 1
        """,
        columns,
        models.oid,
        models.oid,
        [*own.values()],
        catalogue.schema,
        [*FUNCTIONS],
    )
    parts.refused += [f"{user} uses the column {name}" for name, user in users]
    drop = ", ".join(f"DROP COLUMN {name}" for name in columns)
    words = f"column{'s' * (len(columns) > 1)} {', '.join(columns)} of {models.shown}"
    parts.dropped.append(Part(words, f"ALTER TABLE {models.sql} {drop}"))


def _users_of_tables(own: list[Relation], catalogue: SystemCatalog) -> list[str]:
    """Return what of other programs depends on the own tables, their sequences and row types."""
    users = catalogue.ask(
        """
        WITH own AS (SELECT oid, reltype FROM pg_class WHERE oid = ANY(%s)),
        part AS (
            SELECT CAST(CAST('pg_class' AS regclass) AS oid) AS class, oid, oid AS own FROM own
            UNION ALL SELECT CAST('pg_type' AS regclass), t.oid, own.oid FROM own
                JOIN pg_type t ON own.reltype IN (t.oid, t.typelem)
            UNION ALL SELECT s.classid, s.objid, own.oid FROM own
                JOIN pg_depend s ON s.refobjid = own.oid AND s.deptype = 'i'
                WHERE s.refclassid = CAST('pg_class' AS regclass) AND s.classid = s.refclassid
        )
        SELECT DISTINCT CASE WHEN r.oid IS NULL THEN pg_describe_object(d.classid, d.objid, d.objsubid)
                ELSE pg_describe_object(CAST('pg_class' AS regclass), r.ev_class, 0) END,
            CAST(CAST(part.own AS regclass) AS text)
        FROM part JOIN pg_depend d ON d.refclassid = part.class AND d.refobjid = part.oid
            LEFT JOIN pg_rewrite r ON d.classid = r.tableoid AND r.oid = d.objid
            LEFT JOIN pg_constraint k ON d.classid = k.tableoid AND k.oid = d.objid
            LEFT JOIN pg_attrdef f ON d.classid = f.tableoid AND f.oid = d.objid
            LEFT JOIN pg_policy p ON d.classid = p.tableoid AND p.oid = d.objid
            LEFT JOIN pg_trigger t ON d.classid = t.tableoid AND t.oid = d.objid
        WHERE d.deptype = 'n' AND coalesce(
            r.ev_class, k.conrelid, f.adrelid, p.polrelid, t.tgrelid,
            CASE WHEN d.classid = CAST('pg_class' AS regclass) THEN d.objid END, 0
        ) NOT IN (SELECT oid FROM own)
        ORDER BY 2, 1
        """,
        [table.oid for table in own],
    )
    return [f"{user} uses the table {table}" for user, table in users]


def stays_off(connection: Connection, schema: str) -> int:
    """Return how many models modelctl would bring back; 0 if that cannot be read."""
    catalogue = SystemCatalog(connection, schema)
    models = catalogue.models
    if not (models and models.owned and {"auto_disabled", "disabled_until"} <= {*models.columns}):
        return 0
    # The same roles see all rows that a count sees.
    if catalogue.ask("SELECT row_security_active(CAST(%s AS oid))", models.oid)[0][0]:
        return 0
    return int(catalogue.ask(f"SELECT count(*) FROM {models.sql} WHERE {WILL_COME_BACK}")[0][0])


def _drop_if_empty(schema: str) -> str:
    # Other programs may have made something in it.
    return (
        f"DO $modelctl$ BEGIN DROP SCHEMA {quote_name(schema)};"
        " EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $modelctl$"
    )


def is_there(connection: Connection, schema: str) -> bool:
    """Whether the schema is still there."""
    sql = "SELECT FROM pg_namespace WHERE nspname = %s"
    return connection.exec_driver_sql(sql, (schema,)).first() is not None


def _check_owners(parts: Parts, relations: list[Relation], catalogue: SystemCatalog) -> None:
    others = [relation for relation in relations if not relation.owned]
    if others:
        role = catalogue.ask("SELECT current_user")[0][0]
        owners = ", ".join(sorted({relation.owner for relation in others}))
        shown = ", ".join(relation.shown for relation in others)
        parts.refused.append(f"the role {role} does not own {shown}: run it as {owners}")


def places(connection: Connection, schema: str) -> list[str]:
    """Return where invalidations were delivered in the last day."""
    own = SystemCatalog(connection, schema).own
    return sorted(recent_places(connection, own[STATE].sql)) if STATE in own else []


def waiting(connection: Connection, schema: str, *, delivers: bool) -> int:
    """Return how many invalidations of a cache are queued.

    Where no process has Redis, nothing is ever delivered, so nothing waits. *delivers*: this one has.
    """
    own = SystemCatalog(connection, schema).own
    if OUTBOX not in own or STATE not in own:
        return 0
    sql = (
        f"SELECT (SELECT count(*) FROM {own[OUTBOX].sql} WHERE settle IS NOT TRUE),"
        f" EXISTS (SELECT FROM {own[STATE].sql} WHERE name LIKE 'delivery %')"
    )
    options = {"no_parameters": True}
    queued, delivered = connection.exec_driver_sql(sql, execution_options=options).one()
    return int(queued) if delivers or delivered else 0
