"""The connections of the count's cache to Redis: time limits, and what an error means.

`RedisCache` and `Sweep` hold conversations through it; it knows nothing of the count.
"""

from __future__ import annotations

import random
import re
import threading
import time
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from modelctl import forks
from modelctl.errors import InvalidConfigError, ModelctlError, StaleCacheError
from modelctl.redis_client import waiting
from modelctl.redis_client.first_look import ReplyError, first_look
from modelctl.redis_client.url import timeout_of
from modelctl.redis_client.waiting import Wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import ConnectionPool

    from modelctl.config.config import Config
    from modelctl.redis_client.answers import Command
    from modelctl.redis_client.servers import Server, Talk

# After Redis was silent, reads do without it for this long: a random time between the two (seconds).
SKIP_SECONDS = (1.0, 2.0)
# How Redis says that it does not let this user in.
_REFUSALS = re.compile(
    "NOAUTH|WRONGPASS|NOPERM|ERR .*(invalid password|AUTH|DB index is out of range)"
)


class _LimitOfThread(threading.local):
    """How long this thread may wait for Redis in all; None: no block set a limit."""

    wait: Wait | None = None


class RedisLink:
    """Connections to the servers that ``redis.url`` names, at most ``redis.pool_size`` in use.

    Every method that asks Redis raises `StaleCacheError` when it cannot be reached, and
    `InvalidConfigError` when it refuses this user. A process may fork at any time: the child opens
    connections of its own.
    """

    def __init__(self, config: Config) -> None:
        """Nothing is connected yet."""
        self._config = config
        self.timeout = timeout_of(config.redis)
        self._limit = _LimitOfThread()
        self._first = True  # nothing was asked yet
        self.silent = False  # Redis did not answer the last time
        self._try_at = 0.0  # until then reads do without Redis (monotonic seconds)
        self._begin()
        forks.watch(self, RedisLink._begin)

    def _begin(self) -> None:
        """Start with no connection and with locks that nobody holds; also in the child of a fork."""
        self._servers: Server | None = None
        # One item for each connection that may still be opened. A signal handler may ask Redis while
        # the same thread is in here: a SimpleQueue and reentrant locks allow that.
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._config.redis.pool_size):
            self._places.put(None)
        self._opening = threading.RLock()
        self._trying = threading.RLock()

    # ── Time limits ──

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """In this block, wait for Redis no longer than *seconds*, all conversations together."""
        outer = self._limit.wait
        self._limit.wait = Wait(seconds, outer)
        try:
            yield
        finally:
            self._limit.wait = outer

    def _wait(self) -> Wait:
        """The time limit of a conversation that begins now."""
        return Wait(self.timeout, self._limit.wait)

    def refuse_while_silent(self) -> None:
        """Raise `StaleCacheError` for a second or two after Redis was silent.

        When that time is over, one caller passes and tries again; the others are refused for another
        second or two.
        """
        if not self.silent:
            return
        with self._trying:
            now = time.monotonic()
            if now < self._try_at:
                raise StaleCacheError(
                    "Redis did not answer just now", hint="it is asked again in a moment"
                )
            self._skip_reads_from(now)

    def skip_reads(self) -> None:
        """Let reads do without Redis for a second or two: it was silent."""
        self.silent = True
        self._skip_reads_from(time.monotonic())

    def _skip_reads_from(self, now: float) -> None:
        self._try_at = now + random.uniform(*SKIP_SECONDS)  # noqa: S311 - jitter

    # ── Conversations ──

    @contextmanager
    def talk(self, pool: ConnectionPool | None = None, *, once: bool = False) -> Iterator[Talk]:
        """Give a conversation on one connection of *pool*, by default of the server of our keys.

        *once*: close the connection afterwards instead of keeping it for the next conversation.
        """
        with self._known_servers() as servers:
            from modelctl.redis_client.servers import Talk

            if pool is None:
                with self._wait():
                    pool = servers.pool_of(self._config.cache.count_key)
            wait, places, connection = self._wait(), self._places, None
            try:
                with wait:
                    places.get(timeout=waiting.left())
            except Empty:
                text = "all connections to Redis are in use; see redis.pool_size"
                raise ConnectionError(text) from None
            try:
                with wait:
                    connection = pool.get_connection()
                yield Talk(connection, wait)
            except BaseException as exc:
                once = True  # there may be an answer that was not read
                if connection is not None:
                    exc.add_note(str(connection))
                raise
            finally:
                if connection is not None:
                    if once:
                        connection.disconnect()  # type: ignore[no-untyped-call]
                    pool.release(connection)
                if self._servers is not servers:  # this link was closed meanwhile
                    servers.close()
                places.put(None)
            self.silent = False

    @contextmanager
    def _known_servers(self) -> Iterator[Server]:
        """Give the `Server` of redis.url, opened on first use; translate errors of the block into ours."""
        from modelctl.redis_client.servers import open_servers, trouble

        self._first = False
        servers = self._servers
        try:
            if servers is None:
                with self._wait(), waiting.acquired(self._opening):
                    # Both at once: another thread may close this link in between.
                    servers = self._servers = self._servers or open_servers(self._config.redis)
            yield servers
        except ModelctlError:
            raise
        except Exception as exc:
            if servers is not None and servers.failed() and self._servers is servers:
                self.close()
            raise self._error(*trouble(exc)) from exc

    def first_look(self, commands: Sequence[Command]) -> tuple[list[Any], str] | None:
        """Ask the very first question of this process without redis-py.

        Return the answers and the identity of the server; None: ask through `talk`, because something was
        asked before, or the address or the answer is an unusual one.
        """
        first, self._first = self._first, False
        if not first:
            return None
        try:
            with self._wait():
                return first_look(self._config.redis.url, commands)
        except (OSError, ReplyError, ValueError) as exc:
            where = "".join(f"{note}: " for note in getattr(exc, "__notes__", ()))
            text = getattr(exc, "strerror", None) or str(exc)
            refusal = isinstance(exc, ReplyError) and bool(_REFUSALS.match(str(exc)))
            raise self._error(where, text, isinstance(exc, TimeoutError), refusal) from exc

    def pool_of(self, key: str) -> ConnectionPool:
        """Return the connections to the server that has *key*."""
        with self._known_servers() as servers, self._wait():
            return servers.pool_of(key)

    def pools(self) -> list[ConnectionPool]:
        """Return the connections to each server that has keys: every primary of a cluster."""
        with self._known_servers() as servers, self._wait():
            return servers.pools()

    def close(self) -> None:
        """Close the connections, those in use when they are given back; the next call opens new ones."""
        servers, self._servers = self._servers, None
        if servers is not None:
            servers.close()

    def _error(self, where: str, text: str, silence: bool, refusal: bool) -> ModelctlError:
        if silence:
            self.skip_reads()
            text = f"no answer within {self.timeout:g} s"
        text = " ".join(self._config.hide(where + text).split())
        if refusal:
            return InvalidConfigError(
                f"Redis refuses this user ({text})", hint="check redis.url and the user's ACL"
            )
        return StaleCacheError(f"Redis cannot be used ({text})", hint="check redis.url")
