"""When a job is due: in a steady rhythm, and after growing pauses while it fails."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE = 1.0
# The longest pause while a server is away: whatever the rhythm is, the job goes on soon after the
# server is back.
LONGEST_PAUSE = 5.0


class Schedule:
    """The times of one job, by a clock that never goes back; it is due at once."""

    def __init__(
        self,
        every: float,
        *,
        rest: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """*every*: seconds. *rest*: how many times as long as it worked a job pauses at least.

        *chance*: numbers from 0 to 1, so that processes that fail together do not try again together.
        """
        self._every, self._rest = every, rest
        self._clock, self._chance = clock, chance
        self._due = self._began = clock()
        self._failures = 0

    def seconds_left(self) -> float:
        """Return in how many seconds the job is due; 0: it is due now."""
        return max(0.0, self._due - self._clock())

    def begin(self) -> None:
        """Note that the job begins to work now."""
        self._began = self._clock()

    def worked(self) -> None:
        """Note that the job has done its work; the times that passed meanwhile are left out."""
        now = self._clock()
        self._failures = 0
        self._due += self._every * (1 + max(0.0, now - self._due) // self._every)
        self._due = max(self._due, now + self._rest * (now - self._began))

    def failed(self, *, away: bool) -> None:
        """Note that the job has failed; *away*: only because a server is away."""
        longest = LONGEST_PAUSE if away else max(LONGEST_PAUSE, self._every)
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 30), longest)
        self._failures += 1
        self._due = self._clock() + pause * (0.75 + self._chance() / 2)
