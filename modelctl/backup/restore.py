"""Restore an export, in one transaction: add models, and bring those that are there to its state.

Each chunk of models takes a constant number of statements. Nothing is written before the whole export
was read and checked (`lines.read`).
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.backup.lines import TIMES, SavedModel, shortest
from modelctl.backup.merging import merge
from modelctl.backup.results import RestoredModel
from modelctl.backup.stored import clock, saved_models, select_models
from modelctl.backup.writing import insert, update, write_holds
from modelctl.database.bulk import chunks
from modelctl.database.locks import take_guard_lock
from modelctl.database.sql import text
from modelctl.errors import UsageError
from modelctl.model import ModelStatus, name_the_text
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.status_changes import check_floor
from modelctl.spool import Spool
from modelctl.tables.application import KeptError, inserting, write
from modelctl.tables.odd_values import OddRows
from modelctl.tables.tags import set_tags, tags_of
from modelctl.times import exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import sqlalchemy as sa

    from modelctl.backup.lines import Line, Saved
    from modelctl.config.config import Config
    from modelctl.config.sections import RecoveryConfig
    from modelctl.database.database import Database

_TRIES = 3
_COMPARED = tuple(name for name in SavedModel._fields if name not in ("id", "updated_at"))
# A model without a past, to which a new one is compared.
_BLANK = SavedModel._make(["", "", "", "active", *[0] * 4, *[None] * 12, ()])


class Done(NamedTuple):
    """What a restore did; see `results.Restored`."""

    changes: Spool[RestoredModel]
    counts: Counter[str]
    untouched: int
    holds: int


def restore(
    config: Config,
    database: Database,
    saved: Saved,
    *,
    enable: bool,
    floor: int,
    actor: str,
    dry_run: bool,
    progress: Callable[[int], None],
) -> Done:
    """Restore an export that was read, in one transaction.

    *enable*: also what brings models back sooner. *floor*: how many models must stay on.

    Raises:
        RefusedError: fewer models than the floor would stay on, or the database kept rows as they
            were; nothing is changed.
    """

    def work(connection: sa.Connection) -> Done:
        if config.recovery.guarded:
            take_guard_lock(connection, database)
        one_run = _Run(config.recovery, database, connection, saved.exported_at, enable, actor)
        changes: Spool[RestoredModel] = Spool()
        counts: Counter[str] = Counter()
        switches_off = False
        for lines in chunks(saved.models.by_key()):
            for one in one_run.restore({line.key: line.model() for line in lines}):
                switches_off = switches_off or (one.before, one.changed) == (
                    ModelStatus.ACTIVE,
                    True,
                )
                counts[one.kind] += 1
                if one.kind != "unchanged":
                    changes.append(one)
            deadline.renew()
            progress(sum(counts.values()))
        if floor and switches_off:
            check_floor(connection, floor)
        total = connection.scalar(text("SELECT count(*) FROM models")) or 0
        holds = sum(map(one_run.restore_holds, chunks(saved.holds)))
        one_run.odd.finish()
        return Done(changes, counts, total - len(saved.models), holds)

    try:
        return inserting(database, lambda: write(database, work, dry_run=dry_run))
    except UsageError as exc:
        raise name_the_text(exc, _texts(saved)) from None


class _Run:
    """One transaction of a restore."""

    def __init__(
        self,
        rule: RecoveryConfig,
        database: Database,
        connection: sa.Connection,
        exported_at: str,
        enable: bool,
        actor: str,
    ) -> None:
        self._rule = rule
        self._database = database
        self._connection = connection
        self._exported = {"export": shortest(exported_at)}
        self._enable = enable
        self._actor = actor
        self._now = exact(clock(database, connection))
        self.odd = OddRows(database.warn)

    def restore(self, saved: Mapping[str, SavedModel]) -> list[RestoredModel]:
        """Restore a chunk of models, in their order."""
        saved = {model_id: self._fitted(model) for model_id, model in saved.items()}
        targets: dict[str, SavedModel] = {}
        done: dict[str, RestoredModel] = {}
        waiting = saved
        # Another program may add a model after we have looked for it.
        for _ in range(_TRIES):
            found = self._read(waiting, self._database.sql.lock)
            for model_id, current in found.items():
                target, note = merge(
                    waiting[model_id], current, self._rule, self._now, enable=self._enable
                )
                done[model_id] = _restored(current, target, note)
                if done[model_id].details:
                    targets[model_id] = target
            update(self._database, self._connection, [targets[i] for i in found if i in targets])
            new = [model for model_id, model in waiting.items() if model_id not in found]
            for model_id in insert(self._database, self._connection, new):
                targets[model_id] = waiting[model_id]
                done[model_id] = _restored(None, waiting[model_id], None)
            waiting = {model_id: m for model_id, m in waiting.items() if model_id not in done}
            if not waiting:
                break
        set_tags(
            self._database,
            self._connection,
            {i: m.tags for i, m in targets.items() if _has_new_tags(done[i])},
        )
        self._check(targets, [*waiting])
        log(self._database, self._connection, list(self._events(done, targets)), self._actor)
        return [done[model_id] for model_id in saved]

    def _read(self, ids: Iterable[str], lock: str = "") -> dict[str, SavedModel]:
        """Return these models as they are in the database, in the order of their ids."""
        sql = self._database.sql
        values = {"ids": sql.list_of_texts(ids)}
        query = select_models(f"WHERE {sql.ids} ORDER BY id{lock}")
        rows = self._connection.execute(query, values).all()
        tags = tags_of(self._database, self._connection, ids)
        return {
            model.id: model._replace(tags=tuple(sorted({*tags.get(model.id, ())})))
            for model in saved_models(rows, self.odd)
        }

    def _fitted(self, model: SavedModel) -> SavedModel:
        """Cut the texts of a model to what the columns of an application take."""
        columns = self._database.columns
        fitting = {
            name: columns[name].fit(value)
            for name, value in model._asdict().items()
            if name in columns and columns[name].length is not None and isinstance(value, str)
        }
        fitting.pop("id", None)
        return model._replace(**fitting) if fitting else model

    def _check(self, targets: Mapping[str, SavedModel], kept: list[str]) -> None:
        """Check that models are as they were written.

        Our own triggers forget what is left over of an earlier status when a model goes on or off, so
        a model that is not as it should be is written once more.

        Raises:
            KeptError: the status or the end of a model is another one.
        """
        other = self._not_as(targets)
        if other:
            update(self._database, self._connection, [targets[model_id] for model_id in other])
            other = self._not_as({model_id: targets[model_id] for model_id in other})
        kept += [model_id for model_id, now in other.items() if _is_kept(targets[model_id], now)]
        if kept:
            raise KeptError(sorted(kept))

    def _not_as(self, targets: Mapping[str, SavedModel]) -> dict[str, SavedModel | None]:
        """Return those models that are not as their targets, as they are."""
        if not targets:
            return {}
        now = self._read(targets)
        other: dict[str, SavedModel | None] = {}
        for model_id, target in targets.items():
            found = now.get(model_id)
            if found is None or _differences(found, target):
                other[model_id] = found
        return other

    def _events(
        self, done: Mapping[str, RestoredModel], targets: Mapping[str, SavedModel]
    ) -> Iterator[NewEvent]:
        for model_id in targets:
            one = done[model_id]
            details = {**self._exported, **(one.details or {})}
            before, after = one.before and one.before.value, one.after and one.after.value
            yield NewEvent(model_id, "restored", before, after, details=details)

    def restore_holds(self, lines: Iterable[Line]) -> int:
        """Restore the pauses and incidents that are not over; return how many."""
        holds = {line.key: line.hold() for line in lines}
        restored = write_holds(self._database, self._connection, holds.values())
        events = [
            NewEvent(
                *("", "restored", None, None, hold.reason, hold.failure_type, hold.provider),
                details={**self._exported, "until": shortest(hold.until)},
            )
            for scope, hold in holds.items()
            if scope in restored
        ]
        log(self._database, self._connection, events, self._actor)
        return len(restored)


def _restored(before: SavedModel | None, after: SavedModel, note: str | None) -> RestoredModel:
    details = _differences(before or _BLANK, after)
    return RestoredModel(
        after.id,
        ModelStatus(before.status) if before else None,
        ModelStatus(after.status),
        before is None or before.status != after.status,
        details,
        note,
    )


def _differences(one: SavedModel, other: SavedModel) -> dict[str, Any] | None:
    """Return the old and new values that differ; a time that is not known does not differ."""
    old, new = one._asdict(), other._asdict()
    names = [name for name in _COMPARED if old[name] != new[name]]
    unknown = (
        {"created_at"} if other.status == ModelStatus.ACTIVE else {"created_at", "disabled_at"}
    )
    names = [name for name in names if not (new[name] is None and name in unknown)]
    return differences(names, [_shown(old, n) for n in names], [_shown(new, n) for n in names])


def _shown(values: dict[str, Any], name: str) -> Any:
    return shortest(values[name]) if name in TIMES else values[name]


def _is_kept(target: SavedModel, now: SavedModel | None) -> bool:
    """Whether a row has another status or end than was written; a column may round the end."""
    if now is None or now.status != target.status:
        return True
    ends = now.disabled_until, target.disabled_until
    if None in ends:
        return ends != (None, None)
    one, other = (datetime.fromisoformat(end or "").timestamp() for end in ends)
    return abs(one - other) > 1


def _has_new_tags(one: RestoredModel) -> bool:
    return one.details is not None and "tags" in one.details["new"]


def _texts(saved: Saved) -> Iterator[tuple[str, object]]:
    """Give each text of the export with a description of it, for `name_the_text`."""
    for line in saved.models:
        for name, value in line.model()._asdict().items():
            for each in value if isinstance(value, tuple) else (value,):
                yield f"line {line.number}: '{name}'", each
    for line in saved.holds:
        for name, value in line.hold()._asdict().items():
            yield f"line {line.number}: '{name}'", value
