"""An undo puts back what an operation changed, and leaves alone what changed since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, ModelNotFoundError, RefusedError
from tests.commands import Cli
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    HOUR,
    STARTS,
    Start,
    alter,
    clear,
    everything,
    is_sqlite,
    let_pass,
    opened,
    put_starts,
    seed,
    sql,
    status,
    trip,
)

END = datetime(2100, 6, 1, 8, tzinfo=UTC)


def states(url: str) -> dict[str, tuple[Any, ...]]:
    """Return what an undo restores of each model."""
    found = sql(
        url,
        "SELECT id, active, auto_disabled, disabled_by, disabled_reason, disabled_until,"
        " consecutive_failures, ejections FROM models ORDER BY id",
    )
    return {row[0]: (bool(row[1]), bool(row[2]), *row[3:]) for row in found}


def test_the_night_of_a_provider(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """A provider off for two hours and back early: a legal hold among its models is untouched."""
    ids = [f"acme/{number}" for number in range(12)]
    seed(fleet, ids)
    fleet.disable("acme/5", reason="legal hold", actor="alice")
    before = states(fleet_url)
    tool("disable", *ids, "--for", "2h", "--reason", "outage", "--actor", "ops")
    done = tool("undo", "--actor", "ops", "-o", "json").json
    assert [line["result"] for line in done["changes"]] == ["active"] * 11
    assert states(fleet_url) == before
    assert fleet.events(limit=1)[0].event == "undone"


def test_a_hold_comes_back_whole(fleet: Fleet, fleet_url: str) -> None:
    """Undoing an enable brings back holder, reason and end of each hold, and the failures."""
    seed(fleet, "abc")
    fleet.disable("a", reason="legal hold", actor="alice")
    fleet.disable("b", reason="maintenance", until=END, actor="bob")
    trip(fleet, "c")
    before = states(fleet_url)
    on = fleet.enable("a", "b", "c")
    undone = fleet.undo(on.operation, reason="too early")
    assert status(fleet, *"abc") == [DISABLED, DISABLED, AUTO]
    assert states(fleet_url) == before
    assert undone.undone == on.operation != undone.operation
    assert {event.reason for event in fleet.events(operation=undone.operation)} == {"too early"}
    assert all(fleet.show(model_id).disabled_at for model_id in "abc")


def test_an_undo_can_be_undone(fleet: Fleet, fleet_url: str) -> None:
    """Undo takes the last operation of the same actor, so a second one takes back the first."""
    seed(fleet, "ab")
    fleet.disable("a", reason="x", until=END)
    trip(fleet, "b")
    before = states(fleet_url)
    fleet.enable("a", "b")
    after = states(fleet_url)
    for expected in (before, after, before, after):
        assert all(change.changed for change in fleet.undo().changes)
        assert states(fleet_url) == expected


def test_another_end_and_another_reason_come_back(fleet: Fleet, fleet_url: str) -> None:
    """A disable that only changed the reason or the end of another one is undone to these."""
    seed(fleet, "a")
    fleet.disable("a", actor="alice")
    before = states(fleet_url)
    fleet.disable("a", reason="because")
    fleet.undo()
    assert states(fleet_url) == before
    fleet.disable("a", until=END, force=True)
    fleet.undo()
    assert states(fleet_url) == before
    fleet.disable("a", until=END, force=True)
    timed = states(fleet_url)
    fleet.disable("a", reason="now for ever")
    fleet.undo()
    assert states(fleet_url) == timed


def test_what_changed_since_is_left_alone(fleet: Fleet, fleet_url: str) -> None:
    """A later change by anybody wins, whatever the status is now; its author is named."""
    seed(fleet, "abcdef")
    off = fleet.disable(*"abcdef", reason="mistake")
    fleet.enable("b", actor="bob")
    fleet.disable("b", reason="mine", actor="bob")
    fleet.disable("c", reason="better reason", actor="bob")
    sql(fleet_url, "UPDATE models SET active = TRUE WHERE id = ?", "d")
    sql(fleet_url, "UPDATE models SET active = FALSE WHERE id = ?", "d")
    fleet.remove("e")
    fleet.enable("f", actor="bob")
    undone = {change.id: change for change in fleet.undo(off.operation).changes}
    assert status(fleet, *"abcdf") == [ACTIVE, DISABLED, DISABLED, DISABLED, ACTIVE]
    notes: dict[str, Any] = {i: getattr(change, "note", None) for i, change in undone.items()}
    assert notes["a"] is None
    assert notes["b"] == "changed since: disabled by bob"
    assert notes["c"] == "changed since: updated by bob"
    by = "disabled by postgres (another program)"
    assert (
        notes["d"]
        == f"changed since{', by another program' if is_sqlite(fleet_url) else f': {by}'}"
    )
    assert "not in the fleet" in notes["e"]
    assert (notes["f"], undone["f"].changed) == (None, False)


def test_outcomes_and_recovery_can_be_undone(fleet: Fleet, fleet_url: str) -> None:
    """What the health rule and recover switched is put back, with the failures in a row."""
    seed(fleet, "a")
    before = states(fleet_url)
    trip(fleet, "a")
    off = states(fleet_url)
    fleet.undo()
    # The event notes the failures before the last one.
    assert states(fleet_url) == {"a": (*before["a"][:5], 4, 0)}
    fleet.undo()
    assert states(fleet_url) == off
    let_pass(fleet_url, 48 * HOUR)
    assert [*fleet.recover().recovered] == ["a"]
    fleet.undo()
    assert states(fleet_url) == off


def test_what_the_events_do_not_hold_is_said(fleet: Fleet, fleet_url: str) -> None:
    """A success does not note who had switched a model off; additions and removals are not undone."""
    fleet.add("a")
    trip(fleet, "a")
    back = fleet.record_success("a")
    note = "its event does not say who switched it off, and why"
    assert [getattr(c, "note", None) for c in fleet.undo(back.operation).changes] == [note]
    added = fleet.import_models(b'{"id": "a", "name": "A"}\n{"id": "b"}')
    notes = [getattr(change, "note", "") for change in fleet.undo(added.operation).changes]
    assert ["name or provider" in notes[0], "it was added" in notes[1]] == [True, True]
    fleet.remove("b")
    assert "it was removed" in getattr(fleet.undo().changes[0], "note", "")
    off = fleet.disable("a")
    garbled = '{"old": {"disabled_by": 7}}'
    sql(
        fleet_url,
        "UPDATE modelctl_events SET details = ? WHERE operation = ?",
        garbled,
        off.operation,
    )
    assert "cannot be read" in getattr(fleet.undo().changes[0], "note", "")
    assert fleet.show("a").status is DISABLED


def test_a_second_undo_of_the_same_is_done_already(tool: Cli, fleet: Fleet) -> None:
    """Where nothing is left to do, undo exits 0 and says so, and writes no event."""
    seed(fleet, "ab")
    off = fleet.disable("a", "b").operation or ""
    tool("undo", off)
    events = fleet.events(limit=0)
    again = tool("undo", off, "-o", "json")
    assert (again.code, again.json["operation"], again.json["undone"]) == (0, None, off)
    assert [line["result"] for line in again.json["changes"]] == ["already active"] * 2
    assert fleet.events(limit=0) == events


def test_a_dry_run_changes_nothing(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """--dry-run says what would happen to each model."""
    seed(fleet, "ab")
    fleet.disable("a", "b")
    fleet.enable("b", actor="bob")
    before = everything(fleet_url)
    done = tool("undo", "--dry-run", "-o", "json").json
    assert [line["result"] for line in done["changes"]] == ["would be active", "already active"]
    assert everything(fleet_url) == before


def test_there_is_no_such_operation(tool: Cli, fleet: Fleet) -> None:
    """An unknown operation, or none of this actor, is exit 4; one that is no change of models, 8."""
    tool("undo", "0" * 26).failed(4, "no operation 000")
    tool("undo").failed(4, f"no operation of '{ACTOR}'")
    tool("undo", "nonsense").failed(2, "not an operation")
    fleet.pause(60)
    tool("undo").failed(8, "changed no model (paused)", "resume")
    with pytest.raises(ModelNotFoundError):
        fleet.undo(actor="bob")


def test_the_floor_holds(fleet_url: str) -> None:
    """An undo that would switch off too many is refused, unless it is forced."""
    with opened(fleet_url) as fleet:
        seed(fleet, "ab")
        fleet.disable("a", "b")
        fleet.enable("a", "b")
    with opened(fleet_url, recovery_min_active=1) as fleet:
        before = everything(fleet_url)
        with pytest.raises(RefusedError, match="min_active"):
            fleet.undo()
        assert everything(fleet_url) == before
        fleet.undo(force=True)
        assert status(fleet, "a", "b") == [DISABLED, DISABLED]


@contextmanager
def statements(fleet: Fleet) -> Iterator[list[str]]:
    """Collect the statements that a fleet sends."""
    said: list[str] = []

    def note(*call: Any) -> None:
        said.append(call[2])

    engine = fleet._store.database.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield said
    sa.event.remove(engine, "before_cursor_execute", note)


def test_many_models_are_as_many_statements_as_one(fleet: Fleet) -> None:
    """A mistaken disable of 220 models is undone in one transaction of a few statements."""
    ids = [f"m{number}" for number in range(220)]
    seed(fleet, ids)
    counts = []
    for some in (ids[:1], ids):
        off = fleet.disable(*some)
        with statements(fleet) as said:
            fleet.undo(off.operation)
        counts.append(len(said))
    assert counts[0] == counts[1]
    assert {model.status for model in fleet.list_models()} == {ACTIVE}


OPERATIONS = st.sampled_from(["disable", "timed", "enable", "recover", "fail"])


@given(
    st.dictionaries(st.sampled_from("abc"), STARTS, min_size=1),
    st.lists(OPERATIONS, min_size=1, max_size=3),
)
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_undo_is_the_inverse(
    fleet_url: str, models: dict[str, Start], operations: list[str]
) -> None:
    """Whatever operations came before, undoing the last one gives the states before it."""
    clear(fleet_url)
    put_starts(fleet_url, models)
    off = [model_id for model_id, start in models.items() if start.status is not ACTIVE]
    if off:
        alter(fleet_url, *off, disabled_by="somebody")
    with opened(fleet_url, recovery_cooldown="1h") as fleet:
        for operation in operations:
            before = states(fleet_url)
            match operation:
                case "disable":
                    done: Any = fleet.disable(*models, reason="off")
                case "timed":
                    done = fleet.disable(*models, until=END, force=True)
                case "enable":
                    done = fleet.enable(*models)
                case "recover":
                    done = fleet.recover()
                case _:
                    failures = [
                        {"id": i, "outcome": "failure", "type": "parse-error"} for i in models
                    ]
                    done = fleet.record_batch(failures * 5)
        if done.operation is None:
            return
        after = states(fleet_url)
        undone = fleet.undo(done.operation)
        now = states(fleet_url)
    changed = {change.id for change in undone.changes if change.changed}
    assert changed == {change.id for change in undone.changes}
    for model_id in models:
        expected = before[model_id] if model_id in changed else after[model_id]
        if operations[-1] == "fail":  # its events do not hold the failures before the first one
            expected, now[model_id] = (state[:5] for state in (expected, now[model_id]))
        if expected[0]:  # of a model that is on, nothing says who had switched it off
            expected, now[model_id] = (
                (*state[:2], None, None, None, *state[5:]) for state in (expected, now[model_id])
            )
        assert now[model_id] == expected, (operations, is_sqlite(fleet_url))
