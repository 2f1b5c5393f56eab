"""The application's table ``models`` on PostgreSQL: creating it, or adopting the one that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.adoption import adoption
from modelctl.adoption.system_catalog import Relation, in_words
from modelctl.migrations.plan import listed
from modelctl.schema.declared import MODELS, MODELS_COLUMNS, MODELS_FILLFACTOR, OUTBOX
from modelctl.schema.triggers import FUNCTIONS, TRIGGERS

if TYPE_CHECKING:
    from modelctl.adoption.system_catalog import SystemCatalog
    from modelctl.migrations.plan import Plan

_MOST_COLUMNS = 1600  # of a table of PostgreSQL
_SEARCH_PATH = "in database.url (?options=-csearch_path%3DNAME)"


def compare(plan: Plan, catalogue: SystemCatalog) -> Relation:
    """Compare ``models`` with the declaration; return it, or the table that will be created."""
    models = catalogue.models
    if models is None:
        return _create(plan, catalogue)
    plan.table, plan.owner, plan.width = models.shown, models.owner, len(models.columns)
    if plan.is_table(models.shown, models.kind):
        plan.obstruct(*_problems(models, catalogue))
    _remove_from_other_tables(plan, models, catalogue)
    missing = [name for name in MODELS_COLUMNS if name not in models.columns]
    if missing:
        plan.obstruct(*_reasons_against_columns(models, len(missing), catalogue))
    if not plan.installed:
        plan.obstruct(*_foreign_triggers(models, catalogue))
    if missing and not plan.obstacles:
        _add_columns(plan, models, missing, catalogue)
    return models


def _create(plan: Plan, catalogue: SystemCatalog) -> Relation:
    path = catalogue.search_path()
    elsewhere = sorted({table for _, table in catalogue.triggers})
    # Not in the schema of the own tables, which "$user" may name.
    sql = "SELECT s FROM unnest(current_schemas(false)) s WHERE s <> %s"
    schemas = [row[0] for row in catalogue.ask(sql, catalogue.schema)]
    if elsewhere:
        plan.obstruct(
            f"there is no table models in the search path ({path}), and modelctl's triggers are"
            f" on {', '.join(elsewhere)}: name the schema of that table {_SEARCH_PATH}, or give the"
            " table its name back"
        )
    elif not schemas:
        plan.obstruct(
            f"the search path ({path}) has no schema for the table models{_closed(catalogue)}"
        )
    table = Relation.missing(schemas[0] if schemas else "", MODELS)
    if not plan.obstacles:
        create = f"{table.create(MODELS_COLUMNS)} WITH (fillfactor = {MODELS_FILLFACTOR})"
        plan.add(f"there is no table {table.shown}", create)
    return table


def _closed(catalogue: SystemCatalog) -> str:
    """Return the schemas of the search path that this role may not use, in words."""
    role = catalogue.ask("SELECT current_user")[0][0]
    rows = catalogue.ask(
        "SELECT nspname FROM pg_namespace WHERE nspname <> %s AND NOT has_schema_privilege(oid, 'USAGE')"
        " AND nspname IN (SELECT btrim(s, ' \"') FROM"
        " unnest(string_to_array(current_setting('search_path'), ',')) s) ORDER BY 1",
        catalogue.schema,
    )
    return "".join(
        f"; the role {role} may not use {name}: GRANT USAGE, CREATE ON SCHEMA {in_words(name)} TO"
        f" {in_words(role)}"
        for (name,) in rows
    )


def _problems(models: Relation, catalogue: SystemCatalog) -> list[str]:
    """Return the reasons why ``models`` cannot be used."""
    shown = models.shown
    problems = []
    if models.partition:
        problems.append(
            f"{shown} is a partition: statements on the table above it fire none of its triggers"
        )
    elif models.parents:
        problems.append(
            f"{shown} inherits from {', '.join(models.parents)}: statements on that table fire none"
            " of its triggers"
        )
    if models.children and not models.partitioned:
        problems.append(
            f"{shown} has tables that inherit from it ({', '.join(models.children)}): its triggers"
            " do not fire for their rows, and the same id can be there twice"
        )
    if models.rules:
        problems.append(
            f"{shown} has {listed('rule', models.rules)}: a rule changes or suppresses statements"
            " before a trigger sees them; use a trigger instead"
        )
    problems += adoption.problems(shown, models.columns, models.unique, "postgresql", models.sql)
    other_fleets = catalogue.ask(
        """
        SELECT DISTINCT n.nspname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = %s
        WHERE t.tgrelid = %s AND n.nspname <> %s AND p.proname = ANY(%s)
        """,
        OUTBOX,
        models.oid,
        catalogue.schema,
        [*FUNCTIONS],
    )
    problems += [
        f"{shown} belongs to the fleet whose tables are in the schema {schema}: set"
        f' database.schema = "{schema}", or run modelctl db detach with that setting first'
        for (schema,) in other_fleets
    ]
    return problems


def _reasons_against_columns(models: Relation, number: int, catalogue: SystemCatalog) -> list[str]:
    """Return the reasons why PostgreSQL would not add *number* columns to ``models``."""
    problems = []
    if models.typed:
        problems.append(
            f"{models.shown} is made of a composite type, so it takes no other columns:"
            f" ALTER TABLE {models.sql} NOT OF"
        )
    if models.numbers + number > _MOST_COLUMNS:
        problems.append(
            f"{models.shown} has had {models.numbers:,} columns, {number} are needed, and PostgreSQL"
            f" takes {_MOST_COLUMNS:,}, with those that were dropped: make the table anew"
        )
    # A new column with a default would have to be written into the values of these columns.
    users = catalogue.ask(
        """
        SELECT CAST(CAST(a.attrelid AS regclass) AS text) || '.' || quote_ident(a.attname)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'm')
        WHERE NOT a.attisdropped AND a.atttypid IN (
            SELECT unnest(ARRAY[t.oid, t.typarray]) FROM pg_type t WHERE t.typrelid = %s)
        ORDER BY 1
        """,
        models.oid,
    )
    problems += [
        f"the column {column} has rows of {models.shown} as its values, so PostgreSQL adds no column"
        " with a default: give it another type, such as jsonb"
        for (column,) in users
    ]
    return problems


def _foreign_triggers(models: Relation, catalogue: SystemCatalog) -> list[str]:
    """Return why modelctl's triggers cannot be created, where nothing of modelctl is there yet."""
    found = catalogue.ask(
        "SELECT tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
        " WHERE tgrelid = %s AND tgname = ANY(%s) AND p.proname <> ALL(%s) ORDER BY 1",
        models.oid,
        [*TRIGGERS],
        [*FUNCTIONS],
    )
    return [
        f"the trigger {name} of {models.shown} belongs to another program: rename it"
        for (name,) in found
    ]


