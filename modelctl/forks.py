"""What a child process forgets after a fork: the connections and the locks of its parent.

The locks inside of a C library cannot be made anew. So a fork waits until no other thread is in SQLite.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

# How long a fork waits (seconds); a listing that somebody pages through holds no connection.
LONGEST_WAIT = 2.0

_holders: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def watch(holder: Any, forget: Callable[[Any], None]) -> None:
    """Call *forget* with *holder* in each child of this process, as long as the holder lives.

    It drops connections without a word to their servers, and makes new locks: the thread that holds
    an old one does not live in the child.
    """
    _holders[holder] = forget


class _Gate:
    """Threads go in and out; a fork waits for those inside, and keeps the others out meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._inside: Counter[int] = Counter()
        self._forking = False

    def enter(self) -> int:
        """Go in, and return what `leave` has to be given."""
        thread = threading.get_ident()
        with self._changed:
            # Who is inside already may go in once more, or the fork would wait for it in vain.
            while self._forking and not self._inside[thread]:
                self._changed.wait()
            self._inside[thread] += 1
        return thread

    def leave(self, thread: int) -> None:
        """Go out."""
        with self._changed:
            self._inside[thread] -= 1
            if self._inside[thread] <= 0:
                del self._inside[thread]
            self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for those inside, and hold the lock until the fork is done."""
        self._changed.acquire()
        self._forking = True
        until = time.monotonic() + LONGEST_WAIT
        while self._inside.keys() - {threading.get_ident()}:
            if not self._changed.wait(until - time.monotonic()):
                break

    def after_fork(self) -> None:
        """Let the threads of the parent in again."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


gate = _Gate()


def _in_child() -> None:
    gate.__init__()  # type: ignore[misc]  # nobody is inside, and nobody holds the lock
    for holder, forget in list(_holders.items()):
        forget(holder)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(
        before=lambda: gate.before_fork(),
        after_in_parent=lambda: gate.after_fork(),
        after_in_child=_in_child,
    )
