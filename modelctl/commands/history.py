"""The commands of the history: events, undo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_id, complete_provider, completes
from modelctl.arguments.inputs import read_moment
from modelctl.arguments.invocation import open_fleet, print_changes, print_view
from modelctl.arguments.options import DURATION_EXAMPLES, Actor, DryRun, Output, Reason
from modelctl.errors import ExitCode, UsageError
from modelctl.model import EVENTS, numbered
from modelctl.output.formats import OutputFormat, default_format, write_view
from modelctl.signals import unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet

_Item = TypeVar("_Item")

_LIMIT = 100


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
    until: Annotated[
        str | None,
        typer.Option(metavar="DURATION|TIME", help="Only events that are older, as --since."),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only events of this provider and its models, also removed ones.",
            autocompletion=complete_provider,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--actor", metavar="NAME", help="Only what this person or program did."),
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVENT",
            help="Only events of this name, such as disabled; may be repeated.",
            autocompletion=completes(*EVENTS),
        ),
    ] = None,
    operation: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only the events of one operation: of one call."),
    ] = None,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Print the oldest event first.")
    ] = False,
    after: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Only events after the event with this id, the oldest first."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new events as they come, until interrupted.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="At most N events, 100 by default; 0: no limit."),
    ] = None,
    output: Output = None,
) -> None:
    """Print the history, newest first.

    With --follow, -o jsonl prints each event on a line as soon as it is there. The next run goes on
    with --after and the id of the last event.
    """
    if follow:
        _check_follow(output, limit, until)
    start, end = (None if text is None else read_moment(text) for text in (since, until))
    wanted: dict[str, Any] = {
        "since": start.at if start else None,
        "provider": provider,
        "actor": by,
        "event": event or (),
        "operation": operation,
        "after": after,
    }
    with open_fleet(ctx) as fleet:
        if follow:
            if start:
                start.say("since")
            with unwinding_on_signals():
                _follow(fleet, model_id, wanted, output, raw=ctx.obj.raw)
            return
        wanted["until"] = end.at if end else None
        wanted["oldest_first"] = oldest_first
        _list(ctx, fleet, model_id, wanted, _LIMIT if limit is None else limit, output)
    for given, what in ((start, "since"), (end, "until")):
        if given:
            given.say(what)


def _list(
    ctx: typer.Context,
    fleet: Fleet,
    model_id: str | None,
    wanted: dict[str, Any],
    limit: int,
    output: OutputFormat | None,
) -> None:
    from modelctl.views.models import events_view

    one_more = limit and limit + 1
    found = _Limited(fleet.iter_events(model_id, limit=one_more, **wanted), limit)
    print_view(ctx, events_view(found), output)
    if found.more:
        oldest = wanted["oldest_first"] or wanted["after"] is not None
        streams.say(
            f"note: {numbered(limit, 'event')} shown, the {'oldest' if oldest else 'newest'},"
            " and there are more: --limit 0 shows all, --since 2d those of two days"
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


# ── --follow ────────────────────────────────────────────────────────────────────────────────────


def _check_follow(output: OutputFormat | None, limit: int | None, until: str | None) -> None:
    if output is OutputFormat.JSON:
        raise UsageError("--follow prints more than one JSON value", hint="use -o jsonl")
    if limit is not None or until is not None:
        raise UsageError(
            "--follow has no end, so it takes neither --limit nor --until", hint="leave it out"
        )


def _follow(
    fleet: Fleet,
    model_id: str | None,
    wanted: dict[str, Any],
    output: OutputFormat | None,
    *,
    raw: bool,
) -> None:
    """Print events as they come; on a terminal, and with -o table, a line for each."""
    from modelctl.views.models import event_lines, events_view

    output = output or default_format()
    header = True
    for found in fleet.follow_events(model_id, **wanted):
        if output in (OutputFormat.TABLE, OutputFormat.WIDE):
            streams.write_lines(event_lines(found))
        else:
            write_view(events_view(found), output, raw=raw, header=header)
        header = False
        if streams.stdout_is_gone():
            return


# ── undo ───────────────────────────────────────────────────────────────────────────────────────────


def undo(
    ctx: typer.Context,
    operation: Annotated[
        str | None,
        typer.Argument(metavar="[OPERATION]", help="The operation. Default: your last one."),
    ] = None,
    reason: Reason = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Allow fewer active models than recovery.min_active."),
    ] = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: Output = None,
) -> ExitCode:
    """Put each model back as it was before an operation: status, holder, reason and end.

    A model that changed since is left alone and named. An undo is an operation, too: the next undo
    takes it back.
    """
    with open_fleet(ctx, actor) as fleet:
        result = fleet.undo(operation, reason=reason, force=force, dry_run=dry_run)
        if not operation and output is not OutputFormat.JSON:
            streams.say(f"operation {result.undone}")
        return print_changes(ctx, result, output)
