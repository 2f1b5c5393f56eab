"""The operation of a call: one id, which all events that the call writes have in common.

The id is a ULID (26 characters: 48 bits of time, then 80 random bits), so ids sort by their time.
It is made when the first event is written, so a call without events costs nothing.
"""

from __future__ import annotations

import os
import time
from contextvars import ContextVar

from modelctl import deadline

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_LENGTH = 26

# The last call that has written an event, and its operation.
_last: ContextVar[tuple[object, str] | None] = ContextVar("modelctl_operation", default=None)


def current() -> str:
    """Return the operation of the running call; outside of a call, a new one each time."""
    if found := written():
        return found
    made = new()
    if call := deadline.running():
        _last.set((call, made))
    return made


def written() -> str | None:
    """Return the operation of the running call if it has written events, else None."""
    last, call = _last.get(), deadline.running()
    return last[1] if last and call is not None and last[0] is call else None


def new() -> str:
    """Return a new ULID."""
    number = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    return "".join(_DIGITS[number >> shift & 31] for shift in range(5 * _LENGTH - 5, -1, -5))


def is_operation(text: str) -> bool:
    """Return whether *text* has the form of an operation, in capitals."""
    return len(text) == _LENGTH and text[0] <= "7" and all(digit in _DIGITS for digit in text)
