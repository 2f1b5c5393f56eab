"""Call: one call of a model. Its outcome is recorded when the block or the function around it ends."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from modelctl.errors import UsageError
from modelctl.failures import facts
from modelctl.failures.classification import classify_without
from modelctl.health import Outcome
from modelctl.opened import arguments

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from modelctl.calls.unrecorded import Unrecorded
    from modelctl.model import FailureType

F = TypeVar("F", bound="Callable[..., Any]")

# The call that the code is in.
_current: ContextVar[Call | None] = ContextVar("modelctl_call", default=None)
# So many exceptions that left calls inside of a call are remembered until it ends.
_MOST_INNER = 64


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the outcomes of calls are recorded: the methods of a recorder, or those of a fleet.

    *run*: how a coroutine lets work be done that may wait for the database. None: nothing waits.
    """

    success: Callable[[str], object]
    failure: Callable[..., object]  # (id, type, *, reason)
    unrecorded: Unrecorded
    run: Callable[[Callable[[], None]], Awaitable[None]] | None


class _Said(NamedTuple):
    """What the block said about the call; *type* None: nothing is to be recorded."""

    type: FailureType | None
    reason: str | None = None


class Call:
    """One call of a model, made by `Fleet.call` or `Recorder.call`; a context manager and a decorator.

    What is recorded when the block ends:

    - a success, if it ends without an exception;
    - a failure, if an exception leaves it that says something about the model (`classify`);
    - nothing, if the exception is the caller's own doing, or a cancellation, Ctrl-C or `GeneratorExit`;
    - what `failed` or `ignore` said, if the block called them, however it ends. The last word counts.

    The exception itself goes on unchanged. If the outcome cannot be recorded (the database is away, no
    model has the id), `Fleet.on_warning` is told, and the block ends as it would have ended.

    ``async with`` does the same without blocking the event loop. If the task is cancelled while the
    outcome is being written, it is written nevertheless, and the cancellation goes on.

    Calls may be nested. An exception that has left an inner call says nothing about the model of the
    outer one.

    As a decorator it makes a new call each time the function is called. It fits functions, coroutines,
    generators and asynchronous generators. A stream is a success when it ended; nothing is recorded if
    its consumer closed it before.

    ``with`` takes each object once: for the next call of the model call `Fleet.call` again.
    """

    __slots__ = ("_begun", "_id", "_inner", "_open", "_outer", "_process", "_said", "_sink")

    def __init__(self, sink: Sink, id: str | None = None) -> None:  # noqa: A002 - its usual name
        """*id*: None, if only the block will know it.

        Raises:
            UsageError: the id is not text.
        """
        if id is not None:
            arguments.distinct([id])
        self._sink = sink
        self._id = id
        self._begun = threading.Lock()  # held once the call has begun
        self._open = False
        self._said: _Said | None = None
        self._outer: Call | None = None
        self._inner: deque[BaseException] = deque(maxlen=_MOST_INNER)

    # ── What the block may say ──

    def failed(
        self,
        type: FailureType | str | BaseException | None = "unknown",  # noqa: A002 - its usual name
        *,
        http_status: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Say that the call failed, also if no exception leaves the block: the answer is no good.

        The arguments are those of `Fleet.record_failure`.

        Raises:
            UsageError: an argument is wrong, or the call is over or has not begun.
        """
        self._check_open()
        kind = arguments.failure(type, http_status)
        if not isinstance(reason, str | None):
            raise UsageError(f"a reason is text, not {reason.__class__.__name__}")
        if reason is None and isinstance(type, BaseException):
            reason = facts.reason(type)
        self._said = _Said(kind, reason)

    def ignore(self) -> None:
        """Record nothing, however the block ends.

        Raises:
            UsageError: the call is over or has not begun.
        """
        self._check_open()
        self._said = _Said(None)

    def model(self, id: str) -> None:  # noqa: A002 - its usual name
        """Say which model it is, if only the answer tells: a router chose it.

        Raises:
            UsageError: the id is not text, or the call is over or has not begun.
        """
        self._check_open()
        arguments.distinct([id])
        self._id = id

    def _check_open(self) -> None:
        if not self._open:
            when = (
                "is over, and its outcome is recorded" if self._begun.locked() else "has not begun"
            )
            raise UsageError(f"this call {when}", hint="say it inside of its block")

    # ── As a context manager ──

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        outcome = self._end(exc)
        if outcome is not None:
            self._record(outcome)

    async def __aenter__(self) -> Self:
        if self._sink.run and _running_loop() is None:
            raise UsageError(
                "async with needs the event loop of asyncio",
                hint="elsewhere use a recorder: recorder.call(id) needs no event loop",
            )
        self._begin()
        return self

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        outcome = self._end(exc)
        if outcome is None:
            return
        run = self._sink.run
        if run is None or _running_loop() is None:  # a generator may be closed after its loop
            self._record(outcome)
            return
        import asyncio

        try:
            writing = asyncio.ensure_future(run(partial(self._record, outcome)))
        except Exception as why:  # the loop is closing, and its threads have ended
            self._sink.unrecorded.tell(outcome.id, why)
            return
        writing.add_done_callback(partial(self._written, outcome.id))
        if not isinstance(exc, GeneratorExit):  # a coroutine that is being closed must not wait
            with suppress(Exception):  # `_written` tells it
                await asyncio.shield(writing)

    def _written(self, model_id: str, writing: asyncio.Future[None]) -> None:
        """Tell if no thread could be had for an outcome."""
        if writing.cancelled():
            self._sink.unrecorded.tell(model_id, UsageError("the event loop has ended"))
        elif isinstance(why := writing.exception(), Exception):
            self._sink.unrecorded.tell(model_id, why)

    # ── As a decorator ──

    def __call__(self, function: F) -> F:
        """Return *function* with a call around each of its runs.

        Raises:
            UsageError: it is not a function, or this call has no id.
        """
        from modelctl.calls.decorated import decorated

        if self._id is None:
            raise UsageError("a decorator needs the id of the model: fleet.call(id)")
        return decorated(function, lambda: Call(self._sink, self._id))

    def recorded_in(self, run: Callable[[Callable[[], None]], Awaitable[None]]) -> Call:
        """Return another call of the same model, which a coroutine records by means of *run*."""
        return Call(replace(self._sink, run=run), self._id)

    # ── Beginning and end ──

    def _begin(self) -> None:
        if not self._begun.acquire(blocking=False):
            raise UsageError(
                "this call has begun already; each one is for one call of a model",
                hint="write: with fleet.call(id)",
            )
        self._process = os.getpid()
        self._outer = _open_one(_current.get())
        self._open = True
        _current.set(self)

    def _end(self, exc: BaseException | None) -> Outcome | None:
        """End the call; return what is to be recorded. Never raises an `Exception`."""
        self._open = False
        # A generator may end later than a call that began after it, or in another context.
        outer = self._outer = _open_one(self._outer)
        if _current.get() is self:
            _current.set(outer)
        try:
            return self._outcome(exc)
        except Exception as why:
            self._sink.unrecorded.tell(self._id, why)
            return None
        finally:
            if outer:
                outer._inner.extend(self._inner)
                if exc is not None:
                    outer._inner.append(exc)
            self._inner.clear()

    def _outcome(self, exc: BaseException | None) -> Outcome | None:
        if self._process != os.getpid():  # the child of a fork leaves the block of its parent
            return None
        said = self._said
        if said is None and exc is not None:
            kind = classify_without(exc, tuple(self._inner))
            said = _Said(kind, facts.reason(exc) if kind else None)
        if said and said.type is None:
            return None
        if self._id is None:
            raise UsageError("the call names no model", hint="call.model(id) names it")
        return Outcome(self._id, said.type, said.reason) if said else Outcome(self._id, None)

    def _record(self, outcome: Outcome) -> None:
        try:
            if outcome.type is None:
                self._sink.success(outcome.id)
            else:
                self._sink.failure(outcome.id, outcome.type, reason=outcome.reason)
        except Exception as why:
            self._sink.unrecorded.tell(outcome.id, why)


def _open_one(call: Call | None) -> Call | None:
    """Return *call*, or the nearest one around it that has not ended."""
    while call is not None and not call._open:
        call = call._outer
    return call


def in_thread(work: Callable[[], None]) -> Awaitable[None]:
    """Let a thread of the event loop do *work*."""
    import asyncio

    return asyncio.get_running_loop().run_in_executor(None, copy_context().run, work)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of asyncio; None: there is none, or it is that of another library."""
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
