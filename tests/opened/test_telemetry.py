"""Counts and changes are spans of OpenTelemetry, changes and warnings are log records."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from modelctl import AsyncFleet, Fleet, ModelNotFoundError
from modelctl.opened.telemetry import CHANGES
from tests.fleets import configured, opened, put, put_off, seed
from tests.servers import refused_port


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Set up OpenTelemetry as an application does, once for this process; give what it exports to."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Any]:
    """Give a function that returns name and attributes of each span since the last call."""
    exporter.clear()

    def finished() -> list[tuple[str, dict[str, Any]]]:
        found = [(span.name, dict(span.attributes or {})) for span in exporter.get_finished_spans()]
        exporter.clear()
        return found

    yield finished
    exporter.clear()


def test_every_method_that_changes_something_is_listed() -> None:
    """A public method that says who acts is a change, reads what others did, or records later."""
    acting = {
        name
        for name, method in inspect.getmembers(Fleet, inspect.isfunction)
        if not name.startswith("_") and "actor" in inspect.signature(method).parameters
    }
    reads = {"events", "iter_events", "follow_events"}
    assert acting - {*CHANGES} == {*reads, "call", "recorder"}
    assert {*CHANGES} - acting == {"unignore"}  # it deletes, and stores no name


def test_a_count_is_one_span(fleet: Fleet, spans: Any) -> None:
    """Its attributes say where the number came from."""
    seed(fleet, ["a"])
    spans()
    fleet.count(fresh=True)
    [(name, attributes)] = spans()
    assert (name, attributes) == ("modelctl.count", {"modelctl.source": "database"})
    fleet.count(max_age=60.0)
    assert len(spans()) == 1
    fleet.count(max_age=60.0)  # from memory
    fleet.list_models()
    fleet.stats()
    assert spans() == []


def test_a_count_in_the_event_loop_is_one_span(
    pg_database: str, redis_url: str, spans: Any
) -> None:
    """A hit that needs no thread is a span too, and so is the miss before it."""

    async def main() -> None:
        config = configured(pg_database, redis_url=redis_url)
        async with AsyncFleet.open(config) as fleet:
            await fleet.count()
            await fleet.count()

    asyncio.run(main())
    assert spans() == [
        ("modelctl.count", {"modelctl.source": "database"}),
        ("modelctl.count", {"modelctl.source": "cache"}),
    ]


def test_a_change_is_one_span(fleet: Fleet, spans: Any) -> None:
    """Its name has no id; its attributes say how many models changed, in which operation."""
    seed(fleet, ["a", "b"])
    spans()
    result = fleet.disable("a", "b", reason="sk-secret-1234567890abcdef")
    [(name, attributes)] = spans()
    assert name == "modelctl.disable"
    assert attributes == {
        "modelctl.changed": 2,
        "modelctl.cache": str(result.cache),
        "modelctl.operation": result.operation,
    }
    fleet.record_success("a")
    [(name, attributes)] = spans()
    assert name == "modelctl.record_success"
    assert (attributes["modelctl.changed"], attributes["modelctl.model_id"]) == (0, "a")


def test_a_call_and_its_change_are_in_the_span_of_the_application(
    fleet: Fleet, exporter: InMemorySpanExporter, spans: Any
) -> None:
    """What is recorded at the end of a block belongs to the trace of the code around it."""
    seed(fleet, ["a"])
    spans()
    with trace.get_tracer("app").start_as_current_span("request") as request, fleet.call("a"):
        pass
    recorded = next(s for s in exporter.get_finished_spans() if s.name != "request")
    assert recorded.name == "modelctl.record_success"
    assert recorded.parent is not None
    assert recorded.parent.span_id == request.get_span_context().span_id


def test_an_error_is_in_the_span_without_its_text(
    fleet: Fleet, exporter: InMemorySpanExporter, spans: Any
) -> None:
    """The class and the code of an error are there; its text and its traceback are not."""
    spans()
    with pytest.raises(ModelNotFoundError):
        fleet.disable("no-such-model")
    [span] = exporter.get_finished_spans()
    assert span.attributes == {"error.type": "ModelNotFoundError"}
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "model_not_found"
    assert span.events == ()


def test_recover_says_how_many_came_back(fleet: Fleet, fleet_url: str, spans: Any) -> None:
    """The models that come back are the changed ones."""
    put_off(fleet_url, "a", "b", failed=99_999)
    fleet.recover()
    [(name, attributes)] = spans()
    assert (name, attributes["modelctl.changed"]) == ("modelctl.recover", 2)


def test_an_import_says_how_many_models_it_added_and_updated(fleet: Fleet, spans: Any) -> None:
    """Models that stay as they are do not count."""
    seed(fleet, ["a", "b"])
    spans()
    fleet.import_models(b'{"id": "a", "name": "A"}\n{"id": "b"}\n{"id": "c"}\n')
    [(name, attributes)] = spans()
    assert (name, attributes["modelctl.changed"]) == ("modelctl.import_models", 2)


def test_a_recorder_has_spans_of_its_batches_and_a_logger(
    fleet: Fleet, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch is one span without ids; what a recorder warns of is logged by ``modelctl.recorder``."""
    seed(fleet, ["a"])
    spans()
    with fleet.recorder() as recorder:
        for model_id in ("a", "b", "a"):
            with recorder.call(model_id):
                pass
    for name, attributes in spans():  # one, if the thread did not wait for a second in between
        assert name == "modelctl.record_batch"
        assert attributes.keys() <= {"modelctl.cache", "modelctl.changed", "modelctl.operation"}
    [record] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert (record.name, "'b'" in record.getMessage()) == ("modelctl.recorder", True)


