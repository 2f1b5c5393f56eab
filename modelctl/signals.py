"""SIGTERM, SIGHUP and Ctrl-C: unwind first, so that child processes end with this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


# The main thread waits for other threads in steps of this length (seconds): for a signal that comes just
# before a wait, Python calls the handler only when the wait has ended.
STEP_SECONDS = 0.5


class Terminated(BaseException):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt, it passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """What the signals of this process do: they raise an exception, at once or after some work."""

    # How long work may go on after a signal that `put_off` puts off (seconds).
    GRACE = 2.0

    def __init__(self) -> None:
        self._busy = False
        self._pending: int | None = None
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Handle the signals that usually end a program; one that the caller ignores stays ignored."""
        import signal

        usual = (signal.SIG_DFL, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in usual:
                self._before[number] = signal.signal(number, self._came)

    def leave(self) -> None:
        """Let the signals do what they did before."""
        import signal

        if self._pending is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Let the work inside end before a signal raises its exception, but no longer than `GRACE`."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._pending is not None:
            self._stop(self._pending)

    def _came(self, number: int, _: object) -> None:
        import signal

        if not self._busy or self._pending is not None:
            self._stop(number)
        self._pending = number
        alarm = signal.signal(signal.SIGALRM, lambda *_: self._stop(number))
        self._before[signal.SIGALRM] = alarm
        signal.setitimer(signal.ITIMER_REAL, self.GRACE)

    def _stop(self, number: int) -> None:
        """Raise the exception; from now on no signal may interrupt the killing of the children."""
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0)
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextmanager
def unwinding_on_signals() -> Iterator[Signals]:
    """Raise an exception on SIGTERM, SIGHUP and SIGINT, so that the commands of probes end, too."""
    import threading

    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    signals.watch()
    try:
        yield signals
    finally:
        signals.leave()


def end_by_signal(number: int) -> None:
    """End this process by the signal, as the sender expects."""
    import signal

    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
