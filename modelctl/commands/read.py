"""The commands that read: list, show, stats, leaderboard."""

from __future__ import annotations

from typing import Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import completes
from modelctl.arguments.invocation import open_fleet, print_result, print_view, prints_table
from modelctl.arguments.options import ModelId, Output, Provider
from modelctl.arguments.selecting import Chosen, selects
from modelctl.errors import UsageError
from modelctl.output.formats import OutputFormat

_LEADERBOARD_LENGTH = 10


@selects
def list_models(
    ctx: typer.Context,
    selection: Chosen,
    off: Annotated[
        bool,
        typer.Option(
            "--off",
            help="Only models that are off, or that a guard keeps on: since when, by whom, why and "
            "until when.",
        ),
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--columns",
            metavar="NAMES",
            help="Only these columns, in every format: id,status,since. Names are those of -o json, "
            "and since, by, why, back_at, source, first_seen_at, last_seen_at, gone_since.",
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="id, name, provider (by code points: A before a), status, failures, updated or "
            "since (what went off last comes first).",
            autocompletion=completes(
                *("id", "name", "provider", "status", "failures", "updated", "since")
            ),
        ),
    ] = "id",
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N models; 0: no limit.")
    ] = 0,
    output: Output = None,
) -> None:
    """Print the models."""
    from modelctl.recovery.explain import describe
    from modelctl.views import models as views

    chosen = () if columns is None else _column_names(columns)
    with open_fleet(ctx) as fleet:
        notes = [*map(describe, fleet.holds())] if prints_table(output) else []
        with_source = output is OutputFormat.WIDE or not {*views.SOURCE_COLUMNS}.isdisjoint(chosen)
        models = fleet.iter_models(
            select=selection, off=off, sort=sort, limit=limit, with_source=with_source
        )
        if chosen:
            view = views.columns_view(models, chosen, chosen, notes)
        elif off or output is OutputFormat.WIDE:
            shown = views.WIDE_COLUMNS if output is OutputFormat.WIDE else views.OFF_COLUMNS
            fields = tuple(dict.fromkeys((*views.OFF_COLUMNS, *views.column_names())))
            view = views.columns_view(models, shown, fields, notes)
        else:
            view = views.models_view(models, notes)
        print_view(ctx, view, output)


def _column_names(text: str) -> tuple[str, ...]:
    """Read the names of columns, with commas between them."""
    from modelctl.views.models import SOURCE_COLUMNS, column_names

    known = (*column_names(), *SOURCE_COLUMNS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"no column '{name}'", hint=f"one of: {', '.join(known)}")
    return names


def show(ctx: typer.Context, model_id: ModelId, output: Output = None) -> None:
    """Print one model: its status, since when, by whom and why.

    Also prints when the model may come back, and what the next recover would do with it.
    """
    with open_fleet(ctx) as fleet:
        model = fleet.show(model_id)
    print_result(ctx, model, output)


def stats(ctx: typer.Context, output: Output = None) -> None:
    """Print totals by status and provider, from the database."""
    with open_fleet(ctx) as fleet:
        result = fleet.stats()
    print_result(ctx, result, output)


def leaderboard(
    ctx: typer.Context,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="At most N models, 10 by default; 0: no limit."),
    ] = None,
    provider: Provider = None,
    untested: Annotated[
        bool, typer.Option("--untested", help="Add the models without a call at the end.")
    ] = False,
    output: Output = None,
) -> None:
    """Print the active models with the best success rates.

    Models are ranked by the lower bound of the 95 % confidence interval of the rate, so 420 of 421
    ranks above 1 of 1.
    """
    from modelctl.views.models import leaderboard_view

    limit = (_LEADERBOARD_LENGTH if top is None else top) or None
    with open_fleet(ctx) as fleet:
        # Ask for one more than is shown, to know whether there are more.
        one_more = limit and limit + 1
        found = fleet.leaderboard(top=one_more, provider=provider, untested=untested)
    entries = found[:limit]
    print_view(ctx, leaderboard_view(entries), output)
    if top is None and len(found) > len(entries):
        streams.say(
            f"note: these are the best {len(entries)} models, and there are more: --top 0 shows all"
        )
