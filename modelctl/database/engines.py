"""The SQLAlchemy engines: a file of SQLite, or a pool of connections to PostgreSQL."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy import util

if TYPE_CHECKING:
    from pathlib import Path

    from modelctl.postgres_client.connections import Connector

# How a transaction begins, unless the execution option `begin` of its connection says otherwise: that is
# SQL for PostgreSQL, or None for no transaction at all.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"


def _number_cursors_anew() -> None:
    """Give the child of a fork a new counter for the names of cursors.

    SQLAlchemy's has a lock for the whole process. If another thread of the parent holds it during the
    fork, the child would wait for it for ever.
    """
    dialect: Any = sys.modules.get("sqlalchemy.dialects.postgresql._psycopg_common")
    if dialect:
        dialect._server_side_id = util.counter()


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_number_cursors_anew)


def sqlite_engine(path: Path) -> sa.Engine:
    """Open the file anew for each connection; every transaction locks it for writing at once."""
    import sqlite3

    from modelctl.database import sqlite

    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite.connect(path),
        poolclass=sa.NullPool,
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def _compare_with_one(_: Any, __: Any, sql: str, values: Any, *___: Any) -> tuple[str, Any]:
        return sqlite.compare_with_one(sql), values

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # The driver begins no transaction before a SELECT. A lock that is taken only at the first
        # write comes too late: the rows may have changed since they were read.
        if connection.get_execution_options().get("begin", BEGIN) is None:
            return
        # SQLite's own wait checks the lock less and less often, so that with many writers some
        # would never acquire it. So we retry at short intervals ourselves.
        until = time.monotonic() + sqlite.BUSY_SECONDS
        connection.exec_driver_sql("PRAGMA busy_timeout = 20")
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                break
            except sa_exc.OperationalError as exc:
                busy = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > until:
                    raise
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {sqlite.BUSY_SECONDS * 1000:.0f}")

    return engine


def postgres_engine(connector: Connector, pool_size: int, pool_timeout: float) -> sa.Engine:
    """Keep at most *pool_size* connections, which *connector* opens."""
    import select

    import psycopg

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=connector,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        pool_use_lifo=True,
        use_native_hstore=False,
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "checkout")
    def _check_idle(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        # If there is something to read on an idle connection, the server has closed it. This check
        # costs no round trip.
        poll = select.poll()
        if not dbapi_connection.closed:
            poll.register(dbapi_connection.pgconn.socket, select.POLLIN)
        if dbapi_connection.closed or poll.poll(0):
            raise sa_exc.DisconnectionError("closed by the server while idle")
        if not dbapi_connection.autocommit:  # a migration has set an isolation level
            dbapi_connection.autocommit = True

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        begin = connection.get_execution_options().get("begin", BEGIN)
        raw: Any = connection.connection.dbapi_connection
        if not raw.autocommit:  # the driver sends BEGIN itself
            begin = f"SELECT {connector.local}" if connector.local else None
        elif connector.local:
            begin = with_settings(begin or BEGIN, connector.local)
        if begin is None:
            return
        try:
            answer = raw.execute(begin)
        except psycopg.Error as exc:
            if raw.closed:  # SQLAlchemy does not check errors that are raised in an event
                connection.invalidate(exc)
            raise
        # The second result, if there is one, is that of `database._WRITE`: the transaction's id.
        connection.info["transaction"] = answer.fetchone()[:2] if answer.nextset() else None

    return engine


def with_settings(begin: str, settings: str) -> str:
    """Add *settings*, the fields of a SELECT, to the SQL that begins a transaction."""
    if "SELECT" not in begin:
        return f"{begin}; SELECT {settings}"
    # The settings of a write itself come last, so that they take precedence.
    return begin.replace(", set_config(", f", {settings}, set_config(", 1)
