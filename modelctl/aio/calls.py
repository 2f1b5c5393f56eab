"""AsyncCalls: opens and closes an `AsyncFleet`; and how its methods are made of those of `Fleet`.

The methods are wrapped, one line for each, so that parameters, docstrings and types are those of
`Fleet`, for a type checker too.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary

from modelctl import forks
from modelctl.aio.threads import Threads, in_thread_of_its_own, running_loop
from modelctl.count.results import Count
from modelctl.fleet.fleet import Fleet
from modelctl.history.follow import SECONDS_BETWEEN_LOOKS, Following
from modelctl.opened import telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
    from pathlib import Path

    from modelctl.aio.look import RedisLook
    from modelctl.calls.call import Call
    from modelctl.config.config import Config
    from modelctl.count.cache import Hit
    from modelctl.memory.memory import Memory
    from modelctl.models.results import Event

_P = ParamSpec("_P")
_T = TypeVar("_T")
_NEEDED = (
    "modelctl.count.outbox",
    "modelctl.models.reads",
    "modelctl.opened.storage",
    "modelctl.outcomes.record",
)
_NEEDED_ON_POSTGRES = (
    "modelctl.postgres_client.connections",
    "sqlalchemy.dialects.postgresql.psycopg",
)
# More of them make more changes at the same time, but all of them compete with the event loop.
MOST_THREADS = 3
_PAGE = 200  # items of an iterator that a thread reads at once


class AsyncCalls:
    """The fleet that does the work, its threads, and a connection to Redis for each event loop."""

    def __init__(
        self, config: Config, *, actor: str | None = None, pool_size: int | None = None
    ) -> None:
        """*pool_size*: how many calls are at work at a time; None: 3, or ``database.pool_size`` if less."""
        size = pool_size or min(MOST_THREADS, config.database.pool_size)
        # Each of our threads uses one connection at a time, and a recorder one. A `Fleet` keeps one
        # more for readers; here readers wait for a thread, so that one is never opened.
        self._fleet = Fleet(config, actor=actor, pool_size=size + 2)
        self._cache: Any = self._fleet._cached_count.cache
        self._threads = Threads(size, config.database.timeout)
        self._load()
        self._begin()
        forks.watch(self, AsyncCalls._begin)

    def _load(self) -> None:
        """Import now what most calls need: an import in a thread would hold up the event loop."""
        for name in _NEEDED if self.config.sqlite_path else (*_NEEDED, *_NEEDED_ON_POSTGRES):
            importlib.import_module(name)
        self._looks_itself = False
        if self._cache.needs_delivery:
            from modelctl.aio.look import can_look

            self._looks_itself = can_look(self.config.redis.url)

    def _begin(self) -> None:
        """Start without connections; the child of a fork starts again."""
        self._looks: WeakKeyDictionary[asyncio.AbstractEventLoop, RedisLook] = WeakKeyDictionary()

    @classmethod
    def open(cls, config: Config | str | Path | None = None, *, actor: str | None = None) -> Self:
        """Return a fleet, configured as by `Fleet.open`; nothing is connected yet."""
        return cls(Fleet.open(config).config, actor=actor)

    @property
    def config(self) -> Config:
        """The configuration."""
        return self._fleet.config

    @property
    def on_warning(self) -> Callable[[str], None]:
        """Receives the text of a warning that fails no call; called in a thread."""
        return self._fleet.on_warning

    @on_warning.setter
    def on_warning(self, receive: Callable[[str], None]) -> None:
        self._fleet.on_warning = receive

    @property
    def unrecorded_calls(self) -> int:
        """How many outcomes of calls this process could not record with `call`."""
        return self._fleet.unrecorded_calls

    async def __aenter__(self) -> Self:
        self._threads.reopen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for the calls that are at work, close all connections, end all threads.

        A later call is a `UsageError`, but ``async with`` opens the fleet again.
        """
        loop = running_loop()
        await in_thread_of_its_own(self._end)
        looks = list(self._looks.items())
        self._looks.clear()
        for other, look in looks:
            if other is loop:
                await look.aclose()
            else:
                _close(look, other)

    def _end(self) -> None:
        self._threads.end()
        self._fleet.close()

    async def _count_and_remember(self) -> Count:
        memory: Memory | None = self._fleet._memory
        if memory is None:
            memory = await self._threads.run(self._fleet._open_memory)
        begun = memory.begin()
        count = await self._count()
        memory.keep(begun, count)
        return count

    async def _count(self) -> Count:
        """Return the cached count; a thread is needed only if the cache has none."""
        began = time_ns()
        hit = await self._peek()
        if hit is None:
            return await self._threads.run(lambda: self._fleet.count())
        count = Count(hit.active, "cache", hit.age, hit.expires_in)
        telemetry.counted(count, began)
        return count

    async def _peek(self) -> Hit | None:
        """Return the cached count if Redis has it and can be asked without a thread."""
        if not self._looks_itself or self._threads.closed:
            return None
        loop = running_loop()
        look = self._looks.get(loop)
        if look is None:
            from modelctl.aio.look import RedisLook

            for other, old in list(self._looks.items()):
                if other.is_closed():
                    old.close()
                    self._looks.pop(other, None)
            look = self._looks.setdefault(loop, RedisLook(self._cache))
        return await look.peek()


