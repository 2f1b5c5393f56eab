"""Doctor: looks at everything once and says what is wrong; changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modelctl.config import Config, mask_url
from modelctl.errors import ModelctlError
from modelctl.reports import Audit, Check, Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from modelctl.count.protocol import CachedCount
    from modelctl.store import ModelStore

AUDIT_COMPARISONS = 2
AUDIT_PAUSE_SECONDS = 5.0


class Doctor:
    """The checks of ``modelctl doctor``."""

    def __init__(
        self, config: Config, store: Callable[[], ModelStore], cached_count: CachedCount
    ) -> None:
        """*store*: connects when it is called."""
        self._config = config
        self._open_store = store
        self._cached_count = cached_count

    @property
    def _store(self) -> ModelStore:
        return self._open_store()

    def look(self, *, audit: bool = False) -> Diagnosis:
        """Run all checks; *audit*: also compare the cached count with the database."""
        checks = [Check("configuration", True, str(self._config.file or "no file"))]
        found = None
        try:
            checks += self._database()
        except ModelctlError as exc:
            checks = [check for check in checks if check.check != "database"]
            checks.append(Check("database", False, _told(exc)))
        if audit:
            try:
                found = self._audit()
                detail = f"{found.differed} of {found.comparisons} comparisons differed"
                checks.append(Check("audit", found.differed < found.comparisons, detail))
            except ModelctlError as exc:
                checks.append(Check("audit", False, _told(exc)))
        checks.append(self._cache())
        return Diagnosis(all(check.ok for check in checks), tuple(checks), found)

    def _database(self) -> Iterator[Check]:
        from modelctl import migrations

        store = self._store
        where = mask_url(self._config.database.url) or str(self._config.sqlite_path)
        yield Check("database", True, f"{store.version()}, {where}")
        schema = store.schema(migrations.status)
        where = f"{schema.current or 'none'}, this release has {schema.head}"
        yield Check("schema", schema.up_to_date, where)
        if not schema.up_to_date:
            return
        broken = [name for name, well in store.schema(migrations.triggers).items() if not well]
        detail = f"missing or disabled: {', '.join(broken)}" if broken else "all there"
        yield Check("triggers", not broken, detail)
        queued, settling, age = store.outbox.queue()
        if self._cached_count.cache.needs_delivery:
            # The next change or recover would deliver them: older means that none could.
            late = age is not None and age > self._config.cache.ttl
            oldest = f", the oldest {age:.0f} s old" if age is not None else ""
            yield Check("queue", not late, f"{queued} queued{oldest}, {settling} settling")
        odd = store.contradictory()
        detail = f"{odd} both active and auto-disabled" if odd else "consistent"
        yield Check("rows", not odd, detail)
        yield from self._recovery()

    def _recovery(self) -> Iterator[Check]:
        from modelctl.explain import describe
        from modelctl.recovery import CLOCK_SKEW_SECONDS

        recovery, rule = self._store.recovery, self._config.recovery
        last = recovery.last_run()
        ago = last.seconds_ago
        if ago is None:
            ran = "never ran"
        elif ago < -CLOCK_SKEW_SECONDS:
            ran = f"last finished {-ago:.0f} s in the future: the database's clock was set back"
        else:
            ran = f"last finished {max(0.0, ago):.0f} s ago"
        expected = f", expected every {rule.expect_every:.0f} s" if rule.expect_every else ""
        yield Check("recover", not last.overdue, ran + expected)
        holds = "; ".join(map(describe, recovery.holds()))
        yield Check("holds", True, holds or "nothing is paused, no incident")
        spared = [f"{model_id} ({why})" for model_id, why in recovery.spared()]
        yield Check("spared", True, f"would be off: {_some(spared)}" if spared else "none")
        waiting = recovery.for_a_person()
        yield Check("ejected", True, f"wait for a person: {_some(waiting)}" if waiting else "none")
        guards = {
            "min_active": rule.min_active > 0,
            "max_auto_disabled_percent": rule.max_auto_disabled_percent < 100,
            "incident_models": rule.incident_models > 0,
            "max_ejections": rule.max_ejections > 0,
            "limit": rule.limit > 0,
            "cooldown_factor": rule.cooldown_factor > 1,
            "expect_every": rule.expect_every > 0,
        }
        off = ", ".join(name for name, on in guards.items() if not on)
        detail = f"off: {off}; config.example.toml has a recommended set" if off else "all are on"
        yield Check("guards", True, detail)

    def _cache(self) -> Check:
        cache = self._cached_count.cache
        if not cache.needs_delivery:
            return Check("cache", True, cache.place)
        try:
            cache.keys()
            # What a change and a fill need: reading alone would say that all is well.
            if token := cache.lease():
                cache.release(token)
        except ModelctlError as exc:
            return Check("cache", False, _told(exc))
        return Check("cache", True, f"Redis answers, {cache.place}")

    def _audit(self) -> Audit:
        from modelctl import migrations

        differed = 0
        for comparison in range(AUDIT_COMPARISONS):
            if comparison:
                time.sleep(AUDIT_PAUSE_SECONDS)
            differed += not self._cached_count.verify().match
        well = all(self._store.schema(migrations.triggers).values())
        return Audit(AUDIT_COMPARISONS, differed, self._store.outbox.queue()[2], well)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")


def _told(exc: ModelctlError) -> str:
    return f"{exc.message}; {exc.hint}" if exc.hint else exc.message
