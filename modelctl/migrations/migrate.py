"""Create, adopt, compare and repair the schema, on a connection that the caller has opened.

`modelctl.schema` declares what must exist. `postgresql` and `sqlite` compare it with what is there and
make a `Plan` of the differences: `status` reports it, `upgrade` executes it. The recorded revision does
not matter for that: a table that another tool dropped is found because it is not there.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import exc as sa_exc

from modelctl import deadline
from modelctl.adoption.adoption import NOTE, Note, has_created
from modelctl.count.outbox import SEAL
from modelctl.database.locks import lock_key
from modelctl.errors import DatabaseUnavailableError, InvalidConfigError
from modelctl.migrations import postgresql, sqlite
from modelctl.migrations.plan import execute
from modelctl.migrations.results import SchemaStatus
from modelctl.schema.declared import (
    CACHE,
    HEAD,
    KNOWN,
    MODELS_COLUMNS,
    NOW,
    OUTBOX,
    STATE,
)
from modelctl.schema.for_tools import Added
from modelctl.tables.application import count_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, RootTransaction

    from modelctl.migrations.plan import Plan

OLDEST_POSTGRESQL = 13
UPGRADE_LOCK = int.from_bytes(b"mctl-ddl")
SCHEMA = "modelctl"
# How long to wait for another upgrade outside of a call (seconds).
_LONGEST_WAIT = 600.0


def upgrade(connection: Connection, schema: str = SCHEMA, *, dry_run: bool = False) -> SchemaStatus:
    """Create the schema, adopt a table ``models`` that is there, or repair: all of it or nothing.

    Begins and commits a transaction of its own; another upgrade waits until it has ended.

    *schema*: of modelctl's own tables, on PostgreSQL. *dry_run*: only return what would be done, and
    the obstacles.

    Raises:
        InvalidConfigError: this database, or its table ``models``, cannot be used.
    """
    if dry_run:
        with reading(connection):
            plan = _plan(connection, schema)
            if plan.steps:
                plan.obstacles += plan.rights
            return _status(connection, schema, plan, dry_run=True)
    with alone(connection, schema):
        plan = _plan(connection, schema)
        problems = [*plan.obstacles, *(plan.rights if plan.steps else ())]
        if problems:
            hint = "nothing was changed; or give modelctl a database of its own (database.url)"
            raise InvalidConfigError("; ".join(problems), hint=hint)
        execute(connection, _script(connection, schema, plan))
        after = _plan(connection, schema)
        return _status(connection, schema, after, repaired=plan)


def status(connection: Connection, schema: str = SCHEMA) -> SchemaStatus:
    """Compare the database with what this release needs."""
    with reading(connection):
        return _status(connection, schema, _plan(connection, schema))


def added(connection: Connection, schema: str = SCHEMA) -> Added:
    """Return what an upgrade adds, or has added, to ``models``; all columns if that is not known."""
    with reading(connection):
        plan = _plan(connection, schema)
    note, every = Note.read(plan.note), tuple(MODELS_COLUMNS)
    indexes = {
        name: real
        for name, real in plan.indexes.items()
        if has_created(note, real, as_declared=True)
    }
    if note is None:
        return Added(plan.table_sql, plan.schema, every[1:], indexes, whole=False)
    columns = tuple(name for name in every if note.created or name in note.columns)
    return Added(plan.table_sql, plan.schema, columns, indexes, whole=note.created)


def triggers(connection: Connection, schema: str = SCHEMA) -> dict[str, bool]:
    """Return for each declared trigger whether it is there, as declared, and enabled."""
    with reading(connection):
        return _plan(connection, schema).triggers


@contextmanager
def alone(connection: Connection, schema: str) -> Iterator[None]:
    """Run a transaction beside which no other upgrade runs."""
    if connection.dialect.name == "postgresql":
        # The first read of the schema must see what the other upgrade has committed: not with an
        # older snapshot, and after the lock.
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin() as transaction:
            # A large table, and another upgrade, may take long. But the wait for the lock of the
            # table keeps its limit: all programs that need the table wait behind us.
            patience = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            _take_upgrade_lock(connection, schema)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience}'")
            yield
            _commit(transaction)
    else:
        with connection.begin():
            # The driver or an event may have begun a transaction, in which nothing was read yet.
            if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield


def _commit(transaction: RootTransaction) -> None:
    try:
        transaction.commit()
    except (sa_exc.DBAPIError, sa_exc.ResourceClosedError) as exc:
        if isinstance(exc, sa_exc.DBAPIError) and not exc.connection_invalidated:
            raise
        raise DatabaseUnavailableError(
            "the COMMIT was not answered; it is not known whether the schema was changed",
            hint="look: modelctl db status; the command may be repeated",
        ) from None


def _take_upgrade_lock(connection: Connection, schema: str) -> None:
    # The server gives up before this process does, and tells why.
    seconds = deadline.left(_LONGEST_WAIT)
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds * 1000 * 2 / 3:.0f}ms'")
    try:
        connection.exec_driver_sql(
            f"SELECT pg_advisory_xact_lock({lock_key(UPGRADE_LOCK, schema)})"
        )
    except sa_exc.DBAPIError as exc:
        if getattr(exc.orig, "sqlstate", None) != "55P03":
            raise
        raise DatabaseUnavailableError(
            "another upgrade, detach or uninstall of this fleet is running",
            hint="try again when it has ended; nothing was changed",
        ) from None


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """Leave no transaction open, except one that the caller has begun."""
    begun = connection.in_transaction()
    try:
        yield
    finally:
        if not begun:
            connection.rollback()


def _plan(connection: Connection, schema: str) -> Plan:
    if connection.dialect.name == "postgresql":
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        if int(version.split(".")[0]) < OLDEST_POSTGRESQL:
            raise InvalidConfigError(
                f"the server is PostgreSQL {version}; modelctl needs {OLDEST_POSTGRESQL} or newer",
                hint="upgrade the server, or use another one",
            )
        plan = postgresql.plan(connection, schema)
    else:
        plan = sqlite.plan(connection)
    if plan.current is not None and plan.current not in KNOWN:
        plan.obstacles.insert(
            0,
            f"the schema is at revision {plan.current}, which this release does not know (it knows"
            f" up to {HEAD}): a newer modelctl has made it; upgrade modelctl here as well",
        )
    return plan


def _status(
    connection: Connection,
    schema: str,
    plan: Plan,
    *,
    repaired: Plan | None = None,
    dry_run: bool = False,
) -> SchemaStatus:
    number, rows = count_rows(connection) if plan.width else (None, None)
    return SchemaStatus(
        connection.dialect.name,
        plan.current,
        HEAD,
        up_to_date=not (plan.steps or plan.obstacles),
        table=plan.table,
        findings=plan.findings,
        obstacles=tuple(plan.obstacles),
        repaired=repaired.findings if repaired else (),
        dry_run=dry_run,
        owner=plan.owner,
        rows=number,
        summary=repaired.summary(rows, done=True) if repaired else plan.summary(rows),
        sql=tuple(_script(connection, schema, plan)) if dry_run and not plan.obstacles else (),
    )


def _script(connection: Connection, schema: str, plan: Plan) -> list[str]:
    """Return the statements that an upgrade executes; none if there is nothing to repair."""
    if not plan.steps:
        return []
    on_postgresql = connection.dialect.name == "postgresql"
    own, now = (f'"{schema}".', "now()") if on_postgresql else ("", f"({NOW})")
    store = (
        f"INSERT INTO {own}{STATE} (name, at, value) VALUES ('{{}}', {now}, {{}})"
        " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value"
    )
    statements = plan.statements
    if plan.note:
        statements.append(store.format(NOTE, f"'{plan.note}'"))
    if on_postgresql:
        # The table and the triggers that the cached count depends on from now on.
        statements.append(store.format("seal", SEAL))
    if plan.installed:
        # Changes that were made while a trigger was missing are not in the cache.
        table = f"INSERT INTO {own}{OUTBOX} DEFAULT VALUES"
        statements.append(table if on_postgresql else f"DELETE FROM {CACHE}")
    return statements
