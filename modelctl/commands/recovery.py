"""The commands of recovery: recover, probe, pause, resume."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.inputs import read_duration
from modelctl.arguments.invocation import exit_code_of, open_fleet, print_result, prints_plain_lines
from modelctl.arguments.options import (
    DURATION_EXAMPLES,
    Actor,
    DryRun,
    LimitTo,
    ModelIds,
    Output,
    Provider,
    Reason,
    Yes,
)
from modelctl.arguments.selecting import Chosen, selects
from modelctl.config.durations import parse_duration
from modelctl.errors import ExitCode, InvalidConfigError, RefusedError, UsageError
from modelctl.model import numbered
from modelctl.output.formats import OutputFormat
from modelctl.signals import unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet
    from modelctl.tables.selection import Selection


@selects
def recover(
    ctx: typer.Context,
    selection: Chosen,
    dry_run: DryRun = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Bring back at most N models; 0: no limit. Default: recovery.limit.",
        ),
    ] = None,
    cooldown: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help=f"The cooldown of this run alone: {DURATION_EXAMPLES}."
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Send each model one small request first, which costs money; a model that fails "
            "stays off.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Recover nothing; exit 1 if recover has not run as often as expected."
        ),
    ] = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Bring models back whose cooldown, or timed disable, is over.

    Run it from cron. In a pipe it prints one line for each model that came back, and nothing else.
    With --provider, --match and the like it looks only at these models, and does not ask. --check
    does not count such a run.
    """
    with unwinding_on_signals() if probe else nullcontext(), open_fleet(ctx, actor) as fleet:
        if check:
            return _check_last_recover(ctx, fleet, output)
        with streams.progress("asked and recovered" if probe else "recovered") as progress:
            result = fleet.recover(
                limit=limit,
                cooldown=read_duration(cooldown),
                probe=probe,
                select=selection,
                dry_run=dry_run,
                progress=progress,
            )
        if result.busy:
            streams.say("another recover is running")
        if probe and dry_run and output is not OutputFormat.JSON:
            _say_how_many_requests(result.requests)
        # The lists may be on disk, in files that are closed with the fleet.
        if prints_plain_lines(output) and not dry_run:
            streams.write_lines(result.recovered)
        else:
            print_result(ctx, result, output)
    return exit_code_of(result.cache)


def _check_last_recover(ctx: typer.Context, fleet: Fleet, output: OutputFormat | None) -> ExitCode:
    """Print when recover last finished, and fail if that is too long ago."""
    if not fleet.config.recovery.expect_every:
        raise InvalidConfigError(
            "recovery.expect_every is not set, so recover is not expected at any time",
            hint='set it to about three intervals of your cron job, as in expect_every = "15m"',
        )
    last = fleet.last_recover()
    print_result(ctx, last, output)
    if not last.overdue:
        return ExitCode.OK
    if output is not OutputFormat.JSON:
        in_future = last.seconds_ago is not None and last.seconds_ago < 0
        streams.say(
            "error: the last recover finished in the future: the database's clock was set back"
            if in_future
            else "error: recover has not finished for longer than recovery.expect_every"
        )
    return ExitCode.UNEXPECTED


@selects
def probe(
    ctx: typer.Context,
    selection: Chosen,
    model_ids: ModelIds = None,
    limit_to: LimitTo = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Ask models that are off whether they work; exit 1 if one does not.

    Each model gets one small request, which costs money. If a model could not be asked, that is exit
    1, too. No model is switched on; a model that fails starts its cooldown again. Of a selection,
    models that are on or have no probe are left out.
    """
    ids = model_ids or []
    if selection and not (yes or dry_run):
        with open_fleet(ctx, actor) as fleet:
            limit_to = _confirm_requests(fleet, selection, limit_to)
    with (
        unwinding_on_signals(),
        open_fleet(ctx, actor) as fleet,
        streams.progress("asked") as progress,
    ):
        result = fleet.probe(
            *ids, select=selection, limit_to=limit_to, dry_run=dry_run, progress=progress
        )
    print_result(ctx, result, output)
    if dry_run and output is not OutputFormat.JSON:
        _say_how_many_requests(result.requests)
    all_healthy = all(answer.healthy for answer in result.answers)
    return ExitCode.OK if all_healthy else ExitCode.UNEXPECTED


def _confirm_requests(fleet: Fleet, selection: Selection, limit_to: int | None) -> int | None:
    """Ask before more than one request is made; return how many may be made."""
    requests = fleet.probe(select=selection, limit_to=limit_to, dry_run=True).requests
    if requests <= 1:
        return limit_to
    if not streams.can_ask():
        raise UsageError(
            f"{numbered(requests, 'request')} would be made, and nobody can be asked here",
            hint="use --yes to make them, --dry-run to see how many they are",
        )
    if not streams.ask(f"Make {numbered(requests, 'request')}? [y/N] "):
        raise RefusedError("not confirmed; no model was asked")
    return requests


def _say_how_many_requests(requests: int) -> None:
    streams.say(f"{numbered(requests, 'request')} would be made")


def pause(
    ctx: typer.Context,
    duration: Annotated[
        str,
        typer.Option("--for", metavar="DURATION", help=f"For how long: {DURATION_EXAMPLES}."),
    ],
    provider: Provider = None,
    reason: Reason = None,
    actor: Actor = None,
    output: Output = None,
) -> None:
    """Stop all automatic switching, on and off, for a time.

    Until then neither the health rule nor recover changes a status; people still can.
    """
    with open_fleet(ctx, actor) as fleet:
        result = fleet.pause(parse_duration(duration), provider=provider, reason=reason)
    print_result(ctx, result, output)


def resume(
    ctx: typer.Context,
    provider: Provider = None,
    reason: Reason = None,
    actor: Actor = None,
    output: Output = None,
) -> None:
    """End a pause before its time."""
    from modelctl.recovery.explain import describe

    with open_fleet(ctx, actor) as fleet:
        result = fleet.resume(provider=provider, reason=reason)
        other_pauses = [hold for hold in fleet.holds() if hold.failure_type is None]
    print_result(ctx, result, output)
    streams.say_on_terminal(*map(describe, other_pauses))
