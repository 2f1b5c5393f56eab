"""The commands with which a person changes models: add, remove, disable, enable."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_provider
from modelctl.arguments.inputs import read_duration, read_time
from modelctl.arguments.invocation import open_fleet, print_changes
from modelctl.arguments.options import (
    DURATION_EXAMPLES,
    Actor,
    DryRun,
    LimitTo,
    ModelIds,
    NewModelId,
    Output,
    Reason,
    Yes,
)
from modelctl.arguments.selecting import Chosen, confirm, selects
from modelctl.errors import ExitCode, ModelctlError, RefusedError
from modelctl.model import ModelStatus, numbered
from modelctl.output.formats import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelctl.fleet.fleet import Fleet
    from modelctl.models.results import Changes
    from modelctl.tables.selection import Selection

# How many warnings of one kind are printed, each for a model.
_MAX_NAMED = 10
# How many ids the command to ignore them names.
_MAX_IGNORED = 3


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


@selects
def remove(
    ctx: typer.Context,
    selection: Chosen,
    model_ids: ModelIds = None,
    limit_to: LimitTo = None,
    yes: Yes = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Delete models, all or none; their history stays.

    A model that was removed before is no error, as long as the history knows it.
    """
    ids = model_ids or []
    with open_fleet(ctx, actor) as fleet:
        change = partial(fleet.remove, *ids, select=selection, reason=reason)
        asks = not (yes or dry_run)
        if asks and selection:
            limit_to = confirm(change, limit_to, "remove for good", always=True)
        elif asks and ids:
            _confirm_removal(fleet, ids)
        result = change(limit_to=limit_to, dry_run=dry_run)
        if not asks:
            _warn_of_look_alikes(fleet, ids)
        code = print_changes(ctx, result, output)
        if not dry_run and output is not OutputFormat.JSON:
            _say_what_comes_back(fleet, result)
        return code


def _say_what_comes_back(fleet: Fleet, result: Changes) -> None:
    """Name removed models that their source still offers, unless they are ignored."""
    import shlex

    from modelctl.globs import escape
    from modelctl.ignored.patterns import Ignored
    from modelctl.models.results import RemovedModel

    if not any(isinstance(change, RemovedModel) for change in result.changes):
        return
    with suppress(ModelctlError):  # the change was made, and a missing note is no failure
        is_ignored = Ignored(one.pattern for one in fleet.ignored())
        sources: set[str] = set()
        number, ids = 0, ""
        for change in result.changes:
            if isinstance(change, RemovedModel) and not is_ignored(change.id):
                number += 1
                sources.add(change.source)
                ids += f" {shlex.quote(escape(change.id))}" if number <= _MAX_IGNORED else ""
        if number:
            streams.say(
                f"note: the next sync adds {numbered(number)} of {', '.join(sorted(sources))} again;"
                f" to prevent it: modelctl ignore{ids if number <= _MAX_IGNORED else ' ID|GLOB...'}"
            )


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
    if not model_ids:
        return
    with suppress(ModelctlError):  # the change was made, and a missing warning is no failure
        pairs = fleet.look_alikes(model_ids)
        _warn_of_each(
            f"'{model_id}' looks like another model, '{other}'" for model_id, other in pairs
        )


@selects
def disable(
    ctx: typer.Context,
    selection: Chosen,
    model_ids: ModelIds = None,
    limit_to: LimitTo = None,
    yes: Yes = False,
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
            help="Allow fewer active models than recovery.min_active; and change also models that "
            "are disabled without an end (with --for and --until) or, of a selection, for longer.",
        ),
    ] = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Switch models off, all or none; only a person enables them.

    With --for or --until, recover enables them after that time. A model that is already disabled
    without an end stays disabled without an end. A selection also leaves models as they are that
    are disabled for longer already.
    """
    ids = model_ids or []
    end = read_time(until)
    with open_fleet(ctx, actor) as fleet:
        change = partial(
            fleet.disable,
            *ids,
            select=selection,
            reason=reason,
            duration=read_duration(duration),
            until=end.at if end else None,
            force=force,
        )
        if end:
            end.say("until")
        if selection and not (yes or dry_run):
            limit_to = confirm(change, limit_to, "disable")
        result = change(limit_to=limit_to, dry_run=dry_run)
        _warn_of_look_alikes(fleet, ids)
        return print_changes(ctx, result, output)


@selects
def enable(
    ctx: typer.Context,
    selection: Chosen,
    model_ids: ModelIds = None,
    limit_to: LimitTo = None,
    yes: Yes = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Switch models on, all or none.

    Their failures in a row and their ejections start again at 0, also if they were on already.
    """
    ids = model_ids or []
    with open_fleet(ctx, actor) as fleet:
        change = partial(fleet.enable, *ids, select=selection, reason=reason)
        if selection and not (yes or dry_run):
            warn = partial(_warn_of_holds, fleet, selection)
            limit_to = confirm(change, limit_to, "enable", warn=warn)
        result = change(limit_to=limit_to, dry_run=dry_run)
        _warn_of_look_alikes(fleet, ids)
        return print_changes(ctx, result, output)


def _warn_of_holds(fleet: Fleet, selection: Selection) -> None:
    """Name the models of a selection that somebody disabled without an end."""
    disabled = (m for m in fleet.iter_models(select=selection) if m.status is ModelStatus.DISABLED)
    held = _warn_of_each(
        f"{model.id} is disabled without an end, by {model.disabled_by or 'somebody'}"
        + (f": {model.disabled_reason}" if model.disabled_reason else "")
        for model in disabled
        if model.disabled_until is None
    )
    if held:
        streams.say("hint: --timed leaves out what is disabled without an end")


def _warn_of_each(warnings: Iterable[str]) -> int:
    """Print the first warnings, and how many more there are; return the number of all."""
    number = 0
    for number, warning in enumerate(warnings, 1):
        if number <= _MAX_NAMED:
            streams.say(f"warning: {warning}")
    if number > _MAX_NAMED:
        streams.say(f"warning: and {number - _MAX_NAMED} more")
    return number
