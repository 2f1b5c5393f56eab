"""Times are right whatever time zone and format other programs, roles and variables set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from modelctl import Fleet, UsageError
from tests.commands import Cli, make_fleet
from tests.commands import sql as file_sql
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
    """A time that Python cannot hold is unreadable, but the fleet can be listed and recovered."""
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


# --- times that people write

LiveIn = Callable[[str], None]


@pytest.fixture
def live_in() -> Iterator[LiveIn]:
    """Return a function that gives this process another local time zone, until the test ends."""
    with pytest.MonkeyPatch.context() as patch:

        def change(zone: str) -> None:
            patch.setenv("TZ", zone)
            time.tzset()

        yield change
    time.tzset()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
@pytest.mark.parametrize("text", ["08:00", "8:00", "23:59:59", "00:00"])
def test_time_of_day_is_the_next_one_here(zone: str, text: str, cli: Cli, live_in: LiveIn) -> None:
    """A time of day means the next such time in the local time zone, and the output shows which."""
    make_fleet()
    live_in(zone)
    result = cli("disable", "acme/one", "--until", text, "-o", "json")
    assert result.code == 0, result
    said = datetime.fromisoformat(result.err.removeprefix("until ").partition(" ")[0])
    here = said.astimezone(ZoneInfo(zone))
    assert here.utcoffset() == said.utcoffset()
    assert [*map(int, text.split(":"))] == [here.hour, here.minute, here.second][
        : text.count(":") + 1
    ]
    assert timedelta(0) < said - datetime.now(UTC) <= timedelta(days=1, hours=1)
    ((until,),) = file_sql("SELECT disabled_until FROM models WHERE id = 'acme/one'")
    assert datetime.fromisoformat(until) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2999-12-01", "until 2999-12-01T00:00:00+01:00 (local time)"),
        ("2999-07-01T08:30", "until 2999-07-01T08:30:00+02:00 (local time)"),
        ("2999-12-01T08:00Z", ""),
        ("2999-12-01T08:00+05:30", ""),
    ],
)
def test_a_date_begins_at_local_midnight(text: str, said: str, cli: Cli, live_in: LiveIn) -> None:
    """A date begins at midnight here; a time with a zone needs no saying."""
    make_fleet()
    live_in("Europe/Berlin")
    result = cli("disable", "acme/one", "--until", text)
    assert (result.code, result.err.strip()) == (0, said)


@pytest.mark.parametrize(
    ("since", "found"), [("2026-12-01", 2), ("2026-12-01T00:00Z", 1), ("1w", 0), ("2h30m", 0)]
)
def test_events_since_a_date(since: str, found: int, cli: Cli, live_in: LiveIn) -> None:
    """The history from a date on, by the local time zone, or from so long ago."""
    make_fleet()
    for at in ("2026-11-30T22:59:59.999Z", "2026-11-30T23:00:00.000Z", "2026-12-01T00:00:00.000Z"):
        file_sql("INSERT INTO modelctl_events (model_id, event, at) VALUES ('x', 'added', ?)", at)
    live_in("Europe/Berlin")
    result = cli("events", "x", "--since", since)
    assert result.code == 0
    if found or datetime.now(UTC) > datetime(2026, 12, 9, tzinfo=UTC):
        assert len(result.lines) == found


@pytest.mark.parametrize("text", ["24:00", "8", "0800", "12:60", "tomorrow", "0001-01-01", "1d2"])
def test_what_is_not_a_time_is_wrong_usage(text: str, cli: Cli) -> None:
    """A text that is not a time is wrong usage, and the error says how to write a time."""
    make_fleet()
    for words in (("disable", "acme/one", "--until", text), ("events", "--since", text)):
        cli(*words).failed(2, "is not a time", "08:00, 2026-12-01")


def test_since_in_python(fleet: Fleet) -> None:
    """Both databases take a time with a time zone; a time without a time zone is wrong usage."""
    seed(fleet, "a")
    now = datetime.now(UTC)
    assert len(fleet.events(since=now - timedelta(hours=1))) == 1
    assert fleet.events(since=now + timedelta(hours=1)) == ()
    with pytest.raises(UsageError):
        fleet.events(since=datetime(2026, 12, 1))  # no zone: that is the point
    with pytest.raises(UsageError):
        fleet.events(since=datetime.max.replace(tzinfo=ZoneInfo("America/New_York")))
