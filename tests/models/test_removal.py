"""Removing tells why, what would go, and what was removed before."""

from __future__ import annotations

import pytest

from modelctl import Fleet, ModelNotFoundError, StatusChange
from tests.commands import Cli, finish, make_fleet, on_terminal
from tests.fleets import everything, opened, seed, sql


def test_what_is_gone_is_already_removed(fleet: Fleet, fleet_url: str) -> None:
    """A model that the history knows can be removed again: nothing changes, nothing is written."""
    seed(fleet, "abc")
    fleet.remove("a")
    before = sql(fleet_url, "SELECT * FROM modelctl_events")
    assert fleet.remove("a").changes == (StatusChange("a", None, None, False),)
    assert sql(fleet_url, "SELECT * FROM modelctl_events") == before
    both = fleet.remove("c", "a", "b").changes
    assert [(c.id, c.before, c.changed) for c in both] == [
        *(("c", "active", True), ("a", None, False), ("b", "active", True))
    ]
    assert fleet.list_models() == []


def test_what_never_was_is_unknown(fleet: Fleet, fleet_url: str) -> None:
    """An id that is neither a model nor in the history is an error, and nothing is removed."""
    seed(fleet, "ab")
    fleet.remove("b")
    fleet.pause(60, provider="never")
    before = everything(fleet_url)
    for ids in (["never"], ["a", "never"], ["b", "never"], ["a", "b", "never\0"], [""]):
        with pytest.raises(ModelNotFoundError):
            fleet.remove(*ids)
        with pytest.raises(ModelNotFoundError):
            fleet.remove(*ids, dry_run=True)
    assert everything(fleet_url) == before


def test_thousands_are_removed_at_once(fleet: Fleet, fleet_url: str) -> None:
    """Thousands of existing and removed ids are removed at once, as a dry run says before."""
    ids = [f"m{n}" for n in range(3000)]
    seed(fleet, ids)
    fleet.remove(*ids[::2])
    before = everything(fleet_url)
    told = fleet.remove(*ids, dry_run=True)
    assert everything(fleet_url) == before
    done = fleet.remove(*ids)
    assert done.changes == told.changes
    assert [c.changed for c in done.changes] == [False, True] * 1500


def test_the_command(cli: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`remove` takes a reason for the history, and --dry-run neither asks nor removes."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, "ab")
        assert cli("remove", "a", "--dry-run").out == "a\tactive\t\twould be removed\ttrue\n"
        assert len(fleet.list_models()) == 2
        assert cli("remove", "a", "--yes", "--reason", "too old").code == 0
        assert [(e.event, e.reason) for e in fleet.events("a", limit=1)] == [("removed", "too old")]
    again = cli("remove", "a", "b", "--yes")
    assert [line.split("\t")[3] for line in again.lines] == ["already removed", "removed"]
    shown = cli("remove", "a", "--yes", "-o", "json").json["changes"]
    assert [(c["before"], c["after"], c["changed"]) for c in shown] == [(None, None, False)]
    cli("remove", "x", "--yes").failed(4, "no model 'x'")


def test_a_person_is_asked_of_what_is_there_alone() -> None:
    """On a terminal what is gone is not asked for."""
    make_fleet()
    child = on_terminal("remove", "acme/off")
    child.expect("y/N")
    child.sendline("y")
    assert finish(child)[0] == 0
    code, shown = finish(on_terminal("remove", "acme/off"))
    assert code == 0
    assert "already removed" in shown
    assert "y/N" not in shown
