"""Create, adopt, compare and repair the schema, on a connection that the caller has opened.

`declared` and `triggers` say what must exist. `postgresql` and `sqlite` look what is there and make
a `Plan` of what differs: `compare` tells it, `upgrade` carries it out. No revision is trusted: a
table that another tool dropped is found because it is not there.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelctl.count.outbox import SEAL
from modelctl.database.sql import lock_key
from modelctl.errors import InvalidConfigError
from modelctl.migrations import postgresql, sqlite
from modelctl.migrations.declared import CACHE, HEAD, KNOWN, OUTBOX
from modelctl.reports import SchemaStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from modelctl.migrations.plan import Plan

OLDEST_POSTGRESQL = 13
UPGRADE_LOCK = int.from_bytes(b"mctl-ddl")
SCHEMA = "modelctl"


def upgrade(connection: Connection, schema: str = SCHEMA, *, dry_run: bool = False) -> SchemaStatus:
    """Create the schema, adopt a table ``models`` that is there, or repair: all of it or nothing.

    Begins and commits a transaction of its own; others that upgrade meanwhile wait.

    *schema*: where modelctl's own tables are on PostgreSQL. *dry_run*: only say what would be done,
    and what stands in the way.

    Raises:
        InvalidConfigError: this database, or its table ``models``, cannot be used.
    """
    if dry_run:
        with _reading(connection):
            plan = _plan(connection, schema)
            if plan.steps:
                plan.obstacles += plan.rights
            return _status(connection, plan, dry_run=True)
    with _alone(connection, schema):
        plan = _plan(connection, schema)
        problems = [*plan.obstacles, *(plan.rights if plan.steps else ())]
        if problems:
            hint = "nothing was changed; or give modelctl a database of its own (database.url)"
            raise InvalidConfigError("; ".join(problems), hint=hint)
        plan.execute(connection)
        if plan.steps:
            _seal(connection, schema)
        if plan.steps and plan.installed:
            _invalidate(connection, schema)
        after = _plan(connection, schema)
        return _status(connection, after, repaired=plan)


def status(connection: Connection, schema: str = SCHEMA) -> SchemaStatus:
    """Compare the database with what this release needs."""
    with _reading(connection):
        return _status(connection, _plan(connection, schema))


def compare(connection: Connection, schema: str = SCHEMA) -> list[str]:
    """Return everything that differs from what this release needs, in words."""
    found = status(connection, schema)
    return [*found.obstacles, *found.findings]


def triggers(connection: Connection, schema: str = SCHEMA) -> dict[str, bool]:
    """Map each trigger that must exist to whether it is there, as it must be, and enabled."""
    with _reading(connection):
        return _plan(connection, schema).triggers


def try_triggers(connection: Connection, schema: str = SCHEMA) -> list[str]:
    """Switch one model over and look whether that reaches the cache; return what is wrong.

    In a transaction that is rolled back. A fleet without models has nothing to try it with.
    """
    raw: Any = connection.connection.driver_connection
    with _reading(connection):
        connection.exec_driver_sql("SELECT 1")  # begins, where the engine begins at all
        postgres = connection.dialect.name == "postgresql"
        begun = raw.info.transaction_status if postgres else raw.in_transaction
        if not begun:
            connection.exec_driver_sql("BEGIN" if postgres else "BEGIN IMMEDIATE")
        try:
            return _try_postgres(connection, schema) if postgres else _try_sqlite(connection)
        finally:
            connection.exec_driver_sql("ROLLBACK")


_FLIP = (
    "UPDATE models SET active = NOT coalesce(active, false)"
    " WHERE id = (SELECT id FROM models ORDER BY id LIMIT 1)"
)


def _try_postgres(connection: Connection, schema: str) -> list[str]:
    events, outbox = f'"{schema}".modelctl_events', f'"{schema}".{OUTBOX}'
    tried = (
        (
            f"INSERT INTO {events} (model_id, event) VALUES ('doctor', 'tried')",
            "events are not kept",
        ),
        (
            f"UPDATE {outbox} SET settle = settle WHERE xid = pg_current_xact_id()",
            f"a change of status writes no row into {schema}.{OUTBOX}, or that row cannot be changed",
        ),
        (
            f"DELETE FROM {outbox} WHERE xid = pg_current_xact_id()",
            f"rows of {schema}.{OUTBOX} cannot be deleted",
        ),
    )
    if not connection.exec_driver_sql(_FLIP).rowcount:
        return []
    for statement, wrong in tried:
        if not connection.exec_driver_sql(statement).rowcount:
            return [wrong]
    return []


def _try_sqlite(connection: Connection) -> list[str]:
    connection.exec_driver_sql(f"INSERT INTO {CACHE} (key, expires_at) VALUES ('doctor', 0)")
    seen = f"SELECT 1 FROM {CACHE} WHERE key = 'doctor'"
    if connection.exec_driver_sql(_FLIP).rowcount and connection.exec_driver_sql(seen).first():
        return ["a change of status does not empty the cache"]
    return []


def detach(connection: Connection, schema: str = SCHEMA) -> list[str]:
    """Take the triggers and functions off; tables and columns stay. Return what was taken off."""
    with _alone(connection, schema):
        if connection.dialect.name != "postgresql":
            found = sqlite.installed_on(connection)
            for name, _ in found:
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
            connection.exec_driver_sql(f"DELETE FROM {CACHE}")
            return [f"trigger {name} of {table}" for name, table in found]
        return postgresql.detach(connection, schema)


@contextmanager
def _alone(connection: Connection, schema: str) -> Iterator[None]:
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
            connection.exec_driver_sql(
                f"SELECT pg_advisory_xact_lock({lock_key(UPGRADE_LOCK, schema)})"
            )
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
    connection: Connection, plan: Plan, *, repaired: Plan | None = None, dry_run: bool = False
) -> SchemaStatus:
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
    )


def _seal(connection: Connection, schema: str) -> None:
    """Note which table and triggers the counts are counted with from now on."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f'INSERT INTO "{schema}".modelctl_state (name, at, value)'
            f" VALUES ('seal', now(), {SEAL})"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value",
            execution_options={"no_parameters": True},
        )


def _invalidate(connection: Connection, schema: str) -> None:
    """What was changed while something was missing is known to no cache."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f'INSERT INTO "{schema}".{OUTBOX} DEFAULT VALUES')
    else:
        connection.exec_driver_sql(f"DELETE FROM {CACHE}")
