"""Cache: what the protocol needs of a place that holds the count; and `NullCache`, which holds nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelctl.model import CacheState

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from modelctl.count.reports import CacheKey

LEASE_SECONDS = 10.0


class Hit(NamedTuple):
    """A cached number that may be shown, its age, and in how many seconds it expires."""

    active: int
    age: float
    expires_in: float


class Miss(NamedTuple):
    """Nothing may be shown. *token*: the lease, with which the reader may store what it counts next."""

    token: str | None


class Cache(Protocol):
    """A place that holds the count.

    Every method of `RedisCache` that asks Redis raises `StaleCacheError` when it cannot be reached,
    and `InvalidConfigError` when it refuses this user.
    """

    name: str
    # Whether the cache is outside of the database: then an invalidation has to be delivered to it
    # after COMMIT, and a count goes on without it when it cannot be reached.
    needs_delivery: bool
    state_when_untouched: CacheState  # the result of a call that had nothing to invalidate
    state_when_changed: CacheState  # the result of a change whose invalidation is done
    address: str  # where the cache is, for messages; without secrets
    server: str  # the identity of the server that the last `forget` reached; empty: not known
    polls: int  # how often a reader looks again while another process fills the cache

    @property
    def identity(self) -> str:
        """Return a text that is equal for all processes that use the same cache; without secrets."""

    def peek(self) -> Hit | None:
        """Return the count if it may be believed."""

    def lease(self) -> str | None:
        """Take the lease, before the database is read; None: another process holds it."""

    def fill(self, token: str, active: int) -> None:
        """Store the number if the lease is still ours; every invalidation deletes the lease."""

    def release(self, token: str) -> None:
        """Give the lease back without storing a number."""

    def forget(self) -> None:
        """Delete the number and the lease: no lease that was taken before can store anything."""

    def invalidate(self, budget: float | None = None) -> None:
        """`forget`, then clear what other programs cached, in *budget* seconds (None: to the end)."""

    def reading(self) -> AbstractContextManager[None]:
        """In this block, which is one count, wait for the cache no longer than a count may."""

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """In this block, wait for the cache no longer than *seconds*, all calls together."""

    def keys(self) -> tuple[CacheKey, ...]:
        """Return the keys of the cache as they are, for a person to read."""

    def close(self) -> None:
        """Close the connections."""


class NullCache:
    """No cache is configured: every count is a miss, and there is nothing to invalidate."""

    name = "off"
    needs_delivery = False
    state_when_untouched = CacheState.OFF
    state_when_changed = CacheState.OFF
    address = "off"
    identity = ""
    server = ""
    polls = 0

    def peek(self) -> Hit | None:
        """Nothing is cached."""
        return None

    def lease(self) -> str | None:
        """Nothing can be filled."""
        return None

    def fill(self, token: str, active: int) -> None:
        """Never called: `lease` gives no token."""

    def release(self, token: str) -> None:
        """Never called: `lease` gives no token."""

    def forget(self) -> None:
        """Nothing is cached."""

    def invalidate(self, budget: float | None = None) -> None:
        """Nothing is cached."""

    def reading(self) -> AbstractContextManager[None]:
        """There is nothing to wait for."""
        return nullcontext()

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """There is nothing to wait for."""
        return nullcontext()

    def keys(self) -> tuple[CacheKey, ...]:
        """There are none."""
        return ()

    def close(self) -> None:
        """There is no connection."""
