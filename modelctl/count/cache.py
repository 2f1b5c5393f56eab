"""What a cache of the count is: the interface, Hit, Miss, and the cache that is none."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelctl.model import CacheState

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from modelctl.reports import CacheKey

LEASE_SECONDS = 10.0


class Hit(NamedTuple):
    """A number that may be shown, its age and what is left of it (seconds)."""

    active: int
    age: float
    expires_in: float


class Miss(NamedTuple):
    """Nothing to show; with a token the reader may fill what it counts *after* this."""

    token: str | None


class Cache(Protocol):
    """What the core knows of a cache.

    Every method of `RedisCache` raises `StaleCacheError` when Redis cannot be reached and
    `InvalidConfigError` when it refuses this user.
    """

    name: str
    # Whether an invalidation has to be carried there after COMMIT, and reads go on without it.
    needs_delivery: bool
    state_when_untouched: CacheState  # what a change says that owed no invalidation
    state_when_changed: CacheState  # and one whose invalidation is done
    place: str  # where it is, for a person; without secrets
    server: str  # the run id of the server that the last `forget` reached; empty: not known
    polls: int  # how often a reader looks again for what another one is filling

    @property
    def identity(self) -> str:
        """Which cache it is: equal for all that mean the same; without secrets."""

    def peek(self) -> Hit | None:
        """Return what may be believed, without a claim to fill."""

    def lease(self) -> str | None:
        """Claim the right to fill, before the database is read; None: somebody else has it."""

    def fill(self, token: str, active: int) -> None:
        """Store the number unless the lease is gone, which every invalidation takes away."""

    def release(self, token: str) -> None:
        """Give the lease back without a fill, if it is still ours."""

    def forget(self) -> None:
        """Make the number unreadable, and every lease that was taken before void."""

    def invalidate(self, budget: float | None = None) -> None:
        """`forget`, and clear what others cached; *budget*: seconds for that (None: to the end)."""

    def reading(self) -> AbstractContextManager[None]:
        """In this block, one count, wait for the cache no longer than a count may."""

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """In this block wait for the cache no longer than that, all calls together."""

    def keys(self) -> tuple[CacheKey, ...]:
        """Return the keys as they are, for a person."""

    def close(self) -> None:
        """Close the connections."""


class NullCache:
    """No cache is configured: always a miss, nothing to invalidate."""

    name = "off"
    needs_delivery = False
    state_when_untouched = CacheState.OFF
    state_when_changed = CacheState.OFF
    place = "off"
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
        """Never called: nobody gets a token."""

    def release(self, token: str) -> None:
        """Never called: nobody gets a token."""

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
