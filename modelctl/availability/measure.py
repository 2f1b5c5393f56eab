"""Measure for how long models were on, from the history, in two statements for any number of models.

All times are whole numbers of the smallest unit that the database stores, so that sums are exact.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.availability.results import Availability, ModelAvailability, ProviderAvailability
from modelctl.database.bulk import spooled
from modelctl.database.sql import text
from modelctl.errors import UsageError
from modelctl.model import ModelStatus, storable
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import check_found, check_storable
from modelctl.tables.odd_values import readable
from modelctl.times import written

if TYPE_CHECKING:
    from modelctl.database.database import Database

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS = ", ".join(f"'{status}'" for status in ModelStatus)
_OFF = "status IN ('disabled', 'auto-disabled')"


class _Sums(NamedTuple):
    """What the statement measures of a model, in units of time, in the order of its columns."""

    on: int = 0
    by_person: int = 0
    by_rule: int = 0
    outages: int = 0
    begun_by_rule: int = 0
    longest: int = 0
    goes_on: int = 0


class _Strip(NamedTuple):
    """The times on and off of each part of the period."""

    on: list[int]
    off: list[int]


# The number of models, their sums and their strip.
_Total = tuple[int, _Sums, _Strip]


class _Clock:
    """Converts between times and whole numbers of the unit of one database."""

    def __init__(self, database: Database) -> None:
        self._unit: int = 10**database.sql.digits_of_a_second

    def seconds(self, units: int) -> float:
        return units / self._unit

    def units(self, time: datetime) -> int:
        return (time - _EPOCH) // timedelta(microseconds=10**6 // self._unit)

    def time(self, units: int) -> datetime:
        return _EPOCH + timedelta(microseconds=units * (10**6 // self._unit))


def measure(
    database: Database,
    *,
    since: float | datetime,
    until: datetime | None,
    ids: Sequence[str],
    provider: str | None,
    parts: int,
) -> Availability:
    """Measure the models of a *provider* (None: all), of these *ids* if there are any.

    *since*: seconds before now, or a time. *until*: no later than now, which None is as well.

    Raises:
        UsageError: the period is empty.
        ModelNotFoundError: neither the table nor the history has one of *ids*.
    """
    check_storable(ids)
    clock = _Clock(database)
    now, first = _now_and_first_event(database)
    end = now if until is None else min(now, clock.units(until))
    start = clock.units(since if isinstance(since, datetime) else _ago(clock.time(now), since))
    if start >= end:
        raise UsageError(
            f"the period is empty: it begins {written(clock.time(start))}"
            f" and ends {written(clock.time(end))}",
            hint="--since is before --until, and in the past",
        )
    bounds: dict[str, Any] = {"start": start, "end": end, "length": end - start, "parts": parts}
    for name, units in ("since", start), ("until", end):
        time = clock.time(units)
        bounds[name] = written(time) if database.on_sqlite else time
    if provider is not None:
        bounds["provider"] = storable(provider)
    if ids:
        bounds["ids"] = database.sql.list_of_texts(ids)
    lengths = [(end - start) * (i + 1) // parts - (end - start) * i // parts for i in range(parts)]
    nothing = _Strip([0] * parts, [0] * parts)
    totals: dict[str | None, _Total] = defaultdict(lambda: (0, _Sums(), nothing))
    found: set[str] = set()

    def make(row: Sequence[Any]) -> ModelAvailability:
        model_id, of, status, known_since, concluded, differs, lists, *numbers = row
        sums, strip = _Sums(*(number or 0 for number in numbers)), _strip(lists, lengths)
        model_id, of = readable(model_id), readable(of)
        if ids:
            found.add(model_id)
        for key in (of, None):
            totals[key] = _added(totals[key], sums, strip)
        return ModelAvailability(
            model_id,
            of,
            status and ModelStatus(status),
            **_measures(sums, strip, clock),
            goes_on=bool(sums.goes_on),
            known_since=None if known_since is None else clock.time(known_since),
            concluded_seconds=clock.seconds(concluded),
            differs=bool(differs),
        )

    statement = _statement(database, by_ids=bool(ids), by_provider=provider is not None)
    models = spooled(database, text(statement), bounds, make)
    check_found(ids, found)
    every = _total(None, totals[None], clock)
    providers = (
        _total(name, totals[name], clock) for name in sorted(n for n in totals if n is not None)
    )
    known_since = None if first is None else clock.time(first)
    period = clock.time(start), clock.time(end)
    return Availability(*period, known_since, every, tuple(providers), models)


def _ago(now: datetime, seconds: float) -> datetime:
    return now - timedelta(seconds=seconds)


def _now_and_first_event(database: Database) -> tuple[int, int | None]:
    units, now = database.sql.units, database.sql.now
    sql = (
        f"SELECT {units(now)}, (SELECT {units('at')} FROM {database.own}modelctl_events"
        f" WHERE {database.sql.is_finite('at')} ORDER BY id LIMIT 1)"
    )
    with database.reading() as connection:
        clock, first = connection.execute(text(sql)).one()
    return clock, first


def _statement(database: Database, *, by_ids: bool, by_provider: bool) -> str:
    """SQL: the `_Sums` of each model, and of each part of the period the times on and off."""
    sql, history = database.sql, f"{database.own}modelctl_events"
    units = sql.units

    def told(event: str) -> str:
        """SQL: whether an event has a status before or after it; NULL: the model did not exist then."""
        # Plain comparisons, because PostgreSQL knows how many rows these leave.
        words = [f"{event}.{column} IN ({_WORDS})" for column in ("before", "after")]
        fine = [
            f"({event}.{column} IS NULL OR {word})"
            for column, word in zip(("before", "after"), words, strict=True)
        ]
        return (
            f"({' OR '.join(words)}) AND {' AND '.join(fine)}"
            f" AND {event}.model_id <> '' AND {sql.is_finite(f'{event}.at')}"
        )

    def of_model(value: str, condition: str = "", order: str = "") -> str:
        """The value of the first event (or, DESC, the last one) of the model `known.id`."""
        return (
            f"(SELECT {value} FROM {history} e WHERE e.model_id = known.id AND {told('e')}"
            f"{condition} ORDER BY e.id {order} LIMIT 1)"
        )

    def begin_of(part: str) -> str:
        """When a part of the period begins."""
        return f"(CAST(:start AS bigint) + CAST(:length AS bigint) * ({part}) / :parts)"

    some = f"WHERE {sql.is_among('id')}" if by_ids else "WHERE id IS NOT NULL"
    among = f"AND {sql.is_among('e.model_id')}" if by_ids else ""
    first_told = sql.lesser(
        "coalesce(starts.first_at, CAST(:end AS bigint))", "CAST(:end AS bigint)"
    )
    in_period = "e.at >= :since AND e.at < :until"
    return f"""
