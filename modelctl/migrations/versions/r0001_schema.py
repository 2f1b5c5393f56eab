"""The first schema: made from nothing, or around a table ``models`` that is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.migrations.adoption import columns_to_keep

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision = "0001"
down_revision = None

# Its columns of models, and what each must be in a table that is there already.
NEEDED = {
    "id": "text",
    "display_name": "text",
    "provider": "text",
    "active": "boolean",
    "auto_disabled": "boolean",
    "consecutive_failures": "integer",
    "ejections": "integer",
    "success_count": "integer",
    "failure_count": "integer",
    "last_success_at": "timestamp",
    "last_failure_at": "timestamp",
    "failure_type": "text",
    "failure_reason": "text",
    "disabled_at": "timestamp",
    "disabled_by": "text",
    "disabled_reason": "text",
    "disabled_until": "timestamp",
    "recovered_at": "timestamp",
    "would_disable": "text",
    "created_at": "timestamp",
    "updated_at": "timestamp",
}
# What modelctl sets to NULL.
EMPTIED = (
    "failure_reason",
    "disabled_at",
    "disabled_by",
    "disabled_reason",
    "disabled_until",
    "recovered_at",
    "would_disable",
)

# Every NOT NULL column but the id has a default: programs that know nothing of the column go on
# inserting. There is no CHECK: a plain UPDATE ... SET active by anybody must pass.
# No default is volatile, so that a column is added without a rewrite of the table.
POSTGRESQL_MODELS = {
    "id": "text PRIMARY KEY",
    "display_name": "text NOT NULL DEFAULT ''",
    "provider": "text NOT NULL DEFAULT ''",
    "active": "boolean NOT NULL DEFAULT true",
    "auto_disabled": "boolean NOT NULL DEFAULT false",
    "consecutive_failures": "integer NOT NULL DEFAULT 0",
    "ejections": "integer NOT NULL DEFAULT 0",
    "success_count": "bigint NOT NULL DEFAULT 0",
    "failure_count": "bigint NOT NULL DEFAULT 0",
    "last_success_at": "timestamptz",
    "last_failure_at": "timestamptz",
    "failure_type": "text",
    "failure_reason": "text",
    "disabled_at": "timestamptz",
    "disabled_by": "text",
    "disabled_reason": "text",
    "disabled_until": "timestamptz",
    "recovered_at": "timestamptz",
    "would_disable": "text",
    "created_at": "timestamptz NOT NULL DEFAULT now()",
    "updated_at": "timestamptz NOT NULL DEFAULT now()",
}

# What recover looks for, a few rows. Not by time: an adopted table may mix timestamp and
# timestamptz, and what compares them depends on the session, which an index may not. Both planners
# want the condition of the query word by word: NOT active does not serve active IS NOT TRUE, even
# where the column cannot be NULL.
MODELS_INDEXES = (
    "CREATE INDEX modelctl_models_auto_disabled ON models (id)"
    " WHERE active IS NOT TRUE AND auto_disabled IS TRUE",
    "CREATE INDEX modelctl_models_disabled_until ON models (id) WHERE disabled_until IS NOT NULL",
)

# {own}: the schema of modelctl's own tables. Not that of the application's table: tools that bring
# a schema into the shape that an application declares drop tables that they do not know.
#
# An event of a provider has the model_id '' and says in provider whose it is.
# A hold keeps the health rule from switching. provider NULL: the whole fleet. failure_type NULL: a
# pause by a person, which stops all automatic switching; else an incident of that provider, which
# stops switching off for that type of failure.
POSTGRESQL_TABLES = (
    """
    CREATE TABLE {own}modelctl_events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        model_id text NOT NULL,
        event text NOT NULL,
        before text,
        after text,
        actor text,
        reason text,
        failure_type text,
        provider text,
        details jsonb
    )
    """,
    "CREATE INDEX modelctl_events_model ON {own}modelctl_events (model_id, id)",
    # They come in the order of their times, so a block range index does, and costs a bulk change
    # nothing.
    "CREATE INDEX modelctl_events_at ON {own}modelctl_events"
    " USING brin (at) WITH (autosummarize = on)",
    """
    CREATE TABLE {own}modelctl_outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        due timestamptz NOT NULL DEFAULT clock_timestamp(),
        settle boolean NOT NULL DEFAULT false
    )
    """,
    "CREATE INDEX modelctl_outbox_due ON {own}modelctl_outbox (due)",
    """
    CREATE TABLE {own}modelctl_state (
        name text PRIMARY KEY,
        at timestamptz NOT NULL,
        value text
    )
    """,
    """
    CREATE TABLE {own}modelctl_holds (
        scope text PRIMARY KEY,
        provider text,
        failure_type text,
        since timestamptz NOT NULL DEFAULT now(),
        until timestamptz NOT NULL,
        reason text,
        actor text
    )
    """,
)

NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"

SQLITE_MODELS = {
    "id": "TEXT PRIMARY KEY NOT NULL",
    "display_name": "TEXT NOT NULL DEFAULT ''",
    "provider": "TEXT NOT NULL DEFAULT ''",
    "active": "BOOLEAN NOT NULL DEFAULT 1",
    "auto_disabled": "BOOLEAN NOT NULL DEFAULT 0",
    "consecutive_failures": "INTEGER NOT NULL DEFAULT 0",
    "ejections": "INTEGER NOT NULL DEFAULT 0",
    "success_count": "INTEGER NOT NULL DEFAULT 0",
    "failure_count": "INTEGER NOT NULL DEFAULT 0",
    "last_success_at": "TEXT",
    "last_failure_at": "TEXT",
    "failure_type": "TEXT",
    "failure_reason": "TEXT",
    "disabled_at": "TEXT",
    "disabled_by": "TEXT",
    "disabled_reason": "TEXT",
    "disabled_until": "TEXT",
    "recovered_at": "TEXT",
    "would_disable": "TEXT",
    "created_at": f"TEXT NOT NULL DEFAULT ({NOW})",
    "updated_at": f"TEXT NOT NULL DEFAULT ({NOW})",
}

SQLITE_TABLES = (
    f"""
    CREATE TABLE modelctl_events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL DEFAULT ({NOW}),
        model_id TEXT NOT NULL,
        event TEXT NOT NULL,
        before TEXT,
        after TEXT,
        actor TEXT,
        reason TEXT,
        failure_type TEXT,
        provider TEXT,
        details TEXT
    )
    """,
    "CREATE INDEX modelctl_events_model ON modelctl_events (model_id, id)",
    "CREATE INDEX modelctl_events_at ON modelctl_events (at)",
    """
    CREATE TABLE modelctl_cache (
        key TEXT PRIMARY KEY NOT NULL,
        value INTEGER,
        nonce TEXT,
        expires_at REAL NOT NULL
    )
    """,
    """
    CREATE TABLE modelctl_state (
        name TEXT PRIMARY KEY NOT NULL,
        at TEXT NOT NULL,
        value TEXT
    )
    """,
    f"""
    CREATE TABLE modelctl_holds (
        scope TEXT PRIMARY KEY NOT NULL,
        provider TEXT,
        failure_type TEXT,
        since TEXT NOT NULL DEFAULT ({NOW}),
        until TEXT NOT NULL,
        reason TEXT,
        actor TEXT
    )
    """,
)


def upgrade(connection: Connection, own: str) -> None:
    """Create what is missing; a table ``models`` keeps its columns, its rows and their values.

    *own*: what precedes the names of modelctl's tables.
    """
    postgresql = connection.dialect.name == "postgresql"
    columns = POSTGRESQL_MODELS if postgresql else SQLITE_MODELS
    kept = columns_to_keep(connection, NEEDED, EMPTIED)
    if kept is None:
        _create(connection, columns)
    else:
        missing = {name: columns[name] for name in columns if name not in kept}
        (_add_postgresql if postgresql else _add_sqlite)(connection, missing)
    tables = POSTGRESQL_TABLES if postgresql else SQLITE_TABLES
    for statement in (*MODELS_INDEXES, *tables):
        connection.exec_driver_sql(statement.replace("{own}", own))


def _create(connection: Connection, columns: dict[str, str]) -> None:
    body = ", ".join(f"{name} {definition}" for name, definition in columns.items())
    connection.exec_driver_sql(f"CREATE TABLE models ({body})")


def _add_postgresql(connection: Connection, columns: dict[str, str]) -> None:
    if columns:
        added = ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in columns.items())
        connection.exec_driver_sql(f"ALTER TABLE models {added}")


def _add_sqlite(connection: Connection, columns: dict[str, str]) -> None:
    # SQLite adds no column with a computed default; the literal says when it was adopted.
    now = connection.exec_driver_sql(f"SELECT {NOW}").scalar_one()
    for name, definition in columns.items():
        # A STRICT table knows INTEGER and TEXT only.
        kind = definition.replace("BOOLEAN", "INTEGER").replace(f"({NOW})", f"'{now}'")
        connection.exec_driver_sql(f"ALTER TABLE models ADD COLUMN {name} {kind}")
