"""Database: transactions on PostgreSQL or SQLite, and how often one is tried."""

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
from modelctl.errors import DatabaseUnavailableError, ModelctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from modelctl.config.config import Config
    from modelctl.database.postgres import Connector

T = TypeVar("T")

# A transaction that another one broke off is made again: within this time, and so often at least.
_AGAIN = ("40001", "40P01", "55P03")
_AGAIN_SECONDS = 2.0
_TRIES = 3
# How a transaction begins. A write knows its id, and whose it is, from the start: what became of
# it can be asked when the answer to its COMMIT is lost. It gives up a lock before PostgreSQL looks
# for a deadlock (deadlock_timeout, 1 s), so that it is not the other program which is broken off.
# Deferred triggers of an application act at the end of each statement: after that we look whether
# what was to be changed is changed, and a COMMIT undoes nothing any more.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
LOCK_TIMEOUT = "150ms"
_WRITE = (
    f"{_BEGIN}; SELECT CAST(pg_current_xact_id() AS text), pg_postmaster_start_time(),"
    f" set_config('lock_timeout', '{LOCK_TIMEOUT}', true); SET CONSTRAINTS ALL IMMEDIATE"
)
_RESOLVE_SECONDS = 2.0
_OUTCOME = "SELECT pg_xact_status(CAST(:xid AS xid8)), pg_postmaster_start_time()"

