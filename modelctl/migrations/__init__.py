"""Create and migrate the schema, on a connection that the caller has opened.

Alembic does the bookkeeping, without ``env.py`` and ``alembic.op``: those are one per process,
and an application that imports modelctl may be using them.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory

from modelctl.errors import InvalidConfigError
from modelctl.migrations.triggers import install_triggers, installed_triggers
from modelctl.reports import SchemaStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.runtime.migration import RevisionStep
    from sqlalchemy import Connection

VERSION_TABLE = "modelctl_version"
OLDEST_POSTGRESQL = 13
UPGRADE_LOCK = int.from_bytes(b"mctl-ddl")
SCHEMA = "modelctl"


def upgrade(connection: Connection, schema: str = SCHEMA) -> SchemaStatus:
    """Create the schema, adopt a table ``models`` that is there, or migrate: all of it or nothing.

    Begins and commits a transaction of its own; others that upgrade meanwhile wait. Missing or
    disabled triggers are put back even where the schema is up to date.

    *schema*: where modelctl's own tables are on PostgreSQL.

    Raises:
        InvalidConfigError: this database, or its table ``models``, cannot be used.
    """
    with _alone(connection):
        before = _status(connection, schema)
        _refuse_unknown(connection, before)
        if not before.up_to_date:
            _create_schema(connection, schema)
            _migrate(connection, schema)
        if not before.up_to_date or not all(installed_triggers(connection).values()):
            install_triggers(connection, _own(connection, schema))
        return _status(connection, schema)


def status(connection: Connection, schema: str = SCHEMA) -> SchemaStatus:
    """Compare the schema of the database with the one of this release."""
    with _reading(connection):
        return _status(connection, schema)


def triggers(connection: Connection, _schema: str = SCHEMA) -> dict[str, bool]:
    """Map each trigger that must exist to whether it is there and enabled."""
    with _reading(connection):
        return installed_triggers(connection)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """A transaction that no other upgrade runs beside."""
    if connection.dialect.name == "postgresql":
        # The first look at the schema must come after the lock: no older snapshot, no autocommit.
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            # A large table may take long, and so may the upgrade ahead of us. But the wait for
            # the table itself keeps its limit: whoever queues behind us waits as long.
            patience = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience}'")
            yield
    else:
        with connection.begin():
            # Whatever the driver or an event has begun, nothing was read in it yet.
            if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield


@contextmanager
def _reading(connection: Connection) -> Iterator[None]:
    """Leave no transaction open but the caller's own."""
    begun = connection.in_transaction()
    try:
        yield
    finally:
        if not begun:
            connection.rollback()


def _own(connection: Connection, schema: str) -> str:
    """What precedes the names of modelctl's own tables."""
    return f'"{schema}".' if connection.dialect.name == "postgresql" else ""


def _create_schema(connection: Connection, schema: str) -> None:
    if connection.dialect.name == "postgresql":
        # IF NOT EXISTS would ask for the right to create one even where it is there.
        found = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if not connection.exec_driver_sql(found, (schema,)).first():
            connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')


def _options(connection: Connection, schema: str) -> dict[str, Any]:
    postgresql = connection.dialect.name == "postgresql"
    return {
        "version_table": VERSION_TABLE,
        "version_table_schema": schema if postgresql else None,
    }


def _status(connection: Connection, schema: str) -> SchemaStatus:
    context = MigrationContext.configure(connection, opts=_options(connection, schema))
    current = context.get_current_revision()
    head = cast("str", _scripts().get_current_head())
    return SchemaStatus(connection.dialect.name, current, head, up_to_date=current == head)


def _refuse_unknown(connection: Connection, before: SchemaStatus) -> None:
    if before.database == "postgresql":
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        if int(version.split(".")[0]) < OLDEST_POSTGRESQL:
            raise InvalidConfigError(
                f"the server is PostgreSQL {version}; modelctl needs {OLDEST_POSTGRESQL} or newer",
                hint="upgrade the server, or use another one",
            )
    known = {script.revision for script in _scripts().walk_revisions()}
    if before.current is not None and before.current not in known:
        raise InvalidConfigError(
            f"the schema is at revision {before.current}, which this release does not know"
            f" (it knows up to {before.head})",
            hint="a newer modelctl has migrated this database: upgrade modelctl here as well",
        )


def _migrate(connection: Connection, schema: str) -> None:
    scripts = _scripts()

    def steps(heads: tuple[str, ...], _: MigrationContext) -> Iterable[RevisionStep]:
        pending = scripts.iterate_revisions(scripts.get_current_head(), heads or "base")
        for script in reversed(list(pending)):
            yield MigrationStep.upgrade_from_script(scripts.revision_map, script)

    context = MigrationContext.configure(
        connection, opts=_options(connection, schema) | {"fn": steps}
    )
    context.run_migrations(connection=connection, own=_own(connection, schema))


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(Path(__file__).parent)
