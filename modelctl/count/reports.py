"""What the commands around the cache return: its keys, and what was delivered. Frozen data, no I/O.

Apart from `results`, because a cached count does not need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelctl.model import CacheState


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A key of the cache with its value (None: it does not exist).

    *expires_in_seconds*: None if it has no time to live.
    """

    key: str
    value: str | None
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The keys of the cache, and how many invalidations are not delivered.

    *settling*: invalidations that are delivered once more after a while. *oldest_queued_seconds*:
    the age of the oldest queued invalidation, None: there is none.
    """

    backend: str
    keys: tuple[CacheKey, ...]
    queued: int
    settling: int
    oldest_queued_seconds: float | None


@dataclass(frozen=True, slots=True)
class DrainResult:
    """How many queued invalidations were delivered, and how many are still queued."""

    delivered: int
    queued: int
    cache: CacheState
