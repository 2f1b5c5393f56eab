"""Where Redis tells of changes, a remembered count ends with any process's invalidation."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress

import pytest
import redis

from modelctl import Fleet
from modelctl.memory import listener
from tests import ROOT
from tests.count.rigs import configured
from tests.fleets import opened, seed, sql
from tests.servers import Redis, RedisGroup, redis_cluster, redis_sentinel
from tests.waiting import until
from tests.world import KEY

IDS = [f"m{number}" for number in range(8)]
LONG = 3000.0


@pytest.fixture
def server() -> Iterator[Redis]:
    """Run a Redis for this test alone."""
    with Redis() as server:
        yield server


@pytest.fixture
def fleet(server: Redis, pg_cleared: str) -> Iterator[Fleet]:
    """Give a fleet whose count is remembered, and listened for."""
    with opened(pg_cleared, redis_url=server.url(), cache_ttl="1h") as fleet:
        seed(fleet, IDS)
        yield fleet


def clients(server: Redis) -> list[str]:
    """Return a line for each connection that is told of changes."""
    return [line for line in str(server.ask("CLIENT", "LIST")).splitlines() if "flags=tB" in line]


def threads() -> list[str]:
    """Return the names of the listeners' threads."""
    return [thread.name for thread in threading.enumerate() if thread.name == "modelctl-count"]


def remember(fleet: Fleet, server: Redis) -> None:
    """Return when the count is remembered and nothing more is heard of how it was stored."""
    until(lambda: len(clients(server)) == 1)

    def settled() -> bool:
        fleet.count(max_age=LONG)
        time.sleep(0.05)
        return fleet.count(max_age=LONG).source == "memory"

    fleet.count(max_age=LONG)
    until(settled)


def change_of_another_process(url: str, server: Redis, model_id: str) -> None:
    """Switch a model off, and invalidate as modelctl does, without this process hearing of it."""
    sql(url, "UPDATE models SET active = false WHERE id = ?", model_id)
    server.ask("DEL", KEY, f"{{{KEY}}}:vouch", f"{{{KEY}}}:lease")


INVALIDATIONS: dict[str, tuple[str, ...]] = {
    "modelctl": ("DEL", KEY, f"{{{KEY}}}:vouch", f"{{{KEY}}}:lease"),
    "another program": ("DEL", KEY),
    "a lease": ("SET", f"{{{KEY}}}:lease", "x"),
    "another number": ("SETEX", KEY, "60", "3"),
    "expiry": ("PEXPIRE", KEY, "1"),
    "everything": ("FLUSHALL",),
}


def test_an_invalidation_by_anybody_is_heard_at_once(
    fleet: Fleet, server: Redis, pg_cleared: str
) -> None:
    """However the count's keys in Redis go or change, the memory is empty a moment later."""
    fleet.count(max_age=LONG)
    for number, command in enumerate(INVALIDATIONS.values()):
        remember(fleet, server)
        sql(pg_cleared, "UPDATE models SET active = false WHERE id = ?", f"m{number}")
        server.ask(*command)
        until(lambda: fleet.count(max_age=LONG).source != "memory", seconds=10)


def test_a_change_of_another_process_shows_at_once(
    fleet: Fleet, server: Redis, pg_cleared: str
) -> None:
    """The number is that after the change, although max_age is an hour."""
    fleet.count(max_age=LONG)
    remember(fleet, server)
    change_of_another_process(pg_cleared, server, "m0")
    until(lambda: fleet.count(max_age=LONG).active == 7, seconds=10)


