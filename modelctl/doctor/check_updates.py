"""Whether PostgreSQL can record outcomes without touching the indexes of ``models`` (HOT updates)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl.database.sql import text
from modelctl.doctor.facts import Finding, first_three, warning, well
from modelctl.schema.declared import MODELS_FILLFACTOR
from modelctl.tables.columns import RECORDED

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts

# Below this share of HOT updates the table grows, and every outcome writes all indexes. Fewer updates
# than this say nothing.
ENOUGH_SHARE = 0.95
ENOUGH_UPDATES = 1000
# From this fillfactor on, a page has no room for a second version of each of its rows.
_TOO_FULL = 60
# An update is HOT if its page has room, and if no index uses a column that it changes. From
# PostgreSQL 16 on a block range index (BRIN) does not matter.
_UPDATES = """
SELECT pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_hot_updated(c.oid),
    CAST(coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions)
        WHERE option_name = 'fillfactor'), '100') AS integer),
    ARRAY(SELECT CAST(CAST(i.indexrelid AS regclass) AS text) FROM pg_index i
        JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
        WHERE i.indrelid = c.oid
            AND NOT (m.amname = 'brin' AND current_setting('server_version_num')::integer >= 160000)
            AND EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = ANY(:ids) AND (a.attnum = ANY(i.indkey)
                    OR EXISTS (SELECT FROM pg_depend d
                        WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = i.indexrelid
                            AND d.refobjid = c.oid AND d.refobjsubid = a.attnum)))
        ORDER BY 1)
FROM pg_class c WHERE c.oid = to_regclass('models')
"""


class Updates(NamedTuple):
    """How rows of ``models`` were updated since the server's statistics began, and what matters for it.

    *hot*: how many of the updates wrote no index. *indexes*: those that use a column which outcomes change.
    """

    updated: int
    hot: int
    fillfactor: int
    indexes: list[str]


def updates(facts: Facts) -> Finding | None:
    """Look at the share of HOT updates, and say what would raise it."""
    if facts.on_sqlite:
        return None
    database = facts.storage.database
    with database.reading() as connection:
        values = {"ids": database.sql.list_of_texts(RECORDED)}
        row = connection.execute(text(_UPDATES), values).one_or_none()
    if row is None:
        return None
    found = Updates(*row)
    advice = "".join(f"; {each}" for each in _advice(found))
    if found.updated < ENOUGH_UPDATES:
        return well(f"too few to judge how outcomes are written{advice}")
    share = found.hot / found.updated
    detail = f"{share:.0%} of {found.updated:,} updates of models wrote no index (HOT)"
    if share >= ENOUGH_SHARE:
        return well(detail)
    since = "SELECT pg_stat_reset_single_table_counters('models'::regclass)"
    return warning(f"{detail}, of an outcome most should{advice}; to count anew: {since}")


def _advice(found: Updates) -> list[str]:
    """Return what the owner of the table can do."""
    advice = []
    if found.indexes:
        use = "uses a column" if len(found.indexes) == 1 else "use columns"
        advice.append(
            f"{first_three(found.indexes)} {use} that outcomes change: DROP INDEX, if nothing needs it"
        )
    if found.fillfactor >= _TOO_FULL:
        advice.append(
            "pages have no room for a second version of their rows: ALTER TABLE models SET"
            f" (fillfactor = {MODELS_FILLFACTOR}), then VACUUM FULL models, which locks the table"
        )
    return advice
