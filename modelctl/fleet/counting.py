"""The commands around the cached count: count and cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.opened import arguments
from modelctl.opened.calls import in_time
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from modelctl.count.reports import CacheReport, DrainResult
    from modelctl.count.results import Count, VerifiedCount
    from modelctl.memory.memory import Memory


class CountCommands(OpenedFleet):
    """The number of active models, its cache, and the invalidations that are still queued."""

    def count(
        self, *, fresh: bool = False, strong: bool = False, max_age: float | None = None
    ) -> Count:
        """Return how many models are active: cached for at most 60 s, never older than a change.

        *fresh*: count in the database. The cache is not read, but it is filled if no other process
        is filling it. *strong*: cached, but also right after every committed change of other
        programs. If Redis is unavailable, the count comes from the database.

        *max_age* (seconds): this process may answer from its memory with the number that a call with
        *max_age* read, if that call began less than so many seconds ago, and while the number would
        still be cached. It is never older than a change, a drain or a `clear_cache` that any fleet of
        this process had finished when the call began. A change that another process acknowledged
        shows after *max_age* at the latest; usually within milliseconds if Redis tells of changes (a
        thread listens for that, from the first call with *max_age* to `close`). Such an answer takes
        about a microsecond.

        Raises:
            UsageError: *max_age* is not from 0 s to ten years, or is given with *fresh* or *strong*.
        """
        if max_age is None:
            return self._count(fresh, strong)
        remembered = self._recall(max_age, fresh or strong)
        return self._open_memory().read() if remembered is None else remembered

    def _recall(self, max_age: float, refused: bool) -> Count | None:
        """Return the remembered count, without waiting for anything. *refused*: it is not allowed."""
        if refused:
            raise UsageError("max_age allows a remembered count; fresh and strong do not")
        # `arguments.seconds` says what is wrong, but takes as long as all the rest.
        if not (type(max_age) is float and 0 <= max_age < arguments.LONGEST_SECONDS):
            arguments.seconds(max_age, "max_age")
        memory = self._memory
        return None if memory is None else memory.recall(max_age)

    def _open_memory(self) -> Memory:
        from modelctl.memory.memory import Memory

        with self._lock:
            memory = self._memory
            if memory is None:
                memory = Memory(lambda: self._count(False, False), self.config.cache.ttl)
                if self.config.redis.url and not self.config.sqlite_path:
                    memory.listen(self.config)
                self._memory = memory
            return memory

    @in_time
    def _count(self, fresh: bool, strong: bool) -> Count:
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
        try:
            return self._cached_count.drain()
        finally:
            self._forget()

    def clear_cache(self) -> DrainResult:
        """Invalidate the caches now, whether or not an invalidation is queued.

        Raises:
            StaleCacheError: Redis is unavailable.
        """
        try:
            return self._cached_count.clear()
        finally:
            self._forget()

    def cache_report(self) -> CacheReport:
        """Return the keys of the cache as they are, and how many invalidations are queued.

        Raises:
            StaleCacheError: Redis is unavailable.
        """
        return self._cached_count.report()
