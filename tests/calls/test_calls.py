"""A block, a function or a stream around a call of a model records how the call went."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from modelctl import AsyncFleet, Fleet, UsageError
from tests.calls.conftest import Kept
from tests.fleets import AUTO, configured, opened, seed
from tests.servers import Postgres


class ProbeError(Exception):
    """An exception of an application's own code."""


def counters(fleet: Fleet, model_id: str = "a") -> tuple[int, int]:
    """Return successes and failures of a model."""
    model = fleet.show(model_id)
    return model.success_count, model.failure_count


# ── On both databases ──


def test_a_block_records_how_it_ended(fleet: Fleet) -> None:
    """The end is a success; an exception is a failure of its type, with its text, and goes on."""
    seed(fleet, ["a"])
    with fleet.call("a"):
        pass
    assert counters(fleet) == (1, 0)
    raised = TimeoutError("too slow")
    with pytest.raises(TimeoutError) as caught, fleet.call("a"):
        raise raised
    assert caught.value is raised
    assert (raised.__context__, raised.__cause__, vars(raised)) == (None, None, {})
    model = fleet.show("a")
    assert (model.failure_type, model.failure_reason) == ("timeout", "too slow")
    with fleet.call("a", actor="web") as call:
        call.failed("parse-error", reason="no JSON")
    model = fleet.show("a")
    assert (model.failure_type, model.failure_reason) == ("parse-error", "no JSON")
    assert (model.consecutive_failures, model.failure_count) == (1, 2)


def test_an_async_block_records_the_same(fleet: Fleet) -> None:
    """`async with` records as `with` does, and so do decorated coroutines and streams."""
    seed(fleet, ["a"])

    @fleet.call("a")
    async def ask() -> str:
        return "hello"

    @fleet.call("a")
    async def stream() -> AsyncIterator[int]:
        yield 1
        raise TimeoutError

    async def main() -> None:
        async with fleet.call("a"):
            pass
        with pytest.raises(json.JSONDecodeError):
            async with fleet.call("a"):
                json.loads("{")
        assert await ask() == "hello"
        with pytest.raises(TimeoutError):
            [each async for each in stream()]

    asyncio.run(main())
    assert counters(fleet) == (2, 2)


def test_the_fifth_failure_switches_off_and_says_who(fleet: Fleet) -> None:
    """A call follows the health rule; the actor of the call is in the history."""
    seed(fleet, ["a"])
    for _ in range(5):
        with fleet.call("a", actor="web") as call:
            call.failed(http_status=404)
    assert fleet.show("a").status is AUTO
    assert (fleet.events("a")[0].event, fleet.events("a")[0].actor) == ("auto-disabled", "web")


def test_an_unknown_id_is_a_warning(fleet: Fleet) -> None:
    """The block ends as it would; the warning names the nearest id, once a minute, and is counted."""
    seed(fleet, ["openai/gpt-5"])
    warnings: list[str] = []
    fleet.on_warning = warnings.append
    for _ in range(3):
        with fleet.call("openai/gpt5"):
            pass
    with pytest.raises(TimeoutError), fleet.call("openai/gpt5"):
        raise TimeoutError
    assert len(warnings) == 1
    assert "openai/gpt5" in warnings[0]
    assert "the nearest: openai/gpt-5" in warnings[0]
    assert fleet.unrecorded_calls == 4


def test_text_that_no_model_can_have_as_its_id_is_a_warning(fleet: Fleet) -> None:
    """An empty, endless or unstorable id fails no call of a model."""
    warnings: list[str] = []
    fleet.on_warning = warnings.append
    ids = ["", "x" * 100_000, "a\0b", "\ud800"]
    for model_id in ids:
        with fleet.call(model_id):
            pass
    assert (fleet.unrecorded_calls, len(warnings)) == (len(ids), len(ids))
    assert all(len(warning) < 5000 for warning in warnings)


