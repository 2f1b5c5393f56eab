"""Times that other programs, roles and variables make odd."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.fleets import opened, seed, sql
from tests.servers import Postgres

ODD_TIMES = {
    "postgresql": ["infinity", "-infinity", "0044-03-15 BC", "9999-12-31 23:59:59+00"],
    "sqlite": ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+05:00", "the ides of March"],
}


@pytest.mark.parametrize(
    ("kind", "odd"), [(kind, odd) for kind, times in ODD_TIMES.items() for odd in times]
)
def test_an_odd_time_of_one_model_stops_nothing(
    kind: str, odd: str, request: pytest.FixtureRequest
) -> None:
    """A time that Python cannot hold is unreadable: the fleet is listed and recovers all the same."""
    url = request.getfixturevalue("pg_database" if kind == "postgresql" else "sqlite_database")
    with opened(url) as fleet:
        seed(fleet, "ab")
        sql(url, "UPDATE models SET active = false")
        sql(url, f"UPDATE models SET auto_disabled = true, last_failure_at = '{odd}'")
        assert [m.status for m in fleet.list_models()] == ["auto-disabled"] * 2
        assert fleet.show("a").id == "a"
        assert len(fleet.recover(dry_run=True).waiting) <= 2
        assert not fleet.recover().busy
        assert fleet.enable("a", "b").changes[0].after == "active"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PGTZ", "Asia/Tokyo"), ("PGDATESTYLE", "German"), ("PGOPTIONS", "-c timezone=Asia/Tokyo")],
)
def test_times_are_utc_whatever_libpq_is_told(
    pg_database: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A zone or a style from the environment neither shifts a time nor makes it unreadable."""
    sql(pg_database, "ALTER TABLE models ALTER last_failure_at TYPE timestamp")
    monkeypatch.setenv(variable, value)
    with opened(pg_database) as fleet:
        seed(fleet, "a")
        fleet.record_failure("a")
        failed = fleet.show("a").last_failure_at
    assert failed is not None
    assert abs((datetime.now(UTC) - failed).total_seconds()) < 60


def test_a_style_of_the_role_is_not_a_bug(postgres: Postgres, pg_database: str) -> None:
    """Where the role wants its dates in another style, ours are still read."""
    name = pg_database.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
    postgres.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    with opened(pg_database) as fleet:
        seed(fleet, "a")
        created = fleet.show("a").created_at
    assert created is not None
    assert created.utcoffset() == timedelta(0)
