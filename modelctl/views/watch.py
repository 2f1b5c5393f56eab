"""What `watch` shows, as text without a width: its parts, its tables, its lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl.errors import clean
from modelctl.model import ModelStatus, numbered
from modelctl.views.models import why_off

if TYPE_CHECKING:
    from datetime import datetime

    from modelctl.health import Hold
    from modelctl.models.results import Model
    from modelctl.watch.results import RecentEvent, Snapshot


class Part(NamedTuple):
    """A few words about the fleet, and whether they are a reason to look closer."""

    words: str
    notable: bool = False


class Column(NamedTuple):
    """A column of a table that is cut to fit.

    *least*: it is left out rather than narrower than this. *first*: it gets this much before
    columns to its right get more than their least.
    """

    title: str
    least: int
    first: int = 1000


# `*_LEFT_OUT`: the columns that a narrow terminal leaves out, the least important first.
OFF_COLUMNS = (
    Column("model", 20, 32),
    Column("status", 13),
    Column("off for", 7),
    Column("back in", 7),
    Column("by", 11, 16),
    Column("why", 20),
)
OFF_LEFT_OUT = ("status", "by", "why", "off for")
EVENT_COLUMNS = (
    Column("ago", 6),
    Column("event", 13),
    Column("model", 20, 28),
    Column("by", 8, 13),
    Column("why", 16),
)
EVENTS_LEFT_OUT = ("by", "why", "ago")


def short(seconds: float) -> str:
    """Write how long something is in two units at most: ``12s``, ``5m``, ``1h05m``, ``3d04h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    if whole < 100 * 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
    return f"{whole // 86400}d"


def summary(of: Snapshot) -> list[Part]:
    """Return the count and its source, the totals, the queue, and when `recover` last finished."""
    count = of.count
    from_cache = count.source == "cache"
    origin = f"cached {short(count.age_seconds)} ago" if from_cache else "from the database"
    parts = [Part(f"{count.active} active, {origin}")]
    if count.active != of.active:
        parts.append(Part(f"{of.active} active in the database", True))
    parts.append(Part(f"{of.disabled} disabled", bool(of.disabled)))
    parts.append(Part(f"{of.auto_disabled} auto-disabled", bool(of.auto_disabled)))
    if of.spared:
        parts.append(Part(f"{of.spared} kept on by a guard", True))
    if of.queued is not None:
        oldest = of.oldest_queued_seconds
        since = "" if oldest is None else f", the oldest {short(oldest)} old"
        parts.append(Part(f"{numbered(of.queued, 'invalidation')} queued{since}", bool(of.queued)))
    ago = of.recovered_seconds_ago
    parts.append(Part("recover never ran" if ago is None else f"last recover {short(ago)} ago"))
    return parts


def hold_line(hold: Hold) -> str:
    """Describe a pause or an incident in one line, the important words first."""
    whose = "the fleet" if hold.provider is None else hold.provider or "no provider"
    left = short(hold.seconds_left)
    if hold.failure_type is not None:
        line = f"incident  {whose}: {hold.failure_type} switches no model off for {left} at least"
    else:
        line = f"paused    {whose}: nothing is switched off or on for {left}"
    by = f", by {hold.actor}" if hold.actor and hold.failure_type is None else ""
    return clean(f"{line}{by}{f': {hold.reason}' if hold.reason else ''}")


def off_row(model: Model, now: datetime) -> tuple[str, ...]:
    """Return the cells of a model that is off, or kept on by a guard."""
    off = model.status is not ModelStatus.ACTIVE
    since = model.disabled_at if off else None
    back = "" if not off else "never"
    if off and model.seconds_left is not None:
        back = short(model.seconds_left) if model.seconds_left else "now"
    cells = (
        model.id,
        model.status,
        short((now - since).total_seconds()) if since else "",
        back,
        model.disabled_by if off else "",
        why_off(model),
    )
    return tuple(clean(cell or "") for cell in cells)


def event_row(event: RecentEvent, now: datetime) -> tuple[str, ...]:
    """Return the cells of an event."""
    of = event.model_id or (f"({event.provider})" if event.provider else "(the fleet)")
    if event.others:
        of = f"{event.others + 1}{'+' * event.others_cut} models, {of}"
    why = ": ".join(word for word in (event.failure_type, event.reason) if word)
    cells = (short((now - event.at).total_seconds()), event.event, of, event.actor or "", why)
    return tuple(map(clean, cells))
