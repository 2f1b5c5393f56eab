"""The command that does all periodic work in one process: run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.invocation import open_fleet
from modelctl.arguments.options import DURATION_EXAMPLES, Actor
from modelctl.config.durations import parse_duration
from modelctl.errors import ExitCode, UsageError
from modelctl.signals import Terminated, unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet
    from modelctl.jobs.runner import Job, Runner

_DRAIN_SECONDS = 1.0
_METRICS_SECONDS = 15.0
# Counting the events takes as long as the history is: it shall take a twentieth of the time at most.
_METRICS_REST = 19.0
_NOTIFY_SECONDS = 5.0
# Each job uses one connection at a time; one more is kept for readers.
_CONNECTIONS = 5


def run(
    ctx: typer.Context,
    recover_every: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"How often to recover: {DURATION_EXAMPLES}."),
    ] = "5m",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Send each model one small request before it comes back, which costs money; a "
            "model that fails stays off.",
        ),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Replace this file every 15 s, for the textfile collector of node_exporter.",
        ),
    ] = None,
    actor: Actor = None,
) -> ExitCode:
    """Do all periodic work in one process, until SIGTERM or Ctrl-C.

    It delivers queued invalidations every second, brings models back, deletes old events if
    history.keep is set, and tells people what happened if there is a section [notify]. It prints one line for each model that came back, and on stderr what goes
    wrong. While a server is away it tries again. It may run on several hosts.
    """
    every = parse_duration(recover_every)
    if every < 1:
        raise UsageError("--recover-every must be at least 1s")
    try:
        with (
            unwinding_on_signals() as signals,
            open_fleet(ctx, actor, pool_size=_CONNECTIONS) as fleet,
        ):
            _runner(fleet, every, probe, metrics, ctx.obj.hide_passwords).run(signals)
    except Terminated as exc:
        if exc.number != signal.SIGTERM:
            raise
    return ExitCode.OK


def _runner(
    fleet: Fleet,
    recover_every: float,
    probe: bool,
    metrics: str | None,
    hide_passwords: Callable[[str], str],
) -> Runner:
    from modelctl.jobs.runner import Runner
    from modelctl.jobs.systemd import Systemd
    from modelctl.jobs.troubles import AWAY, Troubles
    from modelctl.outbound import command

    # Where nothing is queued, no job would notice that Redis refuses us.
    with suppress(*AWAY):
        fleet.cache_report()
    troubles = Troubles(streams.say)
    fleet.on_warning = troubles.warn
    streams.say_on_terminal("running; Ctrl-C ends it")
    others = [_draining(fleet)]
    if fleet.config.notify:
        others.append(_notifying(fleet))
    if metrics:
        others.append(_measuring(fleet, metrics))
    return Runner(
        _recovering(fleet, recover_every, probe),
        others,
        troubles=troubles,
        systemd=Systemd(os.environ),
        patience=fleet.config.database.timeout,
        describe=lambda exc: hide_passwords(f"{type(exc).__name__}: {exc}"),
        at_the_end=command.kill_all,
    )


def _draining(fleet: Fleet) -> Job:
    from modelctl.jobs.runner import Job
    from modelctl.jobs.schedule import Schedule

    return Job("drain", lambda _: fleet.drain(), Schedule(_DRAIN_SECONDS))


def _recovering(fleet: Fleet, every: float, probe: bool) -> Job:
    """Recover; that also deletes old events."""
    from modelctl.jobs.runner import Job
    from modelctl.jobs.schedule import Schedule

    def work(progress: Callable[[int], None]) -> None:
        streams.write_lines(fleet.recover(probe=probe, progress=progress).recovered)

    return Job("recover", work, Schedule(every))


def _notifying(fleet: Fleet) -> Job:
    """Send what is new; what the receiver does not accept now is tried again by the schedule."""
    from modelctl.jobs.runner import Job
    from modelctl.jobs.schedule import Schedule
    from modelctl.jobs.troubles import ReceiverAwayError

    def work(_: Callable[[int], None]) -> None:
        result = fleet.notify(patience=0)
        if result.began:
            streams.say("notifications begin: what happens from now on will be sent")
        if result.problem:
            raise ReceiverAwayError(f"the receiver did not accept a message: {result.problem}")

    return Job("notify", work, Schedule(_NOTIFY_SECONDS))


def _measuring(fleet: Fleet, file: str) -> Job:
    from modelctl.jobs.runner import Job
    from modelctl.jobs.schedule import Schedule
    from modelctl.output.files import replacing
    from modelctl.output.openmetrics import ExpositionFormat, exposition

    def work(_: Callable[[int], None]) -> None:
        text = exposition(fleet.metrics(), ExpositionFormat.PROMETHEUS)
        with replacing(file) as place:
            place.write(text.encode())

    return Job("metrics", work, Schedule(_METRICS_SECONDS, rest=_METRICS_REST))
