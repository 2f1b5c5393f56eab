"""Views of the ids that import and sync leave out."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from modelctl.globs import is_glob
from modelctl.model import numbered
from modelctl.views.view import View, field_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.ignored.results import IgnoredPattern, IgnoreResult, PatternChange


def ignored_view(found: Sequence[IgnoredPattern]) -> View:
    """Return the view of what is ignored."""
    from modelctl.ignored.results import IgnoredPattern

    fields = field_names(IgnoredPattern, "pattern", "reason", "actor", "at")
    return View(
        document=found,
        columns=fields,
        rows=[[getattr(one, name) for name in fields] for one in found],
        items=found,
        fields=fields,
        name_field="pattern",
        optional=("at", "actor"),
    )


def ignore_view(result: IgnoreResult) -> View:
    """Return the view of what became of each pattern."""
    columns = ("pattern", "result")
    items = [
        {
            "pattern": change.pattern,
            "changed": change.changed,
            "result": _what_happened(change, result.undone),
        }
        for change in result.patterns
    ]
    return View(
        document={"patterns": items, "matching": result.matching},
        columns=columns,
        rows=[[item[name] for name in columns] for item in items],
        items=items,
        fields=(*columns, "changed"),
        name_field="pattern",
    )


def _what_happened(change: PatternChange, undone: bool) -> str:
    if undone:
        return "no longer ignored"
    return "ignored" if change.changed else "already ignored"


def ignore_note(result: IgnoreResult) -> str | None:
    """Return a sentence on the models of the fleet that match what is ignored; None: there is none."""
    if result.undone or not result.matching:
        return None
    match_and_stay = "matches and stays" if result.matching == 1 else "match and stay"
    remove = "modelctl remove"
    if len(result.patterns) == 1:
        pattern = result.patterns[0].pattern
        option = "--match " if is_glob(pattern) else ""
        remove = f"{remove} {option}{shlex.quote(pattern)}"
    return f"{numbered(result.matching)} of the fleet {match_and_stay}; to remove: {remove}"
