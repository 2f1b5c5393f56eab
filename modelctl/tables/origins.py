"""Where models come from: the source in which sync found each, as it is stored and looked for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.tables.columns import MODELS, UtcTime

if TYPE_CHECKING:
    from modelctl.database.database import Database

COLUMNS = ("source", "first_seen_at", "last_seen_at", "gone_since")


def from_source(database: Database, source: str | None) -> str:
    """SQL: whether a row of ``models`` has the source :of_source; with '' whether it has none."""
    return f"NOT {_has(database)}" if source == "" else _has(database, "o.source = :of_source")


def is_gone(database: Database) -> str:
    """SQL: whether the source of a row of ``models`` no longer offers it."""
    return _has(database, "o.gone_since IS NOT NULL")


def _has(database: Database, condition: str = "TRUE") -> str:
    return (
        f"EXISTS (SELECT 1 FROM {database.own}modelctl_origins o"
        f" WHERE o.model_id = models.id{database.sql.our_collation} AND {condition})"
    )


@functools.cache
def _tables(schema: str | None) -> tuple[sa.TableClause, sa.TableClause]:
    name = schema and sa.quoted_name(schema, quote=True)
    times = (sa.column(c, UtcTime) for c in ("first_seen_at", "last_seen_at", "gone_since"))
    origins = sa.table(
        "modelctl_origins", sa.column("model_id"), sa.column("source"), *times, schema=name
    )
    sources = sa.table(
        "modelctl_sources", sa.column("name"), sa.column("synced_at", UtcTime), schema=name
    )
    return origins, sources


def with_origins(database: Database, select: sa.Select[Any]) -> sa.Select[Any]:
    """Add `COLUMNS` at the end of a select from ``models``, NULL where a model has no source.

    A model that is not gone was last seen when its source was last synced.
    """
    origins, sources = _tables(None if database.on_sqlite else database.schema)
    o, s = origins.c, sources.c
    their_id = MODELS.c.id.collate("BINARY" if database.on_sqlite else "default")
    from_ = select.get_final_froms()[0]
    joined = from_.outerjoin(origins, o.model_id == their_id).outerjoin(sources, s.name == o.source)
    seen = sa.case((o.gone_since.is_(None), s.synced_at), else_=o.last_seen_at)
    return select.add_columns(
        o.source, o.first_seen_at, sa.type_coerce(seen, UtcTime), o.gone_since
    ).select_from(joined)
