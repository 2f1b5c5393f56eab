"""Inside an application: a cached count on every page, and many readers at one expired key."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.children import child, hear, tell
from benchmarks.harness import MissingError, Row, at_least, at_most, interleave, optional
from benchmarks.servers import COUNT_KEY, Bench
from modelctl import Fleet
from modelctl.memory import memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

PARTS = ("hit", "remembered", "herd")
_CALLS = 100
_THREADS = 8
_PROCESSES = 4
_SLOW = 0.4  # seconds


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these parts."""
    for part in parts:
        {"hit": _hit, "remembered": _remembered, "herd": _herd}[part](bench)


# ── A hit ───────────────────────────────────────────────────────────────────────────────────────


def _hit(bench: Bench) -> None:
    database = bench.fleet(bench.scale.sizes[0], 1)
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet.open(bench.config(database)))
        client = stack.enter_context(bench.redis_client())
        vouch = f"{{{COUNT_KEY}}}:vouch"

        def bare() -> int:
            pipe = client.pipeline(transaction=False)
            pipe.mget(COUNT_KEY, vouch)
            pipe.pttl(COUNT_KEY)
            (value, _), _ = pipe.execute()
            return int(value)

        contenders = {
            "modelctl": _block(lambda: fleet.count().active),
            "redis-py": _block(bare),
        }
        peers = {
            "dogpile.cache": (_dogpile, 1.1, "dogpile.cache, get_or_create"),
            "cashews": (_cashews, 1.4, "cashews, early recompute (asyncio)"),
        }
        for name, (make, _, _) in peers.items():
            try:
                contenders[name] = stack.enter_context(make(bench))
            except MissingError as exc:
                bench.report.skip(f"inprocess.hit: {name}", exc)
        bench.say(f"hits: {', '.join(contenders)}")

        def refill() -> None:
            fleet.count()
            if fleet.count().source != "cache":
                raise RuntimeError("the count is not cached")

        rates = interleave(contenders, 2 * bench.scale.block_rounds, between=refill)
    against = {
        "redis-py": (0.90, "redis-py, the same two commands"),
        **{name: (limit, words) for name, (_, limit, words) in peers.items()},
    }
    for name, (limit, words) in against.items():
        if name in rates:
            bench.report.add(
                Row(
                    "inprocess.hit",
                    "Fleet.count(), a hit in Redis",
                    rates["modelctl"],
                    words,
                    rates[name],
                    at_least(limit),
                    "per second",
                )
            )


def _block(work: Callable[[], object], calls: int = _CALLS) -> Callable[[], float]:
    """Calls per second, over a block of calls."""

    def block() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return calls / (time.perf_counter() - start)

    return block


def _remembered(bench: Bench) -> None:
    """A count that the process remembers, beside a hit in Redis and a lookup in a dict."""
    database = bench.fleet(bench.scale.sizes[0], 1)
    numbers = {COUNT_KEY: 99}
    with Fleet.open(bench.config(database)) as fleet:
        calls = 100 * _CALLS
        remembered = _block(lambda: fleet.count(max_age=3600.0), calls)

        def anew() -> float:
            """An application asks less often than once a millisecond, so each answer is made anew."""
            shared, memory._SHARED_SECONDS = memory._SHARED_SECONDS, 0.0
            try:
                return remembered()
            finally:
                memory._SHARED_SECONDS = shared

        contenders = {
            "shared": remembered,
            "anew": anew,
            "hit": _block(lambda: fleet.count()),
            "dict": _block(lambda: numbers[COUNT_KEY], calls),
        }

        def refill() -> None:
            fleet.count()
            if fleet.count(max_age=3600.0).source == "database":
                raise RuntimeError("the count is not cached")

        bench.say("a remembered count, a hit, a dict")
        rates = interleave(contenders, 2 * bench.scale.block_rounds, between=refill)
    what = "Fleet.count(max_age=), remembered"
    for name, floor, words, target in (
        ("shared", "hit", "Fleet.count(), a hit in Redis", at_least(200)),
        ("shared", "dict", "a lookup in a dict", None),
        ("anew", "hit", "Fleet.count(), a hit in Redis", None),
    ):
        label = what if name == "shared" else f"{what}, more than 1 ms later"
        bench.report.add(
            Row(
                *("inprocess.remembered", label, rates[name], words, rates[floor]),
                target=target,
                unit="per second",
            )
        )


@contextmanager
def _dogpile(bench: Bench) -> Iterator[Callable[[], float]]:
    region = optional("dogpile.cache").make_region()
    region.configure(
        "dogpile.cache.redis", expiration_time=3600, arguments={"url": bench.redis.url(4)}
    )
    yield _block(lambda: region.get_or_create("count", lambda: 99))


