"""Fixtures of the tests of `AsyncFleet`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from modelctl import crash_points
from tests import fleets


@dataclass
class Stop:
    """Stops threads at a named point until they may go on."""

    point: str = ""
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)
    passed: list[str] = field(default_factory=list)  # all points, in their order

    def __call__(self, point: str) -> None:
        """A thread is at this point."""
        self.passed.append(point)
        if point == self.point:
            self.reached.release()
            assert self.go_on.wait(30)

    def wait(self, threads: int = 1) -> None:
        """Wait until so many threads are at the point."""
        for _ in range(threads):
            assert self.reached.acquire(timeout=30)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """Give what stops threads; at the end they go on."""
    made = Stop()
    monkeypatch.setattr(crash_points, "hook", made)
    yield made
    made.go_on.set()


@pytest.fixture
def cached_url(pg_cleared: str, redis_url: str) -> str:
    """Give a database on PostgreSQL with three models, beside an empty Redis."""
    fleets.put(pg_cleared, "a", "b", "c")
    return pg_cleared
