"""Times as the databases return them, made UTC, and as JSON has them. Imports no other module."""

from __future__ import annotations

from datetime import UTC, datetime

FOREVER = datetime.max.replace(tzinfo=UTC)


def in_utc(time: datetime) -> datetime | None:
    """Return *time* in UTC; without a zone it is UTC already, and None if UTC has no such year."""
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None


def time_at(epoch: float, now: float, digits: int) -> datetime:
    """Return the time this many seconds after 1970: *now* if it is before the calendar.

    After the calendar it is `FOREVER`. *digits*: of a second, to which it is rounded.
    """
    try:
        return datetime.fromtimestamp(round(epoch, digits), UTC)
    except (OverflowError, ValueError, OSError):
        return FOREVER if epoch > 0 else datetime.fromtimestamp(round(now, digits), UTC)


def written(time: datetime) -> str:
    """Write a UTC time as JSON has it."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
