"""The commands of the count and its cache: count, cache show, cache clear, cache drain.

A cached `count` loads this file, so it imports nothing that `count` does not need.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from modelctl import streams
from modelctl.arguments.invocation import open_fleet, print_result, prints_plain_lines
from modelctl.arguments.options import Output
from modelctl.errors import DatabaseUnavailableError, ExitCode, StaleCacheError, UsageError
from modelctl.output.formats import OutputFormat

_SECONDS_BETWEEN_DRAINS = 1


def count(
    ctx: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Count in the database; do not read the cache.")
    ] = False,
    strong: Annotated[
        bool,
        typer.Option("--strong", help="Include every committed change of other programs."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare cache and database; exit 6 if they differ."),
    ] = False,
    output: Output = None,
) -> ExitCode:
    """Print how many models are active, and where the number came from.

    It comes from the cache, or from the database if the cache has no number that can be trusted.
    In a pipe, count prints just the number.
    """
    with open_fleet(ctx) as fleet:
        result = fleet.verify() if verify else fleet.count(fresh=fresh, strong=strong)
    if prints_plain_lines(output):
        streams.write_lines([result.active])
    else:
        print_result(ctx, result, output)
    if getattr(result, "match", True):
        return ExitCode.OK
    if output is not OutputFormat.JSON:
        streams.say("warning: the cached count differs from the database")
    return ExitCode.STALE_CACHE


def cache_show(ctx: typer.Context, output: Output = None) -> None:
    """Print the cache's keys and what is queued for delivery."""
    with open_fleet(ctx) as fleet:
        result = fleet.cache_report()
    print_result(ctx, result, output)


def cache_clear(ctx: typer.Context, output: Output = None) -> None:
    """Invalidate the cache now, whether or not something is queued."""
    with open_fleet(ctx) as fleet:
        result = fleet.clear_cache()
    print_result(ctx, result, output)


def cache_drain(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="Repeat every second until interrupted.")
    ] = False,
    output: Output = None,
) -> None:
    """Deliver the queued invalidations."""
    if not follow:
        with open_fleet(ctx) as fleet:
            result = fleet.drain()
        print_result(ctx, result, output)
        return
    if output is OutputFormat.JSON:
        raise UsageError("--follow prints more than one JSON value", hint="use -o jsonl")
    _drain_until_interrupted(ctx, output)


def _drain_until_interrupted(ctx: typer.Context, output: OutputFormat | None) -> None:
    """Drain every second; a failure that lasts is reported once, not every second."""
    reported = None
    with open_fleet(ctx) as fleet:
        while True:
            try:
                result = fleet.drain()
                if result.delivered:
                    print_result(ctx, result, output)
                reported = None
            except (StaleCacheError, DatabaseUnavailableError) as exc:
                if exc.code != reported:
                    streams.say(f"warning: {exc.message}; trying again every second")
                reported = exc.code
            time.sleep(_SECONDS_BETWEEN_DRAINS)
