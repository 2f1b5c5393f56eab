"""PostgreSQL: connections that end in time, and what their errors mean. The importer of psycopg."""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import os
import random
import re
import socket
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg
from psycopg import pq, waiting
from psycopg._encodings import pg2pyenc
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.string import TextLoader

from modelctl import deadline
from modelctl.config.durations import format_duration
from modelctl.config.spelling import closest_name
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    RefusedError,
    UsageError,
    clean,
)
from modelctl.times import in_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from psycopg.abc import PQGen, PQGenConn

    from modelctl.config.config import Config

CONNECT_SECONDS = 5.0  # for each address; the URL may say otherwise (connect_timeout)
_INTERVAL = 0.1  # between two looks at Ctrl-C
INVALID_OID = 0  # the loader for types that psycopg does not know
_FOR_THE_REST = 2.0  # seconds of a call that are kept to ask what became of a COMMIT


# What other programs write into their URLs.
_FOREIGN_PARAMETERS = {
    "schema": "to find the table in another schema write options=-c%20search_path%3DSCHEMA",
    "pgbouncer": "leave it out: a pooler needs no setting",
    "connection_limit": "leave it out, and set database.pool_size",
    "pool_timeout": "leave it out, and set database.pool_timeout",
    "socket_timeout": "leave it out, and set database.timeout",
}


class NoAnswerError(psycopg.OperationalError):
    """The call has no time left."""


class NoConnectionError(psycopg.OperationalError):
    """No address let us in; *answers*: what each of them said, as (SQLSTATE or "", words)."""

    def __init__(self, answers: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(words for _, words in answers))
        self.answers = answers