def _remove_from_other_tables(plan: Plan, models: Relation, catalogue: SystemCatalog) -> None:
    """Drop the triggers of a table that was ``models`` before."""
    found = [each for each in catalogue.triggers if each[1] != models.sql]
    tables = sorted({table for _, table in found})
    same_name = [table for table in tables if table.rpartition(".")[2] == MODELS]
    if same_name:
        plan.obstruct(
            f"modelctl's triggers are on {', '.join(same_name)}, and the search path"
            f" ({catalogue.search_path()}) finds {models.shown}: name the schema of the right table"
            f" {_SEARCH_PATH}, or run modelctl db detach first"
        )
    elif found:
        plan.add(
            f"modelctl's triggers are on {', '.join(tables)}, which is not models",
            *(f"DROP TRIGGER {trigger} ON {table}" for trigger, table in found),
        )


def _add_columns(
    plan: Plan, models: Relation, missing: list[str], catalogue: SystemCatalog
) -> None:
    definitions = {name: MODELS_COLUMNS[name].postgresql for name in missing}
    words = f"{models.shown} has no {listed('column', missing)}"
    fill: list[str] = []
    if "active" in missing:
        off = adoption.rows_off(_renamed_active(models, catalogue), plan.installed, models.columns)
        if off:
            words += f" ({off.words})"
            definitions["active"], fill = _active_from(off.condition, models, catalogue)
    add = ", ".join(f"ADD COLUMN {name} {definition}" for name, definition in definitions.items())
    plan.add(words, f"ALTER TABLE {models.sql} {add}", *fill)
    plan.touches_models = True


def _active_from(off: str, models: Relation, catalogue: SystemCatalog) -> tuple[str, list[str]]:
    """Return the definition of ``active``, and statements that fill it: false where *off* is true.

    All other programs wait meanwhile, and only an UPDATE of many rows takes long. So the column is
    added with the value of most rows. And the trigger, which would collect the changed rows, is
    disabled for the UPDATE: an upgrade queues an invalidation anyway.
    """
    # The owner may read the table, and nobody else can upgrade it.
    sql = f"SELECT 2 * count(*) FILTER (WHERE {off}) > count(*) FROM {models.sql}"
    mostly_off = models.owned and catalogue.ask(sql)[0][0]
    default, other, others = (
        ("false", "true", f"NOT ({off})") if mostly_off else ("true", "false", off)
    )
    alter = f"ALTER TABLE {models.sql}"
    watched = ("modelctl_update", models.sql) in catalogue.triggers
    statements = [
        f"{alter} ALTER COLUMN active SET DEFAULT true",
        # A table with deferred triggers that have not run yet cannot be altered.
        "SET CONSTRAINTS ALL IMMEDIATE",
        *([f"{alter} DISABLE TRIGGER modelctl_update"] if watched else []),
        f"UPDATE {models.sql} SET active = {other} WHERE {others}",
        *([f"{alter} ENABLE ALWAYS TRIGGER modelctl_update"] if watched else []),
    ]
    return f"boolean NOT NULL DEFAULT {default}", statements


def _renamed_active(models: Relation, catalogue: SystemCatalog) -> tuple[str, str] | None:
    """Return the column that ``active`` was renamed to, as text and as SQL.

    The triggers depend on it, whatever its name.
    """
    found = catalogue.ask(
        """
        SELECT DISTINCT a.attname, quote_ident(a.attname)
        FROM pg_trigger t JOIN pg_depend d ON d.classid = CAST('pg_trigger' AS regclass)
            AND d.objid = t.oid AND d.refobjid = t.tgrelid AND d.refobjsubid > 0
        JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = d.refobjsubid
        WHERE t.tgrelid = %s AND t.tgname IN ('modelctl_enabled', 'modelctl_disabled')
            AND a.atttypid = CAST('boolean' AS regtype)
        """,
        models.oid,
    )
    return (found[0][0], found[0][1]) if len(found) == 1 else None
