"""A cached count of AsyncFleet asks Redis in the event loop, and is as true as that of Fleet."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
import uvloop

from modelctl import AsyncFleet, Count, UsageError, deadline
from modelctl.aio.calls import MOST_THREADS
from modelctl.redis_client import waiting
from tests import fleets
from tests.aio.conftest import Stop
from tests.count.test_hostile_redis import FakeRedis
from tests.servers import Redis, RedisGroup, redis_cluster, redis_sentinel
from tests.waiting import at_most

KEY = "db:models:count:active"


def opened(url: str, redis_url: str, **settings: object) -> AsyncFleet:
    """Return a fleet whose count is cached, and which warns nobody."""
    fleet = AsyncFleet.open(fleets.configured(url, redis_url=redis_url, **settings))
    fleet.on_warning = lambda _: None
    return fleet


def relay(
    port: int, *, context: ssl.SSLContext | None = None, hold: Callable[[], None] = lambda: None
) -> socket.socket:
    """Pass bytes on to a port. *context*: listen with TLS; *hold*: called before an answer is passed on."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket, before: Callable[[], None]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                before()
                target.sendall(data)
        source.close()
        target.close()

    def accept() -> None:
        with listener, suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    if context:
                        client = context.wrap_socket(client, server_side=True)
                    server = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    client.close()
                    continue
                for ends in ((client, server, lambda: None), (server, client, hold)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_a_remembered_count_needs_no_thread(cached_url: str, stop: Stop) -> None:
    """While every thread is stopped in the database, it is answered at once, without Redis too."""

    async def main() -> None:
        async with opened(cached_url, "") as fleet:
            assert (await fleet.count(max_age=50.0)).source == "database"
            stop.point = "before-commit"
            changes = [asyncio.create_task(fleet.disable(name)) for name in ("a", "b", "c")]
            await asyncio.to_thread(stop.wait, MOST_THREADS)
            remembered = await fleet.count(max_age=50.0)
            assert (remembered.active, remembered.source) == (3, "memory")
            with pytest.raises(UsageError):
                await fleet.count(max_age=-1.0)
            with pytest.raises(UsageError):
                await fleet.count(max_age=50.0, strong=True)
            stop.go_on.set()
            await asyncio.gather(*changes)
            assert (await fleet.count(max_age=50.0)).active == 0

    asyncio.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_hit_needs_no_thread(
    cached_url: str, redis_url: str, stop: Stop, run: Callable[..., None]
) -> None:
    """While every thread is stopped in the database, a cached count is answered at once."""
    stop.point = "before-commit"

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            await fleet.count()
            changes = [asyncio.create_task(fleet.disable(name)) for name in ("a", "b", "c")]
            await asyncio.to_thread(stop.wait, MOST_THREADS)
            counts = await asyncio.gather(*(fleet.count() for _ in range(100)))
            assert {(count.active, count.source) for count in counts} == {(3, "cache")}
            assert all(0 <= count.age_seconds < 60 for count in counts)
            stop.go_on.set()
            await asyncio.gather(*changes)
            assert (await fleet.count()).active == 0

    run(main())


class Blocking:
    """Notes what would block an event loop, if a thread with a loop does it."""

    EVENTS = ("socket.connect", "socket.getaddrinfo", "sqlite3.connect", "time.sleep", "import")

    def __init__(self) -> None:
        self.thread = 0
        self.found: list[str] = []
        sys.addaudithook(self._hear)  # nothing removes it again

    def note(self, what: str) -> None:
        """Note it if this is the thread of the loop."""
        if threading.get_ident() == self.thread:
            self.found.append(what)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread and event in self.EVENTS:
            self.note(event)


@pytest.fixture(scope="module")
def audit() -> Blocking:
    """Give the audit of this process."""
    return Blocking()


@pytest.fixture
def blocking(audit: Blocking, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocking]:
    """Give what blocked the loop in this test."""

    def heard(owner: Any, name: str) -> None:
        usual = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            audit.note(name)
            return usual(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    heard(deadline, "call")
    heard(psycopg.Connection, "wait")
    heard(waiting.Wait, "__enter__")
    heard(threading.Thread, "join")
    audit.found.clear()
    yield audit
    audit.thread = 0


@pytest.mark.parametrize("cache", ["redis", "none"])
def test_nothing_blocks_the_loop(
    fleet_url: str, redis_url: str, blocking: Blocking, cache: str
) -> None:
    """No thread of a loop connects, sleeps, imports, waits for a database or Redis, or starts a call."""
    ids = [f"m{number}" for number in range(50)]
    fleets.put(fleet_url, *ids)
    settings = {} if fleets.is_sqlite(fleet_url) or cache == "none" else {"redis_url": redis_url}
    settings["database_timeout"] = "5m"

    async def main() -> None:
        async with AsyncFleet.open(fleets.configured(fleet_url, **settings)) as fleet:
            await fleet.count()
            blocking.thread = threading.get_ident()
            await asyncio.gather(*(fleet.count() for _ in ids), *map(fleet.record_success, ids))
            await fleet.disable(*ids[:3])
            assert (await fleet.count()).active == 47
            assert len([model async for model in fleet.iter_models()]) == 50
            await asyncio.gather(*(fleet.record_failure(i, "parse-error") for i in ids[3:] * 5))
            assert (await fleet.count()).active == 0
            blocking.thread = 0

    asyncio.run(main())
    assert blocking.found == []


def test_many_counts_through_a_miss(cached_url: str, redis_url: str, stop: Stop) -> None:
    """Of 200 counts at an empty cache only those ask the database that have a thread at that moment."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            counts = await asyncio.gather(*(fleet.count() for _ in range(200)))
            assert {count.active for count in counts} == {3}
            assert 1 <= stop.passed.count("after-lease") <= MOST_THREADS
            assert (await fleet.count()).source == "cache"

    asyncio.run(main())


def test_max_age(cached_url: str, redis_url: str) -> None:
    """`max_age` does what it does in Fleet: the memory of the process, never older than a change."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            assert (await fleet.count(max_age=60)).source == "database"
            await remembered(fleet)  # what listens to Redis forgets once, when it begins
            assert (await fleet.count()).source == "cache"
            assert (await fleet.count(max_age=0)).source == "cache"
            await fleet.disable("a")
            assert (await fleet.count(max_age=60)).active == 2
            await remembered(fleet)
            with fleets.opened(cached_url, redis_url=redis_url) as other:
                other.disable("b")
                other.count(max_age=60)
            assert (await fleet.count(max_age=60)).active == 1
            for wrong in ({"max_age": -1}, {"max_age": "1"}, {"max_age": 1.0, "fresh": True}):
                with pytest.raises(UsageError):
                    await fleet.count(**wrong)
            # A reader that began before a change must not store what it read.
            memory = fleet._fleet._memory
            assert memory is not None
            begun = memory.begin()
            await fleet.enable("a")
            memory.keep(begun, await fleet.count())
            assert memory.recall(60) is None
        assert [t for t in threading.enumerate() if t.name.startswith("modelctl")] == []

    async def remembered(fleet: AsyncFleet) -> None:
        for _ in range(1000):
            if (await fleet.count(max_age=60)).source == "memory":
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the count is not remembered")

    asyncio.run(main())


def test_read_your_writes(cached_url: str, redis_url: str) -> None:
    """After a change of any fleet is acknowledged, no count shows a number from before it."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            # The number of active models is always known: one task changes it, the others count.
            low = high = 3
            wrong: list[tuple[int, int, int]] = []
            ended = False

            async def read() -> None:
                while not ended:
                    least, most = low, high
                    count = (await fleet.count()).active
                    if not min(least, low) <= count <= max(most, high):
                        wrong.append((least, count, most))

            async def change() -> None:
                nonlocal low, high, ended
                with fleets.opened(cached_url, redis_url=redis_url) as other:
                    for number in range(40):
                        by = other if number % 2 else fleet._fleet
                        low = 2
                        await asyncio.to_thread(by.disable, "a")
                        high = 2
                        assert (await fleet.count()).active == 2
                        high = 3
                        await asyncio.to_thread(by.enable, "a")
                        low = 3
                        assert (await fleet.count()).active == 3
                ended = True

            await asyncio.gather(change(), *(read() for _ in range(8)))
            assert wrong == []

    asyncio.run(main())


class Held:
    """Holds the answers that a relay has to pass on, while *go_on* is not set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self._answered = threading.Semaphore(0)

    def hold(self) -> None:
        """Wait before an answer is passed on."""
        self._answered.release()
        assert self.go_on.wait(30)

    async def asked(self, fleet: AsyncFleet) -> asyncio.Task[Count]:
        """Begin a count; return it when its answer is held."""
        while self._answered.acquire(blocking=False):
            pass
        asking = asyncio.create_task(fleet.count())
        await asyncio.to_thread(self._answered.acquire)
        return asking


def test_a_caller_shares_no_earlier_question(
    cached_url: str, redis_server: Redis, redis_url: str
) -> None:
    """A caller never gets the answer to a question that was sent before the caller came."""
    held = Held()

    async def main(url: str) -> None:
        async with opened(cached_url, url, redis_timeout="20s") as fleet:
            await fleet.count()
            assert (await fleet.count()).source == "cache"
            held.go_on.clear()
            before = await held.asked(fleet)
            with fleets.opened(cached_url, redis_url=redis_url) as other:
                await asyncio.to_thread(other.disable, "a")
            after = asyncio.create_task(fleet.count())
            await asyncio.sleep(0)
            held.go_on.set()
            assert (await before).active == 3
            assert (await after).active == 2

    with relay(redis_server.port, hold=held.hold) as listener:
        asyncio.run(main(f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))


def test_a_loop_that_was_closed_too_early(
    cached_url: str, redis_server: Redis, redis_url: str
) -> None:
    """A loop that is closed while its question is on its way does not harm the next loop."""
    held = Held()

    async def count(source: str) -> None:
        for _ in range(3):
            count = await fleet.count()
            assert count.active == 3
        assert count.source == source

    async def ask() -> None:
        asking.append(await held.asked(fleet))

    asking: list[asyncio.Task[Count]] = []
    with relay(redis_server.port, hold=held.hold) as listener:
        fleet = opened(
            cached_url, f"redis://127.0.0.1:{listener.getsockname()[1]}/0", redis_timeout="20s"
        )
        loop = asyncio.new_event_loop()
        loop.run_until_complete(count("cache"))
        held.go_on.clear()
        loop.run_until_complete(ask())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        held.go_on.set()
        asyncio.run(count("cache"))
        asyncio.run(fleet.aclose())
    asking.clear()


def test_numbers_of_other_programs(cached_url: str, redis_server: Redis, redis_url: str) -> None:
    """A number that another program stores is not shown, unless it is the one that modelctl stored."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            await fleet.count()
            for text in ("99", "-1", "x", "3.0", "", "1_0"):
                redis_server.ask("SET", KEY, text, "PX", 60000)
                assert (await fleet.count()).active == 3
            redis_server.ask("DEL", KEY)
            assert (await fleet.count()).source == "database"
            assert (await fleet.count()).source == "cache"
            redis_server.ask("SET", f"{{{KEY}}}:vouch", "3 another", "PX", 60000)
            assert (await fleet.count()).source == "database"

    asyncio.run(main())


def test_redis_goes_away_and_comes_back(
    cached_url: str, redis_server: Redis, redis_url: str
) -> None:
    """Without Redis a count comes from the database, with a warning; later Redis is used again."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            warnings: list[str] = []
            fleet.on_warning = warnings.append
            await fleet.count()
            assert (await fleet.count()).source == "cache"
            redis_server.kill()
            counts = await asyncio.gather(*(fleet.count() for _ in range(50)))
            assert {(count.active, count.source) for count in counts} == {(3, "database")}
            assert len(warnings) == 1
            redis_server.recover()
            await fleet.count()
            assert (await fleet.count()).source == "cache"

    asyncio.run(main())


def test_redis_is_silent(cached_url: str, redis_server: Redis, redis_url: str) -> None:
    """A Redis that does not answer is waited for once by all, and not again for a second or two."""

    async def main() -> None:
        async with opened(cached_url, redis_url, redis_timeout="0.3s") as fleet:
            await fleet.count()
            assert (await fleet.count()).source == "cache"
            redis_server.pause()
            with at_most(0.5):
                counts = await asyncio.gather(*(fleet.count() for _ in range(100)))
            assert {(count.active, count.source) for count in counts} == {(3, "database")}
            redis_server.recover()
            for _ in range(500):
                if (await fleet.count()).source == "cache":
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("Redis is not asked again")

    asyncio.run(main())


def test_the_server_closes_an_idle_connection(
    cached_url: str, redis_server: Redis, redis_url: str
) -> None:
    """A connection that was closed while nobody used it is replaced, without a thread of the database."""

    async def main() -> None:
        async with opened(cached_url, redis_url) as fleet:
            await fleet.count()
            for _ in range(3):
                assert (await fleet.count()).source == "cache"
                redis_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":1_0\r\n",
        b"*2\r\n$1\r\n3",
        b"x",
        b"$9999999999\r\n",
        b"*" * 99999,
    ],
)
def test_nonsense(cached_url: str, answer: bytes) -> None:
    """Whatever answers in place of Redis, the count comes from the database."""
    fake = FakeRedis()
    fake.answers = [answer]

    async def main() -> None:
        url = f"redis://127.0.0.1:{fake.port}"
        async with opened(cached_url, url, redis_timeout="0.1s") as fleet:
            for _ in range(3):
                assert (await fleet.count()).active == 3

    try:
        asyncio.run(main())
    finally:
        fake.close()


