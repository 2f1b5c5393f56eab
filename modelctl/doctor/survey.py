"""The rows of ``models`` as `doctor` judges them, counted in one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from modelctl.database.bulk import spooled
from modelctl.database.sql import text
from modelctl.tables.application import filled_to
from modelctl.tables.columns import COUNTERS, MODELS, ON
from modelctl.tables.ids import is_storable
from modelctl.tables.odd_values import is_odd, readable

if TYPE_CHECKING:
    from collections.abc import Collection

    from modelctl.database.database import Database

# Of a counter of 4 bytes: the last number, and one that leaves months to widen the column.
FULL, NEARLY_FULL = 2**31 - 1, 2_000_000_000


class Survey(NamedTuple):
    """How many models there are, how many are active, and how many rows have a fault.

    *contradictory*: active and auto-disabled. *failing*: the last call failed with a type that does
    not count. *unreadable*: values are not what their columns are for; *such_as*: one of these models.
    *filling*: the counters of 4 bytes that are nearly full, *full*: those that are full.
    """

    models: int
    active: int
    contradictory: int
    failing: int
    unreadable: int
    such_as: str
    filling: str
    full: str


def survey(database: Database, counted: Collection[str]) -> Survey:
    """Count the rows; *counted*: the failure types that count."""
    sql = database.sql
    failed, worked = map(sql.epoch, ("last_failure_at", "last_success_at"))
    odd = is_odd(database, MODELS.c)
    query = (
        f"SELECT count(*), count(*) FILTER (WHERE {ON}),"
        f" count(*) FILTER (WHERE {ON} AND auto_disabled IS TRUE),"
        f" count(*) FILTER (WHERE {ON} AND failure_type IS NOT NULL"
        f" AND NOT ({sql.is_among('failure_type')}) AND {failed} > coalesce({worked}, 0)),"
        f" count(*) FILTER (WHERE {odd}), min(id) FILTER (WHERE {odd}),"
        f" {_counters_at(database, NEARLY_FULL)}, {_counters_at(database, FULL)} FROM models"
    )
    with database.reading() as connection:
        values = {"ids": sql.list_of_texts(counted)}
        found = Survey(*connection.execute(text(query), values).one())
    found = found._replace(such_as=readable(found.such_as))
    return found if found.unreadable else found._replace(**_odd_texts(database))


def _counters_at(database: Database, limit: int) -> str:
    """The names of the counters that are at *limit* in some row."""
    if database.on_sqlite:  # an integer of SQLite has 8 bytes
        return "''"
    names = (f"CASE WHEN bool_or({filled_to(name, limit)}) THEN '{name}' END" for name in COUNTERS)
    return f"concat_ws(', ', {', '.join(names)})"


def _odd_texts(database: Database) -> dict[str, Any]:
    """Look for bytes that are no characters, where the encoding of the database allows them."""
    if not database.unchecked:
        return {}
    texts = [column.name for column in MODELS.c if isinstance(column.type, sa.Text)]
    beyond_ascii = "GLOB '*[^ -~]*'" if database.on_sqlite else "~ '[^ -~]'"
    where = " OR ".join(f"{name} {beyond_ascii}" for name in texts)
    query = text(f"SELECT {', '.join(texts)} FROM models WHERE {where}")
    found = [
        row[0]
        for row in spooled(database, query)
        if not all(is_storable(readable(value)) for value in row)
    ]
    return {"unreadable": len(found), "such_as": readable(found[0])} if found else {}
