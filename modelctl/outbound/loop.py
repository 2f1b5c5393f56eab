"""Run a coroutine to its end in a thread of its own, whatever loop the caller runs in."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from modelctl.signals import STEP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def complete(work: Coroutine[object, object, T]) -> T:
    """Return the result of *work*. A signal that interrupts the caller cancels it first."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        try:
            with suppress(BaseException):  # the task keeps it for the caller
                loop.run_until_complete(task)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="modelctl-send", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(STEP_SECONDS)  # in steps, for signals
    finally:
        with suppress(RuntimeError):  # the loop is closed: the task has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
    return task.result()