def test_a_database_that_is_away_fails_no_call(postgres: Postgres, pg_database: str) -> None:
    """The result and the exception of a block stand while the server is down; the warning says why."""
    warnings: list[str] = []
    with opened(pg_database, database_timeout="3s") as fleet:
        seed(fleet, ["a"])
        fleet.on_warning = warnings.append
        postgres.stop()

        @fleet.call("a")
        def ask() -> int:
            return 7

        assert ask() == 7
        raised = ConnectionResetError("the provider's")
        with pytest.raises(ConnectionResetError) as caught, fleet.call("a"):
            raise raised
        assert caught.value is raised
        assert (raised.__context__, raised.__cause__) == (None, None)

        async def main() -> int:
            async with fleet.call("a"):
                return 8

        assert asyncio.run(main()) == 8
        assert (fleet.unrecorded_calls, len(warnings)) == (3, 1)
        assert warnings[0].startswith("the outcome of a call of 'a' is not recorded: ")
        postgres.recover()
        assert ask() == 7
        assert counters(fleet) == (1, 0)


class StoppedWriter:
    """Stops a success of the model a inside of the fleet, until *go_on* is set."""

    def __init__(self, fleet: Fleet) -> None:
        self.threads: list[int] = []
        self.go_on = threading.Event()
        self._fleet = fleet
        self._record = fleet.record_success
        fleet.record_success = self._stop  # type: ignore[method-assign]  # to stop it inside

    def _stop(self, *args: Any, **kwargs: Any) -> Any:
        self.threads.append(threading.get_ident())
        assert self.go_on.wait(20), "the loop waited for the writer"
        return self._record(*args, **kwargs)

    async def begun_block(self) -> asyncio.Task[None]:
        """Run a block; return its task when its success is being written."""

        async def block() -> None:
            async with self._fleet.call("a"):
                pass

        task = asyncio.create_task(block())
        while not self.threads:
            await asyncio.sleep(0.001)
        return task


def test_recording_never_blocks_the_event_loop(fleet: Fleet) -> None:
    """While the outcome is written in a thread, the loop goes on: the writer waits for the loop."""
    seed(fleet, ["a"])
    writer = StoppedWriter(fleet)

    async def main() -> None:
        task = await writer.begun_block()
        writer.go_on.set()
        await task

    asyncio.run(main())
    assert writer.threads != [threading.get_ident()]
    assert counters(fleet) == (1, 0)


def test_an_outcome_outlives_a_cancellation_while_it_is_written(fleet: Fleet) -> None:
    """A task that is cancelled while its success is being written is cancelled; the success is stored."""
    seed(fleet, ["a"])
    writer = StoppedWriter(fleet)

    async def main() -> None:
        task = await writer.begun_block()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        writer.go_on.set()

    asyncio.run(main())  # ends the loop's threads, so that the writer is done
    assert counters(fleet) == (1, 0)


# ── With an AsyncFleet ──


def test_an_async_fleet_records_in_its_own_threads(fleet: Fleet, fleet_url: str) -> None:
    """Blocks and decorated coroutines of 50 tasks are recorded in the bounded threads of the fleet."""
    seed(fleet, ["a"])
    names: set[str] = set()

    async def main() -> None:
        async with AsyncFleet.open(configured(fleet_url)) as shared:
            record = shared._fleet.record_success

            def recording(*args: Any, **kwargs: Any) -> Any:
                names.add(threading.current_thread().name)
                return record(*args, **kwargs)

            shared._fleet.record_success = recording  # type: ignore[method-assign]  # to look inside

            @shared.call("a")
            async def ask(number: int) -> int:
                await asyncio.sleep(0)
                if number % 5 == 0:
                    raise TimeoutError
                return number

            done = await asyncio.gather(*map(ask, range(50)), return_exceptions=True)
            assert sum(isinstance(each, TimeoutError) for each in done) == 10
            assert shared.unrecorded_calls == 0
        late = shared.call("a")
        async with late:
            pass
        assert shared.unrecorded_calls == 1  # it is closed

    asyncio.run(main())
    assert counters(fleet) == (40, 10)
    assert all(name.startswith("modelctl") for name in names)


