"""Try again: after which errors and answers, and how long a server asks us to wait."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenacity import Retrying
    from tenacity.stop import stop_base
    from tenacity.wait import wait_base

# The statuses from 400 to 499 that say "later": too slow, too early, too many.
_LATER = (408, 425, 429)
# A server is not asked again before it wants to be, but it cannot silence us for longer.
_LONGEST_RETRY_AFTER = 3600.0


class FailedTryError(Exception):
    """A try failed. The message says why.

    *permanent*: to try again does not help. *retry_after*: the seconds that the server asks for.
    """

    def __init__(self, why: str, *, permanent: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.permanent = permanent
        self.retry_after = retry_after


def retrying(backoff: wait_base, stop: stop_base) -> Retrying:
    """Return the tries: again after a `FailedTryError` that is not permanent, until *stop*.

    Between them it waits as *backoff* says, or for as long as the server asks for.
    """
    import tenacity

    def wait(state: Any) -> float:
        return max(float(backoff(state)), float(state.outcome.exception().retry_after))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_help),
        wait=wait,
        stop=stop,
        sleep=time.sleep,
        reraise=True,
    )


def _may_help(error: BaseException) -> bool:
    return isinstance(error, FailedTryError) and not error.permanent


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
