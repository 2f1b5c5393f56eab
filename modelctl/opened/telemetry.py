"""What the world outside can see of a count or a change: one span, and one log record of a change."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelctl.errors import ModelctlError, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelctl.opened.opened_fleet import OpenedFleet

# The methods of `Fleet` that can change models, pauses, the history or what is ignored.
CHANGES = (
    *("add", "disable", "enable", "remove", "edit", "rename", "undo", "import_models", "restore"),
    *("record_success", "record_failure", "record_batch", "recover", "probe", "pause", "resume"),
    *("ignore", "unignore"),
    "sync",
)


def observed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method: a count gets a span, a change a span and a log record."""
    # `_count` is what `count` does if it does not remember.
    name = method.__name__.removeprefix("_")
    if name != "count" and name not in CHANGES:
        return method
    span_name, is_change = f"modelctl.{name}", name in CHANGES

    @functools.wraps(method)
    def call(self: OpenedFleet, *args: Any, **kwargs: Any) -> Any:
        trace = _opentelemetry()
        span = _tracer(trace).start_span(span_name) if trace is not None else None
        if span is None or not span.get_span_context().is_valid:  # the application does not trace
            result = method(self, *args, **kwargs)
        else:
            with _span(trace, span):
                result = method(self, *args, **kwargs)
                if span.is_recording():
                    span.set_attributes(_attributes(result))
        if is_change and "logging" in sys.modules:
            _log(name, result)
        return result

    return call


def counted(count: object, began: int) -> None:
    """Make the span of a count that began at *began* (nanoseconds since 1970) and ends now."""
    if (trace := _opentelemetry()) is not None:
        span = _tracer(trace).start_span("modelctl.count", start_time=began)
        span.set_attributes(_attributes(count))
        span.end()


def _opentelemetry() -> Any:
    """Return the module of OpenTelemetry if it is loaded: an application that traces has loaded it."""
    trace = sys.modules.get("opentelemetry.trace")
    # Another thread may be loading it at the moment.
    return None if trace is None or getattr(trace.__spec__, "_initializing", False) else trace


@functools.cache
def _tracer(trace: Any) -> Any:
    from modelctl import __version__

    # If the application sets its provider later, the API passes that on to this tracer.
    return trace.get_tracer("modelctl", __version__)


@contextmanager
def _span(trace: Any, span: Any) -> Iterator[None]:
    """Put *span* around a call. The text of an error may name models and servers: it is not in it."""
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except BaseException as exc:
            code = exc.code if isinstance(exc, ModelctlError) else None
            span.set_attribute("error.type", type(exc).__name__)
            span.set_status(trace.Status(trace.StatusCode.ERROR, code))
            raise


def _attributes(result: object) -> dict[str, Any]:
    """Return what a result says, as attributes of a span."""
    changed, model_id = _changed(result)
    facts = {
        "source": getattr(result, "source", None),
        "cache": getattr(result, "cache", None),
        "operation": getattr(result, "operation", None),
        "model_id": model_id,
        "changed": changed,
    }
    return {
        f"modelctl.{name}": value if isinstance(value, int) else str(value)
        for name, value in facts.items()
        if value is not None
    }


def _changed(result: object) -> tuple[int | None, str | None]:
    """Return how many models changed, and the id of the model if the result is about one."""
    if (recovered := getattr(result, "recovered", None)) is not None:  # a run of recover
        return len(recovered), clean(recovered[0]) if len(recovered) == 1 else None
    if (changes := getattr(result, "changes", None)) is None:
        added = getattr(result, "added", None)  # of an import
        return None if added is None else added + getattr(result, "updated", 0), None
    number = sum(change.changed for change in changes)
    return number, clean(changes[0].id) if len(changes) == 1 else None


def _log(name: str, result: object) -> None:
    import logging

    from modelctl import logs, operation

    logger = logs.logger("fleet")
    written = operation.written()
    level = logging.DEBUG if written is None else logging.INFO
    if not logger.isEnabledFor(level):
        return
    changed, model_id = _changed(result)
    words = [name]
    if model_id is not None:
        words.append(f"'{model_id}'")
    if changed is not None:
        words.append(f"changed={changed}")
    cache = getattr(result, "cache", None)
    fields = logs.fields(model_id=model_id, operation=written, cache=cache)
    words += [f"{key}={value}" for key, value in fields.items() if value and key != "model_id"]
    logger.log(level, "%s", " ".join(words), extra=fields)
