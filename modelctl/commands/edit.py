"""The commands that change what models are called: edit, rename."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_id, complete_provider, complete_tag
from modelctl.arguments.invocation import open_fleet, print_changes
from modelctl.arguments.options import (
    Actor,
    DryRun,
    LimitTo,
    ModelIds,
    Output,
    Reason,
    Yes,
)
from modelctl.arguments.selecting import Chosen, confirm, selects
from modelctl.errors import ExitCode, ModelctlError
from modelctl.output.formats import OutputFormat

if TYPE_CHECKING:
    from modelctl.models.results import StatusChange


@partial(selects, own=("tag",), with_ids=("provider",))
def edit(
    ctx: typer.Context,
    selection: Chosen,
    model_ids: ModelIds = None,
    limit_to: LimitTo = None,
    yes: Yes = False,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The new display name, of one id.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With ids: their new provider. Without: only models of this provider.",
            autocompletion=complete_provider,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG", help="Add this tag; may be repeated.", autocompletion=complete_tag
        ),
    ] = None,
    untag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG", help="Remove this tag; may be repeated.", autocompletion=complete_tag
        ),
    ] = None,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Change the name, the provider and the tags of models, all or none.

    Tags of many models: modelctl edit --match 'gpt-4*' --tag eu. Statuses do not change.
    """
    with open_fleet(ctx, actor) as fleet:
        change = partial(
            fleet.edit,
            *(model_ids or []),
            select=selection,
            name=name,
            provider=provider,
            tag=tag or (),
            untag=untag or (),
            reason=reason,
        )
        if selection and not (yes or dry_run):
            limit_to = confirm(change, limit_to, "edit")
        return print_changes(ctx, change(limit_to=limit_to, dry_run=dry_run), output)


def rename(
    ctx: typer.Context,
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD", help="The id of a model, as it is.", autocompletion=complete_id
        ),
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new id.")],
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Give a model another id; its status, counters, tags and history follow.

    Refused (exit 8) if there is a model with the new id, or if a foreign key of another program
    forbids it.
    """
    with open_fleet(ctx, actor) as fleet:
        result = fleet.rename(old, new, reason=reason, dry_run=dry_run)
        with suppress(ModelctlError):  # the change was made, and a missing warning is no failure
            for model_id, other in fleet.look_alikes([new]):
                if other != old:
                    streams.say(f"warning: '{model_id}' looks like another model, '{other}'")
        code = print_changes(ctx, result, output)
        if not dry_run and output is not OutputFormat.JSON:
            _say_what_sync_does(result.changes[0])
        return code


def _say_what_sync_does(change: StatusChange) -> None:
    """Say that the source of a renamed model still offers it under its old id."""
    import shlex

    from modelctl.edits.results import RenamedModel
    from modelctl.globs import escape

    if isinstance(change, RenamedModel) and change.offered_by is not None:
        streams.say(
            f"note: the next sync adds '{change.old_id}' of {change.offered_by} again;"
            f" to prevent it: modelctl ignore {shlex.quote(escape(change.old_id))}"
        )
