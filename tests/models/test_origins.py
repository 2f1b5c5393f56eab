"""Where models come from, and when that is forgotten."""

from __future__ import annotations

import csv
from datetime import UTC, datetime

import psycopg
import pytest

from modelctl import (
    Fleet,
    MissingSchemaError,
    ModelNotFoundError,
    RemovedModel,
    RenamedModel,
    Selection,
    SourcedModel,
    StatusChange,
)
from tests import fleets
from tests.commands import Cli
from tests.fleets import ACTIVE, is_sqlite, seed, sql

SEEN, SYNCED, GONE = (datetime(2026, 1, day, 3, 4, 5, 678000, UTC) for day in (2, 3, 4))


def _stored(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def come_from(url: str, source: str, *ids: str, gone_since: datetime | None = None) -> None:
    """Give models this source, as two syncs do; with *gone_since* they are gone."""
    sql(url, "DELETE FROM modelctl_sources WHERE name = ?", source)
    synced = "INSERT INTO modelctl_sources (name, synced_at) VALUES (?, ?)"
    sql(url, synced, source, _stored(gone_since or SYNCED))
    for model_id in ids:
        sql(
            url,
            "INSERT INTO modelctl_origins (model_id, source, first_seen_at, last_seen_at, gone_since)"
            " VALUES (?, ?, ?, ?, ?)",
            *(model_id, source, _stored(SEEN), _stored(gone_since and SYNCED), _stored(gone_since)),
        )


def origins(url: str) -> list[str]:
    """Return the ids in the table of the origins."""
    return sorted(row[0] for row in sql(url, "SELECT model_id FROM modelctl_origins"))


def test_the_origin_goes_with_the_model(fleet: Fleet, fleet_url: str) -> None:
    """Whoever removes a model, and however: a new model with the same id has no origin."""
    seed(fleet, "abcd")
    come_from(fleet_url, "s", *"abcd")
    fleet.remove("a")
    sql(fleet_url, "DELETE FROM models WHERE id IN ('b', 'never')")
    assert origins(fleet_url) == ["c", "d"]
    if is_sqlite(fleet_url):
        sql(fleet_url, "UPDATE models SET id = 'x' || id WHERE id IN ('c', 'd')")
    else:
        sql(fleet_url, "TRUNCATE models")
    assert origins(fleet_url) == []


def test_a_renamed_model_has_no_origin(fleet: Fleet, fleet_url: str) -> None:
    """Its id is a person's own, so no sync takes it for gone; the result says which source offers the old one."""
    seed(fleet, "a")
    come_from(fleet_url, "s", "a")
    come_from(fleet_url, "old", "new")
    (change,) = fleet.rename("a", "new").changes
    assert isinstance(change, RenamedModel)
    assert change.offered_by == "s"
    assert origins(fleet_url) == []


def test_a_deletion_never_fails_because_of_origins(pg_database: str) -> None:
    """Where another tool renamed or dropped the table, an application still deletes, and tags go."""
    fleets.put(pg_database, "a", "b")
    sql(pg_database, "INSERT INTO modelctl_tags (model_id, tags) VALUES ('a', '{eu}')")
    sql(pg_database, "ALTER TABLE modelctl_origins RENAME COLUMN model_id TO other")
    sql(pg_database, "DELETE FROM models WHERE id = 'a'")
    assert sql(pg_database, "SELECT * FROM modelctl_tags") == []
    sql(pg_database, "DROP TABLE modelctl_origins")
    with psycopg.connect(pg_database, autocommit=True) as connection:
        connection.execute("TRUNCATE models")


def origin(model: object) -> tuple[object, ...]:
    """Return what a result says about the source of a model."""
    assert isinstance(model, SourcedModel)
    return model.source, model.first_seen_at, model.last_seen_at, model.gone_since


def test_what_is_said_about_the_source(fleet: Fleet, fleet_url: str) -> None:
    """A model that is not gone was last seen by the last sync of its source; without one all is None."""
    seed(fleet, "abc")
    come_from(fleet_url, "s", "a")
    come_from(fleet_url, "t", "b", gone_since=GONE)
    expected = {
        "a": ("s", SEEN, SYNCED, None),
        "b": ("t", SEEN, SYNCED, GONE),
        "c": (None, None, None, None),
    }
    assert {i: origin(fleet.show(i)) for i in "abc"} == expected
    listed = fleet.list_models(with_source=True, limit=10)
    assert {model.id: origin(model) for model in listed} == expected
    assert [type(model).__name__ for model in fleet.list_models()] == ["Model"] * 3


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection(source="s"), "ab"),
        (Selection(source="s", gone=True), "b"),
        (Selection(gone=True), "bc"),
        (Selection(source=""), "d"),
    ],
)
def test_models_are_selected_by_their_source(
    fleet: Fleet, fleet_url: str, selection: Selection, ids: str
) -> None:
    """A source, no source, and what is gone can be listed and changed."""
    seed(fleet, "abcd")
    come_from(fleet_url, "s", "a")
    come_from(fleet_url, "s", "b", gone_since=GONE)
    come_from(fleet_url, "t", "c", gone_since=GONE)
    assert "".join(m.id for m in fleet.list_models(select=selection)) == ids
    assert "".join(m.id for m in fleet.list_models(select=selection, with_source=True)) == ids
    assert "".join(c.id for c in fleet.disable(select=selection).changes) == ids
    with pytest.raises(ModelNotFoundError, match="source 'x', gone from its source"):
        fleet.enable(select=Selection(source="x", gone=True))


