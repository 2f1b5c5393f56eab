"""The protocol of the count in Redis, on one server, with Sentinels and in a cluster."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.cluster import RedisCluster

from modelctl import crash_points
from modelctl.config.config import Config
from modelctl.count.cache import Cache
from modelctl.count.redis import RedisCache
from modelctl.errors import InvalidConfigError, StaleCacheError
from tests import servers
from tests.count.rigs import (
    LEADERBOARD,
    OPERATIONS,
    OTHERS,
    PASSWORD,
    RedisRig,
    configured,
    every_operation,
    fails,
    fill,
    populate,
    redis_rig,
    setex,
    shown,
)
from tests.servers import Redis, _ClusterNode
from tests.waiting import at_most
from tests.world import KEY, LEASE, STATS, VOUCH

# The kinds of cache


@pytest.fixture(params=["standalone", "cluster", "sentinel"])
def any_redis(request: pytest.FixtureRequest) -> Iterator[RedisRig]:
    """Give an empty Redis of each kind in turn."""
    with redis_rig(request.param, request) as rig:
        yield rig


# Redis: the protocol


def test_the_value_is_a_plain_string_that_others_read(any_redis: RedisRig) -> None:
    """KEY holds the decimal number, for at most a minute, and a fill leaves nothing but KEY and its vouch."""
    fill(any_redis.cache(), 42)
    assert any_redis.client.get(KEY) == "42"
    assert 50_000 < any_redis.client.pttl(KEY) <= 60_000
    assert any_redis.names() == {KEY, VOUCH}


def test_the_vouch_of_a_fill(any_redis: RedisRig) -> None:
    """The vouch names the number and the server, and lives as long as the number."""
    cache = any_redis.cache()
    fill(cache, 42)
    assert any_redis.client.get(VOUCH) == f"42 {cache.server_id()}"
    assert re.fullmatch("[0-9a-f]{40}", cache.server_id())
    assert 50_000 < any_redis.client.pttl(VOUCH) <= 60_000
    cache.forget()
    assert any_redis.names() == set()


def test_only_what_was_vouched_for_is_believed(any_redis: RedisRig) -> None:
    """A number of another program is a miss, unless modelctl stored the same number itself."""
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
    other.delete(KEY)
    assert shown(cache) is None


@pytest.mark.parametrize("key", [KEY, VOUCH])
def test_the_number_or_the_vouch_alone_is_a_miss(any_redis: RedisRig, key: str) -> None:
    """Redis may evict the number or its vouch; the other alone is not believed."""
    cache = any_redis.cache()
    fill(cache, 7)
    any_redis.client.delete(key)
    assert shown(cache) is None


def test_another_server_does_not_vouch() -> None:
    """After a restart from a snapshot neither the number nor its vouch nor the lease is valid."""
    with Redis() as server:
        cache = RedisCache(configured(server.url()))
        fill(cache, 7)
        late = cache.lease()
        assert late
        server.ask("SAVE")
        server.kill()
        server.start()
        with server.client() as client:
            assert client.mget(KEY, LEASE) == ["7", late]
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
        assert cache.server_id() == ""
        fill(cache, 7)
        with server.client() as client:
            assert client.mget(KEY, VOUCH) == ["7", "7"]
        assert shown(cache) == 7
        cache.close()
        other = RedisCache(configured(server.url()))
        assert shown(other) is None
        other.close()


FOREIGN: dict[str, Callable[[Any], object]] = {
    "no TTL": lambda other: other.set(KEY, "5"),
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
    "a list": lambda other: (other.rpush(KEY, "5"), other.expire(KEY, 60)),
    "a hash": lambda other: (other.hset(KEY, "5", "5"), other.expire(KEY, 60)),
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
        other.set(KEY, value)
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
    """A sweep that exceeds its time is an error; the count is invalidated nevertheless."""
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
    """Configured names for the count and the swept keys are used, and the default names are left alone."""
    cache = any_redis.cache(count_key="app:n", clear=("app:page", "app:[ab]:?", "app:\\*:*"))
    gone = {"app:page", "app:a:1", "app:b:2", "app:*:x", "app:n"}
    kept = {KEY, STATS, "db:leaderboard:1", "app:c:1", "app:a:10", "app:x:x", "app:pages"}
    populate(any_redis.client, (gone | kept) - {"app:n"})
    fill(cache, 3)
    assert any_redis.client.get("app:n") == "3"
    cache.invalidate()
    assert any_redis.names() == kept


def test_only_three_names_are_ever_written(any_redis: RedisRig) -> None:
    """Whatever the order of the steps, only the count, its vouch and its lease are written."""
    cache = any_redis.cache()
    seen = set()
    for step in (cache.lease, cache.invalidate, cache.lease, cache.peek, cache.keys):
        step()
        seen |= any_redis.names()
    any_redis.end_lease()
    fill(cache, 1)
    assert seen | any_redis.names() == {KEY, LEASE, VOUCH}


def test_a_hit_is_one_round_trip(one_redis: RedisRig) -> None:
    """A hit sends MGET and PTTL in one write; the first use of a connection adds INFO."""
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
    """A sweep serves all changes that came before it began, and no later change."""
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
    """A reader that loses the lease between its check and its fill stores nothing."""
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
    assert any_redis.client.get(KEY) is None
    assert any_redis.client.get(VOUCH) is None


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
        slot, source = slot_owner(rig.client, rig.nodes, KEY)
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
        _, home = slot_owner(rig.client, rig.nodes, KEY)
        home.kill()
        try:
            with at_most(2):
                for _ in range(2):
                    with pytest.raises(StaleCacheError):
                        cache.peek()
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
            assert admin.get(KEY) is None
            admin.select(3)
            assert admin.get(KEY) == str(number)


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
    """A wrong parameter is refused when the configuration is loaded, and the message names it."""
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
    """The driver accepts every parameter that modelctl accepts, for each kind of server."""
    fails(OPERATIONS["peek"], url.format(servers.refused_port(), tls=TLS), StaleCacheError)
