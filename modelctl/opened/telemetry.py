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

# The methods of `Fleet` that can change models, pauses or the history.
CHANGES = (
    *("add", "disable", "enable", "remove", "edit", "rename", "undo", "import_models", "restore"),
    *("record_success", "record_failure", "record_batch", "recover", "probe", "pause", "resume"),
)


def observed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method: a count gets a span, a change a span and a log record."""
    name = method.__name__.removeprefix(
        "_"
    )  # `_count` is what `count` does if it does not remember
    if name != "count" and name not in CHANGES:
        return method
    is_change = name in CHANGES

    @functools.wraps(method)
    def call(self: OpenedFleet, *args: Any, **kwargs: Any) -> Any:
        # An application that traces has loaded OpenTelemetry. So there is nothing to import.
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            result = method(self, *args, **kwargs)
        else:
            with _span(trace, name) as attributes:
                result = method(self, *args, **kwargs)
                attributes.update(_attributes(result))
        if is_change and "logging" in sys.modules:
            _log(name, result)
        return result

    return call


def counted(count: object, began: int) -> None:
    """Make the span of a count that began at *began* (nanoseconds since 1970) and ends now."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        span = _tracer(trace).start_span("modelctl.count", start_time=began)
        span.set_attributes(_attributes(count))
        span.end()


def _tracer(trace: Any) -> Any:
    from modelctl import __version__

    return trace.get_tracer("modelctl", __version__)


@contextmanager
def _span(trace: Any, name: str) -> Iterator[dict[str, Any]]:
    """Put a span around a call; it gets the attributes that the code inside sets."""
    attributes: dict[str, Any] = {}
    span = _tracer(trace).start_span(f"modelctl.{name}")
    if not span.is_recording():
        with trace.use_span(span):
            yield attributes
        return
    # The text of an error may name models and servers, so it is not in the span.
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield attributes
        except BaseException as exc:
            code = exc.code if isinstance(exc, ModelctlError) else None
            span.set_attribute("error.type", type(exc).__name__)
            span.set_status(trace.Status(trace.StatusCode.ERROR, code))
            raise
        finally:
            span.set_attributes(attributes)


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
        return None, None
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
