"""Each kind of cache as the cache itself and another program see it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis.cluster import RedisCluster

from modelctl import Fleet
from modelctl.config.config import Config
from modelctl.config.sections import CacheConfig, DatabaseConfig, RedisConfig
from modelctl.count.cache import Cache
from modelctl.count.redis import RedisCache
from modelctl.count.sqlite import SqliteCache
from modelctl.errors import ModelctlError
from tests.servers import Redis
from tests.waiting import at_most
from tests.world import KEY, LEASE

PASSWORD = "zq7 /@:%é"


def server_id(cache: Cache) -> str:
    """Return the identity of the server."""
    return cache.server_id() if isinstance(cache, RedisCache) else ""


OPERATIONS: dict[str, Callable[[Cache], object]] = {
    "peek": lambda cache: cache.peek(),
    "lease": lambda cache: cache.lease(),
    "fill": lambda cache: cache.fill(f"token {server_id(cache)}", 1),
    "invalidate": lambda cache: cache.invalidate(2.0),
    "keys": lambda cache: cache.keys(),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def configured(url: str, pool_size: int = 10, timeout: float = 5, **cache: Any) -> Config:
    """Return a configuration with this Redis; *timeout* in seconds, longer than the default."""
    return Config(
        database=DatabaseConfig("postgresql://nobody@localhost/none"),
        redis=RedisConfig(url, pool_size, timeout),
        cache=CacheConfig(**cache),
    )


def fill(cache: Cache, active: int) -> None:
    """Count without a database."""
    token = cache.lease()
    assert token
    cache.fill(token, active)


def setex(other: Any, seconds: int, value: str | bytes) -> None:
    """Store a count as another program does."""
    other.execute_command("SETEX", KEY, seconds, value)


def shown(cache: Cache) -> int | None:
    """Return the number that a count would show from the cache."""
    hit = cache.peek()
    return None if hit is None else hit.active


class RedisRig:
    """One Redis, as the cache sees it and as another program does."""

    name = "redis"

    def __init__(self, url: str, nodes: list[Redis], client: Any) -> None:
        self.url = url
        self.nodes = nodes
        self.client = client
        self._made: list[RedisCache] = []

    def config(self, **how: Any) -> Config:
        """Return a configuration with this Redis."""
        return configured(self.url, **how)

    def cache(self, **how: Any) -> RedisCache:
        """Return a new cache, as another process would have it."""
        self._made.append(RedisCache(self.config(**how)))
        return self._made[-1]

    def close(self) -> None:
        """Close what was opened."""
        for cache in self._made:
            cache.close()
        self.client.close()

    def wipe(self) -> None:
        """Empty all of it, as a server that lost its memory."""
        for node in self.nodes:
            node.ask("FLUSHALL")

    def lease_seconds(self) -> float:
        """Return how long the lease lives on."""
        return float(self.client.pttl(LEASE)) / 1000

    def end_lease(self) -> None:
        """Let the time of the lease be over."""
        self.client.pexpire(LEASE, 0)

    def end_value(self) -> None:
        """Let the time of the value be over."""
        self.client.pexpire(KEY, 0)

    def names(self) -> set[str]:
        """Return every key there is."""
        return {name for node in self.nodes for name in node.ask("KEYS", "*")}


class SqliteRig:
    """One database file."""

    name = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        with Fleet.open(self.config()) as fleet:
            fleet.upgrade()

    def config(self, ttl: float = 60.0) -> Config:
        """Return a configuration with this file."""
        url = f"sqlite:///{quote(str(self.path))}"
        return Config(database=DatabaseConfig(url), cache=CacheConfig(ttl=ttl))

    def cache(self, **how: Any) -> SqliteCache:
        """Return a new cache, as another process would have it."""
        return SqliteCache(self.config(**how))

    def execute(self, sql: str) -> list[Any]:
        """Run a statement as another program."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(sql).fetchall()

    def wipe(self) -> None:
        """Forget everything that is cached."""
        self.execute("DELETE FROM modelctl_cache")

    def lease_seconds(self) -> float:
        """Return how long the lease lives on."""
        sql = "SELECT expires_at - (julianday('now') - 2440587.5) * 86400 FROM modelctl_cache"
        return float(self.execute(sql)[0][0])

    def end_lease(self) -> None:
        """Let the time of the row be over."""
        self.execute("UPDATE modelctl_cache SET expires_at = expires_at - 3600")

    end_value = end_lease


@contextmanager
def redis_rig(kind: str, request: pytest.FixtureRequest) -> Iterator[RedisRig]:
    """Give an empty Redis of a kind."""
    if kind == "cluster":
        group = request.getfixturevalue("cluster")
        client: Any = RedisCluster(
            host="127.0.0.1", port=group.nodes[0].port, decode_responses=True
        )
        rig = RedisRig(group.url, group.nodes, client)
    elif kind == "sentinel":
        group = request.getfixturevalue("sentinel")
        rig = RedisRig(group.url, group.nodes[:1], group.nodes[0].client())
    else:
        url = request.getfixturevalue("redis_url")
        server = request.getfixturevalue("redis_server")
        rig = RedisRig(url, [server], server.client())
    rig.wipe()
    try:
        yield rig
    finally:
        rig.close()


def populate(client: Any, names: set[str]) -> None:
    """Write a value under every name."""
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.set(name, "x")
    pipe.execute()


OTHERS = {f"session:{number}" for number in range(5000)} | {
    "db:leaderboard",
    "db:leaderboards:1",
    "xdb:leaderboard:1",
    "DB:LEADERBOARD:1",
    "db:stats",
    "db:stats:overall:1",
    "db:models:count:total",
    "db:models:count:active:1",
    "{db:models:count:active}:other",
}
LEADERBOARD = {f"db:leaderboard:{number}" for number in range(300)} | {
    "db:leaderboard:",
    "db:leaderboard:a:b",
    "db:leaderboard:\n[é]*",
}


def fails(
    operation: Callable[[Cache], object],
    url: str,
    error: type[ModelctlError],
    *,
    seconds: float = 2.0,
) -> ModelctlError:
    """Run an operation that must fail like this, soon, and without telling a password."""
    cache = RedisCache(configured(url, timeout=RedisConfig().timeout))
    with at_most(seconds):
        try:
            with pytest.raises(ModelctlError) as caught:
                operation(cache)
        finally:
            cache.close()
    assert type(caught.value) is error
    assert "zq7" not in f"{caught.value} {caught.value.hint}"
    return caught.value