@contextmanager
def _cashews(bench: Bench) -> Iterator[Callable[[], float]]:
    cache = optional("cashews").Cache()
    cache.setup(bench.redis.url(5))

    @cache.early(ttl="1h", early_ttl="50m", key="count")  # type: ignore[untyped-decorator]
    async def count() -> int:
        return 99

    async def calls() -> float:
        start = time.perf_counter()
        for _ in range(_CALLS):
            await count()
        return _CALLS / (time.perf_counter() - start)

    with closing(asyncio.new_event_loop()) as loop:
        yield lambda: loop.run_until_complete(calls())
        loop.run_until_complete(cache.close())


# ── A herd ──────────────────────────────────────────────────────────────────────────────────────


def _herd(bench: Bench) -> None:
    size = bench.scale.sizes[-1]
    database = bench.fleet(size, 1)
    url = bench.postgres.url(database)
    bench.say(f"{_THREADS} threads and {_PROCESSES} processes at one expired key")
    # The server's own log says how many counts reached it: whoever connects now is logged.
    bench.postgres.execute(f"ALTER DATABASE \"{database}\" SET log_statement = 'all'")
    rounds = bench.scale.block_rounds // 2
    try:
        with ExitStack() as stack:
            fleet = stack.enter_context(Fleet(bench.config(database), pool_size=_THREADS))
            fleet.count()
            threads = stack.enter_context(ThreadPoolExecutor(_THREADS))
            naive = [
                _naive(bench, stack.enter_context(bench.connect(database))) for _ in range(_THREADS)
            ]

            def at_once(works: list[Callable[[], object]]) -> None:
                barrier = threading.Barrier(len(works))

                def one(work: Callable[[], object]) -> None:
                    barrier.wait()
                    work()

                for done in [threads.submit(one, work) for work in works]:
                    done.result()

            def product() -> float:
                return _counts(bench, lambda: at_once([fleet.count] * _THREADS))

            def floor() -> float:
                return _counts(bench, lambda: at_once(list(naive)))

            figures = interleave({"modelctl": product, "naive": floor}, rounds)
            slow = [_while_slow(bench, database, product) for _ in range(3)]
        with ExitStack() as stack:
            herd = [
                stack.enter_context(child("herd", url, bench.redis.url()))
                for _ in range(_PROCESSES)
            ]

            def processes() -> None:
                for reader in herd:
                    tell(reader, "go")
                for reader in herd:
                    hear(reader)

            apart = [_counts(bench, processes) for _ in range(rounds)]
    finally:
        bench.postgres.execute(f'ALTER DATABASE "{database}" RESET log_statement')
    bench.report.add(
        Row(
            "inprocess.herd",
            f"COUNTs of {_THREADS} threads, {size:,} models",
            figures["modelctl"],
            "GET, COUNT, SETEX",
            figures["naive"],
            unit="number",
        ),
        Row(
            "inprocess.herd",
            f"most COUNTs of {_THREADS} threads at an expired key",
            [max(figures["modelctl"])],
            target=at_most(1),
            unit="number",
        ),
        Row(
            "inprocess.herd",
            f"most COUNTs of {_PROCESSES} processes at an expired key",
            [max(apart)],
            target=at_most(1),
            unit="number",
        ),
        Row(
            "inprocess.herd",
            f"most COUNTs of {_THREADS} threads when one takes {_SLOW:g} s",
            [max(slow)],
            unit="number",
        ),
    )


_COUNTED = re.compile(rb"(?:statement|execute [^:]*): .*count\(\*\)", re.IGNORECASE)


def _counts(bench: Bench, work: Callable[[], object]) -> float:
    """How many COUNTs reach the server while the count is not cached."""
    with bench.redis_client() as client:
        client.delete(COUNT_KEY)
    before = bench.postgres.log.stat().st_size
    work()
    with bench.postgres.log.open("rb") as log:
        log.seek(before)
        return len(_COUNTED.findall(log.read()))


def _naive(bench: Bench, connection: psycopg.Connection[Any]) -> Callable[[], int]:
    """What most programs do."""
    client = bench.redis_client()

    def count() -> int:
        cached = client.get(COUNT_KEY)
        if isinstance(cached, bytes):
            return int(cached)
        row = connection.execute("SELECT count(*) FROM models WHERE active").fetchone()
        active = int(row[0]) if row else 0
        client.setex(COUNT_KEY, 60, active)
        return active

    return count


def _while_slow(bench: Bench, database: str, work: Callable[[], float]) -> float:
    """Do it while the table is locked for a moment, so that a COUNT takes long."""
    with bench.connect(database) as connection:
        connection.execute("BEGIN; LOCK TABLE models IN ACCESS EXCLUSIVE MODE")
        timer = threading.Timer(_SLOW, connection.execute, ["COMMIT"])
        timer.start()
        try:
            return work()
        finally:
            timer.join()
