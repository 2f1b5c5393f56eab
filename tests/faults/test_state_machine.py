"""A fleet used in random ways beside other programs, checked against a plain dict after each step.

Two things may go on at the same time: readers and other programs are cut into their steps, and
an operation can run in the middle of another one, at the points that the product names. Time
does not pass by itself: keys expire and the 15 s of the settle pass are over when a rule says so,
only when the two times the protocol counts on allow it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from modelctl import crash_points
from modelctl.count import outbox, protocol
from modelctl.count.cache import Hit
from modelctl.errors import ModelNotFoundError, RefusedError, StaleCacheError
from modelctl.model import CacheState, ModelStatus
from tests.fleets import ACTOR, ago, is_sqlite
from tests.servers import Redis
from tests.world import KEY, LEASE, VOUCH, World

IDS = ("a", "A", "hf:org/\u00fc m")
NAMES = ("", "One", "Two")
COUNTED = ("parse-error", "client-error")
UNCOUNTED = ("rate-limit", "timeout", "server-error", "network-error", "unknown")
OTHERS = ("db:stats:overall", "db:leaderboard:all", "db:leaderboard:top:10")


# ── What is under test, and the other programs ──────────────────────────────────────────────────


class MachineWorld(World):
    """A world in which the same models have a fleet for each floor (``recovery.min_active``).

    *server* is the Redis of the world, None: SQLite, without Redis.
    """

    def __init__(self, database: str, server: Redis | None = None) -> None:
        super().__init__(database, server.url() if server else "")
        self.server = server
        self.fleets = {0: self.fleet, 1: self.another(recovery_min_active=1)}

    def seconds(self, column: str) -> str:
        """Return a column of times in seconds, as an expression."""
        if is_sqlite(self.database):
            return f"((julianday({column}) - 2440587.5) * 86400.0)"
        return f"extract(epoch FROM {column})"

    def clear(self) -> None:
        """Forget everything that an example did."""
        crash_points.hook = None
        for table in ("models", "modelctl_events", "modelctl_holds"):
            self.sql(f"DELETE FROM {table}")
        self.forget()
        if self.server is not None:
            self.server.recover()
            self.ask("FLUSHALL")
        self.warnings.clear()


@dataclass
class Row:
    """What is promised of one model."""

    name: str = ""
    provider: str = ""
    active: bool = True
    automatic: bool = False
    in_a_row: int = 0
    ejections: int = 0
    successes: int = 0
    failures: int = 0
    failure_type: str | None = None
    failure_reason: str | None = None
    disabled_by: str | None = None
    disabled_reason: str | None = None
    would_disable: str | None = None
    timed: bool = False  # it was disabled for a time, which
    over: bool = field(default=False, compare=False)  # is over
    rested: bool = field(default=False, compare=False)  # its last failure was hours ago
    trusted: bool = field(default=True, compare=False)  # it has been back for hours
    switches: int = field(default=0, compare=False)  # how often it was switched, on or off

    @property
    def status(self) -> str:
        """Active wins, then auto-disabled."""
        return "active" if self.active else "auto-disabled" if self.automatic else "disabled"

    def on(self, in_a_row: int | None = None) -> None:
        """Switch it on, whoever does it; None: the failures stay."""
        self.active, self.automatic, self.would_disable, self.timed = True, False, None, False
        self.disabled_by = self.disabled_reason = None
        self.switches += 1
        if in_a_row is not None:
            self.in_a_row = in_a_row

    def healthy(self) -> None:
        """Switch it on as one that never failed."""
        self.on(in_a_row=0)
        self.ejections, self.trusted = 0, False

    def off(self, by: str | None, reason: str | None, *, automatic: bool = False) -> None:
        """Switch it off."""
        self.active, self.automatic, self.would_disable, self.timed = False, automatic, None, False
        self.disabled_by, self.disabled_reason = by, reason
        self.switches += 1

    def enable(self) -> str | None:
        """Switch it on by hand, or let it start afresh; return the event, if any."""
        if self.active:
            self.in_a_row, self.ejections, self.would_disable = 0, 0, None
            return None
        self.healthy()
        return "enabled"

    def disable(self, reason: str | None, *, timed: bool, force: bool) -> str | None:
        """Switch it off by hand; return the event, if any."""
        reason = reason or None  # an empty reason is none
        was, why = self.status, self.disabled_reason
        if was == "disabled" and timed and not self.timed and not force:
            return None
        if was == "active":
            self.off(ACTOR, reason)
        elif was == "auto-disabled":
            self.automatic, self.disabled_by, self.would_disable = False, ACTOR, None
        if reason is not None:
            self.disabled_reason = reason
        moved = timed or self.timed
        self.timed, self.over = timed, False
        if was == "disabled" and not moved:
            return "updated" if self.disabled_reason != why else None
        return "disabled"

    def outcome(self, failure: str | None, reason: str | None, against: str | None) -> str | None:
        """Record a success (None) or a failure; return the event, if any.

        *against*: why it is not to be switched now.
        """
        reason = reason or None
        if failure is None:
            self.successes += 1
            self.in_a_row, self.failure_reason, self.would_disable = 0, None, None
            if self.active and self.trusted:
                self.ejections = 0
            if self.status != "auto-disabled" or against == "paused":
                return None
            self.on()
            self.trusted = False
            return "recovered"
        self.failures += 1
        self.failure_type, self.failure_reason, self.rested = failure, reason, False
        if failure not in COUNTED:
            return None
        self.in_a_row += 1
        if not self.active or self.in_a_row < 5:
            return None
        if against:
            news = self.would_disable is None
            self.would_disable = against
            return "would-disable" if news else None
        why = failure if reason is None else reason
        self.off("health rule", why, automatic=True)
        self.ejections += 1
        return "auto-disabled"


@dataclass
class Foreign:
    """Another program that has counted and not written yet."""

    number: int
    old: bool = False  # an invalidation happened since


@dataclass
class Reader:
    """One of our own readers that holds, or held, the lease; None: it has not counted yet."""

    token: str
    number: int | None = None


ROWS = (
    "SELECT id, display_name, provider, active, auto_disabled, consecutive_failures, ejections,"
    " success_count, failure_count, failure_type, failure_reason, disabled_by, disabled_reason,"
    " would_disable, disabled_until IS NOT NULL FROM models"
)
EVENTS = "SELECT model_id, event, before, after FROM modelctl_events ORDER BY id"


# ── Strategies ──────────────────────────────────────────────────────────────────────────────────

ids = st.sampled_from(IDS)
some_ids = st.lists(ids, min_size=1, max_size=3)
rarely = st.sampled_from([False, False, False, True])
verbs = st.sampled_from(["disable", "disable", "enable", "enable", "remove"])
raw_verbs = st.sampled_from(["on", "off", "off", "trip", "insert", "delete", "swap", "touch"])
counts = st.sampled_from(["plain", "fresh", "strong"])
failure_types = st.sampled_from([*COUNTED, *COUNTED, *UNCOUNTED])
reasons = st.sampled_from([None, "", "no JSON"])
# So many in a row, because five are needed to see anything.
times = st.sampled_from([1, 1, 3, 4, 5])
outcomes = st.lists(
    st.tuples(st.integers(0, 3), st.none() | failure_types, reasons, times), min_size=1, max_size=4
)
# A model as an example finds it: its status, and its failures in a row.
starts = st.tuples(
    st.sampled_from(["active", "active", "disabled", "auto-disabled"]), st.sampled_from([0, 4, 4])
)
deliveries = st.sampled_from(["drain", "clear_cache"])
floors = st.sampled_from([0, 1])


def call(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """The name of a method of the machine and arguments for it."""
    return st.tuples(st.just(name), *arguments)


# What can be cut in two.
change_calls = st.one_of(
    call("flip", st.integers(0, 2)),
    call("repeat", st.integers(0, 2)),
    call("deliver", deliveries),
    call("recover", st.just(0), st.none(), st.just(False)),
)
# What can happen there.
inners = st.one_of(
    call("flip", st.integers(0, 2)),
    call("raw_flip", st.integers(0, 2)),
    call("flip", st.integers(0, 2)),
    call("raw_flip", st.integers(0, 2)),
    call("count", counts),
    call("foreign_read"),
    call("foreign_write", st.just(0), st.just(False)),
    call("deliver", deliveries),
    call("expire", st.sampled_from([KEY, LEASE])),
    call("wipe"),
    call("leave"),
)


def cuttings(*where: str) -> st.SearchStrategy[list[tuple[str, tuple[Any, ...]]]]:
    """What happens at which of these points."""
    return st.lists(st.tuples(st.sampled_from(where), inners), min_size=1, max_size=4)


# A change is committed at all of these; before its COMMIT it holds locks. A count that finds
# something queued forgets what is cached.
DELIVERY = ("after-due", "after-del", "in-sweep", "before-settle")
in_a_change = cuttings("after-commit", *DELIVERY)
in_a_count = cuttings("after-lease", "after-snapshot", "after-del", "in-fill")


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
        """Take note of a change, made by one statement, of who is counted."""
        if before == self.switches():
            return
        self.history.append(self.active)
        if self.with_redis:
            self.queued += 1
            self.written += 1
        else:
            self.floor = len(self.history) - 1

    def switches(self) -> dict[str, bool]:
        """Who is there, and whether it is counted."""
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
        gone = {event[0] for event in self.events} if verb == "remove" else set()
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
        """Bring back whose cooldown is over: all of them (0), or those that rested."""
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
        """Settle passes are due, and who counted before the deliveries writes no more."""
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


class FleetRules(Machine):
    """What concerns the count on every database."""

    @rule(which=st.integers(0, 2), already=rarely, how=st.none() | counts)
    def changing(self, which: int, already: bool, how: str | None) -> None:
        """Change one status, or none (whoever did before may have died), and perhaps count."""
        if already:
            self.repeat(which)
        else:
            self.flip(which)
        if how:
            self.count(how)

    @rule(which=st.integers(0, 2), how=st.none() | counts)
    def raw_changing(self, which: int, how: str | None) -> None:
        """Another program changes one status, and perhaps somebody counts."""
        self.raw_flip(which)
        if how:
            self.count(how)

    @rule(how=counts)
    def counting(self, how: str) -> None:
        """Count."""
        self.count(how)

    @rule(which=st.integers(0, 2), begin=rarely)
    def reader(self, which: int, begin: bool) -> None:
        """One of our readers makes one step: lease, count, fill; others may come in between."""
        cache, database = self.fleet._cached_count.cache, self.fleet._store.outbox
        with contextlib.suppress(*([StaleCacheError] if self.away else [])):
            if not self.readers or (begin and len(self.readers) < 3):
                found = protocol.read(cache)
                if isinstance(found, Hit):
                    assert found.active in self.believable
                elif found.token is not None:
                    self.readers.append(Reader(found.token))
                return
            reader = self.readers.pop(which % len(self.readers))
            if reader.number is not None:
                cache.fill(reader.token, reader.number)
                return
            reader.number, owed, _ = database.count()
            assert reader.number == self.active
            if owed:  # it forgets what is cached, and begins again
                assert self.queued or self.ripe
                cache.forget()
                token = cache.lease()
                if token is None:
                    return
                reader = Reader(token, database.count()[0])
            self.readers.append(reader)

    @rule(how=counts, inner=in_a_count)
    def interrupted_count(self, how: str, inner: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Something happens in the middle of a count."""
        self.interrupted(("count", how), inner)

    @rule(outer=change_calls, inner=in_a_change)
    def interrupted_change(
        self, outer: tuple[Any, ...], inner: list[tuple[str, tuple[Any, ...]]]
    ) -> None:
        """Something happens in the middle of a change or a delivery."""
        self.interrupted(outer, inner)

    def interrupted(self, outer: tuple[Any, ...], inner: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Do *outer*, and each of *inner* at its point."""
        kept, written = self.queued + self.settling - self.ripe, self.written
        waiting = list(inner)

        def hook(name: str) -> None:
            crash_points.hook = None
            for cutting in [cutting for cutting in waiting if cutting[0] == name]:
                waiting.remove(cutting)
                self.look_again(kept, written)
                self.cut = False
                self.do(cutting[1])
                self.cut = True
            crash_points.hook = hook

        crash_points.hook = hook
        try:
            self.do(outer)
        finally:
            crash_points.hook = None
        if self.cut:
            self.cut = False
            self.look_again(kept, written)

    def do(self, step: tuple[Any, ...]) -> None:
        """Call what a strategy chose."""
        name, *arguments = step
        getattr(self, name)(*arguments)

    def look_again(self, kept: int, written: int) -> None:
        """Ask the outbox how far it is after two things at once."""
        if not self.with_redis:
            return
        self.queued, self.settling, self.ripe = self.world.sql(
            "SELECT count(*) FILTER (WHERE NOT settle), count(*) FILTER (WHERE settle),"
            " count(*) FILTER (WHERE settle AND due <= clock_timestamp()) FROM modelctl_outbox"
        )[0]
        # No 15 s were over meanwhile.
        kept += self.written - written
        assert self.queued + self.settling >= kept, "a row went without its settle pass"
        if not self.queued:
            self.floor = len(self.history) - 1
        for half in self.foreign:
            half.old = True

    # What is true after each step

    @invariant()
    def rows_and_events(self) -> None:
        """The rows and their whole history are those of the oracle."""
        rows = {model_id: Row(*columns) for model_id, *columns in self.world.sql(ROWS)}
        assert rows == self.rows
        assert self.world.sql(EVENTS) == self.events

    @invariant()
    def facts_are_not_rewritten(self) -> None:
        """Since when a model is off stays, whatever is said of it, until it is switched again."""
        found = dict(self.world.sql("SELECT id, disabled_at FROM models"))
        for model_id, (row, switches, at) in self.since.items():
            now = self.rows.get(model_id)
            if now is row and row.switches == switches and at is not None:
                assert found[model_id] == at
        self.since = {
            i: (row, row.switches, found[i]) for i, row in self.rows.items() if not row.active
        }

    @invariant()
    def count_is_believable(self) -> None:
        """The database's count is right, and the cached one may be believed."""
        self.world.warnings.clear()
        verified = self.fleet.verify()
        assert verified.database == self.active == self.history[-1]
        if self.away:
            assert verified.cached is None
            assert self.world.warnings
        assert verified.cached is None or verified.cached in self.believable
        assert verified.match is (verified.cached in (None, self.active))
        if not self.queued:
            assert verified.match, "all is delivered, and a wrong number is believed"
        self.world.warnings.clear()


class StatusRules(FleetRules):
    """What makes a status, and shows it."""

    @rule(verb=verbs, chosen=some_ids, dry_run=rarely)
    def switching(self, verb: str, chosen: list[str], dry_run: bool) -> None:
        """Disable, enable or remove, also repeated and unknown ones."""
        self.switch(verb, chosen, dry_run)

    @rule(
        chosen=some_ids,
        timed=st.booleans(),
        force=st.booleans(),
        reason=reasons,
        dry_run=rarely,
    )
    def disabling(
        self, chosen: list[str], timed: bool, force: bool, reason: str | None, dry_run: bool
    ) -> None:
        """Disable, perhaps for a time, perhaps below the floor or what is disabled for good."""
        self.switch("disable", chosen, dry_run, force=force, timed=timed, reason=reason)

    @rule(which=st.integers(0, 2), again=st.booleans())
    def disabling_for_a_time(self, which: int, again: bool) -> None:
        """Disable one for a time, which passes, perhaps only after recover looked once."""
        if not self.rows:
            return
        model_id = self.one(which)
        self.switch("disable", [model_id], force=True, timed=True)
        if again:
            self.recover(None, None, False)
        self.time_over(model_id)
        self.recover(None, None, False)

    @rule(model_id=ids)
    def time_over(self, model_id: str) -> None:
        """The time is over for which one model was disabled."""
        sql = f"UPDATE models SET disabled_until = {ago(self.world.database, 7200)}"
        self.world.sql(f"{sql} WHERE id = ? AND disabled_until IS NOT NULL", model_id)
        if model_id in self.rows:
            self.rows[model_id].over = self.rows[model_id].timed

    @rule(
        provider=st.none() | st.sampled_from(NAMES),
        pause=st.booleans(),
        used=st.booleans(),
        failure=st.none() | st.sampled_from(COUNTED),
    )
    def pausing(self, provider: str | None, pause: bool, used: bool, failure: str | None) -> None:
        """Pause automatic switching, of all or of a provider, or resume it; then models are used."""
        was = provider in self.pauses
        if pause:
            self.pauses.add(provider)
            result = self.fleet.pause(7200, provider=provider)
        else:
            self.pauses.discard(provider)
            result = self.fleet.resume(provider=provider)
        assert (result.provider, result.paused, result.changed) == (provider, pause, pause or was)
        if result.changed:
            self.events.append(("", "paused" if pause else "resumed", None, None))
        assert {hold.provider for hold in self.fleet.holds()} == self.pauses
        for model_id in sorted(self.rows) if used else ():
            for _ in range(5 if failure else 1):
                self.record(model_id, failure, None)

    @rule(model_id=ids, name=st.sampled_from(NAMES), provider=st.sampled_from(NAMES))
    def add(self, model_id: str, name: str, provider: str) -> None:
        """Add a model; one that is there stays as it is."""
        before = self.switches()
        was = self.rows.get(model_id)
        row = self.rows.setdefault(model_id, Row(name=name, provider=provider))
        if was is None:
            self.events.append((model_id, "added", None, "active"))
        self.committed(before)
        self.world.warnings.clear()
        result = self.fleet.add(model_id, name=name, provider=provider)
        (change,) = result.changes
        assert (change.before, change.after) == (was and was.status, row.status)
        assert change.changed is (was is None)
        self.owes(result.cache, len(self.history) - 1, owed=True, changed=was is None)

    @rule(
        entries=st.dictionaries(
            ids, st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=3
        ),
        policy=st.sampled_from(["update", "skip", "fail"]),
        dry_run=rarely,
    )
    def importing(self, entries: dict[str, tuple[str, str]], policy: str, dry_run: bool) -> None:
        """Import a catalogue: names and providers change, never a status."""
        catalog = "\n".join(
            json.dumps({"id": i, "name": name, "provider": provider})
            for i, (name, provider) in entries.items()
        ).encode()
        added = sorted(entries.keys() - self.rows.keys())
        differing = []
        for i in sorted(entries.keys() & self.rows.keys()):
            name, provider = entries[i]
            row = self.rows[i]
            if (name or row.name, provider or row.provider) != (row.name, row.provider):
                differing.append(i)
        if differing and policy == "fail":
            with pytest.raises(RefusedError):
                self.fleet.import_models(catalog, on_conflict=policy, dry_run=dry_run)
            return
        updated = differing if policy == "update" else []
        if not dry_run:
            before = self.switches()
            for i in updated:
                row = self.rows[i]
                row.name, row.provider = entries[i][0] or row.name, entries[i][1] or row.provider
                self.events.append((i, "updated", row.status, row.status))
            for i in added:
                self.rows[i] = Row(name=entries[i][0], provider=entries[i][1])
                self.events.append((i, "added", None, "active"))
            self.committed(before)
        self.world.warnings.clear()
        result = self.fleet.import_models(catalog, on_conflict=policy, dry_run=dry_run)
        assert (result.added, result.updated) == (len(added), len(updated))
        assert result.skipped == len(differing) - len(updated)
        assert result.unchanged == len(entries) - len(added) - len(differing)
        changed = bool(added or differing)
        self.owes(result.cache, len(self.history) - 1, owed=not dry_run, changed=changed)

    @rule(model_id=ids)
    def success(self, model_id: str) -> None:
        """Record a success."""
        self.record(model_id, None, None)

    @rule(model_id=ids, failure=failure_types, reason=reasons, often=times)
    def failures(self, model_id: str, failure: str, reason: str | None, often: int) -> None:
        """Record up to five failures in a row, one by one."""
        for _ in range(often):
            self.record(model_id, failure, reason)

    @rule(batch=outcomes)
    def recording(self, batch: list[tuple[int, str | None, str | None, int]]) -> None:
        """Record a batch."""
        self.batch(
            [
                (self.one(which) if self.rows and which < 3 else IDS[0], *outcome)
                for which, *outcome, often in batch
                for _ in range(often)
            ]
        )

    @rule(
        cooldown=st.sampled_from([0, 0, None]), limit=st.sampled_from([None, None, 1]), dry=rarely
    )
    def recovering(self, cooldown: int | None, limit: int | None, dry: bool) -> None:
        """Recover, with the cooldown that is configured or none."""
        self.recover(cooldown, limit, dry)

    @rule(model_id=ids)
    def rest(self, model_id: str) -> None:
        """Two hours pass for one model that failed, and may have come back."""
        past = ago(self.world.database, 7200)
        sql = f"UPDATE models SET last_failure_at = {past}, recovered_at = {past} WHERE id = ?"
        self.world.sql(sql, model_id)
        if model_id in self.rows:
            self.rows[model_id].rested = self.rows[model_id].trusted = True

    @rule(verb=raw_verbs, chosen=some_ids)
    def raw_sql(self, verb: str, chosen: list[str]) -> None:
        """Another program changes the table."""
        self.raw(verb, chosen)

    @rule(model_id=ids, status=st.sampled_from(ModelStatus))
    def look(self, model_id: str, status: ModelStatus) -> None:
        """The other reads agree with the rows."""
        if model_id in self.rows:
            row, shown = self.rows[model_id], self.fleet.show(model_id)
            assert shown.status == row.status
            assert (shown.retry_at is not None) is (row.automatic or row.timed)
            pauses = [h.until for h in self.fleet.holds() if h.provider in (None, row.provider)]
            assert shown.retry_at is None or all(shown.retry_at >= until for until in pauses)
            back = not row.active and (row.automatic or row.timed) and self.is_due(row, None)
            assert any("brings it back" in words for words in shown.explanation) is back
        else:
            with pytest.raises(ModelNotFoundError):
                self.fleet.show(model_id)
        told = [
            (e.model_id or "", e.event, e.before, e.after) for e in self.fleet.events(limit=1000)
        ]
        assert told == self.events[::-1]
        wanted = sorted(i for i, row in self.rows.items() if row.status == status)
        assert [model.id for model in self.fleet.list_models(status=status)] == wanted
        statuses = [row.status for row in self.rows.values()]
        stats = self.fleet.stats()
        assert (stats.models, stats.active) == (len(statuses), statuses.count("active"))
        off = statuses.count("disabled"), statuses.count("auto-disabled")
        assert (stats.disabled, stats.auto_disabled) == off
        assert stats.success_count == sum(row.successes for row in self.rows.values())
        assert stats.failure_count == sum(row.failures for row in self.rows.values())

        def place(model_id: str) -> tuple[float, int, str]:
            row = self.rows[model_id]
            good, bad, z = row.successes, row.failures, 1.959964
            if not good:
                return 0.0 if bad else 1.0, bad, model_id
            spread = z * (good * bad / (good + bad) + z * z / 4) ** 0.5
            return -(good + z * z / 2 - spread) / (good + bad + z * z), bad, model_id

        best = sorted((i for i, row in self.rows.items() if row.active), key=place)
        assert [entry.id for entry in self.fleet.leaderboard(untested=True)] == best


class RedisMachine(FleetRules):
    """PostgreSQL and Redis, which expires, is wiped and goes away, and programs that share K."""

    @rule(how=deliveries, later=st.booleans())
    def delivering(self, how: str, later: bool) -> None:
        """Deliver what is due, perhaps 15 s after the last time."""
        if later:
            self.fifteen_seconds()
        self.deliver(how)

    @rule(read=st.booleans(), which=st.integers(0, 2), for_ever=rarely)
    def another_program(self, read: bool, which: int, for_ever: bool) -> None:
        """Another program counts, or writes what it counted earlier."""
        if read or not self.foreign:
            self.foreign_read()
        else:
            self.foreign_write(which, for_ever)

    @rule(fault=st.sampled_from([KEY, LEASE, VOUCH, "foreign_delete", "wipe", "leave"]))
    def losing(self, fault: str) -> None:
        """A key expires or is deleted, Redis is wiped or goes away; or it comes back empty."""
        if self.away and self.world.server is not None:
            self.world.server.start()
            self.away = False
        elif fault in (KEY, LEASE, VOUCH):
            self.expire(fault)
        else:
            self.do((fault,))

    @invariant()
    def outbox(self) -> None:
        """The outbox has the rows it should; empty, K is right for everybody."""
        assert self.fleet._store.outbox.queue()[:2] == (self.queued, self.settling)
        if not (self.away or self.queued or self.settling):
            assert self.world.ask("GET", KEY) in (None, str(self.active))


class WholeMachine(StatusRules, RedisMachine):
    """All of it."""


class SqliteMachine(StatusRules):
    """SQLite, whose cache lies in the same file and is always right."""

    @invariant()
    def always_right(self) -> None:
        """Whatever another program wrote, a plain count is right."""
        assert self.believable == {self.active}


# ── The tests ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by rule: no retries, no polls, and 15 s are never over by themselves."""
    monkeypatch.setattr(protocol, "INVALIDATE_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(protocol, "WARN_SECONDS", 0)
    monkeypatch.setattr(outbox, "SETTLE_SECONDS", 3600)


@pytest.fixture
def redis_world(
    pg_database: str, redis_server: Redis, redis_url: str, _no_waiting: None
) -> Iterator[MachineWorld]:
    """Give a fleet on PostgreSQL and Redis."""
    with MachineWorld(pg_database, redis_server) as world:
        yield world


@pytest.fixture
def sqlite_world(sqlite_database: str, _no_waiting: None) -> Iterator[MachineWorld]:
    """Give a fleet on SQLite."""
    with MachineWorld(sqlite_database) as world:
        yield world


def explore(
    machine: type[Machine], world: MachineWorld, examples: int, *, random: bool = False
) -> None:
    """Run so many examples: always the same ones, or others each time."""
    # Any function that makes one will do, although the types say class.
    make = cast("type[Machine]", lambda: machine(world))
    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            derandomize=not random,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


EXAMPLES = [(RedisMachine, 40), (WholeMachine, 25)]


# A failure is made smaller before it is shown, which takes minutes.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("machine", "examples"), EXAMPLES)
def test_postgresql_and_redis(
    redis_world: MachineWorld, machine: type[Machine], examples: int
) -> None:
    """Whatever happens in whatever order, rows, events, outbox and every count are right."""
    explore(machine, redis_world, examples)


@pytest.mark.timeout(900)
def test_sqlite(sqlite_world: MachineWorld) -> None:
    """The same on SQLite, where a count is right at once, whoever changed the table."""
    explore(SqliteMachine, sqlite_world, 20)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("machine", "examples"), EXAMPLES)
def test_postgresql_and_redis_for_long(
    redis_world: MachineWorld, machine: type[Machine], examples: int
) -> None:
    """The same with 25 times as many examples, others each time."""
    explore(machine, redis_world, 25 * examples, random=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sqlite_for_long(sqlite_world: MachineWorld) -> None:
    """The same with twenty times as many examples, others each time."""
    explore(SqliteMachine, sqlite_world, 20 * 20, random=True)
