"""Undo an operation: put each model back as it was before, which the events of the operation say.

A model that changed since is left as it is, so that no later decision is lost. An undo is an operation
with events too, so it can be undone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.database.bulk import chunks, spooled
from modelctl.database.locks import take_guard_lock
from modelctl.database.sql import text
from modelctl.errors import ModelNotFoundError, RefusedError
from modelctl.history import undo_edits
from modelctl.history.results import LeftChange
from modelctl.model import ModelStatus, storable
from modelctl.models.changes import CLEAR_DISABLED_COLUMNS, Change, Decision
from modelctl.models.events import differences
from modelctl.models.results import by_whom
from modelctl.models.status_changes import change_rows, check_floor
from modelctl.tables.application import assignments, write
from modelctl.tables.columns import ON, JsonObject
from modelctl.tables.odd_values import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.models.results import StatusChange

_TEXTS = ("disabled_by", "disabled_reason")
_VALUES = (*_TEXTS, "disabled_until", "consecutive_failures", "ejections")
# Events that change no status.
_REMARKS = ("would-disable", "probe-failed")
_WHY_NOT = {
    "added": "it was added (modelctl remove deletes it)",
    "removed": "it was removed, and its event does not hold all of it",
    "updated": "its name or provider was changed (modelctl import changes them)",
}
_UNDONE = ("disabled", "enabled", "recovered", "auto-disabled", "undone", "restored")
# A model before the operation. A text that was empty is '', and one that did not change is NULL.
_TARGET = {
    "id": "text",
    "status": "text",
    "disabled_by": "text",
    "disabled_reason": "text",
    "disabled_until": "text",
    "consecutive_failures": "integer",
    "ejections": "integer",
}


class _Written(NamedTuple):
    """An event of the operation, as it was read."""

    model_id: str
    event: str
    before: str | None
    after: str | None
    actor: str | None
    details: dict[str, Any] | None


@dataclass(slots=True)
class _Before:
    """A model as it was before the operation, and as the operation left it.

    *old*: the values that the operation changed, as they were. *holder*: the actor who held the model
    off after the operation; None: its events do not say. *why_not*: why it cannot be undone.
    """

    id: str
    status: str | None
    after: str | None
    old: dict[str, Any] = field(default_factory=dict)
    holder: str | None = None
    why_not: str | None = None


class Undo:
    """Undoes operations. Each call is one transaction."""

    def __init__(self, config: Config, database: Database) -> None:
        self._guarded = config.recovery.guarded
        self._database = database
        self._events = f"{database.own}modelctl_events"

    def last_operation(self, actor: str) -> str:
        """Return the last operation of this actor.

        Raises:
            ModelNotFoundError: there is none.
        """
        sql = (
            f"SELECT operation FROM {self._events} WHERE actor = :actor AND operation IS NOT NULL"
            " ORDER BY id DESC LIMIT 1"
        )
        with self._database.reading() as connection:
            found: str | None = connection.scalar(text(sql), {"actor": storable(actor)})
        if found is None:
            raise ModelNotFoundError(
                f"the history has no operation of '{actor}'",
                hint="name an operation: modelctl events -o json shows them",
            )
        return found

    def undo(
        self,
        operation: str,
        *,
        actor: str,
        reason: str | None,
        floor: int,
        dry_run: bool,
    ) -> tuple[StatusChange, ...]:
        """Put the models back, all that are still as the operation left them.

        *floor*: how many models must stay on.

        Raises:
            ModelNotFoundError: there is no such operation.
            RefusedError: it changed no model, or fewer models than the floor would stay on.
        """
        # Read first, to disk if they are many: the events of an operation do not change.
        found = spooled(
            self._database,
            text(
                f"SELECT model_id, event, before, after, actor, details FROM {self._events}"
                f" WHERE operation = :operation ORDER BY model_id{self._database.sql.collation}, id"
            ).columns(details=JsonObject),
            {"operation": operation},
        )
        if not found:
            raise ModelNotFoundError(
                f"the history has no operation {operation}",
                hint="modelctl events -o json shows the operations",
            )
        if any(row[1] in undo_edits.EVENTS for row in found):
            return undo_edits.undo_edits(
                self._database,
                operation,
                found,
                actor=actor,
                reason=reason,
                dry_run=dry_run,
            )
        first = next(_befores(iter(found)), None)
        if first is None:
            names = ", ".join(sorted({row[1] for row in found}))
            raise RefusedError(
                f"operation {operation} changed no model ({names}); nothing was changed",
                hint="modelctl resume ends a pause",
            )

        def work(connection: sa.Connection) -> list[StatusChange]:
            if self._guarded:
                take_guard_lock(connection, self._database)
            done: list[StatusChange] = []
            for chunk in chunks(_befores(iter(found))):
                done += self._undo_chunk(connection, operation, chunk, actor, reason)
                deadline.renew()
            switches_off = any(c.changed and c.before is ModelStatus.ACTIVE for c in done)
            if floor and switches_off:
                check_floor(connection, floor)
            return done

        return tuple(write(self._database, work, dry_run=dry_run))

    def _undo_chunk(
        self,
        connection: sa.Connection,
        operation: str,
        chunk: Sequence[_Before],
        actor: str,
        reason: str | None,
    ) -> list[StatusChange]:
        sql = self._database.sql
        ids = {"ids": sql.list_of_texts(model.id for model in chunk)}
        # Lock the rows before the events are read: a later change has not written its event yet.
        lock = f"SELECT id FROM models WHERE {sql.ids} ORDER BY id{sql.lock}"
        connection.execute(text(lock), ids).all()
        later = self._changed_later(connection, operation, ids)
        done: dict[str, StatusChange] = {}
        for status in sorted({model.status or "" for model in chunk}):  # at most three
            models = {model.id: model for model in chunk if (model.status or "") == status}
            change = self._change(operation, models, later, reason)
            wanted = {"ids": sql.list_of_texts(models)}
            for changed in change_rows(
                self._database, connection, change, sql.ids, sql.lock, wanted, actor
            ):
                note = getattr(changed, "note", None)
                left = LeftChange(changed.id, changed.before, changed.after, False, note or "")
                done[changed.id] = left if note else changed
        gone = "it is not in the fleet any more"
        return [
            done.get(m.id) or LeftChange(m.id, None, None, False, m.why_not or gone) for m in chunk
        ]

    def _changed_later(
        self, connection: sa.Connection, operation: str, ids: dict[str, Any]
    ) -> dict[str, str]:
        """Return what changed each of these models last, after the operation."""
        sql = self._database.sql
        last = (
            f"SELECT model_id, max(id) AS id FROM {self._events} WHERE operation = :operation"
            f" AND {sql.is_among('model_id')} GROUP BY model_id"
        )
        newest = (
            f"SELECT max(e.id) FROM ({last}) o JOIN {self._events} e ON e.model_id = o.model_id"
            f" AND e.id > o.id WHERE {sql.differs('e.before', 'e.after')}"
            " OR e.event IN ('disabled', 'undone', 'restored')"
            f" OR {sql.text_at('e.details', 'new', 'disabled_reason')} IS NOT NULL"
            " GROUP BY e.model_id"
        )
        select = (
            f"SELECT model_id, event, actor, {sql.text_at('details', 'application_name')}"
            f" FROM {self._events} WHERE id IN ({newest})"
        )
        rows = connection.execute(text(select), ids | {"operation": operation})
        return {row[0]: f"{row[1]}{by_whom(*row[2:])}" for row in rows}

    def _change(
        self,
        operation: str,
        befores: dict[str, _Before],
        later: dict[str, str],
        reason: str | None,
    ) -> Change:
        """Return the change that puts models back; of each row it decides whether it may."""
        sql = self._database.sql
        reads = (
            "nullif(CAST(disabled_by AS text), ''), nullif(CAST(disabled_reason AS text), ''),"
            f" {sql.time_as_text('disabled_until')}, consecutive_failures, ejections"
        )

        def decide(row: Sequence[Any]) -> Decision:
            model_id, status, *texts, failures, ejections = row
            was = befores[model_id]
            is_now = dict(zip(_VALUES, (*texts, whole(failures), whole(ejections)), strict=True))
            note = was.why_not
            if not note and _is_back(was, status, is_now):
                return Decision(ModelStatus(status), None, writes=False)
            if not note and (by := later.get(model_id)):
                note = f"changed since: {by}"
            if not note and (status != was.after or _has_other_holder(was, is_now["disabled_by"])):
                note = "changed since, by another program"
            if note:
                return Decision(ModelStatus(status), None, writes=False, note=note)
            empty = dict.fromkeys((*_TEXTS, "disabled_until")) if _is_on(was) else {}
            new = is_now | was.old | empty
            names = [name for name in _VALUES if name in new]
            changed = differences(names, [is_now[n] for n in names], [new[n] for n in names])
            details = {"operation": operation, **(changed or {})}
            return Decision(ModelStatus(was.status or ""), "undone", details, reason)

        undoable = [was for was in befores.values() if not was.why_not]
        parameters = sql.values(_TARGET, [_target(was) for was in undoable])
        return Change(reads, decide, self._update(), parameters)

    def _update(self) -> str:
        """SQL that writes the rows of :ids as the relation of `_TARGET` has them."""
        sql = self._database.sql
        is_on = "target.status = 'active'"

        def kept(column: str) -> str:
            """SQL: the text before; of a model that was on, none."""
            value = f"nullif(coalesce(target.{column}, CAST(models.{column} AS text)), '')"
            return f"CASE WHEN {is_on} THEN NULL ELSE {value} END"

        end = sql.time("CAST(nullif(target.disabled_until, '') AS double precision)")
        columns = dict(CLEAR_DISABLED_COLUMNS)
        columns |= {name: kept(name) for name in _TEXTS}
        columns["disabled_at"] = (
            f"CASE WHEN {is_on} THEN NULL WHEN models.{ON} THEN {sql.now}"
            " ELSE models.disabled_at END"
        )
        columns["disabled_until"] = (
            f"CASE WHEN {is_on} THEN NULL WHEN target.disabled_until IS NULL"
            f" THEN models.disabled_until ELSE {end} END"
        )
        values = assignments(
            self._database,
            active=f"({is_on})",
            auto_disabled="(target.status = 'auto-disabled')",
            recovered_at=f"CASE WHEN {is_on} AND models.active IS NOT TRUE THEN {sql.now}"
            " ELSE models.recovered_at END",
            consecutive_failures="coalesce(target.consecutive_failures, models.consecutive_failures)",
            ejections="coalesce(target.ejections, models.ejections)",
            **columns,
            updated_at=sql.now,
        )
        return (
            f"UPDATE models SET {values} FROM {sql.rows('target', _TARGET)}"
            f" WHERE models.id = target.id AND {sql.is_among('target.id')} RETURNING models.id"
        )


def _is_on(was: _Before) -> bool:
    return was.status == ModelStatus.ACTIVE


def _is_back(was: _Before, status: str, is_now: dict[str, Any]) -> bool:
    """Whether a model is as it was before the operation."""
    return status == was.status and (
        _is_on(was)
        or all(is_now[name] == was.old.get(name, is_now[name]) for name in (*_TEXTS, _VALUES[2]))
    )


def _has_other_holder(was: _Before, holder: str | None) -> bool:
    """Whether another actor holds the model off now; a column may have cut the name."""
    return was.holder is not None and not (holder and was.holder.startswith(holder))


def _befores(rows: Iterator[Sequence[Any]]) -> Iterator[_Before]:
    """Give what each model was before the operation, from its events in their order."""
    events = (_Written(*row) for row in rows)
    for model_id, of_one in groupby(events, key=lambda event: event.model_id):
        changes = [event for event in of_one if event.event not in _REMARKS]
        if model_id and changes:
            yield _before(model_id, changes)


def _before(model_id: str, changes: Iterable[_Written]) -> _Before:
    first, *_ = changes = [*changes]
    last = changes[-1]
    was = _Before(model_id, first.before, last.after)
    for event in changes:
        details = event.details or {}
        old, new = details.get("old"), details.get("new")
        old, new = (part if isinstance(part, dict) else {} for part in (old, new))
        of_reason = event.event == "updated" and "disabled_reason" in old
        if event.event not in _UNDONE and not of_reason:
            was.why_not = _WHY_NOT.get(event.event, f"'{event.event}' cannot be undone")
        elif event.event == "restored" and event.before is None:
            was.why_not = _WHY_NOT["added"]
        elif (
            event.event == "restored" and event.before == event.after and {*_VALUES}.isdisjoint(old)
        ):
            was.why_not = "restore changed its name, tags or totals, which undo does not put back"
        elif event.before not in [*ModelStatus] or event.after not in [*ModelStatus]:
            was.why_not = "its event cannot be read"
        for name in _VALUES:
            if name in old:
                was.old.setdefault(name, old[name])
        if event.after == ModelStatus.DISABLED and event.before == ModelStatus.ACTIVE:
            was.holder = event.actor if event.event == "disabled" else was.holder
        if isinstance(new.get("disabled_by"), str):
            was.holder = new["disabled_by"]
    came_back = any(event.event == "recovered" for event in changes)
    if came_back and "disabled_by" not in was.old and was.status == ModelStatus.AUTO_DISABLED:
        was.why_not = was.why_not or "its event does not say who switched it off, and why"
    if was.after == ModelStatus.ACTIVE:
        was.holder = None
    return _checked(was)


def _checked(was: _Before) -> _Before:
    """Note that a model cannot be undone if its event has values that modelctl does not write."""
    end = was.old.get("disabled_until")
    texts = [was.old.get(name) for name in _TEXTS]
    counts = [was.old.get(name, 0) for name in _VALUES[3:]]
    readable = all(value is None or isinstance(value, str) for value in (*texts, end))
    if not readable or not all(type(count) is int and 0 <= count < 2**31 for count in counts):
        was.why_not = was.why_not or "its event cannot be read"
    elif end is not None and _epoch(end) is None:
        was.why_not = was.why_not or f"its end, {end}, cannot be read"
    return was


def _epoch(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None


def _target(was: _Before) -> tuple[Any, ...]:
    """Return the values of `_TARGET`."""
    texts = [was.old[name] or "" if name in was.old else None for name in _TEXTS]
    end = was.old.get("disabled_until")
    until = None if "disabled_until" not in was.old else str(_epoch(end)) if end else ""
    return (was.id, was.status, *texts, until, *(was.old.get(name) for name in _VALUES[3:]))
