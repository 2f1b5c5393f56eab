"""The tables, what both databases' SQL shares and where it differs, and what all statements need."""

from __future__ import annotations

import functools
import json
import math
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import sqlalchemy as sa

from modelctl import deadline, health
from modelctl.database.database import LOCK_TIMEOUT
from modelctl.errors import ModelNotFoundError, RefusedError, UsageError, clean
from modelctl.spool import Spool
from modelctl.times import in_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence

    from modelctl.config.config import Config
    from modelctl.database.database import Database

T = TypeVar("T")

# Rows or outcomes that one statement takes: bounds memory and how long locks are held.
CHUNK = 5000
# Advisory locks; any constants that nobody else uses.
RECOVER_LOCK = 7091_2026_0001  # one run of recover at a time
GUARD_LOCK = 7091_2026_0002  # what depends on other models: one transaction after the other


def lock_key(lock: int, schema: str) -> int:
    """Return the key of an advisory lock; each fleet in a database has its own."""
    return lock if schema == "modelctl" else lock + (zlib.crc32(schema.encode()) << 24)


class UtcTime(sa.TypeDecorator[datetime]):
    """A UTC time: timestamptz on PostgreSQL, ISO 8601 text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Text on SQLite, where the driver knows no times."""
        kind = sa.Text() if dialect.name == "sqlite" else sa.DateTime(timezone=True)
        return dialect.type_descriptor(kind)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return an aware time; what another program left unreadable is no time."""
        time = _as_time(value)
        return time if isinstance(time, datetime) else None


class StoredTime(UtcTime):
    """The same, but what is unreadable stays as it is, for `as_declared`."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """On PostgreSQL the connection's loader has read them."""
        return None if dialect.name == "postgresql" else _as_time


class StoredFlag(sa.TypeDecorator[bool]):
    """True or false; what else SQLite keeps there stays as it is, for `as_declared`."""

    impl = sa.Boolean
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """Return what the driver gives."""
        return None


def _as_time(value: Any) -> Any:
    """A time as an aware one in UTC; everything else as it is."""
    try:
        return in_utc(datetime.fromisoformat(value)) if isinstance(value, str) else value
    except ValueError:
        return value


