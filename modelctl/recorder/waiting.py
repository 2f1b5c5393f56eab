"""The outcomes that wait in memory: in their order, each model's runs of equal outcomes as one entry."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from modelctl.health import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from modelctl.errors import ModelctlError
    from modelctl.model import FailureType


class Entry:
    """Some outcomes of one model: first equal failures, then successes. Either number may be 0.

    *number*: its place among all entries. *error*: why its outcomes are not recorded.
    """

    __slots__ = ("error", "failure", "failures", "id", "number", "successes")

    def __init__(self, outcome: Outcome, number: int) -> None:
        self.id = outcome.id
        self.number = number
        self.failure = outcome if outcome.type else None
        self.failures = 0
        self.successes = 0
        self.error: ModelctlError | None = None

    @property
    def size(self) -> int:
        """How many outcomes it stands for."""
        return self.failures + self.successes

    def empty(self) -> None:
        """Forget the outcomes: they are recorded, or will not be."""
        self.failures = self.successes = 0

    def outcomes(self) -> Iterator[Outcome]:
        """Yield its outcomes in their order."""
        if self.failure:
            for _ in range(self.failures):
                yield self.failure
        success = Outcome(self.id, None)
        for _ in range(self.successes):
            yield success

    def keep_first(self, most: int) -> Entry:
        """Keep the first *most* outcomes, and return an entry with the others."""
        rest = Entry(self.failure or Outcome(self.id, None), self.number)
        rest.failures = max(0, self.failures - most)
        rest.successes = self.size - most - rest.failures
        self.failures -= rest.failures
        self.successes -= rest.successes
        return rest


class WaitingOutcomes:
    """The entries that wait to be written. Only for a caller that holds the lock of the recorder.

    A success takes no memory if an outcome of its model is waiting already, and neither does a failure
    that is equal to the model's last one. The last tenth of the capacity is kept for failures that
    count.
    """

    def __init__(self, capacity: int, counted: Collection[FailureType]) -> None:
        """*counted*: the types of failures that count against a model."""
        self._capacity = capacity
        self._room_for_all = capacity - capacity // 10
        self._counted = counted
        self._entries: deque[Entry] = deque()
        # The newest entry of each model; later outcomes of the model are added to it.
        self._newest: dict[str, Entry] = {}
        self.size = 0
        self.last_number = 0

    @property
    def finished(self) -> int:
        """The number up to which no entry is waiting."""
        return self._entries[0].number - 1 if self._entries else self.last_number

    @property
    def has_much_room(self) -> bool:
        """Whether it is at most half full."""
        return len(self._entries) <= self._capacity // 2

    def is_counted(self, outcome: Outcome) -> bool:
        """Whether an outcome is a failure that counts against its model."""
        return outcome.type in self._counted

    def add(self, outcome: Outcome, *, alone: bool = False) -> Entry | None:
        """Add an outcome; return its entry, None: there is no room.

        *alone*: the outcome shall be the first one of its entry.
        """
        entry = None if alone else self._newest.get(outcome.id)
        if outcome.type is None and entry:
            entry.successes += 1
        elif entry and entry.failure == outcome and not entry.successes:
            entry.failures += 1
        else:
            room = self._capacity if self.is_counted(outcome) else self._room_for_all
            if len(self._entries) >= room:
                return None
            self.last_number += 1
            entry = Entry(outcome, self.last_number)
            entry.failures, entry.successes = (1, 0) if outcome.type else (0, 1)
            self._entries.append(entry)
            self._newest[outcome.id] = entry
        self.size += 1
        return entry

    def take(self, most: int) -> list[Entry]:
        """Remove and return the oldest entries, with at most *most* outcomes."""
        taken: list[Entry] = []
        while self._entries and most > 0:
            entry = self._entries.popleft()
            if entry.size > most:
                rest = entry.keep_first(most)
                self._entries.appendleft(rest)
                if self._newest[entry.id] is entry:
                    self._newest[entry.id] = rest
            elif self._newest[entry.id] is entry:
                del self._newest[entry.id]
            taken.append(entry)
            most -= entry.size
            self.size -= entry.size
        return taken
