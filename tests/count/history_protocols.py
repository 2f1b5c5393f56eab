"""The three protocols whose counts a history compares: the product, a naive one and a tombstone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from modelctl import Fleet, crash_points
from modelctl.config.config import Config
from modelctl.errors import DatabaseUnavailableError
from tests.count.history import MAX_AGE, TTL
from tests.world import KEY


def slow_fill(dice: random.Random) -> None:
    """Wait between counting and storing, as a slow reader does; the same for both protocols."""
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, 0.1))


class Client(Protocol):
    """What a process uses: the product, or a naive program in its place."""

    reads: ClassVar[tuple[str, ...]]

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Called in the process, before all else; *mortal*: it may die at any step."""

    def count(self, what: str) -> tuple[int, bool]:
        """Return the number and whether it came from the cache."""

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Return the outcome and whether a status changed."""


class Product:
    """modelctl."""

    reads: ClassVar[tuple[str, ...]] = ("count",) * 17 + ("strong",) * 2 + ("fresh",)

    def __init__(self, database: str, redis_url: str, who: str) -> None:
        self.fleet = Fleet(
            Config.load(
                environ={
                    "MODELCTL_CONFIG": os.devnull,
                    "MODELCTL_DATABASE_URL": f"{database}?application_name={who}",
                    "MODELCTL_REDIS_URL": redis_url,
                }
            ),
            actor=who,
        )
        self.fleet.on_warning = lambda _: None

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Make some steps slow, and some the last."""

        def hook(name: str) -> None:
            if name == "after-snapshot":
                slow_fill(dice)
            elif mortal and dice.random() < 0.01:
                os.kill(os.getpid(), signal.SIGKILL)
            elif dice.random() < 0.05:
                time.sleep(dice.uniform(0, 0.03))

        crash_points.hook = hook

    def count(self, what: str) -> tuple[int, bool]:
        """Count."""
        if what == "remembered":
            found = self.fleet.count(max_age=MAX_AGE)
        else:
            found = self.fleet.count(strong=what == "strong", fresh=what == "fresh")
        return found.active, found.source != "database"

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Call the method of that name."""
        if what == "recover":
            recovery = self.fleet.recover(cooldown=0)
            return str(recovery.cache), bool(recovery.recovered)
        if what == "record-failure":
            result = self.fleet.record_failure(ids[0], "parse-error")
        elif what == "record-success":
            result = self.fleet.record_success(ids[0])
        else:
            result = (self.fleet.disable if what == "disable" else self.fleet.enable)(*ids)
        return str(result.cache), any(change.changed for change in result.changes)


class Remembering(Product):
    """modelctl, in applications that ask on every page."""

    reads: ClassVar[tuple[str, ...]] = ("remembered",) * 16 + ("count",) * 3 + ("strong",)


class Sql:
    """A connection to PostgreSQL that is made when needed, and again after an error."""

    def __init__(self, database: str, who: str) -> None:
        self._url = f"{database}?application_name={who}"
        self._made: psycopg.Connection | None = None

    def execute(self, sql: str) -> Any:
        """Run one statement in a transaction of its own; return the first field, or the count."""
        try:
            if self._made is None:
                self._made = psycopg.connect(self._url, autocommit=True, connect_timeout=5)
            cursor = self._made.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else None
        except psycopg.Error:
            if self._made is not None:
                self._made.close()
            self._made = None
            raise
        return row[0] if row else cursor.rowcount


class RedisClient:
    """A client of whatever a URL of ours names, made when needed, and again after an error."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: Any = None

    @contextlib.contextmanager
    def home(self) -> Iterator[redis.Redis]:
        """Give the server that has K; every error is a RedisError."""
        try:
            if self._made is None:
                self._made = self._client()
            client = self._made
            if isinstance(client, redis.RedisCluster):
                client = client.get_redis_connection(client.get_node_from_key(KEY))  # type: ignore[no-untyped-call]
            yield client
        except (redis.RedisError, RedisClusterException, OSError) as exc:
            self._made = None
            raise redis.RedisError(str(exc)) from exc

    def _client(self) -> Any:
        how: dict[str, Any] = {
            "decode_responses": True,
            "socket_timeout": 0.5,
            "socket_connect_timeout": 0.5,
            "retry": Retry(NoBackoff(), 0),
        }
        scheme, _, rest = self._url.partition("://")
        if "+" not in scheme:
            return redis.Redis.from_url(self._url, **how)
        addresses = [(h, int(p)) for h, _, p in (a.partition(":") for a in _hosts(rest))]
        if scheme == "redis+cluster":
            nodes = [redis.cluster.ClusterNode(*a) for a in addresses]  # type: ignore[no-untyped-call]
            return redis.RedisCluster(startup_nodes=nodes, **how)
        timeouts = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
        watchers = redis.Sentinel(addresses, sentinel_kwargs=timeouts)  # type: ignore[no-untyped-call]
        return watchers.master_for("mymaster", **how)  # type: ignore[no-untyped-call]


