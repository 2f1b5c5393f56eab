"""Measures a fleet: two statements, and one look at the cache."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from modelctl.database.sql import text
from modelctl.history.prune import PRUNED
from modelctl.metrics.results import FleetMetrics
from modelctl.models.totals import stats
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from modelctl.count.protocol import CachedCount
    from modelctl.database.database import Database


def measure(database: Database, cached_count: CachedCount) -> FleetMetrics:
    """Return the numbers of now. The cache is only read: a miss is not filled."""
    with cached_count.cache.reading():
        hit = cached_count.peek()
    totals = stats(database)
    # The kinds of each subject, with their numbers.
    found: dict[str, Counter[str]] = {}
    with database.reading() as connection:
        for subject, kind, number in connection.execute(text(_sql(database))):
            if number is not None:
                found.setdefault(subject, Counter())[readable(kind)] += number
    once, holds = found["once"], found.get("hold", Counter())
    recovered_at = once.get("recover")
    return FleetMetrics(
        providers=totals.providers,
        active=hit.active if hit else totals.active,
        source="cache" if hit else "database",
        age_seconds=hit.age if hit else 0.0,
        queued=int(once["queued"]),
        settling=int(once["settling"]),
        oldest_queued_seconds=max(0.0, once["oldest"]),
        recovered_at=recovered_at,
        recovered_seconds_ago=None if recovered_at is None else once["now"] - recovered_at,
        pauses=int(holds["pause"]),
        incidents=int(holds["incident"]),
        events={kind: int(number) for kind, number in sorted(found.get("event", {}).items())},
    )


def _sql(database: Database) -> str:
    """Return one statement for everything but the models: rows of a subject, a kind and a number."""
    sql, own = database.sql, database.own
    state = f"{own}modelctl_state"
    statement = (
        f"SELECT 'event' AS subject, event AS kind, CAST(count(*) AS double precision) AS number"
        f" FROM {own}modelctl_events GROUP BY event"
        # The events that were deleted, so that the sum never falls.
        f" UNION ALL SELECT 'event', substr(name, {len(PRUNED) + 1}), CAST(value AS double precision)"
        f" FROM {state} WHERE name LIKE '{PRUNED}%'"
        " UNION ALL SELECT 'hold', CASE WHEN failure_type IS NULL THEN 'pause' ELSE 'incident' END, 1"
        f" FROM {own}modelctl_holds WHERE until > {sql.now}"
        f" UNION ALL SELECT 'once', 'recover', {sql.epoch('at')} FROM {state} WHERE name = 'recover'"
        f" UNION ALL SELECT 'once', 'now', {sql.epoch(sql.now)}"
    )
    if database.on_sqlite:  # its cache needs no outbox
        return statement
    outbox = f"{own}modelctl_outbox"
    age = sql.epoch("clock_timestamp() - min(due)")
    return (
        f"{statement}"
        f" UNION ALL SELECT 'once', 'queued', count(*) FROM {outbox} WHERE settle IS NOT TRUE"
        f" UNION ALL SELECT 'once', 'settling', count(*) FROM {outbox} WHERE settle IS TRUE"
        f" UNION ALL SELECT 'once', 'oldest', {age} FROM {outbox} WHERE settle IS NOT TRUE"
    )
