"""Fixtures of the tests of the count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.count.rigs import PASSWORD, RedisRig, SqliteRig, redis_rig
from tests.servers import Redis, RedisGroup


@pytest.fixture(scope="session")
def cluster() -> Iterator[RedisGroup]:
    """Run one cluster for all tests of the count."""
    with servers.redis_cluster() as group:
        yield group


@pytest.fixture(scope="session")
def sentinel() -> Iterator[RedisGroup]:
    """Run one master with its Sentinels for all tests of the count."""
    with servers.redis_sentinel() as group:
        yield group


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


@pytest.fixture(scope="session")
def guarded() -> Iterator[Redis]:
    """Run one Redis with a password and with users of few rights."""
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
