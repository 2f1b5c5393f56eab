"""Rename: a model keeps everything under its new id, and other programs' rows are not left behind."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import Fleet, LeftChange, ModelNotFoundError, RefusedError, RenamedModel, UsageError
from tests.commands import Cli
from tests.fleets import AUTO, DISABLED, everything, is_sqlite, opened, seed, sql, trip
from tests.models.test_kept import trigger
from tests.models.test_store import sent


def row(url: str, model_id: str) -> tuple[object, ...]:
    """Return the row of a model without its id and the time of its last change."""
    columns = (
        "display_name, provider, active, auto_disabled, consecutive_failures, ejections,"
        " success_count, failure_count, last_failure_at, failure_type, failure_reason, disabled_at,"
        " disabled_by, disabled_reason, disabled_until, created_at"
    )
    [found] = sql(url, f"SELECT {columns} FROM models WHERE id = ?", model_id)
    return found


def test_everything_follows(fleet: Fleet, fleet_url: str) -> None:
    """Counters, status, hold, tags and history are those of the new id, and nothing of the old one."""
    seed(fleet, "ab")
    trip(fleet, "a")
    fleet.disable("a", reason="legal hold", actor="alice")
    fleet.edit("a", tag="eu")
    before, events = row(fleet_url, "a"), fleet.events("a")
    done = fleet.rename("a", "new", reason="moved", actor="ann")
    assert done.changes == (RenamedModel("new", DISABLED, DISABLED, True, "a"),)
    assert row(fleet_url, "new") == before
    model = fleet.show("new")
    assert (model.tags, model.disabled_by) == (("eu",), "alice")
    renamed, *others = fleet.events("new")
    assert (renamed.event, renamed.before, renamed.after, renamed.actor, renamed.reason) == (
        *("renamed", DISABLED, DISABLED, "ann", "moved"),
    )
    assert renamed.details == {"old": {"id": "a"}, "new": {"id": "new"}}
    assert [event.id for event in others] == [event.id for event in events]
    assert fleet.events("a") == ()
    with pytest.raises(ModelNotFoundError):
        fleet.show("a")
    fleet.add("a")
    assert (fleet.show("a").tags, len(fleet.events("a"))) == ((), 1)


def test_renaming_again_says_already(fleet: Fleet, fleet_url: str) -> None:
    """The same renaming, and one to the id that the model has, change nothing."""
    seed(fleet, "a")
    fleet.rename("a", "new")
    tables = everything(fleet_url)
    for old in ("a", "new"):
        again = fleet.rename(old, "new")
        assert [(c.id, c.changed) for c in again.changes] == [("new", False)]
        assert again.operation is None
    assert everything(fleet_url) == tables


def test_what_cannot_be_renamed(fleet: Fleet, fleet_url: str) -> None:
    """An unknown id, an id that is taken and one that is none: nothing changes."""
    seed(fleet, "ab")
    tables = everything(fleet_url)
    for old, new, error in (
        ("never", "new", ModelNotFoundError),
        ("never\0", "new", ModelNotFoundError),
        ("never", "b", ModelNotFoundError),
        ("a", "b", RefusedError),
        ("a", "", UsageError),
        ("a", " new", UsageError),
        ("a", "n\new", UsageError),
        ("a", "x" * 201, UsageError),
        ("a", 7, UsageError),
        (7, "new", UsageError),
    ):
        for dry_run in (True, False):
            with pytest.raises(error):
                fleet.rename(old, new, dry_run=dry_run)  # type: ignore[arg-type]
    assert fleet.rename("a", "new", dry_run=True).changes[0].changed
    assert everything(fleet_url) == tables


def test_a_foreign_key_of_another_program(fresh_url: str) -> None:
    """It forbids the renaming, in words, while a row refers to the model; with CASCADE the row follows."""
    with opened(fresh_url) as fleet:
        seed(fleet, "ab")
        for rule, allowed in (
            ("", False),
            ("ON UPDATE RESTRICT", False),
            ("ON UPDATE CASCADE", True),
        ):
            sql(
                fresh_url,
                'CREATE TABLE "calls of" (n integer,'
                f' "model id" text CONSTRAINT of_model REFERENCES models (id) {rule})',
            )
            sql(fresh_url, """INSERT INTO "calls of" VALUES (1, 'a'), (2, 'b'), (3, NULL)""")
            if allowed:
                fleet.rename("a", "new")
                found = sql(fresh_url, 'SELECT "model id" FROM "calls of" ORDER BY n')
                assert found == [("new",), ("b",), (None,)]
            else:
                tables = everything(fresh_url)
                name = "calls of" if is_sqlite(fresh_url) else 'of_model" on table "calls of'
                with pytest.raises(RefusedError, match=name) as refused:
                    fleet.rename("a", "new")
                assert "refer to 'a'" in refused.value.message
                assert everything(fresh_url) == tables
                sql(fresh_url, """DELETE FROM "calls of" WHERE "model id" = 'a'""")
                fleet.rename("a", "new")
                fleet.rename("new", "a")
            sql(fresh_url, 'DROP TABLE "calls of"')


def test_an_undo_gives_the_old_id_back(fleet: Fleet, fleet_url: str) -> None:
    """So does an undo of that; it leaves the model alone if its old id is in use, or it has another."""
    seed(fleet, "a")
    fleet.edit("a", tag="eu")
    before = row(fleet_url, "a")
    done = fleet.rename("a", "new")
    tables = everything(fleet_url)
    fleet.undo(dry_run=True)
    assert everything(fleet_url) == tables
    back = fleet.undo()
    assert (row(fleet_url, "a"), fleet.show("a").tags) == (before, ("eu",))
    assert fleet.events("a")[0].details == {
        **{"old": {"id": "new"}, "new": {"id": "a"}},
        "operation": done.operation,
    }
    assert not fleet.undo(done.operation).changes[0].changed
    fleet.undo(back.operation)
    assert fleet.show("new").tags == ("eu",)
    fleet.add("a")
    [left] = fleet.undo(done.operation).changes
    assert isinstance(left, LeftChange)
    assert left.note == "another model has its old id, a"
    fleet.rename("new", "newer")
    [left] = fleet.undo(done.operation).changes
    assert isinstance(left, LeftChange)
    assert (left.id, left.note) == ("newer", "changed since: renamed")
    fleet.remove("newer")
    [left] = fleet.undo(done.operation).changes
    assert isinstance(left, LeftChange)
    assert left.note == "it is not in the fleet any more"


def test_operations_before_a_renaming_can_be_undone(fleet: Fleet) -> None:
    """A disable under the old id is undone under the new one."""
    seed(fleet, "ab")
    off = fleet.disable("a", "b").operation
    fleet.rename("a", "new")
    assert {change.id for change in fleet.undo(off).changes} == {"new", "b"}
    assert {model.status for model in fleet.list_models()} == {"active"}


def test_a_renaming_invalidates_the_count(pg_database: str) -> None:
    """The trigger queues an invalidation, and the number of statements does not grow with the events."""
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        trip(fleet, "a")
        said = []
        for old, new in (("a", "x"), ("x", "y")):
            sql(pg_database, "DELETE FROM modelctl_outbox")
            with sent(fleet) as statements:
                fleet.rename(old, new)
            said.append([*statements])
            assert sql(pg_database, "SELECT count(*) FROM modelctl_outbox") == [(1,)]
            sql(
                pg_database,
                "INSERT INTO modelctl_events (model_id, event) SELECT ?, 'tried'"
                " FROM generate_series(1, 500)",
                new,
            )
        assert len(said[0]) == len(said[1])
        assert fleet.show("y").status == AUTO


def test_a_row_that_the_database_keeps(fresh_url: str) -> None:
    """If a trigger of the application gives the old id back, nothing is renamed."""
    with opened(fresh_url) as fleet:
        seed(fleet, "a")
        trigger(
            fresh_url,
            "AFTER",
            "UPDATE",
            "'a'",
            "UPDATE models SET id = OLD.id WHERE id = 'new'",
        )
        tables = everything(fresh_url)
        with pytest.raises(RefusedError, match="kept 'a'"):
            fleet.rename("a", "new")
        assert everything(fresh_url) == tables


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["rename", "disable", "enable", "add", "remove", "edit", "undo"]),
            st.sampled_from("abc"),
            st.sampled_from("abc"),
        ),
        max_size=12,
    )
)
def test_replaying_the_events_gives_the_status(
    steps: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last event of each id says its status, whatever was renamed to what."""
    url = f"sqlite:///{tmp_path_factory.mktemp('replay')}/fleet.db"
    with opened(url) as fleet:
        fleet.upgrade()
        for what, one, other in steps:
            with suppress(ModelNotFoundError, RefusedError):
                match what:
                    case "rename":
                        fleet.rename(one, other)
                    case "undo":
                        fleet.undo()
                    case "edit":
                        fleet.edit(one, tag=other)
                    case _:
                        getattr(fleet, what)(one)
        replayed: dict[str | None, str | None] = {}
        for event in fleet.events(oldest_first=True, limit=0):
            if event.event == "renamed" and event.details:
                replayed.pop(event.details["old"]["id"], None)
            replayed[event.model_id] = event.after
        is_now = {model.id: model.status for model in fleet.list_models()}
        assert {i: status for i, status in replayed.items() if status} == is_now


def test_the_command(fleet_of_five: None, cli: Cli) -> None:
    """It prints the new id, warns of an id that looks the same, and has the exit codes of others."""
    assert cli("rename", "acme/one", "acme/uno").out == (
        "acme/uno\tactive\tactive\trenamed from acme/one\ttrue\tacme/one\t\n"
    )
    assert (
        cli("rename", "acme/one", "acme/uno").out.split("\t")[3] == "already renamed from acme/one"
    )
    assert "looks like another model, 'acme/two'" in cli("rename", "acme/off", "acme/tw0").err
    cli("rename", "acme/uno", "acme/two").failed(8, "'acme/two' already")
    cli("rename", "never", "new").failed(4, "never")
    cli("rename", "acme/two", " x").failed(2, "blanks")
