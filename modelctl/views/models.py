"""Views of models, of changes to them, of totals and of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.errors import clean
from modelctl.model import ModelStatus, numbered
from modelctl.recovery.explain import describe
from modelctl.views.values import plain, rounded, table_text, to_json
from modelctl.views.view import MAX_TABLE_ROWS, Each, View, dry_run_note, field_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelctl.models.results import (
        BatchResult,
        Changes,
        Event,
        ExplainedModel,
        LeaderboardEntry,
        Model,
        Stats,
        StatusChange,
    )

# The first columns of a model in CSV and TSV.
_MODEL_FIELDS = (
    *("id", "display_name", "provider", "status", "would_disable"),
    *("consecutive_failures", "success_count", "failure_count", "retry_at"),
)


# What `list` can show of a model beside its fields: for one that is off, since when, by whom, why and
# until when. Of one that a guard keeps on it tells why.
_OFF = ("since", "by", "why", "back_at")
OFF_COLUMNS = ("id", "status", *_OFF)
SOURCE_COLUMNS = ("source", "first_seen_at", "last_seen_at", "gone_since")
WIDE_COLUMNS = (
    *("id", "display_name", "provider", "status", *_OFF, "consecutive_failures"),
    *("success_count", "failure_count", "last_success_at", "last_failure_at", "updated_at"),
    *("tags", "source", "gone_since"),
)


def column_names() -> tuple[str, ...]:
    """Return the columns that `list -c` knows, beside `SOURCE_COLUMNS`."""
    from modelctl.models.results import Model

    return (*field_names(Model, *_MODEL_FIELDS), *_OFF)


def columns_view(
    models: Iterable[Model], columns: tuple[str, ...], fields: tuple[str, ...], notes: Iterable[str]
) -> View:
    """Return the view of a listing with these *columns* as a table and *fields* in other formats."""
    records = ({name: rounded(name, _value(model, name)) for name in fields} for model in models)
    rows = ([_shown(model, name) for name in columns] for model in models)
    return View(
        document=records,
        columns=columns,
        rows=rows,
        items=records,
        fields=fields,
        name_field="id" if "id" in fields else fields[0],
        split=tuple(name for name in ("since", "back_at") if name in columns),
        narrowest=10,
        note="\n".join(map(clean, notes)) or None,
    )


def _value(model: Model, name: str) -> Any:
    """Return the value of a column in the formats for programs."""
    off = model.status is not ModelStatus.ACTIVE
    if name == "since":
        return model.disabled_at if off else None
    if name == "by":
        return model.disabled_by if off else None
    if name == "back_at":
        return model.retry_at
    return why_off(model) if name == "why" else getattr(model, name)


def why_off(model: Model) -> str | None:
    """Return why a model is off, or what keeps it on although the health rule would switch it off."""
    failure = ": ".join(filter(None, (model.failure_type, model.failure_reason)))
    if model.status is ModelStatus.ACTIVE:
        return model.would_disable and f"spared ({model.would_disable}), {failure or 'failures'}"
    by_rule = model.status is ModelStatus.AUTO_DISABLED
    return model.disabled_reason or ((failure or None) if by_rule else None)


def _shown(model: Model, name: str) -> Any:
    """Return what a table shows in a column; its times have no seconds, to be narrow."""
    value = _value(model, name)
    if name == "tags":
        return ", ".join(model.tags) or None
    if name == "back_at" and value is None and model.status is not ModelStatus.ACTIVE:
        return "never"
    is_short = name in ("since", "back_at", "gone_since")
    return f"{value:%Y-%m-%d %H:%MZ}" if value and is_short else value


def models_view(models: Iterable[Model], notes: Iterable[str] = ()) -> View:
    """Return the view of a listing, which may be a stream; *notes*: lines below the table."""
    from modelctl.models.results import Model

    rows = (
        (
            model.id,
            model.display_name or model.id,
            model.provider,
            model.status,
            model.would_disable,
            model.consecutive_failures,
            model.success_count,
            model.failure_count,
            model.retry_at or (None if model.status is ModelStatus.ACTIVE else "never"),
        )
        for model in models
    )
    return View(
        document=models,
        columns=(
            *("id", "name", "provider", "status", "would_disable"),
            *("failures_in_a_row", "successes", "failures", "retry_at"),
        ),
        rows=rows,
        items=models,
        fields=field_names(Model, *_MODEL_FIELDS),
        optional=("name", "provider", "successes", "failures", "retry_at", "failures_in_a_row"),
        note="\n".join(map(clean, notes)) or None,
    )


def model_view(result: ExplainedModel) -> View:
    """Return the view of one model: its status, the explanation, then the other values."""
    explanation = [
        (" " if number else "why", sentence) for number, sentence in enumerate(result.explanation)
    ]
    names = field_names(type(result), *_MODEL_FIELDS)
    newer = ("tags", *SOURCE_COLUMNS)
    rows: list[tuple[str, Any]] = [
        ("id", result.id),
        ("name", result.display_name or result.id),
        ("provider", result.provider),
        ("tags", ", ".join(result.tags)),
        ("status", result.status),
        *explanation,
        ("retry at", result.retry_at),
        ("failures in a row", result.consecutive_failures),
        ("ejections", result.ejections),
        ("successes", result.success_count),
        ("failures", result.failure_count),
        ("last success", result.last_success_at),
        ("last failure", result.last_failure_at),
        ("created", result.created_at),
        ("updated", result.updated_at),
        ("source", result.source),
        ("first seen", result.first_seen_at),
        ("last seen", result.last_seen_at),
        ("gone since", result.gone_since),
    ]
    return View(
        document=result,
        columns=("field", "value"),
        rows=[row for row in rows if row[1] not in (None, "")],
        items=[result],
        # The explanation stays before the tags and the source, which are newer.
        fields=(*(name for name in names if name not in newer), *newer),
    )


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────


def changes_view(result: Changes, *, unchanged: str = "already") -> View:
    """Return the view of what a command did to each model.

    *unchanged*: the word before a status that stayed, as in "already disabled".
    """
    from modelctl.history.results import Undone

    columns = ("id", "before", "after", "result")

    def item(change: StatusChange) -> dict[str, Any]:
        values: dict[str, Any] = plain(change)
        return values | {"result": _what_happened(change, result.dry_run, unchanged)}

    # The changes of a selection may be many, and are then on disk.
    few = isinstance(result.changes, tuple)
    items = [*map(item, result.changes)] if few else Each(result.changes, item)
    names = dict.fromkeys((*columns, *(name for item in items for name in item)))
    return View(
        document={
            "changes": items,
            "cache": result.cache,
            "dry_run": result.dry_run,
            "operation": result.operation,
            **({"undone": result.undone} if isinstance(result, Undone) else {}),
        },
        columns=columns,
        rows=(tuple(item[name] for name in columns) for item in items),
        items=items,
        fields=tuple(names),
        optional=("before",),
        max_rows=MAX_TABLE_ROWS,
        note=_changes_note(result),
        cache=result.cache,
    )


_MANY = 10  # from so many changes on they are counted below the table


def _changes_note(result: Changes) -> str | None:
    """Return the line below many changes: how many they are, and how to take them back."""
    if result.dry_run or len(result.changes) <= _MANY:
        return dry_run_note(result.dry_run)
    changed = sum(change.changed for change in result.changes)
    note = f"{changed} changed, {len(result.changes) - changed} unchanged"
    # What was added or removed cannot be undone.
    of_status = any(c.changed and c.before and c.after for c in result.changes)
    return f"{note}\nto take it back: modelctl undo {result.operation}" if of_status else note


def _what_happened(change: StatusChange, dry_run: bool, unchanged: str) -> str:
    """Return the words of the column "result"."""
    from modelctl.history.results import LeftChange

    if failure_type := getattr(change, "failure_type", None):
        return _recorded_failure(change, failure_type)
    if not getattr(change, "recorded", True):
        return "not recorded: the caller went away"
    if edited := _edited(change, dry_run):
        return edited
    if not change.changed:
        status = f"{unchanged} {change.after or 'removed'}"
        kept = getattr(change, "note", None)
        if isinstance(change, LeftChange):
            return f"left {change.after or 'removed'}: {kept}"
        return f"{status}, {kept}" if kept else status
    result = "added" if change.before is None else change.after or "removed"
    return f"would be {result}" if dry_run else result


def _edited(change: Any, dry_run: bool) -> str | None:
    """Return what `edit` or `rename` did, as in "edited: name 'b'"; None: it was another command."""
    would = "would be " if dry_run else ""
    if old_id := getattr(change, "old_id", None):
        return f"{would if change.changed else 'already '}renamed from {old_id}"
    if not hasattr(change, "new"):
        return None
    if not change.changed:
        return "unchanged"
    values = (
        f"tags {', '.join(value) or 'none'}"
        if name == "tags"
        else f"{name.removeprefix('display_')} '{value}'"
        for name, value in change.new.items()
    )
    return f"{would}edited: {'; '.join(values)}"


def _recorded_failure(change: Any, failure_type: str) -> str:
    """Return what a recorded failure did, as in "counted, 3 of 5"."""
    so_far = f"{change.consecutive_failures} of {change.threshold}"
    if not change.counted:
        return f"not counted ({failure_type}), {so_far}"
    if change.changed:
        return f"counted: switched off ({so_far})"
    kept = f"; kept on ({change.would_disable})" if change.would_disable else ""
    return f"counted, {so_far}{kept}"


def batch_view(result: BatchResult) -> View:
    """Return the view of a batch of outcomes."""
    from modelctl.models.results import StatusChange

    rows = [(change.id, change.before, change.after) for change in result.changes]
    switched = f"{numbered(len(rows))} changed status" if rows else "no status changed"
    return View(
        document=result,
        columns=("id", "before", "after"),
        rows=rows,
        items=result.changes,
        fields=field_names(StatusChange),
        note=f"{numbered(result.recorded, 'outcome')} recorded, {switched}",
        cache=result.cache,
    )


# ── Totals and the history ──────────────────────────────────────────────────────────────────────


def stats_view(result: Stats) -> View:
    """Return the view of the totals: a row for each provider."""
    from modelctl.models.results import ProviderStats

    totals = (
        f"{numbered(result.models)}: {result.active} active, {result.disabled} disabled,"
        f" {result.auto_disabled} auto-disabled;"
        f" {result.success_count} successes, {result.failure_count} failures"
    )
    return View(
        document=result,
        columns=("provider", "models", "active"),
        rows=[(of.provider, of.models, of.active) for of in result.providers],
        items=result.providers,
        fields=field_names(ProviderStats),
        name_field="provider",
        note="\n".join([totals, *(clean(describe(hold)) for hold in result.holds)]),
    )


def leaderboard_view(entries: Iterable[LeaderboardEntry]) -> View:
    """Return the view of the leaderboard."""
    from modelctl.models.results import LeaderboardEntry

    rows = (
        (
            entry.rank,
            entry.id,
            entry.display_name or entry.id,
            entry.provider,
            "" if entry.success_rate is None else f"{entry.success_rate:.1%}",
            entry.success_count,
            entry.failure_count,
        )
        for entry in entries
    )
    return View(
        document=entries,
        columns=("rank", "id", "name", "provider", "success_rate", "successes", "failures"),
        rows=rows,
        items=entries,
        fields=field_names(LeaderboardEntry),
        heading=1,
        optional=("name", "provider", "failures", "successes"),
    )


def events_view(events: Iterable[Event]) -> View:
    """Return the view of the history, which may be a stream."""
    from modelctl.models.results import Event

    first = ("at", "model_id", "event", "before", "after", "actor", "failure_type", "reason")
    rows = (
        (
            *(event.at, event.model_id, event.provider, event.event, event.before, event.after),
            *(event.actor, event.failure_type, event.reason),
            event.details and to_json(event.details),
            event.operation,
        )
        for event in events
    )
    return View(
        document=events,
        columns=(*first[:2], "provider", *first[2:], "details", "operation"),
        rows=rows,
        items=events,
        fields=field_names(Event, *first),
        name_field="model_id",
        heading=1,
        optional=(
            "operation",
            "details",
            "before",
            "failure_type",
            "provider",
            "after",
            "actor",
            "reason",
        ),
    )


def event_lines(events: Iterable[Event]) -> Iterator[str]:
    """Return a line for a person of each event, as it is printed when it comes."""
    from modelctl.models.results import by_whom

    for event in events:
        of = event.model_id or event.provider or "fleet"
        statuses = f" ({event.before or '-'} -> {event.after or '-'})" if event.after else ""
        why = [word for word in (event.failure_type, event.reason) if word]
        by = by_whom(event.actor, (event.details or {}).get("application_name"))
        yield f"{table_text(event.at)}  {of}  {event.event}{statuses}{by}{': ' * bool(why)}{', '.join(why)}"
