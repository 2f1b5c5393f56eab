"""Sweep: delete the keys in Redis that a change of status makes wrong beside the count.

These are the names and patterns of ``cache.clear``: what the website caches about models.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from modelctl import crash_points, forks
from modelctl.errors import StaleCacheError
from modelctl.redis_client import answers
from modelctl.redis_client.answers import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import ConnectionPool

    from modelctl.count.redis_link import RedisLink

# A sweep to the end takes at most this long: a broken server could go on for ever.
LONGEST_SECONDS = 300.0
_PATTERN = re.compile(r"[*?[\\]")
_PAGE = 1000  # how many keys SCAN looks at before it answers
_FINISH = "finish it: modelctl cache drain"


def is_pattern(name: str) -> bool:
    """Whether *name* stands for several keys, so that SCAN has to find them."""
    return bool(_PATTERN.search(name))


class Sweep:
    """Deletes those keys; threads that change models at the same time share one sweep."""

    def __init__(self, link: RedisLink, names: Sequence[str], *, cluster: bool) -> None:
        """*names*: keys and patterns; *cluster*: whether keys lie in several slots."""
        self._link = link
        self._names = names
        self._cluster = cluster
        self._begin()
        forks.watch(self, Sweep._begin)

    def _begin(self) -> None:
        """Start with a lock that nobody holds; also in the child of a fork."""
        # Reentrant, because a signal handler may sweep while the same thread does.
        self._running = threading.RLock()
        self._last_seconds = 0.0
        self.begun = 0
        self._completed = 0  # the number of the last sweep that came to its end

    def run(self, after: int, deadline: float | None) -> None:
        """Delete the keys, unless another thread did in a sweep that began after the number *after*.

        *after*: what `begun` was when the change was committed. *deadline*: monotonic seconds; None:
        sweep to the end. Where the last sweep took more than half of the time that is left, there is
        no time to wait for the running one and then perhaps for another: each thread sweeps by itself.

        Raises:
            StaleCacheError: not everything is deleted; do not count it as delivered.
        """
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if deadline is not None and 2 * self._last_seconds > left:
            self._delete_all(deadline)
            return
        if not self._running.acquire(timeout=left):
            raise StaleCacheError("another sweep takes too long", hint=_FINISH)
        try:
            if self._completed > after:
                return
            number = self.begun = self.begun + 1
            self._delete_all(deadline)
            # A signal handler may have completed a later sweep while this one ran.
            self._completed = max(self._completed, number)
        finally:
            self._running.release()

    def _delete_all(self, deadline: float | None) -> None:
        began = time.monotonic()
        try:
            for name in self._names:
                if is_pattern(name):
                    self._delete_matching(name, deadline)
                else:
                    with self._link.talk(self._link.pool_of(name)) as talk:
                        talk.ask(Command(("DEL", name), answers.is_number))
        finally:
            self._last_seconds = time.monotonic() - began

    def _delete_matching(self, pattern: str, deadline: float | None) -> None:
        """Delete the keys that match, on every primary."""
        until = time.monotonic() + LONGEST_SECONDS if deadline is None else deadline
        for pool in self._link.pools():
            cursor = b"0"
            while True:
                cursor = self._delete_page(pool, pattern, cursor)
                crash_points.reach("in-sweep")
                if cursor == b"0":
                    break
                if time.monotonic() > until:
                    raise StaleCacheError(f"the sweep of {pattern} takes too long", hint=_FINISH)

    def _delete_page(self, pool: ConnectionPool, pattern: str, cursor: bytes) -> bytes:
        """Delete the keys of one page of a SCAN; return where the next page begins."""
        scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", str(_PAGE))
        with self._link.talk(pool) as talk:
            [(after, keys)] = talk.ask(Command(scan, answers.is_page))
            if after == cursor != b"0":
                raise answers.NonsenseError("a SCAN that does not move on")
            # One UNLINK takes keys of one slot only.
            each = [[key] for key in keys] if self._cluster else [keys] if keys else []
            if each:
                talk.ask(*(Command(("UNLINK", *some), answers.is_number) for some in each))
        return bytes(after)
