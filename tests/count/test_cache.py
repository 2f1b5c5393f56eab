"""The contract of the caches, on every kind of Redis that a URL can name and on SQLite."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.cluster import RedisCluster

from modelctl import Fleet, crash_points
from modelctl.config.config import Config
from modelctl.config.sections import CacheConfig, DatabaseConfig, RedisConfig
from modelctl.count.cache import Cache, Hit, Miss, NullCache
from modelctl.count.protocol import open_cache, read
from modelctl.count.redis import RedisCache
from modelctl.count.sqlite import SqliteCache
from modelctl.errors import (
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    StaleCacheError,
)
from tests import servers
from tests.servers import Redis, RedisGroup, _ClusterNode

K = "db:models:count:active"
LEASE = "{db:models:count:active}:lease"
VOUCH = "{db:models:count:active}:vouch"
STATS = "db:stats:overall"
PASSWORD = "zq7 /@:%é"


def home(cache: Cache) -> str:
    """Return the run id of the server."""
    return cache.home() if isinstance(cache, RedisCache) else ""


OPERATIONS: dict[str, Callable[[Cache], object]] = {
    "peek": lambda cache: cache.peek(),
    "lease": lambda cache: cache.lease(),
    "fill": lambda cache: cache.fill(f"token {home(cache)}", 1),
    "invalidate": lambda cache: cache.invalidate(2.0),
    "keys": lambda cache: cache.keys(),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def configured(url: str, pool_size: int = 10, **cache: Any) -> Config:
    """Return a configuration with this Redis."""
    return Config(
        database=DatabaseConfig("postgresql://nobody@localhost/none"),
        redis=RedisConfig(url, pool_size),
        cache=CacheConfig(**cache),
    )


def fill(cache: Cache, active: int) -> None:
    """Count without a database."""
    token = cache.lease()
    assert token
    cache.fill(token, active)


def setex(other: Any, seconds: int, value: str | bytes) -> None:
    """Store a count as another program does."""
    other.execute_command("SETEX", K, seconds, value)


def shown(cache: Cache) -> int | None:
    """Return the number that a count would show from the cache."""
    hit = cache.peek()
    return None if hit is None else hit.active


# The kinds of cache


class RedisRig:
    """One Redis, as the cache sees it and as another program does."""

    name = "redis"

    def __init__(self, url: str, nodes: list[Redis], client: Any) -> None:
        self.url = url
        self.nodes = nodes
        self.client = client
        self._made: list[RedisCache] = []

    def cache(self, **how: Any) -> RedisCache:
        """Return a new cache, as another process would have it."""
        self._made.append(RedisCache(configured(self.url, **how)))
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
        self.client.pexpire(K, 0)

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisGroup]:
    """Run one cluster for this module."""
    with servers.redis_cluster() as group:
        yield group


@pytest.fixture(scope="module")
def sentinel() -> Iterator[RedisGroup]:
    """Run one master with its Sentinels for this module."""
    with servers.redis_sentinel() as group:
        yield group


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


@pytest.fixture(params=["standalone", "cluster", "sentinel"])
def any_redis(request: pytest.FixtureRequest) -> Iterator[RedisRig]:
    """Give an empty Redis of each kind in turn."""
    with redis_rig(request.param, request) as rig:
        yield rig


@pytest.fixture
def one_redis(request: pytest.FixtureRequest) -> Iterator[RedisRig]:
    """Give an empty Redis of one server."""
    with redis_rig("standalone", request) as rig:
        yield rig


@pytest.fixture
def sqlite_rig(tmp_path: Path) -> SqliteRig:
    """Give a fresh SQLite database."""
    return SqliteRig(tmp_path / "m o%d?els.db")


@pytest.fixture(params=["standalone", "cluster", "sentinel", "sqlite"])
def rig(request: pytest.FixtureRequest) -> Iterator[RedisRig | SqliteRig]:
    """Give every kind of cache in turn."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_rig")
        return
    with redis_rig(request.param, request) as rig:
        yield rig


Rig = RedisRig | SqliteRig


# What every cache does


def test_a_fill_is_a_hit_for_everybody(rig: Rig) -> None:
    """Nothing is shown before a fill; after it everybody sees the number, its age and its end."""
    cache = rig.cache()
    assert cache.peek() is None
    assert cache.name == rig.name
    miss = read(cache)
    assert isinstance(miss, Miss)
    assert miss.token
    cache.fill(miss.token, 42)
    hit = read(rig.cache())
    assert isinstance(hit, Hit)
    assert hit.active == 42
    assert 0 <= hit.age < 10
    assert 50 < hit.expires_in <= 60
    assert hit.age + hit.expires_in == pytest.approx(60)


@pytest.mark.parametrize("active", [0, 1, 10**18 - 1])
def test_small_and_large_counts_are_kept(rig: Rig, active: int) -> None:
    """What is filled is what is shown."""
    fill(rig.cache(), active)
    assert shown(rig.cache()) == active


def test_one_fills_at_a_time(rig: Rig) -> None:
    """A lease is refused while another lives, for ten seconds at most, and free after its fill."""
    token = rig.cache().lease()
    assert token
    assert rig.cache().lease() is None
    assert 5 < rig.lease_seconds() <= 10
    rig.cache().fill(token, 1)
    rig.end_value()
    assert rig.cache().lease()


