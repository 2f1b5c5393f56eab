"""Totals of the fleet, and its active models ranked by success rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.database.sql import text
from modelctl.errors import clean
from modelctl.model import numbered, storable
from modelctl.models.reads import by_code_points
from modelctl.models.results import LeaderboardEntry, ProviderStats, Stats
from modelctl.tables.columns import AUTO_OFF, MODELS, ON
from modelctl.tables.ids import is_storable, quoted
from modelctl.tables.odd_values import (
    OddRows,
    as_declared,
    is_number,
    is_odd,
    readable,
    whole,
)

if TYPE_CHECKING:
    from modelctl.database.database import Database


def stats(database: Database) -> Stats:
    """Return the totals, in one statement over the rows."""
    odd = _odd_counts(database)
    good, bad = (_summed(database, column) for column in ("success_count", "failure_count"))
    sql = (
        f"SELECT provider, count(*), count(*) FILTER (WHERE {ON}),"
        f" count(*) FILTER (WHERE {AUTO_OFF}), coalesce(sum({good}), 0), coalesce(sum({bad}), 0){odd}"
        " FROM models GROUP BY provider"
    )
    # Of each provider: models, active, auto-disabled, successes, failures.
    providers: dict[str, list[int]] = {}
    with database.reading() as connection:
        for provider, *rest in connection.execute(text(sql)):
            _warn_of_odd_provider(database, provider, rest)
            # Here NULL becomes '', because coalesce in the GROUP BY costs a quarter more.
            numbers = providers.setdefault(readable(provider), [0] * 5)
            numbers[:] = [a + whole(b) for a, b in zip(numbers, rest[:5], strict=True)]
    shares = tuple(
        ProviderStats(
            name, models, active, models - active - auto_off, auto_off, successes, failures
        )
        for name, (models, active, auto_off, successes, failures) in sorted(providers.items())
    )
    return Stats(
        models=sum(share.models for share in shares),
        active=sum(share.active for share in shares),
        disabled=sum(share.disabled for share in shares),
        auto_disabled=sum(share.auto_disabled for share in shares),
        providers=shares,
        success_count=sum(share.success_count for share in shares),
        failure_count=sum(share.failure_count for share in shares),
    )


def _odd_counts(database: Database) -> str:
    """SQLite: how many rows have values that cannot be counted, and the id of one of them."""
    if not database.on_sqlite:
        return ""
    c = MODELS.c
    odd = is_odd(database, (c.id, c.provider, c.success_count, c.failure_count))
    return f", count(*) FILTER (WHERE {odd}), min(id) FILTER (WHERE {odd})"


def _summed(database: Database, column: str) -> str:
    """Limit a counter on SQLite, where a sum that is longer than 8 bytes is an error."""
    if not database.on_sqlite:
        return column
    return f"min(max(CAST({column} AS integer), -1000000000000000), 1000000000000000)"


def _warn_of_odd_provider(database: Database, provider: Any, rest: list[Any]) -> None:
    """*rest*: the five numbers of the provider; on SQLite also the two of `_odd_counts`."""
    models, good, bad = rest[0], rest[3], rest[4]
    if rest[5:] and rest[5]:
        database.warn(f"{quoted([readable(rest[6])])} has values that cannot be counted")
    elif provider is not None and not is_storable(readable(provider)):
        database.warn(f"the provider '{clean(provider)}' of {numbered(models)} cannot be read")
    if not (is_number(good) and is_number(bad)):
        name = clean(readable(provider))
        database.warn(f"the calls of provider '{name}' cannot be summed: one of them is no number")


def leaderboard(
    database: Database, *, top: int | None, provider: str | None, untested: bool
) -> tuple[LeaderboardEntry, ...]:
    """Return the *top* active models (None: all) by the lower bound of their success rate.

    *untested*: also models without a call, which come last.
    """
    c = MODELS.c
    successes, failures = (sa.func.coalesce(n, 0) for n in (c.success_count, c.failure_count))
    good, bad = sa.cast(successes, sa.Double), sa.cast(failures, sa.Double)
    # NULL for infinity and NaN, which a column of another type may have.
    calls = sa.case(((good + bad).between(-1e300, 1e300), sa.func.nullif(good + bad, 0.0)))
    rate, score = good / calls, _lower_bound(good, bad, calls)
    query = (
        sa.select(c.id, c.display_name, c.provider, successes, failures, rate, score)
        .where(c.active.is_(sa.true()))
        .order_by(score.desc().nulls_last(), bad, by_code_points(database, c.id))
        .limit(top)
    )
    if not untested:
        query = query.where(calls.is_not(None))
    if provider is not None:
        query = query.where(sa.func.coalesce(c.provider, "") == storable(provider))
    with database.reading() as connection:
        rows = connection.execute(query).all()
    odd = OddRows(database.warn)
    entries = []
    for rank, (*row, rate_of_row, score_of_row) in enumerate(rows, 1):
        known = c.id, c.display_name, c.provider, c.success_count, c.failure_count
        values, columns = as_declared(known, row)
        if columns:
            odd.add(quoted(values[:1]), columns)
        model_id, name, of, *counts = values
        entry = (rank, model_id, name, of, rate_of_row, *counts, score_of_row)
        entries.append(LeaderboardEntry(*entry))
    odd.finish()
    return tuple(entries)


def _lower_bound(good: Any, bad: Any, calls: Any) -> Any:
    """The lower bound of the success rate with 95 % confidence (Wilson's score interval, 1927).

    It ranks 420 of 421 calls above 1 of 1. The arguments are expressions; *calls* is NULL where
    there are none.
    """
    z = 1.959964  # the quantile of 97.5 % of the normal distribution
    spread = z * sa.func.sqrt(good * bad / calls + z * z / 4)
    bound = (good + z * z / 2 - spread) / (calls + z * z)
    # Without a success the difference of two equal numbers may be other than 0. With negative
    # counters, which only another program writes, there is no root.
    return sa.case((calls.is_(None), None), (sa.or_(good <= 0, bad < 0), 0.0), else_=bound)
