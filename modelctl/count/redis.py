"""The count in Redis: the steps that touch Redis, and the connections they use.

Why each step stands where it does: docs/decisions.md, "How is the cached count kept true?". The
names of the steps there are the names of the methods here.
"""

# mypy: disable-error-code="no-untyped-call"
# (redis-py's cluster and sentinel parts have no types)

from __future__ import annotations

import functools
import os
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelctl import points
from modelctl.config import mask_url
from modelctl.count.cache import LEASE_SECONDS, Hit
from modelctl.errors import InvalidConfigError, ModelctlError, StaleCacheError
from modelctl.model import CacheState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelctl.config import Config
    from modelctl.reports import CacheKey

# A tombstone outlives every value that could have been written before it, by the settle time.
TOMB_EXTRA_SECONDS = 15.0
REDIS_TIMEOUT = 0.5
SENTINEL_SECONDS = 1.0
_COUNT = re.compile(rb"[0-9]{1,18}")
_PATTERN = re.compile(r"[*?[\\]")
# Where redis-py wraps a refusal in another error: in a transaction, through a Sentinel.
_REFUSALS = (
    "AuthenticationError",
    "AUTH <password> called",
    "NOPERM",
    "EXEC without MULTI",
    "DB index is out of range",
)
_SCAN_COUNT = 1000
_FINISH = "finish it: modelctl cache drain"
# What may follow the question mark of redis.url; anything else could change what we get back.
_PARAMETERS = ("db", "username", "password", "socket_timeout", "socket_connect_timeout")
_TLS_PARAMETERS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_min_version",
)
_SENTINEL_PARAMETERS = ("sentinel_username", "sentinel_password")


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
        self._ttl_ms = round(config.cache.ttl * 1000)
        self._key = config.cache.count_key
        # The braces put all three into one slot of a cluster.
        self._lease = f"{{{self._key}}}:lease"
        self._tomb = f"{{{self._key}}}:tomb"
        self._made: Any = None
        self._ask_sentinel_at = 0.0
        self._first_look = True
        self._sweeping = threading.RLock()  # a signal's handler may change models, too
        self._sweep_seconds = 0.0  # what the last one took
        self._sweeps_begun = 0
        self._swept = 0  # the number of the last one that came to its end

    # ── Connections and errors ──

    @contextmanager
    def _redis(self) -> Iterator[Any]:
        """Give the client; say what its errors mean."""
        import redis
        from redis.exceptions import RedisClusterException

        # A local name: another thread may close or replace the one we keep.
        client = self._made
        try:
            if client is None:
                client = self._made = _client(self._config)
            self._follow_sentinel(client)
            yield client
        except (redis.RedisError, RedisClusterException, OSError, ValueError) as exc:
            if isinstance(client, redis.RedisCluster) and self._made is client:
                self._made = None  # its map of the cluster may be the fault
            raise self._translate(exc) from exc

    def _follow_sentinel(self, client: Any) -> None:
        """Ask who is the master, once a second: an old one may go on answering for a while."""
        from redis.sentinel import SentinelConnectionPool

        now = time.monotonic()
        pool = getattr(client, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool) and now >= self._ask_sentinel_at:
            self._ask_sentinel_at = now + SENTINEL_SECONDS
            pool.get_master_address()  # closes the connections to another

    def _home(self, client: Any) -> Any:
        """The server that holds our three keys; its replies are not redirected behind our back."""
        import redis

        if isinstance(client, redis.RedisCluster):
            return client.get_redis_connection(client.get_node_from_key(self._key))
        return client

    def _translate(self, exc: Exception) -> ModelctlError:
        import redis

        text = " ".join(self._config.hide(str(exc)).split()) or type(exc).__name__
        # Sentinel's client shows its objects; the addresses are enough.
        text = re.sub(r"<redis\.\S*?host=([^,]*),port=([0-9]+)\S* - ", r"\1:\2 ", text)
        refused = (redis.AuthenticationError, redis.exceptions.NoPermissionError)
        # A cluster's client has it as the cause, that of a Sentinel in its text.
        return self._error(text, isinstance(exc, refused) or isinstance(exc.__cause__, refused))

    def _error(self, text: str, refused: bool) -> ModelctlError:
        text = " ".join(self._config.hide(text).split())
        if refused or any(words in text for words in _REFUSALS):
            return InvalidConfigError(
                f"Redis refuses this user ({text})", hint="check redis.url and the user's ACL"
            )
        return StaleCacheError(f"Redis cannot be used ({text})", hint="check redis.url")

    def close(self) -> None:
        """Close the pooled connections."""
        client, self._made = self._made, None
        if client is not None:
            client.close()

    # ── The protocol ──

    def peek(self) -> Hit | None:
        """Return the value if it is a count, will expire in time, and no tombstone denies it."""
        found = self._glance()
        if found is None:
            with self._redis() as client:
                found = self._look(self._home(client).connection_pool)
        value, tomb, left = found
        if value is None or not _COUNT.fullmatch(value) or not 0 < left <= self._ttl_ms:
            return None
        if tomb is not None and tomb != value:
            return None
        return Hit(int(value), (self._ttl_ms - left) / 1000, left / 1000)

    @functools.cached_property
    def _question(self) -> bytes:
        """Written once: it is the same on every page of an application."""
        from modelctl.count.first_look import request

        return request(["MGET", self._key, self._tomb]) + request(["PTTL", self._key])

    def _look(self, pool: Any) -> tuple[bytes | None, bytes | None, int]:
        """Value, tombstone and time to live (ms); a Pipeline costs as much as both commands."""
        connection = pool.get_connection()
        try:
            connection.send_packed_command([self._question])
            (value, tomb), left = connection.read_response(), connection.read_response()
        except BaseException:
            connection.disconnect()  # there may be an answer that nobody has read
            raise
        finally:
            pool.release(connection)
        return value, tomb, left

    def _glance(self) -> tuple[bytes | None, bytes | None, int] | None:
        """The first look of a process, which is the only one of most commands."""
        first, self._first_look = self._first_look and self._made is None, False
        if not first:
            return None
        from modelctl.count.first_look import ReplyError, glance

        try:
            return glance(self._config.redis.url, self._key, self._tomb, REDIS_TIMEOUT)
        except ReplyError as exc:
            refused = str(exc).startswith(("NOAUTH", "WRONGPASS", "NOPERM"))
            raise self._error(str(exc), refused) from None
        except TimeoutError:
            raise self._error("Timeout reading from socket", refused=False) from None

    def lease(self) -> str | None:
        """Take the lease with a random nonce; a counter would start again after a wipe."""
        nonce = os.urandom(16).hex()
        with self._redis() as client:
            px = round(LEASE_SECONDS * 1000)
            got = self._home(client).set(self._lease, nonce, nx=True, px=px)
        return nonce if got else None

    def fill(self, token: str, active: int) -> None:
        """Store the number if the lease is still ours; a lost race is no fault."""
        self._with_lease(token, active)

    def release(self, token: str) -> None:
        """Delete the lease if it is still ours."""
        self._with_lease(token, None)

    def _with_lease(self, token: str, active: int | None) -> None:
        import redis

        with self._redis() as client:
            pipe = self._home(client).pipeline(transaction=True)
            try:
                pipe.watch(self._lease)
                if pipe.get(self._lease) != token.encode():
                    pipe.unwatch()
                    return
                points.reach("in-fill")
                pipe.multi()
                if active is not None:
                    pipe.set(self._key, active, px=self._ttl_ms)
                    pipe.set(self._tomb, active, xx=True, keepttl=True)
                pipe.delete(self._lease)
                pipe.watching = False  # EXEC ends the watch, whatever it answers
                pipe.execute()
            except redis.WatchError:
                return
            finally:
                # Asking a silent server for UNWATCH takes seconds, and loses the connection.
                if pipe.watching and pipe.connection:
                    pipe.connection.disconnect()
                pipe.watching = False
                pipe.reset()

    def invalidate(self, budget: float | None = None) -> None:
        """Clear the count, then what else a change made wrong, within *budget* seconds.

        Raises:
            StaleCacheError: not everything is cleared; do not count it as delivered.
        """
        deadline = None if budget is None else time.monotonic() + budget
        begun = self._sweeps_begun
        with self._redis() as client:
            home = self._home(client)
            # Alone and first: a DEL passes even when Redis is out of memory.
            home.delete(self._key, self._lease)
            points.reach("after-del")
            tomb_ms = self._ttl_ms + round(TOMB_EXTRA_SECONDS * 1000)
            home.set(self._tomb, "", px=tomb_ms)
            points.reach("after-tomb")
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
        import redis

        with self._redis() as client:
            cluster = isinstance(client, redis.RedisCluster)
            if not _PATTERN.search(pattern):
                client.delete(pattern)
                return
            nodes = [client]
            if cluster:
                # Nobody redirects a SCAN: a node that joined since would be left out.
                client.nodes_manager.initialize(disconnect_startup_nodes_pools=False)
                nodes = [client.get_redis_connection(node) for node in client.get_primaries()]
            for node in nodes:
                cursor = 0
                while True:
                    cursor, found = node.scan(cursor, match=pattern, count=_SCAN_COUNT)
                    if found and cluster:  # the keys of one page lie in several slots
                        pipe = node.pipeline(transaction=False)
                        for key in found:
                            pipe.unlink(key)
                        pipe.execute()
                    elif found:
                        node.unlink(*found)
                    points.reach("in-sweep")
                    if not cursor:
                        break
                    if deadline is not None and time.monotonic() > deadline:
                        raise StaleCacheError(
                            f"the sweep of {pattern} takes too long", hint=_FINISH
                        )

    def keys(self) -> tuple[CacheKey, ...]:
        """Return our three keys and the plain names that an invalidation clears."""
        from modelctl.reports import CacheKey

        patterns = self._config.cache.clear
        names = [self._key, self._lease, self._tomb]
        names += [name for name in patterns if not _PATTERN.search(name)]
        found = []
        with self._redis() as client:
            for name in names:
                kind = client.type(name)
                value = client.get(name) if kind == b"string" else None
                text = value.decode("utf-8", "replace") if value is not None else None
                if kind not in (b"none", b"string"):
                    text = f"({kind.decode()})"
                left = client.pttl(name)
                found.append(CacheKey(name, text, left / 1000 if left >= 0 else None))
        return tuple(found)


