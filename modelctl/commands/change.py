"""The commands with which a person changes models: add, remove, disable, enable."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl.commands.completion import complete_provider
from modelctl.commands.inputs import read_duration, read_time
from modelctl.commands.invocation import open_fleet, print_changes
from modelctl.commands.options import (
    DURATION_EXAMPLES,
    Actor,
    DryRun,
    ModelIds,
    NewModelId,
    Output,
    Reason,
    Yes,
)
from modelctl.errors import ExitCode, ModelctlError, RefusedError
from modelctl.output import streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.fleet.fleet import Fleet

# The look-alikes that are named one by one.
_MAX_NAMED = 10


def add(
    ctx: typer.Context,
    model_id: NewModelId,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="The display name.")] = None,
    provider: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The provider of the model.", autocompletion=complete_provider
        ),
    ] = "",
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Add one model, active."""
    with open_fleet(ctx, actor) as fleet:
        return print_changes(ctx, fleet.add(model_id, name=name, provider=provider), output)


def remove(
    ctx: typer.Context,
    model_ids: ModelIds,
    yes: Yes = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Delete models, all or none; their history stays.

    A model that was removed before is no error, as long as the history knows it.
    """
    with open_fleet(ctx, actor) as fleet:
        asks = not (yes or dry_run)
        if asks:
            _confirm_removal(fleet, model_ids)
        result = fleet.remove(*model_ids, reason=reason, dry_run=dry_run)
        if not asks:
            _warn_of_look_alikes(fleet, model_ids)
        return print_changes(ctx, result, output)


def _confirm_removal(fleet: Fleet, model_ids: Sequence[str]) -> None:
    if not streams.can_ask():
        raise RefusedError(
            "remove asks first, and nobody can be asked here; nothing was removed",
            hint="use --yes",
        )
    preview = fleet.remove(*model_ids, dry_run=True)
    to_remove = [change for change in preview.changes if change.changed]
    if not to_remove:
        return
    streams.say(*(f"{change.id} ({change.before})" for change in to_remove))
    _warn_of_look_alikes(fleet, model_ids)
    if not streams.ask("Remove for good? [y/N] "):
        raise RefusedError("not confirmed; nothing was removed")


def _warn_of_look_alikes(fleet: Fleet, model_ids: Sequence[str]) -> None:
    """Warn if the fleet has another model whose id a person could take for one of these."""
    with suppress(ModelctlError):  # the change was made, and a missing warning is no failure
        pairs = fleet.look_alikes(model_ids)
        for model_id, other in pairs[:_MAX_NAMED]:
            streams.say(f"warning: '{model_id}' looks like another model, '{other}'")
        if len(pairs) > _MAX_NAMED:
            streams.say(f"warning: and {len(pairs) - _MAX_NAMED} more")


def disable(
    ctx: typer.Context,
    model_ids: ModelIds,
    reason: Reason = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            help=f"Let recover enable them after this time: {DURATION_EXAMPLES}.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Let recover enable them then: 08:00 or 2026-12-01T08:00 (local time), "
            "2026-12-01T08:00Z.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Allow fewer active models than recovery.min_active; and allow --for and --until "
            "for a model that is disabled without an end.",
        ),
    ] = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Switch models off, all or none; only a person enables them.

    With --for or --until, recover enables them after that time. A model that is already disabled
    without an end stays disabled without an end.
    """
    end = read_time(until)
    with open_fleet(ctx, actor) as fleet:
        result = fleet.disable(
            *model_ids,
            reason=reason,
            duration=read_duration(duration),
            until=end.at if end else None,
            force=force,
            dry_run=dry_run,
        )
        if end:
            end.say("until")
        _warn_of_look_alikes(fleet, model_ids)
        return print_changes(ctx, result, output)


def enable(
    ctx: typer.Context,
    model_ids: ModelIds,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Switch models on, all or none.

    Their failures in a row and their ejections start again at 0, also if they were on already.
    """
    with open_fleet(ctx, actor) as fleet:
        result = fleet.enable(*model_ids, reason=reason, dry_run=dry_run)
        _warn_of_look_alikes(fleet, model_ids)
        return print_changes(ctx, result, output)
