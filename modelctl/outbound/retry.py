"""Which answers say "later", and how long a server asks us to wait."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# The statuses from 400 to 499 that say "later": too slow, too early, too many.
_LATER = (408, 425, 429)
# A server is not asked again before it wants to be, but it cannot silence us for longer.
_LONGEST_RETRY_AFTER = 3600.0


def is_later(status: int) -> bool:
    """Whether a request that got this status, which is no success, may succeed later."""
    return status in _LATER or not 400 <= status <= 499


def retry_after(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for; it has seconds, or a date."""
    if header is None:
        return 0.0
    if header.isascii() and header.isdigit():
        seconds = float(header[:9])
    else:
        try:
            date = parsedate_to_datetime(header)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
