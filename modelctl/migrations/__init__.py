"""Create and migrate the schema, on a connection that the caller has opened.

Alembic does the bookkeeping, without ``env.py`` and ``alembic.op``: those are one per process,
and an application that imports modelctl may be using them.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

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


def upgrade(connection: Connection) -> SchemaStatus:
    """Create the schema, adopt a table ``models`` that is there, or migrate: all of it or nothing.

    Begins and commits a transaction of its own; others that upgrade meanwhile wait. Missing or
    disabled triggers are put back even where the schema is up to date.

    Raises:
        InvalidConfigError: this database, or its table ``models``, cannot be used.
    """
    with _alone(connection):
        before = _status(connection)
        _refuse_unknown(connection, before)
        _migrate(connection)
        if not before.up_to_date or not all(installed_triggers(connection).values()):
            install_triggers(connection)
        return _status(connection)


def status(connection: Connection) -> SchemaStatus:
    """Compare the schema of the database with the one of this release."""
    with _reading(connection):
        return _status(connection)


def triggers(connection: Connection) -> dict[str, bool]:
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


def _status(connection: Connection) -> SchemaStatus:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
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


def _migrate(connection: Connection) -> None:
    scripts = _scripts()

    def steps(heads: tuple[str, ...], _: MigrationContext) -> Iterable[RevisionStep]:
        pending = scripts.iterate_revisions(scripts.get_current_head(), heads or "base")
        for script in reversed(list(pending)):
            yield MigrationStep.upgrade_from_script(scripts.revision_map, script)

    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "fn": steps}
    )
    context.run_migrations(connection=connection)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(Path(__file__).parent)
