"""`Fleet.sync` brings the fleet to what its sources offer, the same on every database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from modelctl import Fleet, RefusedError, Selection, UsageError
from modelctl.database import bulk
from modelctl.sync.results import PlannedChange, SyncResult
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    everything,
    history,
    opened,
    sql,
    status,
    trip,
)

ALL = "abcdefghij"
Source = tuple[str, list[tuple[str, str, str]]]


def source(name: str, ids: Sequence[str], provider: str = "p") -> Source:
    """Give a source that offers these models, each with its id as its name."""
    return name, [(model_id, model_id.upper(), provider) for model_id in ids]


def said(result: SyncResult) -> list[tuple[str, str, str | None]]:
    """Return the changes without their values."""
    return [(change.kind, change.id, change.note) for change in result.changes]


def origins(url: str) -> dict[str, tuple[Any, ...]]:
    """Return of each model its source, whether it is gone, and whether sync switched it off."""
    found = sql(
        url,
        "SELECT model_id, source, gone_since IS NOT NULL, switched_off_at IS NOT NULL"
        " FROM modelctl_origins",
    )
    return {row[0]: (row[1], bool(row[2]), bool(row[3])) for row in found}


def without_times(url: str) -> object:
    """Return the content of the database without the time of the last sync."""
    found = everything(url)
    return {name: rows for name, rows in found.items() if name != "modelctl_sources"}


@pytest.mark.parametrize("chunk", [3, 5000])
def test_a_sync_and_the_next(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """New models are added, others get a name or their origin, gone ones are marked, and a second
    sync of the same writes the time of the sync alone."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    fleet.add("a", name="A", provider="p")
    fleet.add("b", name="old", provider="p")
    first = fleet.sync([source("s", ALL)])
    assert (first.added, first.changed, first.unchanged, first.adopted) == (8, 1, 1, 2)
    changed = next(change for change in first.changes if change.kind == "changed")
    assert changed == PlannedChange(
        "changed", "b", {"display_name": "old"}, {"display_name": "B"}, "s"
    )
    assert origins(fleet_url) == dict.fromkeys(ALL, ("s", False, False))
    assert {row[1:4] for row in history(fleet) if row[0] == "j"} == {("added", None, ACTIVE)}

    second = fleet.sync([source("s", ALL[:-1])])
    assert said(second) == [("gone", "j", "gone from s; stays as it is")]
    assert (second.gone, second.unchanged, second.is_silent) == (1, 9, False)
    assert origins(fleet_url)["j"] == ("s", True, False)
    assert status(fleet, "j") == [ACTIVE]
    ((seen, gone),) = sql(
        fleet_url, "SELECT last_seen_at, gone_since FROM modelctl_origins WHERE model_id = 'j'"
    )
    assert str(seen) < str(gone)

    before, at = without_times(fleet_url), sql(fleet_url, "SELECT synced_at FROM modelctl_sources")
    third = fleet.sync([source("s", ALL[:-1])])
    assert (third.is_silent, said(third), third.operation) == (True, [], None)
    assert without_times(fleet_url) == before
    assert sql(fleet_url, "SELECT synced_at FROM modelctl_sources") > at

    assert said(fleet.sync([source("s", ALL)])) == [("back", "j", "back in s")]
    assert origins(fleet_url)["j"] == ("s", False, False)


