"""Edit: names, providers and tags of one or many models, all or none, and back by undo."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import (
    EditedModel,
    Fleet,
    LeftChange,
    ModelNotFoundError,
    RefusedError,
    Selection,
    UsageError,
)
from modelctl.database import bulk
from tests import fleets
from tests.commands import Cli, sql
from tests.fleets import ACTIVE, DISABLED, everything, is_sqlite, seed
from tests.models.test_kept import trigger
from tests.models.test_store import sent
from tests.waiting import until

WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def shown(fleet: Fleet, model_id: str) -> tuple[str, str, tuple[str, ...]]:
    """Return what an edit can change of a model."""
    model = fleet.show(model_id)
    return model.display_name, model.provider, model.tags


def test_an_edit_says_what_it_changed(fleet: Fleet, fleet_url: str) -> None:
    """Only what is given changes; result and event have the old and new values that differ."""
    fleet.add("a", name="Old", provider="acme")
    fleet.disable("a", reason="legal")
    before = fleet.show("a")
    done = fleet.edit("a", name="New", tag=("us", "eu"), reason="cleaner", actor="ann")
    old, new = {"display_name": "Old", "tags": ()}, {"display_name": "New", "tags": ("eu", "us")}
    assert done.changes == (EditedModel("a", DISABLED, DISABLED, True, old, new),)
    [event] = fleet.events("a", limit=1)
    assert (event.event, event.before, event.after, event.actor, event.reason, event.operation) == (
        *("edited", DISABLED, DISABLED, "ann", "cleaner"),
        done.operation,
    )
    assert event.details == json.loads(json.dumps({"old": old, "new": new}))
    assert shown(fleet, "a") == ("New", "acme", ("eu", "us"))
    after = fleet.show("a")
    assert (after.disabled_at, after.disabled_reason) == (before.disabled_at, "legal")
    # The same again changes nothing, and neither does a tag that is there or one that is not.
    tables = everything(fleet_url)
    again = fleet.edit("a", name="New", provider="acme", tag="eu", untag="never")
    assert again.changes == (EditedModel("a", DISABLED, DISABLED, False, {}, {}),)
    assert again.operation is None
    assert everything(fleet_url) == tables
    fleet.edit("a", name="", provider="", untag=["eu", "us"])
    assert shown(fleet, "a") == ("", "", ())
    assert fleets.sql(fleet_url, "SELECT * FROM modelctl_tags") == []


def test_many_are_edited_at_once_or_not_at_all(fleet: Fleet, fleet_url: str) -> None:
    """Ids or a selection: one transaction, and nothing changes if one of them cannot be edited."""
    for model_id in "abcd":
        fleet.add(model_id, provider="acme" if model_id < "d" else "other")
    fleet.edit("b", tag="eu")
    done = fleet.edit(select=Selection(provider="acme"), tag="eu", provider="new")
    assert [(c.id, c.changed) for c in done.changes] == [("a", True), ("b", True), ("c", True)]
    assert {e.model_id for e in fleet.events(operation=done.operation)} == {*"abc"}
    assert [model.id for model in fleet.list_models(select=Selection(tag="eu"))] == [*"abc"]
    tables = everything(fleet_url)
    assert [c.changed for c in fleet.edit("d", "a", tag="x", dry_run=True).changes] == [True, True]
    fleet.edit("c", tag=[f"t{number}" for number in range(49)], dry_run=True)
    with pytest.raises(ModelNotFoundError):
        fleet.edit("a", "never", tag="x")
    with pytest.raises(ModelNotFoundError):
        fleet.edit(select=Selection(tag="never"), tag="x")
    with pytest.raises(RefusedError):
        fleet.edit(select=Selection(tag="eu"), tag="x", limit_to=2)
    with pytest.raises(RefusedError):
        fleet.edit("a", tag=[f"t{number}" for number in range(50)])
    assert everything(fleet_url) == tables
    assert len(fleet.edit(select=Selection(tag="eu"), tag="eu", limit_to=0).changes) == 3


def test_edits_that_make_no_sense(fleet: Fleet, fleet_url: str) -> None:
    """Nothing to change, a name for several models, and tags that are none are usage errors."""
    seed(fleet, "ab")
    tables = everything(fleet_url)
    calls: list[dict[str, Any]] = [
        {},
        {"tag": "a,b"},
        {"tag": ["ok", 7]},
        {"tag": "x", "untag": ["x"]},
        {"name": 7},
        {"tag": 7},
        {"tag": [f"t{number}" for number in range(51)]},
    ]
    for wrong in calls:
        with pytest.raises(UsageError):
            fleet.edit("a", **wrong)
    for ids, select in ((("a", "b"), None), ((), Selection(all=True))):
        with pytest.raises(UsageError, match="one model"):
            fleet.edit(*ids, select=select, name="x")
    assert everything(fleet_url) == tables


def test_the_number_of_statements_does_not_grow(pg_database: str) -> None:
    """An edit of many models is as many statements as of two."""
    with fleets.opened(pg_database) as fleet:
        seed(fleet, [f"m{number:04}" for number in range(1000)])
        said = []
        for pattern in ("m000[12]", "m*"):
            with sent(fleet) as statements:
                fleet.edit(select=Selection(match=pattern), tag="eu", provider="acme")
            said.append([*statements])
        assert [*map(len, said)] == [len(said[0])] * 2
        assert len(fleet.list_models(select=Selection(tag="eu", provider="acme"))) == 1000


def test_chunks(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """More models than a statement takes are edited, and brought back, in one transaction."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    seed(fleet, "abcde")
    done = fleet.edit(*"edcba", tag="eu")
    assert [change.id for change in done.changes] == [*"edcba"]
    assert len(fleet.events(operation=done.operation)) == 5
    assert len(fleet.edit(select=Selection(tag="eu"), tag="us").changes) == 5
    with pytest.raises(ModelNotFoundError, match="'never'"):
        fleet.edit(*"abcde", "never", tag="x")
    assert [change.changed for change in fleet.undo().changes] == [True] * 5
    assert {model.tags for model in fleet.list_models()} == {("eu",)}


