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
    from modelctl.fleet.fleet import Fleet


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
        if result.changes[0].changed and not dry_run and output is not OutputFormat.JSON:
            _say_what_sync_does(fleet, old, new)
        return code


def _say_what_sync_does(fleet: Fleet, old: str, new: str) -> None:
    """Say what the next sync does with a model whose source offers it under its old id."""
    import shlex

    from modelctl.globs import escape
    from modelctl.models.results import SourcedModel
    from modelctl.tables.selection import Selection

    with suppress(ModelctlError):  # the change was made, and a missing note is no failure
        for model in fleet.list_models(select=Selection(match=escape(new)), with_source=True):
            if isinstance(model, SourcedModel) and model.source and not model.gone_since:
                streams.say(
                    f"note: unless {model.source} has the new id, the next sync takes '{new}' for"
                    f" gone, and adds '{old}' again, unless you ignore that:"
                    f" modelctl ignore {shlex.quote(escape(old))}"
                )
