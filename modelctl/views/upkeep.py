"""Views of the count, its cache, the schema, the configuration and `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.model import numbered
from modelctl.views.values import plain, to_json
from modelctl.views.view import View, dry_run_note, field_names, record_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.config.settings import Setting
    from modelctl.count.reports import CacheReport, DrainResult
    from modelctl.count.results import Count, VerifiedCount
    from modelctl.doctor.results import Diagnosis
    from modelctl.history.results import Pruned
    from modelctl.migrations.results import SchemaStatus
    from modelctl.notify.results import Notified
    from modelctl.removal.results import Uninstalled


# ── The count and its cache ─────────────────────────────────────────────────────────────────────


def count_view(result: Count) -> View:
    """Return the view of the count and of where it came from."""
    fresh = result.source == "database"
    origin = "fresh from the database" if fresh else f"cached {result.age_seconds:.1f} s ago"
    row = (result.active, result.source, result.age_seconds, result.expires_in_seconds)
    return record_view(
        result,
        columns=("active", "source", "age_seconds", "expires_in_seconds"),
        row=row,
        name_field="active",
        note=f"{numbered(result.active)} active, {origin}",
    )


def verified_count_view(result: VerifiedCount) -> View:
    """Return the view of the cached count beside that of the database."""
    if result.cached is None:
        comparison = "and nothing is cached"
    elif result.match:
        comparison = "and the cache agrees"
    else:
        comparison = f"but the cache says {result.cached}"
    columns = ("database", "cached", "match")
    return View(
        document=result,
        columns=columns,
        rows=[(result.database, result.cached, "yes" if result.match else "no")],
        items=[result],
        fields=field_names(type(result), *columns),
        name_field="database",
        note=f"{numbered(result.database)} active, {comparison}",
    )


def cache_view(result: CacheReport) -> View:
    """Return the view of the cache's keys and of the queue."""
    from modelctl.count.reports import CacheKey

    names = field_names(CacheKey)
    queue = f"{result.queued} queued"
    if result.oldest_queued_seconds is not None:
        queue += f", {result.oldest_queued_seconds:.0f} s old"
    return View(
        document=result,
        columns=names,
        rows=[(key.key, key.value, key.expires_in_seconds) for key in result.keys],
        items=result.keys,
        fields=names,
        name_field="key",
        optional=("expires_in_seconds",),
        note=f"cache: {result.backend}; {queue}, {result.settling} settling",
    )


def drain_view(result: DrainResult) -> View:
    """Return the view of how many invalidations were delivered."""
    return record_view(
        result,
        columns=("delivered", "queued", "cache"),
        row=(result.delivered, result.queued, result.cache),
        name_field="delivered",
    )


# ── The schema, the configuration, doctor ───────────────────────────────────────────────────────


def schema_view(result: SchemaStatus) -> View:
    """Return the view of the schema's revision."""
    row = (
        result.database,
        result.current or "none",
        result.head,
        "yes" if result.up_to_date else "no",
        result.table or "none",
        result.owner,
        result.rows,
    )
    return record_view(
        result,
        columns=("database", "current", "head", "up_to_date", "table", "owner", "rows"),
        row=row,
        name_field="database",
        optional=("head", "current", "owner", "rows"),
    )


def uninstalled_view(result: Uninstalled) -> View:
    """Return the view of what `db uninstall` removed."""
    return removed_view(result.removed)._replace(document=result, note=dry_run_note(result.dry_run))


def removed_view(names: Sequence[str]) -> View:
    """Return the view of the triggers and functions that were removed."""
    return View(
        document={"removed": names},
        columns=("removed",),
        rows=[(name,) for name in names],
        items=[{"removed": name} for name in names],
        fields=("removed",),
        name_field="removed",
    )


def settings_view(settings: Sequence[Setting], file: str | None) -> View:
    """Return the view of the configuration; *file*: the configuration file in use."""
    from modelctl.config.settings import Setting

    return View(
        document={"file": file, "settings": settings},
        columns=("key", "value", "from", "variable"),
        rows=[(of.key, to_json(of.value), of.origin, of.variable) for of in settings],
        items=settings,
        fields=field_names(Setting),
        name_field="key",
        optional=("variable",),
        note=f"file: {file or 'none'}",
    )


def diagnosis_view(result: Diagnosis) -> View:
    """Return the view of what `doctor` found."""
    columns = ("check", "result", "detail")
    items = []
    for check in result.checks:
        verdict = "wrong" if not check.ok else "warning" if check.warning else "ok"
        items.append(plain(check) | {"result": verdict})
    return View(
        document={"ok": result.ok, "checks": items, "audit": result.audit},
        columns=columns,
        rows=[tuple(item[name] for name in columns) for item in items],
        items=items,
        fields=(*columns, "ok", "warning"),
        name_field="check",
    )


def pruned_view(result: Pruned) -> View:
    """Return the view of how many old events were deleted."""
    return record_view(
        result,
        columns=("deleted", "before"),
        row=(result.deleted, result.before),
        name_field="deleted",
        note=dry_run_note(result.dry_run),
    )


def notified_view(result: Notified) -> View:
    """Return the view of what `notify` sent."""
    columns = ("sent", "waiting", "dropped", "cursor")
    return record_view(
        result,
        columns=columns,
        row=tuple(getattr(result, name) for name in columns),
        name_field="sent",
        note="dry run: nothing was sent" if result.dry_run else None,
    )
