"""What `recover` does, and what stops it: the models that wait, pauses and incidents, probes."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl import deadline
from modelctl.database import tables
from modelctl.database.tables import (
    AUTO_OFF,
    FOREVER,
    ON,
    STATUS,
    TIMED_OFF,
    KeptError,
    NewEvent,
    UtcTime,
    all_found,
    differences,
    findable,
    is_findable,
    readable,
    text,
    time_at,
    written,
)
from modelctl.errors import RefusedError, UsageError
from modelctl.model import ModelStatus
from modelctl.models.changes import FOR_A_PERSON, PAUSED, RECOVER, Changes
from modelctl.reports import Candidate, Hold, LastRecover, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_FAILED = {"id": "text", "failure_type": "text", "reason": "text"}
UNREADABLE = "its id cannot be read"
# How much the clocks of two servers of one database may differ.
CLOCK_SKEW_SECONDS = 5.0


class Recovery(Changes):
    """The statements of `recover`, of pauses and of probes."""

    # ── Who comes back, and when ──

    @property
    def _candidates(self) -> str:
        """Those that may come back by themselves, ever."""
        if not self.on_sqlite:
            return self.may_return
        # Its planner takes no two indexes for an OR.
        off = "SELECT id FROM models WHERE"
        return f"{self.may_return} AND id IN ({off} {AUTO_OFF} UNION ALL {off} {TIMED_OFF})"

    @property
    def _why(self) -> str:
        """Why a candidate does not come back at :now; NULL: it does. The one place that says so."""
        return (
            f"CASE WHEN auto_disabled IS TRUE AND {FOR_A_PERSON} THEN 'person'"
            f" WHEN {self.filled(PAUSED)} THEN 'paused' WHEN {self.due} > :now"
            " THEN CASE WHEN auto_disabled IS TRUE THEN 'cooldown' ELSE 'timed' END END"
        )

    def _parameters(self, cooldowns: Sequence[float] | None, now: float) -> dict[str, Any]:
        most = self.config.recovery.max_ejections
        return {"max_ejections": most, "now": now, **self.ladder(cooldowns)}

    def clock(self) -> float:
        """Return the database's clock (seconds since 1970)."""
        with self.database.reading() as connection:
            sql = f"SELECT {self.sql.epoch.format(time=self.sql.now)}"
            return float(connection.scalar(text(sql)) or 0)

    def plan(
        self, *, cooldowns: Sequence[float] | None = None, ids: Sequence[str] | None = None
    ) -> Iterator[Candidate]:
        """Give every candidate and why it waits, the first to come back first.

        All are read at once; nothing is held in the database while they are worked through.

        *cooldowns*: seconds, instead of the configured ones. *ids*: only these.
        """
        now = self.clock()
        only = f" AND {self.sql.ids}" if ids is not None else ""
        sql = (
            "SELECT id, provider, timed, retry, why FROM (SELECT id, coalesce(provider, '') AS provider,"
            f" auto_disabled IS NOT TRUE AS timed, {self.retry} AS retry, {self._why} AS why"
            f" FROM models WHERE {self._candidates}{only}) AS candidates"
            f" ORDER BY retry NULLS LAST, {self.sql.by_id}"
        )
        parameters = self._parameters(cooldowns, now)
        if ids is not None:
            parameters["ids"] = self.ids(ids)
        for model_id, provider, timed, retry, why in self.spooled(text(sql), parameters):
            if not isinstance(model_id, str) or not is_findable(model_id):
                why = "unreadable"
            at = None if retry is None else time_at(retry, now, self.exact_to)
            waiting = None
            if why is not None:
                left = None if at is None else max(0.0, at.timestamp() - now)
                waiting = Waiting(readable(model_id), at, left, why)
            yield Candidate(readable(model_id), readable(provider), bool(timed), at, waiting)

    def ahead(self, model_id: str) -> int:
        """Return how many models are due and come back before this one."""
        sql = (
            f"WITH due AS (SELECT id, {self.due} AS due FROM models"
            f" WHERE {self._candidates} AND ({self._why}) IS NULL)"
            " SELECT count(*) FROM due, (SELECT * FROM due WHERE id = :id) AS this"
            f" WHERE due.due < this.due OR (due.due = this.due AND due.id < this.id{self.sql.collation})"
        )
        parameters = self._parameters(None, self.clock()) | {"id": model_id}
        with self.database.reading() as connection:
            return connection.scalar(text(sql), parameters) or 0

    def for_a_person(self) -> list[str]:
        """Return some models (at most 4) that were ejected too often to come back by themselves."""
        sql = (
            f"SELECT id FROM models WHERE {AUTO_OFF} AND {FOR_A_PERSON}"
            f" ORDER BY {self.sql.by_id} LIMIT 4"
        )
        parameters = {"max_ejections": self.config.recovery.max_ejections}
        with self.database.reading() as connection:
            return [*map(readable, connection.execute(text(sql), parameters).scalars())]

    def spared(self) -> list[tuple[str, str]]:
        """Return some models (at most 4) that the rule would have switched off, and why not."""
        sql = (
            f"SELECT id, would_disable FROM models WHERE {ON} AND would_disable <> ''"
            f" ORDER BY {self.sql.by_id} LIMIT 4"
        )
        with self.database.reading() as connection:
            return [(readable(row[0]), readable(row[1])) for row in connection.execute(text(sql))]

    # ── recover ──

    def recover(
        self,
        *,
        cooldowns: Sequence[float] | None,
        limit: int | None,
        actor: str,
        refused: dict[str, str],
        ids: Sequence[str] | None = None,
    ) -> Iterator[list[str] | None]:
        """Bring back what is due; yield the ids of each chunk. For the order see `_due_ids`.

        Works in chunks with short locks; each takes the run's lock again and looks again whether
        its models are still due. Where another run has the lock None comes, and the end.
        *ids*: only of these, in this order. *refused* learns which models the database left as
        they were, and why; others come back in their place.
        """
        # What fails again after this run began waits for the next one.
        parameters = self._parameters(cooldowns, self.clock())
        parameters |= {"actor": actor, "reason": None, "failure_type": None}
        parameters["restart"] = self.config.recovery.restart_failures
        room = limit
        while True:
            before = len(refused)
            size = None if room is None else room + before
            due = self._due_ids(parameters, size) if ids is None else ids
            source = (model_id for model_id in due if _can_come_back(model_id, refused))
            these = list(islice(source, tables.CHUNK))
            while True:  # once at least: who has the lock is told also if nothing is due
                done = self._bring_back(these, parameters, refused)
                deadline.renew()
                yield done
                if done is None:
                    return
                these = list(islice(source, tables.CHUNK))
                if not these:
                    break
            room = len(refused) - before
            if limit is None or ids is not None or not room:
                return

    def _bring_back(
        self, these: list[str], parameters: dict[str, Any], refused: dict[str, str]
    ) -> list[str] | None:
        """Bring models back that are still due, in one transaction; return their ids.

        What the database leaves as it is stays out, and the others are tried again without it. It
        may not say which ones those are: then half of them are tried, and the other half.
        """
        still = (
            f"{self.sql.ids} AND {self.may_return} AND ({self._why}) IS NULL"
            f" ORDER BY id{self.sql.skip_locked}"
        )
        alone = text(f"SELECT pg_try_advisory_xact_lock({self.lock_key(tables.RECOVER_LOCK)})")

        def chunk(connection: sa.Connection) -> list[str] | None:
            if not self.on_sqlite and not connection.scalar(alone):
                return None
            wanted = parameters | {"ids": self.ids(these)}
            done = {c.id for c in self.apply(connection, RECOVER, still, wanted)}
            return [model_id for model_id in these if model_id in done]

        try:
            return self.adapting(lambda: self.database.write(chunk))
        except KeptError as exc:
            refused |= dict.fromkeys(exc.ids, f"the database kept it as it was ({self.keeper()})")
            parts = [[model_id for model_id in these if model_id not in refused]]
        except (RefusedError, UsageError) as exc:
            if len(these) == 1:
                refused[these[0]] = exc.message
                return []
            middle = len(these) // 2
            parts = [these[:middle], these[middle:]]
        done: list[str] = []
        for part in filter(None, parts):
            some = self._bring_back(part, parameters, refused)
            deadline.renew()
            if some is None:
                return done or None
            done += some
        return done

    def _due_ids(self, parameters: dict[str, Any], limit: int | None) -> Sequence[str]:
        """Return what is due, once for all chunks, longest waiting first.

        Many at once, without a limit, come as they lie on disk: chunks of neighbours cost half.
        """
        sql = f"SELECT id FROM models WHERE {self._candidates} AND ({self._why}) IS NULL"
        in_order = f"{sql} ORDER BY {self.due}, {self.sql.by_id}"

        def found(query: str, **more: Any) -> Sequence[str]:
            return self.spooled(text(query), parameters | more, lambda row: row[0])

        if limit is not None:
            return found(f"{in_order} LIMIT :size", size=limit)
        due = found(sql if self.on_sqlite else f"{sql} ORDER BY ctid")
        return found(in_order) if 1 < len(due) <= tables.CHUNK else due

    def finished(self) -> None:
        """Remember that a run of recover is through."""
        sql = (
            f"INSERT INTO {self.own}modelctl_state (name, at) VALUES ('recover', {self.sql.now})"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at"
        )
        self.database.write(lambda connection: connection.execute(text(sql)))

    def last_run(self) -> LastRecover:
        """Say when a run of recover last finished, and whether that is too long ago."""
        every = self.config.recovery.expect_every
        sql = (
            f"SELECT at, {self.sql.now} AS now FROM {self.own}modelctl_state WHERE name = 'recover'"
        )
        query = sa.text(sql).columns(at=UtcTime, now=UtcTime)
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        if row is None or row.at is None:  # never, or unreadable
            return LastRecover(None, None, every or None, bool(every))
        ago = (row.now - row.at).total_seconds()
        # A time in the future: the clock was set back, and nobody knows how long ago it was.
        overdue = bool(every) and not -CLOCK_SKEW_SECONDS <= ago <= every
        return LastRecover(row.at, ago, every or None, overdue)

    # ── Pauses and incidents ──

    def holds(self) -> tuple[Hold, ...]:
        """Return the pauses and incidents that last."""
        sql = (
            f"SELECT provider, failure_type, since, until, reason, actor, {self.sql.now} AS now"
            f" FROM {self.own}modelctl_holds WHERE until > {self.sql.now}"
            f" ORDER BY scope{self.sql.collation}"
        )
        query = sa.text(sql).columns(since=UtcTime, until=UtcTime, now=UtcTime)
        with self.database.reading() as connection:
            found = connection.execute(query).all()
        return tuple(
            Hold(
                provider=row.provider,
                failure_type=row.failure_type,
                since=row.since or row.now,
                until=row.until or FOREVER,  # infinity, say
                seconds_left=max(0.0, ((row.until or FOREVER) - row.now).total_seconds()),
                reason=row.reason,
                actor=row.actor,
            )
            for row in found
        )

    def pause(
        self, provider: str | None, seconds: float, *, reason: str | None, actor: str
    ) -> datetime:
        """Stop automatic switching for so long, and return until when (UTC)."""
        now = self.sql.now
        sql = (
            f"INSERT INTO {self.own}modelctl_holds (scope, provider, since, until, reason, actor)"
            f" VALUES (:scope, :provider, {now}, {self.sql.shifted.format(seconds=':seconds')},"
            " :reason, :actor) ON CONFLICT (scope) DO UPDATE SET since = excluded.since,"
            " until = excluded.until, reason = excluded.reason, actor = excluded.actor"
            " RETURNING until"
        )
        query = sa.text(sql).columns(until=UtcTime)
        sql = f"SELECT until, reason FROM {self.own}modelctl_holds WHERE scope = :scope"
        before = sa.text(sql).columns(until=UtcTime)
        parameters = {"scope": _scope(provider), "provider": provider, "seconds": seconds}
        parameters |= {"reason": reason, "actor": actor}

        def work(connection: sa.Connection) -> datetime:
            connection.execute(text(f"DELETE FROM {self.own}modelctl_holds WHERE until <= {now}"))
            old = connection.execute(before, parameters).first()
            until: datetime = connection.execute(query, parameters).scalar_one()
            details: dict[str, Any] = {"until": written(until)}
            if old:
                old_end = old.until and written(old.until)
                values = (old_end, old.reason), (details["until"], reason)
                details |= differences(("until", "reason"), *values) or {}
            paused = NewEvent("", "paused", reason=reason, provider=provider, details=details)
            self.log(connection, [paused], actor)
            return until

        return self.database.write(work)

    def resume(self, provider: str | None, *, reason: str | None, actor: str) -> bool:
        """End a pause; return whether there was one."""
        sql = (
            f"DELETE FROM {self.own}modelctl_holds WHERE scope = :scope AND until > {self.sql.now}"
            " RETURNING until, reason"
        )
        query = sa.text(sql).columns(until=UtcTime)

        def work(connection: sa.Connection) -> bool:
            found = connection.execute(query, {"scope": _scope(provider)}).first()
            if found:
                old = {"until": found.until and written(found.until), "reason": found.reason}
                details = {"old": old}
                resumed = NewEvent("", "resumed", reason=reason, provider=provider, details=details)
                self.log(connection, [resumed], actor)
            return bool(found)

        return self.database.write(work)

    # ── Probes ──

    def standing(self, ids: Sequence[str]) -> list[tuple[str, str, ModelStatus]]:
        """Return id, provider and status of each; `ModelNotFoundError` names the missing ones."""
        findable(ids)
        sql = f"SELECT id, coalesce(provider, ''), {STATUS} FROM models WHERE {self.sql.ids}"
        with self.database.reading() as connection:
            found = {row[0]: row for row in connection.execute(text(sql), {"ids": self.ids(ids)})}
        all_found(ids, found)
        return [(i, readable(found[i][1]), ModelStatus(found[i][2])) for i in ids]

    def probe_failed(self, failed: Iterable[tuple[str, str, str | None]], *, actor: str) -> None:
        """Start the cooldown of (id, failure type, reason) again, of those that are still off."""
        answers = {model_id: (kind, reason) for model_id, kind, reason in failed}
        lock = f"SELECT id, {STATUS} FROM models WHERE {self.sql.ids} AND active IS NOT TRUE"
        lock += f" ORDER BY id{self.sql.lock}"
        values = (
            "failure_count = coalesce(failure_count, 0) + 1,"
            f" last_failure_at = {self.sql.now}, failure_type = failed.failure_type,"
            f" failure_reason = failed.reason, updated_at = {self.sql.now}"
        )

        def work(connection: sa.Connection) -> None:
            off = connection.execute(text(lock), {"ids": self.ids(answers)}).all()
            these = [
                (model_id, kind, reason and self.database.storable(reason))
                for model_id, _ in off
                for kind, reason in [answers[model_id]]
            ]
            sql = (
                f"UPDATE models SET {self.fitting(values)} FROM {self.sql.rows('failed', _FAILED)}"
                " WHERE models.id = failed.id RETURNING models.id"
            )
            update = connection.execute(text(sql), self.sql.values(_FAILED, these))
            done = {*update.scalars()}  # a trigger may keep some as they were
            events = [
                NewEvent(model_id, "probe-failed", status, status, reason, kind)
                for model_id, status in off
                if model_id in done
                for kind, reason in [answers[model_id]]
            ]
            self.log(connection, sorted(events), actor)

        self.write(work)

    def claim(self, seconds: float, owner: str) -> bool:
        """Be the only one who probes for so long; *owner* may prolong it. Return whether we are."""
        sql = (
            f"INSERT INTO {self.own}modelctl_state (name, at, value)"
            f" VALUES ('probe', {self.sql.shifted.format(seconds=':seconds')}, :owner)"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value"
            f" WHERE modelctl_state.at <= {self.sql.now} OR modelctl_state.value = excluded.value"
            " RETURNING name"
        )
        parameters = {"seconds": seconds, "owner": owner}
        return self.database.write(
            lambda connection: connection.execute(text(sql), parameters).first() is not None
        )


def _can_come_back(model_id: Any, refused: dict[str, str]) -> bool:
    """Whether no reason is known against it; an id that cannot be read is one."""
    if not isinstance(model_id, str) or not is_findable(model_id):
        refused[readable(model_id)] = UNREADABLE
        return False
    return model_id not in refused


def _scope(provider: str | None) -> str:
    return "fleet" if provider is None else f"provider:{provider}"
