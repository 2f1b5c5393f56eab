"""The rules of the state machine: what the commands, other programs and faults do."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from modelctl import crash_points
from modelctl.count import protocol
from modelctl.count.cache import Hit
from modelctl.errors import ModelNotFoundError, RefusedError, StaleCacheError
from modelctl.model import ModelStatus
from tests.faults.machine import Machine
from tests.faults.oracle import COUNTED, EVENTS, IDS, ROWS, Reader, Row, deliveries, ids, rarely
from tests.fleets import ago, is_sqlite
from tests.replay import TOLD, replay
from tests.world import KEY, LEASE

NAMES = ("", "One", "Two")
UNCOUNTED = ("rate-limit", "timeout", "server-error", "network-error", "unknown")


# ── Strategies ──────────────────────────────────────────────────────────────────────────────────


some_ids = st.lists(ids, min_size=1, max_size=3)
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


class FleetRules(Machine):
    """What concerns the count on every database."""

    @rule(which=st.integers(0, 2), already=rarely, how=st.none() | counts)
    def changing(self, which: int, already: bool, how: str | None) -> None:
        """Change one status, or none (the last change may have died), and perhaps count."""
        if already:
            self.repeat(which)
        else:
            self.flip(which)
        if how:
            self.count(how)

    @rule(which=st.integers(0, 2), how=st.none() | counts)
    def raw_changing(self, which: int, how: str | None) -> None:
        """Another program changes one status, and perhaps a count follows."""
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
        if not is_sqlite(self.world.database):
            said = {model_id: row.status for model_id, row in self.rows.items()}
            assert replay(self.world.sql(TOLD)) == said

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
            (e.model_id or "", e.event, e.before, e.after)
            for e in self.fleet.events(limit=1000)
            if e.operation
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