def test_an_edit_is_undone_and_redone(fleet: Fleet, fleet_url: str) -> None:
    """Undo brings the old values back, an undo of that the new ones; later changes are left alone."""
    for model_id in "abc":
        fleet.add(model_id, provider="acme")
    first = fleet.edit(*"abc", provider="other", tag="eu").operation
    fleet.disable("a")
    undone = fleet.undo(first)
    assert [shown(fleet, i) for i in "abc"] == [("", "acme", ())] * 3
    assert [change.changed for change in fleet.undo(first).changes] == [False] * 3
    assert fleet.show("a").status == DISABLED
    fleet.undo(undone.operation)
    assert [shown(fleet, i) for i in "abc"] == [("", "other", ("eu",))] * 3
    fleet.edit("a", tag="us")
    fleet.remove("b")
    tables = everything(fleet_url)
    told = fleet.undo(first, dry_run=True)
    assert everything(fleet_url) == tables
    left = fleet.undo(first)
    assert left.changes == told.changes
    assert left.changes[:2] == (
        LeftChange("a", DISABLED, DISABLED, False, "changed since: tags"),
        LeftChange("b", None, None, False, "it is not in the fleet any more"),
    )
    assert (shown(fleet, "a"), shown(fleet, "c")) == (("", "other", ("eu", "us")), ("", "acme", ()))


def test_an_undo_of_a_status_does_not_mind_an_edit(fleet: Fleet) -> None:
    """An edit, and its undo, are no change of status, so the disable before them can be undone."""
    seed(fleet, "a")
    off = fleet.disable("a").operation
    fleet.edit("a", name="New", tag="eu")
    fleet.undo()
    fleet.edit("a", name="Newer")
    [change] = fleet.undo(off).changes
    assert (change.after, change.changed) == (ACTIVE, True)


def test_a_row_that_the_database_keeps(fresh_url: str) -> None:
    """A trigger of the application that puts a name back makes the edit exit 8, tags included."""
    with fleets.opened(fresh_url) as fleet:
        seed(fleet, "ab")
        body = "UPDATE models SET display_name = OLD.display_name WHERE id = OLD.id"
        if not is_sqlite(fresh_url):
            body = f"IF pg_trigger_depth() = 1 THEN {body}; END IF"
        trigger(fresh_url, "AFTER", "UPDATE", "'a'", body)
        tables = everything(fresh_url)
        with pytest.raises(RefusedError, match="kept 'a'"):
            fleet.edit("a", name="New", tag="eu")
        assert everything(fresh_url) == tables
        fleet.edit("b", name="New", tag="eu")


def test_tags_of_two_edits_at_once_are_all_there(pg_database: str) -> None:
    """An edit that waits for another one of the same model begins with the tags that it left."""
    with fleets.opened(pg_database) as fleet, psycopg.connect(pg_database) as other:
        seed(fleet, "a")
        other.execute("SELECT FROM models WHERE id = 'a' FOR NO KEY UPDATE")
        other.execute("INSERT INTO modelctl_tags (model_id, tags) VALUES ('a', '{eu}')")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(fleet.edit, "a", tag="us")
            until(lambda: fleets.sql(pg_database, WAITING) == [(1,)])
            other.commit()
            assert waiting.result().changes[0].changed
        assert shown(fleet, "a")[2] == ("eu", "us")