def test_gone_models_are_disabled_and_come_back(fleet: Fleet, fleet_url: str) -> None:
    """`disable` switches off what is on and not paused; only what nobody touched since comes back."""
    fleet.sync([source("s", ALL), source("t", "z", "held")])
    fleet.disable("a", reason="by hand")
    trip(fleet, "b")
    fleet.pause(provider="held", duration=600)
    gone = fleet.sync(
        [source("s", "hij"), source("t", "y", "q")], gone="disable", max_gone=1, actor="cron"
    )
    assert said(gone) == [
        ("added", "y", None),
        ("kept", "a", "gone from s; already disabled"),
        ("kept", "b", "gone from s; already auto-disabled"),
        *(("gone", model_id, "gone from s; disabled") for model_id in "cdefg"),
        ("kept", "z", "gone from t; automatic changes are paused"),
    ]
    assert status(fleet, *"abcz") == [DISABLED, AUTO, DISABLED, ACTIVE]
    off = fleet.show("c")
    assert (off.disabled_by, off.disabled_reason) == ("sync", "gone from s")
    assert fleet.events("c")[0].actor == "cron"
    fleet.enable("d")
    fleet.disable("e", reason="broken")
    fleet.enable("f")
    fleet.disable("f")
    again = fleet.sync([source("s", "hij"), source("t", "y", "q")], gone="disable", max_gone=1)
    assert again.is_silent
    assert status(fleet, "d") == [ACTIVE]
    fleet.resume(provider="held")
    later = fleet.sync([source("s", "hij"), source("t", "y", "q")], gone="disable", max_gone=1)
    assert said(later) == [("gone", "z", "gone from t; disabled")]
    back = fleet.sync([source("s", ALL), source("t", "yz", "q")])
    assert said(back) == [
        ("changed", "z", None),
        ("kept", "a", f"back in s; disabled by {ACTOR}: by hand"),
        ("kept", "b", "back in s; auto-disabled by health rule: no JSON"),
        ("back", "c", "back in s; enabled"),
        ("back", "d", "back in s"),
        ("kept", "e", "back in s; disabled by sync: broken"),
        ("kept", "f", f"back in s; disabled by {ACTOR}"),
        ("back", "g", "back in s; enabled"),
        ("back", "z", "back in t; enabled"),
    ]
    assert status(fleet, *"cdefgz") == [ACTIVE, ACTIVE, DISABLED, DISABLED, ACTIVE, ACTIVE]
    assert {row[1:] for row in origins(fleet_url).values()} == {(False, False)}


@pytest.mark.parametrize(
    "how", [{}, {"duration": 3600.0}, {"reason": "mine"}, {"select": Selection(provider="p")}]
)
def test_what_a_person_disables_meanwhile_stays_off(fleet: Fleet, how: dict[str, Any]) -> None:
    """A person may disable what sync has switched off, however that ends: then sync does not enable it."""
    fleet.sync([source("s", ALL)])
    fleet.sync([source("s", ALL[1:])], gone="disable")
    fleet.disable(*([] if "select" in how else ["a"]), **how)
    back = fleet.sync([source("s", ALL)])
    assert (said(back)[0][:2], status(fleet, "a")) == (("kept", "a"), [DISABLED])


def test_a_model_that_is_back_under_a_pause_waits(fleet: Fleet, fleet_url: str) -> None:
    """A pause stops `sync` from enabling what it switched off; a sync after the pause does it."""
    fleet.sync([source("s", ALL)])
    fleet.sync([source("s", ALL[1:])], gone="disable")
    fleet.pause(duration=600)
    paused = fleet.sync([source("s", ALL)])
    assert said(paused) == [("kept", "a", "back in s; automatic changes are paused")]
    assert said(fleet.sync([source("s", ALL)])) == []
    fleet.resume()
    assert said(fleet.sync([source("s", ALL)])) == [("back", "a", "back in s; enabled")]
    assert status(fleet, "a") == [ACTIVE]


def test_gone_models_are_removed(fleet: Fleet, fleet_url: str) -> None:
    """`remove` deletes the models that are gone, also those that earlier syncs kept, with their origin."""
    fleet.sync([source("s", ALL)])
    fleet.sync([source("s", ALL[1:])])
    done = fleet.sync([source("s", ALL[2:])], gone="remove")
    assert said(done) == [("gone", model_id, "gone from s; removed") for model_id in "ab"]
    assert origins(fleet_url) == dict.fromkeys(ALL[2:], ("s", False, False))
    assert [row[:2] for row in history(fleet)[:2]] == [("b", "removed"), ("a", "removed")]
    assert fleet.events("a")[0].reason == "gone from s"


CASES = [
    # models there, still offered, max_gone: whether it is refused
    (10, 8, 0.2, False),
    (10, 7, 0.2, True),
    (10, 0, 0.2, True),
    (10, 0, 0.99, True),
    (10, 0, 1, False),
    (3, 2, 0.2, False),
    (3, 1, 0.2, True),
    (3, 2, 0, True),
    (1, 0, 0.2, True),
    (1, 0, 1, False),
]


