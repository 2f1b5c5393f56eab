"""The standard streams: data to stdout, words to stderr, answers from stdin."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from modelctl.errors import ModelctlError, clean

_stdout_is_gone = False


def open_closed_streams() -> None:
    """Open the standard streams that the caller closed, so that no other file gets their numbers.

    A stream that was closed is opened for the wrong direction, so that using it still fails.
    Stdout in a pipe is UTF-8, because ids are not limited to the characters of the locale.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the system hands out the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace"
        )


# ── stdout ──────────────────────────────────────────────────────────────────────────────────────


def write(pieces: Iterable[str]) -> None:
    """Write text to stdout as it is.

    If the reader of a pipe has gone away, it has read enough: that is no error.

    Raises:
        ModelctlError: stdout cannot be written, as on a full disk.
    """
    try:
        for piece in pieces:
            sys.stdout.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
    except OSError as exc:
        _give_up_stdout()
        raise ModelctlError(
            f"cannot write to standard output: {exc.strerror}",
            hint="what the command changed stays changed",
        ) from exc


def write_lines(values: Iterable[object]) -> None:
    """Write a line to stdout for each value."""
    write(f"{clean(str(value))}\n" for value in values)


def can_write(text: str) -> bool:
    """Return whether the encoding of stdout has these characters."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def stdout_is_gone() -> bool:
    """Return whether writing to stdout has failed before."""
    return _stdout_is_gone


def _give_up_stdout() -> None:
    """Discard what is still buffered, or the interpreter would fail on it once more at its end."""
    global _stdout_is_gone
    _stdout_is_gone = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ── stderr and stdin ────────────────────────────────────────────────────────────────────────────


def say(*lines: str) -> None:
    """Write lines for a person to stderr."""
    try:
        sys.stderr.writelines(f"{clean(line)}\n" for line in lines)
        sys.stderr.flush()
    except OSError:  # stderr is closed or full, and there is no other place to report that
        pass


def say_on_terminal(*lines: str) -> None:
    """Write lines to stderr, but only if it is a terminal."""
    if sys.stderr.isatty():
        say(*lines)


def can_ask() -> bool:
    """Return whether a person can be asked: stdin and stderr are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask a yes-or-no question; anything but y or yes is a no.

    The question goes to stderr, so that stdout holds data alone when it is redirected.
    """
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.buffer.readline().strip().lower() in (b"y", b"yes")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """Show a running number on stderr if it is a terminal; show nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done: bar.update(task, completed=done)
