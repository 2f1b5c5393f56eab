"""CachedCount: how the number of active models is kept true, step by step.

Read it beside docs/decisions.md, "How is the cached count kept true?": the steps have the same
names and the same order there. `Cache` is where the count is kept, `Outbox` what a change owes it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from modelctl import crash_points, deadline
from modelctl.count.cache import Cache, Hit, Miss, NullCache
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    ModelctlError,
    StaleCacheError,
)
from modelctl.model import CacheState, Count, VerifiedCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.load import Config
    from modelctl.count.outbox import Outbox
    from modelctl.reports import CacheReport, DrainResult

# In a change or a count: one invalidation with its retries, and the sweep in it (seconds).
INVALIDATE_SECONDS = 2.0
POLL_SECONDS = 0.05
WARN_SECONDS = 60.0
# Redis being away and Redis refusing us: a read goes on without it, a change queues.
_CACHE_ERRORS = (StaleCacheError, InvalidConfigError)


def open_cache(config: Config) -> Cache:
    """Return the cache that the configuration names."""
    if config.sqlite_path:
        from modelctl.count.sqlite import SqliteCache

        return SqliteCache(config)
    if config.redis.url:
        from modelctl.count.redis import RedisCache

        return RedisCache(config)
    return NullCache()


def read(cache: Cache) -> Hit | Miss:
    """Return a hit, or a miss with the right to fill; wait a moment for another filler."""
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
    """The count of the active models, its cache, and the invalidations that a change owes it."""

    def __init__(
        self, config: Config, outbox: Callable[[], Outbox], warn: Callable[[str], None]
    ) -> None:
        """*outbox*: connects when it is called; *warn* is told what failed no call."""
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

    # ── Reading ──

    def count(self, *, fresh: bool, strong: bool) -> Count:
        """Return the count, cached or from the database; see `Fleet.count`."""
        with self.cache.reading():
            return self._count(fresh, strong)

    def _count(self, fresh: bool, strong: bool) -> Count:
        try:
            # The outbox is asked before the cache is read; after it would be too late.
            strong = strong and self.cache.needs_delivery
            if fresh or (strong and self._outbox.unsettled()):
                miss = Miss(self.cache.lease())
            else:
                found = read(self.cache)
                if isinstance(found, Hit):
                    return Count(found.active, "cache", found.age, found.expires_in)
                miss = found
        except _CACHE_ERRORS as exc:
            if not self.cache.needs_delivery:
                raise
            self._degraded(exc)
            miss = Miss(None)
        return Count(self._count_and_fill(miss.token), "database", 0.0, None)

    def _count_and_fill(self, token: str | None) -> int:
        """COUNT(*) after the lease, and the fill."""
        crash_points.reach("after-lease")
        active, owed, watched = self._counted(token)
        if token is None:
            return active
        if not watched:  # no change would clear what is stored
            self._give_back(token)
            return active
        crash_points.reach("after-snapshot")
        try:
            if owed:
                # A change that was not delivered yet: what was stored before it goes. Its rows
                # stay for those that sweep; a count does not wait for a sweep.
                self.cache.forget()
                token = self.cache.lease()
                active, *_ = self._counted(token)
            if token is not None:
                self.cache.fill(token, active)
        except (*_CACHE_ERRORS, DatabaseUnavailableError) as exc:
            self._degraded(exc)
        return active

    def _counted(self, token: str | None) -> tuple[int, bool, bool]:
        """What `Outbox.count` says; where it fails, the lease goes back."""
        try:
            return self._outbox.count()
        except BaseException:
            self._give_back(token)
            raise

    def _give_back(self, token: str | None) -> None:
        if token is not None:
            with suppress(ModelctlError):
                self.cache.release(token)

    def _degraded(self, exc: ModelctlError) -> None:
        """Say so, once a minute: an application may count on every page."""
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            self._warn(f"{exc.message}; counted from the database")

    def verify(self) -> VerifiedCount:
        """Count from the database and compare with what a cached count would show now."""
        with self.cache.reading():
            for _ in range(3):
                hit = self._peek()
                active, *_ = self._outbox.count()
                # A change between the two is no difference: then the cached number is gone.
                if hit is None or hit.active == active:
                    break
                again = self._peek()
                if again is not None and again.active == hit.active:
                    break
        cached = hit.active if hit else None
        match = cached is None or cached == active
        return VerifiedCount(active, "database", 0.0, None, cached, active, match)

    def _peek(self) -> Hit | None:
        try:
            return self.cache.peek()
        except _CACHE_ERRORS as exc:
            if not self.cache.needs_delivery:
                raise
            self._degraded(exc)
            return None

    # ── After a change ──

    def invalidate(
        self, *, owed: bool, changed: bool = True, to_the_end: bool = False
    ) -> CacheState:
        """After COMMIT: clear the caches, or leave the invalidation queued in the outbox.

        *changed*: whether a row was; else only what others left undelivered can be queued.
        *to_the_end*: let clearing the leaderboard take as long as it takes.
        """
        if not owed:
            return self.cache.state_when_untouched
        if not self.cache.needs_delivery:
            return self.cache.state_when_changed
        if to_the_end:
            return self._invalidate(changed, to_the_end=True)
        with self.cache.patience(INVALIDATE_SECONDS + 0.5):
            return self._invalidate(changed, to_the_end=False)

    def _invalidate(self, changed: bool, *, to_the_end: bool) -> CacheState:
        deadline = time.monotonic() + INVALIDATE_SECONDS
        pause = 0.0
        while True:
            try:
                sweep = None if to_the_end else max(0.0, deadline - time.monotonic())
                try:
                    self._deliver(sweep, even_if_none=True)
                except DatabaseUnavailableError:
                    # Committed all the same; what the outbox still says comes once more.
                    self.cache.invalidate(sweep)
            except _CACHE_ERRORS as exc:
                import random

                pause += random.uniform(0.05, 0.15)  # noqa: S311 - jitter
                if isinstance(exc, StaleCacheError) and time.monotonic() + pause < deadline:
                    time.sleep(pause)
                    continue
                if not changed and self._all_delivered():
                    return CacheState.UNCHANGED
                self._warn(f"committed, but the invalidation is queued: {exc.message}")
                return CacheState.QUEUED
            return CacheState.INVALIDATED

    def _all_delivered(self) -> bool:
        try:
            return not self._outbox.unsettled()
        except ModelctlError:
            return False

    def _deliver(
        self, sweep: float | None, *, even_if_none: bool = False
    ) -> list[tuple[int, bool]]:
        """One invalidation for all outbox rows that are due; return those.

        *sweep*: seconds for clearing the leaderboard (None: to the end).
        """
        due = self._outbox.due()  # before the DEL, or it may miss one of them
        if due or even_if_none:
            crash_points.reach("after-due")
            self.cache.invalidate(sweep)
            crash_points.reach("before-settle")
        if due:
            self._outbox.settle(due, self.cache.identity, self.cache.server)
        return due

    def drain(self) -> DrainResult:
        """Deliver every queued invalidation that is due, to the end."""
        from modelctl.reports import DrainResult

        outbox = self._outbox
        if not self.cache.needs_delivery:
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

    # ── For a person ──

    def clear(self) -> DrainResult:
        """Invalidate now, whether or not something is queued."""
        from modelctl.reports import DrainResult

        outbox = self._outbox
        served = 0
        if self.cache.needs_delivery:
            served = len(self._deliver(None, even_if_none=True))
        else:
            self.cache.invalidate()
        return DrainResult(served, outbox.queue()[0], self.cache.state_when_changed)

    def elsewhere(self, server: str) -> tuple[list[str], bool]:
        """Return where others delivered in the last day, and whether that is newer than ours.

        Each is an address of Redis and the key of the count: changes made there do not reach the
        count that is cached here, and the other way round. *server*: the run id found here, by
        which another address of the same server is known.
        """
        places = self._outbox.places()
        other = [place for place in places if not self._is_here(place, places[place], server)]
        return other, bool(other) and other[0] == next(iter(places))

    def shared_with(self, server: str) -> list[str]:
        """Return the schemas of other fleets in this database that cache in the same place."""
        return [
            schema
            for schema in self._outbox.other_fleets()
            if any(
                self._is_here(place, there, server)
                for place, there in self._outbox.places(schema).items()
            )
        ]

    def _is_here(self, place: str, there: str, server: str) -> bool:
        """Whether *place* is that of this process; *there*, *server*: the run ids of the two."""
        here = self.cache.identity
        same_server = bool(server) and there == server
        return place == here or (same_server and _on_server(place) == _on_server(here))

    def report(self) -> CacheReport:
        """Return the cache's keys as they are, and what waits in the queue."""
        from modelctl.reports import CacheReport

        queued, settling, age = self._outbox.queue()
        with self.cache.patience(INVALIDATE_SECONDS):
            keys = self.cache.keys()
        return CacheReport(self.cache.name, keys, queued, settling, age)


def _on_server(place: str) -> tuple[str, str]:
    """What a place is on its server: the number of the database, and the key."""
    address, _, key = place.partition(" ")
    return address.rpartition("/")[2], key
