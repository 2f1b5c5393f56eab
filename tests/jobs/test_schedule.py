"""A job has a steady rhythm, and growing pauses while it fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.jobs.schedule import FIRST_PAUSE, LONGEST_PAUSE, Schedule


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def scheduled(every: float, rest: float = 0.0, chance: float = 0.5) -> tuple[Clock, Schedule]:
    """Return a job that is due at once, and its clock."""
    clock = Clock()
    return clock, Schedule(every, rest=rest, clock=clock, chance=lambda: chance)


def test_the_rhythm_does_not_drift() -> None:
    """However long each pass takes, the next ones keep to the times; missed times are left out."""
    clock, schedule = scheduled(10)
    assert schedule.seconds_left() == 0
    for took, left in ((3, 7), (9.5, 0.5), (10, 10), (27, 3)):
        schedule.begin()
        clock.now += took
        schedule.worked()
        assert schedule.seconds_left() == pytest.approx(left)
        clock.now += schedule.seconds_left()


def test_an_expensive_job_rests() -> None:
    """A job that shall take a twentieth of the time pauses nineteen times as long as it worked."""
    clock, schedule = scheduled(15, rest=19)
    schedule.begin()
    clock.now += 2
    schedule.worked()
    assert schedule.seconds_left() == 38


def test_it_tries_again_soon_and_then_less_often() -> None:
    """The first pauses after a failure are short; the longest is the interval; a success resets them."""
    for away, longest in ((True, LONGEST_PAUSE), (False, 300)):
        clock, schedule = scheduled(300)
        pauses = []
        for _ in range(2000):
            schedule.failed(away=away)
            pauses.append(schedule.seconds_left())
            clock.now += pauses[-1]
        assert pauses[:3] == [1, 2, 4]
        assert pauses[-1] == longest
        schedule.worked()
        assert schedule.seconds_left() == 300
        schedule.failed(away=away)
        assert schedule.seconds_left() == FIRST_PAUSE


@given(
    every=st.floats(0.5, 1e6),
    rest=st.sampled_from([0.0, 19.0]),
    chance=st.floats(0, 1),
    passes=st.lists(st.tuples(st.sampled_from(["worked", "failed", "away"]), st.floats(0, 1e4))),
)
def test_it_is_always_due_again(
    every: float, rest: float, chance: float, passes: list[tuple[str, float]]
) -> None:
    """After whatever happened, the next pass comes no later than the rules say, and after a pause if it failed."""
    clock, schedule = scheduled(every, rest, chance)
    for what, took in passes:
        clock.now += schedule.seconds_left()
        schedule.begin()
        clock.now += took
        if what == "worked":
            schedule.worked()
            assert 0 <= schedule.seconds_left() <= max(every, rest * took) * 1.001
        else:
            schedule.failed(away=what == "away")
            longest = LONGEST_PAUSE if what == "away" else max(every, LONGEST_PAUSE)
            assert 0.7 < schedule.seconds_left() <= longest * 1.251
