"""The commands around the cached count: count and cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from modelctl.count.reports import CacheReport, DrainResult
    from modelctl.count.results import Count, VerifiedCount


class CountCommands(OpenedFleet):
    """The number of active models, its cache, and the invalidations that are still queued."""

    def count(self, *, fresh: bool = False, strong: bool = False) -> Count:
        """Return how many models are active: cached for at most 60 s, never older than a change.

        *fresh*: count in the database. The cache is not read, but it is filled if no other process
        is filling it. *strong*: cached, but also right after every committed change of other
        programs. If Redis is unavailable, the count comes from the database.
        """
        self._create_embedded()
        count = self._cached_count.count(fresh=fresh, strong=strong)
        if not count.active:
            self._warn_if_nothing_is_configured()
        return count

    def verify(self) -> VerifiedCount:
        """Count in the database, and compare that with what a cached count would show now.

        If Redis is unavailable, the result says that nothing is cached.
        """
        self._create_embedded()
        count = self._cached_count.verify()
        if not count.active:
            self._warn_if_nothing_is_configured()
        return count

    def drain(self) -> DrainResult:
        """Deliver all queued invalidations that are due.

        Raises:
            StaleCacheError: Redis is unavailable; the invalidations stay queued.
        """
        return self._cached_count.drain()

    def clear_cache(self) -> DrainResult:
        """Invalidate the caches now, whether or not an invalidation is queued.

        Raises:
            StaleCacheError: Redis is unavailable.
        """
        return self._cached_count.clear()

    def cache_report(self) -> CacheReport:
        """Return the keys of the cache as they are, and how many invalidations are queued.

        Raises:
            StaleCacheError: Redis is unavailable.
        """
        return self._cached_count.report()
