"""Redis breaks at any step of a count or a change: the count stays right, the change is delivered or queued."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from modelctl import StaleCacheError, crash_points
from modelctl.count.results import Count
from modelctl.model import CacheState
from tests import servers
from tests.faults.relays import BOARD, ENDS, RelayedWorld
from tests.fleets import opened
from tests.servers import Redis
from tests.waiting import at_most
from tests.world import KEY, LEASE, STATS, VOUCH


def names(requests: list[bytes]) -> str:
    """Return the names of the commands, without INFO, which each connection asks once."""
    words = (request.split(b"\r\n")[2] for request in requests)
    return b" ".join(word for word in words if word != b"INFO").decode()


ANSWERS: dict[str, bytes] = {
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "WRONGTYPE": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
}
REFUSALS: dict[str, bytes] = {
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "WRONGPASS": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    "NOPERM": b"-NOPERM User default has no permissions to run this command\r\n",
}
FAULTS: dict[str, str | bytes] = {**ENDS, **ANSWERS, **REFUSALS}
any_fault = pytest.mark.parametrize("how", FAULTS.values(), ids=FAULTS)
# What a count asks of Redis: with the number there, without, and with a change not delivered.
FILL = "WATCH GET MULTI SET SET DEL EXEC"
COUNTS = {
    "hit": "MGET PTTL",
    "miss": f"MGET PTTL SET {FILL}",
    "owes": f"MGET PTTL SET DEL SET {FILL}",
}
CHANGE = "DEL DEL SCAN UNLINK"


@any_fault
@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_with_a_fault_at_any_step(world: RelayedWorld, kind: str, how: str | bytes) -> None:
    """The count is right with one warning, and Redis is not asked again."""

    def prepare() -> None:
        world.renew()
        if kind != "hit":
            world.redis.delete(KEY)
        if kind == "owes":
            world.sql("UPDATE models SET active = FALSE WHERE id = 'm4'")

    prepare()
    active = world.truth
    assert world.fleet.count().active == active
    assert names(world.to_redis.requests) == COUNTS[kind]
    steps = ["INFO", *COUNTS[kind].split()]
    for step in range(len(steps)):
        prepare()
        world.fleet.close()
        world.to_redis.break_at(step, how, once=False)
        with at_most(1.5):
            assert world.fleet.count().active == active
        (warning,) = world.warnings
        assert "counted from the database" in warning
        assert ("refuses this user" in warning) == (how in REFUSALS.values())
        assert len(world.to_redis.requests) <= len(steps)
        world.to_redis.heal()
        world.warnings.clear()
        world.assert_right()
        assert not world.warnings


@any_fault
def test_a_change_with_a_fault_at_any_step(
    world: RelayedWorld, how: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change retries after one fault and is queued after a lasting fault; a refusal is not retried."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    refused = how in REFUSALS.values()
    world.renew()
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    assert names(world.to_redis.requests) == CHANGE
    for step in range(len(CHANGE.split())):
        for once in (True, False):
            world.renew()
            world.to_redis.break_at(step, how, once=once)
            with monkeypatch.context() as patch:
                if not once:
                    patch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.02)
                result = world.fleet.disable("m1", "m2")
            assert [change.changed for change in result.changes] == [True, True]
            asked = len(world.to_redis.requests)
            world.to_redis.heal()
            if once and not refused:
                assert result.cache == CacheState.INVALIDATED
                assert not world.warnings
            else:
                assert result.cache == CacheState.QUEUED
                (warning,) = world.warnings
                assert "queued" in warning
                assert ("refuses this user" in warning) == refused
                assert not refused or asked == step + 1
                assert world.queue == (1, 0)
                assert world.fleet.drain().cache == CacheState.INVALIDATED
            world.assert_delivered()


# What an administrator does to a server, how it is undone, and what the URL says of the user.
NOBODY = servers.refused_port()
STATES: dict[str, tuple[list[str], list[str], str]] = {
    "read only": ([f"REPLICAOF 127.0.0.1 {NOBODY}"], ["REPLICAOF NO ONE"], ""),
    "Link with MASTER is down": (
        ["CONFIG SET replica-serve-stale-data no", f"REPLICAOF 127.0.0.1 {NOBODY}"],
        ["REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"],
        "",
    ),
    "good replicas": (
        ["CONFIG SET min-replicas-to-write 1"],
        ["CONFIG SET min-replicas-to-write 0"],
        "",
    ),
}
DENIED: dict[str, tuple[list[str], list[str], str]] = {
    "no password": (["CONFIG SET requirepass zq7"], [], ""),
    "wrong password": (["CONFIG SET requirepass zq7"], [], ":zq7wrong@"),
    "a password too many": ([], [], ":zq7wrong@"),
    "unknown user": ([], [], "joe:zq7wrong@"),
    "no rights": (["ACL SETUSER default -@all"], [], ""),
    "other keys": (["ACL SETUSER default resetkeys ~app:*"], [], ""),
}
MEND = ["CONFIG SET requirepass ''", "ACL SETUSER default on nopass ~* &* +@all"]


@contextmanager
def in_state(world: RelayedWorld, commands: list[str], mend: list[str]) -> Iterator[None]:
    """Let an administrator do something, and undo it."""
    ask: Any = world.redis.execute_command
    for command in commands:
        ask(*command.split())
    try:
        yield
    finally:
        for command in mend:
            ask(*(word.strip("'") for word in command.split()))


@pytest.mark.parametrize("state", STATES | DENIED)
def test_a_redis_that_refuses_or_fails_commands(
    world: RelayedWorld, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts come from the database with a warning, changes queue and are delivered afterwards."""
    commands, mend, login = (STATES | DENIED)[state]
    fleet = world.open(login)
    monkeypatch.setattr("random.uniform", lambda *_: 0.001)
    world.redis.delete(KEY)
    with in_state(world, commands, mend or MEND):
        assert fleet.count() == Count(5, "database", 0.0, None)
        asked = names(world.to_redis.requests)
        (warning,) = world.warnings
        assert "counted from the database" in warning
        assert "zq7" not in warning
        world.to_redis.requests.clear()
        with monkeypatch.context() as patch:
            patch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.2)
            assert fleet.disable("m1").cache == CacheState.QUEUED
        tried = names(world.to_redis.requests)
        (_, warning) = world.warnings
        assert "queued" in warning
        if state in DENIED:
            assert "refuses this user" in warning
            assert asked == ("AUTH MGET PTTL" if login else "MGET PTTL")
            # One attempt. Redis refuses the INFO in front of the DEL, and we may hang up before that.
            assert tried.removesuffix("DEL").strip() == ("AUTH" if login else "")
        else:
            assert state in str(world.warnings)
            assert tried.split().count("DEL") > 1
        assert world.queue == (1, 0)
    fleet.close()
    assert world.fleet.drain().cache == CacheState.INVALIDATED
    world.assert_delivered()


