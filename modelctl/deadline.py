"""How long a call may wait for the database: one budget of seconds for all its statements.

Only the time spent waiting for the database counts: not Redis, not a probe, not a caller that reads
a listing slowly. Work in many steps (a batch, an import, a drain, a long listing) renews the budget
after each step, so that it is never stopped while it makes progress. Outside of a call each
statement has a budget of its own.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Budget:
    __slots__ = ("left", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = self.left = seconds


_running: ContextVar[_Budget | None] = ContextVar("modelctl_budget", default=None)


@contextmanager
def call(seconds: float) -> Iterator[None]:
    """Give the code inside a budget of *seconds*; a call inside another call shares its budget."""
    if _running.get() is not None:
        yield
        return
    token = _running.set(_Budget(seconds))
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Give the code inside a new budget of *seconds*, whatever the call around it has left."""
    token = _running.set(_Budget(seconds))
    try:
        yield
    finally:
        _running.reset(token)


def running() -> object | None:
    """Return an object that stands for the running call; None outside of a call."""
    return _running.get()


def renew() -> None:
    """Start the budget again, after a step of long work."""
    if budget := _running.get():
        budget.left = budget.seconds


def left(default: float) -> float:
    """Return how many seconds the call may still wait, or *default* outside of a call."""
    budget = _running.get()
    return default if budget is None else budget.left


@contextmanager
def spending() -> Iterator[None]:
    """Subtract the time that the code inside takes from the budget."""
    started = time.monotonic()
    try:
        yield
    finally:
        if budget := _running.get():
            budget.left -= time.monotonic() - started
