"""All events of a call have one operation, and each change can name who made it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelctl import Fleet, UsageError
from modelctl.operation import is_operation, new
from tests.commands import Cli
from tests.fleets import ACTOR, HOUR, let_pass, opened, seed, sql, trip


def operations(fleet: Fleet) -> list[tuple[str, str | None, str | None]]:
    """Return (event, actor, operation) of the whole history, oldest first."""
    found = fleet.events(oldest_first=True, limit=0)
    return [(event.event, event.actor, event.operation) for event in found]


def test_an_operation_is_a_ulid() -> None:
    """Operations are distinct, have 26 digits of base 32, and sort by the time of their making."""
    made = [new() for _ in range(1000)]
    assert len({*made}) == 1000
    assert all(map(is_operation, made))
    assert [one[:10] for one in made] == sorted(one[:10] for one in made)
    for wrong in ("", "8" + made[0][1:], made[0].lower(), made[0][:-1], "I" * 26):
        assert not is_operation(wrong)


def test_all_events_of_a_call_have_one_operation(fleet: Fleet) -> None:
    """Calls over many models write one operation, two calls write two, and the results have it."""
    ids = [f"m{number}" for number in range(30)]
    added = fleet.import_models(b"\n".join(b'{"id": "%s"}' % i.encode() for i in ids))
    off = fleet.disable(*ids)
    on = fleet.enable(*ids)
    found = [operation for _, _, operation in operations(fleet)]
    assert all(one and is_operation(one) for one in found)
    assert found == [one for done in (added, off, on) for one in [done.operation] * 30]
    assert len({*found}) == 3


def test_every_way_to_write_an_event_has_an_operation(fleet_url: str) -> None:
    """Each kind of call gives its events the operation that its result has."""
    with opened(fleet_url, health_threshold=1, recovery_restart_failures=0) as fleet:
        done: list[Any] = [
            fleet.add("a", provider="p"),
            fleet.record_failure("a", "parse-error"),
            fleet.record_success("a"),
            fleet.record_batch([{"id": "a", "outcome": "failure", "type": "parse-error"}]),
        ]
        let_pass(fleet_url, 2 * HOUR)
        done += [
            fleet.recover(),
            fleet.pause(60),
            fleet.resume(),
            fleet.disable("a"),
            fleet.disable("a", reason="another"),
            fleet.enable("a"),
            fleet.remove("a"),
        ]
        written = [operation for _, _, operation in operations(fleet)]
    assert written == [one.operation for one in done]
    assert len({*written}) == len(done)


def test_a_call_without_events_has_no_operation(fleet: Fleet) -> None:
    """What changes nothing, and a dry run, has no operation."""
    seed(fleet, "a")
    fleet.disable("a")
    calls: list[Any] = [
        fleet.disable("a"),
        fleet.enable("a", dry_run=True),
        fleet.record_success("a"),
        fleet.recover(),
        fleet.resume(),
        fleet.import_models(io.BytesIO(b'{"id": "b"}'), dry_run=True),
    ]
    assert [done.operation for done in calls] == [None] * len(calls)


def test_threads_have_operations_of_their_own(fleet: Fleet) -> None:
    """Calls at the same time in several threads do not share an operation."""
    ids = [f"m{number}" for number in range(8)]
    seed(fleet, ids)
    with ThreadPoolExecutor(4) as threads:
        done = [*threads.map(lambda model_id: fleet.disable(model_id), ids)]
    by_model = {event.model_id: event.operation for event in fleet.events(event="disabled")}
    assert by_model == {one.changes[0].id: one.operation for one in done}
    assert len({*by_model.values()}) == 8


def test_each_change_can_name_its_actor(fleet_url: str) -> None:
    """`actor=` replaces the actor of the fleet for one call, in each method that changes something."""
    with opened(fleet_url, health_threshold=1, recovery_restart_failures=0) as fleet:
        fleet.add("a", actor="1")
        fleet.import_models(b'{"id": "b"}', actor="2")
        fleet.record_failure("a", "parse-error", actor="3")
        fleet.record_success("a", actor="4")
        fleet.record_batch([{"id": "a", "outcome": "failure", "type": "parse-error"}], actor="5")
        let_pass(fleet_url, 2 * HOUR)
        fleet.recover(actor="6")
        fleet.pause(60, actor="7")
        fleet.resume(actor="8")
        fleet.disable("a", actor="9")
        fleet.enable("a", actor="10")
        fleet.remove("a", actor="11")
        fleet.disable("b")
        fleet.enable("b", actor="")
        actors = [actor for _, actor, _ in operations(fleet)]
        assert actors == [*map(str, range(1, 12)), ACTOR, ACTOR]
        with pytest.raises(UsageError, match="an actor is text, not int"):
            fleet.disable("b", actor=5)  # type: ignore[arg-type]


def test_json_has_the_operation(tool: Cli, fleet: Fleet) -> None:
    """-o json of a change has the operation, by which `events` finds its events; also in small letters."""
    seed(fleet, "abc")
    found = tool("disable", "a", "b", "-o", "json").json["operation"]
    for written in (found, found.lower()):
        lines = tool("events", "--operation", written, "-o", "json").json
        assert [(line["model_id"], line["operation"]) for line in lines] == [
            ("b", found),
            ("a", found),
        ]
    assert tool("disable", "a", "-o", "json").json["operation"] is None
    tool("events", "--operation", "x").failed(2, "'x' is not an operation")


def test_old_events_have_none(fleet: Fleet, fleet_url: str) -> None:
    """An event without an operation, as earlier releases wrote them, is listed with none."""
    seed(fleet, "a")
    trip(fleet, "a")
    sql(fleet_url, "UPDATE modelctl_events SET operation = NULL")
    assert [operation for *_, operation in operations(fleet)] == [None, None]
