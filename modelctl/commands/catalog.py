"""The command that reads a catalogue: import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_catalog_format, completes
from modelctl.arguments.inputs import open_source
from modelctl.arguments.invocation import exit_code_of, open_fleet, print_result
from modelctl.arguments.options import Actor, DryRun, Output, Source
from modelctl.errors import ExitCode
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
    for rejection in result.rejected:
        streams.say(f"rejected: {rejection.id}: {rejection.why}")
