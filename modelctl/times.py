"""Times as the databases return them, made UTC. Imports no other module of modelctl."""

from __future__ import annotations

from datetime import UTC, datetime


def in_utc(time: datetime) -> datetime | None:
    """Return *time* in UTC; without a zone it is UTC already, and None if UTC has no such year."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None
