"""Where models come from: when the origin of a model moves, and when it goes."""

from __future__ import annotations

import psycopg

from modelctl import Fleet
from tests import fleets
from tests.fleets import is_sqlite, seed, sql

SEEN = "2026-01-02T03:04:05.678Z"


def come_from(url: str, source: str, *ids: str, gone_since: str | None = None) -> None:
    """Give models this source, as a sync does."""
    for model_id in ids:
        sql(
            url,
            "INSERT INTO modelctl_origins (model_id, source, first_seen_at, gone_since)"
            " VALUES (?, ?, ?, ?)",
            *(model_id, source, SEEN, gone_since),
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


def test_the_origin_follows_a_renamed_model(fleet: Fleet, fleet_url: str) -> None:
    """The new id has the origin; one that an earlier model of that id left behind goes."""
    seed(fleet, "a")
    come_from(fleet_url, "s", "a")
    come_from(fleet_url, "old", "new")
    fleet.rename("a", "new")
    assert sql(fleet_url, "SELECT model_id, source FROM modelctl_origins") == [("new", "s")]


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
