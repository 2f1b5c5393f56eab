"""What users write on the command line: durations, times, and files to read."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl import streams
from modelctl.config.durations import parse_duration
from modelctl.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime
    from typing import BinaryIO


def read_duration(text: str | None) -> float | None:
    """Return a duration in seconds; None stays None."""
    return None if text is None else parse_duration(text)


@dataclass(slots=True, frozen=True)
class GivenTime:
    """A time that the user gave; *local*: it had no zone, so the local one is meant."""

    at: datetime
    local: bool

    def say(self, what: str) -> None:
        """Say how a time without a zone was understood."""
        if self.local:
            streams.say(f"{what} {self.at.isoformat(timespec='seconds')} (local time)")


@dataclass(slots=True, frozen=True)
class GivenAge:
    """How many seconds ago, which the user gave as a duration."""

    at: float

    def say(self, what: str) -> None:
        """Say nothing: a duration can be understood in one way only."""


def read_moment(text: str) -> GivenTime | GivenAge:
    """Read a time in the past: a duration, such as 2d for two days ago, or a time."""
    if text[:1].isdigit() and text[-1] in "wdhms":
        return GivenAge(parse_duration(text))
    return _given_time(text, past=True)


def read_time(text: str | None, *, past: bool = False) -> GivenTime | None:
    """Read a time; without a zone it is local. None stays None.

    A time of day, such as 08:00, is the next one; if *past*, the last one.
    """
    return None if text is None else _given_time(text, past=past)


def _given_time(text: str, *, past: bool) -> GivenTime:
    from datetime import datetime, timedelta

    try:
        clock = re.fullmatch("([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?", text)
        if clock is None:
            given = datetime.fromisoformat(text)
            if given.tzinfo:
                return GivenTime(given, local=False)
            return GivenTime(given.astimezone(), local=True)
        now = datetime.now()
        hour, minute, second = map(int, clock.groups(default="0"))
        at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        if past != (at <= now):
            at += timedelta(days=-1 if past else 1)
        return GivenTime(at.astimezone(), local=True)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"'{text}' is not a time",
            hint="write it like 08:00, 2026-12-01, 2026-12-01T08:00 or 2026-12-01T08:00Z",
        ) from None


@contextmanager
def open_source(source: str) -> Iterator[BinaryIO]:
    """Open FILE or - (standard input).

    An error of the operating system inside of the block is reported as one of reading the source.
    """
    name = "standard input" if source == "-" else source
    try:
        with nullcontext(sys.stdin.buffer) if source == "-" else _open_file(source) as stream:
            yield stream
    except OSError as exc:
        raise UsageError(f"cannot read {name}: {exc.strerror}") from exc


def _open_file(name: str) -> BinaryIO:
    try:
        return open(name, "rb")
    except ValueError:  # a NUL character, or a lone surrogate that stands for no byte
        raise UsageError(f"'{name}' is not a file name") from None
