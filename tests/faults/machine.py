"""The state machine: a fleet, its plain model in memory, and each operation on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from modelctl import crash_points
from modelctl.errors import ModelNotFoundError, RefusedError, StaleCacheError
from modelctl.model import CacheState
from tests.faults.oracle import KNOWN, Foreign, MachineWorld, Reader, Row, ids
from tests.world import KEY, LEASE, VOUCH

OTHERS = ("db:stats:overall", "db:leaderboard:all", "db:leaderboard:top:10")


# ── Strategies ──────────────────────────────────────────────────────────────────────────────────


# A model as an example finds it: its status, and its failures in a row.
starts = st.tuples(
    st.sampled_from(["active", "active", "disabled", "auto-disabled"]), st.sampled_from([0, 4, 4])
)
floors = st.sampled_from([0, 1])


# ── The machine ─────────────────────────────────────────────────────────────────────────────────


class Machine(RuleBasedStateMachine):
    """A fleet and its oracle: *rows*, the history of their count, and the outbox in numbers."""

    def __init__(self, world: MachineWorld) -> None:
        super().__init__()
        self.world = world
        self.fleet = world.fleets[0]
        self.least = 0  # how many models the floor leaves on
        self.pauses: set[str | None] = set()
        self.rows: dict[str, Row] = {}
        # Since when each model was off after the last step.
        self.since: dict[str, tuple[Row, int, Any]] = {}
        self.events: list[tuple[str, str, str | None, str | None]] = []
        # Every count ever committed; from *floor* on they may be believed.
        self.history = [0]
        self.floor = 0
        # The outbox: not delivered yet; delivered once; of these, 15 s ago.
        self.queued = self.settling = self.ripe = self.written = 0
        self.foreign: list[Foreign] = []
        self.readers: list[Reader] = []
        self.away = False
        self.cut = False  # something ran in the middle of what runs now

    @initialize(known=st.dictionaries(ids, starts, min_size=2), least=floors)
    def begin(self, known: dict[str, tuple[str, int]], least: int) -> None:
        """Start with a few models, of long ago, and an empty cache; with or without a floor."""
        self.world.clear()
        self.fleet, self.least = self.world.fleets[least], least
        for model_id, (status, in_a_row) in known.items():
            row = Row(
                active=status == "active",
                automatic=status == "auto-disabled",
                in_a_row=in_a_row,
                ejections=in_a_row // 4,
            )
            self.world.sql(
                "INSERT INTO models (id, active, auto_disabled, consecutive_failures, ejections)"
                " VALUES (?, ?, ?, ?, ?)",
                *(model_id, row.active, row.automatic, row.in_a_row, row.ejections),
            )
            self.rows[model_id] = row
        self.world.forget()
        self.history = [self.active]

    def teardown(self) -> None:
        """Leave no hook behind."""
        crash_points.hook = None

    # What the oracle knows

    @property
    def with_redis(self) -> bool:
        """Whether the cache is Redis; else it is SQLite's own."""
        return self.world.server is not None

    @property
    def reachable(self) -> bool:
        """Whether there is a Redis, and it answers."""
        return self.with_redis and not self.away

    @property
    def active(self) -> int:
        """The true count."""
        return sum(row.active for row in self.rows.values())

    @property
    def believable(self) -> set[int]:
        """What a plain count may answer: the numbers since the last acknowledged change."""
        return set(self.history[self.floor :])

    def paused(self, row: Row) -> bool:
        """Whether automatic switching of it is paused."""
        return not self.pauses.isdisjoint((None, row.provider))

    def against(self, row: Row) -> str | None:
        """What is against switching it now."""
        if self.paused(row):
            return "paused"
        return "floor" if self.active - 1 < self.least else None

    def committed(self, before: dict[str, bool]) -> None:
        """Take note of one statement that changed which models are counted."""
        if before == self.switches():
            return
        self.history.append(self.active)
        if self.with_redis:
            self.queued += 1
            self.written += 1
        else:
            self.floor = len(self.history) - 1

    def switches(self) -> dict[str, bool]:
        """Every model, and whether it is counted."""
        return {model_id: row.active for model_id, row in self.rows.items()}

    def delivered(self, floor: int) -> None:
        """Take note of a finished invalidation, of whatever was committed up to *floor*."""
        if not self.with_redis:
            return
        self.floor = max(self.floor, floor)
        self.settling += self.queued - self.ripe
        self.queued = self.ripe = 0
        for half in self.foreign:
            half.old = True

    def owes(self, state: CacheState, floor: int, *, owed: bool, changed: bool = True) -> None:
        """Check what a change says about the cache, and take note; *changed*: whether a row was."""
        if not owed:
            assert state is CacheState.UNCHANGED
            return
        if self.away:
            # Also when Redis went in the middle, unless all was done by then.
            undelivered = CacheState.QUEUED if changed or self.queued else CacheState.UNCHANGED
            assert state is undelivered or (self.cut and state is not CacheState.UNCHANGED)
            assert self.cut or bool(self.world.warnings) is (state is CacheState.QUEUED)
        else:
            assert state is CacheState.INVALIDATED
        if state is CacheState.INVALIDATED:
            self.delivered(floor)
            if self.reachable and not self.cut:
                assert not self.world.ask("EXISTS", *OTHERS)

    # What can be done. Each takes note first: at its points the change is committed.

    def switch(
        self,
        verb: str,
        chosen: Sequence[str],
        dry_run: bool = False,
        *,
        force: bool = False,
        timed: bool = False,
        reason: str | None = "because",
    ) -> None:
        """Disable (*force*: below the floor, or give an end; *timed*: for a time), enable or remove."""
        wanted = list(dict.fromkeys(chosen))
        how: dict[str, Any] = {"reason": reason, "dry_run": dry_run}
        if verb == "disable":
            how |= {"force": force, "duration": 7200 if timed else None}
        change: Callable[..., Any] = getattr(self.fleet, verb)
        # What is gone can be removed once more.
        gone = {row[0] for row in self.world.sql(KNOWN)} if verb == "remove" else set()
        if not self.rows.keys() | gone >= set(wanted):
            with pytest.raises(ModelNotFoundError):
                change(*chosen, **how)
            return
        leaving = sum(self.rows[i].active for i in wanted) if verb == "disable" else 0
        if leaving and self.active - leaving < self.least and not force:
            with pytest.raises(RefusedError):
                change(*chosen, **how)
            return
        before = self.switches()
        expected: list[Any] = []
        events = []
        for model_id in wanted:
            if model_id not in self.rows:
                expected.append((model_id, None, None, False))
                continue
            row = replace(self.rows[model_id]) if dry_run else self.rows[model_id]
            was = row.status
            event: str | None = "removed"
            if verb == "disable":
                event = row.disable(reason, timed=timed, force=force)
            elif verb == "enable":
                event = row.enable()
            elif not dry_run:
                del self.rows[model_id]
            after = None if verb == "remove" else row.status
            expected.append((model_id, was, after, event is not None))
            if event:
                events.append((model_id, event, was, after))
        if not dry_run:
            self.events += sorted(events)
            self.committed(before)
        floor = len(self.history) - 1
        self.world.warnings.clear()
        result = change(*chosen, **how)
        assert [(c.id, c.before, c.after, c.changed) for c in result.changes] == expected
        assert result.dry_run is dry_run
        self.owes(result.cache, floor, owed=not dry_run, changed=bool(events))

    def one(self, which: int) -> str:
        """One of the models that are there."""
        return sorted(self.rows)[which % len(self.rows)]

    def flip(self, which: int) -> None:
        """Disable a model that is on, enable one that is off."""
        if self.rows:
            model_id = self.one(which)
            self.switch("disable" if self.rows[model_id].active else "enable", [model_id])

    def repeat(self, which: int) -> None:
        """Enable a model that is on, disable one that is off already."""
        if self.rows:
            model_id = self.one(which)
            self.switch("enable" if self.rows[model_id].active else "disable", [model_id])

    def raw_flip(self, which: int) -> None:
        """Another program switches a model."""
        if self.rows:
            self.raw("swap", [self.one(which)])

    def record(self, model_id: str, failure: str | None, reason: str | None) -> None:
        """Record one outcome."""

        def product() -> Any:
            if failure is None:
                return self.fleet.record_success(model_id)
            return self.fleet.record_failure(model_id, failure, reason=reason)

        if model_id not in self.rows:
            with pytest.raises(ModelNotFoundError):
                product()
            return
        before = self.switches()
        row = self.rows[model_id]
        was = row.status
        if event := row.outcome(failure, reason, self.against(row)):
            self.events.append((model_id, event, was, row.status))
        self.committed(before)
        floor = len(self.history) - 1
        result = product()
        (change,) = result.changes
        expected = (model_id, was, row.status, was != row.status)
        assert (change.id, change.before, change.after, change.changed) == expected
        self.owes(result.cache, floor, owed=change.changed)

    def batch(self, batch: Sequence[tuple[Any, ...]]) -> None:
        """Record many outcomes in one transaction."""
        lines: list[dict[str, Any]] = [
            {"id": model_id, "outcome": "success"}
            if failure is None
            else {"id": model_id, "outcome": "failure", "type": failure, "reason": reason}
            for model_id, failure, reason in batch
        ]
        if not all(model_id in self.rows for model_id, _, _ in batch):
            with pytest.raises(ModelNotFoundError):
                self.fleet.record_batch(lines)
            return
        before = self.switches()
        was = {model_id: row.status for model_id, row in self.rows.items()}
        for model_id, failure, reason in batch:
            row = self.rows[model_id]
            status = row.status
            if event := row.outcome(failure, reason, self.against(row)):
                self.events.append((model_id, event, status, row.status))
        self.committed(before)
        floor = len(self.history) - 1
        result = self.fleet.record_batch(lines)
        assert result.recorded == len(batch)
        changes = [
            (model_id, was[model_id], self.rows[model_id].status, True)
            for model_id in sorted(self.rows)
            if was[model_id] != self.rows[model_id].status
        ]
        assert [(c.id, c.before, c.after, c.changed) for c in result.changes] == changes
        self.owes(result.cache, floor, owed=bool(changes))

    def recover(self, cooldown: float | None, limit: int | None, dry_run: bool) -> None:
        """Bring back the models whose cooldown is over: all of them (0), or those that rested."""
        since, until = "coalesce(last_failure_at, disabled_at, updated_at)", "disabled_until"
        since, until = (self.world.seconds(time) for time in (since, until))
        wait = 3600 if cooldown is None else cooldown
        order = self.world.sql(
            "SELECT id FROM models WHERE NOT active AND (auto_disabled OR disabled_until IS NOT NULL)"
            f" ORDER BY CASE WHEN auto_disabled THEN {since} + {wait} ELSE {until} END, id"
        )
        may = [i for (i,) in order]
        due = [i for i in may if self.is_due(self.rows[i], cooldown)][:limit]
        events = [(i, "recovered", self.rows[i].status, "active") for i in sorted(due)]
        if not dry_run:
            before = self.switches()
            for model_id in due:
                row = self.rows[model_id]
                if row.automatic:
                    row.on(in_a_row=2)
                    row.trusted = False
                else:
                    row.healthy()
            self.events += events
            self.committed(before)
        floor = len(self.history) - 1
        self.world.warnings.clear()
        result = self.fleet.recover(cooldown=cooldown, limit=limit, dry_run=dry_run)
        assert sorted(result.recovered) == sorted(due)
        assert not result.busy
        # Who waits is listed in the end; what ran in the middle may have changed that.
        assert self.cut or {w.id for w in result.waiting} == {*may} - {*due}
        self.owes(result.cache, floor, owed=not dry_run, changed=bool(due))

    def is_due(self, row: Row, cooldown: float | None) -> bool:
        """Whether recover brings a model back that is off."""
        over = (cooldown == 0 or row.rested) if row.automatic else row.over
        return over and not self.paused(row)

    def raw(self, verb: str, chosen: Sequence[str]) -> None:
        """Another program writes the table, one statement and transaction."""
        first, last = chosen[0], chosen[-1]
        before = self.switches()
        if verb == "insert":
            self.world.sql("INSERT INTO models (id) VALUES (?) ON CONFLICT DO NOTHING", first)
            self.rows.setdefault(first, Row())
        elif verb == "delete":
            self.world.sql("DELETE FROM models WHERE id = ?", first)
            self.rows.pop(first, None)
        else:
            assign = {
                "on": "active = true",
                "off": "active = false",
                "trip": "active = false, auto_disabled = true",
                "swap": "active = NOT active",
                "touch": "active = active",
            }[verb]
            both = (first, last) if verb == "swap" else (first,)
            places = ", ".join(["?"] * len(both))
            self.world.sql(f"UPDATE models SET {assign} WHERE id IN ({places})", *both)
            for model_id in set(both) & self.rows.keys():
                row = self.rows[model_id]
                if verb == "trip":
                    row.automatic = True
                on = {"on": True, "swap": not row.active, "touch": row.active}.get(verb, False)
                if on and not row.active:
                    row.on()  # the trigger trusts whoever is switched on
                if row.active and not on:
                    row.would_disable = None
                row.active = on
        self.committed(before)

    def count(self, how: str) -> None:
        """Count, and look whether the number may be answered."""
        floor, now = self.floor, len(self.history) - 1
        held = self.reachable and self.world.ask("EXISTS", LEASE)
        self.world.warnings.clear()
        found = self.fleet.count(fresh=how == "fresh", strong=how == "strong")
        right = self.history[floor if how == "plain" else now :]
        assert found.active in right, f"{how}: {found}, right: {right}"
        if self.cut or not self.with_redis:
            return
        if self.away:
            assert found.source == "database"
            assert self.world.warnings
        elif found.source == "database" and not held:
            # The number is there for the next one, and nothing older; what is queued stays.
            self.floor = now
            assert self.world.ask("GET", KEY) == str(found.active)
            assert 0 < self.world.ask("PTTL", VOUCH) <= 60_000
            again = self.fleet.count()
            assert (again.active, again.source) == (found.active, "cache")
        assert self.away or not self.world.warnings

    def deliver(self, how: str) -> None:
        """Deliver what is due (drain), or invalidate in any case (clear_cache)."""
        floor, due = len(self.history) - 1, self.queued + self.ripe
        product = getattr(self.fleet, how)
        if self.away and (due or how == "clear_cache"):
            with pytest.raises(StaleCacheError):
                product()
            return
        try:
            result = product()
        except StaleCacheError:
            assert self.cut
            return
        if how == "clear_cache" or due:
            self.delivered(floor)
        if self.cut:
            return
        worked = how == "clear_cache" or due
        assert result.cache is (CacheState.INVALIDATED if worked else CacheState.UNCHANGED)
        assert (result.delivered, result.queued) == (due, 0)

    def fifteen_seconds(self) -> None:
        """Settle passes are due, and a program that counted before the deliveries writes no more."""
        self.world.sql("UPDATE modelctl_outbox SET due = clock_timestamp() WHERE settle")
        self.ripe = self.settling
        self.foreign = [half for half in self.foreign if not half.old]

    def foreign_read(self) -> None:
        """Another program misses K and counts."""
        sql = "SELECT count(*) FROM models WHERE active = true"
        self.foreign.append(Foreign(self.world.sql(sql)[0][0]))

    def foreign_write(self, which: int, for_ever: bool) -> None:
        """It writes K, within 15 s of its count; and what else it caches."""
        if not self.reachable or not self.foreign:
            return
        half = self.foreign.pop(which % len(self.foreign))
        if for_ever:
            self.world.ask("SET", KEY, half.number)
            assert self.cut or self.fleet.verify().cached in {None, *self.believable}
        else:
            self.world.ask("SETEX", KEY, 60, half.number)
        for name in OTHERS:
            self.world.ask("SET", name, "{}", "EX", 300)

    def foreign_delete(self) -> None:
        """It deletes K."""
        if self.reachable:
            self.world.ask("DEL", KEY)

    def expire(self, key: str) -> None:
        """A key reaches its time to live."""
        if self.reachable:
            self.world.ask("DEL", key)

    def wipe(self) -> None:
        """Redis loses everything."""
        if self.reachable:
            self.world.ask("FLUSHALL")

    def leave(self) -> None:
        """Redis goes away."""
        if self.world.server is not None and not self.away:
            self.world.server.stop()
            self.away = True
