"""The stage: a temporary table with the entries of catalogues, beside the models of the fleet.

Statements join it with the other tables, so that a catalogue is compared and written by the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.errors import UsageError
from modelctl.models.add import Entry, fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database


class Staged(NamedTuple):
    """An entry of a catalogue; '' where the catalogue does not say it.

    *active*: whether the catalogue says that the model is on; None: it does not say.
    *source*: the source of the catalogue. *left_out*: why the entry changes nothing; None: it may.
    """

    id: str
    display_name: str
    provider: str
    active: bool | None
    source: str | None = None
    left_out: str | None = None


# No name is that of a column of models which a statement writes without its table. state: the status
# that a new model got when it was inserted, else NULL.
_COLUMNS = "n, id, display_name, provider, is_on, source, left_out"
# The entries of a chunk that may change something.
CHUNK = "entry.n BETWEEN :first AND :last AND entry.left_out IS NULL"


class Stage:
    """The table, in a transaction. It is called ``entry`` in statements, and ends with the transaction."""

    def __init__(self, database: Database, connection: sa.Connection) -> None:
        self._database, self._connection = database, connection
        self.length = 0
        place = "temp" if database.on_sqlite else "pg_temp"
        self.table = f"{place}.modelctl_stage"
        self.entries = f"{self.table} AS entry"

    def fill(self, entries: Iterable[Staged]) -> None:
        """Create the table and write all entries; the ids are unique."""
        run = self._connection.exec_driver_sql
        if self._database.on_sqlite:
            run(
                "CREATE TEMPORARY TABLE modelctl_stage (n INTEGER PRIMARY KEY, id TEXT UNIQUE,"
                " display_name TEXT, provider TEXT, is_on BOOLEAN, source TEXT, left_out TEXT,"
                " state TEXT)"
            )
        else:
            run(
                "CREATE TEMPORARY TABLE modelctl_stage (n integer, id text, display_name text,"
                " provider text, is_on boolean, source text, left_out text, state text)"
                " ON COMMIT DROP"
            )
        for chunk in bulk.chunks(entries):
            rows = [(self.length + at, *self._fitted(entry)) for at, entry in enumerate(chunk)]
            if self._database.on_sqlite:
                self._insert(rows)
            else:
                self._copy(rows)
            self.length += len(rows)
            deadline.renew()
        if not self._database.on_sqlite:
            # After the rows, so that they are sorted once. Both indexes, and the statistics of n: without
            # them the planner takes a chunk for a few rows and compares each with each.
            run(f"CREATE INDEX ON {self.table} (n)")
            run(f"CREATE INDEX ON {self.table} (id{self._database.sql.collation})")
            run(f"ANALYZE {self.table} (n, left_out)")

    def chunks(self) -> Iterator[dict[str, int]]:
        """Give the parameters of `CHUNK` for one chunk after the other."""
        for first in range(0, self.length, bulk.CHUNK):
            yield {"first": first, "last": min(first + bulk.CHUNK, self.length) - 1}

    def run(self, sql: str, parameters: Mapping[str, Any]) -> int:
        """Run a statement in the transaction; return how many rows it wrote."""
        return self._connection.execute(text(sql), dict(parameters)).rowcount

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run a statement in the transaction, and return its rows."""
        return self._connection.execute(text(sql), dict(parameters)).all()

    def pages(self, sql: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """Run a statement in the transaction, and give its rows, which may be many."""
        return bulk.by_page(self._connection, text(sql), dict(parameters))

    def _fitted(self, entry: Staged) -> Sequence[Any]:
        if not self._database.columns:
            return entry
        ids = self._database.columns.get("id")
        if ids and ids.fit(entry.id) != entry.id and entry.left_out is None:
            raise UsageError(
                f"the id '{entry.id}' is too long: the column id of models takes {ids.length} characters",
                hint="leave it out (modelctl ignore), or make the column longer",
            )
        return (*fit(self._database, Entry(*entry[:3])), *entry[3:])

    def _insert(self, rows: Sequence[Sequence[Any]]) -> None:
        raw: Any = self._connection.connection.driver_connection
        raw.executemany(f"INSERT INTO {self.table} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def _copy(self, rows: Sequence[Sequence[Any]]) -> None:
        """Send rows by COPY. Each wait for the server is within the deadline of the call."""
        import psycopg

        raw: Any = self._connection.connection.driver_connection
        # psycopg's name for a database without an encoding, in which texts are stored as UTF-8.
        codec = "utf-8" if raw.info.encoding == "ascii" else raw.info.encoding
        lines = "".join(map(_line, rows)).encode(codec)
        try:
            with (
                raw.cursor() as cursor,
                cursor.copy(f"COPY {self.table} ({_COLUMNS}) FROM STDIN") as copy,
            ):
                copy.write(lines)
        except psycopg.Error as exc:
            if raw.closed:  # SQLAlchemy does not look at errors that it has not raised
                self._connection.invalidate(exc)
            raise


_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _line(row: Sequence[Any]) -> str:
    """Return a row in the text format of COPY."""
    return "\t".join(map(_field, row)) + "\n"


def _field(value: Any) -> str:
    if value is None:
        return r"\N"
    if value is True or value is False:
        return "t" if value else "f"
    if not isinstance(value, str):
        return str(value)
    # Most texts have none of these, and the test is faster than to translate.
    return value if value.isprintable() and "\\" not in value else value.translate(_ESCAPES)
