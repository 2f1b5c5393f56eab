"""A duration is numbers and their units, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.config.durations import format_duration, parse_duration
from modelctl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("1.5h", 5400),
        ("1.1h", 3960),
        ("2d", 172800),
        ("0.25s", 0.25),
        ("3650d", 3650 * 86400),
        ("1w", 604800),
        ("2h30m", 9000),
        ("1w2d3h4m5.5s", 604800 + 2 * 86400 + 3 * 3600 + 4 * 60 + 5.5),
        ("1d0h1s", 86401),
    ],
)
def test_duration_is_numbers_and_their_units(text: str, seconds: float) -> None:
    """A duration is read in seconds."""
    assert parse_duration(text) == seconds


NO_DURATIONS = (
    "60 s -1s +1s 1 30m1h 1h1h 1h30 1H 1ms 1y nan nans infs 1e3s .5h 1.h 1,5h ٣s 3651d 522w 3650d1s"
)


@pytest.mark.parametrize(
    "text", [*NO_DURATIONS.split(), "", "1 h", " 1h", "1h ", "1h\n", "9" * 5000 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Signs, words, other units, other digits and more than ten years are usage errors."""
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "0.5s"), (60, "1m"), (90, "90s"), (3600, "1h"), (5400, "90m"), (86400, "1d")],
)
def test_duration_is_written_in_the_largest_unit_that_divides_it(seconds: float, text: str) -> None:
    """The largest unit that keeps the number whole is shown; parts of a second stay decimal."""
    assert format_duration(seconds) == text


@given(st.integers(0, 3650 * 86400 * 10**6))
def test_durations_survive_the_round_trip(microseconds: int) -> None:
    """What is written can be read and is the same."""
    seconds = microseconds / 10**6
    assert parse_duration(format_duration(seconds)) == seconds