def test_a_listing_reads_no_origins_unless_asked(fresh_url: str) -> None:
    """A plain listing does not join the table of the origins: it works without it."""
    fleets.put(fresh_url, "a")
    sql(fresh_url, "ALTER TABLE modelctl_origins RENAME TO away")
    with fleets.opened(fresh_url) as fleet:
        assert len(fleet.list_models()) == 1
        with pytest.raises(MissingSchemaError):
            fleet.list_models(with_source=True)


def test_a_removed_model_says_who_offers_it(fleet: Fleet, fleet_url: str) -> None:
    """What sync would add again has the name of its source; what is gone upstream has none."""
    seed(fleet, "abc")
    come_from(fleet_url, "s", "a")
    come_from(fleet_url, "t", "b", gone_since=GONE)
    assert fleet.remove(*"abc").changes == (
        RemovedModel("a", ACTIVE, None, True, "s"),
        StatusChange("b", ACTIVE, None, True),
        StatusChange("c", ACTIVE, None, True),
    )


def test_the_commands(fleet: Fleet, fleet_url: str, tool: Cli) -> None:
    """show, list and remove say where models come from, and remove says what comes back."""
    seed(fleet, ["a[1]", "b", "c", "d"])
    come_from(fleet_url, "s", "a[1]", "c", "d")
    come_from(fleet_url, "s", "b", gone_since=GONE)
    shown = tool("show", "b", "-o", "json").json
    assert (shown["source"], shown["gone_since"]) == ("s", "2026-01-04T03:04:05.678Z")
    assert "first seen" in tool("show", "b", "-o", "table").out
    assert tool("list", "--source", "s", "--gone", "-o", "name").lines == ["b"]
    columns = tool("list", "-c", "id,source,last_seen_at", "-o", "csv")
    rows = list(csv.reader(columns.lines))
    assert rows[1] == ["a[1]", "s", "2026-01-04T03:04:05.678Z"]
    assert "2026-01-04 03:04Z" in tool("list", "--gone", "-o", "wide").out
    assert "source" not in tool("list", "-o", "json").json[0]
    note = "note: the next sync adds 1 model of s again; to prevent it: modelctl ignore 'a[[]1]'\n"
    assert tool("remove", "a[1]", "b", "--yes").err == note
    tool("ignore", "c")
    removed = tool("remove", "c", "--yes", "-o", "table")
    assert (removed.code, removed.err) == (0, "")
    note = "note: the next sync adds 'd' of s again; to prevent it: modelctl ignore d\n"
    assert tool("rename", "d", "new").err == note
    assert tool("rename", "d", "new").err == ""
    assert tool("remove", "--source", "s", "--yes", "-o", "json").err == ""
