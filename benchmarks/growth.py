"""How cost grows with the fleet: reads against the same SQL on a bare connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Row, Spread, at_most, enough, interleave, seconds
from benchmarks.servers import COUNT_KEY, Bench
from modelctl import Fleet

if TYPE_CHECKING:
    import psycopg
    import redis

_OFF_PERCENT = 1
_TARGET = at_most(1.15)

# Written by hand, as somebody who knows the table would.
_COUNT = "SELECT count(*) FROM models WHERE active"
_LIST = "SELECT * FROM models ORDER BY id LIMIT 50"
_STATS = """
SELECT provider, count(*), count(*) FILTER (WHERE active),
    count(*) FILTER (WHERE auto_disabled AND NOT active), sum(success_count), sum(failure_count)
FROM models GROUP BY provider ORDER BY provider
"""
_LEADERBOARD = """
SELECT id, display_name, provider, success_count::float8 / nullif(success_count + failure_count, 0)
FROM models WHERE active
ORDER BY success_count::float8 / nullif(success_count + failure_count, 0) DESC NULLS LAST,
    success_count + failure_count DESC, id
LIMIT 10
"""
_WAITING = """
SELECT id, last_failure_at, clock_timestamp() FROM models WHERE auto_disabled AND NOT active
ORDER BY last_failure_at, id
"""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured at one size: modelctl with and without Redis, and bare connections."""

    cached: Fleet
    plain: Fleet
    connection: psycopg.Connection[Any]
    redis: redis.Redis

    def rows(self, sql: str) -> list[Any]:
        """The bare statement."""
        return self.connection.execute(sql.encode()).fetchall()

    def miss(self) -> None:
        """A count that has to look, then count, then store; the DEL costs both sides the same."""
        self.redis.delete(COUNT_KEY)
        self.cached.count()

    def bare_miss(self) -> None:
        """The same without any care: GET, COUNT, SETEX."""
        self.redis.delete(COUNT_KEY)
        if self.redis.get(COUNT_KEY) is None:
            self.redis.setex(COUNT_KEY, 60, self.rows(_COUNT)[0][0])


_Work = Callable[[_Subject], object]


@dataclass(frozen=True, slots=True)
class _Read:
    what: str
    product: _Work
    against: str
    floor: _Work


_READS = {
    "count": (
        _Read("count, no cache", lambda on: on.plain.count(), "SELECT", lambda on: on.rows(_COUNT)),
        _Read("count, a miss", _Subject.miss, "GET, SELECT, SETEX", _Subject.bare_miss),
    ),
    "list": (
        _Read(
            "list --limit 50",
            lambda on: on.plain.list_models(limit=50),
            "SELECT",
            lambda on: on.rows(_LIST),
        ),
    ),
    "stats": (_Read("stats", lambda on: on.plain.stats(), "SELECT", lambda on: on.rows(_STATS)),),
    "leaderboard": (
        _Read(
            "leaderboard",
            lambda on: on.plain.leaderboard(),
            "SELECT",
            lambda on: on.rows(_LEADERBOARD),
        ),
    ),
    "dry-run": (
        _Read(
            "recover --dry-run",
            lambda on: on.plain.recover(dry_run=True),
            "SELECT",
            lambda on: on.rows(_WAITING),
        ),
    ),
}
PARTS = tuple(_READS)


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these reads at every size."""
    asked = list(parts)
    rows: dict[str, list[Row]] = {}
    extra = bench.scale.count_sizes if "count" in asked else ()
    for size in sorted(bench.scale.read_sizes + extra):
        with ExitStack() as stack:
            database = bench.fleet(size, _OFF_PERCENT)
            subject = _Subject(
                stack.enter_context(Fleet(bench.config(database))),
                stack.enter_context(Fleet(bench.config(database, redis_url=""))),
                stack.enter_context(bench.connect(database)),
                stack.enter_context(bench.redis_client()),
            )
            now = ["count"] if size in extra else asked
            bench.say(f"{', '.join(now)} at {size:,}")
            for part in now:
                for read in _READS[part]:
                    row = _measured(bench, f"growth.{part}", read, size, subject)
                    rows.setdefault(read.what, []).append(row)
    for of_one in rows.values():
        _note_growth(of_one)
        bench.report.add(*of_one)


def _measured(bench: Bench, group: str, read: _Read, size: int, on: _Subject) -> Row:
    def product() -> object:
        return read.product(on)

    def floor() -> object:
        return read.floor(on)

    times = enough(floor)
    figures = interleave(
        {"product": lambda: seconds(product, times), "floor": lambda: seconds(floor, times)},
        bench.scale.block_rounds,
        patience=bench.scale.patience,
    )
    row = Row(group, f"{read.what}, {size:,}", figures["product"], read.against, figures["floor"])
    row.target = _TARGET
    if read.what == "count, a miss":
        row.curve, row.size = "count", size
    extra = Spread.of(a - b for a, b in zip(row.product, row.floor, strict=True)).median
    row.note = f"{extra * 1e3:+.2f} ms"
    return row


def _note_growth(rows: list[Row]) -> None:
    """Say at the largest size how cost grew from the smallest, for both."""
    if len(rows) > 1:
        ours, theirs = (
            Spread.of(last).median / Spread.of(first).median
            for last, first in (
                (rows[-1].product, rows[0].product),
                (rows[-1].floor, rows[0].floor),
            )
        )
        rows[-1].note += f"; grew {ours:.1f}-fold, the floor {theirs:.1f}-fold"
