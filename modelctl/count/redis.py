"""The count in Redis: the steps that touch Redis, and the connections they use.

Why each step stands where it does: docs/decisions.md, "How is the cached count kept true?". The
names of the steps there are the names of the methods here.
"""

# mypy: disable-error-code="no-untyped-call"
# (redis-py's cluster and sentinel parts have no types)

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelctl import points
from modelctl.config import mask_url
from modelctl.count import wire
from modelctl.count.cache import LEASE_SECONDS, Hit
from modelctl.count.wire import Command, NonsenseError, ReplyError
from modelctl.errors import InvalidConfigError, ModelctlError, StaleCacheError
from modelctl.model import CacheState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelctl.config import Config
    from modelctl.reports import CacheKey

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
        self.identity = f"{_address(config.redis.url)} {config.cache.count_key}"
        self._ttl_ms = round(config.cache.ttl * 1000)
        self._key = config.cache.count_key
        # The braces put all three into one slot of a cluster.
        self._lease = f"{{{self._key}}}:lease"
        self._vouch = f"{{{self._key}}}:vouch"
        self._look = (
            Command(("MGET", self._key, self._vouch), wire.is_pair),
            Command(("PTTL", self._vouch), wire.is_number),
        )
        self._made: Any = None
        self._ask_sentinel_at = 0.0
        self._is_first_look = True
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
        """The pool of the server that holds our three keys."""
        import redis

        if isinstance(client, redis.RedisCluster):
            client = client.get_redis_connection(client.get_node_from_key(self._key))
        return client.connection_pool

    @contextmanager
    def _talk(self, pool: Any = None) -> Iterator[Talk]:
        """Give a conversation on one connection, to the server of our keys unless told otherwise."""
        with self._redis() as client:
            pool = pool or self._home(client)
            connection = pool.get_connection()
            try:
                yield Talk(connection)
            except BaseException:
                connection.disconnect()  # there may be an answer that nobody has read
                raise
            finally:
                pool.release(connection)

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
        """Return the count if it will expire in time and this very server vouches for it."""
        found = self._first_look()
        if found is None:
            with self._talk() as talk:
                answers = talk.ask(*self._look)
                found = talk.home, answers
        home, ((value, vouch), left) = found
        if value is None or not _COUNT.fullmatch(value) or not 0 < left <= self._ttl_ms:
            return None
        if vouch != _vouch(value.decode(), home).encode():
            return None
        return Hit(int(value), (self._ttl_ms - left) / 1000, left / 1000)

    def _first_look(self) -> tuple[str, list[Any]] | None:
        """The first look of a process, which is the only one of most commands."""
        first, self._is_first_look = self._is_first_look and self._made is None, False
        if not first:
            return None
        from modelctl.count.first_look import look

        try:
            found = look(self._config.redis.url, self._look, REDIS_TIMEOUT)
        except ReplyError as exc:
            refused = str(exc).startswith(("NOAUTH", "WRONGPASS", "NOPERM"))
            raise self._error(str(exc), refused) from None
        except NonsenseError as exc:
            raise self._error(str(exc), refused=False) from None
        except TimeoutError:
            raise self._error("Timeout reading from socket", refused=False) from None
        return found

    def lease(self) -> str | None:
        """Take the lease with a random nonce; a counter would start again after a wipe.

        It names the server too: a fill on another one, after a failover, finds it wrong.
        """
        px = str(round(LEASE_SECONDS * 1000))
        with self._talk() as talk:
            token = f"{os.urandom(16).hex()} {talk.home}"
            [got] = talk.ask(
                Command(("SET", self._lease, token, "NX", "PX", px), wire.is_ok_or_none)
            )
        return token if got else None

    def fill(self, token: str, active: int) -> None:
        """Store the number if the lease is still ours, on its server; a lost race is no fault."""
        ttl = str(self._ttl_ms)
        with self._talk() as talk:
            vouch = _vouch(str(active), talk.home)
            self._with_lease(
                talk,
                token,
                Command(("SET", self._vouch, vouch, "PX", ttl), wire.is_queued),
                Command(("SET", self._key, str(active), "PX", ttl), wire.is_queued),
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
            Command(("WATCH", self._lease), wire.is_ok),
            Command(("GET", self._lease), wire.is_text_or_none),
        )
        if lease != token.encode():
            talk.ask(Command(("UNWATCH",), wire.is_ok))
            return
        points.reach("in-fill")
        talk.ask(
            Command(("MULTI",), wire.is_ok),
            *also,
            Command(("DEL", self._lease), wire.is_queued),
            # None: somebody took the lease meanwhile.
            Command(("EXEC",), wire.is_transaction),
        )

    def forget(self) -> None:
        """Delete the count, what vouches for it and the lease: nothing stored before is believed."""
        with self._talk() as talk:
            # In one command, which passes even when Redis is out of memory.
            talk.ask(Command(("DEL", self._key, self._vouch, self._lease), wire.is_number))
        points.reach("after-del")

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
                talk.ask(Command(("DEL", pattern), wire.is_number))
            return
        for pool in self._primaries():
            cursor = "0"
            while True:
                cursor = self._clear_page(pool, pattern, cursor)
                points.reach("in-sweep")
                if cursor == "0":
                    break
                if deadline is not None and time.monotonic() > deadline:
                    raise StaleCacheError(f"the sweep of {pattern} takes too long", hint=_FINISH)

    def _clear_page(self, pool: Any, pattern: str, cursor: str) -> str:
        """Delete the keys of one page of a SCAN; return where the next page begins."""
        scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", str(_SCAN_COUNT))
        with self._talk(pool) as talk:
            [(after, keys)] = talk.ask(Command(scan, wire.is_page))
            # In a cluster the keys of one page lie in several slots.
            names = [[key] for key in keys] if self._is_cluster() else [keys] if keys else []
            talk.ask(*(Command(("UNLINK", *some), wire.is_number) for some in names))
        return str(after.decode())

    def _is_cluster(self) -> bool:
        import redis

        return isinstance(self._made, redis.RedisCluster)

    def _pool_of(self, key: str) -> Any:
        with self._redis() as client:
            if self._is_cluster():
                client = client.get_redis_connection(client.get_node_from_key(key))
            return client.connection_pool

    def _primaries(self) -> list[Any]:
        with self._redis() as client:
            if not self._is_cluster():
                return [client.connection_pool]
            # Nobody redirects a SCAN: a node that joined since would be left out.
            client.nodes_manager.initialize(disconnect_startup_nodes_pools=False)
            nodes = client.get_primaries()
            return [client.get_redis_connection(node).connection_pool for node in nodes]

    def home(self) -> str:
        """The run id of the server; empty: it tells none, and a lossy failover goes unnoticed."""
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
                    Command(("TYPE", name), wire.is_text), Command(("PTTL", name), wire.is_number)
                )
                text = None
                if kind == b"string":
                    [value] = talk.ask(Command(("GET", name), wire.is_text_or_none))
                    text = value.decode("utf-8", "replace") if value is not None else None
                elif kind != b"none":
                    text = f"({kind.decode('utf-8', 'replace')})"
            found.append(CacheKey(name, text, left / 1000 if left >= 0 else None))
        return tuple(found)