@pytest.mark.parametrize(
    "command", ["MGET", "PTTL", "SET", "WATCH", "GET", "DEL", "SCAN", "UNLINK"]
)
def test_a_missing_right_is_wrong_configuration(world: RelayedWorld, command: str) -> None:
    """A missing right in Redis is named as wrong configuration, and a change does not retry."""
    world.redis.delete(KEY)
    with in_state(world, [f"ACL SETUSER default -{command.lower()}"], MEND):
        assert world.fleet.count().active == 5
        world.to_redis.requests.clear()
        queued = world.fleet.disable("m1", "m2").cache == CacheState.QUEUED
        assert queued == (command in CHANGE.split())
        tried = names(world.to_redis.requests)
        assert CHANGE.startswith(tried)
        assert world.fleet.count().active == 3
        assert world.warnings
        for warning in world.warnings:
            assert f"'{command.lower()}'" in warning
            assert "refuses this user" in warning
    world.fleet.close()
    world.redis.flushall()
    world.assert_right()


def test_a_redis_that_loads(world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it reads its file counts work and changes queue; then the same fleet delivers."""
    # A second for 1,000 keys; it answers after each kilobyte.
    slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    slow += ["--enable-debug-command", "local"]
    monkeypatch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.1)
    with Redis(*slow) as server, opened(world.database, redis_url=server.url()) as fleet:
        fleet.on_warning = world.warnings.append
        assert fleet.count().active == 5
        server.ask("DEBUG", "POPULATE", 1000)
        server.ask("SAVE")
        server.kill()
        server.start()
        assert fleet.count() == Count(5, "database", 0.0, None)
        assert fleet.disable("m1").cache == CacheState.QUEUED
        assert [("loading" in warning) for warning in world.warnings] == [True, True]
        deadline = time.monotonic() + 30
        while world.queue == (1, 0):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            with suppress(StaleCacheError):
                fleet.drain()
        assert world.queue == (0, 1)
        assert [fleet.count().source for _ in range(2)] == ["database", "cache"]


# Values of any kind where a count is expected, written by another program.
VALUES: dict[str, list[list[str]]] = {
    "a word": [["SET", "{}", "abc", "EX", "50"]],
    "negative": [["SET", "{}", "-5", "EX", "50"]],
    "a list": [["RPUSH", "{}", "1"], ["EXPIRE", "{}", "50"]],
    "a hash": [["HSET", "{}", "1", "2"], ["EXPIRE", "{}", "50"]],
    "ten megabytes": [["SETRANGE", "{}", "10000000", "9"], ["EXPIRE", "{}", "50"]],
    "for ever": [["SET", "{}", "77"]],
}


@pytest.mark.parametrize("key", [KEY, VOUCH, STATS, BOARD])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_other_kinds(world: RelayedWorld, key: str, value: list[list[str]]) -> None:
    """A value of another type is not a count, and is replaced or deleted as a count would be."""

    def store() -> None:
        world.redis.delete(key)
        for command in value:
            world.redis.execute_command(*(word.format(key) for word in command))

    store()
    for _ in range(2):
        assert world.fleet.count().active == 5
    store()
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()
    store()
    assert world.fleet.count(fresh=True).active == 4
    assert not world.warnings


def test_a_list_in_place_of_the_lease(world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in its place costs the fill: the number is right, and a change ends it."""
    world.redis.delete(KEY)

    def spoil(point: str) -> None:
        if point == "after-snapshot":
            world.redis.delete(LEASE)
            world.redis.rpush(LEASE, "x")

    monkeypatch.setattr(crash_points, "hook", spoil)
    assert world.fleet.count().active == 5
    (warning,) = world.warnings
    assert "WRONGTYPE" in warning
    monkeypatch.setattr(crash_points, "hook", None)
    assert world.fleet.count().source == "database"
    assert world.fleet.disable("m1").cache == CacheState.INVALIDATED
    world.assert_delivered()
