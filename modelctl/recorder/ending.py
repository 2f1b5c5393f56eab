"""The end of the process: recorders write what waits at the interpreter's end and on SIGTERM.

Their threads are daemons, so that they run until the last thread of the application has ended: the
interpreter waits for other threads first, and then calls what `atexit` knows. A child process of
`multiprocessing` does not call that; it has finalizers of its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Protocol


class Recording(Protocol):
    """What the end of the process needs of a `Recorder`."""

    def close(self) -> None:
        """Write what waits, and end."""

    def flush_before_end(self, seconds: float) -> None:
        """Write what waits."""


# How long SIGTERM is delayed at most. Kubernetes sends SIGKILL after 30 s, Docker after 10 s.
SIGTERM_SECONDS = 5.0

# Not weak references: an application may forget its recorder, but what it has recorded waits there.
_open: set[Recording] = set()
_ending = False
_prepared_in = 0  # the process that calls `_at_exit` when it ends


def watch(recorder: Recording) -> None:
    """Close *recorder* at the end of the process, unless it is closed before.

    In the main thread this also sets a handler for SIGTERM, if the application has not set its own: the
    handler writes what waits, then the process ends by the signal. An application's handler is left
    alone: if it ends the process as usual, what waits is written.
    """
    _open.add(recorder)
    prepare()
    if _is_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        with suppress(ValueError):  # in another interpreter than the main one, as in mod_wsgi
            signal.signal(signal.SIGTERM, _on_sigterm)


def forget(recorder: Recording) -> None:
    """*recorder* is closed. After the last one SIGTERM has its default action again."""
    _open.discard(recorder)
    if not _open and _is_main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def prepare() -> None:
    """Make sure that this process, which may be the child of a fork, closes its recorders."""
    global _prepared_in
    if _prepared_in == os.getpid():
        return
    if not _prepared_in:
        atexit.register(_at_exit)
    _prepared_in = os.getpid()
    processes, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if processes and util and processes.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def has_begun() -> bool:
    """Whether the interpreter has closed the recorders."""
    return _ending


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _at_exit() -> None:
    global _ending
    _ending = True
    for recorder in list(_open):
        recorder.close()


def _on_sigterm(number: int, _: Any) -> None:
    # The main thread may be anywhere, also inside of a recorder. So another thread waits.
    signal.signal(number, signal.SIG_DFL)
    try:
        threading.Thread(target=_flush_and_end, args=(number,), daemon=True).start()
    except (
        RuntimeError
    ):  # no thread can start: the interpreter is ending, and perhaps writing already
        if not _ending:
            os.kill(os.getpid(), number)


def _flush_and_end(number: int) -> None:
    end = time.monotonic() + SIGTERM_SECONDS
    for recorder in list(_open):
        recorder.flush_before_end(max(0.0, end - time.monotonic()))
    os.kill(os.getpid(), number)