# ── With a recorder ──


def test_a_recorder_gathers_the_outcomes_of_calls(fleet: Fleet) -> None:
    """Blocks, async blocks without a thread, and decorated functions; unknown ids stop nothing."""
    seed(fleet, ["a"])
    warnings: list[str] = []
    fleet.on_warning = warnings.append

    async def main() -> None:
        async with recorder.call("a"):
            pass
        before = threading.active_count()
        with pytest.raises(TimeoutError):
            async with recorder.call("a"):
                raise TimeoutError
        assert threading.active_count() == before

    with fleet.recorder() as recorder:
        with recorder.call("a") as call:
            call.failed("parse-error", reason="no JSON")
        with recorder.call() as call:
            call.model("a")
        with recorder.call("unknown"):
            pass
        with recorder.call(""):
            pass
        asyncio.run(main())
        recorder.flush()
        assert counters(fleet) == (2, 2)
        stats = recorder.stats
        assert (stats.recorded, stats.unknown, stats.dropped) == (4, 1, 1)
    assert len(warnings) == 2


def test_a_call_after_the_recorder_is_closed_stands(fleet: Fleet) -> None:
    """The block ends as it would; the warning and the stats of the recorder say what was lost."""
    seed(fleet, ["a"])
    warnings: list[str] = []
    fleet.on_warning = warnings.append
    recorder = fleet.recorder()
    with recorder.call("a"):
        recorder.close()
    with pytest.raises(TimeoutError), recorder.call("a"):
        raise TimeoutError
    assert [warning.partition(";")[0] for warning in warnings] == [
        "the outcome of a call of 'a' is not recorded: the recorder is closed"
    ]
    assert recorder.stats.dropped == 2


def test_a_recorder_that_blocks_does_not_block_the_event_loop(fleet: Fleet) -> None:
    """With `when_full="block"` an async block hands the outcome to a thread."""
    seed(fleet, ["a"])

    async def main() -> None:
        async with recorder.call("a"):
            pass

    with fleet.recorder(when_full="block") as recorder:
        assert recorder.call("a")._sink.run
        asyncio.run(main())
    assert counters(fleet) == (1, 0)


# ── What is recorded ──


@pytest.mark.parametrize(
    "exception",
    [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError(), KeyError("x")],
    ids=lambda exc: type(exc).__name__,
)
def test_what_says_nothing_about_the_model_is_not_recorded(
    kept: Kept, exception: BaseException
) -> None:
    """Cancellation, Ctrl-C and errors of the application pass, and nothing is recorded."""
    with pytest.raises(type(exception)) as caught, kept.call("a"):
        raise exception
    assert caught.value is exception
    assert (kept.outcomes, kept.warnings) == ([], [])


def test_the_last_word_counts(kept: Kept) -> None:
    """`failed` and `ignore` decide, however the block ends; an exception of the caller's doing ignores."""
    with kept.call("a") as call:
        call.failed("timeout")
        call.ignore()
    with kept.call("b") as call:
        call.ignore()
        call.failed("timeout", reason="slow")
    with suppress(ProbeError), kept.call("c") as call:
        call.failed("parse-error")
        raise ProbeError
    with suppress(TimeoutError), kept.call("d") as call:
        call.ignore()
        raise TimeoutError
    with kept.call("e") as call:
        call.failed(KeyError("mine"))
    with kept.call("f") as call:
        call.failed(TimeoutError("so slow"))
    assert kept.outcomes == [("b", "timeout"), ("c", "parse-error"), ("f", "timeout")]
    assert kept.reasons == ["slow", None, "so slow"]


