"""The commands that record outcomes: record-success, record-failure, record-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import completes
from modelctl.arguments.inputs import open_source
from modelctl.arguments.invocation import exit_code_of, open_fleet, print_changes, print_result
from modelctl.arguments.options import Actor, ModelId, Output, Reason, Source
from modelctl.errors import ExitCode, UsageError
from modelctl.model import FailureType, numbered
from modelctl.output.formats import OutputFormat

if TYPE_CHECKING:
    from modelctl.models.results import BatchResult

# The unknown ids that a warning names; there may be thousands.
_MAX_NAMED = 20


def record_success(
    ctx: typer.Context, model_id: ModelId, actor: Actor = None, output: Output = None
) -> ExitCode:
    """Record a success; an auto-disabled model comes back."""
    with open_fleet(ctx, actor) as fleet:
        return print_changes(ctx, fleet.record_success(model_id), output, unchanged="still")


def record_failure(
    ctx: typer.Context,
    model_id: ModelId,
    failure_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="rate-limit, timeout, server-error, network-error, parse-error, client-error "
            "or unknown (the default).",
            autocompletion=completes(*FailureType),
        ),
    ] = None,
    http_status: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The HTTP status, 400-599, which decides the type. 499 (the caller went away) "
            "records nothing.",
        ),
    ] = None,
    reason: Reason = None,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Record a failure; too many in a row switch a model off.

    Only parse-error and client-error count, and the 5th in a row switches the model off, unless the
    configuration says otherwise.
    """
    from modelctl.health import failure_type_of_status

    if failure_type is not None and http_status is not None:
        raise UsageError("give either --type or --http-status, not both")
    kind: str | None = failure_type or "unknown"
    if http_status is not None:
        kind = failure_type_of_status(http_status)
    with open_fleet(ctx, actor) as fleet:
        result = fleet.record_failure(model_id, kind, reason=reason)
        return print_changes(ctx, result, output, unchanged="still")


def record_batch(
    ctx: typer.Context,
    source: Source,
    unknown: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="For an id without a model: fail (record nothing), or skip (record the others).",
            autocompletion=completes("fail", "skip"),
        ),
    ] = "fail",
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Record outcomes from JSON Lines, all or none.

    A line: {"id": ..., "outcome": "success"|"failure", "type": ..., "reason": ...}
    """
    from modelctl.health import read_outcomes

    with open_fleet(ctx, actor) as fleet, open_source(source) as stream:
        outcomes = read_outcomes(stream, fleet.config.health.reason_length)
        with streams.progress("recording") as progress:
            result = fleet.record_batch(outcomes, unknown=unknown, progress=progress)
    if result.skipped and output is not OutputFormat.JSON:
        _warn_of_skipped(result)
    print_result(ctx, result, output)
    return exit_code_of(result.cache)


def _warn_of_skipped(result: BatchResult) -> None:
    ids = ", ".join(f"'{model_id}'" for model_id in result.unknown[:_MAX_NAMED])
    more = len(result.unknown) - _MAX_NAMED
    if more > 0:
        ids += f" and {more} more (-o json names all)"
    outcomes = numbered(result.skipped, "outcome")
    unknown_ids = numbered(len(result.unknown), "unknown id")
    streams.say(f"warning: skipped {outcomes} of {unknown_ids}: {ids}")