# Of a listing whose connection ends SQLAlchemy logs that its cursor cannot be closed: where nobody
# set up logging, Python would print that with a traceback beside our own words.
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
            self.engine = _sqlite_engine(config)
        else:
            from modelctl.database.postgres import Connector

            self._connector = Connector(config)
            self.engine = _postgres_engine(config, pool_size, self._connector)
        # Writers may wait for a row; one connection is left to those who read.
        self._writers = threading.BoundedSemaphore(max(1, pool_size - 1))
        # What precedes the names of modelctl's own tables: their schema, where there are schemas.
        self.own = "" if config.sqlite_path else f'"{config.database.schema}".'
        # Of an application's table models, once something failed at them; see tables.Statements.
        self.columns: dict[str, Any] = {}
        # Told of rows that cannot be read.
        self.warn: Callable[[str], None] = lambda _: None
        self._closed = False
        sa.event.listen(self.engine, "checkin", self._given_back)
        self._reading = self.engine.execution_options(begin=None)
        self._writing = self.engine.execution_options(begin=_WRITE)

    @property
    def unchecked(self) -> bool:
        """Whether texts may be no text: bytes that the encoding of the database does not define."""
        return self._connector is None or self._connector.unchecked

    def storable(self, text: str) -> str:
        """*text* with a question mark for what the encoding of a connected database lacks."""
        codec = self._connector.codec if self._connector else ""
        return text.encode(codec, "replace").decode(codec) if codec else text

    def close(self) -> None:
        """Close the pooled connections, those in use when they are given back."""
        self._closed = True
        self.engine.dispose()

    def _given_back(self, connection: Any, _: object) -> None:
        if self._closed and connection is not None:
            connection.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection on which every statement is its own transaction."""
        with self._translated(), self._reading.connect() as connection:
            yield connection
            # Nothing was begun, unless a pooler needs our settings in each transaction.
            connection.commit()

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Give a connection whose first statement begins a transaction."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise our own errors. The others end here: they show rows, and parameters."""
        try:
            yield
        except (sa_exc.DBAPIError, self.engine.dialect.loaded_dbapi.Error) as exc:
            raise self._translate(exc) from None
        except UnicodeEncodeError as exc:
            if not (self._connector and self._connector.unchecked):
                raise
            from modelctl.database.postgres import lacking

            raise lacking(self._connector.encoding, exc.object[exc.start]) from None
        except sa_exc.TimeoutError:
            raise self._crowded() from None
        except (sa_exc.ResourceClosedError, sa_exc.PendingRollbackError):
            # The server ended it between two statements of a transaction. What an earlier
            # transaction of this call has done stays, so nothing is claimed.
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
        from modelctl.database import postgres

        return postgres.translate(cause, self._config)

    def _crowded(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            "all connections of this process are in use",
            hint="raise database.pool_size, or use fewer threads",
        )

    def write(self, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction; again, within 2 s, if another one broke it off."""
        return self._retrying(lambda: self._transaction(work, dry_run))

    def change(
        self, sql: str, parameters: Mapping[str, Any], read: Callable[[list[Sequence[Any]]], T]
    ) -> T:
        """Run statements of PostgreSQL as `write` does; *read* makes the result of their rows.

        What *read* raises undoes them.

        In two round trips, without SQLAlchemy's work per statement: recording an outcome is what
        an application does after every call of a model.
        """
        return self._retrying(lambda: self._alone(sql, parameters, lambda rows: (read(rows), None)))

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
        """
        return self._retrying(lambda: self._alone(sql, parameters, decide))

    def _retrying(self, transaction: Callable[[], T]) -> T:
        started = time.monotonic()
        for attempt in itertools.count(1):
            try:
                with self._translated(), self._one_of_the_writers():
                    return transaction()
            except DatabaseUnavailableError as exc:
                late = time.monotonic() - started > _AGAIN_SECONDS
                if exc.sqlstate not in _AGAIN or (late and attempt >= _TRIES):
                    raise
                # The connection is free meanwhile, for those who want other rows.
                with deadline.spending():
                    time.sleep(random.uniform(0.01, 0.1) * 2 ** min(attempt - 1, 2))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    @contextmanager
    def _one_of_the_writers(self) -> Iterator[None]:
        if self._connector is None:
            yield
            return
        with deadline.spending():
            free = self._writers.acquire(timeout=self._config.database.pool_timeout)
        if not free:
            raise self._crowded()
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

    def _alone(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        decide: Callable[[list[Sequence[Any]]], tuple[T, Query | None]],
    ) -> T:
        import psycopg

        begin = _WRITE
        if self._connector and self._connector.local:
            begin = with_settings(begin, self._connector.local).replace("%", "%%")
        pooled = self.engine.raw_connection()
        raw: Any = pooled.driver_connection
        known = None
        try:
            # Several statements in one message: values are bound on this side.
            with psycopg.ClientCursor(raw) as cursor:
                cursor.execute(f"{begin}; {_bound(sql)}", parameters)
                cursor.nextset()
                known = (cursor.fetchone() or ())[:2]
                answers: list[Sequence[Any]] = []
                while cursor.nextset():
                    if cursor.description:
                        answers.append(cursor.fetchall())
                result, query = decide(answers)
                crash_points.reach("before-commit")
                if query is None:
                    raw.commit()
                else:
                    with raw.committing():
                        cursor.execute(f"{_bound(query.sql)}; COMMIT", query.parameters)
        except psycopg.Error as exc:
            if not raw.closed:
                raise
            pooled.invalidate(exc)  # its place in the pool is free for the one that asks
            if not known:
                raise
            self._resolve(known, exc)
        finally:
            pooled.close()  # rolls back what is not committed
        return result

    def _resolve(self, known: Sequence[Any] | None, lost: Exception) -> None:
        """Return if the transaction was committed whose answer to COMMIT was lost, else raise.

        *known*: its id and when its server started; None: there is nothing to ask for.
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
                    # After a restart or a failover the number may be another transaction's.
                    if status == "committed" and asked == server:
                        return
                    if status == "aborted":
                        raise DatabaseUnavailableError(
                            f"{why}; the change was not made", hint="try again later"
                        ) from None
        raise DatabaseUnavailableError(
            f"{why}; it is not known whether the change was made",
            hint="look before you repeat it; all but recording an outcome may be repeated",
        ) from None


def _sqlite_engine(config: Config) -> sa.Engine:
    import sqlite3

    from modelctl.database import sqlite

    path = config.sqlite_path
    assert path is not None  # noqa: S101 - for the type checker; the caller looked
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite.connect(path),
        poolclass=sa.NullPool,
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def _count_one_alone(_: Any, __: Any, sql: str, values: Any, *___: Any) -> tuple[str, Any]:
        return sqlite.of_one(sql), values

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # The driver begins nothing before a SELECT, and a lock taken late is a lost race.
        if connection.get_execution_options().get("begin", _BEGIN) is None:
            return
        # SQLite's own wait looks ever more rarely: of many writers some would never get in.
        deadline = time.monotonic() + sqlite.BUSY_SECONDS
        connection.exec_driver_sql("PRAGMA busy_timeout = 20")
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                break
            except sa_exc.OperationalError as exc:
                busy = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {sqlite.BUSY_SECONDS * 1000:.0f}")

    return engine


def _postgres_engine(config: Config, pool_size: int, connector: Connector) -> sa.Engine:
    import select

    import psycopg

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=connector,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=config.database.pool_timeout,
        pool_use_lifo=True,
        use_native_hstore=False,
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "checkout")
    def _still_there(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        # An idle connection with something to read was closed by the server: a check that
        # costs no round trip.
        poll = select.poll()
        if not dbapi_connection.closed:
            poll.register(dbapi_connection.pgconn.socket, select.POLLIN)
        if dbapi_connection.closed or poll.poll(0):
            raise sa_exc.DisconnectionError("closed by the server while idle")
        if not dbapi_connection.autocommit:  # a migration chose its isolation level
            dbapi_connection.autocommit = True

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        words = connection.get_execution_options().get("begin", _BEGIN)
        raw: Any = connection.connection.dbapi_connection
        if not raw.autocommit:  # the driver begins
            words = f"SELECT {connector.local}" if connector.local else None
        elif connector.local:
            words = with_settings(words or _BEGIN, connector.local)
        if words is None:
            return
        try:
            answer = raw.execute(words)
        except psycopg.Error as exc:
            if raw.closed:  # SQLAlchemy does not look at what is raised here
                connection.invalidate(exc)
            raise
        connection.info["transaction"] = answer.fetchone()[:2] if answer.nextset() else None

    return engine


def with_settings(begin: str, settings: str) -> str:
    """Let a transaction begin with *settings*, the fields of a SELECT."""
    if "SELECT" not in begin:
        return f"{begin}; SELECT {settings}"
    # What the write sets itself comes last, and stays.
    return begin.replace(", set_config(", f", {settings}, set_config(")


@functools.cache
def _bound(sql: str) -> str:
    """*sql* with its :names as psycopg writes them."""
    from sqlalchemy.dialects.postgresql import psycopg

    dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
    return str(sa.text(sql).compile(dialect=dialect))
