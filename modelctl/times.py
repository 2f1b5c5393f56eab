"""Times as the databases give them. Imports nothing of ours."""

from __future__ import annotations

from datetime import UTC, datetime


def in_utc(time: datetime) -> datetime | None:
    """Return an aware time; one without a zone is UTC, one that has no equal in UTC is None."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None
