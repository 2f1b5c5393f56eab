"""Memory: the count that this process remembers, so that an application may ask on every page."""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from modelctl.count.results import Count

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.config import Config
    from modelctl.memory.listener import Listener

# The age in an answer is right to this many seconds: calls within them share one answer, because to
# make an answer takes longer than all else.
_SHARED_SECONDS = 0.001

# Stands for the time since `forget` was last called. It is an object and not a number, because two
# threads that increment a number at once may set it back to an earlier one.
_generation = object()


def forget() -> None:
    """Let no memory of this process use what it read, or began to read, before this call."""
    global _generation
    _generation = object()


@dataclass(slots=True)
class _Number:
    """A count, and how long it may be used. All times are seconds since the call that read it began."""

    generation: object
    asked_at: float  # monotonic seconds
    lives: float
    count: Count
    # An answer, and until when it is given again. Together, so that no thread mixes two of them.
    shown: tuple[float, Count | None] = (0.0, None)

    def answer(self, elapsed: float) -> Count:
        """Return the count with its age *elapsed* seconds after the call that read it began."""
        age = self.count.age_seconds + elapsed
        count = Count(self.count.active, "memory", age, self.lives - elapsed)
        self.shown = elapsed + _SHARED_SECONDS, count
        return count


class Memory:
    """The last count of one fleet.

    It has no lock. A number carries the generation in which the call that read it began, and is used
    only while that generation is the current one. So a reader that began before a change was
    acknowledged, and stores its number afterwards, stores it in vain.
    """

    def __init__(self, read: Callable[[], Count], ttl: float) -> None:
        """*read* asks the cache or the database; *ttl*: the longest time a number may be cached."""
        self._read = read
        self._ttl = ttl
        self._number: _Number | None = None
        self._listener: Listener | None = None

    def listen(self, config: Config) -> None:
        """Let Redis tell this process of changes by others, where it does that."""
        from modelctl.memory.listener import Listener

        # The thread must not keep alive what nobody uses any more.
        listener = Listener(config, forget, weakref.ref(self))
        with suppress(RuntimeError):  # no thread can be started: then max_age alone holds
            listener.start()
            self._listener = listener

    def close(self) -> None:
        """End the listener."""
        if self._listener is not None:
            self._listener.close()

    def recall(self, max_age: float) -> Count | None:
        """Return the number that this process read less than *max_age* seconds ago; None: it has none."""
        number = self._number
        if number is not None and number.generation is _generation:
            elapsed = monotonic() - number.asked_at
            if elapsed < max_age and elapsed < number.lives:
                until, count = number.shown
                return count if count is not None and elapsed < until else number.answer(elapsed)
        return None

    def read(self) -> Count:
        """Read the number, and remember it."""
        begun = self.begin()
        count = self._read()
        self.keep(begun, count)
        return count

    def begin(self) -> tuple[object, float]:
        """Return what `keep` has to know of a call that begins to read now."""
        return _generation, monotonic()

    def keep(self, begun: tuple[object, float], count: Count) -> None:
        """Remember what a call read."""
        # What is cached expires for this process when it expires for all others.
        lives = self._ttl if count.expires_in_seconds is None else count.expires_in_seconds
        self._number = _Number(*begun, lives, count)