WITH
-- The models of the table, and those that only the history knows.
known AS (
    SELECT CAST(id AS text) AS id, coalesce(CAST(provider AS text), '') AS provider,
        {STATUS} AS status, CASE WHEN {sql.is_finite("created_at")} THEN {units("created_at")} END AS created
    FROM models {some}
    UNION ALL
    SELECT gone.model_id, coalesce((
            SELECT {sql.text_in_json("r.details", "old", "provider")} FROM {history} r
            WHERE r.model_id = gone.model_id AND r.event = 'removed' ORDER BY r.id DESC LIMIT 1
        ), ''), NULL, NULL
    FROM (
        SELECT DISTINCT e.model_id FROM {history} e
        WHERE {told("e")} AND {"true" if by_ids else in_period} {among}
    ) AS gone
    WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = gone.model_id)
),
-- What the history says of each model outside of the period; 'absent': it did not exist.
subjects AS MATERIALIZED (
    SELECT id, provider, status, created,
        {of_model("coalesce(e.after, 'absent')", " AND e.at < :since", "DESC")} AS prior,
        {of_model("coalesce(e.before, 'absent')")} AS first_before,
        {of_model(units("e.at"))} AS first_at,
        {of_model("coalesce(e.after, 'absent')", "", "DESC")} AS latest
    FROM known {"WHERE provider = :provider" if by_provider else ""}
),
starts AS (
    SELECT id, coalesce(prior, first_before, status) AS status, prior, first_at,
        CASE WHEN prior IS NOT NULL OR created IS NULL OR created <= CAST(:start AS bigint)
                THEN CAST(:start AS bigint)
            WHEN first_at <= created THEN {sql.greater("CAST(:start AS bigint)", "first_at")}
            ELSE created
        END AS at
    FROM subjects
),
-- The status of each model at the begin of the period (n = 0), then each event of the period.
points AS (
    SELECT id AS model_id, CAST(0 AS bigint) AS n, status, at FROM starts
    UNION ALL
    SELECT e.model_id, e.id, coalesce(e.after, 'absent'), {units("e.at")}
    FROM {history} e WHERE {told("e")} AND {in_period} {among}
        AND e.model_id IN (SELECT id FROM subjects)
),
-- A clock that was set back must not make a time negative.
ordered AS (
    SELECT model_id, n, status, max(at) OVER (PARTITION BY model_id ORDER BY n) AS began FROM points
),
spans AS (
    SELECT model_id, n, status, began,
        lead(began, 1, CAST(:end AS bigint)) OVER (PARTITION BY model_id ORDER BY n) AS ended
    FROM ordered
),
lasting AS (
    SELECT model_id, n, status, began, ended,
        CASE WHEN {_OFF} AND coalesce(lag(status) OVER (PARTITION BY model_id ORDER BY n), 'absent')
            IN ('active', 'absent') THEN 1 ELSE 0 END AS begins
    FROM spans WHERE ended > began
),
numbered AS MATERIALIZED (
    SELECT model_id, status, began, ended, begins,
        sum(begins) OVER (PARTITION BY model_id ORDER BY n) AS outage
    FROM lasting
),
measured AS (
    SELECT model_id,
        sum(ended - began) FILTER (WHERE status = 'active') AS time_on,
        sum(ended - began) FILTER (WHERE status = 'disabled') AS by_person,
        sum(ended - began) FILTER (WHERE status = 'auto-disabled') AS by_rule,
        sum(begins) AS outages,
        sum(begins) FILTER (WHERE status = 'auto-disabled') AS begun_by_rule,
        max(length) AS longest,
        max(CASE WHEN {_OFF} AND ended = CAST(:end AS bigint) THEN 1 ELSE 0 END) AS goes_on
    FROM (
        SELECT numbered.*, sum(CASE WHEN {_OFF} THEN ended - began ELSE 0 END)
            OVER (PARTITION BY model_id, outage) AS length
        FROM numbered
    ) AS with_lengths
    GROUP BY model_id
),
-- The first and the last part of the period that a span touches.
touching AS (
    SELECT model_id, status, began, ended,
        ((began - CAST(:start AS bigint) + 1) * :parts - 1) / CAST(:length AS bigint) AS p,
        ((ended - CAST(:start AS bigint)) * :parts - 1) / CAST(:length AS bigint) AS q
    FROM numbered WHERE status <> 'absent'
),
-- What a span covers of its first part and of its last, and the parts between that it covers whole.
covering AS (
    SELECT model_id, status, p AS first, p AS last,
        {sql.lesser("ended", begin_of("p + 1"))} - began AS time
    FROM touching
    UNION ALL
    SELECT model_id, status, q, q, ended - {begin_of("q")} FROM touching WHERE q > p
    UNION ALL
    SELECT model_id, status, p + 1, q - 1, {begin_of("q")} - {begin_of("p + 1")}
    FROM touching WHERE q > p + 1
),
strips AS (
    SELECT model_id, {sql.list_of_lists("first", "last", "time_on", "time_off")} AS strip
    FROM (
        SELECT model_id, first, last, coalesce(sum(time) FILTER (WHERE status = 'active'), 0) AS time_on,
            coalesce(sum(time) FILTER (WHERE {_OFF}), 0) AS time_off
        FROM covering GROUP BY model_id, first, last
    ) AS shares
    GROUP BY model_id
)
SELECT subjects.id, provider, subjects.status, subjects.first_at,
    CASE WHEN starts.prior IS NULL AND starts.status <> 'absent'
        THEN {sql.greater(f"{first_told} - starts.at", "0")} ELSE 0 END,
    subjects.first_at IS NOT NULL AND latest <> coalesce(subjects.status, 'absent'), strip,
    CAST(time_on AS bigint), CAST(by_person AS bigint), CAST(by_rule AS bigint),
    CAST(outages AS bigint), CAST(begun_by_rule AS bigint), CAST(longest AS bigint), goes_on
