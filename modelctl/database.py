"""Database: connections, transactions, and what their errors mean. The only importer of psycopg."""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager
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
    from collections.abc import Callable, Iterator

    from modelctl.config import Config

T = TypeVar("T")

_TRIES = 3

# Of a listing whose connection ends SQLAlchemy logs that its cursor cannot be closed: where nobody
# set up logging, Python would print that with a traceback beside our own words.
logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())


class Database:
    """One PostgreSQL or SQLite database; connects on first use, keeps *pool_size* connections."""

    def __init__(self, config: Config, pool_size: int) -> None:
        self._config = config
        self._on_sqlite = config.sqlite_path is not None
        self.engine = (
            _sqlite_engine(config) if self._on_sqlite else _postgres_engine(config, pool_size)
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection on which every statement is its own transaction."""
        with self._translated(), self._autocommit.connect() as connection:
            yield connection

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """Give a connection that begins no transaction by itself before its first statement."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa_exc.DBAPIError as exc:
            raise self._translate(exc) from exc
        except sa_exc.TimeoutError as exc:
            raise DatabaseUnavailableError(
                "all connections of this process are in use",
                hint="raise database.pool_size, or use fewer threads",
            ) from exc
        except sa_exc.SQLAlchemyError as exc:
            raise ModelctlError(self._config.hide(str(exc))) from exc

    def _translate(self, exc: sa_exc.DBAPIError) -> ModelctlError:
        cause: BaseException = exc.orig or exc
        if self._config.sqlite_path:
            from modelctl import sqlite

            return sqlite.translate(cause, self._config.sqlite_path)
        return translate_postgres(cause, self._config)

    def write(
        self,
        work: Callable[[sa.Connection], T],
        *,
        one_statement: bool = False,
        dry_run: bool = False,
    ) -> T:
        """Run *work* in one transaction; again, up to three times, if the database asks for it.

        *one_statement*: on PostgreSQL it needs no BEGIN and COMMIT around it.
        """
        alone = one_statement and not dry_run and not self._on_sqlite
        for attempt in range(_TRIES):
            try:
                with self._translated():
                    return self._alone(work) if alone else self._transaction(work, dry_run)
            except DatabaseUnavailableError as exc:
                if attempt == _TRIES - 1 or _sqlstate(exc) not in ("40001", "40P01"):
                    raise
                time.sleep(random.uniform(0.01, 0.1) * 2**attempt)  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    def _alone(self, work: Callable[[sa.Connection], T]) -> T:
        with self._autocommit.connect() as connection:
            try:
                return work(connection)
            except sa_exc.DBAPIError as exc:
                if exc.connection_invalidated:
                    raise self._unknown(exc) from exc
                raise

    def _transaction(self, work: Callable[[sa.Connection], T], dry_run: bool) -> T:
        with self.engine.connect() as connection:
            transaction = connection.begin()
            result = work(connection)
            xid = None
            if not self._on_sqlite:
                sql = "SELECT CAST(pg_current_xact_id_if_assigned() AS text)"
                xid = connection.scalar(sa.text(sql))
            points.reach("before-commit")
            if dry_run:
                transaction.rollback()
                return result
            try:
                transaction.commit()
            except sa_exc.DBAPIError as exc:
                if xid is None or not exc.connection_invalidated or not self._committed(xid, exc):
                    raise
            return result

    def _committed(self, xid: str, lost: sa_exc.DBAPIError) -> bool:
        """Whether a transaction was committed whose answer to COMMIT was lost."""
        sql = "SELECT pg_xact_status(CAST(:xid AS xid8))"
        for _ in range(_TRIES):
            try:
                with self._autocommit.connect() as connection:
                    status = connection.scalar(sa.text(sql), {"xid": xid})
            except sa_exc.SQLAlchemyError:
                status = None
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            time.sleep(0.5)
        raise self._unknown(lost) from lost

    def _unknown(self, exc: sa_exc.DBAPIError) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"{self._translate(exc).message}; it is not known whether the change was made",
            hint="look before you repeat it; all but recording an outcome may be repeated",
        )


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
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
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

    return engine


def _connect(how: dict[str, Any]) -> Any:
    """Connect so that times can be read, whatever the role and libpq's variables say of them."""
    import psycopg

    connection = psycopg.connect(**how)
    # Reported by the server at the start: looking at it costs no round trip.
    for name, wanted in (("TimeZone", "UTC"), ("DateStyle", "ISO")):
        if not (connection.info.parameter_status(name) or "").startswith(wanted):
            connection.autocommit = True
            connection.execute(f"SET {name} = {wanted}".encode())
            connection.autocommit = False
    for kind in ("timestamptz", "timestamp"):
        oid = psycopg.adapters.types[kind].oid
        usual = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)
        if usual:
            connection.adapters.register_loader(oid, _lenient(usual))
    return connection


def _lenient(usual: Any) -> Any:
    """A loader of times for which infinity and the years before 1 are unreadable, not an error."""
    import psycopg
    from psycopg.adapt import Loader

    class Lenient(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._usual = usual(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return self._usual.load(data)
            except psycopg.DataError:
                return None

    return Lenient


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
    if state.startswith(("23", "44", "P0")):  # P0: a trigger of theirs
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