class Connection(psycopg.Connection[Any]):
    """A connection on which nothing waits longer than the call has left."""

    seconds = 15.0
    _kept = 0.0

    def wait(
        self, gen: PQGen[Any], interval: float = _INTERVAL, timeout: float | None = None
    ) -> Any:
        """Wait as psycopg does, but not beyond the budget; then the connection is closed."""
        allowed = deadline.left(self.seconds) - self._kept
        if timeout is not None and timeout < allowed:
            return super().wait(gen, interval, timeout)
        with deadline.spending():
            try:
                if allowed <= 0:
                    raise psycopg.errors._WaitTimeout
                return super().wait(gen, interval, allowed)
            except psycopg.errors._WaitTimeout:
                # What it asked for may run on for a while: the server has limits of its own, and
                # a COMMIT that waits for a standby must not be broken off.
                self.close()
                raise NoAnswerError(f"no answer within {format_duration(self.seconds)}") from None

    def __del__(self, *_: Any) -> None:
        """Let libpq close it, without psycopg's warning: that of a pool which was closed, or forked.

        It leaves a connection of the parent alone.
        """

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Leave time, in what runs inside, to ask what became of a COMMIT without an answer."""
        self._kept = min(_FOR_THE_REST, self.seconds / 4)
        try:
            yield
        finally:
            self._kept = 0.0

    def commit(self) -> None:
        """Commit, and leave time to ask what became of it if there is no answer."""
        with self.committing():
            super().commit()


class Connector:
    """Opens connections to the database of a configuration, with the settings that we rely on.

    They go with the start of a connection. Some poolers refuse that, others drop them in silence
    (the first connection looks): then *local*, SQL that sets them, has to begin each transaction.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._given = self._read_url()
        timeout = config.database.timeout
        self._settings = [
            ("lock_timeout", "2s"),
            # The server ends a statement before we stop listening to it.
            ("statement_timeout", f"{timeout * 1000 * 2 / 3:.0f}ms"),
            ("idle_in_transaction_session_timeout", "15s"),
            *_settings(str(self._given.pop("options", ""))),
            ("timezone", "UTC"),
            # A query that a policy would filter is an error, not a smaller number.
            ("row_security", "off"),
        ]
        self.local = ""
        # The encoding of the database as Python calls it, "": it takes all characters.
        self.codec = ""
        self.encoding = "UTF8"  # of the database
        self.unchecked = False  # whether texts may hold bytes that are no characters
        self._proven = False

    def _read_url(self) -> dict[str, Any]:
        try:
            given = conninfo_to_dict(self._config.postgres_url)
        except psycopg.Error:
            # Its message may show the password.
            raise self._wrong_url() from None
        how: dict[str, Any] = {
            "application_name": "modelctl",
            "client_encoding": "utf8",
            # A server that lost its power answers nothing, and the kernel would wait for minutes.
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        if "," in str(given.get("host", "")):
            how["target_session_attrs"] = "read-write"
        return how | given

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
                if not any(_refuses_options(*answer) for answer in exc.answers):
                    raise
            self.local = _set_local(self._settings)
        return self._connect("")  # PGOPTIONS would take the place of none

    def _connect(self, options: str) -> Connection:
        connection = _open(self._given | {"options": options}, self._config.database.timeout)
        try:
            self._prepare(connection)
            if options and not self._proven:
                asked = connection.execute("SHOW row_security").fetchone()
                if asked != ("off",):
                    self.local = _set_local(self._settings)
                self._proven = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        connection.seconds = self._config.database.timeout
        # SQLAlchemy's transactions begin in an event of the engine.
        connection.autocommit = True
        # Behind a pooler the names of prepared statements are shared between clients: one
        # program would run the other's statement.
        connection.prepare_threshold = None
        # Whatever the role and libpq's variables say of times: they must be readable. Reported by
        # the server at the start: looking at it costs no round trip.
        for name, wanted in (("TimeZone", "UTC"), ("DateStyle", "ISO")):
            if not (connection.info.parameter_status(name) or "").startswith(wanted):
                connection.execute(f"SET {name} = {wanted}".encode())
        adapters = connection.adapters
        for kind in ("timestamptz", "timestamp"):
            oid = psycopg.adapters.types[kind].oid
            usual = adapters.get_loader(oid, pq.Format.TEXT)
            if usual:
                adapters.register_loader(oid, _lenient(usual))
        adapters.register_loader("jsonb", TextLoader)  # read where it may be odd: `JsonObject`
        self.encoding = connection.info.parameter_status("server_encoding") or "UTF8"
        if self.encoding not in ("UTF8", "SQL_ASCII"):
            with suppress(psycopg.NotSupportedError):
                self.codec = pg2pyenc(self.encoding.encode())
        # A database without an encoding takes whatever bytes come, and one of single bytes also those
        # that it does not define. As UTF-8 it gives back only what has a character: one text that has
        # none would fail a whole listing. Behind a pooler the next transaction may not know of it.
        single = self.codec and not self.local and _SINGLE_BYTES.match(self.encoding)
        self.unchecked = self.encoding == "SQL_ASCII" or bool(single)
        if self.unchecked:
            connection.execute(f"SET client_encoding = {self.encoding}".encode())
            loader = _any_text(self.codec or "utf-8")
            for text in ("text", "varchar", "bpchar", "name", '"char"', "jsonb", INVALID_OID):
                adapters.register_loader(text, loader)


# Of PostgreSQL's encodings.
_SINGLE_BYTES = re.compile("(LATIN|ISO_8859_|WIN|KOI8)")


def _settings(options: str) -> Iterator[tuple[str, str]]:
    """Read the settings in the ``options`` of a URL; a blank in a value has a backslash."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|\S)+", options)]
    source = iter(words)
    for word in source:
        setting = next(source, "") if word == "-c" else re.sub("^(-c|--)", "", word)
        name, is_one, value = setting.partition("=")
        if not is_one or (word[:2] not in ("-c", "--")):
            raise InvalidConfigError(
                "the options of database.url are not settings of the server",
                hint="write options=-c%20search_path=app",
            )
        yield name.replace("-", "_"), value


def _escaped(value: str) -> str:
    return re.sub(r"([\s\\])", r"\\\1", value)


def _set_local(settings: list[tuple[str, str]]) -> str:
    """SQL that gives the settings to one transaction, as the fields of a SELECT."""
    quoted = ((name, value.replace("'", "''")) for name, value in [*settings, ("datestyle", "ISO")])
    return ", ".join(f"set_config('{name}', '{value}', true)" for name, value in quoted)


def _refuses_options(state: str, words: str) -> bool:
    return state == "0A000" or "startup parameter" in words or "startup option" in words


# ── Connecting ──


def _open(how: Mapping[str, Any], budget: float) -> Connection:
    """Try the addresses of all hosts, one after the other, each with its share of the time left."""
    defaults = {o.keyword.decode(): o.val.decode() for o in pq.Conninfo.get_defaults() if o.val}
    params = {name: str(value) for name, value in how.items()}
    longest = float(params.pop("connect_timeout", "") or defaults.get("connect_timeout") or 0)
    longest = longest if longest > 0 else CONNECT_SECONDS
    ends = time.monotonic() + deadline.left(budget)

    def share(others: int) -> float:
        return max(0.0, min(longest, (ends - time.monotonic()) / (1 + others)))

    answers: list[tuple[str, str]] = []
    with deadline.spending():
        hosts = _hosts(params, defaults)
        if params.get("load_balance_hosts", defaults.get("load_balance_hosts")) == "random":
            random.shuffle(hosts)
        # All names at once: a name server that is silent about one host delays no other.
        lookups = [
            _look_up(host, port or "5432") if _is_name(host) and not addr else None
            for host, addr, port in hosts
        ]
        for number, (host, addr, port) in enumerate(hosts):
            others = len(hosts) - number - 1
            try:
                lookup = lookups[number]
                addresses = lookup.result(share(others)) if lookup else [addr]
            except TimeoutError:
                answers.append(("", f'no answer from the name server about host "{host}"'))
                continue
            except (OSError, UnicodeError) as exc:
                answers.append(("", f'could not translate host name "{host}": {exc}'))
                continue
            for tried, address in enumerate(addresses):
                seconds = share(others + len(addresses) - tried - 1)
                where = {"host": host, "hostaddr": address, "port": port}
                where = {name: value for name, value in where.items() if value}
                try:
                    return _connect_to({**params, **where}, seconds)
                except NoConnectionError as exc:
                    answers += exc.answers
    raise NoConnectionError(answers)


def _hosts(params: dict[str, str], defaults: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Take the hosts out of *params*, as (host, address if it is given, port)."""
    taken = {name: params.pop(name, "") for name in ("host", "hostaddr", "port")}
    if not taken["host"] and not taken["hostaddr"]:
        taken |= {name: defaults.get(name, "") for name in ("host", "hostaddr")}
    names, addresses = taken["host"].split(","), taken["hostaddr"].split(",")
    ports = (taken["port"] or defaults.get("port", "")).split(",")
    names += [""] * (len(addresses) - len(names))
    addresses += [""] * (len(names) - len(addresses))
    ports += ports[:1] * (len(names) - len(ports))
    return list(zip(names, addresses, ports, strict=False))


def _is_name(host: str) -> bool:
    """Whether a name server is to be asked: not for an address or a socket in the file system."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and host[0] not in "/@"
    return False


_lock = threading.Lock()
_lookups: dict[tuple[str, str], Future[list[str]]] = {}


def _forget_lookups() -> None:
    """The threads that look names up are not there in a child of this process."""
    global _lock
    _lock = threading.Lock()
    _lookups.clear()


os.register_at_fork(after_in_child=_forget_lookups)


def _look_up(host: str, port: str) -> Future[list[str]]:
    """Ask for the addresses of a name in a thread: getaddrinfo knows no timeout.

    Whoever asks while somebody waits for the same answer gets that one.
    """
    with _lock:
        found = _lookups.get((host, port))
        if found is None:
            found = _lookups[host, port] = Future()
            threading.Thread(target=_ask, args=(host, port), daemon=True).start()
    return found


def _ask(host: str, port: str) -> None:
    addresses: list[str] = []
    error: Exception | None = None
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except (OSError, UnicodeError) as exc:
        error = exc
    with _lock:
        future = _lookups.pop((host, port))
    if error:
        future.set_exception(error)
    else:
        future.set_result(addresses)


def _connect_to(params: Mapping[str, str], seconds: float) -> Connection:
    """Connect to one address within *seconds*."""
    try:
        pgconn = waiting.wait_conn(_start(make_conninfo("", **params)), _INTERVAL, seconds)
    except psycopg.errors._WaitTimeout:
        where = f'"{params.get("host", params.get("hostaddr", ""))}", port {params.get("port", "")}'
        answer = ("", f"connection to server at {where} failed: timeout expired")
    except psycopg.Error as exc:
        answer = _answer(str(exc))
    else:
        return Connection(pgconn)
    # Outside of the handlers: what libpq says is not ours to show.
    raise NoConnectionError([answer])


def _start(conninfo: str) -> PQGenConn[Any]:
    """Connect as psycopg does, but let errors have their SQLSTATE."""
    pgconn: Any = pq.PGconn.connect_start(conninfo.encode())
    set_verbosity = _set_verbosity()
    if set_verbosity:
        set_verbosity(pgconn.pgconn_ptr, 2)
    while pgconn.status != pq.ConnStatus.BAD:
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.OK:
            if set_verbosity:
                set_verbosity(pgconn.pgconn_ptr, 1)
            pgconn.nonblocking = 1
            return pgconn
        if status == pq.PollingStatus.FAILED:
            break
        ready = waiting.Wait.R if status == pq.PollingStatus.READING else waiting.Wait.W
        while not (yield pgconn.socket, ready):
            pass
    message = pgconn.get_error_message("utf-8")
    pgconn.finish()
    raise psycopg.OperationalError(message)


@functools.cache
def _set_verbosity() -> Callable[[int | None, int], int] | None:
    """PQsetErrorVerbosity of the libpq that psycopg is linked with; None where it is not found.

    psycopg cannot call it, and without it a refusal at the door is known by its words alone,
    which are of the language of the server.
    """
    try:
        function = ctypes.PyDLL(sys.modules[pq.PGconn.__module__].__file__).PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
    return function


# In front of what a server says come its severity, in its language, and two blanks.
_SAID = re.compile(r"(?P<severity>failed: [^\n:]+):  (?:(?P<state>[0-9A-Z]{5}): )?")


def _answer(message: str) -> tuple[str, str]:
    """Read what libpq says of an address that did not let us in, as (SQLSTATE, words)."""
    message = re.sub(r"(?m)^(DETAIL|HINT|CONTEXT|LOCATION|SCHEMA NAME):.*\n?", "", message)
    said = list(_SAID.finditer(message))
    state = (said[-1]["state"] or _REFUSED) if said else ""
    return state, " ".join(_SAID.sub(r"\g<severity>: ", message).split())


def _lenient(usual: Any) -> Any:
    """A loader of UTC times for which infinity and years beyond the calendar are text, no error."""

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
    """A loader of text that may be anything: bytes without a character become lone surrogates."""

    class AnyText(Loader):
        def load(self, data: Any) -> str:
            return str(data, codec, "surrogateescape")

    return AnyText


# ── What errors mean ──

_REFUSED = "refused"  # in place of a SQLSTATE that is not known: a server said no
# What ends by itself: no resources, shutting down or starting up, an error of the system.
_FOR_NOW = ("53", "57", "58", "40", "XX", "55006")
# Poolers give everything the code of a protocol violation, and speak English.
_FOR_NOW_WORDS = (
    "cannot connect",
    "connect failed",
    "timeout",
    "try again",
    "no more connections",
    "too many",
    "shut",
    "starting up",
    "recovery mode",
    "not yet accepting",
    "connection slots",
    "terminating connection",
    "out of memory",
    "server conn",
    "disabled",
    "failing",
)
# What libpq itself says, in English, and cron would repeat for ever.
_CONFIG_WORDS = (
    "authentication failed",
    "authentication method",
    "no password supplied",
    "certificate",
    "invalid connection option",
    "invalid sslmode",
    "invalid port",
    "server does not support SSL",
    "SSL connection has been closed unexpectedly",
)


def _is_refusal(state: str, words: str) -> bool:
    """Whether trying again later is of no use: the server, or libpq itself, does not want us."""
    if state in ("", _REFUSED) or state.startswith("08"):
        # PgBouncer repeats for a while what the server said to it.
        repeated = words.partition("cached error: ")[2].removesuffix("(server_login_retry)")
        words = repeated.strip() or words
        if state and not any(word in words for word in _FOR_NOW_WORDS):
            return True
        return not state and any(word in words for word in _CONFIG_WORDS)
    return not state.startswith(_FOR_NOW)


def primary(exc: BaseException) -> str:
    """The message of an error, without its DETAIL and CONTEXT: those are rows of other people."""
    diag = getattr(exc, "diag", None)
    words = (diag and diag.message_primary) or re.split(
        r"\n(?:DETAIL|HINT|CONTEXT|LINE \d+|LOCATION):", str(exc)
    )[0]
    if diag and diag.constraint_name and diag.constraint_name not in words:
        words += f' (constraint "{diag.constraint_name}")'
    return " ".join(words.split())


def _cannot_be_converted(said: str) -> ModelctlError | None:
    """Say which character the encoding of the database lacks, or that one of its texts has none.

    None where no bytes are told.
    """
    told = "".join(re.findall("0x([0-9a-f]{2})", said))
    if not told:
        return None
    encodings = [name for name in re.findall('"([A-Z0-9_]+)"', said) if name != "UTF8"]
    its = encodings[0] if encodings else "another encoding than UTF8"
    try:
        character = bytes.fromhex(told).decode()
    except ValueError:  # bytes of the database
        character = ""
    if len(character) != 1:
        return InvalidConfigError(
            f"the database is in {its}, and a text in it has bytes that this encoding does not define"
            f" ({said})",
            hint="write that text anew, or move the data to a database in UTF8",
        )
    return lacking(its, character)


def lacking(encoding: str, character: str) -> UsageError:
    """Say that a character is none in the encoding of the database."""
    point = f"U+{ord(character):04X}"
    error = UsageError(
        f"the database is in {encoding}, which lacks '{character}' ({point})",
        hint="leave the character out, or use a database in UTF8; nothing was changed",
    )
    error.character = character
    return error


def translate(exc: BaseException, config: Config) -> ModelctlError:
    """Say what an error of psycopg means to the operator."""
    error = _translated(exc, config)
    error.sqlstate = getattr(exc, "sqlstate", None)
    return error


def _translated(exc: BaseException, config: Config) -> ModelctlError:
    state = getattr(exc, "sqlstate", None) or ""
    text = config.hide(primary(exc))
    if isinstance(exc, NoConnectionError):
        origin = f"database.url ({config.origin('database.url')})"
        if any(_is_refusal(*answer) for answer in exc.answers):
            return InvalidConfigError(
                f"the database refused the connection ({text})",
                hint=f"check user, password and database name in {origin}",
            )
        return DatabaseUnavailableError(
            f"the database is not available ({text})",
            hint=f"try again later, or check the host and port in {origin}",
        )
    if state in ("42P01", "42703", "3F000", "42883"):
        return MissingSchemaError(
            f"the database lacks modelctl's schema ({text})", hint="run: modelctl db upgrade"
        )
    # 22P02, 22007: what a text would have to be for a column of another type.
    if state in ("42804", "42846", "42P18", "22P02", "22007"):
        return InvalidConfigError(
            f"a column of models does not have the type that modelctl needs ({text})",
            hint="see what is in the way: modelctl db upgrade --dry-run",
        )
    if state == "25006":
        return InvalidConfigError(
            f"the database takes no changes ({text})",
            hint="name the primary in database.url, not a standby",
        )
    # By the function in the server: its words are of its language.
    if state == "42501" and exc.diag.source_function == "check_enable_rls":  # type: ignore[attr-defined]
        return InvalidConfigError(
            f"row level security hides models from this role ({text})",
            hint="modelctl must see every row, and a policy cannot grant that: ALTER ROLE ..."
            " BYPASSRLS (a superuser may), or use the owner of the table without FORCE ROW LEVEL"
            " SECURITY",
        )
    if state.startswith(("28", "3D")):
        return InvalidConfigError(
            f"the database refused the connection ({text})",
            hint="check user, password and database name in database.url",
        )
    if state == "42501":
        return InvalidConfigError(
            f"the database role may not do this ({text})",
            hint="the README lists the rights that modelctl needs",
        )
    if state in ("42809", "55000"):
        return InvalidConfigError(
            f"what the database calls models is no table that can be used ({text})",
            hint="see: modelctl doctor",
        )
    # P0: a trigger of theirs; 0A000: a rule, with which our statements cannot be rewritten.
    rewriting = state == "0A000" and exc.diag.source_file == "rewriteHandler.c"  # type: ignore[attr-defined]
    if state.startswith(("23", "44", "P0")) or rewriting:
        return RefusedError(
            f"the database refused the change ({text})",
            hint="the table has rules of its own; make this change with the application that owns it",
        )
    if state == "22P05" and (error := _cannot_be_converted(text)):
        return error
    if state.startswith("22"):
        return UsageError(f"the database does not take this value ({text})")
    if state in ("55P03", "57014", "40001", "40P01"):
        return DatabaseUnavailableError(f"the database is busy ({text})", hint="try again")
    if state == "08P01" and "SHOW HELP" in text:
        return InvalidConfigError(
            f"this is the console of PgBouncer, not a database ({text})",
            hint="name a database that it serves in database.url",
        )
    if not state or state[:2] in ("08", "53", "57", "58", "25"):
        return DatabaseUnavailableError(
            f"the database is not available ({text})", hint="try again later"
        )
    return ModelctlError(f"the database failed ({state}: {text})")
