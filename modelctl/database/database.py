"""Transactions on PostgreSQL or SQLite: their retries, and a COMMIT that got no answer."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from modelctl import crash_points, deadline
from modelctl.database.engines import BEGIN, postgres_engine, sqlite_engine, with_settings
from modelctl.database.sql import Postgres, Sql, Sqlite
from modelctl.errors import DatabaseUnavailableError, ModelctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import psycopg

    from modelctl.config.config import Config
    from modelctl.postgres_client.connections import Connector

T = TypeVar("T")

# SQLSTATEs of a transaction that failed because of another transaction: serialization failure, deadlock,
# lock timeout. The failed transaction is retried for _RETRY_SECONDS, and is tried at least _TRIES times.
RETRIED = ("40001", "40P01", "55P03")
_RETRY_SECONDS = 2.0
_TRIES = 3
# How a transaction that writes begins:
# - It asks for its own id and for the start time of the server. With them we can ask for the outcome
#   if the answer to its COMMIT is lost.
# - It gives up waiting for a lock before PostgreSQL looks for a deadlock (deadlock_timeout, 1 s). So
#   in a deadlock with another program it is our transaction that fails, and is retried.
# - An application's deferred triggers run at the end of each statement. So we can check the rows that
#   a statement has changed, and the COMMIT does not undo them afterwards.
# - It names itself as a transaction of modelctl, which writes its own events: the triggers then write
#   none (`schema.triggers`).
LOCK_TIMEOUT = "150ms"
_WRITE = (
    f"{BEGIN}; SELECT CAST(pg_current_xact_id() AS text), pg_postmaster_start_time(),"
    f" set_config('lock_timeout', '{LOCK_TIMEOUT}', true),"
    " set_config('modelctl.transaction', CAST(pg_current_xact_id() AS text), true);"
    " SET CONSTRAINTS ALL IMMEDIATE"
)
# All statements of the transaction see the database as it is at the first of them.
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_RESOLVE_SECONDS = 2.0
_OUTCOME = "SELECT pg_xact_status(CAST(:xid AS xid8)), pg_postmaster_start_time()"
# NULL from another server: there another transaction may have the same id, or none yet.
_OUTCOME_THERE = (
    "SELECT CASE WHEN pg_postmaster_start_time() = CAST(:server AS timestamptz)"
    " THEN pg_xact_status(CAST(:xid AS xid8)) END"
)

# If a connection is lost during a listing, SQLAlchemy logs that it cannot close the cursor. Without
# a handler Python would print that with a traceback, beside our own message.
logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())


class Query(NamedTuple):
    """Statements, and the values of the names in them."""

    sql: str
    parameters: Mapping[str, Any]


class Database:
    """One PostgreSQL or SQLite database; connects on first use, keeps *pool_size* connections."""

    def __init__(self, config: Config, pool_size: int) -> None:
        self._config = config
        self._connector: Connector | None = None
        if config.sqlite_path:
            self.engine = sqlite_engine(config.sqlite_path)
        else:
            from modelctl.postgres_client.connections import Connector

            self._connector = Connector(config)
            self.engine = postgres_engine(self._connector, pool_size, config.database.pool_timeout)
        # Writers may have to wait for a lock. Readers always have one connection left.
        self._writers = threading.BoundedSemaphore(max(1, pool_size - 1))
        # The prefix of modelctl's own tables: their schema, on PostgreSQL.
        self.own = "" if config.sqlite_path else f'"{config.database.schema}".'
        self.schema = config.database.schema
        self.on_sqlite = config.sqlite_path is not None
        self.sql: Sql = Sqlite() if self.on_sqlite else Postgres()
        # The columns of an application's table models; read only after a statement failed at one.
        self.columns: dict[str, Any] = {}
        # Called with a warning about rows that cannot be read.
        self.warn: Callable[[str], None] = lambda _: None
        self._closed = False
        sa.event.listen(self.engine, "checkin", self._close_late)
        self._reading = self.engine.execution_options(begin=None)
        snapshot = None if self.on_sqlite else _SNAPSHOT
        self._snapshot = self.engine.execution_options(begin=snapshot)
        self._writing = self.engine.execution_options(begin=_WRITE)

    @property
    def unchecked(self) -> bool:
        """Whether a text may have bytes that the encoding of the database does not define."""
        return self._connector is None or self._connector.unchecked

    def storable(self, text: str) -> str:
        """Return *text* with a question mark for each character that the database's encoding lacks."""
        codec = self._connector.codec if self._connector else ""
        return text.encode(codec, "replace").decode(codec) if codec else text

    def close(self) -> None:
        """Close the connections of the pool; those in use when they are returned to it."""
        self._closed = True
        self.engine.dispose()

    def _close_late(self, connection: Any, _: object) -> None:
        if self._closed and connection is not None:
            connection.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection on which every statement is its own transaction."""
        with self._translated(), self._reading.connect() as connection:
            yield connection
            # On an autocommit connection this does nothing. Behind a pooler that needs our settings in
            # each transaction, it ends the transaction.
            connection.commit()

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Give a connection whose first statement begins a transaction."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Give a connection for several reads, which all see the same state of the database."""
        with self._translated(), self._snapshot.connect() as connection:
            if self.on_sqlite:  # a transaction of a reader, which lets others write
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise modelctl's errors in place of the driver's, which would show rows and parameters."""
        try:
            yield
        except (sa_exc.DBAPIError, self.engine.dialect.loaded_dbapi.Error) as exc:
            raise self._translate(exc) from None
        except UnicodeEncodeError as exc:
            if not (self._connector and self._connector.unchecked):
                raise
            from modelctl.postgres_client.errors import lacking

            raise lacking(self._connector.encoding, exc.object[exc.start]) from None
        except sa_exc.TimeoutError:
            raise self._pool_exhausted() from None
        except (sa_exc.ResourceClosedError, sa_exc.PendingRollbackError):
            # The server closed the connection between two statements of a transaction. Earlier
            # transactions of the same call are committed, so the message does not say that nothing
            # was changed.
            raise DatabaseUnavailableError(
                "the connection to the database was lost", hint="try again later"
            ) from None
        except sa_exc.SQLAlchemyError as exc:
            raise ModelctlError(self._config.hide(str(exc))) from None

    def _translate(self, exc: Exception) -> ModelctlError:
        cause: BaseException = getattr(exc, "orig", None) or exc
        if self._config.sqlite_path:
            from modelctl.database import sqlite

            return sqlite.translate(cause, self._config.sqlite_path)
        from modelctl.postgres_client import errors

        return errors.translate(cause, self._config)

    def _pool_exhausted(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            "all connections of this process are in use",
            hint="raise database.pool_size, or use fewer threads",
        )

    def write(self, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction; retry for 2 s if it fails because of another transaction."""
        return self._retrying(lambda: self._transaction(work, dry_run))

    def lock_and_change(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        decide: Callable[[list[Sequence[Any]]], tuple[T, Query]],
    ) -> T:
        """Run a transaction that reads before it writes, on PostgreSQL, in two messages.

        The first message runs *sql*, which locks and reads. *decide* gets the rows of each of its
        statements and returns the result, and the statements that the second message runs before
        COMMIT. An error that *decide* raises, or that one of the statements ends with, rolls back.
        None of SQLAlchemy's work per statement is done, because applications record an outcome after
        every call of a model.
        """
        return self._retrying(lambda: self._in_two_messages(sql, parameters, decide))

    def _retrying(self, transaction: Callable[[], T]) -> T:
        started = time.monotonic()
        for attempt in itertools.count(1):
            try:
                with self._translated(), self._writer_slot():
                    return transaction()
            except DatabaseUnavailableError as exc:
                late = time.monotonic() - started > _RETRY_SECONDS
                if exc.sqlstate not in RETRIED or (late and attempt >= _TRIES):
                    raise
                # Meanwhile the connection is free for threads that want other rows.
                with deadline.spending():
                    time.sleep(random.uniform(0.01, 0.1) * 2 ** min(attempt - 1, 2))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    @contextmanager
    def _writer_slot(self) -> Iterator[None]:
        if self._connector is None:
            yield
            return
        with deadline.spending():
            free = self._writers.acquire(timeout=self._config.database.pool_timeout)
        if not free:
            raise self._pool_exhausted()
        try:
            yield
        finally:
            self._writers.release()

    def _transaction(self, work: Callable[[sa.Connection], T], dry_run: bool) -> T:
        with self._writing.connect() as connection:
            transaction = connection.begin()
            result = work(connection)
            crash_points.reach("before-commit")
            if dry_run:
                transaction.rollback()
                return result
            known = connection.info.get("transaction")
            try:
                transaction.commit()
            except (sa_exc.DBAPIError, sa_exc.ResourceClosedError) as exc:
                lost = not isinstance(exc, sa_exc.DBAPIError) or exc.connection_invalidated
                if not lost:
                    raise
                self._resolve(known, exc)
            return result

    def _in_two_messages(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        decide: Callable[[list[Sequence[Any]]], tuple[T, Query]],
    ) -> T:
        import psycopg

        begin = _WRITE
        if self._connector and self._connector.local:
            begin = with_settings(begin, self._connector.local).replace("%", "%%")
        pooled = self.engine.raw_connection()
        raw: Any = pooled.driver_connection
        known = None
        try:
            # A message with several statements takes no parameters: the client puts the values in.
            with psycopg.ClientCursor(raw) as cursor:
                cursor.execute(f"{begin}; {_bound(sql)}", parameters)
                cursor.nextset()
                known = (cursor.fetchone() or ())[:2]
                result, query = decide(_remaining_rows(cursor))
                crash_points.reach("before-commit")
                with raw.committing():
                    cursor.execute(f"{_bound(query.sql)}; COMMIT", query.parameters)
        except psycopg.Error as exc:
            if not raw.closed:
                raise
            pooled.invalidate(exc)  # frees its place in the pool for the question about the outcome
            if not known:
                raise
            self._resolve(known, exc)
        finally:
            pooled.close()  # rolls back, unless it is committed
        return result

    def _resolve(self, known: Sequence[Any] | None, lost: Exception) -> None:
        """Return if the transaction whose COMMIT got no answer was committed, else raise.

        *known*: its id and the start time of its server; None if the server has not told them.
        """
        xid, server = known or (None, None)
        why = self._translate(lost).message
        with deadline.patience(max(_RESOLVE_SECONDS, deadline.left(0))):
            for attempt in range(_TRIES if known else 0):
                if attempt:
                    with deadline.spending():
                        time.sleep(0.5)
                with suppress(sa_exc.SQLAlchemyError), self._reading.connect() as connection:
                    status, asked = connection.execute(sa.text(_OUTCOME), {"xid": xid}).one()
                    # After a restart or a failover another transaction may have the same id.
                    if status == "committed" and asked == server:
                        return
                    if status == "aborted":
                        raise DatabaseUnavailableError(
                            f"{why}; the change was not made", hint="try again later"
                        ) from None
        unknown = DatabaseUnavailableError(
            f"{why}; it is not known whether the change was made",
            hint="look before you repeat it; all but recording an outcome may be repeated",
        )
        if xid:
            unknown.in_doubt = (xid, server)
        raise unknown from None

    def was_committed(self, transaction: tuple[str, object]) -> bool | None:
        """Return what became of a transaction that was in doubt; None: it cannot be known any more."""
        xid, server = transaction
        with self.reading() as connection:
            values = {"xid": xid, "server": server}
            status = connection.execute(sa.text(_OUTCOME_THERE), values).scalar_one()
        return {"committed": True, "aborted": False}.get(status)


@functools.cache
def _bound(sql: str) -> str:
    """Return *sql* with its :names as psycopg writes them."""
    from sqlalchemy.dialects.postgresql import psycopg

    dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
    return str(sa.text(sql).compile(dialect=dialect))


def _remaining_rows(cursor: psycopg.Cursor[Any]) -> list[Sequence[Any]]:
    """Return the rows of each of the statements that follow, of those that return rows."""
    found: list[Sequence[Any]] = []
    while cursor.nextset():
        if cursor.description:
            found.append(cursor.fetchall())
    return found
