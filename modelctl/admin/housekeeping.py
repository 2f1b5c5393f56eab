"""The commands that keep the tables small: prune."""

from __future__ import annotations

from typing import Annotated

import typer

from modelctl.arguments.inputs import read_moment
from modelctl.arguments.invocation import open_fleet, print_result
from modelctl.arguments.options import DURATION_EXAMPLES, DryRun, Output


def prune(
    ctx: typer.Context,
    before: Annotated[
        str,
        typer.Option(
            metavar="DURATION|TIME",
            help=f"Delete older events: {DURATION_EXAMPLES}; or 08:00, 2026-12-01 (local time).",
        ),
    ],
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """Delete old events of the history.

    The newest event of each model stays. To do it regularly, set history.keep: recover then prunes.
    """
    given = read_moment(before)
    with open_fleet(ctx) as fleet:
        result = fleet.prune(given.at, dry_run=dry_run)
    print_result(ctx, result, output)
    given.say("before")
