"""The commands about catalogues: import, ignore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_catalog_format, complete_id, completes
from modelctl.arguments.inputs import open_source
from modelctl.arguments.invocation import exit_code_of, open_fleet, print_result, print_view
from modelctl.arguments.options import Actor, DryRun, Output, Source
from modelctl.errors import ExitCode, UsageError
from modelctl.output.formats import OutputFormat

if TYPE_CHECKING:
    from modelctl.catalog.results import ImportResult


Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="jsonl, litellm, litellm-proxy, openai, openrouter, anthropic, gemini, cohere, "
        "ollama, lmstudio, cloudflare, newapi, bedrock, fireworks, huggingface or providers; "
        "by default recognized by its shape; modelctl formats has examples.",
        autocompletion=complete_catalog_format,
    ),
]
TheirProvider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The provider of all the models, whatever the catalogue says."
    ),
]
Modes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODE",
        help="Only models for this, such as chat or embedding; several: chat,responses.",
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Put TEXT before each id; provider: the provider of each model and a slash.",
    ),
]
OnConflict = Annotated[
    str,
    typer.Option(
        metavar="POLICY",
        help="For a model whose name or provider differs: update, skip or fail.",
        autocompletion=completes("update", "skip", "fail"),
    ),
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Accept a list that is only one of several pages."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing if an entry is not a model.")]


def import_models(
    ctx: typer.Context,
    source: Source,
    catalog_format: Format = None,
    provider: TheirProvider = None,
    modes: Modes = None,
    prefix: Prefix = "",
    on_conflict: OnConflict = "update",
    partial: Partial = False,
    strict: Strict = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Add and update models from a catalogue, in one transaction.

    No status is changed. The catalogue is one JSON document of at most 16 MiB, or JSON Lines of any
    length. Entries that are not models are named on stderr, and the others are imported.
    --dry-run shows what would change of each model.
    """
    with (
        open_fleet(ctx, actor) as fleet,
        open_source(source) as stream,
        streams.progress("imported") as progress,
    ):
        result = fleet.import_models(
            stream,
            format=catalog_format,
            provider=provider,
            modes=[mode for text in modes or () for mode in text.split(",")],
            prefix=prefix,
            on_conflict=on_conflict,
            partial=partial,
            strict=strict,
            dry_run=dry_run,
            progress=progress,
        )
    if output is not OutputFormat.JSON:
        _say_notes(result)
    print_result(ctx, result, output)
    return exit_code_of(result.cache)


def _say_notes(result: ImportResult) -> None:
    """Say what the counts of the result do not."""
    for note in result.notes:
        streams.say(f"note: {note}")
    if ignored := result.ignored_status:
        statuses = "1 status was" if ignored == 1 else f"{ignored} statuses were"
        streams.say(
            f"note: {statuses} ignored (on in the fleet and off in the catalogue, or the other"
            " way round): import never changes a status; use enable or disable,"
            " or restore for an export of a whole fleet"
        )
    if result.ignored:
        are_ignored = "1 model is" if result.ignored == 1 else f"{result.ignored} models are"
        streams.say(f"note: {are_ignored} ignored, see: modelctl ignore --list")
    for rejection in result.rejected:
        streams.say(f"rejected: {rejection.id}: {rejection.why}")


def ignore(
    ctx: typer.Context,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID|GLOB]...",
            help="Ids, or patterns as of list --match: 'gpt-4*'.",
            autocompletion=complete_id,
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Print what is ignored: since when, by whom and why.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Let import and sync take these ids again.")
    ] = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for --list.")] = None,
    actor: Actor = None,
    output: Output = None,
) -> None:
    """Let import and sync leave out models: what was removed does not come back.

    Import and sync neither add nor change a model with such an id. Models of the fleet stay.
    """
    from modelctl.views.ignored import ignore_note, ignored_view

    if show_list and (patterns or undo):
        raise UsageError("--list takes no ids, and not --undo")
    if not (show_list or patterns):
        raise UsageError("no id and no pattern is named", hint="--list prints what is ignored")
    with open_fleet(ctx, actor) as fleet:
        if show_list:
            print_view(ctx, ignored_view(fleet.ignored()), output)
            return
        given = patterns or []
        result = fleet.unignore(*given) if undo else fleet.ignore(*given, reason=reason)
    print_result(ctx, result, output)
    if output is not OutputFormat.JSON and (note := ignore_note(result)):
        streams.say(f"note: {note}")
