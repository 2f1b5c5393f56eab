"""Undo what `edit` and `rename` did; `undo` does the same for changes of status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.database.bulk import chunks
from modelctl.database.sql import text
from modelctl.edits.edit import Fields, edit_rows
from modelctl.edits.rename import TakenError, rename
from modelctl.errors import ModelNotFoundError
from modelctl.history.results import LeftChange
from modelctl.model import ModelStatus
from modelctl.tables.application import write
from modelctl.tables.columns import STATUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.models.results import StatusChange

EVENTS = ("edited", "renamed")
_GONE = "it is not in the fleet any more"
_UNREADABLE = "its event cannot be read"


class _Edited(NamedTuple):
    """The values that an operation changed of a model; None: its event cannot be read."""

    id: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None


def undo_edits(
    database: Database,
    operation: str,
    events: Sequence[Sequence[Any]],
    *,
    actor: str,
    reason: str | None,
    dry_run: bool,
) -> tuple[StatusChange, ...]:
    """Give models back what an operation changed of them, all that still have it.

    *events*: the id of the model first, then the name, at last the details of each.
    """
    renamed = next((event for event in events if event[1] == "renamed"), None)
    if renamed:  # an operation renames one model
        model_id, *_, details = renamed
        return (_undo_rename(database, operation, model_id, details, actor, reason, dry_run),)

    def work(connection: sa.Connection) -> list[StatusChange]:
        done: list[StatusChange] = []
        for chunk in chunks(_edited(events)):
            done += _undo_chunk(database, connection, operation, chunk, actor, reason)
            deadline.renew()
        return done

    return tuple(write(database, work, dry_run=dry_run))


def _undo_rename(
    database: Database,
    operation: str,
    model_id: str,
    details: Any,
    actor: str,
    reason: str | None,
    dry_run: bool,
) -> StatusChange:
    old, new = ((details or {}).get(when) or {} for when in ("old", "new"))
    old, new = (part.get("id") if isinstance(part, dict) else None for part in (old, new))
    if not isinstance(old, str) or not isinstance(new, str):
        return _left(database, model_id, _UNREADABLE)
    if model_id != new:
        return _left(database, model_id, "changed since: renamed")
    more = {"operation": operation}
    try:
        return rename(database, new, old, actor=actor, reason=reason, dry_run=dry_run, details=more)
    except TakenError:
        return _left(database, new, f"another model has its old id, {old}")
    except ModelNotFoundError:
        return _left(database, new, _GONE)


def _left(database: Database, model_id: str, why: str) -> LeftChange:
    sql = f"SELECT {STATUS} FROM models WHERE id = :id"
    with database.reading() as connection:
        found = connection.scalar(text(sql), {"id": model_id})
    status = None if found is None else ModelStatus(found)
    return LeftChange(model_id, status, status, False, why if status else _GONE)


def _edited(events: Iterable[Sequence[Any]]) -> Iterator[_Edited]:
    for model_id, name, *_, details in events:
        if name == "edited":
            old, new = (_fields((details or {}).get(when)) for when in ("old", "new"))
            yield _Edited(model_id, old, new)


def _fields(stored: Any) -> dict[str, Any] | None:
    """Return the values of an event as `Fields` has them; None if they are something else."""
    if not isinstance(stored, dict) or not {*stored} <= {*Fields._fields}:
        return None
    values = dict(stored)
    tags = values.pop("tags", [])
    if not isinstance(tags, list) or not all(isinstance(t, str) for t in [*tags, *values.values()]):
        return None
    return values | ({"tags": tuple(tags)} if "tags" in stored else {})


def _undo_chunk(
    database: Database,
    connection: sa.Connection,
    operation: str,
    chunk: Sequence[_Edited],
    actor: str,
    reason: str | None,
) -> list[StatusChange]:
    changed = {edited.id: edited for edited in chunk}
    notes: dict[str, str] = {}

    def decide(model_id: str, now: Fields) -> Fields:
        _, old, new = changed[model_id]
        if old is None or new is None:
            notes[model_id] = _UNREADABLE
            return now
        is_now = now._asdict()
        differing = [name for name, value in new.items() if is_now[name] != value]
        if differing and any(is_now[name] != value for name, value in old.items()):
            notes[model_id] = f"changed since: {', '.join(differing)}"
            return now
        return now._replace(**old)

    ids = {"ids": database.sql.list_of_texts(changed)}
    done = edit_rows(
        *(database, connection, database.sql.ids, ids, decide, actor, reason),
        details={"operation": operation},
    )
    results: list[StatusChange] = []
    for model_id in changed:
        edited, note = done.get(model_id), notes.get(model_id)
        if edited is None:
            results.append(LeftChange(model_id, None, None, False, _GONE))
        elif note:
            results.append(LeftChange(model_id, edited.before, edited.after, False, note))
        else:
            results.append(edited)
    return results
