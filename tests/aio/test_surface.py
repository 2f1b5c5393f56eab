"""AsyncFleet has the methods of Fleet, with the same parameters, and types that a checker sees."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any, assert_type

import pytest

from modelctl import (
    AsyncFleet,
    Call,
    Changes,
    Count,
    Event,
    Fleet,
    Model,
    ModelctlError,
    UsageError,
)
from modelctl.recorder.recorder import Recorder
from tests import fleets

NAMES = [name for name, _ in inspect.getmembers(Fleet, inspect.isfunction) if name[0] != "_"]
UNCHANGED = ("call", "recorder")  # they wait for nothing
METHODS = [name for name in NAMES if name != "close"]  # of AsyncFleet it is aclose


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_there(name: str) -> None:
    """Each method of Fleet is a coroutine or an asynchronous generator with the same parameters."""
    usual, method = getattr(Fleet, name), getattr(AsyncFleet, name)
    waits = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    assert waits is (name not in UNCHANGED)
    gives_many = inspect.isgeneratorfunction(inspect.unwrap(usual)) or "Iterator" in str(
        inspect.signature(usual).return_annotation
    )
    assert not (gives_many and inspect.iscoroutinefunction(method))
    assert inspect.signature(method) == inspect.signature(usual)
    assert method.__doc__ == usual.__doc__


async def typed(fleet: AsyncFleet) -> None:
    """What a type checker sees; nobody calls this."""
    assert_type(await fleet.count(fresh=True), Count)
    assert_type(await fleet.disable("a", reason="r"), Changes)
    assert_type(await fleet.list_models(limit=3), list[Model])
    assert_type(fleet.call("a", actor="x"), Call)
    assert_type(fleet.recorder(capacity=9), Recorder)
    assert_type(fleet.iter_models(sort="name"), AsyncGenerator[Model, None])
    assert_type(fleet.follow_events(), AsyncGenerator[list[Event], None])
    async for model in fleet.iter_models():
        assert_type(model, Model)
    # The ignored errors are wanted: without them mypy would say that they are unused.
    await fleet.disable("a", reasons="r")  # type: ignore[call-arg]
    await fleet.record_success(1)  # type: ignore[arg-type]
    fleet.closed()  # type: ignore[attr-defined]


def test_no_loop_and_other_loops() -> None:
    """Without an event loop of asyncio, as under trio, a call is an error that says what to use."""
    fleet = AsyncFleet.open(fleets.configured("sqlite:////nowhere.db"))
    calls: list[Callable[[], Any]] = [fleet.count, fleet.list_models, fleet.aclose]
    for call in calls:
        coroutine = call()
        with pytest.raises(UsageError, match="event loop of asyncio"):
            coroutine.send(None)
    models = fleet.iter_models()
    with pytest.raises(UsageError, match="event loop of asyncio"):
        models.__anext__().send(None)


def test_names_are_loaded_lazily() -> None:
    """`import modelctl`, and a program that uses only Fleet, do not load asyncio."""
    code = (
        "import sys, modelctl; modelctl.Fleet;"
        " print('asyncio' in sys.modules, 'modelctl.aio.fleet' in sys.modules);"
        " from modelctl import AsyncFleet; print(AsyncFleet.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "AsyncFleet"]


def test_errors_are_the_same(fleet_url: str) -> None:
    """An error has the class, the words and the hint that the same call of Fleet raises."""

    async def told(call: Callable[[AsyncFleet], Any]) -> tuple[type, str, str | None]:
        async with AsyncFleet.open(config) as fleet:
            with pytest.raises(ModelctlError) as caught:
                await call(fleet)
            return type(caught.value), caught.value.message, caught.value.hint

    config = fleets.configured(fleet_url)
    fleets.put(fleet_url, "aa")
    for method, arguments in (
        ("show", ["ab"]),
        ("disable", [["aa"]]),
        ("record_failure", ["aa", "boredom"]),
        ("rename", ["aa", "x\n"]),
    ):
        with (
            fleets.opened(fleet_url) as usual,
            pytest.raises(ModelctlError) as caught,
        ):
            getattr(usual, method)(*arguments)
        expected = type(caught.value), caught.value.message, caught.value.hint
        call = lambda fleet, m=method, a=arguments: getattr(fleet, m)(*a)  # noqa: E731
        assert asyncio.run(told(call)) == expected
