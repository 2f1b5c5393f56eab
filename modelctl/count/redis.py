"""The count in Redis: the steps of the protocol that touch Redis.

Why each step stands where it does: docs/decisions.md, "How is the cached count kept true?". The
names of the steps there are the names of the methods here.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from modelctl import crash_points, forks
from modelctl.config.load import mask_url
from modelctl.count.cache import LEASE_SECONDS, Hit
from modelctl.count.first_look import ReplyError, first_look
from modelctl.errors import InvalidConfigError, ModelctlError, StaleCacheError
from modelctl.model import CacheState
from modelctl.redis_client import answers, waiting
from modelctl.redis_client.answers import Command
from modelctl.redis_client.url import identity_of, timeout_of
from modelctl.redis_client.waiting import Wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from redis import ConnectionPool

    from modelctl.config.load import Config
    from modelctl.redis_client.servers import Server, Talk
    from modelctl.reports import CacheKey

# A sweep to the end takes at most so long: a broken server could go on for ever.
SWEEP_SECONDS = 300.0
# All that one count may wait for Redis, as a multiple of redis.timeout.
COUNT_TIMEOUTS = 1.5
SKIP_SECONDS = (1.0, 2.0)
_COUNT = re.compile(rb"[0-9]{1,18}")
_PATTERN = re.compile(r"[*?[\\]")
# How Redis says that it does not let us in.
_REFUSALS = re.compile(
    "NOAUTH|WRONGPASS|NOPERM|ERR .*(invalid password|AUTH|DB index is out of range)"
)
_SCAN_COUNT = 1000
_FINISH = "finish it: modelctl cache drain"


class RedisCache:
    """The count in Redis, shared with programs that GET, SETEX and DEL it as they like."""

    name = "redis"
    needs_delivery = True
    state_when_untouched = CacheState.UNCHANGED
    state_when_changed = CacheState.INVALIDATED
    polls = 3

    def __init__(self, config: Config) -> None:
        self._config = config
        self.place = mask_url(config.redis.url)
        self._is_cluster = "+cluster://" in config.redis.url
        self.server = ""
        self._ttl_ms = round(config.cache.ttl * 1000)
        self._key = config.cache.count_key
        # The braces put all three into one slot of a cluster.
        self._lease = f"{{{self._key}}}:lease"
        self._vouch = f"{{{self._key}}}:vouch"
        self._look = (
            Command(("MGET", self._key, self._vouch), answers.is_pair),
            Command(("PTTL", self._vouch), answers.is_number),
        )
        self._timeout = timeout_of(config.redis)
        self._outer = _Outer()
        self._first = True  # nothing was asked yet
        self._silent = False  # Redis did not answer the last time
        self._try_at = 0.0  # until then reads do without it
        self._begin()
        forks.watch(self, RedisCache._begin)

    def _begin(self) -> None:
        """Begin with no connection, and with locks that nobody holds; in the child of a fork again."""
        self._made: Server | None = None
        # As many as may be in use. A signal's handler may ask Redis in the middle: this queue and
        # the locks allow it.
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._config.redis.pool_size):
            self._places.put(None)
        self._opening = threading.RLock()
        self._trying = threading.RLock()
        self._sweeping = threading.RLock()
        self._sweep_seconds = 0.0  # what the last one took
        self._sweeps_begun = 0
        self._swept = 0  # the number of the last one that came to its end

    @property
    def identity(self) -> str:
        """The address of Redis and the key of the count."""
        return f"{identity_of(self._config.redis.url)} {self._key}"

    # ── Conversations and errors ──

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Wait for Redis no longer than that in this block, all conversations together."""
        outer = self._outer.wait
        self._outer.wait = Wait(seconds, outer)
        try:
            yield
        finally:
            self._outer.wait = outer

    def reading(self) -> AbstractContextManager[None]:
        """One count: all that it asks of Redis."""
        return self.patience(COUNT_TIMEOUTS * self._timeout)

    def _wait(self) -> Wait:
        """How long a conversation that begins now may wait."""
        return Wait(self._timeout, self._outer.wait)

    @contextmanager
    def _client(self) -> Iterator[Server]:
        """Give what knows the servers; whatever goes wrong in this block is an error of Redis."""
        from modelctl.redis_client.servers import open_servers, trouble

        self._first = False
        client = self._made
        try:
            if client is None:
                with self._wait(), waiting.acquired(self._opening):
                    client = self._made = self._made or open_servers(self._config.redis)
            yield client
        except ModelctlError:
            raise
        except Exception as exc:
            if client is not None and client.failed() and self._made is client:
                self.close()
            raise self._error(*trouble(exc)) from exc

    @contextmanager
    def _talk(self, pool: ConnectionPool | None = None, *, once: bool = False) -> Iterator[Talk]:
        """Give a conversation, with the server of our keys unless told otherwise.

        *once*: its connection is not used again.
        """
        with self._client() as client:
            from modelctl.redis_client.servers import Talk

            if pool is None:
                with self._wait():
                    pool = client.pool_of(self._key)
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
                if self._made is not client:  # closed meanwhile
                    client.close()
                places.put(None)
            self._silent = False

    def _skip(self) -> None:
        """After a silence reads do without Redis for a second or two; then one of them tries."""
        if not self._silent:
            return
        with self._trying:
            now = time.monotonic()
            if now < self._try_at:
                hint = "it is asked again in a moment"
                raise StaleCacheError("Redis did not answer just now", hint=hint)
            self._try_at = now + random.uniform(*SKIP_SECONDS)  # noqa: S311 - jitter

    def _error(self, where: str, text: str, silence: bool, refusal: bool) -> ModelctlError:
        if silence:
            self._silent = True
            self._try_at = time.monotonic() + random.uniform(*SKIP_SECONDS)  # noqa: S311 - jitter
            text = f"no answer within {self._timeout:g} s"
        text = " ".join(self._config.hide(where + text).split())
        if refusal:
            return InvalidConfigError(
                f"Redis refuses this user ({text})", hint="check redis.url and the user's ACL"
            )
        return StaleCacheError(f"Redis cannot be used ({text})", hint="check redis.url")

    def close(self) -> None:
        """Close the connections, those in use when they are given back; the next call opens new ones."""
        client, self._made = self._made, None
        if client is not None:
            client.close()

    # ── The protocol ──

    def peek(self) -> Hit | None:
        """Return the count if it will expire in time and this very server vouches for it."""
        self._skip()
        found = self._first_look()
        if found is None:
            with self._talk() as talk:
                found = talk.ask(*self._look), talk.home
                (_, vouch), _ = found[0]
                if vouch and not vouch.endswith(found[1].encode()):
                    # Vouched for on a server of another name: is it this one, promoted since?
                    found = found[0], talk.home_now()
        ((value, vouch), left), home = found
        if value is None or not _COUNT.fullmatch(value) or not 0 < left <= self._ttl_ms:
            return None
        if vouch != _vouch(value.decode(), home).encode():
            return None
        return Hit(int(value), (self._ttl_ms - left) / 1000, left / 1000)

    def _first_look(self) -> tuple[list[Any], str] | None:
        """Ask for the count as most commands do, which ask nothing else; None: ask as usual."""
        first, self._first = self._first, False
        if not first:
            return None
        try:
            with self._wait():
                return first_look(self._config.redis.url, self._look)
        except (OSError, ReplyError, ValueError) as exc:
            where = "".join(f"{note}: " for note in getattr(exc, "__notes__", ()))
            text = getattr(exc, "strerror", None) or str(exc)
            refusal = isinstance(exc, ReplyError) and bool(_REFUSALS.match(str(exc)))
            raise self._error(where, text, isinstance(exc, TimeoutError), refusal) from exc

    def lease(self) -> str | None:
        """Take the lease with a random nonce; a counter would start again after a wipe.

        It names the server too: a fill on another one, after a failover, finds it wrong.
        """
        px = str(round(LEASE_SECONDS * 1000))
        self._skip()
        with self._talk() as talk:
            token = f"{os.urandom(16).hex()} {talk.home_now()}"
            [got] = talk.ask(
                Command(("SET", self._lease, token, "NX", "PX", px), answers.is_ok_or_none)
            )
        return token if got else None

    def fill(self, token: str, active: int) -> None:
        """Store the number if the lease is still ours, on its server; a lost race is no fault."""
        ttl = str(self._ttl_ms)
        with self._talk() as talk:
            vouch = _vouch(str(active), talk.home_now())
            self._with_lease(
                talk,
                token,
                Command(("SET", self._vouch, vouch, "PX", ttl), answers.is_queued),
                Command(("SET", self._key, str(active), "PX", ttl), answers.is_queued),
            )

    def release(self, token: str) -> None:
        """Delete the lease if it is still ours."""
        with self._talk() as talk:
            self._with_lease(talk, token)

    def _with_lease(self, talk: Talk, token: str, *also: Command) -> None:
        """In one transaction, if the lease is still ours on this server: do *also*, and delete it."""
        if token.partition(" ")[2] != talk.home:
            return
        _, lease = talk.ask(
            Command(("WATCH", self._lease), answers.is_ok),
            Command(("GET", self._lease), answers.is_text_or_none),
        )
        if lease != token.encode():
            talk.ask(Command(("UNWATCH",), answers.is_ok))
            return
        crash_points.reach("in-fill")
        talk.ask(
            Command(("MULTI",), answers.is_ok),
            *also,
            Command(("DEL", self._lease), answers.is_queued),
            # None: somebody took the lease meanwhile.
            Command(("EXEC",), answers.is_transaction),
        )

    def forget(self) -> None:
        """Delete the count, what vouches for it and the lease: nothing stored before is believed."""
        with self._talk() as talk:
            # In one command, which passes even when Redis is out of memory.
            talk.ask(Command(("DEL", self._key, self._vouch, self._lease), answers.is_number))
            self.server = talk.home
        crash_points.reach("after-del")

    def invalidate(self, budget: float | None = None) -> None:
        """Forget the count, then sweep what else a change made wrong, within *budget* seconds.

        Raises:
            StaleCacheError: not everything is cleared; do not count it as delivered.
        """
        deadline = None if budget is None else time.monotonic() + budget
        begun = self._sweeps_begun
        self.forget()
        self._sweep(begun, deadline)

    def _sweep(self, begun: int, deadline: float | None) -> None:
        """Clear the other keys, unless a sweep did that began after the first *begun* ones.

        So threads that change models at the same time share one, unless there is no time to wait
        for the one that is under way and then, perhaps, for another.
        """
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if deadline is not None and 2 * self._sweep_seconds > left:
            self._clear_all(deadline)
            return
        if not self._sweeping.acquire(timeout=left):
            raise StaleCacheError("another sweep takes too long", hint=_FINISH)
        try:
            if self._swept > begun:
                return
            number = self._sweeps_begun = self._sweeps_begun + 1
            self._clear_all(deadline)
            self._swept = max(self._swept, number)  # another may have run in the middle of ours
        finally:
            self._sweeping.release()

    def _clear_all(self, deadline: float | None) -> None:
        began = time.monotonic()
        try:
            for pattern in self._config.cache.clear:
                self._clear(pattern, deadline)
        finally:
            self._sweep_seconds = time.monotonic() - began

    def _clear(self, pattern: str, deadline: float | None) -> None:
        """Delete a key, or on every primary all that match a pattern."""
        if not _PATTERN.search(pattern):
            with self._talk(self._pool_of(pattern)) as talk:
                talk.ask(Command(("DEL", pattern), answers.is_number))
            return
        until = time.monotonic() + SWEEP_SECONDS if deadline is None else deadline
        for pool in self._pools():
            cursor = b"0"
            while True:
                cursor = self._clear_page(pool, pattern, cursor)
                crash_points.reach("in-sweep")
                if cursor == b"0":
                    break
                if time.monotonic() > until:
                    raise StaleCacheError(f"the sweep of {pattern} takes too long", hint=_FINISH)

    def _clear_page(self, pool: ConnectionPool, pattern: str, cursor: bytes) -> bytes:
        """Delete the keys of one page of a SCAN; return where the next page begins."""
        scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", str(_SCAN_COUNT))
        with self._talk(pool) as talk:
            [(after, keys)] = talk.ask(Command(scan, answers.is_page))
            if after == cursor != b"0":
                raise answers.NonsenseError("a SCAN that does not move on")
            # In a cluster the keys of one page lie in several slots.
            each = [[key] for key in keys] if self._is_cluster else [keys] if keys else []
            if each:
                talk.ask(*(Command(("UNLINK", *some), answers.is_number) for some in each))
        return bytes(after)

    def _pool_of(self, key: str) -> ConnectionPool:
        with self._client() as client, self._wait():
            return client.pool_of(key)

    def _pools(self) -> list[ConnectionPool]:
        """Each server that has keys."""
        with self._client() as client, self._wait():
            return client.pools()

    def home(self) -> str:
        """Who the server is; empty: it does not tell, and a lossy failover goes unnoticed."""
        with self._talk() as talk:
            return talk.home

    def keys(self) -> tuple[CacheKey, ...]:
        """Return our three keys and the plain names that an invalidation clears."""
        from modelctl.reports import CacheKey

        patterns = self._config.cache.clear
        names = [self._key, self._lease, self._vouch]
        names += [name for name in patterns if not _PATTERN.search(name)]
        found = []
        for name in names:
            with self._talk(self._pool_of(name)) as talk:
                kind, left = talk.ask(
                    Command(("TYPE", name), answers.is_text),
                    Command(("PTTL", name), answers.is_number),
                )
                text = None
                if kind == b"string":
                    [value] = talk.ask(Command(("GET", name), answers.is_text_or_none))
                    text = value.decode("utf-8", "replace") if value is not None else None
                elif kind != b"none":
                    text = f"({kind.decode('utf-8', 'replace')})"
            found.append(CacheKey(name, text, left / 1000 if left >= 0 else None))
        return tuple(found)


class _Outer(threading.local):
    """What this thread may wait in all; None: nothing was said."""

    wait: Wait | None = None


def _vouch(number: str, home: str) -> str:
    return f"{number} {home}".rstrip()
