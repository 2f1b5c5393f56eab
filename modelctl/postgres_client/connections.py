"""Connections to PostgreSQL: their settings, their time limits, and how they read values."""

from __future__ import annotations

import functools
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg
from psycopg import pq
from psycopg._encodings import pg2pyenc
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.string import TextLoader

from modelctl import deadline
from modelctl.config.durations import format_duration
from modelctl.config.spelling import closest_name
from modelctl.errors import InvalidConfigError, clean
from modelctl.postgres_client.errors import Answer, NoAnswerError, NoConnectionError
from modelctl.postgres_client.hosts import INTERVAL, WaitExpiredError, connect, limited
from modelctl.times import in_utc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import PQGen

    from modelctl.config.config import Config

_INVALID_OID = 0  # psycopg uses the loader of this number for types that it does not know
_SINGLE_BYTES = re.compile("(LATIN|ISO_8859_|WIN|KOI8)")  # encodings of PostgreSQL
_KEPT_SECONDS = 2.0  # kept of a call's time, to ask for the outcome of a COMMIT without an answer

# Parameters that other programs use in their URLs: what to write instead.
_FOREIGN_PARAMETERS = {
    "schema": "to find the table in another schema write options=-c%20search_path%3DSCHEMA",
    "pgbouncer": "leave it out: a pooler needs no setting",
    "connection_limit": "leave it out, and set database.pool_size",
    "pool_timeout": "leave it out, and set database.pool_timeout",
    "socket_timeout": "leave it out, and set database.timeout",
}


