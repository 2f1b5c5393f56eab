"""Export a fleet: all that modelctl knows of its models, and what holds its switching, at one moment."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from modelctl.backup.lines import SavedModel, header_line, hold_line, last_line, model_line
from modelctl.backup.stored import clock, saved_holds, saved_models, select_models
from modelctl.database.bulk import by_page
from modelctl.spool import Spool
from modelctl.tables.odd_values import OddRows
from modelctl.tables.selection import condition, parameters
from modelctl.tables.tags import tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.tables.selection import Selection

_PAGE = 1000


def export(database: Database, selection: Selection | None = None) -> Spool[str]:
    """Return the lines of an export, on disk if they are many, each with its line feed.

    All of them show the fleet at the same moment. Of a selection only the models are exported, no
    pauses and no incidents. A slow reader of the lines holds no connection.
    """
    return Spool(_lines(database, selection))


def _lines(database: Database, selection: Selection | None) -> Iterator[str]:
    which, values = "", {}
    if selection is not None:
        which = f"WHERE {condition(database, selection)} "
        values = parameters(database.sql, selection)
    which += f"ORDER BY {database.sql.by_id}"
    models = pauses = incidents = 0
    odd = OddRows(database.warn)
    with database.snapshot() as connection:
        now = clock(database, connection)
        yield header_line(now)
        rows = by_page(connection, select_models(which), values)
        for model in _with_tags(database, connection, saved_models(rows, odd)):
            models += 1
            yield model_line(model)
        for hold in saved_holds(database, connection, now) if selection is None else ():
            pauses += hold.failure_type is None
            incidents += hold.failure_type is not None
            yield hold_line(hold)
    yield last_line(models, pauses, incidents)
    odd.finish()


def _with_tags(
    database: Database, connection: sa.Connection, models: Iterator[SavedModel]
) -> Iterator[SavedModel]:
    while page := list(islice(models, _PAGE)):
        tags = tags_of(database, connection, (model.id for model in page))
        for model in page:
            its = tags.get(model.id)
            yield model._replace(tags=tuple(sorted({*its}))) if its else model
