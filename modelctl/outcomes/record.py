"""Recording outcomes: lock the rows, ask the health rule, write what differs and its events.

The rule is `health.record`. A single outcome is two messages to PostgreSQL; a batch is a constant
number of statements for each chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline, health
from modelctl.database.bulk import chunks
from modelctl.database.database import Query
from modelctl.database.locks import take_guard_lock
from modelctl.database.sql import text
from modelctl.models.events import NewEvent, differences, insert_one, log
from modelctl.models.results import OutcomeChange, StatusChange
from modelctl.outcomes.guards import StoredGuards
from modelctl.tables.application import (
    KeptError,
    assignments,
    change_one,
    must_find,
    must_write,
    refusing,
    write,
)
from modelctl.tables.columns import MODELS, STATUS
from modelctl.tables.ids import check_found, check_storable, is_storable, quoted
from modelctl.tables.odd_values import OddRows, as_declared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.health import Outcome
    from modelctl.model import ModelStatus

# The columns of a row that the rule reads. `Outcomes._select` adds two times to them.
_READ = (
    *(MODELS.c.id, MODELS.c.active, MODELS.c.auto_disabled, MODELS.c.consecutive_failures),
    *(MODELS.c.ejections, MODELS.c.provider, MODELS.c.would_disable),
)
# Other programs write the counters too. They stay below the limit of the column in a whole batch.
_MOST = 2**31 - 100_000
# What the rule decided for a model, as `_Decided.row` returns it. *switch*: the last event that
# changed the status, if any, and *why*; *back*: whether the model came back, if only for a while.
_ROW = {
    "id": "text",
    "switch": "text",
    "why": "text",
    "back": "boolean",
    "consecutive_failures": "integer",
    "ejections": "integer",
    "successes": "bigint",
    "failures": "bigint",
    "failure_type": "text",
    "failure_reason": "text",
    "spared": "text",
}
_SPARED = {"id": "text", "spared": "text"}
_COUNTS = ("consecutive_failures", "ejections")
# On PostgreSQL, in seconds: the column of an application may round a time to seconds.
_TRANSACTION_BEGAN = "floor(CAST(extract(epoch FROM now()) AS double precision))"


class Recorded(NamedTuple):
    """The result of a batch; *skipped*: how many outcomes the *unknown* ids had."""

    recorded: int
    changes: tuple[StatusChange, ...]
    skipped: int
    unknown: tuple[str, ...]


class _GuardLockNeededError(Exception):
    """The outcome depends on other models, so the guard lock must be taken before the row lock."""


@dataclass(slots=True)
class _Decided:
    """What the rule decided for some outcomes: the health of each model before and after, the events."""

    before: dict[str, health.Health]
    after: dict[str, health.Health]
    events: list[NewEvent] = field(default_factory=list)
    switches: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    back: set[str] = field(default_factory=set)

    def row(self, model_id: str) -> tuple[Any, ...]:
        """Return the values of `_ROW`."""
        now = self.after[model_id]
        return (
            model_id,
            *self.switches.get(model_id, (None, None)),
            model_id in self.back,
            now.consecutive_failures,
            now.ejections,
            now.successes,
            now.failures,
            now.failure_type and now.failure_type.value,
            now.failure_reason,
            now.spared,
        )


def _decide(
    before: dict[str, health.Health],
    outcomes: Iterable[Outcome],
    config: Config,
    guards: health.Guards,
) -> _Decided:
    """Ask the rule for each outcome in turn."""
    decided = _Decided(before, dict(before))
    for outcome in outcomes:
        was = decided.after[outcome.id]
        now, event = health.record(was, outcome, config, guards)
        decided.after[outcome.id] = now
        if not event:
            continue
        reason, kind = (outcome.reason, outcome.type.value) if outcome.type else (None, None)
        statuses = was.status.value, now.status.value
        details = _details(was, now)
        decided.events.append(NewEvent(outcome.id, event, *statuses, reason, kind, details=details))
        if was.status is not now.status:
            decided.switches[outcome.id] = (event, kind if reason is None else reason)
            if now.active:
                decided.back.add(outcome.id)
    return decided


def _details(was: health.Health, now: health.Health) -> dict[str, Any] | None:
    """Return the details of an event."""
    if was.status is now.status:
        return {"guard": now.spared}
    counts = [(h.consecutive_failures, h.ejections) for h in (was, now)]
    return differences(_COUNTS, *counts)


class Outcomes:
    """Records outcomes, one or many. Each call is one transaction."""

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._sql = database.sql
        self._guards = StoredGuards(config, database)

    # ── One outcome ──

    def record(self, outcome: Outcome, *, actor: str) -> OutcomeChange:
        """Record one outcome."""
        check_storable([outcome.id])
        if self._database.on_sqlite:
            return self._change(outcome, self._record_as_chunk(outcome, actor))
        try:
            decided = refusing(self._database, lambda: self._record_in_two_messages(outcome, actor))
        except _GuardLockNeededError:
            decided = self._record_as_chunk(outcome, actor)
        return self._change(outcome, decided)

    def _change(self, outcome: Outcome, decided: _Decided) -> OutcomeChange:
        was, now = decided.before[outcome.id], decided.after[outcome.id]
        reached = health.reaches_threshold(was, outcome, self._config)
        return OutcomeChange(
            outcome.id,
            was.status,
            now.status,
            was.status is not now.status,
            now.consecutive_failures,
            counted=outcome.type in self._config.health.counted,
            threshold=self._config.health.threshold,
            failure_type=outcome.type,
            would_disable=now.spared if reached else None,
        )

    def _record_in_two_messages(self, outcome: Outcome, actor: str) -> _Decided:
        """Lock and read in one message to PostgreSQL, decide, write and COMMIT in the second one.

        Raises:
            _GuardLockNeededError: nothing is written.
        """
        read = f"{self._select()}; {self._guards.select_holds()}"
        parameters = {"ids": self._sql.list_of_texts([outcome.id]), **self._guards.window}

        def decide(answers: list[Sequence[Any]]) -> tuple[_Decided, Query]:
            rows, holds = answers
            before = self._healths(rows)
            check_found([outcome.id], before)
            guards = self._guards.with_holds(holds)
            if health.depends_on_others(before[outcome.id], outcome, self._config, guards):
                raise _GuardLockNeededError
            decided = _decide(before, [outcome], self._config, guards)
            return decided, self._write_one(outcome, decided, actor)

        return change_one(self._database, outcome.id, read, parameters, decide)

    def _write_one(self, outcome: Outcome, decided: _Decided, actor: str) -> Query:
        """Return the statements that write one row and its event, and fail if the row was kept."""
        columns = ", ".join(f"CAST(:{name} AS {kind}) AS {name}" for name, kind in _ROW.items())
        time = MODELS.c.last_failure_at if outcome.type else MODELS.c.last_success_at
        stands = f"{STATUS} = :status AND {self._is_new(time.name, _TRANSACTION_BEGAN)}"
        statements = [
            must_write(self._update(f"(SELECT {columns}) AS decided")),
            must_find(self._database, stands),
        ]
        parameters: dict[str, Any] = dict(zip(_ROW, decided.row(outcome.id), strict=True))
        parameters["ids"] = self._sql.list_of_texts([outcome.id])
        parameters["status"] = decided.after[outcome.id].status.value
        for event in decided.events:  # at most one
            insert = insert_one(self._database, event, actor)
            statements.append(insert.sql)
            parameters |= insert.parameters
        return Query("; ".join(statements), parameters)

    def _record_as_chunk(self, outcome: Outcome, actor: str) -> _Decided:
        """Record one outcome as a batch would, with the guard lock."""

        def work(connection: sa.Connection) -> _Decided:
            take_guard_lock(connection, self._database)
            return self._record_chunk(connection, [outcome], actor)

        return write(self._database, work)

    # ── Many outcomes ──

    def record_batch(
        self,
        outcomes: Callable[[], Iterator[Outcome]],
        *,
        actor: str,
        skip_unknown: bool,
        progress: Callable[[int], None],
    ) -> Recorded:
        """Record outcomes in their order, all in one transaction, a chunk at a time.

        *outcomes* starts again from the first outcome on every call: they are read once before they
        are recorded, and a deadlock runs the batch again.
        *skip_unknown*: leave out the outcomes of ids that name no model.

        Raises:
            ModelNotFoundError: an id names no model, and *skip_unknown* is false.
        """

        def work(connection: sa.Connection) -> Recorded:
            # Only a counted failure can depend on other models.
            if self._config.recovery.guarded and self._counts_any(outcomes()):
                take_guard_lock(connection, self._database)
            recorded = skipped = 0
            unknown: set[str] = set()
            first: dict[str, ModelStatus] = {}
            last: dict[str, ModelStatus] = {}
            for chunk in chunks(outcomes()):
                if skip_unknown:
                    size, chunk = len(chunk), self._known(connection, chunk, unknown)
                    skipped += size - len(chunk)
                    if not chunk:
                        continue
                decided = self._record_chunk(connection, chunk, actor)
                for model_id, now in decided.after.items():
                    first.setdefault(model_id, decided.before[model_id].status)
                    last[model_id] = now.status
                recorded += len(chunk)
                deadline.renew()
                progress(recorded)
            changes = tuple(
                StatusChange(model_id, first[model_id], last[model_id], True)
                for model_id in sorted(first)
                if first[model_id] is not last[model_id]
            )
            return Recorded(recorded, changes, skipped, tuple(sorted(unknown)))

        return write(self._database, work)

    def _counts_any(self, outcomes: Iterable[Outcome]) -> bool:
        counted = self._config.health.counted
        return any(outcome.type in counted for outcome in outcomes)

    def _known(
        self, connection: sa.Connection, chunk: Sequence[Outcome], unknown: set[str]
    ) -> list[Outcome]:
        """Return the outcomes of models that exist, and lock these; add other ids to *unknown*."""
        storable = self._database.storable
        ids = {o.id for o in chunk if is_storable(o.id) and storable(o.id) == o.id}
        # Locked, so that nobody removes one of them before its outcomes are recorded.
        sql = f"SELECT id FROM models WHERE {self._sql.ids} ORDER BY id{self._sql.lock}"
        found = connection.execute(text(sql), {"ids": self._sql.list_of_texts(ids)})
        known = {*found.scalars()}
        unknown |= {outcome.id for outcome in chunk} - known
        return [outcome for outcome in chunk if outcome.id in known]

    def _record_chunk(
        self, connection: sa.Connection, chunk: Sequence[Outcome], actor: str
    ) -> _Decided:
        """Lock the rows of a chunk, decide, write each row once and all events."""
        wanted = list({outcome.id for outcome in chunk})
        check_storable(wanted)
        ids = {"ids": self._sql.list_of_texts(wanted)}
        rows = connection.execute(text(self._select()), ids).all()
        before = self._healths(rows)
        check_found(wanted, before)
        others_matter = self._config.recovery.guarded and self._counts_any(chunk)
        providers = {was.provider for was in before.values()} if others_matter else ()
        guards = self._guards.read(connection, providers)
        decided = _decide(before, chunk, self._config, guards)
        written = self._write_rows(connection, decided)
        log(self._database, connection, decided.events, actor)
        self._guards.write_incidents(connection, guards)
        self._check(connection, decided, written, since=rows[0].now)
        return decided

    def _write_rows(self, connection: sa.Connection, decided: _Decided) -> set[str]:
        """Write the rows; return the ids of those that the database has written."""
        update = self._update(self._sql.rows("decided", _ROW))
        values = self._sql.values(_ROW, [decided.row(model_id) for model_id in decided.after])
        written = {*connection.execute(text(update), values).scalars()}
        after = decided.after
        # If the row was switched on, the trigger has cleared `would_disable`. Write it again for a model
        # that came back in this chunk and was spared afterwards.
        if spared := [(i, after[i].spared) for i in decided.back if after[i].spared]:
            sql = (
                "UPDATE models SET would_disable = decided.spared"
                f" FROM {self._sql.rows('decided', _SPARED)} WHERE models.id = decided.id"
            )
            connection.execute(text(sql), self._sql.values(_SPARED, spared))
        return written

    def _check(
        self, connection: sa.Connection, decided: _Decided, written: set[str], *, since: float
    ) -> None:
        """Raise `KeptError` for rows that a trigger or rule of the application did not change.

        *since*: the database's clock before the rows were written (seconds since 1970).
        """
        sql = (
            f"SELECT id, {STATUS}, {self._is_new('last_success_at', ':since')},"
            f" {self._is_new('last_failure_at', ':since')} FROM models WHERE {self._sql.ids}"
        )
        # The column of an application may round a time to seconds.
        parameters = {"ids": self._sql.list_of_texts(decided.after), "since": math.floor(since)}
        found = connection.execute(text(sql), parameters)
        rows = {row[0]: row[1:] for row in found}

        def is_kept(model_id: str, now: health.Health) -> bool:
            status, succeeded, failed = rows.get(model_id, (None, False, False))
            stored = (succeeded or not now.successes) and (failed or not now.failures)
            return model_id not in written or status != now.status or not stored

        kept = [model_id for model_id, now in decided.after.items() if is_kept(model_id, now)]
        if kept:
            raise KeptError(kept)

    # ── The rows ──

    def _select(self) -> str:
        """SQL that locks the rows of :ids and reads what the rule needs, for `_healths`."""
        columns = ", ".join(column.name for column in _READ)
        back, now = (self._sql.epoch(time) for time in ("recovered_at", self._sql.now))
        return (
            f"SELECT {columns}, {back} AS back, {now} AS now FROM models"
            f" WHERE {self._sql.ids} ORDER BY id{self._sql.lock}"
        )

    def _healths(self, rows: Iterable[Sequence[Any]]) -> dict[str, health.Health]:
        """Return the health of each model; rows with values that cannot be read are named."""
        odd = OddRows(self._database.warn)
        rule = self._config.recovery
        found = {}
        for *row, back, now in rows:
            values, columns = as_declared(_READ, row)
            if columns:
                odd.add(quoted(values[:1]), columns)
            model_id, active, auto_disabled, failures, ejections, provider, spared = values
            ejections = min(ejections or 0, _MOST)
            found[model_id] = health.Health(
                active=active is True,
                auto_disabled=auto_disabled is True,
                consecutive_failures=min(failures or 0, _MOST),
                ejections=ejections,
                provider=provider or "",
                trusted=health.is_trusted(back, ejections, now, rule),
                spared=spared or None,
            )
        odd.finish()
        return found

    def _update(self, decided: str) -> str:
        """SQL that writes what the rule decided; *decided*: a relation with the columns `_ROW`."""
        now = self._sql.now

        def switch(column: str, on: str, off: str) -> str:
            """The new value of a column that only a change of the status changes."""
            return (
                f"CASE decided.switch WHEN 'recovered' THEN {on} WHEN 'auto-disabled' THEN {off}"
                f" ELSE models.{column} END"
            )

        values = assignments(
            self._database,
            active=switch("active", "TRUE", "FALSE"),
            auto_disabled=switch("auto_disabled", "FALSE", "TRUE"),
            disabled_at=switch("disabled_at", "NULL", now),
            disabled_by=switch("disabled_by", "NULL", f"'{health.HEALTH_RULE}'"),
            disabled_reason=switch("disabled_reason", "NULL", "decided.why"),
            disabled_until=switch("disabled_until", "NULL", "NULL"),
            recovered_at=f"CASE WHEN decided.back THEN {now} ELSE recovered_at END",
            consecutive_failures="decided.consecutive_failures",
            ejections="decided.ejections",
            would_disable="decided.spared",
            success_count="coalesce(success_count, 0) + decided.successes",
            failure_count="coalesce(failure_count, 0) + decided.failures",
            last_success_at=f"CASE WHEN decided.successes > 0 THEN {now} ELSE last_success_at END",
            last_failure_at=f"CASE WHEN decided.failures > 0 THEN {now} ELSE last_failure_at END",
            failure_type="coalesce(decided.failure_type, models.failure_type)",
            failure_reason="decided.failure_reason",
            updated_at=now,
        )
        return (
            f"UPDATE models SET {values} FROM {decided} WHERE models.id = decided.id"
            " RETURNING models.id"
        )

    def _is_new(self, column: str, since: str) -> str:
        """SQL: whether a time was written since then, and not by an earlier outcome."""
        return f"coalesce({self._sql.epoch(column)} >= {since}, FALSE)"