def test_tls_password_and_database(cached_url: str, tmp_path: Path) -> None:
    """A hit over TLS, with a user, a password and a database, needs no thread either."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def main(url: str) -> None:
        async with opened(cached_url, url) as fleet:
            await fleet.count()
            hit = await fleet._peek()
            assert hit is not None
            assert hit.active == 3

    with Redis(password="zq7") as server, relay(server.port, context=context) as listener:
        port = listener.getsockname()[1]
        asyncio.run(main(f"rediss://:zq7@localhost:{port}/3?ssl_ca_certs={tmp_path / 'ca.pem'}"))
        uvloop.run(main(f"rediss://:zq7@localhost:{port}/3?ssl_ca_certs={tmp_path / 'ca.pem'}"))
        asyncio.run(main(f"unix://:zq7@{server.folder}/socket?db=2"))


@pytest.mark.parametrize("group", [redis_sentinel, redis_cluster])
def test_sentinel_and_cluster(
    cached_url: str, group: Callable[[], AbstractContextManager[RedisGroup]]
) -> None:
    """Where a Sentinel or a cluster names the server, a thread asks Redis: the count is cached all the same."""

    async def main(url: str) -> None:
        async with opened(cached_url, url) as fleet:
            await fleet.count()
            assert (await fleet.count()).source == "cache"
            await fleet.disable("b")
            assert (await fleet.count()).active == 2
            await fleet.enable("b")

    with group() as servers:
        asyncio.run(main(servers.url))
