"""Models and holds as they are in the database, read as an export has them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.backup.lines import LARGEST, SavedHold, SavedModel, canonical
from modelctl.health import status_of
from modelctl.model import storable
from modelctl.tables.columns import MODELS, UtcTime
from modelctl.tables.ids import quoted
from modelctl.tables.odd_values import as_declared
from modelctl.times import FOREVER, exact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelctl.database.database import Database
    from modelctl.tables.odd_values import OddRows

_NAMES = tuple(MODELS.c.keys())
_STATUS = ("active", "auto_disabled")


def select_models(which: str) -> sa.TextualSelect:
    """Return the query whose rows `saved_models` reads; *which*: the SQL after FROM models."""
    return sa.text(f"SELECT {', '.join(_NAMES)} FROM models {which}").columns(*MODELS.c)


def saved_models(rows: Iterable[Sequence[Any]], odd: OddRows) -> Iterator[SavedModel]:
    """Give the models of rows, without their tags.

    A model whose id cannot be read is left out. *odd* is told of rows with values that cannot be read.
    """
    for row in rows:
        values, columns = as_declared(MODELS.c, row)
        is_named = "id" not in columns and values[0] != ""
        if columns or not is_named:
            name = quoted([values[0]])
            odd.add(name if is_named else f"{name}, which is left out,", columns or ["id"])
        if is_named:
            yield _saved(dict(zip(_NAMES, values, strict=True)))


def _saved(row: dict[str, Any]) -> SavedModel:
    """Make a model of a row whose values are of the declared types."""
    status = status_of(*(bool(row.pop(name)) for name in _STATUS))
    for name, value in row.items():
        if name in LARGEST:
            row[name] = min(max(value or 0, 0), LARGEST[name])
        elif isinstance(value, datetime):
            row[name] = exact(value)
        elif name in ("display_name", "provider"):
            row[name] = storable(value or "")
        else:
            row[name] = storable(value) if value else None
    return canonical(SavedModel(**row, status=status.value, tags=()))


def saved_holds(database: Database, connection: sa.Connection, now: datetime) -> list[SavedHold]:
    """Return the pauses and then the incidents that are not over."""
    sql = (
        "SELECT provider, failure_type, since, until, reason, actor"
        f" FROM {database.own}modelctl_holds WHERE until > {database.sql.now}"
        f" ORDER BY failure_type IS NOT NULL, scope{database.sql.collation}"
    )
    query = sa.text(sql).columns(since=UtcTime, until=UtcTime)
    return [
        SavedHold(
            row.provider,
            row.failure_type or None,
            exact(row.since or now),
            exact(row.until or FOREVER),
            row.reason or None,
            row.actor or None,
        )
        for row in connection.execute(query)
    ]


def clock(database: Database, connection: sa.Connection) -> datetime:
    """Return the time of the database."""
    query = sa.text(f"SELECT {database.sql.now} AS now").columns(now=UtcTime)
    now: datetime = connection.execute(query).scalar_one()
    return now