def test_an_expired_lease_is_taken_over(rig: Rig) -> None:
    """Who comes back after its lease expired stores nothing, its successor does."""
    first, second = rig.cache(), rig.cache()
    late = first.lease()
    rig.end_lease()
    token = second.lease()
    assert late
    assert token
    first.fill(late, 1)
    assert shown(first) is None
    second.fill(token, 2)
    first.fill(late, 1)
    assert shown(first) == 2


@pytest.mark.parametrize("loss", ["invalidate", "wipe", "end_lease"])
def test_a_fill_without_its_lease_stores_nothing(rig: Rig, loss: str) -> None:
    """An invalidation, a wipe and the end of the lease each make a running count's fill void."""
    cache = rig.cache()
    token = cache.lease()
    assert token
    rig.cache().invalidate() if loss == "invalidate" else getattr(rig, loss)()
    if loss == "end_lease" and rig.name == "sqlite":
        # Only a successor ends it there: until then nobody else can have been told a number.
        assert rig.cache().lease()
    cache.fill(token, 5)
    assert shown(cache) is None


def test_a_value_dies_of_age(rig: Rig) -> None:
    """An expired value is a miss, and may be filled again."""
    fill(rig.cache(), 1)
    rig.end_value()
    assert shown(rig.cache()) is None
    fill(rig.cache(), 2)
    assert shown(rig.cache()) == 2


def test_an_invalidation_takes_the_value(rig: Rig) -> None:
    """After an invalidation there is nothing to show until somebody counted again; twice is once."""
    cache = rig.cache()
    fill(cache, 1)
    for _ in range(2):
        cache.invalidate(2.0)
        assert shown(cache) is None
    fill(cache, 2)
    assert shown(cache) == 2


def test_the_ttl_is_configuration(rig: Rig) -> None:
    """A shorter time to live holds for what is filled and for what is believed."""
    fill(rig.cache(), 1)
    assert rig.cache(ttl=30.0).peek() is None
    fill(rig.cache(ttl=30.0), 2)
    hit = rig.cache(ttl=30.0).peek()
    assert hit
    assert 20 < hit.expires_in <= 30
    assert 0 <= hit.age < 10


