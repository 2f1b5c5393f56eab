"""Views of `recover`, of probes and of pauses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelctl.errors import clean
from modelctl.model import numbered
from modelctl.recovery.explain import describe, left
from modelctl.views.values import plain
from modelctl.views.view import MAX_TABLE_ROWS, View, dry_run_note, record_view

if TYPE_CHECKING:
    from modelctl.probe.results import ProbeReport, ProbeResult
    from modelctl.recovery.results import LastRecover, Pause, Recovery

_WHY_WAITING = {
    "cooldown": "its cooldown ends {left}",
    "timed": "switched off for a time that ends {left}",
    "limit": "due, but beyond the limit of one run",
    "probe": "due, but its probe failed",
    "unasked": "due, but it could not be asked",
    "refused": "due, but the database kept the row as it was",
    "unreadable": "its id cannot be read",
    "paused": "automatic switching is paused",
    "person": "ejected too often: waits for a person (modelctl enable)",
}


def recovery_view(result: Recovery) -> View:
    """Return the view of a run of `recover`: the models that came back, then those that wait."""
    return View(
        document=result,
        columns=("id", "result", "retry_at", "why"),
        rows=_recovery_rows(result),
        items=_recovery_items(result),
        fields=_RECOVERY_FIELDS,
        # A dry run is asked for the reasons, so a narrow terminal folds them.
        optional=("retry_at",),
        note=_recovery_note(result),
        cache=result.cache,
        max_rows=MAX_TABLE_ROWS,
    )


def _recovery_rows(result: Recovery) -> Iterator[tuple[Any, ...]]:
    recovered = _recovered(result)
    for model_id in result.recovered:
        yield model_id, recovered, None, "its time off is over"
    for waiting in result.waiting:
        why = _WHY_WAITING[waiting.why].format(left=left(waiting.seconds_left or 0))
        yield waiting.id, "waiting", waiting.retry_at, why


# JSON has two lists, of recovered and of waiting models. The other formats have one list, in which
# "result" says which of the two an item is from.
_RECOVERY_FIELDS = ("id", "result", "retry_at", "why", "seconds_left")


def _recovery_items(result: Recovery) -> Iterator[dict[str, Any]]:
    for model_id in result.recovered:
        yield dict.fromkeys(_RECOVERY_FIELDS) | {"id": model_id, "result": "recovered"}
    for waiting in result.waiting:
        values = (waiting.id, "waiting", waiting.retry_at, waiting.why, waiting.seconds_left)
        yield dict(zip(_RECOVERY_FIELDS, values, strict=True))


def _recovery_note(result: Recovery) -> str:
    notes = [f"{len(result.recovered)} {_recovered(result)}, {len(result.waiting)} waiting"]
    if result.paused:
        notes.append(clean(describe(result.paused)))
    if result.requests and not result.dry_run:
        not_asked = sum(answer.failure_type is None for answer in result.unhealthy)
        unhealthy = len(result.unhealthy) - not_asked
        notes.append(f"{numbered(result.requests - not_asked)} asked, {unhealthy} not healthy")
        if not_asked:
            notes[-1] += f", {not_asked} could not be asked"
    if dry_run := dry_run_note(result.dry_run):
        notes.append(dry_run)
    return "; ".join(notes)


def _recovered(result: Recovery) -> str:
    return "would recover" if result.dry_run else "recovered"


def last_recover_view(result: LastRecover) -> View:
    """Return the view of when `recover` last finished."""
    row = (result.at, result.seconds_ago, result.expect_every, "yes" if result.overdue else "no")
    return record_view(
        result,
        columns=("last_finished", "seconds_ago", "expect_every", "overdue"),
        row=row,
        name_field="at",
        optional=("expect_every",),
    )


def probes_view(result: ProbeReport) -> View:
    """Return the view of the answers to probes."""
    columns = ("id", "result", "failure_type", "seconds", "reason")
    items = [plain(answer) | {"result": _answer(answer)} for answer in result.answers]
    return View(
        document={"answers": items, "requests": result.requests, "dry_run": result.dry_run},
        columns=columns,
        rows=[tuple(item[name] for name in columns) for item in items],
        items=items,
        fields=(*columns, "healthy"),
        optional=("seconds", "failure_type", "reason"),
    )


def _answer(answer: ProbeResult) -> str:
    if answer.healthy:
        return "healthy"
    return "unhealthy" if answer.failure_type else "could not be asked"


def pause_view(result: Pause) -> View:
    """Return the view of a pause that began or ended."""
    whose = "the fleet" if result.provider is None else result.provider or "no provider"
    state = "paused" if result.paused else "resumed" if result.changed else "was not paused"
    return record_view(
        result,
        columns=("what", "result", "until", "reason"),
        row=(whose, state, result.until, result.reason),
        name_field="provider",
        optional=("reason",),
    )
