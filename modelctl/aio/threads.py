"""Threads: the bounded pool in which the calls of an event loop do their work."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from modelctl import deadline, forks
from modelctl.errors import DatabaseUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs this coroutine."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "AsyncFleet needs an event loop of asyncio",
            hint="with trio, or without a loop, use Fleet in threads",
        ) from None


async def in_thread_of_its_own(work: Callable[[], _T]) -> _T:
    """Call *work* in a thread that ends with it."""
    loop, thread = running_loop(), ThreadPoolExecutor(1, "modelctl")
    try:
        job = thread.submit(work)
    except RuntimeError:  # the interpreter is shutting down and starts no thread
        return work()
    try:
        result = await asyncio.wrap_future(job, loop=loop)
    except BaseException:
        thread.shutdown(wait=False)  # the caller may be cancelled: the thread goes on
        raise
    thread.shutdown()
    return result


class Threads:
    """At most *size* threads, which start when they are needed.

    A process may fork at any time: the child has threads of its own.
    """

    def __init__(self, size: int, timeout: float) -> None:
        """*timeout*: how long a call may wait for a thread, and then for the database, in all."""
        self._size = size
        self._timeout = timeout
        self.closed = False
        self._begin()
        forks.watch(self, Threads._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[], _T], *, budget: bool = True) -> _T:
        """Call *work* in a thread.

        If the caller is cancelled, work that has begun goes on to its end, and its result is dropped;
        other work does not begin. *budget*: give the work what is left of the timeout.

        Raises:
            DatabaseUnavailableError: no thread was free in time; the work was not begun.
            UsageError: the threads were ended, or the interpreter is shutting down.
        """
        loop, asked = running_loop(), time.monotonic()

        def call() -> _T:
            if not budget:
                return work()
            with deadline.call(max(0.0, self._timeout - (time.monotonic() - asked))):
                return work()

        expired = False

        def expire() -> None:
            nonlocal expired
            expired = job.cancel()

        try:
            with self._lock:
                job = self._started().submit(contextvars.copy_context().run, call)
        except RuntimeError:
            hint = "call it before the end of asyncio.run"
            raise UsageError("the interpreter is shutting down", hint=hint) from None
        timer = loop.call_later(self._timeout, expire)
        try:
            return await asyncio.wrap_future(job, loop=loop)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not expired or (task is not None and task.cancelling()):
                raise
            raise DatabaseUnavailableError(
                "all threads of this fleet are at work",
                hint="make fewer calls at the same time, or give AsyncFleet a larger pool_size",
            ) from None
        finally:
            timer.cancel()

    def _started(self) -> ThreadPoolExecutor:
        if self.closed:
            raise UsageError("this fleet is closed", hint="open another one")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._size, "modelctl")
        return self._pool

    def reopen(self) -> None:
        """Allow calls again, after `end`."""
        self.closed = False

    def end(self) -> None:
        """Refuse calls from now on; wait for those that were asked for; end the threads."""
        with self._lock:
            self.closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
