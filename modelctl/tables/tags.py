"""The tags of models: how they are stored, read and looked for; `model` says which texts can be tags."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from modelctl.database.sql import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

_STORED = {"model_id": "text", "tags": "text[]"}


def read_tags(stored: Any) -> tuple[str, ...] | None:
    """Return the tags of a row, () for NULL; None if they are not a list of texts.

    *stored*: a list from PostgreSQL, JSON from SQLite.
    """
    if stored is None:
        return ()
    try:
        tags = json.loads(stored) if isinstance(stored, str) else stored
    except (ValueError, RecursionError):
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return None
    return tuple(tags)


def has_tags(database: Database) -> str:
    """SQL: whether a row of ``models`` has all tags of the parameter :of_tags."""
    sql = database.sql
    return (
        f"EXISTS (SELECT 1 FROM {database.own}modelctl_tags t"
        f" WHERE t.model_id = models.id{sql.our_collation} AND {sql.has_all('t.tags', 'of_tags')})"
    )


def tags_of(
    database: Database, connection: sa.Connection, ids: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Return the tags of those of *ids* that have any."""
    sql = (
        f"SELECT model_id, tags FROM {database.own}modelctl_tags"
        f" WHERE {database.sql.is_among('model_id')}"
    )
    rows = connection.execute(text(sql), {"ids": database.sql.list_of_texts(ids)})
    return {row[0]: tags for row in rows if (tags := read_tags(row[1]))}


def all_tags(database: Database) -> tuple[str, ...]:
    """Return every tag of a model once, by code points."""
    sql = f"SELECT DISTINCT tags FROM {database.own}modelctl_tags"
    with database.reading() as connection:
        stored = connection.execute(text(sql)).scalars()
        return tuple(sorted({tag for tags in stored for tag in read_tags(tags) or ()}))


def set_tags(
    database: Database, connection: sa.Connection, tags: Mapping[str, Sequence[str]]
) -> None:
    """Give each of these models exactly these tags, in two statements.

    The caller has locked the rows of the models, or has inserted them. The tags are those that
    `check_tags` returned.
    """
    sql, table = database.sql, f"{database.own}modelctl_tags"
    without = [model_id for model_id, its_tags in tags.items() if not its_tags]
    if without:
        delete = f"DELETE FROM {table} WHERE {sql.is_among('model_id')}"
        connection.execute(text(delete), {"ids": sql.list_of_texts(without)})
    rows = [(model_id, sql.list_of_texts(its)) for model_id, its in tags.items() if its]
    if rows:
        upsert = (
            f"INSERT INTO {table} (model_id, tags)"
            f" SELECT model_id, tags FROM {sql.rows('given', _STORED)} WHERE TRUE"
            " ON CONFLICT (model_id) DO UPDATE SET tags = excluded.tags"
        )
        connection.execute(text(upsert), sql.values(_STORED, rows))
