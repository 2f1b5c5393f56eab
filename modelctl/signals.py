"""SIGTERM, SIGHUP and Ctrl-C: unwind first, so that child processes end with this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(BaseException):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt, it passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Raise an exception on SIGTERM, SIGHUP and SIGINT while the commands of probes are running.

    Only the first signal counts: a second one must not interrupt the killing of the children.
    """
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # A signal that the caller ignores, as nohup does, stays ignored.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in usual}

    def unwind(number: int, _: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for number in before:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_by_signal(number: int) -> None:
    """End this process by the signal, as the sender expects."""
    import signal

    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
