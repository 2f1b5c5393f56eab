"""The command that tells people: notify."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.invocation import open_fleet, print_result, prints_table
from modelctl.arguments.options import Output
from modelctl.errors import DatabaseUnavailableError, ExitCode, UsageError
from modelctl.output.formats import OutputFormat
from modelctl.signals import unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet
    from modelctl.notify.results import Notified

_SECONDS_BETWEEN_RUNS = 5
_FIRST = "this is the first run: what happens from now on will be sent"


def notify(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="Repeat every 5 seconds until interrupted.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    output: Output = None,
) -> ExitCode:
    """Tell people what happened: send new events to the receiver in [notify].

    Run it from cron: in a pipe it prints nothing if all is well. The first run only remembers where
    the history ends. Exit 6: the receiver could not be reached, and the next run tries again.
    Exit 3: it refused a message.
    """
    if follow and (dry_run or output is OutputFormat.JSON):
        wrong = "--dry-run" if dry_run else "-o json"
        hint = "leave one out" if dry_run else "use -o jsonl"
        raise UsageError(f"--follow and {wrong} do not go together", hint=hint)
    with unwinding_on_signals(), open_fleet(ctx) as fleet:
        if follow:
            _repeat(ctx, fleet, output)
        result = fleet.notify(dry_run=dry_run)
    _report(ctx, result, output)
    if result.problem is None:
        return ExitCode.OK
    return ExitCode.INVALID_CONFIG if result.permanent else ExitCode.STALE_CACHE


def _report(ctx: typer.Context, result: Notified, output: OutputFormat | None) -> None:
    if output is not OutputFormat.JSON:
        streams.say(*_notes(result, output))
    if output or result.dry_run or prints_table(output):
        print_result(ctx, result, output)


def _notes(result: Notified, output: OutputFormat | None) -> Iterator[str]:
    if result.busy:
        yield "another notify is running"
    if result.began:
        yield _FIRST
    if result.problem:
        yield _problem(result)
    if result.text and prints_table(output):
        yield from result.text.split("\n")


def _problem(result: Notified) -> str:
    return f"warning: the receiver did not accept a message: {result.problem}"


def _repeat(ctx: typer.Context, fleet: Fleet, output: OutputFormat | None) -> None:
    """Run again and again; a problem that lasts is reported once."""
    reported = None
    while True:
        try:
            result = fleet.notify()
            problem = _problem(result) if result.problem else None
            if result.sent:
                print_result(ctx, result, output)
            if result.began:
                streams.say(_FIRST)
        except DatabaseUnavailableError as exc:
            problem = f"warning: {exc.message}"
        if problem and problem != reported:
            streams.say(f"{problem}; trying again")
        elif reported and not problem:
            streams.say("it works again")
        reported = problem
        time.sleep(_SECONDS_BETWEEN_RUNS)