def test_too_many_that_are_gone_are_refused(fleet: Fleet, fleet_url: str) -> None:
    """More than the share are refused, whatever becomes of them; one model may go, not the last one."""
    for there, offered, max_gone, refused in CASES:
        for gone in ("keep", "disable", "remove"):
            sql(fleet_url, "DELETE FROM models")
            fleet.sync([source("s", ALL[:there]), source("other", "xyz")])
            before = everything(fleet_url)
            now = [source("s", ALL[:offered]), source("other", "xyz")]
            if refused:
                with pytest.raises(RefusedError, match=r"of s would be gone, and at most"):
                    fleet.sync(now, gone=gone, max_gone=max_gone)
                assert everything(fleet_url) == before, (there, offered, max_gone, gone)
            else:
                assert fleet.sync(now, gone=gone, max_gone=max_gone).gone == there - offered


def test_a_percentage_is_exact(fleet: Fleet) -> None:
    """29% of 100 models are 29, though 0.29 * 100 is a little less; the error has the percentage."""
    ids = [f"m{number:02}" for number in range(100)]
    fleet.sync([source("s", ids)])
    assert fleet.sync([source("s", ids[29:])], max_gone=0.29, dry_run=True).gone == 29
    with pytest.raises(RefusedError, match=r"30 of the 100 models of s .* at most 0\.5% may"):
        fleet.sync([source("s", ids[30:])], max_gone=0.005)


def test_an_undo_switches_on_what_a_sync_switched_off(fleet: Fleet) -> None:
    """Whoever ran the sync; the next one leaves it on, and says nothing."""
    fleet.sync([source("s", ALL)])
    gone = fleet.sync([source("s", ALL[1:])], gone="disable", actor="cron")
    (undone,) = fleet.undo(gone.operation).changes
    assert (undone.id, undone.changed, status(fleet, "a")) == ("a", True, [ACTIVE])
    assert fleet.sync([source("s", ALL[1:])], gone="disable").is_silent
    fleet.undo(actor="tester")  # of the undo
    assert (status(fleet, "a"), fleet.show("a").disabled_by) == ([DISABLED], "sync")


def test_the_floor_holds(fleet_url: str) -> None:
    """`disable` and `remove` leave at least `recovery.min_active` models on."""
    with opened(fleet_url, recovery_min_active=9) as fleet:
        fleet.sync([source("s", ALL)])
        for gone in ("disable", "remove"):
            with pytest.raises(RefusedError, match=r"8 models would stay on") as refused:
                fleet.sync([source("s", ALL[2:])], gone=gone)
            assert refused.value.hint == "run sync with --gone keep"
        assert fleet.sync([source("s", ALL[1:])], gone="disable").gone == 1
    with opened(fleet_url, recovery_min_active=10) as fleet:  # what is off can go, though
        assert fleet.sync([source("s", ALL[1:])], gone="remove").gone == 1


def test_the_first_source_wins(fleet: Fleet, fleet_url: str) -> None:
    """A model belongs to the first source that offers it, also where the sources are synced one by one."""
    first = fleet.sync([source("s", "ab"), source("t", "bc")])
    assert said(first)[-1] == ("clash", "b", "belongs to s, which comes first")
    assert (first.added, first.clashes) == (3, 1)
    # Alone, t gets no model of s that is still offered, unless s is not configured any more.
    alone = fleet.sync([source("t", "abc", "q")], order=["s", "t"])
    assert said(alone)[1:] == [
        ("clash", model_id, "belongs to s, which comes first") for model_id in "ab"
    ]
    assert origins(fleet_url) == {
        "a": ("s", False, False),
        "b": ("s", False, False),
        "c": ("t", False, False),
    }
    # It gets those that are gone from s: they are not gone.
    moved = fleet.sync([source("s", "ad"), source("t", "bc", "q")])
    assert [change[:2] for change in said(moved)] == [("changed", "b"), ("added", "d")]
    assert origins(fleet_url)["b"] == ("t", False, False)
    # A source that comes first takes over what a later one had.
    fleet.sync([source("r", "c")], order=["r", "s", "t"])
    assert origins(fleet_url)["c"] == ("r", False, False)


