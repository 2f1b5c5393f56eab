"""Changes of a selection: which models they touch, which they leave, in how many statements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from modelctl import (
    Fleet,
    KeptChange,
    ModelNotFoundError,
    RefusedError,
    Selection,
    UsageError,
)
from modelctl.database import bulk
from tests import fleets
from tests.fleets import ACTIVE, AUTO, DISABLED, HOUR, opened, seed
from tests.models.test_store import sent

OPENAI = Selection(provider="openai")
TWELVE = [f"gpt-{number:02}" for number in range(12)]


@pytest.fixture
def twelve(fleet_url: str, fleet: Fleet) -> Fleet:
    """Give a fleet with twelve models of a provider, and others."""
    fleets.put(fleet_url, *TWELVE, provider="openai")
    fleets.put(fleet_url, "other", provider="acme")
    fleets.put(fleet_url, "none")
    fleets.put_off(fleet_url, "tripped", provider="acme")
    return fleet


def changed(result: Any) -> list[str]:
    """Return the ids of the models that changed."""
    return [change.id for change in result.changes if change.changed]


def test_a_provider_off_for_two_hours_and_back_early(twelve: Fleet, fleet_url: str) -> None:
    """Both are one call each, and a model that is held without an end is not touched by either."""
    twelve.disable("gpt-03", reason="legal hold")
    before = fleets.sql(fleet_url, "SELECT * FROM models WHERE id = 'gpt-03'")
    off = twelve.disable(select=OPENAI, duration=2 * HOUR, reason="maintenance")
    assert changed(off) == [i for i in TWELVE if i != "gpt-03"]
    [kept] = [change for change in off.changes if not change.changed]
    assert kept == KeptChange("gpt-03", DISABLED, DISABLED, False, "without an end; kept")
    back = twelve.enable(select=Selection(provider="openai", timed=True))
    assert changed(back) == changed(off)
    assert fleets.sql(fleet_url, "SELECT * FROM models WHERE id = 'gpt-03'") == before
    assert {m.id for m in twelve.list_models(off=True)} == {"gpt-03", "tripped"}


def test_a_selection_leaves_what_is_disabled_for_longer(twelve: Fleet) -> None:
    """A later end, a disable without an end and their reasons stay, unless the change is forced."""
    later = datetime.now(UTC) + timedelta(days=7)
    twelve.disable("gpt-01", until=later, reason="next week")
    twelve.disable("gpt-02", duration=60, reason="a minute")
    twelve.disable("gpt-03", reason="legal")
    twelve.disable(select=OPENAI, duration=HOUR, reason="maintenance")
    models = {model.id: model for model in twelve.list_models(provider="openai")}
    assert models["gpt-01"].disabled_reason == "next week"
    assert abs(models["gpt-01"].disabled_until - later) < timedelta(seconds=2)  # type: ignore[operator]
    assert models["gpt-02"].disabled_reason == "maintenance"
    assert models["gpt-03"].disabled_until is None
    # Without an end: what had one loses it.
    result = twelve.disable(select=OPENAI, reason="for good")
    notes = {c.id: c.note for c in result.changes if isinstance(c, KeptChange)}
    assert notes == {"gpt-03": "without an end; kept"}
    models = {model.id: model for model in twelve.list_models(provider="openai")}
    assert (models["gpt-03"].disabled_reason, models["gpt-01"].disabled_until) == ("legal", None)
    twelve.disable(select=OPENAI, duration=HOUR, force=True)
    assert all(model.disabled_until for model in twelve.list_models(provider="openai"))


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection(all=True), {*TWELVE, "other", "none", "tripped"}),
        (Selection(provider="acme"), {"other", "tripped"}),
        (Selection(provider=""), {"none"}),
        (Selection(status="active", provider="acme"), {"other"}),
        (Selection(status="auto-disabled"), {"tripped"}),
        (Selection(match="gpt-0[12]"), {"gpt-01", "gpt-02"}),
        (Selection(match="*", by="health rule"), {"tripped"}),
        (Selection(match="gpt-1*", provider="openai"), {"gpt-10", "gpt-11"}),
    ],
)
def test_what_a_selection_means(twelve: Fleet, selection: Selection, ids: set[str]) -> None:
    """A listing and a change of the same selection are about the same models."""
    assert {model.id for model in twelve.list_models(select=selection)} == ids
    assert {change.id for change in twelve.disable(select=selection).changes} == ids


def test_a_selection_without_a_model(twelve: Fleet, fleet_url: str) -> None:
    """For a change that is an error, for a listing it is an empty list."""
    before = fleets.everything(fleet_url)
    nobody = Selection(provider="nobody")
    for change in (twelve.disable, twelve.enable, twelve.remove, twelve.recover):
        with pytest.raises(ModelNotFoundError, match="provider 'nobody'"):
            change(select=nobody)
    assert twelve.list_models(select=nobody) == []
    assert fleets.everything(fleet_url) == before


def test_selections_that_make_no_sense(twelve: Fleet) -> None:
    """Nothing, ids beside a selection, all beside another word, and wrong values are usage errors."""
    for call in (
        lambda: twelve.disable(),
        lambda: twelve.disable(select=Selection()),
        lambda: twelve.disable("gpt-01", select=OPENAI),
        lambda: twelve.disable("gpt-01", limit_to=1),
        lambda: twelve.disable(select=Selection(provider="openai", all=True)),
        lambda: twelve.disable(select=Selection(status="of")),
        lambda: twelve.disable(select=Selection(match="[")),
        lambda: twelve.disable(select="openai"),  # type: ignore[arg-type]
        lambda: twelve.disable(select=OPENAI, limit_to=-1),
        lambda: twelve.list_models(select=OPENAI, status="active"),
    ):
        with pytest.raises(UsageError):
            call()
    assert {model.status for model in twelve.list_models(provider="openai")} == {ACTIVE}


def test_the_limit_of_a_change(twelve: Fleet, fleet_url: str) -> None:
    """Nothing changes if more models would change than the limit; those that are off do not count."""
    twelve.disable("gpt-00")
    before = fleets.everything(fleet_url)
    for change in (twelve.disable, twelve.remove):
        with pytest.raises(RefusedError, match="more than 10 models would change"):
            change(select=OPENAI, limit_to=10)
    assert fleets.everything(fleet_url) == before
    assert len(changed(twelve.disable(select=OPENAI, limit_to=11))) == 11
    assert changed(twelve.disable(select=OPENAI, limit_to=0)) == []


def test_a_dry_run_changes_nothing(twelve: Fleet, fleet_url: str) -> None:
    """It says what would change, and every row stays as it is."""
    before = fleets.everything(fleet_url)
    for change in (twelve.disable, twelve.remove):
        assert changed(change(select=OPENAI, dry_run=True)) == TWELVE
    assert fleets.everything(fleet_url) == before


def test_the_floor_counts_for_a_selection(twelve: Fleet, fleet_url: str) -> None:
    """A selection that would leave fewer active models than the floor changes nothing."""
    with opened(fleet_url, recovery_min_active=3) as guarded:
        with pytest.raises(RefusedError, match="min_active is 3"):
            guarded.disable(select=OPENAI)
        assert {m.status for m in guarded.list_models(provider="openai")} == {ACTIVE}
        assert len(changed(guarded.disable(select=Selection(match="gpt-0*")))) == 10


def test_removal_of_a_selection(twelve: Fleet) -> None:
    """The models go, their history stays, and the others stay too."""
    assert changed(twelve.remove(select=Selection(match="gpt-*"))) == TWELVE
    assert {m.id for m in twelve.list_models()} == {"none", "other", "tripped"}
    assert twelve.events("gpt-00")[0].event == "removed"


def test_recover_of_a_selection(twelve: Fleet, fleet_url: str) -> None:
    """Only its models come back or wait, and such a run does not count as the expected one."""
    fleets.put_off(fleet_url, "due-a", "due-b", failed=2 * HOUR, provider="acme")
    fleets.put_off(fleet_url, "due-c", failed=2 * HOUR, provider="openai")
    dry = twelve.recover(select=OPENAI, dry_run=True)
    assert ([*dry.recovered], [*dry.waiting]) == (["due-c"], [])
    result = twelve.recover(select=Selection(provider="acme"))
    assert [*result.recovered] == ["due-a", "due-b"]
    assert [waiting.id for waiting in result.waiting] == ["tripped"]
    assert twelve.show("due-c").status is AUTO
    assert twelve.last_recover().at is None
    assert [*twelve.recover(select=OPENAI, limit=1).recovered] == ["due-c"]
    # Nothing to bring back is no error, as long as the provider has models.
    assert [*twelve.recover(select=OPENAI).recovered] == []


@pytest.mark.parametrize(("chunk", "chunks"), [(1000, 1), (500, 2), (100, 10)])
def test_statements_grow_with_chunks_alone(
    pg: Fleet, monkeypatch: pytest.MonkeyPatch, chunk: int, chunks: int
) -> None:
    """A selection is read by one statement; then each chunk costs the same few, in one transaction."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    seed(pg, [f"m{number}" for number in range(1000)])
    for verb in ("disable", "enable", "remove"):
        with sent(pg) as said:
            getattr(pg, verb)(select=Selection(match="m*"))
        begin = said.index("BEGIN SELECT SET")
        assert said[begin:] == [
            "BEGIN SELECT SET",
            *["SELECT", "DELETE" if verb == "remove" else "UPDATE", "INSERT", "SELECT"] * chunks,
            "COMMIT",
        ]


def test_a_model_that_leaves_the_selection_stays(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another program changes between the reading and the change is looked at again."""
    fleets.put(fleet_url, "a", "b", provider="openai")

    def leave(*_: Any) -> None:
        fleets.alter(fleet_url, "b", provider="acme")

    engine = fleet._store.database.engine
    sa.event.listen(engine, "checkin", leave)  # the reading is over, the change not yet begun
    assert [change.id for change in fleet.disable(select=OPENAI).changes] == ["a"]
    sa.event.remove(engine, "checkin", leave)
    assert fleet.show("b").status is ACTIVE


def test_an_id_that_cannot_be_read_stops_nothing(sqlite_database: str) -> None:
    """The other models of a selection change, and a warning says how many did not."""
    fleets.put(sqlite_database, "a", provider="openai")
    fleets.sql(sqlite_database, "INSERT INTO models (id, provider) VALUES (x'ff', 'openai')")
    with opened(sqlite_database) as fleet:
        warnings: list[str] = []
        fleet.on_warning = warnings.append
        assert [change.id for change in fleet.disable(select=OPENAI).changes] == ["a"]
    assert "the ids of 1 model cannot be read" in warnings[0]
