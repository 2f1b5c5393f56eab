"""Forks: a child process drops the connections and the locks that it inherits from its parent.

The locks inside the SQLite library cannot be replaced in the child. So a fork waits until no other
thread is using SQLite.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload
from weakref import WeakKeyDictionary

T = TypeVar("T")

# How many seconds a fork waits at most. A listing that is read slowly holds no connection meanwhile.
LONGEST_WAIT = 2.0

_holders: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def watch(holder: Any, forget: Callable[[Any], None]) -> None:
    """Call *forget* with *holder* in each child of this process, as long as the holder exists.

    *forget* drops connections without telling their servers, and replaces locks: the thread that
    holds a lock of the parent does not exist in the child.
    """
    _holders[holder] = forget


class _Gate:
    """Counts the threads that use SQLite; a fork waits for them, and new ones wait for the fork."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._inside: Counter[int] = Counter()
        self._forking = False

    def enter(self) -> int:
        """Wait while a fork is running, then enter; return the value to pass to `leave`."""
        thread = threading.get_ident()
        with self._changed:
            # A thread that is inside may enter again: otherwise it and the fork wait for each other.
            while self._forking and not self._inside[thread]:
                self._changed.wait()
            self._inside[thread] += 1
        return thread

    def leave(self, thread: int) -> None:
        """Leave; a fork may be waiting for that."""
        with self._changed:
            self._inside[thread] -= 1
            if self._inside[thread] <= 0:
                del self._inside[thread]
            self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside, and hold the lock until the fork is done."""
        self._changed.acquire()
        self._forking = True
        until = time.monotonic() + LONGEST_WAIT
        while self._inside.keys() - {threading.get_ident()}:
            if not self._changed.wait(until - time.monotonic()):
                break

    def after_fork(self) -> None:
        """Let the threads of the parent enter again."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


gate = _Gate()


def _in_child() -> None:
    gate.__init__()  # type: ignore[misc]  # empty, with a lock that is free
    for holder, forget in list(_holders.items()):
        forget(holder)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(
        before=lambda: gate.before_fork(),
        after_in_parent=lambda: gate.after_fork(),
        after_in_child=_in_child,
    )


class cached_property(Generic[T]):  # noqa: N801 - the name of the one in functools
    """Like `functools.cached_property`, without the lock that it has until Python 3.12.

    If a thread holds that lock during a fork, the child waits for it for ever.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T | Self:
        if instance is None:
            return self
        # The attribute takes precedence from now on.
        made = vars(instance)[self._make.__name__] = self._make(instance)
        return made
