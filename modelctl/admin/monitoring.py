"""The commands for monitoring: metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from modelctl import streams
from modelctl.arguments.invocation import open_fleet
from modelctl.output.openmetrics import ExpositionFormat, exposition


def metrics(
    ctx: typer.Context,
    form: Annotated[
        ExpositionFormat,
        typer.Option(
            "--format", help="Use prometheus for the textfile collector of node_exporter."
        ),
    ] = ExpositionFormat.OPENMETRICS,
    write: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Replace this file at once, and print nothing."),
    ] = None,
) -> None:
    """Print metrics for Prometheus, as OpenMetrics text.

    Models by status and provider, the count and its age, what is queued for the cache, when recover
    last finished, pauses and incidents, events by kind.
    """
    with open_fleet(ctx) as fleet:
        text = exposition(fleet.metrics(), form)
    if write is None:
        streams.write([text])
        return
    from modelctl.output.files import replacing

    with replacing(write) as file:
        file.write(text.encode())
