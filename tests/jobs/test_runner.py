"""Jobs go on whatever happens to them, and a signal waits a moment for the one that works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from modelctl.errors import DatabaseUnavailableError, MissingSchemaError
from modelctl.jobs.runner import Job, Runner
from modelctl.jobs.schedule import Schedule
from modelctl.jobs.systemd import Systemd
from modelctl.jobs.troubles import Troubles
from modelctl.signals import Signals
from tests import ROOT
from tests.waiting import at_most

AWAY = DatabaseUnavailableError("cannot connect")


def passes(*outcomes: Exception | None) -> Callable[[object], None]:
    """Return work that has these outcomes one after another, and then is interrupted."""
    left = list(outcomes)

    def work(_: object) -> None:
        if not left:
            raise KeyboardInterrupt
        if (outcome := left.pop(0)) is not None:
            raise outcome

    return work


def run(main: Sequence[Exception | None], other: Exception | None, said: list[str]) -> None:
    """Run a main job, and one that fails or works at the start; add what is said to *said*."""
    Runner(
        Job("recover", passes(*main), Schedule(0.01)),
        [Job("drain", passes(other, *[None] * 10_000), Schedule(0.01))],
        troubles=Troubles(said.append),
        systemd=Systemd({}),
        patience=1,
        describe=lambda exc: f"hidden {type(exc).__name__}",
    ).run(Signals())


@pytest.mark.parametrize("error", [MissingSchemaError("no table"), ZeroDivisionError()])
def test_what_is_wrong_at_the_start_ends_it(error: Exception) -> None:
    """An error of the first pass that is no server's ends it, of each job."""
    with at_most(5):
        for main, other in (([error], None), ([None], error)):
            with pytest.raises(type(error)):
                run(main, other, [])


def test_everything_else_is_tried_again() -> None:
    """A server that is away from the start, a schema that vanishes, and a bug end nothing."""
    said: list[str] = []
    main = [AWAY, None, MissingSchemaError("no table"), None, ZeroDivisionError(), None]
    with pytest.raises(KeyboardInterrupt):
        run(main, AWAY, said)
    assert said[0] == "warning: cannot connect; trying again"
    assert "the database is back" in said
    assert said[-4:] == [
        "error: recover: no table; trying again",
        "recover works again",
        "error: recover: hidden ZeroDivisionError; trying again",
        "recover works again",
    ]


SLOW = """
import os, signal, sys, time
from modelctl.signals import Terminated, unwinding_on_signals
seconds, again = map(float, sys.argv[1:])
try:
    with unwinding_on_signals() as signals:
        with signals.put_off():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)
            if again: os.kill(os.getpid(), signal.SIGINT)
            print("done")
        print("never")
except (Terminated, KeyboardInterrupt) as exc:
    print(type(exc).__name__)
"""


@pytest.mark.parametrize(
    ("seconds", "again", "printed"),
    [
        ("0.3", "0", "done\nTerminated\n"),
        ("60", "0", "Terminated\n"),
        ("0.3", "1", "KeyboardInterrupt\n"),
    ],
)
def test_a_signal_waits_for_work(seconds: str, again: str, printed: str) -> None:
    """Work ends before the signal counts, unless it takes long, or a second signal comes."""
    with at_most(8):
        done = subprocess.run(
            [sys.executable, "-c", SLOW, seconds, again],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
