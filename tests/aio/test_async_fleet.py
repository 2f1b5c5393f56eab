"""AsyncFleet does in an event loop what Fleet does in a thread, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import uvloop

from modelctl import AsyncFleet, DatabaseUnavailableError, ModelNotFoundError, UsageError
from tests import ROOT, fleets
from tests.aio.conftest import Stop
from tests.servers import Postgres, Redis
from tests.waiting import at_most

ACTOR = "tester"


def opened(url: str, **settings: object) -> AsyncFleet:
    """Return a fleet on this database that acts as `ACTOR`."""
    return AsyncFleet.open(fleets.configured(url, **settings), actor=ACTOR)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_walk(fleet_url: str, run: Callable[..., None]) -> None:
    """Changes, reads, iterators, an export and a restore do what they do in Fleet, also in uvloop."""

    async def walk() -> None:
        async with opened(fleet_url) as fleet:
            assert (await fleet.add("a", provider="p")).changes[0].changed
            await fleet.import_models(b'[{"id": "b"}, {"id": "c"}]')
            assert (await fleet.count()).active == 3
            await asyncio.gather(*(fleet.record_failure("b", "parse-error") for _ in range(5)))
            assert (await fleet.count()).active == 2
            await fleet.record_batch([{"id": "c", "outcome": "success"}] * 3)
            assert (await fleet.show("c")).success_count == 3
            assert [model.id async for model in fleet.iter_models(sort="id")] == ["a", "b", "c"]
            assert [model.id for model in await fleet.list_models(off=True)] == ["b"]
            ids = [event.id async for event in fleet.iter_events()]
            assert len(ids) == 4
            assert all(one > next_ for one, next_ in pairwise(ids))
            lines = "".join([line async for line in fleet.export()])
            await fleet.disable("a", reason="r")
            assert [event.actor for event in await fleet.events("a", limit=1)] == [ACTOR]
            restored = await fleet.restore(lines.encode(), enable=True)
            assert restored.updated == 1
            assert (await fleet.count()).active == 2
            with pytest.raises(ModelNotFoundError):
                await fleet.show("x")

    run(walk())


def test_a_long_listing_page_by_page(fleet_url: str) -> None:
    """An iterator gives every model once, over many pages; one that is left early frees its rows."""
    fleets.put(fleet_url, *(f"m{number:04}" for number in range(1001)))

    async def main() -> None:
        async with opened(fleet_url) as fleet:
            found = [model.id async for model in fleet.iter_models()]
            assert found == [f"m{number:04}" for number in range(1001)]
            async for model in fleet.iter_models():
                assert model.id == "m0000"
                break
            assert (await fleet.count()).active == 1001

    asyncio.run(main())


def test_follow_events(fleet_url: str) -> None:
    """New events arrive; while there are none no thread waits, and a cancelled reader leaves nothing."""
    fleets.put(fleet_url, "a")

    async def main() -> None:
        seen: list[str] = []
        async with opened(fleet_url, database_pool_size=1) as fleet:

            async def follow() -> None:
                async for events in fleet.follow_events(after=0):
                    seen.extend(event.event for event in events)

            reader = asyncio.create_task(follow())
            await fleet.disable("a")  # with one thread: this waits for ever if the reader holds it
            await fleet.enable("a")
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            reader.cancel()
            await asyncio.wait({reader})
        assert seen == ["disabled", "enabled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert modelctl_threads() == []


def modelctl_threads() -> list[str]:
    """Return the threads that a fleet has started."""
    return [t.name for t in threading.enumerate() if t.name.startswith("modelctl")]


def test_recorder(fleet_url: str) -> None:
    """Outcomes are given to the recorder in the loop; the end of the fleet writes them."""
    fleets.put(fleet_url, "a")

    async def main() -> None:
        async with opened(fleet_url) as fleet:
            recorder = fleet.recorder()
            for _ in range(100):
                recorder.success("a")
        async with fleet:
            assert (await fleet.show("a")).success_count == 100

    asyncio.run(main())


# ── Cancellation ──


@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
def test_a_cancelled_change_goes_on(fleet_url: str, stop: Stop, point: str) -> None:
    """The thread of a cancelled call finishes it, with the event and the invalidation."""
    fleets.put(fleet_url, "a", "b")
    stop.point = point

    async def main() -> None:
        async with opened(fleet_url, database_pool_size=2) as fleet:
            assert (await fleet.count()).active == 2
            change = asyncio.create_task(fleet.disable("a", reason="r"))
            await asyncio.to_thread(stop.wait)
            change.cancel()
            with pytest.raises(asyncio.CancelledError):
                await change
            stop.go_on.set()
            await asyncio.gather(*(fleet.record_success("b") for _ in range(9)))
            assert (await fleet.show("b")).success_count == 9
        assert fleets.sql(fleet_url, "SELECT id FROM models WHERE active = FALSE") == [("a",)]

    asyncio.run(main())
    with fleets.opened(fleet_url) as fleet:
        assert fleet.count().active == 1
        assert [event.event for event in fleet.events("a")] == ["disabled"]


def test_cancelled_between_commit_and_invalidation(
    cached_url: str, redis_url: str, stop: Stop
) -> None:
    """The count is right after the thread of a cancelled change has ended: nothing is left queued."""

    async def main() -> None:
        async with opened(cached_url, redis_url=redis_url) as fleet:
            assert (await fleet.count()).active == 3
            stop.point = "after-del"
            change = asyncio.create_task(fleet.disable("a"))
            await asyncio.to_thread(stop.wait)
            change.cancel()
            await asyncio.wait({change})
            stop.go_on.set()
        async with fleet:
            assert (await fleet.count()).active == 2
            assert (await fleet.cache_report()).queued == 0

    asyncio.run(main())


def test_a_cancelled_call_that_waits_is_not_made(fleet_url: str, stop: Stop) -> None:
    """A call that no thread has begun when it is cancelled changes nothing."""
    fleets.put(fleet_url, "a", "b")
    stop.point = "before-commit"

    async def main() -> None:
        async with opened(fleet_url, database_pool_size=1) as fleet:
            first = asyncio.create_task(fleet.disable("a"))
            await asyncio.to_thread(stop.wait)
            second = asyncio.create_task(fleet.disable("b"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait({second})
            stop.go_on.set()
            await first
        assert second.cancelled()

    asyncio.run(main())
    assert fleets.sql(fleet_url, "SELECT id FROM models WHERE active = FALSE") == [("a",)]


def test_cancelled_counts(cached_url: str, redis_server: Redis, redis_url: str) -> None:
    """A caller who gives up disturbs no other: all others get the count, on the same connection."""

    def clients() -> list[str]:
        with redis_server.client() as client:
            mine = str(client.client_id())
            return [one["id"] for one in client.client_list() if one["id"] != mine]

    async def main() -> None:
        async with opened(cached_url, redis_url=redis_url) as fleet:
            await fleet.count()
            before = clients()
            for number in range(300):
                counts = [asyncio.create_task(fleet.count()) for _ in range(3)]
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                counts[number % 3].cancel()
                await asyncio.wait(counts)
                left = [count.result() for count in counts if not count.cancelled()]
                assert {(count.active, count.source) for count in left} <= {(3, "cache")}
            assert clients() == before

    asyncio.run(main())


# ── Limits ──


def test_all_threads_are_at_work(fleet_url: str, stop: Stop) -> None:
    """A call that finds no free thread within database.timeout is an error, and is not made."""
    fleets.put(fleet_url, "a", "b")
    stop.point = "before-commit"

    async def main() -> None:
        async with opened(fleet_url, database_pool_size=1, database_timeout="1s") as fleet:
            first = asyncio.create_task(fleet.disable("a"))
            await asyncio.to_thread(stop.wait)
            with at_most(1), pytest.raises(DatabaseUnavailableError, match="all threads"):
                await fleet.disable("b")
            stop.go_on.set()
            await first

    asyncio.run(main())
    assert fleets.sql(fleet_url, "SELECT id FROM models WHERE active = FALSE") == [("a",)]


def test_a_database_that_does_not_answer(postgres: Postgres, pg_database: str) -> None:
    """Every call ends in database.timeout, also those that wait for a thread behind it."""

    async def main() -> None:
        async with opened(pg_database, database_pool_size=2, database_timeout="1s") as fleet:
            await fleet.count()
            postgres.pause()
            with at_most(2):
                ended = await asyncio.gather(
                    *(fleet.stats() for _ in range(8)), return_exceptions=True
                )
            postgres.recover()
            assert {type(error) for error in ended} == {DatabaseUnavailableError}
            assert (await fleet.count()).active == 0

    asyncio.run(main())


def test_many_writers(fleet_url: str) -> None:
    """Two hundred changes at once wait for each other; none of them fails."""
    ids = [f"m{number}" for number in range(200)]
    fleets.put(fleet_url, *ids)

    async def main() -> None:
        settings = {"database_pool_timeout": "0.1s", "database_timeout": "5m"}
        async with opened(fleet_url, **settings) as fleet:
            await asyncio.gather(*map(fleet.record_success, ids))
            assert (await fleet.stats()).success_count == 200

    asyncio.run(main())


# ── Closing, loops, forks ──


def test_nothing_is_left_after_the_end(cached_url: str, redis_url: str) -> None:
    """After `aclose` there is no thread, no task and no connection; a call is an error."""

    async def main() -> None:
        async with opened(cached_url, redis_url=redis_url) as fleet:
            await asyncio.gather(*(fleet.count() for _ in range(20)), fleet.list_models())
        assert modelctl_threads() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for call in (fleet.count, fleet.list_models):
            with pytest.raises(UsageError, match="closed"):
                await call()
        await fleet.aclose()
        async with fleet:
            assert (await fleet.count()).active == 3
        backends = fleets.sql(
            cached_url,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'modelctl'",
        )
        assert backends == [(0,)]

    asyncio.run(main(), debug=False)


def test_aclose_waits_for_calls(fleet_url: str, stop: Stop) -> None:
    """Calls that are at work, or wait for a thread, end before `aclose` does."""
    fleets.put(fleet_url, "a", "b")
    stop.point = "before-commit"

    async def main() -> None:
        fleet = opened(fleet_url, database_pool_size=1)
        changes = [asyncio.create_task(fleet.disable(name)) for name in ("a", "b")]
        await asyncio.to_thread(stop.wait)
        end = asyncio.create_task(fleet.aclose())
        await asyncio.sleep(0.05)
        assert not end.done()
        stop.go_on.set()
        await end
        assert [c.result().changes[0].changed for c in changes] == [True, True]

    asyncio.run(main())


def test_several_loops(cached_url: str, redis_url: str) -> None:
    """One fleet serves one loop after another, and loops of several threads at a time."""
    fleet = opened(cached_url, redis_url=redis_url)

    async def use() -> None:
        for _ in range(5):
            counts = await asyncio.gather(*(fleet.count() for _ in range(10)))
            assert {count.active for count in counts} == {3}
            await fleet.record_success("a")

    for run in (asyncio.run, uvloop.run, asyncio.run):
        run(use())
    raised: list[BaseException] = []

    def loop() -> None:
        try:
            asyncio.run(use())
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == []
    asyncio.run(fleet.aclose())
    assert modelctl_threads() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork(cached_url: str, redis_url: str) -> None:
    """The child of a fork uses the fleet in a loop of its own; the parent goes on with its own."""

    async def main() -> None:
        async with opened(cached_url, redis_url=redis_url) as fleet:
            await asyncio.gather(*(fleet.count() for _ in range(9)), fleet.list_models())
            pid = os.fork()
            if not pid:
                in_child(fleet)
            ended = await asyncio.to_thread(os.waitpid, pid, 0)
            assert ended[1] == 0
            assert (await fleet.count()).active == 2
            assert (await fleet.show("a")).success_count == 1

    def in_child(fleet: AsyncFleet) -> None:
        async def use() -> None:
            assert (await fleet.count()).active == 3
            await fleet.record_success("a")
            await fleet.disable("b")
            assert (await fleet.count()).source == "database"
            assert (await fleet.count()).source == "cache"
            await fleet.aclose()

        code = 1
        try:
            asyncio._set_running_loop(None)
            asyncio.run(use())
            code = 0
        except BaseException as exc:
            sys.__stderr__ and sys.__stderr__.write(repr(exc))
        finally:
            os._exit(code)

    asyncio.run(main())


AT_EXIT = """
import asyncio, atexit, sys
from modelctl import AsyncFleet, UsageError

fleet = AsyncFleet.open()

async def late():
    try:
        await fleet.list_models()
    except UsageError as exc:
        print(exc.message)
    await fleet.aclose()
    print("closed")

atexit.register(lambda: asyncio.run(late()))
asyncio.run(fleet.count())
"""


def test_interpreter_shutdown(cached_url: str, redis_url: str) -> None:
    """While the interpreter shuts down a call that needs a thread is an error; `aclose` still works."""
    environment = fleets.environ(cached_url, redis_url=redis_url) | {"HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    shown = "the interpreter is shutting down\nclosed\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


def test_the_example_in_the_docs(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example in docs/applications.md runs as it is written."""
    page = (ROOT / "docs" / "applications.md").read_text()
    [code] = re.findall(r"## asyncio\n.*?```python\n(.*?)```", page, re.DOTALL)
    fleets.put(fleet_url, "openai/gpt-5")
    for name, value in fleets.environ(fleet_url).items():
        monkeypatch.setenv(name, value)
    exec(code, {})  # noqa: S102 - it is ours
    assert capsys.readouterr().out == "1\nopenai/gpt-5\n"
    assert fleets.sql(fleet_url, "SELECT active, success_count FROM models") in (
        [(False, 1)],
        [(0, 1)],
    )
