"""Reads what `watch` shows: one look at the cache, and two statements."""

from __future__ import annotations

from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from modelctl.count.results import Count
from modelctl.database.sql import text
from modelctl.errors import InvalidConfigError, StaleCacheError
from modelctl.health import Hold
from modelctl.tables.columns import AUTO_OFF, DISABLED, ON
from modelctl.tables.odd_values import readable
from modelctl.times import FOREVER, time_at
from modelctl.watch.results import RecentEvent, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelctl.count.cache import Cache, Hit
    from modelctl.database.database import Database
    from modelctl.models.reads import Models


# How many events are read, so that those of a change of many models are one row.
_EVENTS = 500
# The columns in which these events agree.
_SAME = ("operation", "event", "actor", "reason", "failure_type")


def snapshot(database: Database, models: Models, cache: Cache, rows: int) -> Snapshot:
    """Return the fleet as it is now, with at most *rows* models, events and holds each.

    The cache is only read: a miss is not filled.
    """
    hit, cache_problem = _peek(cache)
    off = tuple(models.iter_models(off=True, sort="since", limit=rows))
    found: dict[str, list[Any]] = {}
    with database.reading() as connection:
        for row in connection.execute(text(_sql(database)), {"rows": rows, "events": _EVENTS}):
            found.setdefault(row.what, []).append(row)
    [totals], [clock] = found["models"], found["now"]
    [recovered], [queue] = found.get("recover", [None]), found.get("queue", [None])
    holds = found.get("hold", [])
    active = int(totals.one)
    moment = _Moment(database, clock.one)
    return Snapshot(
        now=moment.at(clock.one),
        count=Count(hit.active, "cache", hit.age, hit.expires_in)
        if hit
        else Count(active, "database", 0.0, None),
        cache_problem=cache_problem,
        active=active,
        disabled=int(totals.two),
        auto_disabled=int(totals.three),
        spared=int(totals.four),
        off=off,
        holds=moment.holds(holds),
        hold_count=int(holds[0].three) if holds else 0,
        events=tuple(islice(moment.events(found.get("event", [])), rows)),
        queued=int(queue.one) if queue else None,
        oldest_queued_seconds=max(0.0, queue.two) if queue and queue.one else None,
        recovered_seconds_ago=None if recovered is None else moment.since(recovered.one),
    )


def _peek(cache: Cache) -> tuple[Hit | None, str | None]:
    """Return the cached count if it may be believed, or why the cache could not be asked."""
    try:
        with cache.reading():
            return cache.peek(), None
    except (StaleCacheError, InvalidConfigError) as exc:
        if not cache.needs_delivery:  # it is in the database
            raise
        return None, exc.message


class _Moment:
    """Makes results of the rows that were read at one moment."""

    def __init__(self, database: Database, now: float) -> None:
        """*now*: the database's clock, in seconds since 1970."""
        self._now, self._digits = now, database.sql.digits_of_a_second

    def at(self, epoch: float | None) -> Any:
        """Return seconds since 1970 as a time in UTC; None: unreadable, as is the end of time."""
        return FOREVER if epoch is None else time_at(epoch, self._now, self._digits)

    def since(self, epoch: float | None) -> float | None:
        """Return how many seconds ago a time was."""
        return None if epoch is None else self._now - epoch

    def holds(self, rows: Sequence[Any]) -> tuple[Hold, ...]:
        """Return the pauses, then the incidents."""
        in_order = sorted(rows, key=lambda row: (row.failure_type is not None, row.provider or ""))
        return tuple(
            Hold(
                provider=row.provider,
                failure_type=row.failure_type,
                since=self.at(self._now if row.one is None else row.one),
                until=self.at(row.two),
                seconds_left=max(0.0, (self.at(row.two) - self.at(self._now)).total_seconds()),
                reason=row.reason,
                actor=row.actor,
            )
            for row in in_order
        )

    def events(self, rows: Sequence[Any]) -> Iterator[RecentEvent]:
        """Give the events, newest first; those of an operation that did the same to many models as one."""
        newest_first = sorted(rows, key=lambda row: -row.one)
        for key, group in groupby(newest_first, lambda row: tuple(getattr(row, n) for n in _SAME)):
            same = [*group]
            several = [same] if key[0] else [[row] for row in same]
            for newest, *others in several:
                oldest = others[-1] if others else newest
                yield RecentEvent(
                    at=self.at(self._now if newest.two is None else newest.two),
                    model_id=readable(newest.model_id) or None,
                    provider=newest.provider,
                    event=readable(newest.event),
                    actor=newest.actor,
                    reason=newest.reason,
                    failure_type=newest.failure_type,
                    others=len(others),
                    others_cut=len(rows) == _EVENTS and oldest is newest_first[-1],
                )


def _sql(database: Database) -> str:
    """Return one statement for everything but the models that are off: rows of several kinds.

    The first SELECT gives the columns their names and types.
    """
    sql, own = database.sql, database.own
    age, nothing = (
        sql.epoch("clock_timestamp() - min(due)"),
        "NULL, NULL, NULL, NULL, NULL, NULL, NULL",
    )
    statement = (
        f"SELECT 'models' AS what, CAST(count(*) FILTER (WHERE {ON}) AS double precision) AS one,"
        f" CAST(count(*) FILTER (WHERE {DISABLED}) AS double precision) AS two,"
        f" CAST(count(*) FILTER (WHERE {AUTO_OFF}) AS double precision) AS three,"
        f" CAST(count(*) FILTER (WHERE {ON} AND would_disable <> '') AS double precision) AS four,"
        " CAST(NULL AS text) AS provider, CAST(NULL AS text) AS failure_type,"
        " CAST(NULL AS text) AS reason, CAST(NULL AS text) AS actor,"
        " CAST(NULL AS text) AS model_id, CAST(NULL AS text) AS event,"
        " CAST(NULL AS text) AS operation FROM models"
        f" UNION ALL SELECT 'now', {sql.epoch(sql.now)}, NULL, NULL, NULL, {nothing}"
        f" UNION ALL SELECT 'recover', {sql.epoch('at')}, NULL, NULL, NULL, {nothing}"
        f" FROM {own}modelctl_state WHERE name = 'recover'"
        f" UNION ALL SELECT 'hold', {sql.epoch('since')}, {sql.epoch('until')}, total, NULL,"
        " provider, failure_type, reason, actor, NULL, NULL, NULL"
        f" FROM (SELECT *, count(*) OVER () AS total FROM {own}modelctl_holds"
        f" WHERE until > {sql.now} ORDER BY failure_type IS NOT NULL, scope{sql.collation}"
        " LIMIT :rows) AS holds"
        f" UNION ALL SELECT 'event', id, {sql.epoch('at')}, NULL, NULL,"
        " provider, failure_type, reason, actor, model_id, event, operation"
        f" FROM (SELECT * FROM {own}modelctl_events ORDER BY id DESC LIMIT :events) AS events"
    )
    if database.on_sqlite:  # its cache needs no outbox
        return statement
    return (
        f"{statement} UNION ALL SELECT 'queue', count(*), {age}, NULL, NULL, {nothing}"
        f" FROM {own}modelctl_outbox WHERE settle IS NOT TRUE"
    )