class JsonObject(sa.TypeDecorator[dict[str, Any]]):
    """A JSON object: jsonb on PostgreSQL, text on SQLite."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dict[str, Any] | None:
        """Return the object; what another program left unreadable is none."""
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


MODELS = sa.Table(
    "models",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text),
    sa.Column("provider", sa.Text),
    sa.Column("active", StoredFlag),
    sa.Column("auto_disabled", StoredFlag),
    sa.Column("consecutive_failures", sa.Integer),
    sa.Column("ejections", sa.Integer),
    sa.Column("success_count", sa.BigInteger),
    sa.Column("failure_count", sa.BigInteger),
    sa.Column("last_success_at", StoredTime),
    sa.Column("last_failure_at", StoredTime),
    sa.Column("failure_type", sa.Text),
    sa.Column("failure_reason", sa.Text),
    sa.Column("disabled_at", StoredTime),
    sa.Column("disabled_by", sa.Text),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("disabled_until", StoredTime),
    sa.Column("recovered_at", StoredTime),
    sa.Column("would_disable", sa.Text),
    sa.Column("created_at", StoredTime),
    sa.Column("updated_at", StoredTime),
)


@functools.cache
def events_in(schema: str | None) -> sa.Table:
    """Return the history, which lies in this *schema*; None: where there are no schemas."""
    return sa.Table(
        "modelctl_events",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("at", StoredTime),
        sa.Column("model_id", sa.Text),
        sa.Column("event", sa.Text),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("actor", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("failure_type", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("details", JsonObject),
        schema=schema and sa.quoted_name(schema, quote=True),
    )


# An adopted table may hold NULLs where ours would not: IS TRUE and coalesce see to them.
ON = "active IS TRUE"
AUTO_OFF = "active IS NOT TRUE AND auto_disabled IS TRUE"
TIMED_OFF = "active IS NOT TRUE AND auto_disabled IS NOT TRUE AND disabled_until IS NOT NULL"
STATUS = (
    f"CASE WHEN {ON} THEN 'active' WHEN auto_disabled IS TRUE THEN 'auto-disabled'"
    " ELSE 'disabled' END"
)
_COOLDOWN_FROM = ("last_failure_at", "disabled_at", "updated_at")  # the first that is there


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the SQL of the two databases differs."""

    now: str
    began: str  # when the transaction did (seconds), or before
    shifted: str  # now, so many seconds later
    epoch: str  # seconds; of a column that another program may have written
    time: str  # of an epoch
    finite: str  # whether a column holds a time that comes
    later: str  # of two numbers
    written: str  # a time as text, with its Z
    json: str  # of a value
    object: str  # of names and values, as JSON
    collect: str  # the same of the names and values of many rows
    is_not: str  # for NULLs too
    cooldown: str  # seconds: the step of the ladder :cooldowns, which has :steps of them
    among: str  # the values in :ids
    collation: str  # by code points, whatever the database's own is
    lock: str  # until the transaction ends, in the order of the rows
    lock_to_delete: str
    skip_locked: str
    relation: str  # made of JSON: on PostgreSQL a list for each column, on SQLite one for each row
    source: str
    field: str

    @property
    def by_id(self) -> str:
        """What follows ORDER BY where somebody sees the order: the same on both databases."""
        return f"id{self.collation}"

    @property
    def ids(self) -> str:
        """The models named by :ids."""
        return self.among.format(column="id")

    def off_since(self) -> str:
        """When the cooldown of an auto-disabled model began, as seconds; NULL where nobody knows."""
        times = (self.epoch.format(time=column) for column in _COOLDOWN_FROM)
        return f"coalesce({', '.join(times)})"

    def rows(self, name: str, columns: dict[str, str]) -> str:
        """The parameters of `values` as a relation called *name*."""
        kinds = enumerate(columns.items())
        fields = [self.field.format(column=c, kind=kind, place=i) for i, (c, kind) in kinds]
        return self.relation.format(
            name=name,
            fields=", ".join(fields),
            sources=", ".join(self.source.format(column=c) for c in columns),
            columns=", ".join(columns),
        )

    def values(self, columns: Collection[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The parameters that hold *rows*."""
        if not self.source:
            return {"rows": json.dumps([*map(tuple, rows)], default=readable)}
        lists = [*zip(*rows, strict=True)] if rows else [()] * len(columns)
        return {f"rows_{c}": _as_json(each) for c, each in zip(columns, lists, strict=True)}


POSTGRES = Dialect(
    now="clock_timestamp()",
    began="floor(CAST(extract(epoch FROM now()) AS double precision))",
    # Not clock_timestamp(): no index can be used beside it.
    shifted="(statement_timestamp() + make_interval(secs => CAST({seconds} AS double precision)))",
    epoch="CAST(extract(epoch FROM {time}) AS double precision)",
    time="to_timestamp({epoch})",
    finite="isfinite({time})",
    later="greatest({one}, {other})",
    written="to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
    json="to_jsonb",
    object="jsonb_build_object",
    collect="jsonb_object_agg",
    is_not="IS DISTINCT FROM",
    cooldown="(CAST(:cooldowns AS double precision[]))"
    "[least(greatest(coalesce(ejections, 0), 1), :steps)]",
    among="{column} = ANY(CAST(:ids AS text[]))",
    collation=' COLLATE "C"',
    # Not FOR UPDATE: an application that inserts a row with a foreign key to a model holds FOR KEY
    # SHARE on it until its transaction ends. Only a DELETE has to wait for that.
    lock=" FOR NO KEY UPDATE OF models",
    lock_to_delete=" FOR UPDATE OF models",
    skip_locked=" FOR NO KEY UPDATE SKIP LOCKED",
    # Three times as fast as json_to_recordset, on both sides.
    relation="(SELECT {fields} FROM ROWS FROM ({sources}) AS lists ({columns})) AS {name}",
    source="json_array_elements_text(CAST(:rows_{column} AS json))",
    field="CAST({column} AS {kind}) AS {column}",
)
# Times are text, and BEGIN IMMEDIATE has locked everything.
SQLITE = Dialect(
    now="strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    # It does not tell. Nobody else writes meanwhile, so that a statement does not take as long.
    began="((julianday('now') - 2440587.5) * 86400.0 - 5)",
    shifted="strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ({seconds}) || ' seconds')",
    epoch="((julianday({time}) - 2440587.5) * 86400.0)",
    time="strftime('%Y-%m-%dT%H:%M:%fZ', {epoch}, 'unixepoch')",
    # It reads "12:00" as a time of the year 2000.
    finite="({time} GLOB '[0-9][0-9][0-9][0-9]-*' AND julianday({time}) IS NOT NULL)",
    later="max({one}, {other})",
    written="CAST({time} AS text)",
    json="",
    object="json_object",
    collect="json_group_object",
    is_not="IS NOT",
    cooldown="json_extract(:cooldowns,"
    " '$[' || (min(max(CAST(coalesce(ejections, 0) AS integer), 1), :steps) - 1) || ']')",
    among="{column} IN (SELECT value FROM json_each(:ids))",
    collation=" COLLATE BINARY",
    lock="",
    lock_to_delete="",
    skip_locked="",
    relation="(SELECT {fields} FROM json_each(:rows)) AS {name}",
    source="",
    field="json_extract(value, '$[{place}]') AS {column}",
)


class NewEvent(NamedTuple):
    """An event to write; *details* as in `results.Event`."""

    model_id: str
    event: str
    before: str | None = None
    after: str | None = None
    reason: str | None = None
    failure_type: str | None = None
    provider: str | None = None
    details: dict[str, Any] | None = None


_EVENT = dict.fromkeys(NewEvent._fields, "text") | {"details": "jsonb"}


class Column(NamedTuple):
    """A column of an application's table ``models`` that takes less than ours does, or other things.

    *length*: of text, at most. *required*: NOT NULL. *default*: an expression, None: there is none.
    """

    name: str
    length: int | None
    required: bool
    default: str | None

    def fit(self, value: str) -> str:
        """Cut text to its length."""
        return value[: self.length]


# What a row of ours begins with; what the application's columns without a default get from us.
DEFAULTS = (
    dict.fromkeys(("display_name", "provider", "failure_type", "failure_reason"), "''")
    | dict.fromkeys(("disabled_by", "disabled_reason", "would_disable"), "''")
    | {"active": "TRUE", "auto_disabled": "FALSE"}
    | dict.fromkeys(("consecutive_failures", "ejections", "success_count", "failure_count"), "0")
    | dict.fromkeys(("created_at", "updated_at"), "{now}")
)
COUNTERS = ("success_count", "failure_count", "consecutive_failures", "ejections")
_NAMED = 20  # rows with odd values, each on a line
# What can be text in a NOT NULL column; an empty one is as good as none.
_EMPTIED = ("failure_type", "failure_reason", "disabled_by", "disabled_reason", "would_disable")


def filled_to(counter: str, limit: int) -> str:
    """Whether a counter of 4 bytes (on PostgreSQL) is at *limit* or beyond."""
    return f"pg_column_size({counter}) = 4 AND {counter} >= {limit}"


def _as_json(value: Any) -> str:
    r"""JSON for PostgreSQL, which takes \u escapes of no character that its encoding lacks."""
    written = json.dumps(value, ensure_ascii=False)
    return written if written.isascii() else _LONE.sub("\ufffd", written)


def readable(value: Any) -> str:
    """Text of a column, whatever a database keeps there."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else "" if value is None else str(value)


def whole(value: Any) -> int:
    """A number of a column, whatever a database keeps there; 0 where it is none."""
    try:
        return value if type(value) is int else int(value or 0)
    except (ValueError, OverflowError, TypeError, ArithmeticError):
        return 0


def is_number(value: Any) -> bool:
    """Whether the value of a column is a number that is finite."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return type(value) is int


def _is_whole(value: Any) -> bool:
    """Whether a number is as whole as one of 8 bytes: a column of another type has it as a decimal."""
    return type(value) is int or (
        is_number(value) and value == whole(value) and -(2**63) <= value < 2**63
    )


def as_declared(
    columns: Iterable[sa.Column[Any]], row: Sequence[Any]
) -> tuple[list[Any], list[str]]:
    """Make each value of *row* what its column is for; return also the columns where it was not.

    SQLite keeps whatever is written into a column, and PostgreSQL has times beyond the calendar and,
    in a database without an encoding, texts that are not UTF-8.
    """
    values, odd = [*row], []
    for place, column in enumerate(columns):
        value, kind = values[place], column.type
        if value is None:
            if column.primary_key:  # an adopted one may be NULL
                values[place] = ""
                odd.append(column.name)
            continue
        fine = True
        if isinstance(kind, UtcTime):
            if not isinstance(value, datetime):
                values[place] = None
                # A timed disable that never ends, said in PostgreSQL's word.
                fine = (column.name, value) == ("disabled_until", "infinity")
        elif isinstance(kind, StoredFlag):
            values[place], fine = value == 1, value in (0, 1)
        elif isinstance(kind, sa.Integer):
            values[place], fine = whole(value), _is_whole(value)
        elif isinstance(kind, sa.Text):
            values[place] = readable(value)
            fine = isinstance(value, str) and is_findable(value)
        if not fine:
            odd.append(column.name)
    return values, odd


class Oddities:
    """Names rows with values that cannot be read: the first ones, and how many more there are."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """*warn* is told."""
        self._warn = warn
        self._seen = 0

    def name(self, row: str, columns: Sequence[str]) -> None:
        """*row* has such values in these columns."""
        self._seen += 1
        if self._seen <= _NAMED:
            self._warn(f"{row} has values that cannot be read: {', '.join(columns)}")

    def rest(self) -> None:
        """That was all."""
        if self._seen > _NAMED:
            more = self._seen - _NAMED
            self._warn(f"{more} more {'has' if more == 1 else 'have'} values that cannot be read")


class KeptError(Exception):
    """Rows are not as a statement was to make them: a trigger or rule of another program saw to it."""

    def __init__(self, ids: Sequence[str]) -> None:
        """*ids*: of these models."""
        super().__init__()
        self.ids = ids


class NewColumnsError(Exception):
    """The columns of an application's table are known now: the transaction has to begin again."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What a group of statements works with: the configuration and the database."""

    config: Config
    database: Database

    @property
    def on_sqlite(self) -> bool:
        """Whether the models are in a file."""
        return self.config.sqlite_path is not None

    @property
    def sql(self) -> Dialect:
        """The SQL of this database."""
        return SQLITE if self.on_sqlite else POSTGRES

    @property
    def own(self) -> str:
        """What precedes the names of modelctl's own tables."""
        return self.database.own

    def lock_key(self, lock: int) -> int:
        """The key of an advisory lock of this fleet."""
        return lock_key(lock, self.config.database.schema)

    @property
    def events(self) -> sa.Table:
        """The history."""
        return events_in(None if self.on_sqlite else self.config.database.schema)

    def ids(self, ids: Iterable[str]) -> str:
        """The parameter :ids; written here, because psycopg takes ten times as long."""
        if self.on_sqlite:
            return json.dumps(list(ids))
        quoted = (i.replace("\\", r"\\").replace('"', r"\"") for i in ids)
        return "{" + ",".join(f'"{i}"' for i in quoted) + "}"

    def ladder(self, cooldowns: Sequence[float] | None = None) -> dict[str, Any]:
        """The parameters of the cooldown; *cooldowns* (seconds) instead of the configured ones."""
        steps = cooldowns or health.cooldowns(self.config.recovery)
        values = json.dumps(steps) if self.on_sqlite else list(steps)
        return {"cooldowns": values, "steps": len(steps)}

    def spooled(
        self, query: Any, parameters: Any = None, make: Callable[[Any], Any] = tuple
    ) -> Spool[Any]:
        """Read all rows of a query, more than the memory holds if need be; *make* makes each.

        To the end, so that whoever works through them slowly holds no connection, no transaction
        and, on SQLite without WAL, no writer up.
        """
        with self.database.connect() as connection:
            if self.on_sqlite:
                connection = connection.execution_options(begin=None)
            how = {"yield_per": 1000}
            with connection.execute(query, parameters, execution_options=how) as found:
                return Spool(map(make, _in_pages(found)))

    def log(self, connection: sa.Connection, events: Sequence[NewEvent], actor: str) -> None:
        """Write events."""
        if events:
            names = ", ".join(_EVENT)
            sql = (
                f"INSERT INTO {self.own}modelctl_events ({names}, actor)"
                f" SELECT {names}, CAST(:actor AS text) FROM {self.sql.rows('happened', _EVENT)}"
            )
            rows = [
                (*e[:-1], e.details and json.dumps(e.details, ensure_ascii=False)) for e in events
            ]
            connection.execute(text(sql), self.sql.values(_EVENT, rows) | {"actor": actor})

    def write(self, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction; `RefusedError` where the database kept rows as they were."""
        return self.refusing(lambda: self.database.write(work, dry_run=dry_run))

    def refusing(self, transaction: Callable[[], T]) -> T:
        """Run *transaction* and say in words which rows the database kept."""
        try:
            return self.adapting(transaction)
        except KeptError as exc:
            it = "it was" if len(exc.ids) == 1 else "they were"
            raise RefusedError(
                f"the database kept {named(exc.ids)} as {it} ({self.keeper()}); nothing was changed",
                hint="make this change with the application that owns the table",
            ) from None
        except UsageError as exc:
            if exc.sqlstate != "22003" or not (full := self._full_counters()):
                raise
            names = ", ".join(full)
            raise RefusedError(
                f"{names} of models {'is' if len(full) == 1 else 'are'} full ({exc.message});"
                " nothing was changed",
                hint="as the owner run: ALTER TABLE models "
                + ", ".join(f"ALTER COLUMN {name} TYPE bigint" for name in full),
            ) from None

    def _full_counters(self) -> list[str]:
        """Return the counters that have no room for one batch more, in some row."""
        room = ", ".join(f"bool_or({filled_to(name, 2**31 - CHUNK)})" for name in COUNTERS)
        with self.database.reading() as connection:
            found = connection.execute(text(f"SELECT {room} FROM models")).one()
        return [name for name, is_full in zip(COUNTERS, found, strict=True) if is_full]

    # ── The columns of an application's table ──

    def adapting(self, transaction: Callable[[], T]) -> T:
        """Run *transaction*; again, if it failed at a column that is not as ours would be.

        Nobody asks for the columns before that: for our own table it is never needed.
        """
        try:
            return transaction()
        except NewColumnsError:
            return transaction()
        except (RefusedError, UsageError) as exc:
            too_long = exc.sqlstate == "22001"
            if not (too_long or exc.sqlstate == "23502" or "NOT NULL constraint" in exc.message):
                raise
            if not self.look_at_columns():
                raise
        return transaction()

    def look_at_columns(self, connection: sa.Connection | None = None) -> bool:
        """Look at the columns of ``models``; return whether that was news."""
        if connection is None:
            with self.database.reading() as reading:
                return self.look_at_columns(reading)
        known = self.database.columns
        if self.on_sqlite:
            rows = connection.exec_driver_sql("PRAGMA table_info(models)")
            found = [Column(row[1].lower(), None, bool(row[3]), row[4]) for row in rows]
        else:
            found = [Column(*row) for row in connection.exec_driver_sql(_COLUMNS)]
        self.database.columns = {column.name: column for column in found}
        return self.database.columns != known

    def fits(self, column: str, value: str) -> str:
        """The expression *value* so that *column* takes it."""
        known = self.database.columns.get(column)
        if known and known.length is not None:
            value = f"left(CAST({value} AS text), {known.length})"
        if known and known.required and column in _EMPTIED:
            value = f"coalesce({value}, '')"
        return value

    def fitting(self, assignments: str) -> str:
        """What follows SET so that the columns take it."""
        if not self.database.columns:
            return assignments
        pairs = (pair.split(" = ", 1) for pair in _split(assignments))
        return ", ".join(f"{column} = {self.fits(column, value)}" for column, value in pairs)

    def new_columns(self) -> dict[str, str]:
        """What an INSERT has to name beside id, display_name and provider, and with which values."""
        named_already = ("id", "display_name", "provider")
        return {
            column.name: DEFAULTS[column.name].format(now=self.sql.now)
            for column in self.database.columns.values()
            if column.default is None
            and (column.required or column.name == "active")
            and column.name in DEFAULTS
            and column.name not in named_already
        }

    def refuse_unknown_columns(self, exc: RefusedError) -> RefusedError:
        """Say which columns an INSERT fails at that are none of ours."""
        known = self.database.columns.values()
        missing = [c.name for c in known if c.required and c.default is None]
        missing = [name for name in missing if name not in DEFAULTS and name != "id"]
        if (exc.sqlstate != "23502" and "NOT NULL constraint" not in exc.message) or not missing:
            return exc
        names = ", ".join(clean(name) for name in missing)
        are = (
            "is NOT NULL and has no default"
            if len(missing) == 1
            else "are NOT NULL without default"
        )
        return RefusedError(
            f"the database refused the change: {names} of models {are}, and modelctl knows no value",
            hint="add models with the application that owns the table, or give the column a default",
        )

    def keeper(self) -> str:
        """Say what keeps rows as they were."""
        if self.on_sqlite:
            return "a trigger on models"
        sql = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('models')"
        with self.database.reading() as connection:
            schema = connection.exec_driver_sql(sql).scalar()
        return f"a trigger or rule on {schema}.models"

    def wait_for_turn(self, connection: sa.Connection) -> None:
        """Let nobody else switch models off beside the guards until this transaction ends.

        Before any row is locked, or two transactions could wait for each other.
        """
        if not self.on_sqlite:  # BEGIN IMMEDIATE has seen to it
            # Nothing is locked yet: waiting long for it is in nobody's way.
            connection.execute(
                text(
                    "SELECT set_config('lock_timeout', '2s', true),"
                    f" pg_advisory_xact_lock({self.lock_key(GUARD_LOCK)}),"
                    f" set_config('lock_timeout', '{LOCK_TIMEOUT}', true)"
                )
            )


def _in_pages(found: sa.CursorResult[Any]) -> Iterator[Any]:
    """The rows; each page that arrives renews the time of the call."""
    for page in found.partitions():
        deadline.renew()
        yield from page


# Of the application's table; behind a domain, too. varchar(n) keeps n + 4.
_COLUMNS = """
    SELECT a.attname,
        CASE WHEN coalesce(nullif(t.typbasetype, 0), t.oid) = 'varchar'::regtype
            THEN nullif(greatest(a.atttypmod, t.typtypmod), -1) - 4 END,
        a.attnotnull OR t.typnotnull,
        CASE WHEN a.attidentity <> '' OR a.attgenerated <> '' THEN 'generated'
            ELSE coalesce(pg_get_expr(d.adbin, d.adrelid), t.typdefault) END
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = to_regclass('models') AND a.attnum > 0 AND NOT a.attisdropped
"""


def _split(assignments: str) -> list[str]:
    """Split what follows SET at the commas between the columns."""
    parts, depth, quoted = [""], 0, False
    for character in assignments:
        quoted ^= character == "'"
        depth += not quoted and (character == "(") - (character == ")")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


_LONE = re.compile("[\ud800-\udfff]")
# One object per statement, so that SQLAlchemy looks at its text once.
text = functools.cache(sa.text)


def differences(
    names: Sequence[str], old: Sequence[Any], new: Sequence[Any]
) -> dict[str, Any] | None:
    """Return what differs as the details of an event have it, None where nothing does."""
    both = [(n, a, b) for n, a, b in zip(names, old, new, strict=True) if a != b]
    if not both:
        return None
    return {"old": {n: a for n, a, _ in both}, "new": {n: b for n, _, b in both}}


FOREVER = datetime.max.replace(tzinfo=UTC)


def time_at(epoch: float, now: float, digits: int) -> datetime:
    """Return the time of so many seconds since 1970, or *now* where that is before the calendar."""
    try:
        return datetime.fromtimestamp(round(epoch, digits), UTC)
    except (OverflowError, ValueError, OSError):
        return FOREVER if epoch > 0 else datetime.fromtimestamp(round(now, digits), UTC)


def written(time: datetime) -> str:
    """Write a UTC time as JSON has it."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def findable(ids: Sequence[str]) -> None:
    """An id that PostgreSQL cannot hold names no model; raises `ModelNotFoundError`.

    What is not text at all is a `UsageError`.
    """
    for model_id in ids:
        if not isinstance(model_id, str):
            raise UsageError(f"a model id is text, not {type(model_id).__name__}")
    if not all(map(is_findable, ids)):
        all_found(ids, {*filter(is_findable, ids)})


def is_findable(model_id: str) -> bool:
    """Whether a database can hold *model_id*: PostgreSQL takes no NUL and no lone surrogate."""
    return "\0" not in model_id and (model_id.isascii() or not _LONE.search(model_id))


def all_found(wanted: Sequence[str], found: Container[str]) -> None:
    """Raise `ModelNotFoundError` unless every id that was *wanted* was *found*."""
    missing = [model_id for model_id in wanted if model_id not in found]
    if missing:
        error = ModelNotFoundError(
            f"no model {named(missing)}" + ("; nothing was changed" if len(wanted) > 1 else ""),
            hint="see: modelctl list",
        )
        error.missing = tuple(missing)
        raise error


def named(ids: Sequence[str]) -> str:
    """Name some models in a message."""
    shown = ", ".join(f"'{clean(model_id, longest=200)}'" for model_id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"
