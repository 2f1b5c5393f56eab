"""The commands that carry a whole fleet: export, restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.inputs import open_source
from modelctl.arguments.invocation import exit_code_of, open_fleet, print_result
from modelctl.arguments.options import Actor, DryRun, Output, Source, Yes
from modelctl.arguments.selecting import Chosen, selects
from modelctl.errors import ExitCode, RefusedError

if TYPE_CHECKING:
    from typing import BinaryIO

    from modelctl.fleet.fleet import Fleet


@selects
def export(
    ctx: typer.Context,
    selection: Chosen,
    write: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Replace this file at once, and print nothing."),
    ] = None,
) -> None:
    """Print all that the fleet is, as JSON Lines, for restore.

    The models with their status, who switched them off, why and until when, their counters and tags;
    the pauses and incidents. With a selection only its models. The history is not exported.
    """
    with open_fleet(ctx) as fleet:
        lines = fleet.export(select=selection)
    if write is None:
        streams.write(lines)
        return
    from modelctl.output.files import replacing

    with replacing(write, private=True) as file:
        file.writelines(line.encode() for line in lines)


def restore(
    ctx: typer.Context,
    source: Source,
    enable: Annotated[
        bool,
        typer.Option("--enable", help="Also bring models back as the export says."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also below the floor recovery.min_active.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Add the models of an export, and bring those that are there to its state.

    All or nothing. A model that is off comes back no sooner than it would have, unless --enable is
    given. Models that are not in the export stay as they are. --dry-run shows each difference.
    """
    with open_fleet(ctx, actor) as fleet, open_source(source) as stream:
        if not (yes or dry_run):
            _confirm(fleet, stream, enable=enable, force=force)
        with streams.progress("restored") as progress:
            result = fleet.restore(
                stream, enable=enable, force=force, dry_run=dry_run, progress=progress
            )
    print_result(ctx, result, output)
    return exit_code_of(result.cache)


def _confirm(fleet: Fleet, stream: BinaryIO, *, enable: bool, force: bool) -> None:
    """Show what would become of the fleet, and ask."""
    from modelctl.views.backup import summary

    if not streams.can_ask() or not stream.seekable():
        raise RefusedError(
            "restore asks first, and nobody can be asked here; nothing was restored",
            hint="use --yes to restore, --dry-run to see what would change",
        )
    with streams.progress("compared") as progress:
        preview = fleet.restore(stream, enable=enable, force=force, dry_run=True, progress=progress)
    streams.say(summary(preview))
    if not streams.ask("Restore the export? [y/N] "):
        raise RefusedError("not confirmed; nothing was restored")
    stream.seek(0)
