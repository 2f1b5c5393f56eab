"""A restore never brings a model back sooner, keeps what a person decided, and is all or nothing."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, RefusedError, Selection, UsageError
from tests.backup.exports import INCIDENT, PAUSE, export_of, exported, held, model
from tests.commands import Cli
from tests.fleets import (
    ACTIVE,
    AUTO,
    DISABLED,
    STARTS,
    Start,
    alter,
    clear,
    events,
    everything,
    holds,
    is_sqlite,
    opened,
    put,
    put_hold,
    put_starts,
    seed,
    sql,
    status,
    trip,
)

# The states of a model that is off, in the order of how long it stays off.
SOON, LATE = "2100-01-01T00:00:00.000Z", "2200-01-01T00:00:00.000Z"
STATES: dict[str, dict[str, Any]] = {
    "on": {"status": "active"},
    "auto-soon": {"status": "auto-disabled", "last_failure_at": SOON, "ejections": 1},
    "auto-late": {"status": "auto-disabled", "last_failure_at": LATE, "ejections": 1},
    "auto-for-ever": {"status": "auto-disabled", "last_failure_at": SOON, "ejections": 3},
    "timed-soon": {"status": "disabled", "disabled_until": SOON},
    "timed-late": {"status": "disabled", "disabled_until": LATE},
    "held": {"status": "disabled"},
}
OFF = {"disabled_at": "2026-01-01T00:00:00Z"}
# What stays if the fleet has the first and the export any of the others.
KEEPS = {
    "on": [],
    "auto-soon": ["on", "timed-soon"],
    "auto-late": ["on", "auto-soon", "timed-soon", "timed-late"],
    "auto-for-ever": ["on", "auto-soon", "auto-late", "timed-soon", "timed-late"],
    "timed-soon": ["on", "auto-soon", "auto-late", "auto-for-ever"],
    "timed-late": ["on", "auto-soon", "auto-late", "auto-for-ever", "timed-soon"],
    "held": ["on", "auto-soon", "auto-late", "auto-for-ever", "timed-soon", "timed-late"],
}


def state(name: str, by: str) -> dict[str, Any]:
    """Return the fields of a model in a state that *by* brought about."""
    fields = STATES[name]
    return fields if name == "on" else OFF | {"disabled_by": by} | fields


def test_no_model_comes_back_sooner(fleet_url: str) -> None:
    """All pairs of states: what is off stays off for at least as long; --enable restores all of it."""
    pairs = [*product(STATES, STATES)]
    there = [model(f"{one} {other}", **state(one, "fleet")) for one, other in pairs]
    saved = [model(f"{one} {other}", **state(other, "export")) for one, other in pairs]
    with opened(fleet_url, recovery_max_ejections=3) as fleet:
        assert fleet.restore(export_of(*there)).added == len(pairs)
        before = exported(fleet)
        planned = fleet.restore(export_of(*saved), dry_run=True)
        assert exported(fleet) == before
        done = fleet.restore(export_of(*saved))
        left = {one.id for one in done.changes if one.note}
        assert left == {f"{one} {other}" for one, others in KEEPS.items() for other in others}
        assert done.left_off == len(left)
        assert done.changes == planned.changes
        found = {line["id"]: line for line in map(json.loads, exported(fleet)) if "id" in line}
        for one, other in pairs:
            name = f"{one} {other}"
            wanted = state(one, "fleet") if name in left else state(other, "export")
            assert found[name]["status"] == wanted["status"], name
            assert found[name]["disabled_by"] == wanted.get("disabled_by"), name
        again = fleet.restore(export_of(*saved))
        assert (again.added, again.updated, again.left_off) == (0, 0, len(left))
        whole = fleet.restore(export_of(*saved), enable=True)
        assert (whole.left_off, whole.updated) == (0, len(left))
        assert fleet.restore(export_of(*saved), enable=True).unchanged == len(pairs)


@given(
    there=st.dictionaries(st.sampled_from("abcd"), STARTS, min_size=1),
    saved=st.dictionaries(st.sampled_from("abcd"), STARTS, min_size=1),
    enable=st.booleans(),
)
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_fleet_over_any_other(
    fleet_url: str, there: dict[str, Start], saved: dict[str, Start], enable: bool
) -> None:
    """No model that was off is on, unless it may be; models that are not in the export stay."""
    clear(fleet_url)
    put_starts(fleet_url, saved)
    with opened(fleet_url) as fleet:
        text = "".join(fleet.export()).encode()
        clear(fleet_url)
        put_starts(fleet_url, there)
        before = {one.id: one for one in fleet.iter_models()}
        done = fleet.restore(text, enable=enable)
        after = {one.id: one for one in fleet.iter_models()}
        assert after.keys() == there.keys() | saved.keys()
        assert done.untouched == len(there.keys() - saved.keys())
        assert done.added == len(saved.keys() - there.keys())
        for model_id, model_before in before.items():
            if model_id not in saved:
                assert after[model_id].status == model_before.status
            elif enable or model_before.active:
                assert after[model_id].status == saved[model_id].status
            else:
                assert not after[model_id].active
        again = fleet.restore(text, enable=enable)
        assert (again.added, again.updated, again.left_off) == (0, 0, done.left_off)


def test_a_mistake_is_taken_back_by_one_undo(fleet: Fleet) -> None:
    """A restore is one operation with an event for each model that changed, so undo takes it back."""
    seed(fleet, "abcd")
    trip(fleet, "b")
    fleet.disable("c", reason="hold", actor="ann")
    before = exported(fleet)
    done = fleet.restore(
        export_of(held("a", disabled_reason="old"), model("b"), model("c"), model("e")),
        enable=True,
    )
    assert status(fleet, *"abcde") == [DISABLED, ACTIVE, ACTIVE, ACTIVE, ACTIVE]
    written = fleet.events(operation=done.operation, oldest_first=True)
    assert [(e.model_id, e.event, e.before, e.after) for e in written] == [
        ("a", "restored", ACTIVE, DISABLED),
        ("b", "restored", AUTO, ACTIVE),
        ("c", "restored", DISABLED, ACTIVE),
        ("e", "restored", None, ACTIVE),
    ]
    undone = fleet.undo()
    assert [getattr(change, "note", None) for change in undone.changes] == [
        *(None, None, None),
        "it was added (modelctl remove deletes it)",
    ]
    fleet.remove("e")
    assert status(fleet, *"abcd") == [ACTIVE, AUTO, DISABLED, ACTIVE]
    now, then = (
        [[json.loads(line).get(n) for n in ("id", "disabled_by", "disabled_reason")] for line in of]
        for of in (exported(fleet), before)
    )
    assert now == then


def test_an_undo_says_what_it_does_not_put_back(fleet: Fleet) -> None:
    """Where a restore changed no status, undo leaves the model alone, and says why."""
    seed(fleet, "a")
    fleet.restore(export_of(model("a", display_name="A", success_count=5)))
    [left] = fleet.undo().changes
    assert "which undo does not put back" in getattr(left, "note", "")
    assert fleet.show("a").display_name == "A"


def test_a_dry_run_changes_nothing(fleet: Fleet, fleet_url: str, tool: Cli, tmp_path: Any) -> None:
    """--dry-run shows what would be added, updated and left off, and changes nothing."""
    seed(fleet, "abc")
    fleet.disable("b")
    file = tmp_path / "export"
    file.write_bytes(export_of(held("a"), model("b"), model("c", created_at=None), model("d")))
    before = everything(fleet_url)
    shown = tool("restore", str(file), "--dry-run", "-o", "table")
    assert everything(fleet_url) == before
    assert [line.split()[:2] for line in shown.lines[2:5]] == [["~", "a"], ["!", "b"], ["+", "d"]]
    assert "status: active -> disabled" in shown.lines[2]
    assert "stays disabled; in the export it is active" in shown.lines[3]
    assert "+ 1 added, ~ 1 updated, = 1 unchanged, ! 1 left off" in shown.out


def test_the_floor_holds(fleet: Fleet, fleet_url: str) -> None:
    """A restore that would leave fewer models on than the floor is refused, unless forced."""
    seed(fleet, "abc")
    export = export_of(held("a"), held("b"))
    with opened(fleet_url, recovery_min_active=2) as guarded:
        before = everything(fleet_url)
        with pytest.raises(RefusedError, match=r"recovery\.min_active is 2"):
            guarded.restore(export)
        assert everything(fleet_url) == before
        assert guarded.restore(export, force=True).updated == 2
        assert guarded.restore(export).unchanged == 2


def test_pauses_are_restored_only_if_they_last_longer(fleet: Fleet, fleet_url: str) -> None:
    """A pause that is over is not restored, a longer one is not replaced, others stay."""
    put_hold(fleet_url, "fleet", since=SOON, until=LATE, reason="longer")
    put_hold(fleet_url, "provider:acme", provider="acme", since=SOON, until=SOON, reason="shorter")
    put_hold(fleet_url, "provider:other", provider="other", since=SOON, until=SOON, reason="other")
    export = export_of(
        {"pause": PAUSE | {"until": SOON}},
        {"pause": PAUSE | {"provider": "acme", "until": LATE}},
        {"pause": PAUSE | {"provider": "", "until": "2026-01-02T00:00:00Z"}},
        {"incident": INCIDENT},
    )
    done = fleet.restore(export)
    assert done.holds == 2
    assert holds(fleet_url) == [
        ("fleet", None, None, "longer", None),
        ("incident:parse-error:acme", "acme", "parse-error", "maintenance", "health rule"),
        ("provider:acme", "acme", None, "maintenance", "ann"),
        ("provider:other", "other", None, "other", None),
    ]
    assert [(e.event, e.provider) for e in fleet.events(operation=done.operation)] == [
        ("restored", "acme"),
        ("restored", "acme"),
    ]
    assert fleet.restore(export).holds == 0


def test_a_restore_reaches_the_count(fleet: Fleet) -> None:
    """A count that was cached before a restore is not shown after it."""
    seed(fleet, "abc")
    assert fleet.count().active == 3
    assert fleet.restore(export_of(held("a"), model("d"), model("e"))).cache != "unchanged"
    assert fleet.count().active == 4


def test_leftovers_of_an_earlier_status_do_not_win(fleet: Fleet, fleet_url: str) -> None:
    """A row that is on and still has the flag, the time and the end of a disable is restored exactly."""
    left = {
        "auto_disabled": True,
        "disabled_until": SOON,
        "disabled_at": "2026-01-01T00:00:00.000Z",
    }
    put(fleet_url, "a", "b", **left)
    put(fleet_url, "c", active=False)
    auto = {"status": "auto-disabled", "disabled_at": "2026-01-01T00:00:00Z"}
    export = export_of(
        model("a", **auto),
        held("b", disabled_until=SOON),
        model("c", would_disable="floor"),
    )
    fleet.restore(export, enable=True)
    assert status(fleet, *"abc") == [AUTO, DISABLED, ACTIVE]
    assert fleet.show("b").disabled_until
    assert fleet.show("c").would_disable == "floor"
    assert fleet.restore(export, enable=True).unchanged == 3


def test_a_row_that_the_database_keeps_is_an_error(fleet: Fleet, fleet_url: str) -> None:
    """If a trigger of an application undoes the change, nothing is restored, and the model is named."""
    seed(fleet, "abc")
    if is_sqlite(fleet_url):
        sql(
            fleet_url,
            "CREATE TRIGGER keep AFTER UPDATE ON models WHEN NEW.id = 'b' AND NOT NEW.active"
            " BEGIN UPDATE models SET active = 1 WHERE id = 'b'; END",
        )
    else:
        sql(
            fleet_url,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN NEW.active := true; RETURN NEW; END';"
            " CREATE TRIGGER zz_keep BEFORE UPDATE ON models FOR EACH ROW"
            " WHEN (NEW.id = 'b') EXECUTE FUNCTION keep()",
        )
    try:
        before = everything(fleet_url)
        with pytest.raises(RefusedError, match="the database kept 'b' as it was"):
            fleet.restore(export_of(held("a"), held("b"), model("d")))
        assert everything(fleet_url) == before
    finally:
        if not is_sqlite(fleet_url):
            sql(fleet_url, "DROP FUNCTION keep CASCADE")


def test_a_table_of_an_application(empty_pg: str) -> None:
    """Narrow columns take what fits, and stay unchanged; a column without a value is named."""
    sql(
        empty_pg,
        "CREATE TABLE models (id varchar(50) PRIMARY KEY, display_name varchar(5) NOT NULL,"
        " provider text NOT NULL, active boolean NOT NULL, disabled_by varchar(3) NOT NULL,"
        " created_at timestamp NOT NULL, updated_at timestamp NOT NULL)",
    )
    export = export_of(
        held("a", display_name="a long name", created_at="2026-01-01T00:00:00Z"), model("b")
    )
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        assert fleet.restore(export).added == 2
        assert fleet.restore(export).unchanged == 2
        found = fleet.show("a")
        assert (found.display_name, found.status, found.disabled_by) == ("a lon", DISABLED, "ann")
        assert str(found.created_at) == "2026-01-01 00:00:00+00:00"
        sql(empty_pg, "ALTER TABLE models ALTER provider DROP NOT NULL")
        sql(empty_pg, "UPDATE models SET provider = NULL WHERE id = 'b'")
        assert fleet.restore(export_of(model("b", success_count=5))).updated == 1
        assert sql(empty_pg, "SELECT provider FROM models WHERE id = 'b'") == [(None,)]
        sql(empty_pg, "DELETE FROM models; ALTER TABLE models ADD price numeric NOT NULL")
        with pytest.raises(RefusedError, match="price of models is NOT NULL"):
            fleet.restore(export)
        assert sql(empty_pg, "SELECT count(*) FROM models") == [(0,)]


def test_the_number_of_statements_does_not_depend_on_the_models(fleet: Fleet) -> None:
    """A restore of a hundred models takes as many statements as one of three."""
    counts = []
    for number in (3, 100):
        on = [model(f"{number}/{n}") for n in range(number)]
        off = [held(f"{number}/{n}", tags=["eu"]) for n in range(number)]
        fleet.restore(export_of(*on[1:]))
        statements: list[str] = []
        engine = fleet._store.database.engine
        listener = lambda *given: statements.append(given[2])  # noqa: B023, E731
        sa.event.listen(engine, "before_cursor_execute", listener)
        fleet.restore(export_of(*off))
        [*fleet.export(select=Selection(match=f"{number}/*"))]
        sa.event.remove(engine, "before_cursor_execute", listener)
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_what_is_not_an_export(fleet: Fleet) -> None:
    """A text, and a catalogue, are refused in words."""
    with pytest.raises(UsageError, match="an export is bytes"):
        fleet.restore("text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="line 1: is not the first line of an export"):
        fleet.restore(b'{"id": "a"}\n')


def test_an_end_that_is_over(fleet: Fleet, fleet_url: str) -> None:
    """A disable whose time was over when the model is restored is brought back by the next recover."""
    fleet.restore(export_of(held("a", disabled_until="2026-01-01T00:00:00Z")))
    assert status(fleet, "a") == [DISABLED]
    alter(fleet_url, "a", display_name="A")
    assert fleet.recover().recovered == ("a",)
    assert [row[1] for row in events(fleet_url)] == ["restored", "recovered"]
