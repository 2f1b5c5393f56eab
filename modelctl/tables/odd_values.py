"""Values that are not what their column is for, and how they are read nevertheless.

SQLite stores whatever is written into a column. PostgreSQL has times beyond the calendar and, in a
database without an encoding, texts that are not UTF-8.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.tables.columns import StoredFlag, UtcTime
from modelctl.tables.ids import is_storable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from modelctl.database.database import Database

_NAMED = 20  # rows with odd values that get a warning each


def readable(value: Any) -> str:
    """Return the text of a column, whatever is stored there."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else "" if value is None else str(value)


def whole(value: Any) -> int:
    """Return the number of a column, 0 where it is not a number."""
    try:
        return value if type(value) is int else int(value or 0)
    except (ValueError, OverflowError, TypeError, ArithmeticError):
        return 0


def is_number(value: Any) -> bool:
    """Whether the value of a column is a finite number."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return type(value) is int


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer of 8 bytes, also where a column of another type stores decimals."""
    return type(value) is int or (
        is_number(value) and value == whole(value) and -(2**63) <= value < 2**63
    )


def as_declared(
    columns: Iterable[sa.Column[Any]], row: Sequence[Any]
) -> tuple[list[Any], list[str]]:
    """Make each value of *row* what its column is for; return also the columns where it was not."""
    values, odd = [*row], []
    for place, column in enumerate(columns):
        value, kind = values[place], column.type
        if value is None:
            if column.primary_key:  # the key of an adopted table may be NULL
                values[place] = ""
                odd.append(column.name)
            continue
        fine = True
        if isinstance(kind, UtcTime):
            if not isinstance(value, datetime):
                values[place] = None
                # PostgreSQL's word for a disable with an end that never comes.
                fine = (column.name, value) == ("disabled_until", "infinity")
        elif isinstance(kind, StoredFlag):
            values[place], fine = value == 1, value in (0, 1)
        elif isinstance(kind, sa.Integer):
            values[place], fine = whole(value), _is_whole(value)
        elif isinstance(kind, sa.Text):
            values[place] = readable(value)
            fine = isinstance(value, str) and is_storable(value)
        if not fine:
            odd.append(column.name)
    return values, odd


class OddRows:
    """Warns of rows with odd values: of the first ones by name, then of how many more there are."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """*warn* is called with each warning."""
        self._warn = warn
        self._seen = 0

    def add(self, row: str, columns: Sequence[str]) -> None:
        """Note that *row* has odd values in these columns."""
        self._seen += 1
        if self._seen <= _NAMED:
            self._warn(f"{row} has values that cannot be read: {', '.join(columns)}")

    def finish(self) -> None:
        """Warn of the rows that were not named."""
        if self._seen > _NAMED:
            more = self._seen - _NAMED
            self._warn(f"{more} more {'has' if more == 1 else 'have'} values that cannot be read")


def is_odd(database: Database, columns: Iterable[sa.Column[Any]]) -> str:
    """SQL: whether a value of a row is not what one of these columns is for, as far as SQL can tell."""
    tests = ["id IS NULL"]
    for column in columns:
        name, kind = column.name, column.type
        if isinstance(kind, UtcTime):
            fine = f"{database.sql.is_finite(name)} IS TRUE"
            if not database.on_sqlite:
                fine = f"{name} BETWEEN '0001-01-01' AND '9999-12-30'"
                fine += f" OR {name} = 'infinity'" if name == "disabled_until" else ""
            tests.append(f"{name} IS NOT NULL AND NOT ({fine})")
        elif not database.on_sqlite:
            continue
        elif isinstance(kind, StoredFlag):
            tests.append(f"{name} NOT IN (0, 1)")
        elif isinstance(kind, sa.Integer):
            tests.append(f"typeof({name}) NOT IN ('integer', 'null')")
        else:
            tests.append(f"typeof({name}) NOT IN ('text', 'null') OR instr({name}, char(0)) > 0")
    return f"({' OR '.join(tests)})"