def _close(look: RedisLook, loop: asyncio.AbstractEventLoop) -> None:
    """Close the connection of a loop that has ended, or that runs in another thread."""
    if loop.is_closed():
        look.close()
    else:
        with suppress(RuntimeError):  # it has ended in between
            loop.call_soon_threadsafe(look.close)


# ── A method of `Fleet` as one of `AsyncFleet` ──


def in_thread(
    method: Callable[Concatenate[Fleet, _P], _T],
) -> Callable[Concatenate[AsyncCalls, _P], Coroutine[Any, Any, _T]]:
    """Make a coroutine function that calls *method* in a thread."""

    @functools.wraps(method)
    async def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._threads.run(lambda: method(self._fleet, *args, **kwargs))

    return call


def unchanged(
    method: Callable[Concatenate[Fleet, _P], _T],
) -> Callable[Concatenate[AsyncCalls, _P], _T]:
    """Make a function that calls *method* at once, because it waits for nothing."""

    @functools.wraps(method)
    def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return method(self._fleet, *args, **kwargs)

    return call


def called(
    method: Callable[Concatenate[Fleet, _P], Call],
) -> Callable[Concatenate[AsyncCalls, _P], Call]:
    """Make the function of `call`: ``async with`` records in a thread of the fleet."""

    @functools.wraps(method)
    def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> Call:
        return method(self._fleet, *args, **kwargs).recorded_in(self._threads.run)

    return call


def counted(
    method: Callable[Concatenate[Fleet, _P], Count],
) -> Callable[Concatenate[AsyncCalls, _P], Coroutine[Any, Any, Count]]:
    """Make the coroutine function of `count`: a hit in Redis, or in the memory, needs no thread."""
    count = in_thread(method)

    @functools.wraps(method)
    async def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> Count:
        max_age: Any = kwargs.get("max_age")
        in_database = bool(kwargs.get("fresh") or kwargs.get("strong"))
        if args or kwargs.keys() - {"fresh", "strong", "max_age"}:
            return await count(self, *args, **kwargs)  # an error
        if max_age is not None:
            known = self._fleet._recall(max_age, refused=in_database)
            return known or await self._count_and_remember()
        return await (count(self, *args, **kwargs) if in_database else self._count())

    return call


def iterated(
    method: Callable[Concatenate[Fleet, _P], Iterator[_T]],
) -> Callable[Concatenate[AsyncCalls, _P], AsyncGenerator[_T, None]]:
    """Make an asynchronous generator function of *method*; a thread reads many items at once."""

    @functools.wraps(method)
    async def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> Any:
        items = await self._threads.run(lambda: method(self._fleet, *args, **kwargs))
        try:
            while page := await self._threads.run(
                lambda: list(itertools.islice(items, _PAGE)), budget=False
            ):
                for item in page:
                    yield item
        finally:
            _finish(items)

    return call


def followed(
    method: Callable[Concatenate[Fleet, _P], Following],
) -> Callable[Concatenate[AsyncCalls, _P], AsyncGenerator[list[Event], None]]:
    """Make the asynchronous generator function of `follow_events`; no thread waits for events."""

    @functools.wraps(method)
    async def call(self: AsyncCalls, /, *args: _P.args, **kwargs: _P.kwargs) -> Any:
        following = await self._threads.run(lambda: method(self._fleet, *args, **kwargs))
        looks = following.looks
        try:
            while True:
                if found := await self._threads.run(lambda: next(looks), budget=False):
                    yield found
                else:
                    await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            _finish(looks)

    return call


def _finish(items: Any) -> None:
    """Free what a generator holds, unless a thread is at work in it; then that thread does."""
    with suppress(AttributeError, ValueError):
        items.close()