def _hosts(rest: str) -> list[str]:
    return rest.partition("/")[0].split(",")


COUNT = "SELECT count(*) FROM models WHERE active"


class Naive:
    """GET; on a miss COUNT(*) and SETEX. A change commits and then deletes the key."""

    reads: ClassVar[tuple[str, ...]] = ("count",)

    def __init__(self, database: str, redis_url: str, who: str) -> None:
        self._database, self._redis_url, self._who = database, redis_url, who

    def prepare(self, dice: random.Random, *, mortal: bool) -> None:
        """Connect."""
        self._dice = dice
        self._sql = Sql(self._database, self._who)
        self._redis = RedisClient(self._redis_url)

    def count(self, what: str) -> tuple[int, bool]:
        """Read through the cache."""
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            if (value := client.get(KEY)) is not None:
                return int(str(value)), True
        number = self._query(COUNT)
        slow_fill(self._dice)
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            client.set(KEY, number, ex=TTL)
        return number, False

    def change(self, what: str, ids: Sequence[str]) -> tuple[str, bool]:
        """Switch, then delete."""
        active, names = what == "enable", ", ".join(f"'{name}'" for name in ids)
        rows = self._query(
            f"UPDATE models SET active = {active} WHERE id IN ({names}) AND active <> {active}"
        )
        try:
            self._invalidate()
        except redis.RedisError:
            return "queued", rows > 0
        return "invalidated", rows > 0

    def _invalidate(self) -> None:
        with self._redis.home() as client:
            client.delete(KEY)

    def _query(self, sql: str) -> int:
        try:
            return int(self._sql.execute(sql))
        except psycopg.Error as exc:
            raise DatabaseUnavailableError(str(exc)) from exc


class Tombstone(Naive):
    """The first protocol: what was stored before an invalidation is denied for 75 s.

    K is believed if the tombstone is absent or says the same. What denies is lost together with
    everything else, and that is how it is wrong.
    """

    _LEASE = f"{{{KEY}}}:lease"
    _TOMB = f"{{{KEY}}}:tomb"

    def count(self, what: str) -> tuple[int, bool]:
        """Read through the cache; fill under a lease that was taken before the count."""
        nonce = os.urandom(16).hex()
        got = False
        with contextlib.suppress(redis.RedisError), self._redis.home() as client:
            value, tomb = client.mget(KEY, self._TOMB)
            if value is not None and tomb in (None, value):
                return int(value), True
            got = bool(client.set(self._LEASE, nonce, nx=True, px=10_000))
        number = self._query(COUNT)
        slow_fill(self._dice)
        if got:
            with contextlib.suppress(redis.RedisError):
                self._fill(nonce, number)
        return number, False

    def _fill(self, nonce: str, number: int) -> None:
        with self._redis.home() as client, client.pipeline(transaction=True) as pipe:
            pipe.watch(self._LEASE)  # type: ignore[no-untyped-call]
            if pipe.get(self._LEASE) == nonce:
                pipe.multi()
                pipe.set(KEY, number, px=TTL * 1000)
                pipe.set(self._TOMB, number, xx=True, keepttl=True)
                pipe.delete(self._LEASE)
                pipe.execute()

    def _invalidate(self) -> None:
        with self._redis.home() as client:
            client.delete(KEY, self._LEASE)
            client.set(self._TOMB, "", px=TTL * 1000 + 15_000)
