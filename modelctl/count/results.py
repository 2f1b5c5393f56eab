"""What a count returns. Frozen data, no I/O; a cached count loads this file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Count:
    """How many models are active.

    *source*: ``cache``, ``database``, or ``memory`` (of this process, only with *max_age*).
    *age_seconds*: 0 from the database. *expires_in_seconds*: None from the database.
    """

    active: int
    source: str
    age_seconds: float
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class VerifiedCount(Count):
    """A count from the database, compared with the cached one (None: no valid count is cached)."""

    cached: int | None
    database: int
    match: bool
