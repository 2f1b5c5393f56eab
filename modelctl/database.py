"""Database: connections, transactions, and what their errors mean. The only importer of psycopg."""

from __future__ import annotations

import functools
import logging
import random
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from modelctl import points
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    RefusedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from modelctl.config import Config

T = TypeVar("T")

_TRIES = 3
# How a transaction begins. A write knows its id, and whose it is, from the start: what became of
# it can be asked when the answer to its COMMIT is lost.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_WRITE = f"{_BEGIN}; SELECT CAST(pg_current_xact_id() AS text), pg_postmaster_start_time()"
_OUTCOME = "SELECT pg_xact_status(CAST(:xid AS xid8)), pg_postmaster_start_time()"

# Of a listing whose connection ends SQLAlchemy logs that its cursor cannot be closed: where nobody
# set up logging, Python would print that with a traceback beside our own words.
logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())


class Database:
    """One PostgreSQL or SQLite database; connects on first use, keeps *pool_size* connections."""

    def __init__(self, config: Config, pool_size: int) -> None:
        self._config = config
        self.engine = (
            _sqlite_engine(config) if config.sqlite_path else _postgres_engine(config, pool_size)
        )
        # What precedes the names of modelctl's own tables: their schema, where there are schemas.
        self.own = "" if config.sqlite_path else f'"{config.database.schema}".'
        self._reading = self.engine.execution_options(begin=None)
        self._writing = self.engine.execution_options(begin=_WRITE)

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection on which every statement is its own transaction."""
        with self._translated(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Give a connection whose first statement begins a transaction."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa_exc.DBAPIError, self.engine.dialect.loaded_dbapi.Error) as exc:
            raise self._translate(exc) from exc
        except sa_exc.TimeoutError as exc:
            raise DatabaseUnavailableError(
                "all connections of this process are in use",
                hint="raise database.pool_size, or use fewer threads",
            ) from exc
        except sa_exc.SQLAlchemyError as exc:
            raise ModelctlError(self._config.hide(str(exc))) from exc

    def _translate(self, exc: Exception) -> ModelctlError:
        cause: BaseException = getattr(exc, "orig", None) or exc
        if self._config.sqlite_path:
            from modelctl import sqlite

            return sqlite.translate(cause, self._config.sqlite_path)
        return translate_postgres(cause, self._config)

    def write(self, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction; again, up to three times, if the database asks for it."""
        return self._retrying(lambda: self._transaction(work, dry_run))

    def change(
        self, sql: str, parameters: Mapping[str, Any], read: Callable[[list[Sequence[Any]]], T]
    ) -> T:
        """Run statements of PostgreSQL as `write` does; *read* makes the result of their rows.

        What *read* raises undoes them.

        In two round trips, without SQLAlchemy's work per statement: recording an outcome is what
        an application does after every call of a model.
        """
        return self._retrying(lambda: self._alone(sql, parameters, read))

    def _retrying(self, transaction: Callable[[], T]) -> T:
        for attempt in range(_TRIES):
            try:
                with self._translated():
                    return transaction()
            except DatabaseUnavailableError as exc:
                if attempt == _TRIES - 1 or _sqlstate(exc) not in ("40001", "40P01"):
                    raise
                time.sleep(random.uniform(0.01, 0.1) * 2**attempt)  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    def _transaction(self, work: Callable[[sa.Connection], T], dry_run: bool) -> T:
        with self._writing.connect() as connection:
            transaction = connection.begin()
            result = work(connection)
            points.reach("before-commit")
            if dry_run:
                transaction.rollback()
                return result
            known = connection.info.get("transaction")
            try:
                transaction.commit()
            except sa_exc.DBAPIError as exc:
                if not exc.connection_invalidated or not known:
                    raise
                self._resolve(known, exc)
            return result

    def _alone(
        self, sql: str, parameters: Mapping[str, Any], read: Callable[[list[Sequence[Any]]], T]
    ) -> T:
        import psycopg

        pooled = self.engine.raw_connection()
        raw: Any = pooled.driver_connection
        known = None
        try:
            # Several statements in one message: values are bound on this side.
            with psycopg.ClientCursor(raw) as cursor:
                cursor.execute(f"{_WRITE}; {_bound(sql)}", parameters)
                cursor.nextset()
                known = cursor.fetchone()
                answers: list[Sequence[Any]] = []
                while cursor.nextset():
                    answers.append(cursor.fetchall() if cursor.description else [])
            result = read(answers)
            points.reach("before-commit")
            raw.commit()
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

    def _resolve(self, known: Sequence[Any], lost: Exception) -> None:
        """Return if the transaction was committed whose answer to COMMIT was lost, else raise."""
        xid, server = known
        for _ in range(_TRIES):
            with suppress(sa_exc.SQLAlchemyError), self._reading.connect() as connection:
                status, asked = connection.execute(sa.text(_OUTCOME), {"xid": xid}).one()
                # After a restart or a failover the number may be another transaction's.
                if status == "committed" and asked == server:
                    return
                if status == "aborted":
                    raise DatabaseUnavailableError(
                        f"{self._translate(lost).message}; the change was not made",
                        hint="try again later",
                    ) from lost
            time.sleep(0.5)
        raise DatabaseUnavailableError(
            f"{self._translate(lost).message}; it is not known whether the change was made",
            hint="look before you repeat it; all but recording an outcome may be repeated",
        ) from lost


def _sqlite_engine(config: Config) -> sa.Engine:
    import sqlite3

    from modelctl import sqlite

    path = config.sqlite_path
    assert path is not None  # noqa: S101 - for the type checker; the caller looked
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite.connect(path),
        poolclass=sa.NullPool,
        hide_parameters=True,
    )

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