def test_the_model_may_be_known_later(kept: Kept) -> None:
    """A router's answer names the model; a call that nobody named is a warning."""
    with kept.call(None) as call:
        call.model("a")
    with kept.call("alias") as call:
        call.model("b")
    with kept.call(None):
        pass
    with pytest.raises(ProbeError), kept.call(None):
        raise ProbeError
    assert kept.outcomes == [("a", None), ("b", None)]
    assert kept.unrecorded.number == 1
    assert "the call names no model" in kept.warnings[0]


def test_wrong_words_are_errors(kept: Kept) -> None:
    """A type that is none, a reason or an id that is no text: UsageError, and nothing is recorded."""
    with pytest.raises(UsageError, match="no failure type 'parse_error'"), kept.call("a") as call:
        call.failed("parse_error")
    with pytest.raises(UsageError, match="not both"), kept.call("a") as call:
        call.failed("timeout", http_status=500)
    with pytest.raises(UsageError, match="a reason is text, not int"), kept.call("a") as call:
        call.failed("timeout", reason=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a model id is text, not int"):
        kept.call(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a model id is text, not int"), kept.call("a") as call:
        call.model(5)  # type: ignore[arg-type]
    assert kept.outcomes == []


def test_an_object_is_for_one_call(kept: Kept) -> None:
    """A second `with`, one inside of the first, and words before or after the block are errors."""
    call = kept.call("a")
    with pytest.raises(UsageError, match="has not begun"):
        call.ignore()
    with call, pytest.raises(UsageError, match="has begun already"), call:
        pass
    with pytest.raises(UsageError, match="has begun already"), call:
        pass
    with pytest.raises(UsageError, match="is over"):
        call.failed("timeout")
    with pytest.raises(UsageError, match="is over"):
        call.model("b")
    assert kept.outcomes == [("a", None)]


def test_one_object_in_eight_threads_is_one_call(kept: Kept) -> None:
    """If threads share an object, exactly one of them begins; the others get an error."""
    call = kept.call("a")
    barrier = threading.Barrier(8)

    def use() -> str:
        barrier.wait()
        try:
            with call:
                return "begun"
        except UsageError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        results = sorted(done.result() for done in [pool.submit(use) for _ in range(8)])
    assert results == ["begun", *["refused"] * 7]
    assert kept.outcomes == [("a", None)]


def test_threads_share_a_decorated_function(kept: Kept) -> None:
    """A decorator makes a call for each run, so that a function may run in many threads."""

    @kept.call("a")
    def ask(number: int) -> int:
        if number % 4 == 0:
            raise TimeoutError
        return number

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(ask, number) for number in range(400)]
    assert sum(isinstance(each.exception(), TimeoutError) for each in done) == 100
    assert (kept.outcomes.count(("a", None)), kept.outcomes.count(("a", "timeout"))) == (300, 100)


def test_an_inner_call_s_exception_is_not_the_outer_model_s(kept: Kept) -> None:
    """An exception counts against the model of the innermost call, also if it is wrapped on the way."""
    with pytest.raises(TimeoutError), kept.call("outer"), kept.call("inner"):
        raise TimeoutError
    assert kept.outcomes == [("inner", "timeout")]
    kept.outcomes.clear()
    with suppress(ProbeError), kept.call("outer"):
        try:
            with kept.call("inner"):
                raise TimeoutError
        except TimeoutError as exc:
            raise ProbeError from exc
    assert kept.outcomes == [("inner", "timeout")]


def test_a_fallback_s_own_exception_is_its_own(kept: Kept) -> None:
    """After an inner call failed, another exception of the outer call counts against the outer model."""
    with suppress(ConnectionResetError), kept.call("outer"):
        try:
            with kept.call("inner"):
                raise TimeoutError
        except TimeoutError:
            raise ConnectionResetError  # noqa: B904 - its context is what this is about
    assert kept.outcomes == [("inner", "timeout"), ("outer", "network-error")]
    kept.outcomes.clear()
    with kept.call("outer"), kept.call("inner"):
        pass
    assert kept.outcomes == [("inner", None), ("outer", None)]


def test_an_exception_that_was_kept_belongs_to_the_call_that_it_left(kept: Kept) -> None:
    """It may leave its call inside of another one, and be raised later, by itself or in a new group."""
    failed: list[Exception] = []
    for grouped in (False, True):
        with suppress(TimeoutError, ExceptionGroup), kept.call("outer"):
            with kept.call("middle") as middle:
                middle.ignore()
                try:
                    with kept.call("inner"):
                        raise TimeoutError
                except TimeoutError as exc:
                    failed[:] = [exc]
            raise ExceptionGroup("all models failed", failed) if grouped else failed[0]
        assert kept.outcomes == [("inner", "timeout")]
        kept.outcomes.clear()


def test_inner_calls_in_tasks_belong_to_the_outer_call(kept: Kept) -> None:
    """What a group of tasks raises in calls of their own says nothing about the model around them."""

    async def ask(model_id: str) -> None:
        async with kept.call(model_id):
            await asyncio.sleep(0)
            raise TimeoutError

    async def main() -> None:
        async with kept.call("outer"), asyncio.TaskGroup() as group:
            group.create_task(ask("a"))
            group.create_task(ask("b"))

    with pytest.raises(ExceptionGroup):
        asyncio.run(main())
    assert sorted(kept.outcomes) == [("a", "timeout"), ("b", "timeout")]


def test_a_fork_inside_of_a_block_is_recorded_once(kept: Kept) -> None:
    """The child of a fork that leaves the block of its parent records nothing."""
    reading, writing = os.pipe()
    with kept.call("a"):
        child = os.fork()
        if not child:
            kept.outcomes.clear()
            with kept.call("b"):
                pass
    if not child:  # the child has left the block too
        os.write(writing, json.dumps(kept.outcomes).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert json.load(said) == [["b", None]]
    assert kept.outcomes == [("a", None)]


# ── Functions and streams ──


def test_a_decorated_function_stays_what_it_is(kept: Kept) -> None:
    """Name, signature and kind of a function remain; frameworks look at them."""

    def plain(a: int, *, b: str = "") -> int:
        """Add."""
        return a

    async def coroutine() -> None: ...

    def stream() -> Iterator[int]:
        yield 1

    async def async_stream() -> AsyncIterator[int]:
        yield 1

    kinds = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    for function in (plain, coroutine, stream, async_stream):
        made = kept.call("a")(function)
        assert made.__name__ == function.__name__
        assert inspect.signature(made) == inspect.signature(function)
        assert [is_kind(made) for is_kind in kinds] == [is_kind(function) for is_kind in kinds]


def test_a_method_and_a_partial(kept: Kept) -> None:
    """Methods, class methods below @classmethod, and partial functions can be decorated."""

    class Client:
        @kept.call("a")
        def ask(self, text: str) -> tuple[Any, str]:
            return self, text

        @classmethod
        @kept.call("b")
        def make(cls) -> type:
            return cls

    client = Client()
    assert client.ask("hi") == (client, "hi")
    assert Client.make() is Client

    async def add(a: int, b: int) -> int:
        return a + b

    assert asyncio.run(kept.call("c")(functools.partial(add, 1))(2)) == 3
    assert [model_id for model_id, _ in kept.outcomes] == ["a", "b", "c"]


def test_what_cannot_be_decorated(kept: Kept) -> None:
    """A class, a value, and a call without an id: UsageError."""
    for wrong in (Kept, 5, None):
        with pytest.raises(UsageError, match="decorates functions"):
            kept.call("a")(wrong)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="needs the id"):
        kept.call(None)(len)


def test_a_stream_is_a_success_when_it_ended(kept: Kept) -> None:
    """A generator records at its end, returns its value, and passes on what is sent and thrown."""

    @kept.call("a")
    def stream() -> Any:
        got = yield 1
        try:
            yield got
        except ProbeError:
            yield "caught"
        return "value"

    running = stream()
    assert kept.outcomes == []
    assert (next(running), running.send("sent"), running.throw(ProbeError())) == (
        *(1, "sent", "caught"),
    )
    assert kept.outcomes == []
    with pytest.raises(StopIteration) as end:
        next(running)
    assert end.value.value == "value"
    assert kept.outcomes == [("a", None)]


def test_a_stream_that_breaks_is_a_failure(kept: Kept) -> None:
    """An exception in the middle of a stream is recorded and goes on to the consumer."""

    @kept.call("a")
    def stream() -> Iterator[int]:
        yield 1
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        list(stream())
    assert kept.outcomes == [("a", "network-error")]


def test_a_stream_that_its_consumer_closes_is_neither(kept: Kept) -> None:
    """Closed early, forgotten or never begun: the consumer's doing; its own cleanup runs."""
    closed: list[str] = []

    @kept.call("a")
    def stream() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.append("closed")

    running = stream()
    next(running)
    running.close()
    for _ in stream():
        break
    stream()
    gc.collect()
    assert closed == ["closed", "closed"]
    assert kept.outcomes == []


def test_an_async_stream_does_the_same(kept: Kept) -> None:
    """Ended, broken, closed early, sent to and thrown into: as of a generator."""

    @kept.call("a")
    async def stream(broken: bool = False) -> Any:
        try:
            got = yield 1
            await asyncio.sleep(0)
            try:
                yield got
            except ProbeError:
                yield "caught"
            if broken:
                raise TimeoutError
        finally:
            closed.append("closed")

    closed: list[str] = []

    async def main() -> None:
        running = stream()
        assert await anext(running) == 1
        assert await running.asend("sent") == "sent"
        assert await running.athrow(ProbeError()) == "caught"
        assert kept.outcomes == []
        assert [each async for each in running] == []
        assert kept.outcomes == [("a", None)]
        with pytest.raises(TimeoutError):
            [each async for each in stream(broken=True)]
        assert kept.outcomes == [("a", None), ("a", "timeout")]
        running = stream()
        await anext(running)
        await running.aclose()
        running = stream()
        await anext(running)
        task = asyncio.ensure_future(running.asend(None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.aclose()

    asyncio.run(main())
    assert closed == ["closed"] * 4
    assert len(kept.outcomes) == 2


def test_an_exception_thrown_into_a_stream_is_unchanged(kept: Kept) -> None:
    """An async stream that handles what is thrown raises later exceptions without that as context."""

    @kept.call("a")
    async def stream() -> AsyncIterator[int]:
        with suppress(ProbeError):
            yield 1
        raise raised

    raised = TimeoutError()

    async def main() -> None:
        running: Any = stream()
        await anext(running)
        with pytest.raises(TimeoutError) as caught:
            await running.athrow(ProbeError())
        assert caught.value is raised

    asyncio.run(main())
    assert raised.__context__ is None
    assert kept.outcomes == [("a", "timeout")]


def test_a_function_that_returns_a_stream_or_a_coroutine(kept: Kept) -> None:
    """The outcome is known when the stream or the coroutine that a plain function returns has ended."""

    async def answer() -> int:
        raise TimeoutError

    @kept.call("a")
    def ask() -> Any:
        return answer()

    @kept.call("b")
    def numbers() -> Iterator[int]:
        return (number for number in (1, 2))

    coroutine, stream = ask(), numbers()
    assert kept.outcomes == []
    with pytest.raises(TimeoutError):
        asyncio.run(coroutine)
    assert kept.outcomes == [("a", "timeout")]
    assert list(stream) == [1, 2]
    assert kept.outcomes[1:] == [("b", None)]


def test_streams_that_overlap_do_not_nest(kept: Kept) -> None:
    """Of two streams that run in turn each has its outcome, and no call is remembered afterwards."""

    @kept.call("a")
    def first() -> Iterator[int]:
        yield from (1, 2)

    @kept.call("b")
    def second() -> Iterator[int]:
        yield 1
        raise TimeoutError

    def both() -> None:
        one, other = first(), second()
        next(one), next(other)
        list(one)
        with pytest.raises(TimeoutError):
            next(other)
        with pytest.raises(TimeoutError), kept.call("c"):
            raise TimeoutError

    contextvars.copy_context().run(both)
    assert kept.outcomes == [("a", None), ("b", "timeout"), ("c", "timeout")]


def test_endless_overlap_costs_no_memory(kept: Kept) -> None:
    """A chain of streams of which one is always open leaves no chain of objects behind."""

    @kept.call("a")
    def stream() -> Iterator[int]:
        yield 1

    def chain() -> int:
        from modelctl.calls.call import _current

        before = stream()
        next(before)
        for _ in range(100):
            after = stream()
            next(after)
            list(before)
            before = after
        length, call = 0, _current.get()
        while call is not None:
            length, call = length + 1, call._outer
        return length

    assert contextvars.copy_context().run(chain) <= 3


# ── What goes wrong while it is recorded ──


def test_warnings_are_counted_and_few(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cause is told once a minute, with the number of outcomes since; others at once."""
    for _ in range(5):
        kept.unrecorded.tell("a", OSError("away"))
    kept.unrecorded.tell("a", ValueError("else"))
    monkeypatch.setattr("modelctl.calls.unrecorded.WARN_SECONDS", 0)
    kept.unrecorded.tell("b", OSError("away"))
    assert kept.unrecorded.number == 7
    assert kept.warnings == [
        "the outcome of a call of 'a' is not recorded: OSError: away",
        "the outcome of a call of 'a' is not recorded: ValueError: else",
        "the outcome of a call of 'b' is not recorded (nor 4 others since the last warning):"
        " OSError: away",
    ]


def test_a_warning_that_raises_hides_nothing(fleet: Fleet) -> None:
    """If the application's own on_warning raises, its call still ends as it would have ended."""

    def broken(_: str) -> None:
        raise ProbeError

    fleet.on_warning = broken
    with fleet.call("unknown"):
        pass
    with pytest.raises(TimeoutError), fleet.call("unknown"):
        raise TimeoutError
    assert fleet.unrecorded_calls == 2


def test_an_exception_that_cannot_be_printed(kept: Kept) -> None:
    """Its class is the reason; a text of 10 MB is cut before it is formatted."""

    class SilentError(TimeoutError):
        def __str__(self) -> str:
            raise ProbeError

    with pytest.raises(SilentError), kept.call("a"):
        raise SilentError
    with pytest.raises(TimeoutError), kept.call("a"):
        raise TimeoutError("x" * 10_000_000)
    assert kept.reasons[0] == "SilentError"
    assert len(kept.reasons[1] or "") <= 20_000


def test_a_sink_that_blocks_needs_asyncio(fleet: Fleet) -> None:
    """`async with` over a fleet in another event loop is an error before the model is called."""
    entered = fleet.call("a").__aenter__()
    with pytest.raises(UsageError, match="asyncio"):
        entered.send(None)


def test_a_closed_coroutine_records_what_it_said(fleet: Fleet) -> None:
    """A coroutine that is closed inside of its block does not wait; what `failed` said is recorded."""
    seed(fleet, ["a"])

    async def ask() -> None:
        async with fleet.call("a") as call:
            call.failed("timeout")
            await asyncio.sleep(9)

    async def main() -> None:
        running = ask()
        running.send(None)
        running.close()

    asyncio.run(main())
    assert counters(fleet) == (0, 1)


AT_THE_END = """
import asyncio, atexit, threading
from modelctl import Fleet

fleet = Fleet.open()
fleet.add("a")

@fleet.call("a")
async def stream():
    yield 1
    yield 2

@atexit.register
def last():
    with fleet.call("a"):
        pass

async def main():
    running = stream()
    await anext(running)
    globals()["kept"] = running

asyncio.run(main())
"""


def test_the_end_of_the_interpreter() -> None:
    """A call in atexit is recorded; a stream that its consumer never ended says nothing."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Fleet.open() as fleet:
        assert counters(fleet) == (1, 0)
