"""The table of docs/applications.md, for any nesting of blocks, functions, streams and words."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, classify
from modelctl.calls.call import Call
from tests.calls.conftest import Kept
from tests.fleets import clear, seed

MakesCall = Callable[[str], Call]
MODELS = ["a", "b", "c"]
EXCEPTIONS: tuple[type[BaseException], ...] = (
    *(TimeoutError, ConnectionResetError, KeyError, asyncio.CancelledError),
    *(KeyboardInterrupt, GeneratorExit),
)
WAYS = ("block", "function", "stream", "closed stream")
# What a block does, in turn: a nested call, that of a fallback (its exception is caught), a word, an
# exception. Each call is (model, way, steps).
WORDS = st.sampled_from([("failed", "timeout"), ("failed", "parse-error"), ("ignore", "")])
RAISES = st.tuples(st.just("raise"), st.sampled_from(EXCEPTIONS))


def calls(steps: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return calls that do some of these steps."""
    return st.tuples(st.sampled_from(MODELS), st.sampled_from(WAYS), st.lists(steps, max_size=4))


STEPS = st.recursive(
    WORDS | RAISES,
    lambda steps: (
        st.tuples(st.just("call"), calls(steps)) | st.tuples(st.just("fallback"), calls(steps))
    ),
    max_leaves=12,
)
PROGRAMS = calls(STEPS)


class Table:
    """What the table says of a program: the outcomes, in the order in which calls end."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str | None]] = []

    def run(self, program: Any) -> BaseException | None:
        """Run a call; return the exception that leaves it."""
        model, way, steps = program
        said: tuple[str, str] | None = None
        raised: BaseException | None = None
        inner: list[BaseException] = []
        for word, what in steps:
            if word == "raise":
                raised = what()
            elif word in ("call", "fallback"):
                raised = self.run(what)
                if raised is not None:
                    inner.append(raised)
                if word == "fallback" and isinstance(raised, Exception):
                    raised = None
            elif way == "block":  # a decorated function has no object to speak to
                said = (word, what)
            if raised is not None:
                break
        outcome: str | None = None
        nothing = False
        if said:
            nothing, outcome = said[0] == "ignore", said[1]
        elif raised is not None:
            outcome = None if raised in inner else classify(raised)
            nothing = outcome is None
        elif way == "closed stream":
            nothing = True
        if not nothing:
            self.outcomes.append((model, outcome and str(outcome)))
        return raised


def perform(program: Any, make: MakesCall) -> None:
    """Do what the program says, with `with` and generators."""
    model, way, steps = program
    call = make(model)

    def body(words: Call | None) -> None:
        for word, what in steps:
            if word == "raise":
                raise what
            if word == "call":
                perform(what, make)
            elif word == "fallback":
                with suppress(Exception):  # the next step is the fallback
                    perform(what, make)
            elif words:
                words.failed(what) if word == "failed" else words.ignore()

    if way == "block":
        with call as words:
            body(words)
    elif way == "function":
        call(body)(None)
    else:

        @call
        def stream() -> Iterator[int]:
            body(None)
            yield 1

        running: Any = stream()
        if way == "stream":
            list(running)
        else:
            next(running)
            running.close()


async def perform_async(program: Any, make: MakesCall) -> None:
    """Do what the program says, with `async with`, coroutines and async generators."""
    model, way, steps = program
    call = make(model)

    async def body(words: Call | None) -> None:
        for word, what in steps:
            await asyncio.sleep(0)
            if word == "raise":
                raise what
            if word == "call":
                await perform_async(what, make)
            elif word == "fallback":
                with suppress(Exception):  # the next step is the fallback
                    await perform_async(what, make)
            elif words:
                words.failed(what) if word == "failed" else words.ignore()

    if way == "block":
        async with call as words:
            await body(words)
    elif way == "function":
        await call(body)(None)
    else:

        @call
        async def stream() -> AsyncIterator[int]:
            await body(None)
            yield 1

        running: Any = stream()
        if way == "stream":
            async for _ in running:
                pass
        else:
            await anext(running)
            await running.aclose()


def run_to_its_end(program: Any, make: MakesCall, *, asynchronous: bool) -> BaseException | None:
    """Run a program; return what left it."""

    async def main() -> BaseException | None:
        # Ctrl-C in a task would end the loop: it is caught where it leaves the program.
        try:
            await perform_async(program, make)
        except BaseException as exc:
            return exc
        return None

    if asynchronous:
        return asyncio.run(main())
    try:
        contextvars.copy_context().run(perform, program, make)
    except BaseException as exc:
        return exc
    return None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@settings(max_examples=150, deadline=None)
@given(program=PROGRAMS)
def test_any_nesting_is_recorded_as_the_table_says(asynchronous: bool, program: Any) -> None:
    """What is recorded, its order, and the exception that leaves are those of the table."""
    table, kept = Table(), Kept()
    expected = table.run(program)
    left = run_to_its_end(program, kept.call, asynchronous=asynchronous)
    assert type(left) is type(expected)
    assert kept.outcomes == table.outcomes
    assert (kept.warnings, kept.unrecorded.number) == ([], 0)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(program=PROGRAMS, asynchronous=st.booleans())
def test_the_same_in_the_database(
    fleet: Fleet, fleet_url: str, program: Any, asynchronous: bool
) -> None:
    """On both databases the counters of all models are those of the table."""
    clear(fleet_url)
    seed(fleet, MODELS)
    table = Table()
    table.run(program)
    run_to_its_end(program, fleet.call, asynchronous=asynchronous)
    for model_id in MODELS:
        types = [type_ for model, type_ in table.outcomes if model == model_id]
        model = fleet.show(model_id)
        successes = types.count(None)
        assert (model.success_count, model.failure_count) == (successes, len(types) - successes)
        last = [type_ for type_ in types if type_]
        assert model.failure_type == (last[-1] if last else None)