def test_a_reader_waits_a_moment_for_the_filler(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis readers that get no lease poll for the number of whoever has it; on SQLite they count."""
    filler = rig.cache()
    token = filler.lease()
    assert token
    pauses: list[float] = []
    monkeypatch.setattr("modelctl.count.protocol.time.sleep", pauses.append)
    assert read(rig.cache()) == Miss(None)
    assert len(pauses) == (0 if rig.name == "sqlite" else 3)
    assert sum(pauses) < 0.2
    monkeypatch.setattr("modelctl.count.protocol.time.sleep", lambda _: filler.fill(token, 3))
    found = read(rig.cache())
    assert found == Miss(None) if rig.name == "sqlite" else isinstance(found, Hit)


@pytest.mark.parametrize("pool_size", [4, 10])
def test_threads_share_a_cache(rig: Rig, pool_size: int) -> None:
    """Eight threads read through one cache without a fault, also with fewer connections."""
    fill(rig.cache(), 42)
    cache = rig.cache(pool_size=pool_size) if rig.name != "sqlite" else rig.cache()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shown(cache), range(200)))
    assert found == [42] * 200


def test_too_few_connections_are_said(one_redis: RedisRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets no connection for half a second is told so, and the next one gets it."""
    cache = one_redis.cache(pool_size=1)
    told: list[str] = []

    def hold(point: str) -> None:
        if point == "in-fill":
            with ThreadPoolExecutor(1) as pool, pytest.raises(StaleCacheError) as caught:
                pool.submit(cache.peek).result()
            told.append(caught.value.message)

    monkeypatch.setattr(crash_points, "hook", hold)
    fill(cache, 1)
    assert len(told) == 1
    assert "all connections to Redis are in use" in told[0]
    monkeypatch.setattr(crash_points, "hook", None)
    assert shown(cache) == 1


def test_a_cache_survives_a_fork_before_its_first_use(rig: Rig) -> None:
    """Parent and child that were given the same unused cache both read through it."""
    fill(rig.cache(), 42)
    config = rig.cache().link._config if isinstance(rig, RedisRig) else rig.config()
    program = (
        "import os, sys; from modelctl.config.config import *; from modelctl.count.protocol import open_cache\n"
        "cache = open_cache(Config(DatabaseConfig(sys.argv[1]), RedisConfig(sys.argv[2])))\n"
        "child = os.fork()\n"
        "for _ in range(20): assert cache.peek().active == 42\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
    )
    urls = [config.database.url, config.redis.url]
    subprocess.run([sys.executable, "-c", program, *urls], check=True, timeout=30)


def test_keys_show_the_cache_to_a_person(rig: Rig) -> None:
    """The value is listed with its text and its time to live."""
    fill(rig.cache(), 42)
    keys = {key.key: key for key in rig.cache().keys()}  # noqa: SIM118 - not a dict
    value = keys[K if rig.name != "sqlite" else "count:active"]
    assert value.value == "42"
    assert value.expires_in_seconds is not None
    assert 50 < value.expires_in_seconds <= 60
    if rig.name != "sqlite":
        assert set(keys) == {K, LEASE, VOUCH, STATS}
        assert keys[STATS].value is None
        assert keys[STATS].expires_in_seconds is None


def test_a_closed_cache_opens_again(rig: Rig) -> None:
    """Closing gives the connections back; the next call connects anew."""
    cache = rig.cache()
    fill(cache, 1)
    for _ in range(2):
        cache.close()
        assert shown(cache) == 1
    cache.close()


def test_no_cache_is_always_a_miss() -> None:
    """Without Redis nobody gets a token, nothing is shown and nothing fails."""
    cache = open_cache(configured(""))
    assert isinstance(cache, NullCache)
    assert cache.name == "off"
    for operation in OPERATIONS.values():
        assert not operation(cache)
    assert read(cache) == Miss(None)
    cache.close()


# Redis: the protocol


def test_the_value_is_a_plain_string_that_others_read(any_redis: RedisRig) -> None:
    """K holds the decimal number, for at most a minute, and a fill leaves nothing but K and its vouch."""
    fill(any_redis.cache(), 42)
    assert any_redis.client.get(K) == "42"
    assert 50_000 < any_redis.client.pttl(K) <= 60_000
    assert any_redis.names() == {K, VOUCH}


def test_the_vouch_of_a_fill(any_redis: RedisRig) -> None:
    """It names the number and the server, and lives and goes with the number."""
    cache = any_redis.cache()
    fill(cache, 42)
    assert any_redis.client.get(VOUCH) == f"42 {cache.home()}"
    assert re.fullmatch("[0-9a-f]{40}", cache.home())
    assert 50_000 < any_redis.client.pttl(VOUCH) <= 60_000
    cache.forget()
    assert any_redis.names() == set()


def test_only_what_was_vouched_for_is_believed(any_redis: RedisRig) -> None:
    """Another program's number is a miss, unless it is the one that modelctl stored itself."""
    cache, other = any_redis.cache(), any_redis.client
    setex(other, 60, "999")
    assert shown(cache) is None
    cache.invalidate()
    setex(other, 60, "999")
    assert shown(cache) is None
    fill(cache, 7)
    assert shown(cache) == 7
    setex(other, 60, "999")
    assert shown(cache) is None
    setex(other, 30, "7")
    assert shown(cache) == 7
    other.delete(VOUCH)
    assert shown(cache) is None
    fill(cache, 7)
    other.delete(K)
    assert shown(cache) is None


@pytest.mark.parametrize("key", [K, VOUCH])
def test_half_of_it_lost_is_a_miss(any_redis: RedisRig, key: str) -> None:
    """Redis may evict any key: of the number and its vouch, one alone is not believed."""
    cache = any_redis.cache()
    fill(cache, 7)
    any_redis.client.delete(key)
    assert shown(cache) is None


def test_another_server_does_not_vouch() -> None:
    """A restart from a snapshot brings number, vouch and lease back, and none of them counts."""
    with Redis() as server:
        cache = RedisCache(configured(server.url()))
        fill(cache, 7)
        late = cache.lease()
        assert late
        server.ask("SAVE")
        server.kill()
        server.start()
        with server.client() as client:
            assert client.mget(K, LEASE) == ["7", late]
        assert shown(cache) is None
        cache.fill(late, 8)
        assert shown(cache) is None
        with server.client() as client:
            client.delete(LEASE)
        fill(cache, 9)
        assert shown(cache) == 9
        cache.close()


@pytest.mark.parametrize("user", ["-info", "-@all +mget +pttl +set +get +watch +multi +exec +del"])
def test_a_server_that_tells_no_run_id(user: str) -> None:
    """Where INFO is refused the vouch names no server, and all else works."""
    with Redis() as server:
        server.ask("ACL", "SETUSER", "joe", "on", ">zq7", "~*", "+@all", *user.split())
        cache = RedisCache(configured(server.url().replace("//", "//joe:zq7@")))
        assert cache.home() == ""
        fill(cache, 7)
        with server.client() as client:
            assert client.mget(K, VOUCH) == ["7", "7"]
        assert shown(cache) == 7
        cache.close()
        other = RedisCache(configured(server.url()))
        assert shown(other) is None
        other.close()


FOREIGN: dict[str, Callable[[Any], object]] = {
    "no TTL": lambda other: other.set(K, "5"),
    "a TTL of two minutes": lambda other: setex(other, 120, "5"),
    "a letter": lambda other: setex(other, 60, "abc"),
    "negative": lambda other: setex(other, 60, "-5"),
    "signed": lambda other: setex(other, 60, "+5"),
    "a blank before": lambda other: setex(other, 60, " 5"),
    "a line end": lambda other: setex(other, 60, "5\n"),
    "underscore": lambda other: setex(other, 60, "1_0"),
    "decimal": lambda other: setex(other, 60, "5.0"),
    "an Arabic digit": lambda other: setex(other, 60, "٣"),
    "not UTF-8": lambda other: setex(other, 60, b"\xff\xfe"),
    "empty": lambda other: setex(other, 60, ""),
    "19 digits": lambda other: setex(other, 60, "9" * 19),
    "ten megabytes": lambda other: setex(other, 60, "9" * 10_000_000),
    "a list": lambda other: (other.rpush(K, "5"), other.expire(K, 60)),
    "a hash": lambda other: (other.hset(K, "5", "5"), other.expire(K, 60)),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_foreign_nonsense_is_a_miss(one_redis: RedisRig, write: Callable[[Any], object]) -> None:
    """What is no number with a time to live of a minute is not shown, and is replaced."""
    cache = one_redis.cache()
    write(one_redis.client)
    assert cache.peek() is None
    assert cache.keys()
    fill(cache, 6)
    assert shown(cache) == 6


@given(
    value=st.one_of(
        st.integers(0, 10**20).map(lambda n: str(n).encode()),
        st.text("0123456789 -+.e", max_size=20).map(str.encode),
        st.binary(max_size=20),
    ),
    ttl=st.sampled_from([None, 1, 30, 60, 61, 3600]),
    vouch=st.sampled_from(["{value} {home}"] * 3 + [None, "", "5 {home}", "{value}", "{value} 0"]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_believed(
    redis_server: Redis, value: bytes, ttl: int | None, vouch: str | None
) -> None:
    """For any value, vouch and time to live: a hit if and only if the rules say so."""
    redis_server.recover()
    url = redis_server.url(db=7)
    with redis.Redis.from_url(url) as other:
        other.set(K, value)
        other.delete(VOUCH)
        home = other.info("server")["run_id"].encode()
        written = (vouch or "").encode()
        if vouch is not None:
            for name, part in ((b"{value}", value), (b"{home}", home)):
                written = written.replace(name, part)
            other.set(VOUCH, written, ex=ttl)
    cache = RedisCache(configured(url))
    try:
        hit = cache.peek()
    finally:
        cache.close()
    number = bool(re.fullmatch(rb"[0-9]{1,18}", value, re.ASCII)) and not value.endswith(b"\n")
    believed = number and ttl is not None and ttl <= 60 and written == value + b" " + home
    assert (hit is not None) == believed
    if hit:
        assert hit.active == int(value)
        assert 0 <= hit.age <= 60
        assert 0 < hit.expires_in <= 60


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


def test_an_invalidation_deletes_what_is_wrong_and_nothing_else(any_redis: RedisRig) -> None:
    """The count, its lease, the stats and every leaderboard go, on every primary, by SCAN."""
    cache = any_redis.cache()
    populate(any_redis.client, OTHERS | LEADERBOARD | {STATS})
    fill(cache, 1)
    assert cache.lease()
    for node in any_redis.nodes:
        node.ask("CONFIG", "RESETSTAT")
    cache.invalidate(30.0)
    commands = set()
    for node in any_redis.nodes:
        commands |= set(node.ask("INFO", "commandstats"))
    assert any_redis.names() == OTHERS
    assert {"cmdstat_del", "cmdstat_scan", "cmdstat_unlink"} <= commands
    assert not {name for name in commands if re.search("keys|flush|eval|multi", name)}


def test_a_sweep_that_takes_too_long_is_no_delivery(any_redis: RedisRig) -> None:
    """With too small a budget it is an error, and the count is gone and denied all the same."""
    cache = any_redis.cache()
    populate(any_redis.client, OTHERS | LEADERBOARD)
    fill(cache, 1)
    with pytest.raises(StaleCacheError, match="too long"):
        cache.invalidate(0.0)
    setex(any_redis.client, 60, "1")
    assert shown(cache) is None
    cache.invalidate()
    assert any_redis.names() == OTHERS


def test_names_are_configuration(any_redis: RedisRig) -> None:
    """Other names for the count and for what is cleared are used, and the default ones left."""
    cache = any_redis.cache(count_key="app:n", clear=("app:page", "app:[ab]:?", "app:\\*:*"))
    gone = {"app:page", "app:a:1", "app:b:2", "app:*:x", "app:n"}
    kept = {K, STATS, "db:leaderboard:1", "app:c:1", "app:a:10", "app:x:x", "app:pages"}
    populate(any_redis.client, (gone | kept) - {"app:n"})
    fill(cache, 3)
    assert any_redis.client.get("app:n") == "3"
    cache.invalidate()
    assert any_redis.names() == kept


def test_only_three_names_are_ever_written(any_redis: RedisRig) -> None:
    """Whatever the order of the steps, there is nothing but the count, its vouch and lease."""
    cache = any_redis.cache()
    seen = set()
    for step in (cache.lease, cache.invalidate, cache.lease, cache.peek, cache.keys):
        step()
        seen |= any_redis.names()
    any_redis.end_lease()
    fill(cache, 1)
    assert seen | any_redis.names() == {K, LEASE, VOUCH}


def test_a_hit_is_one_round_trip(one_redis: RedisRig) -> None:
    """A hit sends MGET and PTTL in one piece; connecting adds INFO to it, once."""
    fill(one_redis.cache(), 1)
    cache = one_redis.cache()
    one_redis.client.config_resetstat()
    assert cache.peek()
    commands = set(one_redis.client.info("commandstats"))
    assert commands - {"cmdstat_info"} == {
        "cmdstat_config|resetstat",
        "cmdstat_mget",
        "cmdstat_pttl",
    }
    one_redis.client.config_resetstat()
    assert cache.peek()
    # Its own INFO is the other one.
    assert one_redis.client.info("stats")["total_reads_processed"] == 2


def test_changes_at_the_same_time_share_a_sweep(
    one_redis: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep serves everybody who came before it began, and nobody who came later."""
    cache = one_redis.cache()
    sweeping, go_on, came = threading.Event(), threading.Event(), threading.Semaphore(0)
    swept: list[str] = []

    def hook(point: str) -> None:
        if point == "in-sweep":
            swept.append(point)
            if len(swept) == 1:
                sweeping.set()
                assert go_on.wait(30)
        elif point == "after-del" and sweeping.is_set():
            came.release()

    monkeypatch.setattr(crash_points, "hook", hook)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(cache.invalidate)]
        assert sweeping.wait(30)
        one_redis.client.set("db:leaderboard:new", "behind the cursor of the first")
        with pytest.raises(StaleCacheError, match="another sweep takes too long"):
            cache.invalidate(0.0)
        assert came.acquire(timeout=30)
        calls += [pool.submit(cache.invalidate) for _ in range(5)]
        assert all(came.acquire(timeout=30) for _ in range(5))
        assert one_redis.client.exists("db:leaderboard:new")
        go_on.set()
        for call in calls:
            call.result(30)
    assert len(swept) == 2
    assert not one_redis.client.exists("db:leaderboard:new")


def test_long_sweeps_are_not_waited_for(
    one_redis: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a change has no time for two sweeps, it does not wait for that of another."""
    cache = one_redis.cache()
    cache._sweep._last_seconds = 1.1
    done: list[bool] = []

    def hook(point: str) -> None:
        if point == "in-sweep":
            monkeypatch.setattr(crash_points, "hook", None)
            one_redis.client.set("db:leaderboard:new", "behind the cursor of the first")
            with ThreadPoolExecutor(1) as pool:
                pool.submit(cache.invalidate, 2.0).result(30)
            done.append(bool(one_redis.client.exists("db:leaderboard:new")))

    monkeypatch.setattr(crash_points, "hook", hook)
    cache.invalidate()
    assert done == [False]


RACES: dict[str, Callable[[RedisRig], object]] = {
    "lease deleted": lambda rig: rig.client.delete(LEASE),
    "lease expired": lambda rig: rig.client.pexpire(LEASE, 0),
    "taken over": lambda rig: rig.client.set(LEASE, "somebody else", px=10_000),
    "invalidated": lambda rig: rig.cache().invalidate(),
    "wiped": lambda rig: rig.wipe(),
}


@pytest.mark.parametrize("race", RACES.values(), ids=RACES)
def test_the_lease_is_watched_until_the_fill_is_done(
    any_redis: RedisRig, monkeypatch: pytest.MonkeyPatch, race: Callable[[RedisRig], object]
) -> None:
    """Who loses the lease between looking at it and storing the number stores nothing."""
    cache = any_redis.cache()
    token = cache.lease()
    assert token
    reached = []

    def interfere(point: str) -> None:
        if point == "in-fill":
            monkeypatch.setattr(crash_points, "hook", None)
            reached.append(race(any_redis))

    monkeypatch.setattr(crash_points, "hook", interfere)
    cache.fill(token, 1)
    assert reached
    assert any_redis.client.get(K) is None
    assert any_redis.client.get(VOUCH) is None


# Redis: trouble


def fails(
    operation: Callable[[Cache], object],
    url: str,
    error: type[ModelctlError],
    *,
    seconds: float = 2.0,
) -> ModelctlError:
    """Run an operation that must fail like this, soon, and without telling a password."""
    cache = RedisCache(configured(url))
    started = time.monotonic()
    try:
        with pytest.raises(ModelctlError) as caught:
            operation(cache)
    finally:
        cache.close()
    assert time.monotonic() - started < seconds
    assert type(caught.value) is error
    assert "zq7" not in f"{caught.value} {caught.value.hint}"
    return caught.value


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Give the port of a server that says the same to everybody and hangs up."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


SILENT: dict[str, Callable[[], AbstractContextManager[int]]] = {
    "refuses": lambda: nullcontext(servers.refused_port()),
    "is silent": servers.silent_server,
    "hangs up": lambda: answering(b""),
    "hangs up in the middle of a string": lambda: answering(b"*2\r\n$50\r\nabc"),
    "hangs up in the middle of a line": lambda: answering(b":1"),
    "loads its data": lambda: answering(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "is out of connections": lambda: answering(b"-ERR max number of clients reached\r\n"),
    "speaks HTTP": lambda: answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "counts in words": lambda: answering(b":many\r\n"),
}


@every_operation
@pytest.mark.parametrize("trouble", SILENT.values(), ids=SILENT)
def test_a_server_that_does_not_work(
    trouble: Callable[[], AbstractContextManager[int]], operation: Callable[[Cache], object]
) -> None:
    """Whatever is wrong with the server, every operation soon says that the cache is not there."""
    with trouble() as port:
        fails(operation, f"redis://:zq7secret@127.0.0.1:{port}/0", StaleCacheError)


@every_operation
@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
@pytest.mark.parametrize("trouble", ["refuses", "hangs up", "speaks HTTP"])
def test_several_servers_that_do_not_work(
    trouble: str, kind: str, operation: Callable[[Cache], object]
) -> None:
    """The same holds for the nodes of a cluster and for Sentinels."""
    with SILENT[trouble]() as port:
        places = f"127.0.0.1:{port},localhost:{port}"
        url = f"redis+{kind}://:zq7secret@{places}" + ("/main/0" if kind == "sentinel" else "")
        fails(operation, url, StaleCacheError)


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_many_silent_servers_take_no_longer_than_a_second(kind: str) -> None:
    """The time to find out that nobody answers does not grow with the number of addresses."""
    with servers.silent_server() as port, ExitStack() as others:
        for host in range(2, 11):
            others.enter_context(socket.create_server((f"127.0.0.{host}", port)))
        places = ",".join(f"127.0.0.{host}:{port}" for host in range(1, 11))
        url = f"redis+{kind}://{places}" + ("/main" if kind == "sentinel" else "")
        # Half a second for each would be five; the slack is for a busy machine.
        fails(OPERATIONS["peek"], url, StaleCacheError, seconds=3)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    """Run one Redis that wants a password, with users who may do little."""
    with Redis(password=PASSWORD) as server:
        for user in (
            ("nothing", "~*"),
            ("reader", "~*", "+@read", "+info"),
            ("sweepless", "~*", "+@all", "-scan"),
            ("setless", "~*", "+@all", "-set"),
            ("elsewhere", "~app:*", "+@all"),
        ):
            server.ask("ACL", "SETUSER", user[0], "on", ">zq7user", *user[1:])
        yield server


LOGINS = {
    "no password": "",
    "wrong password": ":zq7wrong@",
    "unknown user": "joe:zq7wrong@",
    "no rights": "nothing:zq7user@",
    "other keys": "elsewhere:zq7user@",
}


@every_operation
@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
def test_a_user_who_is_refused(
    guarded: Redis, login: str, operation: Callable[[Cache], object]
) -> None:
    """A wrong password or missing rights are a matter of configuration, in every operation."""
    fails(operation, f"redis://{login}127.0.0.1:{guarded.port}/0", InvalidConfigError)


@pytest.mark.parametrize(
    "url", ["redis+cluster://:zq7wrong@{}", "redis+sentinel://{}/main?sentinel_password=zq7wrong"]
)
def test_a_password_that_several_servers_refuse(guarded: Redis, url: str) -> None:
    """Nodes and Sentinels that refuse the password are told from those that are away."""
    url = url.format(f"127.0.0.1:{guarded.port}")
    fails(OPERATIONS["peek"], url, InvalidConfigError)


def test_rights_that_end_in_the_middle(guarded: Redis) -> None:
    """Without the right to sweep or to store it is a matter of configuration; the DEL is done."""
    with guarded.client() as admin:
        setex(admin, 60, "5")
        url = f"redis://sweepless:zq7user@127.0.0.1:{guarded.port}/0"
        fails(OPERATIONS["invalidate"], url, InvalidConfigError)
        assert admin.get(K) is None
        url = url.replace("sweepless", "setless")
        admin.set(LEASE, f"token {admin.info('server')['run_id']}", px=10_000)
        fails(OPERATIONS["fill"], url, InvalidConfigError)
        assert admin.get(K) is None
        admin.delete(LEASE)
        filler = RedisCache(configured(guarded.url()))
        fill(filler, 5)
        filler.close()
        reader = RedisCache(configured(url.replace("setless", "reader")))
        assert shown(reader) == 5
        with pytest.raises(InvalidConfigError):
            reader.lease()
        reader.close()


def test_a_replica_takes_no_writes(sentinel: RedisGroup) -> None:
    """On a replica every write is refused, and nothing is counted as delivered."""
    replica = sentinel.nodes[1]
    for name in ("lease", "invalidate"):
        told = fails(OPERATIONS[name], replica.url(), StaleCacheError)
        assert "read only" in told.message


def test_out_of_memory() -> None:
    """A full Redis stores no number and takes no lease, and an invalidation is delivered."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        cache = RedisCache(configured(server.url()))
        fill(cache, 1)
        token = cache.lease()
        assert token
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert shown(cache) == 1
        with pytest.raises(StaleCacheError, match="memory"):
            cache.fill(token, 2)
        assert shown(cache) == 1
        cache.invalidate(2.0)
        assert shown(cache) is None
        with pytest.raises(StaleCacheError, match="memory"):
            cache.lease()
        cache.fill(token, 3)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert shown(cache) is None
        cache.invalidate(2.0)
        cache.close()


def test_an_invalidation_that_breaks_off(
    one_redis: RedisRig, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies after any of its steps makes an invalidation an error."""
    for point in ("after-del", "in-sweep"):
        redis_server.recover()
        populate(one_redis.client, LEADERBOARD | OTHERS)  # several pages
        cache = one_redis.cache()
        fill(cache, 1)

        def die(reached: str, point: str = point) -> None:
            if reached == point:
                redis_server.kill()

        monkeypatch.setattr(crash_points, "hook", die)
        with pytest.raises(StaleCacheError):
            cache.invalidate(2.0)
        monkeypatch.setattr(crash_points, "hook", None)


def test_a_restart_costs_nothing_and_an_absence_one_error(
    one_redis: RedisRig, redis_server: Redis
) -> None:
    """A cache in a long-lived process notices a restart itself, and comes back after an absence."""
    cache = one_redis.cache()
    fill(cache, 1)
    redis_server.kill()
    redis_server.start()
    assert cache.peek() is None
    fill(cache, 2)
    redis_server.kill()
    for operation in OPERATIONS.values():
        with pytest.raises(StaleCacheError):
            operation(cache)
    redis_server.start()
    fill(cache, 3)
    assert shown(cache) == 3


def test_a_late_reply_is_nobody_elses(
    one_redis: RedisRig, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server answers after we gave up waiting is not taken for the next answer."""
    monkeypatch.setattr("modelctl.count.redis_link.SKIP_SECONDS", (0.0, 0.0))
    cache = one_redis.cache()
    fill(cache, 1)
    redis_server.pause()
    for name in ("peek", "lease"):
        with pytest.raises(StaleCacheError):
            OPERATIONS[name](cache)
    redis_server.resume()
    one_redis.client.delete(LEASE)  # that of the request which was sent and not waited for
    fill(one_redis.cache(), 2)
    assert [shown(cache) for _ in range(3)] == [2, 2, 2]


# Redis: clusters


def slot_owner(client: Any, nodes: list[Redis], key: str) -> tuple[int, Redis]:
    """Return the slot of a key and the node that holds it."""
    port = client.get_node_from_key(key).port
    return client.keyslot(key), next(node for node in nodes if node.port == port)


def move_slot(slot: int, source: Redis, target: Redis, nodes: list[Redis]) -> None:
    """Give an empty slot to another node."""
    ids = [node.ask("CLUSTER", "MYID") for node in (source, target)]
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    for node in dict.fromkeys([target, source, *nodes]):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@every_operation
def test_a_moved_slot_costs_one_error_at_most(
    request: pytest.FixtureRequest, operation: Callable[[Cache], object]
) -> None:
    """When the count moves to another node, the call after the next works and is right."""
    with redis_rig("cluster", request) as rig:
        cache = rig.cache()
        assert cache.peek() is None
        slot, source = slot_owner(rig.client, rig.nodes, K)
        target = next(node for node in rig.nodes if node is not source)
        move_slot(slot, source, target, rig.nodes)
        with suppress(StaleCacheError):
            operation(cache)
        operation(cache)
        cache.invalidate(2.0)
        fill(cache, 5)
        assert shown(cache) == 5
        assert shown(rig.cache()) == 5


def test_a_cluster_node_that_restarts(request: pytest.FixtureRequest) -> None:
    """While the count's node is away every call fails soon; when it is back, the cache is too."""
    with redis_rig("cluster", request) as rig:
        cache = rig.cache()
        fill(cache, 1)
        _, home = slot_owner(rig.client, rig.nodes, K)
        home.kill()
        try:
            started = time.monotonic()
            for _ in range(2):
                with pytest.raises(StaleCacheError):
                    cache.peek()
            assert time.monotonic() - started < 2
        finally:
            home.start()
            assert isinstance(home, _ClusterNode)
            within(20, lambda: all(n.knows_everyone(3) for n in rig.nodes))  # type: ignore[attr-defined]
        with suppress(StaleCacheError):
            cache.peek()
        fill(cache, 2)
        assert shown(cache) == 2


def test_a_cluster_node_that_joins_is_swept() -> None:
    """A long-lived process clears the keys of a primary that it has not heard of yet."""
    with servers.redis_cluster(2) as group, _ClusterNode() as late:
        cache = RedisCache(configured(group.url))
        cache.invalidate(2.0)
        late.ask("CLUSTER", "SET-CONFIG-EPOCH", 9)
        late.ask("CLUSTER", "MEET", "127.0.0.1", group.nodes[0].port, group.nodes[0].bus_port)  # type: ignore[attr-defined]
        nodes: list[Any] = [*group.nodes, late]
        within(20, lambda: all(node.knows_everyone(3) for node in nodes))
        with RedisCluster(host="127.0.0.1", port=nodes[0].port) as client:
            slot, source = slot_owner(client, nodes, "db:leaderboard:late")
        move_slot(slot, source, late, nodes)
        late.ask("SET", "db:leaderboard:late", "x")
        within(20, lambda: all(node.knows_everyone(3) for node in nodes))
        cache.invalidate(2.0)
        assert late.ask("DBSIZE") == 0
        cache.close()


# Redis: URLs


def test_a_password_a_database_and_a_socket_in_the_url(guarded: Redis) -> None:
    """A percent-encoded password and a database number work, over TCP and a unix socket."""
    guarded.ask("FLUSHALL")
    password = quote(PASSWORD, safe="")
    socket_path = quote(str(guarded.folder / "socket"))
    for number, url in enumerate(
        [
            f"redis://:{password}@127.0.0.1:{guarded.port}/3",
            f"redis://default:{password}@127.0.0.1:{guarded.port}/3",
            f"redis://127.0.0.1:{guarded.port}?db=3&password={password}",
            f"unix://{socket_path}?db=3&password={password}",
        ]
    ):
        cache = RedisCache(configured(url))
        cache.invalidate()
        fill(cache, number)
        cache.close()
        with guarded.client() as admin:
            assert admin.get(K) is None
            admin.select(3)
            assert admin.get(K) == str(number)


# These are refused before anybody connects, so the port is no more than a number.
REFUSED_PARAMETERS = {
    "redis://127.0.0.1:1?db=abc": "db",
    "unix:///nowhere?db=x&password=zq7secret": "db",
    "redis+sentinel://127.0.0.1:1/main?db=x": "db",
    "redis://127.0.0.1:1?decode_responses=true": "decode_responses",
    "redis://127.0.0.1:1?protocol=3": "protocol",
    "redis://127.0.0.1:1?nonsense=1": "nonsense",
    "redis://127.0.0.1:1?ssl_ca_certs=/ca.pem": "ssl_ca_certs",
    "redis+cluster://127.0.0.1:1?nonsense=1": "nonsense",
    "redis+cluster://127.0.0.1:1?sentinel_password=zq7": "sentinel_password",
}


@pytest.mark.parametrize(("url", "name"), REFUSED_PARAMETERS.items())
def test_a_url_parameter_that_makes_no_sense(url: str, name: str) -> None:
    """It is refused when the configuration is loaded, and the message names it."""
    with pytest.raises(InvalidConfigError, match=f"'{name}'") as caught:
        Config.load(environ={"MODELCTL_DATABASE_URL": "postgresql://h", "MODELCTL_REDIS_URL": url})
    assert "zq7" not in caught.value.message


ACCEPTED = (
    "redis://127.0.0.1:{}?socket_timeout=0.2&socket_connect_timeout=0.2&db=1",
    "rediss://127.0.0.1:{}?{tls}",
    "rediss+cluster://user:zq7@127.0.0.1:{}?{tls}",
    "rediss+sentinel://user:zq7@127.0.0.1:{}/main/0?{tls}&sentinel_username=a&sentinel_password=b",
)
TLS = (
    "ssl_ca_certs=/ca.pem&ssl_certfile=/me.pem&ssl_keyfile=/me.key&ssl_password=zq7"
    "&ssl_cert_reqs=required&ssl_check_hostname=true&ssl_ca_path=/ca&ssl_min_version=771"
)


@pytest.mark.parametrize("url", ACCEPTED)
def test_url_parameters_reach_the_driver(url: str) -> None:
    """Every parameter that we let pass is one that the driver takes, for each kind of server."""
    fails(OPERATIONS["peek"], url.format(servers.refused_port(), tls=TLS), StaleCacheError)


# SQLite


def test_any_change_of_status_takes_the_count_and_the_lease(sqlite_rig: SqliteRig) -> None:
    """Another program's SQL empties the cache in its own transaction; other updates do not."""
    cache = sqlite_rig.cache()
    for sql in (
        "INSERT INTO models (id) VALUES ('a'), ('b')",
        "UPDATE models SET active = 0 WHERE id = 'a'",
        "UPDATE models SET id = 'c' WHERE id = 'a'",
        "DELETE FROM models WHERE id = 'b'",
        "REPLACE INTO models (id) VALUES ('c')",
    ):
        fill(cache, 1)
        sqlite_rig.execute(sql)
        assert shown(cache) is None, sql
    for active in (0, 1):
        token = cache.lease()
        assert token
        sqlite_rig.execute(f"UPDATE models SET active = {active}")
        cache.fill(token, 9)
        assert shown(cache) is None
    fill(cache, 1)
    sqlite_rig.execute("UPDATE models SET success_count = success_count + 1, active = active")
    assert shown(cache) == 1


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_was_set_makes_a_miss(sqlite_rig: SqliteRig, seconds: int) -> None:
    """A value that is too old or comes from the future is not shown; nor does such a lease block."""
    cache = sqlite_rig.cache()
    fill(cache, 1)
    shift = f"UPDATE modelctl_cache SET expires_at = expires_at + {seconds}"
    sqlite_rig.execute(shift)
    assert cache.peek() is None
    assert cache.lease()
    sqlite_rig.execute(shift)
    fill(cache, 2)
    assert shown(cache) == 2


def test_a_long_write_stops_no_reader(sqlite_rig: SqliteRig) -> None:
    """While somebody writes, the cached count is shown and a fill is soon given up."""
    cache = sqlite_rig.cache()
    fill(cache, 1)
    with closing(sqlite3.connect(sqlite_rig.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert shown(cache) == 1
        assert cache.lease() is None
        cache.fill("token", 2)
        assert time.monotonic() - started < 2
        writer.execute("ROLLBACK")
    assert shown(cache) == 1


def test_a_locked_file_is_waited_for(sqlite_rig: SqliteRig) -> None:
    """In a file without a write-ahead log a reader waits for a writer's last moment."""
    sqlite_rig.execute("PRAGMA journal_mode = DELETE")
    cache = sqlite_rig.cache()
    fill(cache, 1)
    writer = sqlite3.connect(sqlite_rig.path, isolation_level=None, check_same_thread=False)
    with closing(writer):
        writer.execute("BEGIN EXCLUSIVE")
        assert cache.lease() is None
        timer = threading.Timer(0.4, writer.execute, ["ROLLBACK"])
        timer.start()
        assert shown(cache) == 1
        timer.join()


FILES: dict[str, tuple[Callable[[Path], object], type[ModelctlError]]] = {
    "missing": (lambda path: None, MissingSchemaError),
    "empty": (lambda path: path.touch(), MissingSchemaError),
    "a folder": (lambda path: path.mkdir(), InvalidConfigError),
    "no database": (lambda path: path.write_text("hello" * 1000), InvalidConfigError),
}


@every_operation
@pytest.mark.parametrize(("make", "error"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_database_of_ours(
    tmp_path: Path,
    operation: Callable[[Cache], object],
    make: Callable[[Path], object],
    error: type[ModelctlError],
) -> None:
    """Every operation says what is wrong with the file; nothing is created."""
    path = tmp_path / "models.db"
    make(path)
    cache = SqliteCache(Config(database=DatabaseConfig(f"sqlite:///{path}")))
    if error is InvalidConfigError and operation in (OPERATIONS["lease"], OPERATIONS["fill"]):
        # A fill is not needed; whoever counts is told.
        assert not operation(cache)
        return
    with pytest.raises(error):
        operation(cache)
    assert path.exists() or error is MissingSchemaError
