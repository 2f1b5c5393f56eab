"""An import adds and updates models, all or nothing, the same on every database."""

from __future__ import annotations

import json

import pytest

from modelctl import Fleet, RefusedError, UsageError
from modelctl.database import bulk
from tests import fleets
from tests.fleets import ACTIVE, ACTOR, AUTO, DISABLED, everything, history, rows, status, trip

CATALOGUE = [
    {"id": "a", "name": "A", "provider": "p"},  # as it is
    {"id": "b", "name": "B2", "provider": "p"},  # another name
    {"id": "c", "provider": "q"},  # another provider, no name
    {"id": "d"},  # knows less than the row
    {"id": "e", "name": "E", "provider": "r"},  # new
    {"id": " ", "name": "no id"},
]


@pytest.fixture
def known(fleet: Fleet) -> Fleet:
    """Give a fleet that shares four models with the catalogue."""
    for model_id in "abcd":
        fleet.add(model_id, name=model_id.upper(), provider="p")
    fleet.disable("b")
    trip(fleet, "c")
    return fleet


def catalogue(*without: str) -> bytes:
    """Write the catalogue as JSON Lines."""
    entries = [entry for entry in CATALOGUE if entry["id"] not in without]
    return "\n".join(map(json.dumps, entries)).encode()


@pytest.mark.parametrize("policy", ["update", "skip"])
def test_import(known: Fleet, policy: str) -> None:
    """New models are added, changed models are updated or skipped, equal models are unchanged."""
    before = len(known.events())
    result = known.import_models(catalogue(), on_conflict=policy)
    updates = policy == "update"
    assert (result.added, result.unchanged, len(result.rejected)) == (1, 2, 1)
    assert (result.updated, result.skipped) == ((2, 0) if updates else (0, 2))
    assert [(m.id, m.display_name, m.provider) for m in known.list_models()] == [
        ("a", "A", "p"),
        ("b", "B2" if updates else "B", "p"),
        ("c", "C", "q" if updates else "p"),
        ("d", "D", "p"),
        ("e", "E", "r"),
    ]
    assert status(known, *"abcde") == [ACTIVE, DISABLED, AUTO, ACTIVE, ACTIVE]
    new = sorted(history(known)[: len(known.events()) - before])
    assert new == [
        *([("b", "updated", DISABLED, DISABLED, ACTOR, None, None)] if updates else []),
        *([("c", "updated", AUTO, AUTO, ACTOR, None, None)] if updates else []),
        ("e", "added", None, ACTIVE, ACTOR, None, None),
    ]


@pytest.mark.parametrize("policy", ["update", "skip", "fail"])
def test_import_again_is_unchanged(known: Fleet, fleet_url: str, policy: str) -> None:
    """Importing the same catalogue again writes nothing, under every policy."""
    known.import_models(catalogue(" "))
    before = rows(fleet_url), fleets.events(fleet_url)
    again = known.import_models(catalogue(" "), on_conflict=policy)
    assert (again.added, again.updated, again.unchanged, again.skipped) == (0, 0, 5, 0)
    assert (rows(fleet_url), fleets.events(fleet_url)) == before


@pytest.mark.parametrize("chunk", [1, 2, 5000])
def test_import_fail_is_all_or_nothing(
    known: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Under `fail` a single changed model or bad entry prevents the whole import."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    before = everything(fleet_url)
    with pytest.raises(RefusedError, match="'b'"):
        known.import_models(catalogue(" "), on_conflict="fail")
    with pytest.raises(UsageError, match="rejected"):
        known.import_models(catalogue("b", "c"), on_conflict="fail")
    assert everything(fleet_url) == before
    assert known.import_models(catalogue("b", "c", " "), on_conflict="fail").added == 1


@pytest.mark.parametrize("policy", ["update", "skip"])
def test_import_dry_run(known: Fleet, fleet_url: str, policy: str) -> None:
    """A dry run of an import changes nothing, and the real run does what it said."""
    before = everything(fleet_url)
    told = known.import_models(catalogue(), on_conflict=policy, dry_run=True)
    assert everything(fleet_url) == before
    done = known.import_models(catalogue(), on_conflict=policy)
    assert told.dry_run
    for name in ("added", "updated", "unchanged", "skipped", "rejected"):
        assert getattr(told, name) == getattr(done, name)


def test_import_in_chunks(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of many chunks is one transaction that reports its progress."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    seen: list[int] = []
    lines = "\n".join(json.dumps({"id": f"m{n}", "name": "x"}) for n in range(7)).encode()
    assert fleet.import_models(lines, progress=seen.append).added == 7
    assert seen == [2, 4, 6, 7]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    more = "\n".join(json.dumps({"id": f"m{n}", "name": "y"}) for n in range(9)).encode()
    with pytest.raises(KeyboardInterrupt):
        fleet.import_models(more, progress=stop)
    assert {m.display_name for m in fleet.list_models()} == {"x"}
    assert len(fleet.list_models()) == 7


@pytest.mark.parametrize("policy", ["", "UPDATE", "replace"])
def test_import_refuses_an_unknown_policy(fleet: Fleet, policy: str) -> None:
    """A policy that does not exist is a usage error."""
    with pytest.raises(UsageError, match="policy"):
        fleet.import_models(b'{"id": "a"}', on_conflict=policy)
