"""What is ignored: import leaves it out, the fleet keeps it, and every pattern can be taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, ModelNotFoundError, UsageError
from modelctl.globs import escape, parse
from modelctl.ignored.patterns import Ignored
from tests.commands import Cli
from tests.fleets import everything, seed, sql

TEXTS = st.text("ab-*?[]!^\\.$+(){}|%_'\"é☃ ,", min_size=1, max_size=6)


def catalogue(*ids: str) -> bytes:
    """Return a catalogue of models that are called as their ids are, in capitals."""
    lines = (json.dumps({"id": i, "name": i.upper()}) for i in ids)
    return "\n".join(lines).encode()


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(patterns=st.lists(TEXTS, min_size=1, max_size=40), model_id=TEXTS)
@example(patterns=["a[1]"], model_id="a[1]")
@example(patterns=["a[1]"], model_id="a1")
@example(patterns=["x", "a*", "b|c"], model_id="b|c")
@example(patterns=["["], model_id="[")
def test_python_and_the_database_agree(fleet: Fleet, patterns: list[str], model_id: str) -> None:
    """An id is ignored in Python exactly if it is in SQL; another program may have stored no glob."""
    database = fleet._store.database
    ignored = Ignored(patterns)
    query = f"SELECT {ignored.condition(database, 'CAST(:text AS text)')}"
    with database.reading() as connection:
        values = {"text": model_id, **ignored.parameters(database)}
        assert bool(connection.scalar(sa.text(query), values)) == ignored(model_id)


@given(text=TEXTS, other=TEXTS)
@example(text="a[1]", other="a1")
def test_an_escaped_id_matches_itself_alone(text: str, other: str) -> None:
    """The pattern for an id alone matches that id, and no other."""
    assume(text != other)
    parse(escape(text))
    assert Ignored([escape(text)])(text)
    assert not Ignored([escape(text)])(other)


def test_import_leaves_out_what_is_ignored(fleet: Fleet, fleet_url: str) -> None:
    """Models with an ignored id are neither added nor changed; they are counted, also in a dry run."""
    seed(fleet, ["old/here", "kept"])
    fleet.ignore("old/*", "a[1]", actor="ann")
    given = catalogue("old/here", "old/new", "a[1]", "a1", "kept", "x")
    before = everything(fleet_url)
    dry = fleet.import_models(given, dry_run=True)
    assert everything(fleet_url) == before
    done = fleet.import_models(given)
    for result in (dry, done):
        counts = (result.added, result.updated, result.unchanged, result.skipped, result.ignored)
        assert counts == (1, 1, 0, 0, 4)
    names = {model.id: model.display_name for model in fleet.list_models()}
    assert names == {"kept": "KEPT", "old/here": "", "x": "X"}
    fleet.unignore("old/*")
    assert (fleet.import_models(given).added, fleet.import_models(given).ignored) == (1, 2)
    fleet.ignore("*")
    assert fleet.import_models(given).ignored == 6


def test_what_was_removed_does_not_come_back(fleet: Fleet) -> None:
    """Sync and import add a removed model again, unless its id is ignored; taken back, it comes."""
    offered = [("s", [("a", "A", "p"), ("b", "B", "p"), ("c", "C", "p")])]
    fleet.sync(offered)
    fleet.remove("b")
    assert fleet.sync(offered).added == 1
    fleet.remove("b")
    fleet.ignore("b")
    assert (fleet.sync(offered).added, fleet.import_models(catalogue("b")).added) == (0, 0)
    fleet.unignore("b")
    assert fleet.sync(offered).added == 1
    # The old id of a renamed model comes back unless it is ignored.
    fleet.rename("c", "mine")
    fleet.ignore("c")
    done = fleet.sync(offered)
    assert (done.added, done.gone, done.ignored) == (0, 0, 1)
    assert fleet.show("mine").gone_since is None


def test_ignoring_again_changes_nothing(fleet: Fleet, fleet_url: str) -> None:
    """A pattern is stored once, with the first reason and actor; models stay, and are counted."""
    seed(fleet, "ab")
    fleet.add("bc")
    done = fleet.ignore("a", "a", "?", reason="old sk-proj-abcdefghijklmnopqrstuvwx", actor="ann")
    assert [(c.pattern, c.changed) for c in done.patterns] == [("a", True), ("?", True)]
    assert (done.matching, done.undone) == (2, False)
    before = everything(fleet_url)
    again = fleet.ignore("a", "?", reason="another", actor="bob")
    assert [c.changed for c in again.patterns] == [False, False]
    assert everything(fleet_url) == before
    first, second = fleet.ignored()
    assert (first.pattern, second.pattern, second.actor) == ("?", "a", "ann")
    assert "sk-proj" not in (second.reason or "sk-proj")
    assert second.at is not None
    assert [model.status for model in fleet.list_models()] == ["active"] * 3


def test_taking_back_is_all_or_none(fleet: Fleet) -> None:
    """A pattern that is not ignored is exit 4, and the hint names the pattern that matches the id."""
    fleet.ignore("gpt-*", "a")
    with pytest.raises(ModelNotFoundError, match="not ignored: 'gpt-4'; nothing") as caught:
        fleet.unignore("a", "gpt-4")
    assert caught.value.hint == "'gpt-4' is left out by the pattern 'gpt-*'"
    assert [one.pattern for one in fleet.ignored()] == ["a", "gpt-*"]
    assert fleet.unignore("a", "gpt-*").undone
    assert fleet.ignored() == ()
    with pytest.raises(ModelNotFoundError) as caught:
        fleet.unignore("a")
    assert caught.value.hint == "see: modelctl ignore --list"


@pytest.mark.parametrize(
    "wrong", ["", " a", "a\n", "a\0", "\x1b[31m", "\ud800", "gpt-[4", "a" * 501, 7]
)
def test_what_is_no_pattern(fleet: Fleet, wrong: Any) -> None:
    """What no id can be or match is refused, and nothing is stored."""
    for call in (fleet.ignore, fleet.unignore):
        with pytest.raises(UsageError):
            call("a", wrong)
    with pytest.raises(UsageError, match="named"):
        fleet.ignore()
    assert fleet.ignored() == ()


def test_undo_does_not_touch_what_is_ignored(fleet: Fleet, fleet_url: str) -> None:
    """Neither ignore nor its undo is an event, so that the last operation is still the one before."""
    seed(fleet, "a")
    fleet.disable("a")
    fleet.ignore("a")
    fleet.undo()
    assert [one.pattern for one in fleet.ignored()] == ["a"]
    assert fleet.show("a").active
    assert "ignore" not in str(sql(fleet_url, "SELECT event FROM modelctl_events"))


def test_the_command(tool: Cli, fleet: Fleet, tmp_path: Path) -> None:
    """What the command says about each pattern, in every format, and its exit codes."""
    seed(fleet, ["gpt-4o", "gpt-4"])
    done = tool("ignore", "gpt-4*", "--reason", "retired", "--actor", "ann")
    assert done.lines == ["gpt-4*\tignored\ttrue"]
    note = "2 models of the fleet match and stay; to remove: modelctl remove --match 'gpt-4*'"
    assert done.err == f"note: {note}\n"
    again = tool("ignore", "gpt-4*", "gpt-4", "-o", "json")
    assert (again.err, again.json) == (
        "",
        {
            "patterns": [
                {"pattern": "gpt-4*", "changed": False, "result": "already ignored"},
                {"pattern": "gpt-4", "changed": True, "result": "ignored"},
            ],
            "matching": 2,
        },
    )
    first, second = tool("ignore", "--list", "-o", "json").json
    assert (first["pattern"], second["reason"], second["actor"]) == ("gpt-4", "retired", "ann")
    assert [line.split("\t")[:3] for line in tool("ignore", "--list").lines] == [
        *(["gpt-4", "", first["actor"]], ["gpt-4*", "retired", "ann"]),
    ]
    assert tool("ignore", "--list", "-o", "name").lines == ["gpt-4", "gpt-4*"]
    tool("ignore", "--undo", "gpt-4", "gpt-5").failed(4, "not ignored: 'gpt-5'", "nothing")
    assert tool("ignore", "--undo", "gpt-4").lines == ["gpt-4\tno longer ignored\ttrue"]
    for words in ((), ("--list", "a"), ("--list", "--undo"), ("--undo",), ("a[",)):
        tool("ignore", *words).failed(2)
    file = tmp_path / "catalogue.jsonl"
    file.write_bytes(catalogue("gpt-4o", "gpt-5"))
    imported = tool("import", str(file))
    assert imported.err == "note: 1 model is ignored, see: modelctl ignore --list\n"
    assert tool("import", str(file), "-o", "json").json["ignored"] == 1
