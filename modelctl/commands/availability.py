"""The command that measures for how long models were on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_id
from modelctl.arguments.inputs import read_moment, read_time
from modelctl.arguments.invocation import open_fleet, print_result
from modelctl.arguments.options import DURATION_EXAMPLES, Output, Provider

if TYPE_CHECKING:
    from modelctl.availability.results import Availability

_PARTS = 24  # of a bar: beside an id it fits into 80 columns
_PARTS_OF_A_PAGE = 168  # an hour each in a week


def availability(
    ctx: typer.Context,
    model_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Only these models, also removed ones.",
            autocompletion=complete_id,
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="DURATION|TIME",
            help=f"When the period begins: {DURATION_EXAMPLES} ago; "
            "or 08:00, 2026-12-01 (local time).",
        ),
    ] = "7d",
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it ends: 08:00, 2026-12-01. Default: now."),
    ] = None,
    provider: Provider = None,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write a web page, and print nothing unless -o is given."
        ),
    ] = None,
    png: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a picture; needs modelctl[plot]."),
    ] = None,
    output: Output = None,
) -> None:
    """Print for how long models were on, and what their outages were.

    The history is what counts: for each model the share of the time for which it existed within the
    period, the number of outages, the longest and the mean, and how many of them a person and the
    health rule began. The lowest share comes first. The bar shows the period.
    """
    start = read_moment(since)
    end = read_time(until, past=True)
    if png is not None:
        from modelctl.output.availability_picture import plotting

        plotting()  # an error comes before any work
    writes = html is not None or png is not None
    with open_fleet(ctx) as fleet:
        result = fleet.availability(
            *(model_ids or ()),
            since=start.at,
            until=end.at if end else None,
            provider=provider,
            parts=_PARTS_OF_A_PAGE if writes else _PARTS,
        )
    start.say("since")
    if end:
        end.say("until")
    _write_files(result, html, png)
    if not writes or output is not None:
        print_result(ctx, result, output)


def _write_files(result: Availability, html: str | None, png: str | None) -> None:
    if html is not None:
        from modelctl.output.availability_page import html_page
        from modelctl.output.files import replacing

        with replacing(html) as file:
            for piece in html_page(result):
                file.write(piece.encode(errors="backslashreplace"))
        streams.say_on_terminal(f"wrote {html}")
    if png is not None:
        from modelctl.output.availability_picture import draw_picture
        from modelctl.output.files import replacing

        with replacing(png) as file:
            draw_picture(result, file)
        streams.say_on_terminal(f"wrote {png}")
