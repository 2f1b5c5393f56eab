"""Rename a model: give it another id. Its row, its tags and its history follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.database.sql import text
from modelctl.edits.results import RenamedModel
from modelctl.errors import RefusedError, clean
from modelctl.model import ModelStatus
from modelctl.models.events import NewEvent, log
from modelctl.tables.application import KeptError, write
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import check_found, check_storable, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

    from modelctl.database.database import Database

# A foreign key of another table forbids it: NO ACTION, and RESTRICT since PostgreSQL 18.
_REFERENCED = ("23503", "23001")
_NOT_UNIQUE = "23505"


class TakenError(RefusedError):
    """There is a model with the new id already."""


def rename(
    database: Database,
    old: str,
    new: str,
    *,
    actor: str,
    reason: str | None = None,
    dry_run: bool = False,
    details: Mapping[str, Any] | None = None,
) -> RenamedModel:
    """Rename the model *old*. If it was renamed to *new* before, nothing changes.

    *details*: more of them for the event.

    Raises:
        ModelNotFoundError: there is no model *old*.
        TakenError: there is a model *new* already.
        RefusedError: a foreign key of another program forbids it, or the database kept the row.
    """
    check_storable([old])

    def work(connection: sa.Connection) -> RenamedModel:
        return _rename(database, connection, old, new, actor, reason, details or {})

    try:
        return write(database, work, dry_run=dry_run)
    except RefusedError as exc:
        if exc.sqlstate == _NOT_UNIQUE:  # it was added after we had looked
            raise _taken(new) from None
        if exc.sqlstate not in _REFERENCED:
            raise
        words = exc.message.partition("(")[2].removesuffix(")")
        raise _referenced(old, words) from None


def _rename(
    database: Database,
    connection: sa.Connection,
    old: str,
    new: str,
    actor: str,
    reason: str | None,
    details: Mapping[str, Any],
) -> RenamedModel:
    sql = database.sql
    lock = f"SELECT id, {STATUS} FROM models WHERE {sql.ids} ORDER BY id{sql.lock_to_delete}"
    both = {"ids": sql.list_of_texts([old, new])}
    found = {row[0]: row[1] for row in connection.execute(text(lock), both)}
    if old not in found and new in found and _was_renamed(database, connection, old, new):
        status = ModelStatus(found[new])
        return RenamedModel(new, status, status, False, old)
    check_found([old], found)
    status = ModelStatus(found[old])
    if old == new:
        return RenamedModel(new, status, status, False, old)
    if new in found:
        raise _taken(new)
    _move_tags(database, connection, old, new)
    source = _leave_its_source(database, connection, old, new)
    if database.on_sqlite:
        _follow_references(connection, old, new)
    update = f"UPDATE models SET id = :new, updated_at = {sql.now} WHERE id = :old"
    connection.execute(text(update), {"old": old, "new": new})
    check = f"SELECT id, {STATUS} FROM models WHERE {sql.ids}"
    now = {row[0]: row[1] for row in connection.execute(text(check), both)}
    if now != {new: found[old]}:
        raise KeptError([old])
    _move_events(database, connection, old, new)
    ids = {**details, "old": {"id": old}, "new": {"id": new}}
    event = NewEvent(new, "renamed", status, status, reason=reason, details=ids)
    log(database, connection, [event], actor)
    return RenamedModel(new, status, status, True, old, source)


def _move_tags(database: Database, connection: sa.Connection, old: str, new: str) -> None:
    tags, ids = f"{database.own}modelctl_tags", {"old": old, "new": new}
    # A model that had the new id may have left a row, if it was deleted while our triggers were away.
    connection.execute(text(f"DELETE FROM {tags} WHERE model_id = :new"), ids)
    connection.execute(text(f"UPDATE {tags} SET model_id = :new WHERE model_id = :old"), ids)


def _leave_its_source(
    database: Database, connection: sa.Connection, old: str, new: str
) -> str | None:
    """Let no sync take a model with an id of a person's own for gone; return the source that offers *old*."""
    origins, ids = f"{database.own}modelctl_origins", {"old": old, "new": new}
    offers = f"SELECT source FROM {origins} WHERE model_id = :old AND gone_since IS NULL"
    source: str | None = connection.scalar(text(offers), ids)
    connection.execute(text(f"DELETE FROM {origins} WHERE model_id IN (:old, :new)"), ids)
    return source


def _move_events(database: Database, connection: sa.Connection, old: str, new: str) -> None:
    events = f"{database.own}modelctl_events"
    move = f"UPDATE {events} SET model_id = :new WHERE model_id = :old"
    connection.execute(text(move), {"old": old, "new": new})


def _was_renamed(database: Database, connection: sa.Connection, old: str, new: str) -> bool:
    """Whether the last renaming of *new* was from *old*."""
    last = (
        f"SELECT {database.sql.text_at('details', 'old', 'id')} FROM {database.own}modelctl_events"
        " WHERE model_id = :new AND event = 'renamed' ORDER BY id DESC LIMIT 1"
    )
    return bool(connection.scalar(text(last), {"new": new}) == old)


def _follow_references(connection: sa.Connection, old: str, new: str) -> None:
    """Do in SQLite what the foreign keys of other tables say: it does so only for who asks for it.

    Raises:
        RefusedError: rows refer to the old id, and their foreign key does not say ON UPDATE CASCADE.
    """
    keys = (
        'SELECT t.name, k."from", k.on_update FROM sqlite_master t, pragma_foreign_key_list(t.name) k'
        " WHERE t.type = 'table' AND lower(k.\"table\") = 'models'"
        " AND lower(coalesce(k.\"to\", 'id')) = 'id' ORDER BY t.name, k.id"
    )
    for table, column, on_update in connection.exec_driver_sql(keys).all():
        name, key = (part.replace('"', '""') for part in (table, column))
        if on_update == "CASCADE":
            update = f'UPDATE "{name}" SET "{key}" = ? WHERE "{key}" = ?'
            connection.exec_driver_sql(update, (new, old))
            continue
        refers = f'SELECT 1 FROM "{name}" WHERE "{key}" = ? LIMIT 1'
        if connection.exec_driver_sql(refers, (old,)).first():
            words = f'the foreign key on column "{column}" of table "{table}"'
            raise _referenced(old, words)


def _taken(new: str) -> TakenError:
    return TakenError(
        f"there is a model {quoted([new])} already; nothing was changed",
        hint="remove it first, or choose another id",
    )


def _referenced(old: str, words: str) -> RefusedError:
    return RefusedError(
        f"rows of another program refer to {quoted([old])} ({clean(words)}); nothing was changed",
        hint="rename it with the program that owns these rows, or let their foreign key have"
        " ON UPDATE CASCADE",
    )
