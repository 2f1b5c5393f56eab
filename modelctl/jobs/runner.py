"""Runner: runs jobs again and again in one process, until a signal ends it.

Each job has a thread, so that a job that takes long (probes of slow models) delays no other, and a
server that does not answer holds up only those that need it. The longest job runs in the main thread,
because there the exception of a signal ends also its probes and their child processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelctl import streams
from modelctl.errors import ModelctlError
from modelctl.jobs.schedule import Schedule
from modelctl.jobs.troubles import AWAY, ReceiverAwayError, Troubles
from modelctl.signals import STEP_SECONDS

if TYPE_CHECKING:
    from modelctl.jobs.systemd import Systemd
    from modelctl.signals import Signals

# How long the other jobs may go on after that of the main thread has stopped. Then their transactions
# are cancelled, because the connections end with the process.
_STOP_SECONDS = 3.0
_BEAT_SECONDS = 5.0
# A job that makes no progress for so long hangs, against all deadlines of its calls.
_HANGS_AFTER_SECONDS = 900.0


@dataclass(slots=True)
class Job:
    """Work that is repeated. *work* is given a function to call when it makes progress."""

    name: str
    work: Callable[[Callable[[int], None]], object]
    schedule: Schedule
    at_work: bool = field(default=False, init=False)
    steps: int = field(default=0, init=False)

    def progress(self, _: int = 0) -> None:
        """Note that the work goes on."""
        self.steps += 1


class Runner:
    """Runs the jobs, tells systemd, and ends the process if a job hangs."""

    def __init__(
        self,
        main: Job,
        others: Sequence[Job],
        *,
        troubles: Troubles,
        systemd: Systemd,
        patience: float,
        describe: Callable[[Exception], str],
        at_the_end: Callable[[], None] = lambda: None,
    ) -> None:
        """*main*: the job of the main thread. *patience*: how long one call may wait for a server.

        *describe*: what an unexpected exception says, without passwords. *at_the_end* is called when
        the jobs have stopped, or did not stop in time.
        """
        self._main, self._others = main, others
        self._troubles, self._systemd = troubles, systemd
        self._hangs_after = max(_HANGS_AFTER_SECONDS, 4 * patience)
        self._describe = describe
        self._at_the_end = at_the_end
        self._stopping = threading.Event()

    def run(self, signals: Signals) -> None:
        """Run the jobs until SIGTERM, SIGHUP or SIGINT, which raises an exception.

        Raises:
            ModelctlError: a job failed the first time, and not because a server is away.
        """
        threads = [
            threading.Thread(target=self._beat, daemon=True),
            *(threading.Thread(target=self._repeat, args=(j,), daemon=True) for j in self._others),
        ]
        try:
            for job in self._others:
                self._once(job, first=True)
            self._systemd.tell("READY=1", self._status())
            for thread in threads:
                thread.start()
            first = True
            while not self._stopping.is_set():
                left = self._main.schedule.seconds_left()
                if left > 0:
                    self._stopping.wait(min(left, STEP_SECONDS))
                    continue
                with signals.put_off():
                    self._once(self._main, first=first)
                first = False
        finally:
            self._stopping.set()
            self._systemd.tell("STOPPING=1")
            end = time.monotonic() + _STOP_SECONDS
            for thread in filter(threading.Thread.is_alive, threads):
                thread.join(max(0.0, end - time.monotonic()))
            self._at_the_end()

    def _repeat(self, job: Job) -> None:
        while not self._stopping.wait(job.schedule.seconds_left()):
            self._once(job)

    def _once(self, job: Job, *, first: bool = False) -> None:
        """Let a job work once. What is wrong at the *first* time and will not pass is an error."""
        job.schedule.begin()
        job.progress()
        job.at_work = True
        try:
            job.work(job.progress)
        except Exception as exc:
            if first and not isinstance(exc, AWAY):
                raise
            job.schedule.failed(away=isinstance(exc, AWAY))
            if not isinstance(exc, ModelctlError | ReceiverAwayError):
                exc = ModelctlError(self._describe(exc))
            news = self._troubles.failed(job.name, exc)
        else:
            job.schedule.worked()
            news = self._troubles.worked(job.name)
        finally:
            job.at_work = False
        if news:
            self._systemd.tell(self._status())

    def _status(self) -> str:
        return f"STATUS={self._troubles.status()}"

    def _beat(self) -> None:
        """Tell systemd that the process lives; end it if a job hangs, so that it is started anew."""
        watchdog = self._systemd.watchdog_seconds
        seconds = _BEAT_SECONDS if watchdog is None else min(_BEAT_SECONDS, watchdog / 3)
        # Of each job: the steps that were seen last, and for how long there was no other. The beats
        # are added up, instead of times: a process that was stopped for a while was not at work.
        seen: dict[str, tuple[int, float]] = {}
        while not self._stopping.wait(seconds):
            for job in (self._main, *self._others):
                steps, quiet = seen.get(job.name, (0, 0.0))
                quiet = quiet + seconds if job.at_work and job.steps == steps else 0.0
                seen[job.name] = (job.steps, quiet)
                if quiet > self._hangs_after:
                    streams.say(f"error: {job.name} hangs; the process ends")
                    os._exit(1)
            self._systemd.tell("WATCHDOG=1")
