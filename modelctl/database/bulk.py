"""Many rows: how many one statement takes, and results that may be larger than the memory."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from modelctl import deadline
from modelctl.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import sqlalchemy as sa

    from modelctl.database.database import Database

T = TypeVar("T")

# Rows or outcomes that one statement takes: bounds memory and how long locks are held.
CHUNK = 5000
_PAGE = 1000  # rows that are read without a cursor


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Split *items* into lists of at most `CHUNK`."""
    source = iter(items)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def spooled(
    database: Database, query: Any, parameters: Any = None, make: Callable[[Any], Any] = tuple
) -> Spool[Any]:
    """Read all rows of a query, to disk if they are many; *make* makes an item of each.

    A caller that works through the rows slowly holds no connection and no transaction, and on SQLite
    without WAL it blocks no writer.
    """
    with database.connect() as connection:
        if database.on_sqlite:
            connection = connection.execution_options(begin=None)
        return Spool(map(make, by_page(connection, query, parameters)))


def by_page(connection: sa.Connection, query: Any, parameters: Any = None) -> Iterator[Any]:
    """Give the rows of a query in a transaction, with a page of them in memory.

    Each page that arrives renews the deadline of the call.
    """
    how = {"yield_per": _PAGE}
    with connection.execute(query, parameters, execution_options=how) as found:
        for page in found.partitions():
            deadline.renew()
            yield from page


def rows_of(database: Database, query: Any, limit: int | None) -> Iterable[Any]:
    """Read the rows of a query: `spooled`, unless its *limit* is at most a page."""
    if limit is None or limit > _PAGE:
        return spooled(database, query)
    with database.reading() as connection:
        rows: list[Any] = [*connection.execute(query)]
        return rows
