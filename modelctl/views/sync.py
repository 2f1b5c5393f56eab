"""Views of what a catalogue changes in the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import clean
from modelctl.model import numbered
from modelctl.views.view import MAX_TABLE_ROWS, View, dry_run_note, field_names, record_view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelctl.catalog.results import ImportPlan, ImportResult
    from modelctl.sync.results import PlannedChange, SyncResult

_IMPORTED = ("added", "updated", "unchanged", "skipped", "rejected")
# The sign of each kind of change, as `terraform plan` and `kubectl diff` have them.
SIGNS = {"added": "+", "changed": "~", "gone": "-", "back": "+", "kept": "!", "clash": "!"}


def import_view(result: ImportResult) -> View:
    """Return the view of an import."""
    return record_view(
        result,
        columns=_IMPORTED,
        row=_numbers(result),
        name_field="added",
        cache=result.cache,
    )


def _numbers(result: ImportResult) -> tuple[int, ...]:
    counts = result.added, result.updated, result.unchanged, result.skipped
    return (*counts, len(result.rejected))


def import_plan_view(result: ImportPlan) -> View:
    """Return the view of a dry run of an import: each model that would change, then the numbers."""
    from modelctl.sync.results import PlannedChange

    numbers = zip(_numbers(result), _IMPORTED, strict=True)
    counted = ", ".join(f"{number} {what}" for number, what in numbers)
    return View(
        document=result,
        columns=("", "id", "change"),
        rows=map(planned_row, result.changes),
        items=result.changes,
        fields=field_names(PlannedChange),
        heading=1,
        max_rows=MAX_TABLE_ROWS,
        note=f"{counted}\n{dry_run_note(result.dry_run)}",
        cache=result.cache,
    )


def planned_row(change: PlannedChange) -> tuple[str, str, str]:
    """Return the row of a planned change: its sign, the model, and what differs."""
    if change.kind == "added":
        words = [f"{_called(name)} '{value}'" for name, value in change.new.items()] or ["new"]
    else:
        words = [
            f"{_called(name)}: '{value}' -> '{change.new[name]}'"
            if name in change.new
            else f"{_called(name)} '{value}'"  # of a model that is removed
            for name, value in change.old.items()
        ]
    if change.note:
        words.append(change.note)
    what = "kept" if change.kind == "kept" else ""
    return SIGNS[change.kind], change.id, ": ".join(filter(None, (what, "; ".join(words))))


def planned_line(change: PlannedChange) -> str:
    """Return a planned change on one line, safe to print: ``~ id name: 'old' -> 'new'``."""
    return clean(" ".join(filter(None, planned_row(change))))


def _called(name: str) -> str:
    return name.removeprefix("display_")


def sync_view(result: SyncResult) -> View:
    """Return the view of a sync: each change, then the numbers."""
    from modelctl.sync.results import PlannedChange

    rows = (planned_row(change) for change in plan_changes(result))
    note = "\n".join(
        filter(None, (*_not_shown(result), summary(result), dry_run_note(result.dry_run)))
    )
    return View(
        document=result,
        columns=("", "id", "change"),
        rows=rows,
        items=result.changes,
        fields=field_names(PlannedChange),
        heading=1,
        max_rows=MAX_TABLE_ROWS,
        note=note,
        cache=result.cache,
    )


# A plan shows no more models that belong to another source: there may be as many as models.
_MOST_CLASHES = 5


def plan_changes(result: SyncResult) -> Iterator[PlannedChange]:
    """Give what a person has to see of a plan."""
    clashes = 0
    for change in result.changes:
        clashes += change.kind == "clash"
        if change.kind != "clash" or clashes <= _MOST_CLASHES:
            yield change


def _not_shown(result: SyncResult) -> Iterator[str]:
    if result.clashes > _MOST_CLASHES:
        yield f"{numbered(result.clashes - _MOST_CLASHES)} more belong to a source that comes first"


def plan_lines(result: SyncResult) -> Iterator[str]:
    """Give the lines of a plan, before a person is asked."""
    for number, change in enumerate(plan_changes(result)):
        if number == MAX_TABLE_ROWS:
            yield "  and more; --dry-run -o jsonl shows all"
            break
        yield f"  {planned_line(change)}"
    yield from _not_shown(result)
    yield summary(result)


def summary(result: SyncResult) -> str:
    """Return the numbers of a sync in a line."""
    numbers = {
        "added": result.added,
        "changed": result.changed,
        "gone": result.gone,
        "back": result.back,
        "kept": result.kept,
        "ignored": result.ignored,
    }
    counted = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
    return f"{counted or 'nothing changed'}; {result.unchanged} unchanged"
