"""The SQL that writes models and holds of an export, each statement for a chunk of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.backup.lines import LARGEST, TIMES, SavedHold, SavedModel, shortest
from modelctl.database.sql import text
from modelctl.health import scope_of
from modelctl.tables.application import assignments, fit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.database.sql import Sql

_MODEL = {name: "text" for name in SavedModel._fields if name != "tags"}
_MODEL |= dict.fromkeys(TIMES, "timestamptz") | dict.fromkeys(LARGEST, "bigint")
_HOLD = {"scope": "text", **dict.fromkeys(SavedHold._fields, "text")}
_HOLD |= dict.fromkeys(("since", "until"), "timestamptz")


def insert(database: Database, connection: sa.Connection, models: Sequence[SavedModel]) -> set[str]:
    """Insert those models that are not there, and return their ids."""
    if not models:
        return set()
    sql = database.sql
    values = _values() | {
        "created_at": f"coalesce(target.created_at, {sql.now})",
        "updated_at": f"coalesce(target.updated_at, {sql.now})",
    }
    fitted = (fit(database, column, value) for column, value in values.items())
    # NOT EXISTS as in `sync.apply`: NOT NULL columns are checked before ON CONFLICT.
    statement = (
        f"INSERT INTO models (id, {', '.join(values)}) SELECT target.id, {', '.join(fitted)}"
        f" FROM {sql.rows('target', _MODEL)}"
        " WHERE NOT EXISTS (SELECT 1 FROM models WHERE models.id = target.id)"
        f" ORDER BY target.id{sql.collation} ON CONFLICT (id) DO NOTHING RETURNING id"
    )
    found = connection.execute(text(statement), _parameters(sql, models)).scalars()
    return {*found}


def update(database: Database, connection: sa.Connection, models: Sequence[SavedModel]) -> None:
    """Update models whose rows are locked; only ``created_at`` stays where it is not known."""
    if not models:
        return
    sql = database.sql
    values = _values() | {
        **{name: _kept_if_null(name) for name in ("display_name", "provider")},
        "created_at": "coalesce(target.created_at, models.created_at)",
        # The trigger takes a row that goes off without a new time for one that another program changed.
        "disabled_at": "CASE WHEN target.status = 'active' THEN NULL"
        " ELSE coalesce(target.disabled_at,"
        f" CASE WHEN models.active IS TRUE THEN {sql.now} ELSE models.disabled_at END) END",
        "updated_at": sql.now,
    }
    statement = (
        f"UPDATE models SET {assignments(database, **values)} FROM {sql.rows('target', _MODEL)}"
        f" WHERE models.id = target.id"
    )
    connection.execute(text(statement), _parameters(sql, models))


def _kept_if_null(column: str) -> str:
    """SQL: the text of the export; where that is empty, an application's NULL stays NULL."""
    return f"CASE WHEN target.{column} = '' AND models.{column} IS NULL THEN NULL ELSE target.{column} END"


def _values() -> dict[str, str]:
    """Return the expression of each column but the id, of the relation ``target``."""
    columns = [name for name in _MODEL if name not in ("id", "status")]
    return {
        "active": "(target.status = 'active')",
        "auto_disabled": "(target.status = 'auto-disabled')",
        **{name: f"target.{name}" for name in columns},
    }


def _parameters(sql: Sql, models: Sequence[SavedModel]) -> dict[str, Any]:
    rows = []
    for model in models:
        row = model._asdict()
        row |= {name: shortest(row[name]) for name in TIMES}
        rows.append([row[name] for name in _MODEL])
    return sql.values(_MODEL, rows)


def write_holds(
    database: Database, connection: sa.Connection, holds: Collection[SavedHold]
) -> set[str]:
    """Write those holds that are not over, except where one of the same scope lasts as long.

    Return their scopes.
    """
    if not holds:
        return set()
    sql, table = database.sql, f"{database.own}modelctl_holds"
    names = ", ".join(_HOLD)
    new = ", ".join(f"{name} = excluded.{name}" for name in _HOLD if name != "scope")
    statement = (
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {sql.rows('saved', _HOLD)}"
        f" WHERE saved.until > {sql.now} ON CONFLICT (scope) DO UPDATE SET {new}"
        " WHERE modelctl_holds.until < excluded.until RETURNING scope"
    )
    rows = [
        (
            scope_of(hold.provider, hold.failure_type),
            *hold._replace(since=shortest(hold.since), until=shortest(hold.until)),
        )
        for hold in holds
    ]
    found = connection.execute(text(statement), sql.values(_HOLD, rows)).scalars()
    return {*found}
