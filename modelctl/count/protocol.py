"""CachedCount: how the number of active models is kept true, step by step.

Read it beside docs/decisions.md, "How is the cached count kept true?": the steps have the same
names and the same order there. `Cache` holds the count; `Outbox` counts in the database, and holds
the invalidations that changes still have to deliver to the cache.

A count: peek at the cache; else take the lease, count in the database, fill the cache.
A change: commit (a trigger writes a row of the outbox in the same transaction), then invalidate:
read which rows are due, invalidate the cache, mark those rows as delivered.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from modelctl import crash_points, deadline
from modelctl.count.cache import Cache, Hit, Miss, NullCache
from modelctl.count.results import Count, VerifiedCount
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    ModelctlError,
    StaleCacheError,
)
from modelctl.model import CacheState

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.config import Config
    from modelctl.count.outbox import Outbox
    from modelctl.count.reports import CacheReport, DrainResult

# How long a change may take for its invalidation, with retries and the sweep in it (seconds).
INVALIDATE_SECONDS = 2.0
POLL_SECONDS = 0.05
# A count that had to do without the cache warns at most this often (seconds).
WARN_SECONDS = 60.0
# Redis cannot be reached, or refuses us: a count goes on without it, a change leaves its row queued.
_CACHE_ERRORS = (StaleCacheError, InvalidConfigError)


def open_cache(config: Config) -> Cache:
    """Return the cache that the configuration names; nothing is connected yet."""
    if config.sqlite_path:
        from modelctl.count.sqlite import SqliteCache

        return SqliteCache(config)
    if config.redis.url:
        from modelctl.count.redis import RedisCache

        return RedisCache(config)
    return NullCache()


def read(cache: Cache) -> Hit | Miss:
    """Return the cached count, or a miss: with a token if this process may fill the cache.

    While another process holds the lease, look again a few times: it fills in a moment.
    """
    if hit := cache.peek():
        return hit
    if token := cache.lease():
        return Miss(token)
    for _ in range(cache.polls):
        time.sleep(POLL_SECONDS)
        if hit := cache.peek():
            return hit
    return Miss(None)


class CachedCount:
    """The number of active models, its cache, and the invalidations that changes must deliver."""

    def __init__(
        self, config: Config, outbox: Callable[[], Outbox], warn: Callable[..., None]
    ) -> None:
        """*outbox* connects when it is called. *warn* is told what went wrong without failing a call."""
        self.cache = open_cache(config)
        self._open_outbox = outbox
        self._warn = warn
        self._warn_at = 0.0

    @property
    def _outbox(self) -> Outbox:
        return self._open_outbox()

    def close(self) -> None:
        """Close the connections of the cache."""
        self.cache.close()

    # ── A count: peek, lease, count, fill ──

    def count(self, *, fresh: bool, strong: bool) -> Count:
        """Return the count, from the cache or from the database; see `Fleet.count`."""
        with self.cache.reading():
            return self._count(fresh, strong)

    def _count(self, fresh: bool, strong: bool) -> Count:
        try:
            # A strong count asks the outbox before it peeks. Afterwards would be too late: a change
            # could commit, and its row be delivered, between the peek and the question.
            strong = strong and self.cache.needs_delivery
            if fresh or (strong and self._outbox.unsettled()):
                token = self.cache.lease()
            else:
                found = read(self.cache)
                if isinstance(found, Hit):
                    return Count(found.active, "cache", found.age, found.expires_in)
                token = found.token
        except _CACHE_ERRORS as exc:
            if not self.cache.needs_delivery:
                raise
            self._warn_that_redis_is_away(exc)
            token = None
        return Count(self._count_and_fill(token), "database", 0.0, None)

    def _count_and_fill(self, token: str | None) -> int:
        """Count in the database, after the lease was requested; store the number if we hold the lease."""
        crash_points.reach("after-lease")
        active, due, watched = self._counted(token)
        if token is None:
            return active
        if not watched:  # no trigger would clear the stored number when a model changes
            self._give_back(token)
            return active
        crash_points.reach("after-snapshot")
        try:
            if due:
                # The invalidation of an earlier change was not delivered: forget what was stored
                # before it, and count anew. Its row stays in the outbox, because the keys that
                # other programs cached must be swept too, and a count does not wait for a sweep.
                self.cache.forget()
                token = self.cache.lease()
                active, *_ = self._counted(token)
            if token is not None:
                self.cache.fill(token, active)
        except (*_CACHE_ERRORS, DatabaseUnavailableError) as exc:
            self._warn_that_redis_is_away(exc)
        return active

    def _counted(self, token: str | None) -> tuple[int, bool, bool]:
        """Return what `Outbox.count` returns; if it fails, give the lease back."""
        try:
            return self._outbox.count()
        except BaseException:
            self._give_back(token)
            raise

    def _give_back(self, token: str | None) -> None:
        if token is not None:
            with suppress(ModelctlError):
                self.cache.release(token)

    def _warn_that_redis_is_away(self, exc: ModelctlError) -> None:
        """Warn once a minute: an application may count on every page."""
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            self._warn(f"{exc.message}; counted from the database")

    def verify(self) -> VerifiedCount:
        """Count in the database and compare with what a cached count would show now."""
        with self.cache.reading():
            for _ in range(3):
                hit = self.peek()
                active, *_ = self._outbox.count()
                if hit is None or hit.active == active:
                    break
                # The two differ, but a change between them is no fault: it removed the cached number.
                again = self.peek()
                if again is not None and again.active == hit.active:
                    break
        cached = hit.active if hit else None
        match = cached is None or cached == active
        return VerifiedCount(active, "database", 0.0, None, cached, active, match)

    def peek(self) -> Hit | None:
        """Return the cached count if it may be believed. Without Redis: None, and a warning."""
        try:
            return self.cache.peek()
        except _CACHE_ERRORS as exc:
            if not self.cache.needs_delivery:
                raise
            self._warn_that_redis_is_away(exc)
            return None

    # ── After a change: invalidate, deliver, drain ──

    def invalidate(
        self, *, owed: bool, changed: bool = True, to_the_end: bool = False
    ) -> CacheState:
        """Invalidate the cache after a COMMIT; if that fails, the outbox keeps the row.

        *owed*: False if this call cannot have changed a status, so there is nothing to do.
        *changed*: whether a row was changed; if not, only what others left undelivered is queued.
        *to_the_end*: let the sweep take as long as it takes, instead of `INVALIDATE_SECONDS`; where
        nothing is delivered, keep the outbox small.
        """
        if not owed:
            return self.cache.state_when_untouched
        if not self.cache.needs_delivery:
            if to_the_end:
                try:
                    self._collapse()
                except ModelctlError as exc:  # the change is committed
                    self._warn(f"the rows of modelctl_outbox stay as they are: {exc.message}")
            return self.cache.state_when_changed
        if to_the_end:
            return self._invalidate(changed, to_the_end=True)
        with self.cache.patience(INVALIDATE_SECONDS + 0.5):
            return self._invalidate(changed, to_the_end=False)

    def _invalidate(self, changed: bool, *, to_the_end: bool) -> CacheState:
        """Deliver; retry for `INVALIDATE_SECONDS`. QUEUED: Redis could not be reached in that time."""
        end = time.monotonic() + INVALIDATE_SECONDS
        pause = 0.0
        while True:
            try:
                self._deliver_after_commit(None if to_the_end else max(0.0, end - time.monotonic()))
            except _CACHE_ERRORS as exc:
                import random

                pause += random.uniform(0.05, 0.15)  # noqa: S311 - jitter
                if isinstance(exc, StaleCacheError) and time.monotonic() + pause < end:
                    time.sleep(pause)
                    continue
                if not changed and self._all_delivered():
                    return CacheState.UNCHANGED
                state = CacheState.QUEUED
                self._warn(f"committed, but the invalidation is queued: {exc.message}", cache=state)
                return state
            return CacheState.INVALIDATED

    def _deliver_after_commit(self, sweep: float | None) -> None:
        try:
            self._deliver(sweep, even_if_none=True)
        except DatabaseUnavailableError:
            # The change is committed, so invalidate without the outbox. Its rows stay, and the next
            # delivery invalidates once more.
            self.cache.invalidate(sweep)

    def _all_delivered(self) -> bool:
        try:
            return not self._outbox.unsettled()
        except ModelctlError:
            return False

    def _deliver(
        self, sweep: float | None, *, even_if_none: bool = False
    ) -> list[tuple[int, bool]]:
        """Invalidate once for all rows of the outbox that are due; return those rows.

        *sweep*: seconds for the sweep; None: to its end. *even_if_none*: also if no row is due.
        """
        # Before the cache is invalidated: a row that appears later belongs to a later change, and
        # this invalidation may have come too early for it.
        due = self._outbox.due()
        if due or even_if_none:
            crash_points.reach("after-due")
            self.cache.invalidate(sweep)
            crash_points.reach("before-settle")
        if due:
            self._outbox.settle(due, self.cache.identity, self.cache.server)
        return due

    def drain(self) -> DrainResult:
        """Deliver every queued invalidation that is due, to the end."""
        from modelctl.count.reports import DrainResult

        outbox = self._outbox
        if not self.cache.needs_delivery:
            self._collapse()
            return DrainResult(0, outbox.queue()[0], self.cache.state_when_untouched)
        delivered = 0
        before: list[tuple[int, bool]] = []
        while due := self._deliver(None):
            if due == before:
                raise ModelctlError(
                    "delivered invalidations stay in modelctl_outbox: something keeps its rows",
                    hint="look for triggers and rules on that table, then run: modelctl db upgrade",
                )
            before = due
            delivered += len(due)
            deadline.renew()
        state = CacheState.INVALIDATED if delivered else CacheState.UNCHANGED
        return DrainResult(delivered, outbox.queue()[0], state)

    def _collapse(self) -> None:
        """Where no Redis is configured here: keep the outbox small for a process that has one."""
        while self._outbox.collapse():
            deadline.renew()

    # ── modelctl cache clear, cache show ──

    def clear(self) -> DrainResult:
        """Invalidate now, whether or not something is queued."""
        from modelctl.count.reports import DrainResult

        outbox = self._outbox
        delivered = 0
        if self.cache.needs_delivery:
            delivered = len(self._deliver(None, even_if_none=True))
        else:
            self.cache.invalidate()
        return DrainResult(delivered, outbox.queue()[0], self.cache.state_when_changed)

    def report(self) -> CacheReport:
        """Return the cache's keys as they are, and what waits in the outbox."""
        from modelctl.count.reports import CacheReport

        queued, settling, age = self._outbox.queue()
        with self.cache.patience(INVALIDATE_SECONDS):
            keys = self.cache.keys()
        return CacheReport(self.cache.name, keys, queued, settling, age)
