"""Many models in one transaction: batches of outcomes, and catalogues."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelctl import deadline, health
from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.errors import RefusedError
from modelctl.model import ModelStatus, numbered
from modelctl.models.changes import FAILED_NOW, SUCCEEDED_NOW, TRUSTED, Changes
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.results import KeptChange, OutcomeChange, StatusChange
from modelctl.tables.application import (
    KeptError,
    NewColumnsError,
    defaults_to_insert,
    explain_refused_insert,
    look_at_columns,
)
from modelctl.tables.columns import AUTO_OFF, MODELS, ON, STATUS
from modelctl.tables.ids import check_found, check_storable, is_storable, quoted
from modelctl.tables.odd_values import OddRows, as_declared, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.health import Outcome

T = TypeVar("T")

_FOLDED = {
    "id": "text",
    "active": "boolean",
    "auto_disabled": "boolean",
    "consecutive_failures": "integer",
    "ejections": "integer",
    "successes": "bigint",
    "failures": "bigint",
    "failure_type": "text",
    "failure_reason": "text",
    "would_disable": "text",
    "switched": "text",
    "why": "text",
    "back": "boolean",
}
_HEALTH = (
    *(MODELS.c.id, MODELS.c.active, MODELS.c.auto_disabled, MODELS.c.consecutive_failures),
    *(MODELS.c.ejections, MODELS.c.provider, MODELS.c.would_disable),
)
_MOST = 2**31 - 100_000  # of a counter that other programs write: it is counted up in a batch
_TRIES = 3
_NOTED = {"id": "text", "would_disable": "text"}
_HOLD = {"scope": "text", "provider": "text", "failure_type": "text", "reason": "text"}
_ENTRY = {"id": "text", "display_name": "text", "provider": "text"}
# What a catalogue leaves empty it does not know: it is no reason to forget what the row says.
_DIFFERS = (
    "(incoming.display_name <> '' AND incoming.display_name <> coalesce(models.display_name, ''))"
    " OR (incoming.provider <> '' AND incoming.provider <> coalesce(models.provider, ''))"
)
_TEXTS = ("display_name", "provider")
_COUNTS = ("consecutive_failures", "ejections")


class Recorded(NamedTuple):
    """What became of a batch: how many were recorded, whose status changed, who is not there."""

    recorded: int
    changes: tuple[StatusChange, ...]
    skipped: int
    unknown: tuple[str, ...]


def _details(was: health.Health, now: health.Health) -> dict[str, Any] | None:
    """What an outcome changed that has an event."""
    if was.status is now.status:
        return {"guard": now.would_disable}
    counts = [(h.consecutive_failures, h.ejections) for h in (was, now)]
    return differences(_COUNTS, *counts)


class Batches(Changes):
    """Changes many models at once, in chunks; every method is one transaction."""

    def record_batch(
        self,
        outcomes: Callable[[], Iterator[Outcome]],
        *,
        actor: str,
        skip_unknown: bool,
        progress: Callable[[int], None],
    ) -> Recorded:
        """Record outcomes in their order, all in one transaction, a chunk at a time.

        *outcomes* starts again from the first on every call: they are looked through before they
        are recorded, and a deadlock runs the batch again.
        *skip_unknown*: leave out the outcomes of ids that name no model.

        Raises:
            ModelNotFoundError: an id names no model, and it was not asked to skip those.
        """

        def work(connection: sa.Connection) -> Recorded:
            # Others have a say in a counted failure alone.
            counted = self.config.health.counted
            if self.config.recovery.guarded and any(o.type in counted for o in outcomes()):
                self.wait_for_turn(connection)
            recorded = skipped = 0
            unknown: set[str] = set()
            first: dict[str, ModelStatus] = {}
            last: dict[str, ModelStatus] = {}
            source = outcomes()
            while chunk := list(islice(source, bulk.CHUNK)):
                if skip_unknown:
                    size, chunk = len(chunk), self._known(connection, chunk, unknown)
                    skipped += size - len(chunk)
                    if not chunk:
                        continue
                before, after = self._record_chunk(connection, chunk, actor)
                for model_id, now in after.items():
                    first.setdefault(model_id, before[model_id].status)
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

        return self.write(work)

    def _known(
        self, connection: sa.Connection, chunk: Sequence[Outcome], unknown: set[str]
    ) -> list[Outcome]:
        """Return the outcomes of *chunk* whose models are there, and lock these; note the others."""
        storable = self.database.storable
        ids = {o.id for o in chunk if is_storable(o.id) and storable(o.id) == o.id}
        # Locked, so that none of them can be removed before it is recorded.
        sql = f"SELECT id FROM models WHERE {self.sql.ids} ORDER BY id{self.sql.lock}"
        known = {*connection.execute(text(sql), {"ids": self.ids(ids)}).scalars()}
        unknown |= {outcome.id for outcome in chunk} - known
        return [outcome for outcome in chunk if outcome.id in known]

    def record_one(self, outcome: Outcome, *, actor: str) -> OutcomeChange:
        """Record one failure beside the guards, which look at other models too."""

        def work(connection: sa.Connection) -> OutcomeChange:
            self.wait_for_turn(connection)
            before, after = self._record_chunk(connection, [outcome], actor)
            was, now = before[outcome.id].status, after[outcome.id]
            return OutcomeChange(
                outcome.id,
                was,
                now.status,
                was is not now.status,
                now.consecutive_failures,
                would_disable=now.would_disable,
            )

        return self.write(work)

    def _lock_health(
        self, connection: sa.Connection, chunk: Sequence[Outcome]
    ) -> dict[str, health.Health]:
        """Lock the models of *chunk*, in the order of their ids, and return their health."""
        wanted = list({outcome.id for outcome in chunk})
        check_storable(wanted)
        sql = (
            f"SELECT {', '.join(c.name for c in _HEALTH)}, {self.filled(TRUSTED)} AS trusted"
            f" FROM models WHERE {self.sql.ids} ORDER BY id{self.sql.lock}"
        )
        parameters = {"ids": self.ids(wanted), **self.ladder()}
        rows = connection.execute(text(sql), parameters).all()
        check_found(wanted, {row[0] for row in rows})
        odd = OddRows(self.database.warn)
        found = {}
        for row in rows:
            values, columns = as_declared(_HEALTH, row[:-1])
            if columns:
                odd.add(quoted(values[:1]), columns)
            model_id, active, off, failures, ejections, provider, spared = values
            found[model_id] = health.Health(
                active=active is True,
                auto_disabled=off is True,
                consecutive_failures=min(failures or 0, _MOST),
                ejections=min(ejections or 0, _MOST),
                provider=provider or "",
                trusted=bool(row[-1]),
                would_disable=spared or None,
            )
        odd.finish()
        return found

    def _guards(self, connection: sa.Connection, providers: set[str]) -> health.Guards:
        """Return what the rule has to know beside the models themselves."""
        rule = self.config.recovery
        guards = health.Guards(rule)
        sql = f"SELECT provider, failure_type FROM {self.own}modelctl_holds WHERE until > {self.sql.now}"
        for provider, kind in connection.execute(text(sql)):
            if kind is None:
                guards.pauses.add(provider)
            else:
                guards.incidents.add((provider, kind))
        if not rule.guarded:
            return guards
        if rule.min_active:
            sql = f"SELECT count(*) FROM models WHERE {ON}"
            guards.active = connection.scalar(text(sql)) or 0
        these = self.sql.is_among("coalesce(models.provider, '')")
        parameters = {"ids": self.ids(sorted(providers))}
        sql = (
            f"SELECT coalesce(provider, ''), count(*), count(*) FILTER (WHERE {ON}),"
            f" count(*) FILTER (WHERE {AUTO_OFF}) FROM models WHERE {these} GROUP BY 1"
        )
        for provider, *numbers in connection.execute(text(sql), parameters):
            guards.shares[provider] = health.Share(*numbers)
        if rule.incident_models:
            self._incidents(connection, guards, these, parameters)
        return guards

    def _incidents(
        self,
        connection: sa.Connection,
        guards: health.Guards,
        these: str,
        parameters: dict[str, Any],
    ) -> None:
        """Tell *guards* who failed and who is off, as far as it matters to an incident."""
        parameters = parameters | {"window": self.config.recovery.incident_window}
        since = self.sql.seconds_from_now("-:window")
        # Those that are spared fail on without an event.
        sql = (
            "SELECT coalesce(provider, ''), failure_type, id FROM models"
            f" WHERE {ON} AND would_disable <> '' AND last_failure_at > {since} AND {these}"
        )
        for provider, kind, model_id in connection.execute(text(sql), parameters):
            guards.spared.setdefault((provider, kind), set()).add(model_id)
        sql = (
            f"SELECT coalesce(models.provider, ''), e.failure_type, models.id, {ON}"
            f" FROM {self.own}modelctl_events e JOIN models ON models.id = e.model_id"
            " WHERE e.event IN ('auto-disabled', 'would-disable')"
            f" AND e.at > {since} AND {these}"
        )
        for provider, kind, model_id, on in connection.execute(text(sql), parameters):
            guards.reachers.setdefault((provider, kind), set()).add(model_id)
            if not on:
                guards.off.add(model_id)
        epoch = self.sql.epoch
        incidents = (
            f"SELECT provider, min({epoch('since')}) AS began FROM {self.own}modelctl_holds"
            f" WHERE failure_type IS NOT NULL AND until > {self.sql.now} GROUP BY provider"
        )
        sql = (
            "SELECT coalesce(models.provider, ''), models.id FROM models"
            f" LEFT JOIN ({incidents}) AS i ON i.provider = coalesce(models.provider, '')"
            f" WHERE {AUTO_OFF} AND {these} AND {epoch('disabled_at')} >"
            f" coalesce(i.began, {epoch(self.sql.now)}) - :window"
        )
        for provider, model_id in connection.execute(text(sql), parameters):
            guards.out.setdefault(provider, set()).add(model_id)

    def _record_chunk(
        self, connection: sa.Connection, chunk: Sequence[Outcome], actor: str
    ) -> tuple[dict[str, health.Health], dict[str, health.Health]]:
        """Apply the rule to each outcome, then write each row and all events once.

        Return the health of the models before and after.
        """
        before = self._lock_health(connection, chunk)
        guards = self._guards(connection, {was.provider for was in before.values()})
        after = dict(before)
        switched: dict[str, tuple[str, str | None]] = {}
        back: set[str] = set()
        events: list[NewEvent] = []
        for outcome in chunk:
            was = after[outcome.id]
            now, event = health.record(was, outcome, self.config, guards)
            after[outcome.id] = now
            if event:
                reason = outcome.reason if outcome.type else None
                happened = (event, was.status, now.status, reason, outcome.type)
                events.append(NewEvent(outcome.id, *happened, details=_details(was, now)))
                if was.status is not now.status:
                    switched[outcome.id] = (event, reason if reason is not None else outcome.type)
                    back |= {outcome.id} if now.active else set()
        folded = [
            (
                model_id,
                now.active,
                now.auto_disabled,
                now.consecutive_failures,
                now.ejections,
                now.successes,
                now.failures,
                now.failure_type,
                now.failure_reason,
                now.would_disable,
                *switched.get(model_id, (None, None)),
                model_id in back,
            )
            for model_id, now in after.items()
        ]
        update = connection.execute(text(self._batch_update()), self.sql.values(_FOLDED, folded))
        written = {*update.scalars()}
        if noted := [(i, after[i].would_disable) for i in back if after[i].would_disable]:
            # The triggers take it for left over where a model was switched on.
            sql = f"UPDATE models SET would_disable = noted.would_disable FROM {self.sql.rows('noted', _NOTED)}"
            connection.execute(
                text(f"{sql} WHERE models.id = noted.id"), self.sql.values(_NOTED, noted)
            )
        log(self.database, connection, events, actor)
        self._hold(connection, guards)
        # Of the time of the last success and failure: whether it is the one that was written.
        look = f"{STATUS}, {SUCCEEDED_NOW}, {FAILED_NOW}"
        found = connection.execute(text(self.statuses(look)), {"ids": self.ids(after)})
        standing = {row[0]: row[1:] for row in found}

        def is_kept(model_id: str, now: health.Health) -> bool:
            status, succeeded, failed = standing.get(model_id, (None, False, False))
            stored = (succeeded or not now.successes) and (failed or not now.failures)
            return model_id not in written or status != now.status or not stored

        kept = [model_id for model_id, now in after.items() if is_kept(model_id, now)]
        if kept:
            raise KeptError(kept)
        return before, after

    def _hold(self, connection: sa.Connection, guards: health.Guards) -> None:
        """Write the incidents that began or went on.

        They end one window after the last failure, at most half a window later: what is written
        lasts for half a window more, in which the next failures need not write it again.
        """
        reasons = {key: numbered(models) for key, models in guards.began.items()}
        going = [
            (f"incident:{kind}:{provider}", provider, kind, reasons.get((provider, kind)))
            for provider, kind in guards.went_on | guards.began.keys()
        ]
        if not going:
            return
        now = self.sql.now
        connection.execute(text(f"DELETE FROM {self.own}modelctl_holds WHERE until <= {now}"))
        sql = (
            f"INSERT INTO {self.own}modelctl_holds (scope, provider, failure_type, since, until, reason, actor)"
            f" SELECT scope, provider, failure_type, {now},"
            f" {self.sql.seconds_from_now('1.5 * :window')}, reason, '{health.HEALTH_RULE}'"
            f" FROM {self.sql.rows('going', _HOLD)} WHERE TRUE"
            " ON CONFLICT (scope) DO UPDATE SET until = excluded.until"
            f" WHERE modelctl_holds.until <= {self.sql.seconds_from_now(':window')}"
        )
        window = {"window": self.config.recovery.incident_window}
        connection.execute(text(sql), self.sql.values(_HOLD, going) | window)
        began = [
            NewEvent("", "incident", reason=reason, failure_type=kind, provider=provider)
            for (provider, kind), reason in reasons.items()
        ]
        log(self.database, connection, began, health.HEALTH_RULE)

    def _batch_update(self) -> str:
        at = self.sql.now

        def switched(column: str, value: str) -> str:
            """*value* where the status changed."""
            return f"{column} = CASE WHEN switched IS NULL THEN models.{column} ELSE {value} END"

        def off(column: str, value: str) -> str:
            """*value* where the model was switched off, nothing where it was switched on."""
            return switched(column, f"CASE switched WHEN 'auto-disabled' THEN {value} END")

        values = (
            f"{switched('active', 'folded.active')},"
            f" {switched('auto_disabled', 'folded.auto_disabled')},"
            " consecutive_failures = folded.consecutive_failures, ejections = folded.ejections,"
            " success_count = coalesce(success_count, 0) + successes,"
            " failure_count = coalesce(failure_count, 0) + failures,"
            f" last_success_at = CASE WHEN successes > 0 THEN {at} ELSE last_success_at END,"
            f" last_failure_at = CASE WHEN failures > 0 THEN {at} ELSE last_failure_at END,"
            " failure_type = coalesce(folded.failure_type, models.failure_type),"
            " failure_reason = folded.failure_reason, would_disable = folded.would_disable,"
            f" recovered_at = CASE WHEN back THEN {at} ELSE recovered_at END,"
            f" {off('disabled_at', at)}, {off('disabled_by', repr(health.HEALTH_RULE))},"
            f" {off('disabled_reason', 'why')}, {switched('disabled_until', 'NULL')},"
            f" updated_at = {at}"
        )
        took = f"(successes = 0 OR {SUCCEEDED_NOW}) AND (failures = 0 OR {FAILED_NOW})"
        return (
            f"UPDATE models SET {self.fitting(values)} FROM {self.sql.rows('folded', _FOLDED)}"
            f" WHERE models.id = folded.id RETURNING {self.filled(self.if_it(took))}"
        )

    def import_models(
        self,
        entries: Callable[[], Iterable[tuple[str, str, str, bool | None]]],
        *,
        on_conflict: str,
        actor: str,
        dry_run: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[int, int, int]:
        """Add or update models from (id, display name, provider, active), in one transaction.

        The ids are unique. *active* is whether the catalogue says that the model is on, or None.

        *entries* starts again from the first on every call, in the order of the ids: two imports
        of the same models lock them in the same order.
        *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.
        Return how many were added, how many differ, and of how many the status differs, which stays.

        Raises:
            RefusedError: ``fail``, and a model differs; nothing is written.
        """

        def work(connection: sa.Connection) -> tuple[int, int, int]:
            return self._import(connection, entries(), on_conflict, actor, progress)

        return self._inserting(lambda: self.write(work, dry_run=dry_run))

    def add(self, entry: tuple[str, str, str], *, actor: str) -> StatusChange:
        """Add one model as (id, display name, provider), or leave the one that is there.

        Raises:
            RefusedError: the database kept it out.
        """

        def work(connection: sa.Connection) -> StatusChange:
            new, differing, status = self._import_chunk(connection, [entry], "skip", actor)
            after = ModelStatus(status[entry[0]])
            if old := differing.get(entry[0]):
                pairs = zip(("name", "provider"), old[1:], entry[1:], strict=True)
                kept = [
                    f"its {what} is '{is_now}', not '{asked}'"
                    for what, is_now, asked in pairs
                    if asked and asked != is_now
                ]
                note = f"{' and '.join(kept)}; modelctl import changes that"
                return KeptChange(entry[0], after, after, False, note)
            return StatusChange(entry[0], None if new else after, after, bool(new))

        return self._inserting(lambda: self.write(work))

    def _inserting(self, transaction: Callable[[], T]) -> T:
        try:
            return transaction()
        except RefusedError as exc:
            raise explain_refused_insert(self.database, exc) from exc

    def _import(
        self,
        connection: sa.Connection,
        entries: Iterable[tuple[str, str, str, bool | None]],
        on_conflict: str,
        actor: str,
        progress: Callable[[int], None],
    ) -> tuple[int, int, int]:
        added = differs = ignored = done = 0
        source = iter(entries)
        while chunk := list(islice(source, bulk.CHUNK)):
            rows = [entry[:3] for entry in chunk]
            new, changed, status = self._import_chunk(connection, rows, on_conflict, actor)
            added += new
            differs += len(changed)
            for model_id, _, _, active in chunk:
                ignored += active is not None and active != (status[model_id] == ModelStatus.ACTIVE)
            done += len(chunk)
            deadline.renew()
            progress(done)
        return added, differs, ignored

    def _cut(self, chunk: Sequence[tuple[str, str, str]]) -> Sequence[tuple[str, str, str]]:
        """Cut the texts to what the columns of an application take."""
        name, provider = (self.database.columns.get(column) for column in _TEXTS)
        if not (name and provider):
            return chunk
        return [(e[0], name.fit(e[1]), provider.fit(e[2])) for e in chunk]

    def _is_cut(self, entry: tuple[str, str, str], changed: dict[str, Sequence[Any]]) -> bool:
        """Whether all that differs of a model looks as if a column had cut it."""
        if entry[0] not in changed:
            return False
        pairs = [*zip(entry[1:], changed[entry[0]][1:], strict=True)]
        return all(new.startswith(old) for new, old in pairs if new) and any(
            old for _, old in pairs
        )

    def _not_active(self, connection: sa.Connection, new: dict[str, str]) -> list[str]:
        """Return which of the *new* models are off although new ones are active in this table."""
        off = [model_id for model_id, status in new.items() if status != ModelStatus.ACTIVE]
        if off and not self.database.columns:
            look_at_columns(self.database, connection)
            if defaults_to_insert(self.database):
                raise NewColumnsError
        active = self.database.columns.get("active")
        default = (active and active.default) or "true"
        return off if default.lower() in ("true", "1") else []

    def _import_chunk(
        self,
        connection: sa.Connection,
        chunk: Sequence[tuple[str, str, str]],
        on_conflict: str,
        actor: str,
    ) -> tuple[int, dict[str, Sequence[Any]], dict[str, str]]:
        """Return how many were added, those that differ (status, name, provider), and each status."""
        incoming = self.sql.rows("incoming", _ENTRY)
        texts = "coalesce(models.display_name, ''), coalesce(models.provider, '')"
        differing = (
            f"SELECT models.id, {STATUS} AS status, {texts} FROM models, {incoming}"
            f" WHERE models.id = incoming.id AND ({_DIFFERS}) ORDER BY models.id{self.sql.lock}"
        )
        update = (
            "UPDATE models SET"
            " display_name = coalesce(nullif(incoming.display_name, ''), models.display_name),"
            " provider = coalesce(nullif(incoming.provider, ''), models.provider),"
            f" updated_at = {self.sql.now} FROM {incoming} WHERE models.id = incoming.id"
        )
        # Not ON CONFLICT alone: an application's NOT NULL column would refuse even what is there.
        more = defaults_to_insert(self.database)
        names, given = ("".join(f", {part}" for part in parts) for parts in (more, more.values()))
        insert = (
            f"INSERT INTO models (id, display_name, provider{names})"
            f" SELECT id, display_name, provider{given}"
            f" FROM {incoming} WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = incoming.id)"
            f" ORDER BY {self.sql.by_id} ON CONFLICT (id) DO NOTHING"
            f" RETURNING id, {STATUS} AS status"
        )
        standing = f"SELECT id, {STATUS}, {texts} FROM models WHERE {self.sql.ids}"

        chunk = self._cut(chunk)
        values = self.sql.values(_ENTRY, chunk)
        found = connection.execute(text(differing), values)
        changed: dict[str, Sequence[Any]] = {
            row[0]: (row[1], *map(readable, row[2:]))
            for row in sorted(found, key=lambda row: row[0])
        }
        if not self.database.columns and any(self._is_cut(e, changed) for e in chunk):
            look_at_columns(self.database, connection)
            if self._cut(chunk) != chunk:
                raise NewColumnsError
        if changed and on_conflict == "fail":
            raise RefusedError(
                f"{quoted(list(changed))} differ from the catalogue",
                hint="nothing was written; see --on-conflict",
            )
        events: list[NewEvent] = []
        # Only what is locked: others may have written since the SELECT.
        ours = [e for e in chunk if e[0] in changed] if on_conflict == "update" else []
        if ours:
            connection.execute(text(update), self.sql.values(_ENTRY, ours))
        for model_id, name, provider in ours:
            status, *old = changed[model_id]
            details = differences(_TEXTS, old, (name or old[0], provider or old[1]))
            events.append(NewEvent(model_id, "updated", status, status, details=details))
        new: dict[str, str] = {}
        ids = {"ids": self.ids(entry[0] for entry in chunk)}
        # What others remove in between can be added now, once or twice; a trigger removes it always.
        for _ in range(_TRIES):
            new |= {row[0]: row[1] for row in connection.execute(text(insert), values)}
            rows = connection.execute(text(standing), ids)
            now = {row[0]: (row[1], *map(readable, row[2:])) for row in rows}
            kept = [entry[0] for entry in chunk if entry[0] not in now]
            if not kept:
                break
        kept += self._not_active(connection, new)
        # A name in another form than ours is the application's matter, the old one is not.
        kept += [i for i, status in new.items() if i in now and now[i][0] != status]
        for model_id, *_ in ours:
            status, *texts_then = now.get(model_id, (None,))
            before, *texts_before = changed[model_id]
            if status is not None and (status != before or texts_then == texts_before):
                kept.append(model_id)
        if kept:
            raise KeptError(sorted(kept))
        of_new = {model_id: words for model_id, *words in chunk if model_id in new}
        for model_id, status in sorted(new.items()):
            words = [word or None for word in of_new[model_id]]
            details = differences(_TEXTS, (None, None), words)
            events.append(NewEvent(model_id, "added", None, status, details=details))
        log(self.database, connection, events, actor)
        return len(new), changed, {i: row[0] for i, row in now.items()}