def test_the_plan_is_confirmed_before_anything_is_written(fleet: Fleet, fleet_url: str) -> None:
    """The plan is shown, nothing is written meanwhile, and another plan by then is refused."""
    before = everything(fleet_url)
    plans: list[SyncResult] = []

    def answer(plan: SyncResult) -> bool:
        assert everything(fleet_url) == before
        plans.append(plan)
        return len(plans) > 1

    with pytest.raises(RefusedError, match="not confirmed"):
        fleet.sync([source("s", ALL)], confirm=answer)
    assert everything(fleet_url) == before
    done = fleet.sync([source("s", ALL)], confirm=answer)
    assert plans[1].dry_run
    assert list(plans[1].changes) == list(done.changes)
    fleet.sync([source("s", ALL)], confirm=answer)  # nothing would change: nobody is asked
    assert len(plans) == 2

    def meanwhile(_: SyncResult) -> bool:
        fleet.add("k", name="other")
        return True

    with pytest.raises(RefusedError, match="the plan has changed"):
        fleet.sync([source("s", [*ALL, "k"])], confirm=meanwhile)
    assert fleet.show("k").display_name == "other"


def test_a_dry_run_writes_nothing_and_the_run_does_what_it_said(
    fleet: Fleet, fleet_url: str
) -> None:
    """A dry run has the changes of the run, and opens the sources like it."""
    fleet.sync([source("s", ALL)])
    before = everything(fleet_url)
    name, models = source("s", ALL[1:] + "k", "q")
    told = fleet.sync([(name, lambda: models)], gone="disable", dry_run=True)
    assert everything(fleet_url) == before
    done = fleet.sync([(name, lambda: models)], gone="disable")
    assert list(told.changes) == list(done.changes)
    assert (told.dry_run, told.added, told.changed, told.gone) == (True, 1, 9, 1)


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ([], {}, "no source"),
        ([source("s", "a"), source("s", "b")], {}, "twice"),
        ([("s", [("a\nb", "", "")])], {}, "control characters"),
        ([source("s", "a")], {"gone": "forget"}, "no policy"),
        ([source("s", "a")], {"max_gone": 20}, "share"),
        ([source("s", "a")], {"max_gone": "20%"}, "share"),
        ([source("", "a")], {}, "name of a source"),
        ([source("s\x1b[m", "a")], {}, "name of a source"),
        ([(1, [])], {}, "name of a source"),
        ([("s",)], {}, "a name with its models, not tuple"),
        ([("s", None)], {}, "the models of source 's' are a list"),
        ([("s", ["abc"])], {}, "a model is its id, its name and its provider, not 'abc'"),
        ([("s", [("a", "A")])], {}, "a model is its id, its name and its provider"),
    ],
)
def test_wrong_arguments(fleet: Fleet, sources: Any, options: Any, words: str) -> None:
    """What cannot be meant is refused before the database is asked."""
    with pytest.raises(UsageError, match=words):
        fleet.sync(sources, **options)


def test_origins_without_models_are_cleaned(fleet: Fleet, fleet_url: str) -> None:
    """A row of the origins whose model is not in the fleet is no gone model, and does not stay."""
    fleet.sync([source("s", ALL)])
    sql(
        fleet_url,
        "INSERT INTO modelctl_origins (model_id, source, first_seen_at)"
        " VALUES ('ghost', 's', '2026-01-01T00:00:00.000Z')",
    )
    assert fleet.sync([source("s", ALL)]).is_silent
    assert "ghost" not in origins(fleet_url)


def test_what_is_ignored_is_neither_added_nor_gone(fleet: Fleet, fleet_url: str) -> None:
    """An ignored id is not added or changed, and a model that is in the fleet already is not gone."""
    fleet.sync([source("s", "abc")])
    fleet.ignore("b*", "new")
    done = fleet.sync([source("s", ["a", "b", "c", "new", "d"], "q")], gone="remove", max_gone=1)
    assert (done.ignored, done.added, done.changed, done.gone) == (2, 1, 2, 0)
    assert (fleet.show("b").provider, fleet.show("a").provider) == ("p", "q")
