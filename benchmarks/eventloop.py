"""Inside of an event loop: a cached count, and how late the loop is at 200 concurrent requests."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from itertools import count as numbers
from time import perf_counter

from benchmarks.harness import Row, at_least, at_most, interleave
from benchmarks.servers import COUNT_KEY, Bench, model_id
from modelctl import AsyncFleet, Fleet

PARTS = ("hit", "lateness")
_CALLS = 100
_CLIENTS = 200  # concurrent requests
_TICK = 0.001  # seconds
_ROUND = 0.6  # seconds of load
_ELSEWHERE = 0.05  # seconds in which a request does something else: it calls its model

Work = Callable[[], Awaitable[object]]


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these parts."""
    for part in parts:
        {"hit": _hit, "lateness": _lateness}[part](bench)


def _taking_turns(
    contenders: dict[str, Work],
    figure: Callable[[Work], Awaitable[float]],
    runner: asyncio.Runner,
    rounds: int,
) -> dict[str, list[float]]:
    async def one(work: Work) -> float:
        return await figure(work)

    return interleave(
        {name: lambda w=work: runner.run(one(w)) for name, work in contenders.items()},  # type: ignore[misc]
        rounds,
    )


# ── A hit ───────────────────────────────────────────────────────────────────────────────────────


def _hit(bench: Bench) -> None:
    from redis.asyncio import Redis

    config = bench.config(bench.fleet(bench.scale.sizes[0], 1))
    bench.say("hits in an event loop")
    vouch = f"{{{COUNT_KEY}}}:vouch"

    async def opened() -> tuple[AsyncExitStack, AsyncFleet, Redis]:
        stack = AsyncExitStack()
        fleet = await stack.enter_async_context(AsyncFleet.open(config))
        client = await stack.enter_async_context(Redis.from_url(bench.redis.url(), protocol=2))
        await fleet.count()
        if (await fleet.count()).source != "cache":
            raise RuntimeError("the count is not cached")
        return stack, fleet, client

    async def rate(work: Work) -> float:
        start = perf_counter()
        for _ in range(_CALLS):
            await work()
        return _CALLS / (perf_counter() - start)

    with Fleet.open(config) as usual, asyncio.Runner() as runner:
        stack, fleet, client = runner.run(opened())

        async def bare() -> int:
            pipe = client.pipeline(transaction=False)
            pipe.mget(COUNT_KEY, vouch)
            pipe.pttl(COUNT_KEY)
            (value, _), _ = await pipe.execute()
            return int(value)

        works: dict[str, Work] = {
            "modelctl": fleet.count,
            "redis.asyncio": bare,
            "a thread": lambda: asyncio.to_thread(usual.count),
        }
        rates = _taking_turns(works, rate, runner, 2 * bench.scale.block_rounds)
        runner.run(stack.aclose())
    for name, words in (
        ("redis.asyncio", "redis.asyncio, the same two commands"),
        ("a thread", "Fleet.count() in asyncio.to_thread"),
    ):
        bench.report.add(
            Row(
                "eventloop.hit",
                "AsyncFleet.count(), a hit in Redis",
                rates["modelctl"],
                words,
                rates[name],
                at_least(1.0),
                "per second",
            )
        )


# ── How late the loop is ────────────────────────────────────────────────────────────────────────


def _lateness(bench: Bench) -> None:
    config = bench.config(bench.fleet(bench.scale.sizes[0], 1))
    bench.say(f"{_CLIENTS} concurrent requests in an event loop")
    number = numbers()

    def an_id() -> str:
        return model_id(next(number) % bench.scale.sizes[0])

    with Fleet.open(config) as usual, asyncio.Runner() as runner:
        fleet = AsyncFleet.open(config)
        runner.run(fleet.count())

        async def in_the_loop() -> None:
            usual.record_success(an_id())

        async def count_and_record() -> None:
            await fleet.count()
            await fleet.record_success(an_id())

        works: dict[str, Work] = {
            "nothing": lambda: asyncio.sleep(0),
            "count": fleet.count,
            "record": lambda: fleet.record_success(an_id()),
            "both": count_and_record,
            "in the loop": in_the_loop,
            "to_thread": lambda: asyncio.to_thread(usual.record_success, an_id()),
        }
        late = _taking_turns(works, _late, runner, bench.scale.block_rounds // 2)
        runner.run(fleet.aclose())
    for name, words in (
        ("count", "count()"),
        ("record", "record_success()"),
        ("both", "count() and record_success()"),
    ):
        bench.report.add(
            Row(
                "eventloop.lateness",
                f"{_CLIENTS} x {words}: 99th percentile",
                late[name],
                target=at_most(0.005),
            )
        )
    for name, words in (
        ("nothing", f"{_CLIENTS} requests that only sleep"),
        ("in the loop", "Fleet.record_success() in the loop"),
        ("to_thread", "Fleet.record_success() in asyncio.to_thread"),
    ):
        bench.report.add(
            Row(
                "eventloop.lateness",
                f"{_CLIENTS} x record_success(): 99th percentile",
                late["record"],
                words,
                late[name],
            )
        )


async def _late(work: Work) -> float:
    """Return the 99th percentile of how late a timer is while all clients make requests."""
    gc.collect()  # that of the rounds before is not the fault of this one
    loop = asyncio.get_running_loop()
    late: list[float] = []
    end = loop.time() + _ROUND

    async def client() -> None:
        await asyncio.sleep(random.uniform(0, _ELSEWHERE))
        while loop.time() < end:
            await work()
            await asyncio.sleep(_ELSEWHERE)

    async def tick() -> None:
        while True:
            due = loop.time() + _TICK
            await asyncio.sleep(_TICK)
            late.append(loop.time() - due)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    await asyncio.sleep(2 * _TICK)
    ticker.cancel()
    with suppress(asyncio.CancelledError):
        await ticker
    late.sort()
    return late[int(len(late) * 0.99)]