class Connection(psycopg.Connection[Any]):
    """A connection on which no wait is longer than the time that the call has left."""

    seconds = 15.0
    _kept = 0.0

    def wait(
        self, gen: PQGen[Any], interval: float = INTERVAL, timeout: float | None = None
    ) -> Any:
        """Wait as psycopg does, at most until the budget is spent; then close the connection."""
        allowed = deadline.left(self.seconds) - self._kept
        if timeout is not None and timeout < allowed:
            return super().wait(gen, interval, timeout)
        with deadline.spending():
            try:
                if allowed <= 0:
                    raise WaitExpiredError
                return super().wait(limited(gen, allowed), min(interval, allowed))
            except WaitExpiredError:
                # The statement is not canceled and may run on for a while: the server has limits of
                # its own, and a COMMIT that waits for a standby must not be canceled.
                self.close()
                raise NoAnswerError(f"no answer within {format_duration(self.seconds)}") from None

    def __del__(self, *_: Any) -> None:
        """Let libpq close the connection, without psycopg's warning about an open connection.

        Connections of a pool that was closed, or of a parent process, end here and are not a fault.
        """

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Keep some of the time that is left, to ask for the outcome if a COMMIT gets no answer."""
        self._kept = min(_KEPT_SECONDS, self.seconds / 4)
        try:
            yield
        finally:
            self._kept = 0.0

    def commit(self) -> None:
        """Commit, and keep some time to ask for the outcome."""
        with self.committing():
            super().commit()


class Connector:
    """Opens connections to the configured database, with the settings that modelctl relies on.

    The settings are sent when a connection starts. Some poolers refuse that, others silently ignore
    it, which the first connection checks. Then each transaction has to begin with *local*, the fields
    of a SELECT that applies the settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._given = self._read_url()
        timeout = config.database.timeout
        self._settings = [
            ("lock_timeout", "2s"),
            # The server ends a statement before we stop waiting for it.
            ("statement_timeout", f"{timeout * 1000 * 2 / 3:.0f}ms"),
            ("idle_in_transaction_session_timeout", "15s"),
            *_read_options(str(self._given.pop("options", ""))),
            ("timezone", "UTC"),
            # A query that a policy would filter is an error, not a smaller number.
            ("row_security", "off"),
        ]
        self.local = ""
        # Python's name for the encoding of the database; "" if that has all characters.
        self.codec = ""
        self.encoding = "UTF8"  # of the database
        # Whether texts may have bytes that the encoding does not define.
        self.unchecked = False
        self._checked_settings = False

    def _read_url(self) -> dict[str, Any]:
        try:
            given = conninfo_to_dict(self._config.postgres_url)
        except psycopg.Error:
            # Its message may show the password.
            raise self._wrong_url() from None
        defaults: dict[str, Any] = {
            "application_name": "modelctl",
            "client_encoding": "utf8",
            # A server that has lost its power sends nothing, and the kernel would wait for minutes.
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        if "," in str(given.get("host", "")):
            defaults["target_session_attrs"] = "read-write"
        return defaults | given

    def _wrong_url(self) -> InvalidConfigError:
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        query = self._config.postgres_url.partition("?")[2]
        for name in (clean(pair.partition("=")[0], longest=50) for pair in query.split("&")):
            if name and unquote(name) not in known:
                return InvalidConfigError(
                    f"database.url has an unknown parameter '{name}'",
                    hint=_FOREIGN_PARAMETERS.get(name)
                    or f"the nearest is '{closest_name(name, sorted(known))}'",
                )
        return InvalidConfigError(
            "database.url is not a PostgreSQL URL", hint="postgresql://user@host:5432/database"
        )

    def __call__(self) -> Connection:
        """Connect, within the time that the call has left."""
        if not self.local:
            options = " ".join(f"-c {name}={_escaped(value)}" for name, value in self._settings)
            try:
                return self._connect(options)
            except NoConnectionError as exc:
                if not any(map(_refuses_options, exc.answers)):
                    raise
            self.local = _set_local(self._settings)
        return self._connect("")  # without any options libpq would use PGOPTIONS

    def _connect(self, options: str) -> Connection:
        timeout = self._config.database.timeout
        connection = Connection(connect(self._given | {"options": options}, timeout))
        try:
            self._prepare(connection)
            if options and not self._checked_settings:
                found = connection.execute("SHOW row_security").fetchone()
                if found != ("off",):
                    self.local = _set_local(self._settings)
                self._checked_settings = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        connection.seconds = self._config.database.timeout
        # SQLAlchemy's transactions begin in an event of the engine.
        connection.autocommit = True
        # Behind a pooler clients share the names of prepared statements: a program would run the
        # statement of another one.
        connection.prepare_threshold = None
        # The role or libpq's variables may set other formats of times than the ones that we read. The
        # server reports them when a connection starts, so that this check costs no round trip.
        for name, wanted in (("TimeZone", "UTC"), ("DateStyle", "ISO")):
            if not (connection.info.parameter_status(name) or "").startswith(wanted):
                connection.execute(f"SET {name} = {wanted}".encode())
        adapters = connection.adapters
        for kind in ("timestamptz", "timestamp"):
            oid = psycopg.adapters.types[kind].oid
            usual = adapters.get_loader(oid, pq.Format.TEXT)
            if usual:
                adapters.register_loader(oid, _lenient(usual))
        adapters.register_loader("jsonb", TextLoader)  # `JsonObject` parses it, and ignores errors
        self._prepare_encoding(connection)

    def _prepare_encoding(self, connection: Connection) -> None:
        self.encoding = connection.info.parameter_status("server_encoding") or "UTF8"
        if self.encoding not in ("UTF8", "SQL_ASCII"):
            with suppress(psycopg.NotSupportedError):
                self.codec = pg2pyenc(self.encoding.encode())
        # A database without an encoding stores any bytes, and one with single bytes also those that
        # its encoding does not define. A client that asks for UTF-8 gets an error for such bytes: one
        # text would fail a whole listing. So we ask for the database's own encoding. Not behind a
        # pooler, where the next transaction may run on a connection without this setting.
        single = self.codec and not self.local and _SINGLE_BYTES.match(self.encoding)
        self.unchecked = self.encoding == "SQL_ASCII" or bool(single)
        if self.unchecked:
            connection.execute(f"SET client_encoding = {self.encoding}".encode())
            loader = _any_text(self.codec or "utf-8")
            for text in ("text", "varchar", "bpchar", "name", '"char"', "jsonb", _INVALID_OID):
                connection.adapters.register_loader(text, loader)


# ── Settings ──


def _read_options(options: str) -> Iterator[tuple[str, str]]:
    """Read the settings in the ``options`` of a URL; a backslash escapes a blank in a value."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|\S)+", options)]
    source = iter(words)
    for word in source:
        setting = next(source, "") if word == "-c" else re.sub("^(-c|--)", "", word)
        name, equals, value = setting.partition("=")
        if not equals or (word[:2] not in ("-c", "--")):
            raise InvalidConfigError(
                "the options of database.url are not settings of the server",
                hint="write options=-c%20search_path=app",
            )
        yield name.replace("-", "_"), value


def _escaped(value: str) -> str:
    return re.sub(r"([\s\\])", r"\\\1", value)


def _set_local(settings: list[tuple[str, str]]) -> str:
    """Return the fields of a SELECT that applies the settings to one transaction."""
    quoted = ((name, value.replace("'", "''")) for name, value in [*settings, ("datestyle", "ISO")])
    return ", ".join(f"set_config('{name}', '{value}', true)" for name, value in quoted)


def _refuses_options(answer: Answer) -> bool:
    """Whether a pooler does not accept settings when a connection starts."""
    state, words = answer
    return state == "0A000" or "startup parameter" in words or "startup option" in words


# ── Types ──


def _lenient(usual: Any) -> Any:
    """Make a loader of UTC times that returns text, not an error, for a time beyond the calendar."""

    class Lenient(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._usual = usual(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return in_utc(self._usual.load(data))
            except psycopg.DataError:
                return str(data, "ascii", "replace")

    return Lenient


@functools.cache
def _any_text(codec: str) -> type[Loader]:
    """Make a loader of text that may be any bytes: undefined ones become lone surrogates."""

    class AnyText(Loader):
        def load(self, data: Any) -> str:
            return str(data, codec, "surrogateescape")

    return AnyText
