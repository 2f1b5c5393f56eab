"""Functions with a call of a model around each of their runs: plain ones, coroutines, streams."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modelctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    # `Call` itself imports this file.
    _MakesCall = Callable[[], Any]

F = TypeVar("F", bound="Callable[..., Any]")


def decorated(function: F, call: _MakesCall) -> F:
    """Return a function of the same kind; *call* makes the call around each of its runs."""
    if isinstance(function, type) or not callable(function):
        raise UsageError(
            f"a call decorates functions, not {function!r}",
            hint="write it below @classmethod, @staticmethod and @property",
        )
    for is_function, _, around in _KINDS:
        if is_function(function):
            return cast("F", around(function, call))
    return cast("F", _plain(function, call))


def _plain(function: Callable[..., Any], call: _MakesCall) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with call() as this:
            result = function(*args, **kwargs)
            for _, is_result, around in _KINDS:
                if is_result(result):  # what calls the model has not run yet
                    this.ignore()
                    return around(lambda: result, call)()
        return result

    return run


def _coroutine(function: Callable[..., Any], call: _MakesCall) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        async with call():
            return await function(*args, **kwargs)

    return run


def _stream(function: Callable[..., Any], call: _MakesCall) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with call():
            return (yield from function(*args, **kwargs))

    return run


def _async_stream(function: Callable[..., Any], call: _MakesCall) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with call():
            stream = function(*args, **kwargs)
            try:
                value = await stream.asend(None)
                while True:
                    thrown = sent = None
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as exc:  # the consumer throws it into the stream
                        thrown = exc
                    value = await (stream.athrow(thrown) if thrown else stream.asend(sent))
            except StopAsyncIteration:
                return
            finally:
                await stream.aclose()

    return run


# Of each kind of function: is it one, is this what calling one returns, and what goes around it.
_KINDS = (
    (inspect.isasyncgenfunction, inspect.isasyncgen, _async_stream),
    (inspect.iscoroutinefunction, inspect.iscoroutine, _coroutine),
    (inspect.isgeneratorfunction, inspect.isgenerator, _stream),
)
