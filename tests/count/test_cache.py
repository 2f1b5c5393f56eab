"""What every cache of a count does, on every kind of Redis that a URL can name and on SQLite."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelctl import crash_points
from modelctl.count.cache import Hit, Miss, NullCache
from modelctl.count.protocol import open_cache, read
from modelctl.errors import StaleCacheError
from tests.count.rigs import OPERATIONS, RedisRig, SqliteRig, configured, fill, shown
from tests.world import KEY, LEASE, STATS, VOUCH

# The kinds of cache


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
    """A reader whose lease expired stores nothing; the reader that holds the lease now does."""
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
        # Only the next lease ends it there: until then no other reader has got a number.
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
    """After an invalidation there is no value until the next fill; a second invalidation is harmless."""
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
    """On Redis a reader without the lease waits for the number of the lease holder; on SQLite it counts."""
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
    """Eight threads read through one cache, also with fewer connections than threads."""
    fill(rig.cache(), 42)
    cache = rig.cache(pool_size=pool_size) if rig.name != "sqlite" else rig.cache()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shown(cache), range(200)))
    assert found == [42] * 200


def test_too_few_connections_are_said(one_redis: RedisRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that gets no connection for half a second fails with that reason; the next call gets one."""
    cache = one_redis.cache(pool_size=1, timeout=0.5)
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
    config = rig.config()
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
    value = keys[KEY if rig.name != "sqlite" else "count:active"]
    assert value.value == "42"
    assert value.expires_in_seconds is not None
    assert 50 < value.expires_in_seconds <= 60
    if rig.name != "sqlite":
        assert set(keys) == {KEY, LEASE, VOUCH, STATS}
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
    """Without Redis there is no lease and no value, and nothing fails."""
    cache = open_cache(configured(""))
    assert isinstance(cache, NullCache)
    assert cache.name == "off"
    for operation in OPERATIONS.values():
        assert not operation(cache)
    assert read(cache) == Miss(None)
    cache.close()