FROM subjects JOIN starts ON starts.id = subjects.id
    LEFT JOIN measured ON measured.model_id = subjects.id
    LEFT JOIN strips ON strips.model_id = subjects.id
ORDER BY CAST(coalesce(time_on, 0) AS double precision)
        / nullif(coalesce(time_on, 0) + coalesce(by_person, 0) + coalesce(by_rule, 0), 0) NULLS LAST,
    subjects.id{sql.collation}
"""


# ── The sums of providers, which are few ────────────────────────────────────────────────────────


def _strip(found: Any, lengths: Sequence[int]) -> _Strip:
    """Return a strip. *found*: JSON lists of a first part, a last part, and the times on and off in them.

    *lengths*: of all parts.
    """
    strip = _Strip([0] * len(lengths), [0] * len(lengths))
    for first, last, on, off in json.loads(found) if isinstance(found, str) else found or ():
        if first == last:
            strip.on[first] += int(on)
            strip.off[first] += int(off)
        else:  # a status that lasted for all of these parts
            kind = strip.on if on else strip.off
            kind[first : last + 1] = lengths[first : last + 1]
    return strip


def _added(total: _Total, sums: _Sums, strip: _Strip) -> _Total:
    """Add a model to a total."""
    models, before, parts = total
    together = _Sums(*map(sum, zip(before, sums, strict=True)))
    together = together._replace(longest=max(before.longest, sums.longest))
    on, off = ([*map(add, *pair)] for pair in zip(parts, strip, strict=True))
    return models + 1, together, _Strip(on, off)


def _measures(sums: _Sums, strip: _Strip, clock: _Clock) -> dict[str, Any]:
    """Return the fields that the results of models and of providers have in common."""
    off = sums.by_person + sums.by_rule
    return {
        "share": _share(sums.on, off),
        "on_seconds": clock.seconds(sums.on),
        "off_seconds": clock.seconds(off),
        "outages": sums.outages,
        "mean_outage_seconds": clock.seconds(off) / sums.outages if sums.outages else None,
        "longest_outage_seconds": clock.seconds(sums.longest) if sums.outages else None,
        "outages_by_person": sums.outages - sums.begun_by_rule,
        "outages_by_rule": sums.begun_by_rule,
        "off_by_person_seconds": clock.seconds(sums.by_person),
        "off_by_rule_seconds": clock.seconds(sums.by_rule),
        "strip": tuple(map(_share, strip.on, strip.off)),
    }


def _share(on: int, off: int) -> float | None:
    return on / (on + off) if on + off else None


def _total(provider: str | None, total: _Total, clock: _Clock) -> ProviderAvailability:
    models, sums, strip = total
    return ProviderAvailability(
        provider, models, **_measures(sums, strip, clock), goes_on=sums.goes_on
    )
