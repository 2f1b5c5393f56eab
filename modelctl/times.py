"""Converts the times of the databases to UTC, and UTC times to JSON. Imports no other module."""

from __future__ import annotations

from datetime import UTC, datetime

FOREVER = datetime.max.replace(tzinfo=UTC)


def in_utc(time: datetime) -> datetime | None:
    """Return *time* in UTC; a time without a zone is taken as UTC.

    None: in UTC the time is outside of the years 1 to 9999.
    """
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None


def time_at(epoch: float, now: float, digits: int) -> datetime:
    """Return the time *epoch* seconds after 1970, rounded to *digits* decimal places of a second.

    A time before the year 1 becomes *now*, and a time after the year 9999 becomes `FOREVER`.
    """
    try:
        return datetime.fromtimestamp(round(epoch, digits), UTC)
    except (OverflowError, ValueError, OSError):
        return FOREVER if epoch > 0 else datetime.fromtimestamp(round(now, digits), UTC)


def written(time: datetime) -> str:
    """Write a UTC time for JSON: ISO 8601 with milliseconds and a Z."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def exact(time: datetime) -> str:
    """Write a UTC time to the microsecond: always 27 characters, so that equal times are equal texts."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
