"""The whole terminal: text that is drawn again and again, and keys. It is always left as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

# Terminals that cannot move the cursor.
_DUMB = ("", "dumb", "unknown")
_USUAL_SIZE = (80, 24)
CTRL_C, CTRL_L = "\x03", "\x0c"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGALRM)


def is_possible() -> bool:
    """Return whether stdout is a terminal that can be used as a whole."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in _DUMB


def size() -> tuple[int, int]:
    """Return the columns and lines of the terminal as they are now."""
    with suppress(OSError):
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        if columns and lines:
            return columns, lines
    return _USUAL_SIZE


class FullScreen:
    """The alternate screen, without a cursor, and keys one by one without an echo.

    The screen that was there before comes back at the end of the `with` block, at an exception, at a
    signal that raises one, and while Ctrl-Z stops the process.

    Ctrl-C is a key, too: a KeyboardInterrupt inside of a statement would make the driver wait for an
    answer to its cancellation.
    """

    def __init__(self) -> None:
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._mode: Any = None  # the mode of the keyboard as it was
        self._live: Any = None
        self._noted: set[int] = set()  # the signals that came
        self._handlers: dict[int, Any] = {}

    @property
    def has_keys(self) -> bool:
        """Whether somebody can press a key."""
        return self._keyboard is not None

    def __enter__(self) -> Self:
        with _held_signals():
            for number in (signal.SIGINT, signal.SIGTSTP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._note)
            try:
                self._show()
            except BaseException:
                self._leave()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        with _held_signals():
            self._leave()

    def draw(self, text: RenderableType, columns: int, lines: int) -> None:
        """Replace what is shown by a text of this size."""
        self._live.console.size = (columns, lines)
        self._live.update(text, refresh=True)

    def keys(self, seconds: float) -> str | None:
        """Return the keys that are pressed within this time; None: the terminal is gone.

        Ctrl-L asks to draw everything again, as is needed after the process was stopped.
        """
        if signal.SIGTSTP in self._noted:
            self._stop_process()
            return CTRL_L
        if signal.SIGINT in self._noted:
            return CTRL_C
        if self._keyboard is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._keyboard], [], [], seconds)
        if not ready:
            return ""
        try:
            pressed = os.read(self._keyboard, 1024)
        except OSError:
            return None
        return pressed.decode("latin-1") or None

    @contextmanager
    def calling(self, work: Callable[[], None], every: float) -> Iterator[None]:
        """Call *work* again and again while the block waits for something.

        A signal does that, so no thread is needed, and *work* may raise an exception to end the wait.
        """
        waiting = True

        def look(*_: object) -> None:
            # The timer begins again only now: a slow terminal must not get a second text within the first.
            if waiting:
                work()
                signal.setitimer(signal.ITIMER_REAL, every)

        before = signal.signal(signal.SIGALRM, look)
        try:
            signal.setitimer(signal.ITIMER_REAL, every)
            yield
        finally:
            waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _show(self) -> None:
        self._read_single_keys()  # first: a process in the background is stopped here
        from rich.console import Console
        from rich.live import Live

        console = Console(
            # It is known to be a terminal. Variables such as TTY_COMPATIBLE may say that it is none.
            force_terminal=True,
            force_interactive=True,
            markup=False,
            emoji=False,
            highlight=False,
        )
        # Nothing else writes while it is shown: warnings are part of it.
        self._live = Live(
            console=console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _read_single_keys(self) -> None:
        """Set the mode of the keyboard, also so that Ctrl-S and Ctrl-backslash are keys like others."""
        if self._keyboard is None:
            return
        import termios
        import tty

        self._mode = termios.tcgetattr(self._keyboard)
        tty.setcbreak(self._keyboard, termios.TCSANOW)
        mode = termios.tcgetattr(self._keyboard)
        mode[0] &= ~termios.IXON
        mode[6][termios.VQUIT] = b"\0"
        termios.tcsetattr(self._keyboard, termios.TCSANOW, mode)

    def _hide(self) -> None:
        """Bring back what was there before. If the terminal is gone, there is nothing to bring back."""
        with suppress(OSError):
            if self._live is not None:
                self._live.stop()
        if self._keyboard is not None and self._mode is not None:
            import termios

            with suppress(OSError, termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._mode)

    def _leave(self) -> None:
        self._hide()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, _: object) -> None:
        # No more than that: the handler may have interrupted a write to the terminal.
        self._noted.add(number)

    def _stop_process(self) -> None:
        """Stop as Ctrl-Z asks for, with the terminal as it was; go on when the shell says so."""
        self._noted.discard(signal.SIGTSTP)
        self._hide()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)
        self._show()


@contextmanager
def _held_signals() -> Iterator[None]:
    """Let signals wait for the end of the block, so that the terminal is never left half-way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