class Talk:
    """A conversation with one server on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def home(self) -> str:
        """The run id of the server, another one after each start; empty where it tells none."""
        if _home_of(self._connection) is None:
            self.ask()
        return _home_of(self._connection) or ""

    def ask(self, *commands: Command) -> list[Any]:
        """Send all, then read the answer to each; the first on a connection asks who it is, too.

        Raises:
            ResponseError: Redis said no to one of them; all answers have been read.
            NonsenseError: what came is no answer to that.
        """
        connection = self._connection
        new = _home_of(connection) is None
        asked = (wire.INFO, *commands) if new else commands
        connection.send_packed_command([b"".join(wire.request(command.words) for command in asked)])
        answers = [_answer(connection) for _ in asked]
        if new:
            connection.modelctl_home = connection._sock, wire.run_id(answers.pop(0))
        return wire.checked(commands, answers)


def _home_of(connection: Any) -> str | None:
    """What is known of the server at the other end of the socket that is open now."""
    sock, home = getattr(connection, "modelctl_home", (None, None))
    return home if sock is not None and sock is connection._sock else None


def _answer(connection: Any) -> Any:
    import redis

    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as exc:
        return exc


def _address(url: str) -> str:
    """Which Redis a URL names: without its login and parameters, several hosts in one order."""
    start, _, query = url.partition("?")
    scheme, _, rest = start.partition("://")
    authority, _, path = rest.partition("/")
    hosts = authority.rpartition("@")[2].lower()
    if scheme.startswith(("redis+", "rediss+")):
        hosts = ",".join(sorted(hosts.split(",")))
    elif scheme != "unix" and not re.search(r":[0-9]+$", hosts):
        hosts += ":6379"
    if database := re.search(r"(?:^|&)db=([0-9]+)", query):
        path += f"?db={database[1]}"
    path = path.rstrip("/") if scheme == "unix" else path.strip("/") or "0"
    return f"{scheme}://{hosts}/{path}"


def _vouch(number: str, home: str) -> str:
    return f"{number} {home}".rstrip()


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
