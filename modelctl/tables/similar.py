"""Find ids that resemble a given one: what it completes to, was meant to be, or looks like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelctl.database.bulk import spooled
from modelctl.database.sql import text
from modelctl.model import storable
from modelctl.tables.ids import is_storable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.database.database import Database

_NEAR_AMONG = 20_000  # models among which `nearest` looks for similar ids


def complete(database: Database, prefix: str) -> list[str]:
    """Return at most 100 ids that begin with *prefix*."""
    sql = (
        "SELECT id FROM models WHERE starts_with(id, :prefix)"
        f" ORDER BY {database.sql.by_id} LIMIT 100"
    )
    with database.reading() as connection:
        return [*connection.execute(text(sql), {"prefix": prefix}).scalars()]


def nearest(database: Database, model_id: str) -> list[str]:
    """Return at most 3 ids that *model_id* was perhaps meant to be, the nearest first.

    The work is bounded, however many models there are: candidates are the neighbours in the index
    and, of the first `_NEAR_AMONG` models, those of about the same length with a similar begin or end.
    """
    from modelctl.tables.look_alikes import nearest

    wanted = storable(model_id, 200)
    last = re.split("[/:]", wanted.lower())[-1]
    values = {
        "id": wanted,
        "length": len(wanted),
        "head": f"{_as_pattern(wanted[:2])}%",
        "tail": f"%{_as_pattern(last[-2:])}",
        "whole": f"%{_as_pattern(last)}",
    }
    sql = (
        "SELECT id FROM (SELECT id FROM models WHERE id >= :id ORDER BY id LIMIT 50) AS ids_after"
        " UNION SELECT id FROM"
        " (SELECT id FROM models WHERE id < :id ORDER BY id DESC LIMIT 50) AS ids_before"
        " UNION SELECT id FROM ("
        f"SELECT id FROM (SELECT id FROM models LIMIT {_NEAR_AMONG}) AS models_at_hand"
        " WHERE lower(id) LIKE :head ESCAPE '!' OR lower(id) LIKE :tail ESCAPE '!'"
        " OR lower(id) LIKE :whole ESCAPE '!'"
        " ORDER BY abs(length(id) - :length) LIMIT 200) AS similar_ids"
    )
    with database.reading() as connection:
        found = connection.execute(text(sql), values).scalars().all()
    return nearest(wanted, [i for i in found if isinstance(i, str) and is_storable(i)])


def _as_pattern(text: str) -> str:
    """Escape text for LIKE with the escape character !, in lower case."""
    return re.sub("([%_!])", r"!\1", text.lower())


def look_alikes(database: Database, ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of one of *ids* and another model whose id looks the same."""
    from modelctl.tables.look_alikes import ASCII_ALIKE, skeleton

    wanted: dict[str, list[str]] = {}
    for model_id in ids:
        wanted.setdefault(skeleton(model_id), []).append(model_id)
    # SQL computes the skeleton of an ASCII id. Ids with other characters are all read.
    if database.on_sqlite:
        not_ascii, folded = "id GLOB '*[^!-~]*'", "lower(id)"
        for one, other in zip(*ASCII_ALIKE, strict=True):
            folded = f"replace({folded}, '{one}', '{other}')"
    else:
        capitals, small = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghljklmnopqrstuvwxyz"
        alike, same = (f"{a}{b}" for a, b in zip((capitals, small), ASCII_ALIKE, strict=True))
        not_ascii, folded = "id ~ '[^!-~]'", f"translate(id, '{alike}', '{same}')"
    sql = (
        f"SELECT id FROM models WHERE {not_ascii} OR {database.sql.is_among(folded)}"
        f" ORDER BY {database.sql.by_id}"
    )
    skeletons = {"ids": database.sql.list_of_texts(wanted)}
    return [
        (model_id, other)
        for other in spooled(database, text(sql), skeletons, lambda row: row[0])
        if isinstance(other, str)  # a SQLite file may hold bytes, which match or not by its version
        for model_id in wanted.get(skeleton(other), ())
        if model_id != other
    ]
