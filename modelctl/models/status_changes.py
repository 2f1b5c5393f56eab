"""Make a change of status: lock the rows, decide about each, write rows and events, check.

A change is of models that are named by their ids, or of a selection. Those of a selection are changed
in chunks, all in one transaction.

The check reads the rows again: a trigger or a rule of the application may have undone the change, and
then nothing is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.database import bulk
from modelctl.database.database import Query
from modelctl.database.locks import take_guard_lock
from modelctl.database.sql import text
from modelctl.errors import RefusedError
from modelctl.model import ModelStatus, numbered
from modelctl.models.changes import Change, Decision, disable, enable, remove
from modelctl.models.events import NewEvent, insert_one, log
from modelctl.models.results import KeptChange, RemovedModel, StatusChange
from modelctl.spool import Spool
from modelctl.tables.application import (
    KeptError,
    change_one,
    must_find,
    must_write,
    refusing,
    write,
)
from modelctl.tables.columns import ON, STATUS
from modelctl.tables.ids import check_found, check_storable
from modelctl.tables.selection import Selection, condition, parameters, selected_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database

_STATUSES = {status.value: status for status in ModelStatus}  # faster than ModelStatus(...)


def change_rows(
    database: Database,
    connection: sa.Connection,
    change: Change,
    which: str,
    lock: str,
    parameters: Mapping[str, Any],
    actor: str,
) -> list[StatusChange]:
    """Change the rows that meet a condition, in a transaction; return what became of each.

    Raises:
        KeptError: a trigger or a rule of the application left rows as they were.
    """
    values = {**parameters, **change.parameters}
    rows: Sequence[Any] = connection.execute(text(_select(change, which, lock)), values).all()
    decided = [(row, change.decide(row)) for row in rows]
    results = [_result(row, decision) for row, decision in decided]
    to_write = [row[0] for row, decision in decided if decision.writes]
    # A row with a note stays as it is, so it may have another end.
    decided_ids = [row[0] for row, decision in decided if decision.note is None]
    after = next((decision.after for _, decision in decided if decision.note is None), None)
    events = sorted(_events(decided))
    holding = [row[0] for row, decision in decided if decision.holds]
    if holding:
        connection.execute(text(change.hold), {"ids": database.sql.list_of_texts(holding)})
    del rows, decided  # of thousands of rows they take more memory than all the rest
    written: set[str] = set()
    if to_write:
        values["ids"] = database.sql.list_of_texts(to_write)
        written = {*connection.execute(text(change.write), values).scalars().all()}
        log(database, connection, events, actor)
    del events
    kept = [model_id for model_id in to_write if model_id not in written]
    kept += _not_as_decided(database, connection, change, decided_ids, after, values)
    if kept:
        raise KeptError(list(dict.fromkeys(kept)))
    return results


def _not_as_decided(
    database: Database,
    connection: sa.Connection,
    change: Change,
    ids: Sequence[str],
    after: ModelStatus | None,
    values: dict[str, Any],
) -> list[str]:
    """Return those of *ids* whose rows are not as they should be now; *after*: their status, if any."""
    if not ids:
        return []
    values["ids"] = database.sql.list_of_texts(ids)
    values["status"] = after and after.value
    which = f"FROM models WHERE {database.sql.ids}"
    if after is None:
        return list(connection.execute(text(f"SELECT id {which}"), values).scalars())
    which += f" AND {change.status} = :status"
    # Usually all rows are as they should be, and then none has to be fetched.
    if connection.scalar(text(f"SELECT count(*) {which}"), values) == len(ids):
        return []
    right = {*connection.execute(text(f"SELECT id {which}"), values).scalars()}
    return [model_id for model_id in ids if model_id not in right]


def _select(change: Change, which: str, lock: str) -> str:
    """SQL that locks and reads rows, in the order of their ids, so that two changes do not deadlock."""
    return f"SELECT id, {STATUS}, {change.reads} FROM models WHERE {which} ORDER BY id{lock}"


def _events(decided: Iterable[tuple[Sequence[Any], Decision]]) -> list[NewEvent]:
    return [
        NewEvent(row[0], d.event, row[1], d.after and d.after.value, d.reason, details=d.details)
        for row, d in decided
        if d.event
    ]


def _result(row: Sequence[Any], decision: Decision) -> StatusChange:
    before = _STATUSES[row[1]]
    if decision.note is not None:
        return KeptChange(row[0], before, before, False, decision.note)
    if decision.source is not None:
        return RemovedModel(row[0], before, None, True, decision.source)
    return StatusChange(row[0], before, decision.after, decision.event is not None)


def _change_in_two_messages(
    database: Database, model_id: str, change: Change, actor: str
) -> StatusChange:
    """Do what `change_rows` does, for one model of PostgreSQL, in a transaction of two messages."""
    sql = database.sql
    parameters = {**change.parameters, "ids": sql.list_of_texts([model_id])}

    def decide(answers: list[Sequence[Any]]) -> tuple[StatusChange, Query]:
        (rows,) = answers
        check_found([model_id], {row[0] for row in rows})
        row, decision = rows[0], change.decide(rows[0])
        values = dict(parameters)
        statements = []
        if decision.writes:
            statements.append(must_write(change.write))
        if decision.holds:
            statements.append(change.hold)
        if decision.note is None:
            statements.append(must_find(database, f"{change.status} = :status"))
            values["status"] = decision.after and decision.after.value
        for event in _events([(row, decision)]):
            insert = insert_one(database, event, actor)
            statements.append(insert.sql)
            values |= insert.parameters
        return _result(row, decision), Query("; ".join(statements or ["SELECT 1"]), values)

    read = _select(change, sql.ids, sql.lock)
    return change_one(database, model_id, read, parameters, decide)


class Selected(NamedTuple):
    """The models of a selection; if more than *limit_to* would change, none does."""

    selection: Selection
    limit_to: int | None = None


class StatusChanges:
    """Changes of status by a person. Each call changes all models or none, in one transaction."""

    def __init__(self, config: Config, database: Database) -> None:
        self._guarded = config.recovery.guarded
        self._database = database

    def enable(
        self,
        which: Sequence[str] | Selected,
        *,
        actor: str,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> Sequence[StatusChange]:
        """Switch models on, as healthy ones."""
        return self._change(
            which, lambda: enable(self._database, reason), actor, dry_run, takes_guard_lock=False
        )

    def disable(
        self,
        which: Sequence[str] | Selected,
        *,
        actor: str,
        reason: str | None = None,
        until: float | None = None,
        floor: int = 0,
        force: bool = False,
        dry_run: bool = False,
    ) -> Sequence[StatusChange]:
        """Switch models off by hand.

        *until*: when `recover` may bring them back (seconds since 1970). *floor*: how many models
        must stay on. *force*: also below the floor, and also those that are disabled without an end,
        or, of a selection, for longer.

        Raises:
            RefusedError: fewer models than the floor would stay on.
        """
        keeps_longer = isinstance(which, Selected)
        return self._change(
            which,
            lambda: disable(self._database, actor, reason, until, force, keeps_longer),
            actor,
            dry_run,
            takes_guard_lock=self._guarded,
            floor=0 if force else floor,
        )

    def remove(
        self,
        which: Sequence[str] | Selected,
        *,
        actor: str,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> Sequence[StatusChange]:
        """Delete models; their history stays. A model that only the history knows was removed."""
        lock = self._database.sql.lock_to_delete
        if isinstance(which, Selected):
            change = lambda: remove(self._database, reason)  # noqa: E731 - its SQL is made in each attempt
            return self._change_selected(which, change, lock, actor, dry_run, guarded=self._guarded)
        wanted = list(dict.fromkeys(which))
        check_storable(wanted)

        def work(connection: sa.Connection) -> list[StatusChange]:
            if self._guarded:
                take_guard_lock(connection, self._database)
            change = remove(self._database, reason)
            done = self._apply(connection, change, wanted, lock, actor)
            done += self._removed_before(connection, {*wanted} - {c.id for c in done})
            check_found(wanted, {c.id for c in done})
            return done

        return _in_order(wanted, write(self._database, work, dry_run=dry_run))

    def _change(
        self,
        which: Sequence[str] | Selected,
        change: Callable[[], Change],
        actor: str,
        dry_run: bool,
        *,
        takes_guard_lock: bool,
        floor: int = 0,
    ) -> Sequence[StatusChange]:
        """*change* is called in each attempt: its SQL depends on the columns that are known then."""
        database = self._database
        if isinstance(which, Selected):
            lock = database.sql.lock
            return self._change_selected(
                which, change, lock, actor, dry_run, guarded=takes_guard_lock, floor=floor
            )
        wanted = list(dict.fromkeys(which))
        check_storable(wanted)
        if len(wanted) == 1 and not (dry_run or takes_guard_lock or floor or database.on_sqlite):
            one = wanted[0]
            done = refusing(
                database, lambda: _change_in_two_messages(database, one, change(), actor)
            )
            return (done,)

        def work(connection: sa.Connection) -> list[StatusChange]:
            if takes_guard_lock:
                take_guard_lock(connection, database)
            done = self._apply(connection, change(), wanted, database.sql.lock, actor)
            check_found(wanted, {c.id for c in done})
            if floor and any(c.before is ModelStatus.ACTIVE for c in done):
                check_floor(connection, floor)
            return done

        return _in_order(wanted, write(database, work, dry_run=dry_run))

    def _change_selected(
        self,
        selected: Selected,
        change: Callable[[], Change],
        lock: str,
        actor: str,
        dry_run: bool,
        *,
        guarded: bool,
        floor: int = 0,
    ) -> Sequence[StatusChange]:
        """Change the models of a selection, in chunks; the result is on disk if it is long.

        The ids are read before the transaction, so that it holds no lock meanwhile. A model that no
        longer belongs to the selection when it is locked stays as it is.
        """
        database, (selection, limit_to) = self._database, selected
        ids = selected_ids(database, selection)
        values = parameters(database.sql, selection)
        still = f"{database.sql.ids} AND {condition(database, selection)}"

        def work(connection: sa.Connection) -> Spool[StatusChange]:
            if guarded:
                take_guard_lock(connection, database)
            done: Spool[StatusChange] = Spool()
            touched, was_on, this = 0, False, change()
            for chunk in bulk.chunks(ids):
                values["ids"] = database.sql.list_of_texts(chunk)
                found = {
                    one.id: one
                    for one in change_rows(database, connection, this, still, lock, values, actor)
                }
                for one in (found[model_id] for model_id in chunk if model_id in found):
                    done.append(one)
                    touched += one.changed
                    was_on = was_on or one.before is ModelStatus.ACTIVE
                if limit_to is not None and touched > limit_to:
                    raise RefusedError(
                        f"more than {numbered(limit_to)} would change; nothing was changed",
                        hint="narrow the selection, or raise the limit",
                    )
                deadline.renew()
            if floor and was_on:
                check_floor(connection, floor)
            return done

        return write(database, work, dry_run=dry_run)

    def _apply(
        self, connection: sa.Connection, change: Change, ids: list[str], lock: str, actor: str
    ) -> list[StatusChange]:
        sql = self._database.sql
        wanted = {"ids": sql.list_of_texts(ids)}
        return change_rows(self._database, connection, change, sql.ids, lock, wanted, actor)

    def _removed_before(
        self, connection: sa.Connection, ids: Collection[str]
    ) -> list[StatusChange]:
        """Return those of *ids* that the history knows."""
        if not ids:
            return []
        sql = (
            f"SELECT id FROM {self._database.sql.rows('asked', {'id': 'text'})} WHERE EXISTS"
            f" (SELECT 1 FROM {self._database.own}modelctl_events e WHERE e.model_id = asked.id)"
            " AND id <> ''"  # the id of events that are not of a model
        )
        values = self._database.sql.values(("id",), [(model_id,) for model_id in ids])
        found = connection.execute(text(sql), values).scalars()
        return [StatusChange(model_id, None, None, False) for model_id in found]


def _in_order(wanted: Sequence[str], done: Iterable[StatusChange]) -> tuple[StatusChange, ...]:
    found = {change.id: change for change in done}
    return tuple(found[model_id] for model_id in wanted)


def check_floor(
    connection: sa.Connection, floor: int, *, hint: str = "use --force to override"
) -> None:
    """Refuse the transaction if fewer models than the floor would stay on."""
    active = connection.scalar(text(f"SELECT count(*) FROM models WHERE {ON}")) or 0
    if active < floor:
        raise RefusedError(
            f"{numbered(active)} would stay on, and recovery.min_active is {floor};"
            " nothing was changed",
            hint=hint,
        )