def test_a_lost_connection_empties_the_memory(
    fleet: Fleet, server: Redis, pg_cleared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was invalidated meanwhile was not heard; the listener connects again and goes on."""
    monkeypatch.setattr(listener, "_FIRST_PAUSE", 0.01)
    fleet.count(max_age=LONG)
    remember(fleet, server)
    sql(pg_cleared, "UPDATE models SET active = false WHERE id = 'm0'")
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    until(lambda: fleet.count(max_age=LONG).source != "memory", seconds=10)
    remember(fleet, server)
    change_of_another_process(pg_cleared, server, "m1")
    until(lambda: fleet.count(max_age=LONG).active == 6, seconds=10)


def test_a_silent_connection_is_found(
    fleet: Fleet, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while without changes the server is asked; if it does not answer, the memory is emptied."""
    monkeypatch.setattr("modelctl.redis_client.servers._QUIET_SECONDS", 0.2)
    forgot = threading.Event()
    monkeypatch.setattr("modelctl.memory.memory.forget", forgot.set)
    fleet.count(max_age=LONG)
    until(lambda: len(clients(server)) == 1)
    time.sleep(0.5)  # it is asked, and answers
    assert len(clients(server)) == 1
    server.pause()
    try:
        forgot.clear()
        assert forgot.wait(10)
    finally:
        server.resume()


def test_it_starts_with_max_age_and_ends_with_close(fleet: Fleet, server: Redis) -> None:
    """A plain count starts no thread; after close there is none, and no connection."""
    fleet.count()
    assert (threads(), clients(server)) == ([], [])
    fleet.count(max_age=1.0)
    until(lambda: len(clients(server)) == 1)
    assert threads() == ["modelctl-count"]
    fleet.close()
    assert threads() == []
    until(lambda: clients(server) == [])
    fleet.count(max_age=1.0)
    until(lambda: len(clients(server)) == 1)


def test_it_takes_no_connection_of_the_pool(server: Redis, pg_cleared: str) -> None:
    """With a pool of one, counts and changes go on beside it."""
    with opened(pg_cleared, redis_url=server.url(), redis_pool_size=1) as fleet:
        seed(fleet, IDS)
        fleet.count(max_age=LONG)
        until(lambda: len(clients(server)) == 1)
        assert fleet.disable("m0").cache == "invalidated"
        assert fleet.count(max_age=LONG).active == 7


def test_a_fleet_that_is_dropped_ends_its_thread(
    server: Redis, pg_cleared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without close: the thread sees that nobody uses it."""
    monkeypatch.setattr("modelctl.redis_client.servers._QUIET_SECONDS", 0.1)
    fleet = opened(pg_cleared, redis_url=server.url())
    fleet.count(max_age=1.0)
    until(lambda: len(clients(server)) == 1)
    del fleet
    gc.collect()
    until(lambda: threads() == [], seconds=10)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_right_is_optional(
    allowed: bool, server: Redis, pg_cleared: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the rights of docs/postgresql.md alone max_age works; with the right that it names, others are heard."""
    page = (ROOT / "docs" / "postgresql.md").read_text()
    acl = page[page.index("ACL SETUSER modelctl") :].partition("\n")[0]
    words = acl.replace("PASSWORD", "s3cret-word").split()
    assert "+client|tracking" not in words
    assert "`+client|tracking`" in page
    server.ask(*words, *(["+client|tracking"] if allowed else []))
    url = server.url().replace("redis://", "redis://modelctl:s3cret-word@")
    warnings: list[str] = []
    caplog.set_level(logging.DEBUG, logger="modelctl")
    with opened(pg_cleared, redis_url=url, cache_ttl="1h") as fleet:
        fleet.on_warning = warnings.append
        seed(fleet, IDS)
        fleet.count(max_age=LONG)
        if allowed:
            remember(fleet, server)
            change_of_another_process(pg_cleared, server, "m0")
            until(lambda: fleet.count(max_age=LONG).active == 7, seconds=10)
        else:
            until(lambda: threads() == [], seconds=10)
            fleet.count(max_age=LONG)
            assert fleet.count(max_age=LONG).source == "memory"
    said = [record for record in caplog.records if "does not tell" in record.message]
    assert [record.levelname for record in said] == ([] if allowed else ["DEBUG"])
    assert "s3cret" not in caplog.text
    assert not warnings


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_listens_for_itself(fleet: Fleet, server: Redis, pg_cleared: str) -> None:
    """The child has a listener of its own, closes it, and leaves that of its parent alone."""
    fleet.count(max_age=LONG)
    remember(fleet, server)

    def child() -> bool:
        fleet.count(max_age=LONG)
        until(lambda: len(clients(server)) == 2, seconds=10)
        fleet.close()
        return threads() == []

    if (pid := os.fork()) == 0:
        code = 1
        with suppress(BaseException):
            code = 0 if child() else 2
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    until(lambda: len(clients(server)) == 1)
    assert fleet.count(max_age=LONG).source == "memory"
    change_of_another_process(pg_cleared, server, "m0")
    until(lambda: fleet.count(max_age=LONG).active == 7, seconds=10)


@pytest.mark.parametrize("hosts", [redis_sentinel, redis_cluster])
@pytest.mark.long
def test_the_server_that_has_the_key_is_heard(
    hosts: Callable[[], AbstractContextManager[RedisGroup]],
) -> None:
    """With Sentinel that is the master, in a cluster the node of the key's slot."""
    heard = threading.Event()
    with hosts() as group:
        listening = listener.Listener(configured(group.url), heard.set, lambda: True)
        listening.start()
        assert heard.wait(30)
        heard.clear()
        for node in group.nodes:
            with suppress(redis.RedisError):  # a replica, or a node of other keys
                node.ask("SET", KEY, "1")
        assert heard.wait(30)
        listening.close()
        assert threads() == []


def test_no_thread_can_be_started(
    fleet: Fleet, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no thread, max_age alone holds."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(listener.Listener, "start", refuse)
    fleet.count(max_age=LONG)
    assert fleet.count(max_age=LONG).source == "memory"
    assert clients(server) == []


def test_closing_at_any_moment(server: Redis, pg_cleared: str) -> None:
    """Close while the listener connects, waits or hears: the thread ends, and nothing is raised."""
    raised: list[object] = []
    hook: Callable[[threading.ExceptHookArgs], object] = threading.excepthook
    threading.excepthook = raised.append
    try:
        for number in range(30):
            with opened(pg_cleared, redis_url=server.url()) as fleet:
                fleet.count(max_age=1.0)
                time.sleep(number % 10 * 0.002)
                if number % 2:
                    server.ask("DEL", KEY)
        assert threads() == []
    finally:
        threading.excepthook = hook
    assert not raised
