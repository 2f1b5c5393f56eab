"""The view of a restore: a diff of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.errors import clean
from modelctl.model import numbered
from modelctl.views.values import plain, to_json
from modelctl.views.view import MAX_TABLE_ROWS, Each, View, dry_run_note

if TYPE_CHECKING:
    from modelctl.backup.results import Restored, RestoredModel

_SIGNS = {"added": "+", "updated": "~", "left_off": "!"}
_FIELDS = ("id", "before", "after", "result", "changed", "note", "details")


def restored_view(result: Restored) -> View:
    """Return the view of a restore: a line for each model, except those that are as in the export."""
    items = Each(result.changes, _item)
    counts = ("added", "updated", "unchanged", "left_off", "untouched", "holds")
    return View(
        document={
            **{name: getattr(result, name) for name in counts},
            "changes": items,
            "cache": result.cache,
            "dry_run": result.dry_run,
            "operation": result.operation,
        },
        columns=("change", "id", "what"),
        rows=((_SIGNS[one.kind], one.id, _what(one)) for one in result.changes),
        items=items,
        fields=_FIELDS,
        heading=1,
        max_rows=MAX_TABLE_ROWS,
        note="\n".join(filter(None, (summary(result), dry_run_note(result.dry_run)))),
        cache=result.cache,
    )


def summary(result: Restored) -> str:
    """Say in one line what became of the models."""
    parts = [
        f"+ {result.added} added",
        f"~ {result.updated} updated",
        f"= {result.unchanged} unchanged",
        f"! {result.left_off} left off",
    ]
    if result.left_off:
        parts[-1] += " (--enable restores them)"
    others = f"; not in the export: {numbered(result.untouched)}" if result.untouched else ""
    holds = f"; pauses and incidents restored: {result.holds}" if result.holds else ""
    return f"{', '.join(parts)}{others}{holds}"


def _item(one: RestoredModel) -> dict[str, Any]:
    return {**plain(one), "result": one.kind}


def _what(one: RestoredModel) -> str:
    """Say what differs, as in ``status: active -> disabled``."""
    if one.kind == "added":
        return str(one.after)
    details = one.details or {"old": {}, "new": {}}
    changes = [
        f"{name}: {_shown(old)} -> {_shown(details['new'][name])}"
        for name, old in details["old"].items()
    ]
    return "; ".join([*([one.note] if one.note else []), *changes])


def _shown(value: Any) -> str:
    if value is None or value in ("", ()):
        return "none"
    return clean(value) if isinstance(value, str) else to_json(value)
