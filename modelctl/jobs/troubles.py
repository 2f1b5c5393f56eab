"""What goes wrong while jobs run: said when it begins and when it is over, not again and again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from modelctl.errors import DatabaseUnavailableError, ModelctlError, StaleCacheError

if TYPE_CHECKING:
    from collections.abc import Callable


class ReceiverAwayError(Exception):
    """The receiver of notifications did not accept a message; no call of a `Fleet` raises this."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.hint = ""
        super().__init__(message)


# Something else is away or refuses: every job that needs it fails alike, and trying again may help.
# With what is said when it is over.
_BACK: dict[type[Exception], str] = {
    DatabaseUnavailableError: "the database is back",
    StaleCacheError: "Redis is back",
    ReceiverAwayError: "the receiver of notifications is back",
}
AWAY = tuple(_BACK)
# A warning that fails no job is said again only after this time (seconds).
_REPEAT_SECONDS = 3600.0
_MOST_WARNINGS = 1000


class Troubles:
    """Knows which jobs fail, and why; its methods may be called by several threads."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*say* receives each line."""
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self._of_jobs: dict[str, str] = {}  # the trouble that each failing job has
        self._open: dict[str, str] = {}  # the troubles that are not over, with what was said
        self._warned: dict[str, float] = {}  # when each warning was said

    def status(self) -> str:
        """Say in a few words how things are."""
        with self._lock:
            return "; ".join(self._open.values()) or "all is well"

    def failed(self, job: str, error: ModelctlError | ReceiverAwayError) -> bool:
        """Note that a job failed; return whether that was news."""
        shared = isinstance(error, AWAY)
        if shared or isinstance(error, ReceiverAwayError):
            trouble = type(error).__name__
        else:
            trouble = f"{job}: {error.exit_code.name}"
        with self._lock:
            before = self._of_jobs.get(job)
            self._of_jobs[job] = trouble
            if before is not None and before != trouble and before not in self._of_jobs.values():
                self._open.pop(before, None)
            # A job that still has a trouble which is over for another job says nothing new.
            if trouble in self._open or trouble == before:
                return False
            self._open[trouble] = text = error.message if shared else f"{job}: {error.message}"
            self._say(f"{'warning' if shared else 'error'}: {text}; trying again")
            if error.hint and not shared:  # of a server that is away it says: try again
                self._say(f"hint: {error.hint}")
            return True

    def worked(self, job: str) -> bool:
        """Note that a job worked; return whether a trouble is over by that."""
        with self._lock:
            trouble = self._of_jobs.pop(job, "")
            if self._open.pop(trouble, None) is None:
                return False
            back = {kind.__name__: text for kind, text in _BACK.items()}
            self._say(back.get(trouble, f"{job} works again"))
            return True

    def warn(self, message: str) -> None:
        """Say a warning that fails no job, at most once an hour."""
        with self._lock:
            now = self._clock()
            if now - self._warned.get(message, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                return
            if len(self._warned) >= _MOST_WARNINGS:
                self._warned.clear()
            self._warned[message] = now
            self._say(f"warning: {message}")
