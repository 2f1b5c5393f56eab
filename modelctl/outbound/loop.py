"""Run a coroutine to its end in a thread of its own, whatever loop the caller runs in."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from modelctl.signals import STEP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")


def complete(work: Coroutine[object, object, T]) -> T:
    """Return the result of *work*. A signal that interrupts the caller cancels it first."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    ended = threading.Event()

    def run() -> None:
        try:
            with suppress(BaseException):  # the task keeps it for the caller
                loop.run_until_complete(task)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            ended.set()

    with running(run, loop, task, "modelctl-send"):
        # In steps, for signals. Not by `join`: in Python 3.11 a thread whose join was interrupted counts
        # as ended, and then nothing would wait until its command is killed.
        while not ended.wait(STEP_SECONDS):
            pass
    return task.result()


@contextmanager
def running(
    run: Callable[[], None], loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], name: str
) -> Iterator[None]:
    """Call *run*, which runs *task* in *loop*, in a thread; cancel the task at the end of the block.

    Wherever a signal interrupts the caller, the task is cancelled or has not begun: it may have
    started a process, which would outlive us.
    """
    begin = threading.Event()

    def call() -> None:
        begin.wait()  # the caller may be interrupted before `start` returns
        run()

    thread = threading.Thread(target=call, name=name, daemon=True)
    try:
        thread.start()
        begin.set()
        yield
    finally:
        if begin.is_set():
            with suppress(RuntimeError):  # the loop is closed: the task has ended
                loop.call_soon_threadsafe(task.cancel)
        else:
            task.cancel()
            begin.set()
        with suppress(RuntimeError):  # the thread has not started; then its task is cancelled
            thread.join()
