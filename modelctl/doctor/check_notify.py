"""Whether people are told what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, warning, well, wrong
from modelctl.model import numbered

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts

# It runs each minute, or every few seconds.
_OVERDUE = 3600.0
_A_WEEK = 7 * 86400.0


def notify(facts: Facts) -> Finding | None:
    """Say when notify last ran, and whether its receiver accepts what it sends."""
    if facts.config.notify is None:
        return None
    from modelctl.notify.cursor import Cursor

    progress, ago, now = Cursor(facts.storage.database).read()
    if progress is None:
        return warning("[notify] is set, but notify never ran; run it from cron")
    detail = f"last ran {max(0.0, ago):.0f} s ago"
    if ago > _OVERDUE:
        return wrong(f"{detail}, so nobody is told what happens; run it from cron")
    if progress.failing_since is not None:
        failing = max(0.0, now - progress.failing_since)
        detail += f"; the receiver has accepted nothing for {failing:.0f} s: {progress.problem}"
        return wrong(detail) if failing > _OVERDUE else warning(detail)
    if progress.dropped_at is not None and now - progress.dropped_at < _A_WEEK:
        dropped = numbered(progress.dropped, "event")
        return warning(f"{detail}; {dropped} could not be delivered for a day and were dropped")
    return well(detail)