def _postgres_engine(config: Config, pool_size: int) -> sa.Engine:
    import select

    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = conninfo_to_dict(config.postgres_url)
    except psycopg.Error:
        # Its message may show the password.
        raise InvalidConfigError(
            "database.url is not a PostgreSQL URL", hint="postgresql://user@host:5432/database"
        ) from None
    how: dict[str, Any] = {
        "connect_timeout": 5,
        "application_name": "modelctl",
        "client_encoding": "utf8",
        # A server that lost its power answers nothing, and the kernel would wait for minutes.
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # Behind a pooler the names of prepared statements are shared between clients: one
        # program would run the other's statement.
        "prepare_threshold": None,
    }
    if "," in str(given.get("host", "")):
        how["target_session_attrs"] = "read-write"
    how |= given
    how["options"] = (
        "-c lock_timeout=2s -c statement_timeout=10s -c idle_in_transaction_session_timeout=15s"
        f" {given.get('options') or ''} -c timezone=UTC"
    )
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: _connect(how),
        pool_size=pool_size,
        max_overflow=0,
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
        if words is None or not raw.autocommit:  # without autocommit the driver begins
            return
        try:
            answer = raw.execute(words)
        except psycopg.Error as exc:
            if raw.closed:  # SQLAlchemy does not look at what is raised here
                connection.invalidate(exc)
            raise
        connection.info["transaction"] = answer.fetchone() if answer.nextset() else None

    return engine


@functools.cache
def _bound(sql: str) -> str:
    """*sql* with its :names as psycopg writes them."""
    from sqlalchemy.dialects.postgresql import psycopg

    dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
    return str(sa.text(sql).compile(dialect=dialect))


def _connect(how: dict[str, Any]) -> Any:
    """Connect so that times can be read, whatever the role and libpq's variables say of them."""
    import psycopg

    # SQLAlchemy's transactions begin in the event above.
    connection = psycopg.connect(**how, autocommit=True)
    # Reported by the server at the start: looking at it costs no round trip.
    for name, wanted in (("TimeZone", "UTC"), ("DateStyle", "ISO")):
        if not (connection.info.parameter_status(name) or "").startswith(wanted):
            connection.execute(f"SET {name} = {wanted}".encode())
    for kind in ("timestamptz", "timestamp"):
        oid = psycopg.adapters.types[kind].oid
        usual = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)
        if usual:
            connection.adapters.register_loader(oid, _lenient(usual))
    return connection


def _lenient(usual: Any) -> Any:
    """A loader of UTC times for which infinity and the years before 1 are None, not an error."""
    import psycopg
    from psycopg.adapt import Loader

    class Lenient(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._usual = usual(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return in_utc(self._usual.load(data))
            except psycopg.DataError:
                return None

    return Lenient


def in_utc(time: datetime) -> datetime | None:
    """Return an aware time; one without a zone is UTC, one that has no equal in UTC is None."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None


def _sqlstate(exc: BaseException | None) -> str | None:
    """The SQLSTATE at the bottom of an error that was wrapped."""
    while exc is not None:
        if state := getattr(exc, "sqlstate", None):
            return str(state)
        exc = getattr(exc, "orig", None) or exc.__cause__
    return None


# What PostgreSQL says at the door has no SQLSTATE in psycopg; servers speak English in these.
_CONFIG_WORDS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "certificate",
    "invalid connection option",
    "invalid sslmode",
    "invalid port",
    "is not permitted to log in",
    "server does not support SSL",
)


def translate_postgres(exc: BaseException, config: Config) -> ModelctlError:
    """Say what an error of psycopg means to the operator."""
    state = _sqlstate(exc) or ""
    text = " ".join(config.hide(str(exc)).split())
    if state in ("42P01", "42703", "3F000", "42883"):
        return MissingSchemaError(
            f"the database lacks modelctl's schema ({text})", hint="run: modelctl db upgrade"
        )
    if state == "25006":
        return InvalidConfigError(
            f"the database takes no changes ({text})",
            hint="name the primary in database.url, not a standby",
        )
    if state.startswith(("28", "3D")) or (
        not state and any(words in text for words in _CONFIG_WORDS)
    ):
        return InvalidConfigError(
            f"the database refused the connection ({text})",
            hint="check user, password and database name in database.url",
        )
    if "unsupported startup parameter" in text:
        return InvalidConfigError(
            f"the connection pooler refused the connection ({text})",
            hint="set ignore_startup_parameters = options in pgbouncer.ini; see the README",
        )
    if state == "42501":
        return InvalidConfigError(
            f"the database role may not do this ({text})",
            hint="the README lists the rights that modelctl needs",
        )
    # P0: a trigger of theirs; 0A000: a rule, with which our statements cannot be rewritten.
    if state.startswith(("23", "44", "P0")) or (state == "0A000" and "rule" in text.lower()):
        return RefusedError(
            f"the database refused the change ({text})",
            hint="the table has rules of its own; make this change with the application that owns it",
        )
    if state.startswith("22"):
        return UsageError(f"the database does not take this value ({text})")
    if state in ("55P03", "57014", "40001", "40P01"):
        return DatabaseUnavailableError(
            f"the database is busy ({text})", hint="nothing was changed; try again"
        )
    if not state or state[:2] in ("08", "53", "57", "58", "25"):
        return DatabaseUnavailableError(
            f"the database is not available ({text})", hint="try again later"
        )
    return ModelctlError(f"the database failed ({state}: {text})")
