"""The commands about the sources of catalogues: sync, formats."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_source, completes
from modelctl.arguments.invocation import (
    exit_code_of,
    open_fleet,
    print_result,
    print_view,
    prints_plain_lines,
    prints_table,
)
from modelctl.arguments.options import Actor, DryRun, Output, Yes
from modelctl.errors import ExitCode, UsageError
from modelctl.model import numbered
from modelctl.signals import unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.output.formats import OutputFormat
    from modelctl.sync.results import SyncResult

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Names of sources in the configuration; by default all of them.",
        autocompletion=complete_source,
    ),
]
Gone = Annotated[
    str,
    typer.Option(
        metavar="POLICY",
        help="What becomes of models that their source does not offer any more: keep, disable or "
        "remove.",
        autocompletion=completes("keep", "disable", "remove"),
    ),
]
MaxGone = Annotated[
    str,
    typer.Option(
        metavar="PERCENT",
        help="Refuse (exit 8) if more of the models of a source would be gone; one always may.",
    ),
]


def sync(
    ctx: typer.Context,
    sources: Sources = None,
    gone: Gone = "keep",
    max_gone: MaxGone = "20%",
    yes: Yes = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Bring the fleet to what its sources offer, in one transaction.

    Shows a plan and asks: + is added or back, ~ differs, - is gone upstream, ! stays as it is. In a
    pipe it needs --yes or --dry-run, prints one line for each change, and nothing if there is none.
    If a source cannot be read, nothing is changed.
    """
    share = _share(max_gone)
    shown = False

    def confirm(plan: SyncResult) -> bool:
        nonlocal shown
        shown = True
        return _confirm(plan)

    # What shows the progress would write over the question.
    asks = not (yes or dry_run)
    shows = nullcontext(lambda _: None) if asks else streams.progress("synced")
    # A signal also ends the command of a source.
    with unwinding_on_signals(), open_fleet(ctx, actor) as fleet, shows as progress:
        result = fleet.sync(
            sources,
            gone=gone,
            max_gone=share,
            confirm=confirm if asks else None,
            dry_run=dry_run,
            progress=progress,
        )
    _report(ctx, result, output, shown)
    return exit_code_of(result.cache)


def _share(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,6})?%?", text) or float(text.rstrip("%")) > 100:
        raise UsageError("--max-gone is a percentage", hint="write it like 20%")
    return float(text.rstrip("%")) / 100


def _confirm(plan: SyncResult) -> bool:
    """Show the plan, and ask."""
    from modelctl.views.sync import plan_lines, summary

    changing = numbered(plan.added + plan.changed + plan.gone + plan.back)
    if not streams.can_ask():
        raise UsageError(
            f"the plan changes {changing} ({summary(plan)}), and nobody can be asked; nothing was"
            " changed",
            hint="use --yes to change them, --dry-run to see the plan",
        )
    streams.say(*plan_lines(plan), *plan.notes, "")
    return streams.ask(f"Sync {changing}? [y/N] ")


def _report(
    ctx: typer.Context, result: SyncResult, output: OutputFormat | None, shown: bool
) -> None:
    """Print what was done: in a pipe only the changes, on a terminal also what stays, unless shown."""
    from modelctl.views.sync import plan_changes, planned_line, summary

    if prints_plain_lines(output):
        lines = (
            plan_changes(result)
            if result.dry_run
            else (each for each in result.changes if each.changed)
        )
        streams.write_lines(map(planned_line, lines))
    elif shown and prints_table(output):
        streams.say(f"done: {summary(result)}")
    else:
        if prints_table(output):
            streams.say(*(f"note: {note}" for note in result.notes))
        print_result(ctx, result, output)


def formats(ctx: typer.Context, output: Output = None) -> None:
    """Print the formats of catalogues that import and sync read, with an example of each."""
    from modelctl.views.sources import formats_view

    print_view(ctx, formats_view(), output)