def test_what_is_not_edited_stays_as_it_is(fresh_url: str) -> None:
    """A NULL of the application stays NULL, and a value of another type is not rewritten."""
    with fleets.opened(fresh_url) as fleet:
        if is_sqlite(fresh_url):
            value: object = 7
            fleets.sql(fresh_url, "ALTER TABLE models RENAME COLUMN display_name TO was")
            fleets.sql(fresh_url, "ALTER TABLE models ADD COLUMN display_name")
        else:
            value = None
            fleets.sql(fresh_url, "ALTER TABLE models ALTER COLUMN display_name DROP NOT NULL")
        fleets.put(fresh_url, "a", display_name=value)
        fleet.edit("a", provider="acme", tag="eu")
        stored = '["us", "eu"]' if is_sqlite(fresh_url) else "{us,eu}"
        fleets.sql(fresh_url, "UPDATE modelctl_tags SET tags = ?", stored)
        [change] = fleet.edit("a", provider="acme", tag="eu").changes
        assert (change.changed, fleet.show("a").tags) == (False, ("us", "eu"))
        found = fleets.sql(fresh_url, "SELECT display_name, provider FROM models")
        assert found == [(value, "acme")]


@settings(max_examples=20, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "all"]),
            st.sets(st.sampled_from(["x", "y", "z"])),
            st.sets(st.sampled_from(["x", "y", "z"])),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_edits_of_tags(
    edits: list[tuple[str, set[str], set[str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tags are sets: each edit adds and removes, and undoing all, the last first, leaves none."""
    url = f"sqlite:///{tmp_path_factory.mktemp('edits')}/fleet.db"
    expected: dict[str, set[str]] = {"a": set(), "b": set()}
    operations = []
    with fleets.opened(url) as fleet:
        fleet.upgrade()
        seed(fleet, "ab")
        for which, tags, other in edits:
            add, remove = sorted(tags - other), sorted(other - tags)
            if not (add or remove):
                continue
            ids, select = ((), Selection(all=True)) if which == "all" else ((which,), None)
            operations.append(fleet.edit(*ids, select=select, tag=add, untag=remove).operation)
            for model_id in "ab" if which == "all" else which:
                expected[model_id] = (expected[model_id] | {*add}) - {*remove}
            assert {m.id: {*m.tags} for m in fleet.list_models()} == expected
        for operation in filter(None, reversed(operations)):
            assert all(change.changed for change in fleet.undo(operation).changes)
        assert {model.tags for model in fleet.list_models()} == {()}


def test_names_that_a_column_cuts(pg_database: str) -> None:
    """In an application's table a name is cut to its column, and the event has what is stored."""
    fleets.sql(pg_database, "ALTER TABLE models ALTER COLUMN display_name TYPE varchar(5)")
    with fleets.opened(pg_database) as fleet:
        seed(fleet, "a")
        [change] = fleet.edit("a", name="1234567").changes
        assert isinstance(change, EditedModel)
        assert change.new == {"display_name": "12345"}
        assert not fleet.edit("a", name="1234567").changes[0].changed
        assert fleet.undo().changes[0].changed
        assert shown(fleet, "a")[0] == ""


def test_the_command(fleet_of_five: None, cli: Cli) -> None:
    """Beside ids --provider is the new provider, alone it selects; --tag adds in both cases."""
    done = cli(
        "edit", "acme/one", "--provider", "new", "--name", "Uno", "--tag", "us", "-o", "json"
    )
    [change] = done.json["changes"]
    assert change["result"] == "edited: name 'Uno'; provider 'new'; tags eu, prod, us"
    assert change["old"] == {"display_name": "One", "provider": "acme", "tags": ["eu", "prod"]}
    assert sql("SELECT provider FROM models WHERE id = 'acme/one'") == [("new",)]
    cli("edit", "--provider", "acme", "--tag", "us").failed(2, "--yes")
    assert cli("edit", "--provider", "acme", "--tag", "us", "--yes", "-o", "name").lines == [
        *("acme/off", "acme/two")
    ]
    assert cli("edit", "acme/two", "--untag", "us", "--dry-run").lines[0].split("\t")[3] == (
        "would be edited: tags none"
    )
    cli("edit", "--provider", "acme", "--yes").failed(2, "nothing is to be changed")
    cli("edit", "acme/two", "--match", "acme/*", "--tag", "x").failed(2, "either ids")
    cli("edit", "--tag", "x").failed(2, "no model is named")
    cli("edit", "acme/two", "--tag", "a,b").failed(2, "no commas")
    cli("edit", "--all", "--name", "x", "--yes").failed(2, "one model")
    assert cli("list", "--tag", "us", "-c", "id,tags").lines == [
        'acme/off\t["eu", "us"]',
        'acme/one\t["eu", "prod", "us"]',
        'acme/two\t["us"]',
    ]
    assert "eu, us" in cli("list", "--provider", "acme", "-o", "wide").out
    assert "tags" in cli("show", "acme/off", "-o", "table").out
    assert cli("show", "acme/off", "-o", "json").json["tags"] == ["eu", "us"]