def _client(config: Config) -> Any:
    """Connect as redis.url says; no retries inside: whoever calls has a budget."""
    from urllib.parse import parse_qs

    import redis
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry

    start, _, query = config.redis.url.partition("?")
    scheme, _, rest = start.partition("://")
    scheme, _, kind = scheme.partition("+")
    known: tuple[str, ...] = _PARAMETERS
    known += _TLS_PARAMETERS if scheme == "rediss" else ()
    known += _SENTINEL_PARAMETERS if kind == "sentinel" else ()
    for name in parse_qs(query):
        if name not in known:
            raise InvalidConfigError(
                f"redis.url has an unknown parameter '{name}'", hint=f"known: {', '.join(known)}"
            )
    how: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": REDIS_TIMEOUT,
        "socket_connect_timeout": REDIS_TIMEOUT,
        # RESP2 and no CLIENT SETINFO: a hit is one round trip after the connection.
        "protocol": 2,
        "legacy_responses": False,
        "driver_info": None,
    }
    try:
        if not kind:
            # A thread more than there are connections waits; the usual pool raises an error.
            size = {"max_connections": config.redis.pool_size, "timeout": REDIS_TIMEOUT}
            pool = redis.BlockingConnectionPool.from_url(config.redis.url, **size, **how)
            return redis.Redis.from_pool(pool)
        authority, _, path = rest.partition("/")
        login, at, hosts = authority.rpartition("@")
        master, _, db = path.partition("/")
        given = parse_url(f"{scheme}://{login}{at}-/{db}?{query}")
    except ValueError as exc:
        raise InvalidConfigError(f"redis.url: {exc}") from None
    del given["host"]
    how |= given | {"ssl": given.pop("connection_class", None) is not None}

    addresses = []
    for address in hosts.split(","):
        host, port = re.fullmatch(r"(.*?)(?::([0-9]+))?", address).groups()  # type: ignore[union-attr]
        addresses.append((host.strip("[]") or "localhost", port))
    # Nodes that are all silent may take a second together.
    each = min(REDIS_TIMEOUT, 1.8 * REDIS_TIMEOUT / len(addresses))
    quick = {"socket_timeout": each, "socket_connect_timeout": each}
    if kind == "cluster":
        from redis.cluster import ClusterNode

        nodes = [ClusterNode(host, int(port or 6379)) for host, port in addresses]
        return redis.RedisCluster(startup_nodes=nodes, dynamic_startup_nodes=False, **(how | quick))

    from redis.sentinel import Sentinel

    own = {name: how.pop(name) for name in _SENTINEL_PARAMETERS if name in how}
    to_sentinel = {k: v for k, v in how.items() if k not in ("username", "password", "db")} | quick
    to_sentinel |= {name.removeprefix("sentinel_"): value for name, value in own.items()}
    sentinel = Sentinel(
        [(host, int(port or 26379)) for host, port in addresses], sentinel_kwargs=to_sentinel
    )
    return sentinel.master_for(master, **how)