def test_nothing_loads_opentelemetry() -> None:
    """A program that does not trace never imports it, also where it is installed."""
    code = (
        "import sys; from modelctl import Fleet\n"
        "with Fleet.open() as fleet: fleet.count(); fleet.add('a')\n"
        "print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr == ""


def test_a_change_is_one_record(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """INFO if it wrote an event, else DEBUG; with the model, the operation and the cache, no reason."""
    caplog.set_level(logging.DEBUG, "modelctl")
    seed(fleet, ["a"])
    caplog.clear()
    result = fleet.disable("a", reason="the reason")
    fleet.disable("a")
    fleet.record_success("a")
    fleet.disable("a", dry_run=True)
    found = [(r.name, r.levelname, r.getMessage().partition(" ")[0]) for r in caplog.records]
    assert found == [
        ("modelctl.fleet", "INFO", "disable"),
        ("modelctl.fleet", "DEBUG", "disable"),
        ("modelctl.fleet", "DEBUG", "record_success"),
        ("modelctl.fleet", "DEBUG", "disable"),
    ]
    first: Any = caplog.records[0]
    assert (first.model_id, first.operation) == ("a", result.operation)
    assert first.cache == str(result.cache)
    assert "the reason" not in caplog.text


def test_a_record_holds_no_control_character(
    fleet: Fleet, fleet_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of an application's own row may have some: they are escaped, in the text and the field."""
    put(fleet_url, "a\x1b[31m\nb")
    caplog.set_level(logging.INFO, "modelctl")
    fleet.disable("a\x1b[31m\nb")
    [record] = caplog.records
    assert record.model_id == r"a\x1b[31m\nb"  # type: ignore[attr-defined]  # an extra field
    assert "\x1b" not in record.getMessage()
    assert "\n" not in record.getMessage()


def test_warnings_are_records_with_the_same_fields(
    pg_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A queued invalidation names its operation; the outcome of an unknown model names the id."""
    with opened(pg_database, redis_url=f"redis://127.0.0.1:{refused_port()}/0") as fleet:
        result = fleet.add("a")
        with fleet.call("b"):
            pass
    queued, unrecorded = (r for r in caplog.records if r.levelname == "WARNING")
    found: Any = queued
    assert (found.name, found.operation, found.cache) == (
        *("modelctl.fleet", result.operation, "queued"),
    )
    found = unrecorded
    assert (found.name, found.model_id, found.cache) == ("modelctl.calls", "b", None)


def test_warnings_go_to_on_warning_alone(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """An application that takes the warnings itself does not find them in its log too."""
    warnings: list[str] = []
    fleet.on_warning = warnings.append
    with fleet.call("b"):
        pass
    assert (len(warnings), caplog.records) == (1, [])


def test_without_a_handler_nothing_is_printed() -> None:
    """A library is silent unless the application configures logging: its logger has a NullHandler."""
    code = (
        "import logging; from modelctl import Fleet\n"
        "with Fleet.open() as fleet:\n"
        "    with fleet.call('no-such-model'): pass\n"
        "print([type(handler).__name__ for handler in logging.getLogger('modelctl').handlers])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['NullHandler']\n", "")
