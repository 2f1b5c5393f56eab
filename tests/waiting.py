"""Waiting for what happens elsewhere, and checking that nothing takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


def until(condition: Callable[[], object], seconds: float = 30, what: str = "") -> None:
    """Ask again and again until *condition* is true; fail after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what or "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    # The slack is for a busy machine: a retry or an endless wait takes far longer.
    assert took < seconds + 2, f"took {took:.2f} s"


def side_by_side(call: Callable[..., object], cases: Iterable[tuple[Any, ...]]) -> None:
    """Make a call for each case, each in a thread of its own, so that they wait at the same time."""
    every = list(cases)
    with ThreadPoolExecutor(len(every)) as threads:
        for done in [threads.submit(call, *case) for case in every]:
            done.result()
