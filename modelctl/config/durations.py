"""Durations as people write them: ``90s``, ``2h30m``."""

from __future__ import annotations

import re

from modelctl.errors import UsageError, clean

_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
LONGEST = 3650 * 86400.0


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``1.5h``, ``2h30m``, ``2d`` or ``1w``.

    Raises:
        UsageError: *text* is not a list of numbers with units, the largest unit first, or it is
            longer than ten years.
    """
    shown = clean(text, longest=50)
    match = re.fullmatch("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS), text)
    if match is None or not text:
        hint = "write numbers with their units, the largest unit first: 90s, 15m, 2h30m, 2d or 1w"
        raise UsageError(f"'{shown}' is not a duration", hint=hint)
    parts = zip(match.groups(default="0"), _UNITS.values(), strict=True)
    # Round to the microsecond: 1.1 h would be 3960.0000000000005 s.
    seconds = round(sum(float(number) * size for number, size in parts), 6)
    if seconds > LONGEST:
        raise UsageError(f"'{shown}' is longer than {format_duration(LONGEST)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Write *seconds* in the largest unit, up to days, that divides them without a remainder."""
    for unit, size in _UNITS.items():
        if seconds and seconds % size == 0 and unit != "w":
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
