"""The table ``models`` where an application made it: its columns, and what undoes our changes.

Its columns may be narrower than ours, NOT NULL or without a default, and it may have triggers and
rules that leave a row as it was. For our own table nothing of this is needed, so nothing is asked
before a statement has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.errors import RefusedError, UsageError, clean
from modelctl.tables.columns import COUNTERS
from modelctl.tables.ids import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database, Query

T = TypeVar("T")
# Up to so many rows are counted.
_MANY_ROWS = 100_000


class Column(NamedTuple):
    """A column of the table.

    *length*: of text, at most. *required*: NOT NULL. *default*: an expression, None: there is none.
    """

    name: str
    length: int | None
    required: bool
    default: str | None

    def fit(self, value: str) -> str:
        """Cut a text to the length of the column."""
        return value[: self.length]


class KeptError(Exception):
    """Rows are not as a statement should have left them: a trigger or a rule undid it."""

    def __init__(self, ids: Sequence[str]) -> None:
        """*ids*: the models of these rows."""
        super().__init__()
        self.ids = ids


_DIVISION_BY_ZERO = "22012"


class NewColumnsError(Exception):
    """The columns of the table are known now, so the transaction has to begin again."""


# What our own table has as the defaults of its columns.
_DEFAULTS = (
    dict.fromkeys(("display_name", "provider", "failure_type", "failure_reason"), "''")
    | dict.fromkeys(("disabled_by", "disabled_reason", "would_disable"), "''")
    | {"active": "TRUE", "auto_disabled": "FALSE"}
    | dict.fromkeys(("consecutive_failures", "ejections", "success_count", "failure_count"), "0")
)
_TIMES = ("created_at", "updated_at")  # their default is the time now
_INSERTED = ("id", "display_name", "provider")
# Text columns that modelctl sets to NULL; where the column is NOT NULL, '' means the same.
_EMPTIED = ("failure_type", "failure_reason", "disabled_by", "disabled_reason", "would_disable")

# varchar(n) has the type modifier n + 4, its own or that of a domain. Other types have no length.
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


def write(database: Database, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
    """Run *work* in one transaction.

    Raises:
        RefusedError: the database kept rows as they were.
    """
    return refusing(database, lambda: database.write(work, dry_run=dry_run))


def refusing(database: Database, transaction: Callable[[], T]) -> T:
    """Run *transaction*; if the database kept rows as they were, raise `RefusedError` with their ids."""
    try:
        return adapting(database, transaction)
    except KeptError as exc:
        it = "it was" if len(exc.ids) == 1 else "they were"
        raise RefusedError(
            f"the database kept {quoted(exc.ids)} as {it} ({keeper(database)}); nothing was changed",
            hint="make this change with the application that owns the table",
        ) from None
    except UsageError as exc:
        out_of_range = exc.sqlstate == "22003"
        if not out_of_range or not (full := _full_counters(database)):
            raise
        raise RefusedError(
            f"{', '.join(full)} of models {'is' if len(full) == 1 else 'are'} full ({exc.message});"
            " nothing was changed",
            hint="as the owner run: ALTER TABLE models "
            + ", ".join(f"ALTER COLUMN {name} TYPE bigint" for name in full),
        ) from None


# ── One row, in a transaction of two messages ──
#
# COMMIT travels in the message with the statements, so only a statement that fails can stop it. A trigger
# of the application may suppress the UPDATE or put the row back: hence the divisions by zero.


def change_one(
    database: Database,
    model_id: str,
    read: str,
    parameters: Mapping[str, Any],
    decide: Callable[[list[Sequence[Any]]], tuple[T, Query]],
) -> T:
    """Change one model of PostgreSQL; the arguments are those of `Database.lock_and_change`.

    Raises:
        KeptError: `must_write` or `must_find` failed.
    """
    try:
        return database.lock_and_change(read, parameters, decide)
    except UsageError as exc:
        if exc.sqlstate == _DIVISION_BY_ZERO:
            raise KeptError([model_id]) from None
        raise


def must_write(write: str) -> str:
    """SQL that runs *write*, which returns what it has written, and fails if that is nothing."""
    return f"WITH written AS ({write}) SELECT 1 / count(*) FROM written"


def must_find(database: Database, condition: str) -> str:
    """SQL that fails unless a row of :ids meets the condition."""
    return f"SELECT 1 / count(*) FROM models WHERE {database.sql.ids} AND {condition}"


def filled_to(counter: str, limit: int) -> str:
    """Whether a counter is an integer of 4 bytes and at least *limit*; for PostgreSQL."""
    return f"pg_column_size({counter}) = 4 AND {counter} >= {limit}"


def _full_counters(database: Database) -> list[str]:
    """Return the counters that cannot take one batch more in some row."""
    room = ", ".join(f"bool_or({filled_to(name, 2**31 - bulk.CHUNK)})" for name in COUNTERS)
    with database.reading() as connection:
        found = connection.execute(text(f"SELECT {room} FROM models")).one()
    return [name for name, is_full in zip(COUNTERS, found, strict=True) if is_full]


def adapting(database: Database, transaction: Callable[[], T]) -> T:
    """Run *transaction*; if it fails at a column, look at the columns and run it again."""
    try:
        return transaction()
    except NewColumnsError:
        return transaction()
    except (RefusedError, UsageError) as exc:
        too_long = exc.sqlstate == "22001"
        if not (too_long or _is_null(exc)) or not look_at_columns(database):
            raise
    return transaction()


def _is_null(exc: RefusedError | UsageError) -> bool:
    """Whether a NOT NULL column was given NULL."""
    return exc.sqlstate == "23502" or "NOT NULL constraint" in exc.message


def keeper(database: Database) -> str:
    """Name for a message what keeps rows as they were."""
    if database.on_sqlite:
        return "a trigger on models"
    sql = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('models')"
    with database.reading() as connection:
        schema = connection.exec_driver_sql(sql).scalar()
    return f"a trigger or rule on {schema}.models"


def look_at_columns(database: Database, connection: sa.Connection | None = None) -> bool:
    """Read the columns of ``models`` from the catalogue; return whether they are other than known."""
    if connection is None:
        with database.reading() as reading:
            return look_at_columns(database, reading)
    known = database.columns
    if database.on_sqlite:
        rows = connection.exec_driver_sql("PRAGMA table_info(models)")
        found = [Column(row[1].lower(), None, bool(row[3]), row[4]) for row in rows]
    else:
        found = [Column(*row) for row in connection.exec_driver_sql(_COLUMNS)]
    database.columns = {column.name: column for column in found}
    return database.columns != known


def assignments(database: Database, **values: str) -> str:
    """Write what follows SET: the expression of each column, made to fit the column."""
    return ", ".join(f"{column} = {fit(database, column, values[column])}" for column in values)


def fit(database: Database, column: str, value: str) -> str:
    """Make an expression fit a column: not too long, and not NULL where that is not allowed."""
    known = database.columns.get(column)
    if known and known.length is not None:
        value = f"left(CAST({value} AS text), {known.length})"
    if known and known.required and column in _EMPTIED:
        value = f"coalesce({value}, '')"
    return value


def defaults_to_insert(database: Database) -> dict[str, str]:
    """Return the columns that an INSERT must name beside id, display_name and provider.

    Each with the expression to insert.
    """
    defaults = _DEFAULTS | dict.fromkeys(_TIMES, database.sql.now)
    return {
        column.name: defaults[column.name]
        for column in database.columns.values()
        if column.default is None
        and (column.required or column.name == "active")
        and column.name in defaults
        and column.name not in _INSERTED
    }


def inserting(database: Database, transaction: Callable[[], T]) -> T:
    """Run a transaction that inserts models; explain an error of a column that modelctl does not know."""
    try:
        return transaction()
    except RefusedError as exc:
        raise _explain_refused_insert(database, exc) from exc


def _explain_refused_insert(database: Database, exc: RefusedError) -> RefusedError:
    """Return the error of an INSERT; in our words if columns that modelctl does not know need a value."""
    known = database.columns.values()
    required = (c.name for c in known if c.required and c.default is None)
    missing = [name for name in required if name not in (*_DEFAULTS, *_TIMES, "id")]
    if not (_is_null(exc) and missing):
        return exc
    names = ", ".join(map(clean, missing))
    are = "is NOT NULL and has no default" if len(missing) == 1 else "are NOT NULL without default"
    return RefusedError(
        f"the database refused the change: {names} of models {are}, and modelctl knows no value",
        hint="add models with the application that owns the table, or give the column a default",
    )


def count_rows(connection: sa.Connection) -> tuple[int | None, str | None]:
    """Return the number of rows of ``models``, and in words; None if they cannot be read now.

    Many rows are not counted: the number is then PostgreSQL's estimate.
    """
    estimate = -1
    if connection.dialect.name == "postgresql":
        estimate, readable = connection.exec_driver_sql(
            """
            SELECT CAST(c.reltuples AS bigint), c.relkind IN ('r', 'p')
                AND has_schema_privilege(c.relnamespace, 'USAGE')
                AND has_table_privilege(c.oid, 'SELECT') AND NOT EXISTS (
                    SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                    WHERE d.datname = current_database() AND l.relation = c.oid AND l.granted
                        AND l.mode = 'AccessExclusiveLock' AND l.pid <> pg_backend_pid())
            FROM pg_class c WHERE c.oid = to_regclass('models')
            """
        ).one()
        if not readable:
            return None, None
    few = f"SELECT count(*) FROM (SELECT 1 FROM models LIMIT {_MANY_ROWS + 1}) AS few"
    number: int = connection.exec_driver_sql(few).scalar_one()
    if number <= _MANY_ROWS:
        return number, f"{number:,} row{'s' * (number != 1)}"
    if estimate < number:
        return number, f"more than {_MANY_ROWS:,} rows"
    return estimate, f"about {estimate:,} rows"
