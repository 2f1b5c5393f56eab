"""The commands that read: list, show, stats, leaderboard, events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, TypeVar

import typer

from modelctl.commands.completion import complete_id, completes
from modelctl.commands.inputs import is_duration, read_duration, read_time
from modelctl.commands.invocation import open_fleet, print_result, print_view, prints_table
from modelctl.commands.options import DURATION_EXAMPLES, ModelId, Output, Provider
from modelctl.model import ModelStatus, numbered
from modelctl.output import streams

_Item = TypeVar("_Item")

_LEADERBOARD_LENGTH = 10


def list_models(
    ctx: typer.Context,
    status: Annotated[
        ModelStatus | None, typer.Option(help="Only models with this status.")
    ] = None,
    provider: Provider = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="id, name, provider (by code points: A before a), status, failures or updated.",
            autocompletion=completes("id", "name", "provider", "status", "failures", "updated"),
        ),
    ] = "id",
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N models; 0: no limit.")
    ] = 0,
    output: Output = None,
) -> None:
    """Print the models."""
    from modelctl.output.views_models import models_view
    from modelctl.recovery.explain import describe

    with open_fleet(ctx) as fleet:
        notes = [*map(describe, fleet.holds())] if prints_table(output) else []
        models = fleet.iter_models(status=status, provider=provider, sort=sort, limit=limit)
        print_view(ctx, models_view(models, notes), output)


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
    from modelctl.output.views_models import leaderboard_view

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


def events(
    ctx: typer.Context,
    model_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="Only events of this model.", autocompletion=complete_id
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|TIME",
            help=f"Only events that are not older: {DURATION_EXAMPLES}; "
            "or 08:00, 2026-12-01 (local time).",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N events; 0: no limit.")
    ] = 100,
    output: Output = None,
) -> None:
    """Print the history, newest first."""
    from modelctl.output.views_models import events_view

    start = None if since is None or is_duration(since) else read_time(since, past=True)
    with open_fleet(ctx) as fleet:
        ago = start.at if start else read_duration(since)
        one_more = limit and limit + 1
        found = _Limited(fleet.iter_events(model_id, since=ago, limit=one_more), limit)
        print_view(ctx, events_view(found), output)
    if start:
        start.say("since")
    if found.more:
        streams.say(
            f"note: these are the newest {numbered(limit, 'event')}, and there are more:"
            " --limit 0 shows all, --since 2d those of two days"
        )


class _Limited(Iterator[_Item]):
    """The first *limit* items (0: all); *more* says whether there were others."""

    def __init__(self, items: Iterator[_Item], limit: int) -> None:
        self._items, self._left, self._limited = items, limit, bool(limit)
        self.more = False

    def __next__(self) -> _Item:
        if self._limited and not self._left:
            self.more = self.more or next(self._items, None) is not None
            raise StopIteration
        self._left -= 1
        return next(self._items)
