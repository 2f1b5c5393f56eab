"""What recovery needs: disables that end by themselves, holds, and events of providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.migrations.adoption import columns_to_keep

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision = "0002"
down_revision = "0001"

# Its columns of models, and what each must be in a table that is there already. All are emptied.
NEEDED = {
    "disabled_until": "timestamp",
    "recovered_at": "timestamp",
    "would_disable": "text",
}

POSTGRESQL_MODELS = {
    "disabled_until": "timestamptz",
    "recovered_at": "timestamptz",
    "would_disable": "text",
}
SQLITE_MODELS = dict.fromkeys(NEEDED, "TEXT")

# Both planners want the condition of the query word by word: NOT active does not serve
# active IS NOT TRUE, even where the column cannot be NULL.
MODELS_INDEXES = (
    "DROP INDEX IF EXISTS modelctl_models_auto_disabled",
    "CREATE INDEX modelctl_models_auto_disabled ON models (id)"
    " WHERE active IS NOT TRUE AND auto_disabled IS TRUE",
    "CREATE INDEX modelctl_models_disabled_until ON models (id) WHERE disabled_until IS NOT NULL",
)

# Events of a provider: model_id is '' and provider says whose.
ADD_PROVIDER = "ALTER TABLE modelctl_events ADD COLUMN provider text"
# They come in the order of their times, so a block range index does, and costs a bulk change nothing.
POSTGRESQL_AT = (
    "CREATE INDEX modelctl_events_at ON modelctl_events USING brin (at) WITH (autosummarize = on)"
)
SQLITE_AT = "CREATE INDEX modelctl_events_at ON modelctl_events (at)"

# What keeps the health rule from switching. provider NULL: the whole fleet. failure_type NULL: a
# pause by a person, which stops all automatic switching; else an incident of that provider, which
# stops switching off for that type of failure.
POSTGRESQL_HOLDS = """
    CREATE TABLE modelctl_holds (
        scope text PRIMARY KEY,
        provider text,
        failure_type text,
        since timestamptz NOT NULL DEFAULT now(),
        until timestamptz NOT NULL,
        reason text,
        actor text
    )
    """
SQLITE_HOLDS = """
    CREATE TABLE modelctl_holds (
        scope TEXT PRIMARY KEY NOT NULL,
        provider TEXT,
        failure_type TEXT,
        since TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        until TEXT NOT NULL,
        reason TEXT,
        actor TEXT
    )
    """


def upgrade(connection: Connection) -> None:
    """Add to the tables; models comes first, in the order in which changes lock them."""
    postgresql = connection.dialect.name == "postgresql"
    columns = POSTGRESQL_MODELS if postgresql else SQLITE_MODELS
    kept = columns_to_keep(connection, NEEDED, emptied=NEEDED) or set()
    for name, kind in columns.items():
        if name not in kept:
            connection.exec_driver_sql(f"ALTER TABLE models ADD COLUMN {name} {kind}")
    rest = (POSTGRESQL_AT, POSTGRESQL_HOLDS) if postgresql else (SQLITE_AT, SQLITE_HOLDS)
    for statement in (*MODELS_INDEXES, ADD_PROVIDER, *rest):
        connection.exec_driver_sql(statement)
