"""RedisLook: asks Redis for the count from an event loop, without a thread."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any

from modelctl.aio.threads import in_thread_of_its_own
from modelctl.redis_client.answers import checked
from modelctl.redis_client.first_look import LONGEST, read_answers, request
from modelctl.redis_client.servers import Talk, trouble
from modelctl.redis_client.url import target_of
from modelctl.redis_client.waiting import Wait

if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - a class

    from modelctl.count.cache import Hit
    from modelctl.count.redis import RedisCache

_RECEIVE = 65_536


def can_look(url: str) -> bool:
    """Whether redis.url names one server; where a Sentinel or a cluster names it, a thread asks."""
    return target_of(url).kind in ("", "unix")


class RedisLook:
    """What `RedisCache.peek` does, for one event loop, on one connection.

    Callers share a question, but never one that was sent before they came: its answer may be from
    before a change that they know of. So there is at most one question on its way, and one waits.
    """

    def __init__(self, cache: RedisCache) -> None:
        """Nothing is connected yet."""
        self._cache = cache
        self._request = b"".join(request(command.words) for command in cache.look)
        self._connection: Any = None
        # Those who wait for the next question; each has a future of its own, which may be cancelled.
        self._waiting: list[asyncio.Future[Hit | None]] = []
        self._task: asyncio.Task[None] | None = None

    async def peek(self) -> Hit | None:
        """Return the count if it may be believed. None: a thread has to find out more."""
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[Hit | None] = loop.create_future()
        self._waiting.append(mine)
        if self._task is None:
            # A task of its own: a caller who is cancelled leaves no answer unread.
            self._task = loop.create_task(self._answer_all(), context=Context())
        return await mine

    def close(self) -> None:
        """Close the connection; for a loop that has ended, or in that loop. Nobody is left waiting."""
        if self._task is not None and not self._task.done():
            with suppress(RuntimeError):  # the loop was closed before its tasks had ended
                self._task.cancel()
                return
        self._disconnect()

    async def aclose(self) -> None:
        """Close the connection, when the question that is on its way has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    async def _answer_all(self) -> None:
        """Ask for those who wait, until nobody waits."""
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                hit = None
                try:
                    hit = await self._peek()
                except Exception:
                    # The thread that asks next finds the same, and reports it.
                    self._disconnect()
                finally:
                    _answer(waiting, hit)
        except BaseException:  # the loop ends, or the fleet is closed
            self._disconnect()
            raise
        finally:
            self._task = None
            _answer(self._waiting, None)
            self._waiting = []

    async def _peek(self) -> Hit | None:
        link = self._cache.link
        link.refuse_while_silent()
        try:
            async with asyncio.timeout(link.timeout):
                look, server_id = await self._look()
        except Exception as exc:
            if trouble(exc).silence:
                link.skip_reads()
            raise
        link.silent = False
        if self._cache.names_another(look, server_id):
            self._disconnect()  # the next question asks the server for its identity, too
        return self._cache.believed(look, server_id)

    async def _look(self) -> tuple[list[Any], str]:
        """Ask; once more on a new connection if the server has closed the one that was kept."""
        if self._connection is not None:
            try:
                return await self._ask()
            except ConnectionError:
                self._disconnect()
        self._connection = await in_thread_of_its_own(self._connect)
        return await self._ask()

    def _connect(self) -> Any:
        """Return a connection with everything that threads have: login, TLS, time limits, identity."""
        link, wait = self._cache.link, Wait(self._cache.link.timeout)
        pool = link.pool_of(self._cache.count_key)
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            with wait:
                connection.connect()
            Talk(connection, wait).ask()
        except BaseException:
            connection.disconnect()
            raise
        connection.socket.setblocking(False)
        return connection

    async def _ask(self) -> tuple[list[Any], str]:
        """Send the commands; return the answers, which were checked, and the server's identity."""
        connection, commands = self._connection, self._cache.look
        socket = connection.socket
        if socket.send(self._request) < len(self._request):
            raise ConnectionError("the server reads nothing")
        data = b""
        while (answers := read_answers(data, len(commands))) is None:
            part = await _receive(socket)
            data += part
            if not part or len(data) > LONGEST:
                raise ConnectionError("the server closed the connection, or said too much")
        return checked(commands, answers), connection.server_id


def _answer(waiting: list[asyncio.Future[Hit | None]], hit: Hit | None) -> None:
    for future in waiting:
        # It may be cancelled, and its loop may have been closed.
        if not future.done() and not future.get_loop().is_closed():
            future.set_result(hit)


async def _receive(socket: Socket) -> bytes:
    """Wait until there is something to read, also over TLS; return it."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return socket.recv(_RECEIVE)
        except (BlockingIOError, ssl.SSLWantReadError):
            readable = loop.create_future()
        loop.add_reader(socket, _set, readable)
        try:
            await readable
        finally:
            if not loop.is_closed():
                loop.remove_reader(socket)


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
