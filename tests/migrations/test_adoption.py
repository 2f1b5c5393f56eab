"""A fleet works on the table of an application that was there first and goes on as before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from modelctl import Fleet, RefusedError, UsageError
from modelctl.database.locks import GUARD_LOCK, RECOVER_LOCK, lock_key
from modelctl.migrations import migrate
from tests import fleets
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    ago,
    everything,
    is_sqlite,
    opened,
    sql,
    status,
)
from tests.servers import Postgres

# An admin panel's table: NULLs where ours has none, times without a zone, and rules of its own.
TABLE = {
    "postgresql": """
        CREATE TABLE models (
            id varchar(80) PRIMARY KEY,
            display_name varchar(20) NOT NULL,
            provider text,
            active boolean,
            auto_disabled boolean,
            consecutive_failures integer,
            success_count integer,
            failure_count bigint,
            last_success_at timestamp,
            last_failure_at timestamp,
            failure_reason text,
            slug text NOT NULL UNIQUE,
            price numeric(10, 4) CHECK (price >= 0),
            CHECK (provider <> 'forbidden')
        )""",
    "sqlite": """
        CREATE TABLE Models (
            Id VARCHAR(80) PRIMARY KEY,
            display_name VARCHAR(20) NOT NULL,
            provider TEXT,
            active INTEGER,
            auto_disabled TINYINT(1),
            consecutive_failures SMALLINT,
            success_count INTEGER,
            failure_count INTEGER,
            last_success_at DATETIME,
            last_failure_at DATETIME,
            failure_reason TEXT,
            slug TEXT NOT NULL UNIQUE,
            price NUMERIC(10, 4) CHECK (price >= 0),
            CHECK (provider <> 'forbidden')
        )""",
}
# The application's own statements, before and after.
INSERT = "INSERT INTO models (id, display_name, slug, active) VALUES (?, ?, ?, ?)"
SUCCEEDED = (
    "UPDATE models SET success_count = coalesce(success_count, 0) + 1, last_success_at = {now},"
    " consecutive_failures = 0 WHERE id = ?"
)
FAILED = (
    "UPDATE models SET failure_count = coalesce(failure_count, 0) + 1, last_failure_at = {now},"
    " consecutive_failures = coalesce(consecutive_failures, 0) + 1 WHERE id = ?"
)
SWITCHED = "UPDATE models SET active = ? WHERE id = ?"
ROWS = {"on": True, "off": False, "null": None}


class Website:
    """The application: it knows nothing of modelctl."""

    def __init__(self, url: str) -> None:
        self.url = url

    def insert(self, model_id: str, active: bool | None = True) -> None:
        """Add a model, with nothing but what the application knows."""
        sql(self.url, INSERT, model_id, model_id.upper(), f"slug-{model_id}", active)

    def call(self, statement: str, model_id: str) -> None:
        """Record the outcome of a call, in local time as SQLite and timestamp columns have it."""
        now = "datetime('now')" if is_sqlite(self.url) else "now() AT TIME ZONE 'UTC'"
        sql(self.url, statement.format(now=now), model_id)

    def switch(self, model_id: str, on: bool) -> None:
        """Tick the box in the panel."""
        sql(self.url, SWITCHED, on, model_id)


def adopt(url: str) -> None:
    """Make the application's table with a model on, one off and one NULL; then comes modelctl."""
    sql(url, TABLE[url.partition(":")[0]])
    for model_id, active in ROWS.items():
        Website(url).insert(model_id, active)
    with opened(url) as fleet:
        fleet.upgrade()


@pytest.fixture(scope="module")
def lite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a SQLite database that was adopted, to copy."""
    path = tmp_path_factory.mktemp("adopted") / "template.db"
    path.touch()
    adopt(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def adopted_template(postgres: Postgres) -> str:
    """Name a PostgreSQL database that was adopted, to copy."""
    name = postgres.create_database()
    adopt(postgres.url(name))
    return name


@pytest.fixture
def adopted_lite(lite_template: Path, tmp_path: Path) -> str:
    """Give the URL of an adopted SQLite database."""
    return f"sqlite:///{shutil.copy(lite_template, tmp_path / 'website.db')}"


@pytest.fixture
def adopted_pg(postgres: Postgres, adopted_template: str) -> Iterator[str]:
    """Give the URL of an adopted PostgreSQL database."""
    name = postgres.create_database(adopted_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(params=["adopted_lite", "adopted_pg"])
def website(request: pytest.FixtureRequest) -> Website:
    """Give the application, on a database of each kind."""
    return Website(str(request.getfixturevalue(request.param)))


@pytest.fixture
def adopted(website: Website) -> Iterator[Fleet]:
    """Give a fleet on the application's table."""
    with opened(website.url) as fleet:
        yield fleet


def test_null_is_off_and_zero(adopted: Fleet) -> None:
    """A NULL `active` is not counted, a NULL counter is 0, and no read stumbles over either."""
    assert adopted.count().active == adopted.count(fresh=True).active == 1
    assert status(adopted, "on", "off", "null") == [ACTIVE, DISABLED, DISABLED]
    model = adopted.show("null")
    assert (model.active, model.auto_disabled, model.provider) == (False, False, "")
    assert (model.consecutive_failures, model.success_count, model.failure_count) == (0, 0, 0)
    stats = adopted.stats()
    assert (stats.models, stats.active, stats.disabled, stats.auto_disabled) == (3, 1, 2, 0)
    assert [(p.provider, p.models) for p in stats.providers] == [("", 3)]
    assert [e.success_rate for e in adopted.leaderboard(untested=True)] == [None]
    assert len(adopted.list_models(provider="")) == 3
    assert adopted.recover(cooldown=0).recovered == ()


@pytest.mark.parametrize(
    ("sort", "ids"),
    [
        ("id", ["null", "off", "on"]),
        ("name", ["null", "off", "on"]),
        ("provider", ["off", "on", "null"]),
        ("status", ["on", "off", "null"]),
        ("failures", ["off", "null", "on"]),
    ],
)
def test_null_sorts_as_what_it_means(
    adopted: Fleet, website: Website, sort: str, ids: list[str]
) -> None:
    """Both databases put NULLs in the same place: as empty, zero or off."""
    website.call(FAILED, "off")
    sql(website.url, "UPDATE models SET provider = 'p' WHERE id = 'null'")
    sql(website.url, "UPDATE models SET auto_disabled = true WHERE id = 'off'")
    assert [m.id for m in adopted.list_models(sort=sort)] == ids


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("model_id", ROWS)
def test_null_counters_count_from_zero(adopted: Fleet, model_id: str, batch: bool) -> None:
    """The fifth counted failure switches off a row whose counters were NULL."""
    failure = {"id": model_id, "outcome": "failure", "type": "parse-error", "reason": "no"}
    if batch:
        adopted.record_batch([failure] * 5)
    else:
        for _ in range(5):
            adopted.record_failure(model_id, "parse-error", reason="no")
    model = adopted.show(model_id)
    assert (model.failure_count, model.consecutive_failures) == (5, 5)
    assert model.status is (AUTO if model_id == "on" else DISABLED)
    assert model.ejections == (model_id == "on")


@pytest.mark.parametrize("model_id", ["off", "null"])
def test_verbs_on_null(adopted: Fleet, model_id: str) -> None:
    """A NULL is disabled: to disable it again says already, to enable it works."""
    assert not adopted.disable(model_id).changes[0].changed
    assert adopted.enable(model_id).changes[0].changed
    assert adopted.disable(model_id, reason="why").changes[0].changed
    assert adopted.show(model_id).disabled_reason == "why"


def test_both_work_on_the_same_rows(adopted: Fleet, website: Website) -> None:
    """The website's and modelctl's outcomes add up, and either may switch a model."""
    assert adopted.count().active == 1
    website.insert("new")
    assert adopted.count().active == 2
    for _ in range(3):
        website.call(FAILED, "new")
    website.call(FAILED, "on")
    website.call(SUCCEEDED, "on")
    assert not adopted.record_failure("new", "client-error").changes[0].changed
    assert adopted.record_failure("new", "client-error").changes[0].after is AUTO
    assert (adopted.show("new").failure_count, adopted.show("on").success_count) == (5, 1)
    assert adopted.count().active == 1

    website.switch("new", True)  # trusted again by hand
    model = adopted.show("new")
    assert (model.status, model.auto_disabled) == (ACTIVE, False)
    assert (model.disabled_at, model.disabled_by, model.disabled_reason) == (None, None, None)
    website.switch("new", False)  # and a manual disable
    adopted.record_success("new")
    assert adopted.recover(cooldown=0).recovered == ()
    assert status(adopted, "new") == [DISABLED]
    assert adopted.count().active == 1


def test_a_flag_from_before_brings_nothing_back(adopted: Fleet, website: Website) -> None:
    """What the panel switches off stays off, though its table once called the model automatic."""
    sql(website.url, "UPDATE models SET auto_disabled = true WHERE id = 'on'")
    assert status(adopted, "on") == [ACTIVE]
    website.switch("on", False)
    assert adopted.recover(cooldown=0).recovered == ()
    assert status(adopted, "on") == [DISABLED]
    website.switch("on", True)
    adopted.record_batch([{"id": "on", "outcome": "failure", "type": "parse-error"}] * 5)
    assert status(adopted, "on") == [AUTO]


def test_times_without_a_zone_are_utc(adopted: Fleet, website: Website) -> None:
    """The cooldown runs by the database's clock, whatever kind of column the time is in."""
    adopted.record_batch([{"id": "on", "outcome": "failure", "type": "parse-error"}] * 5)
    website.call(FAILED, "on")
    model = adopted.show("on")
    assert model.seconds_left is not None
    assert 3500 < model.seconds_left <= 3600
    assert adopted.recover().recovered == ()
    past = ago(website.url, 3660)
    past = past if is_sqlite(website.url) else f"({past}) AT TIME ZONE 'UTC'"
    sql(website.url, f"UPDATE models SET last_failure_at = {past} WHERE id = 'on'")
    assert adopted.show("on").seconds_left == 0
    assert adopted.recover().recovered == ("on",)


def test_a_time_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """What another program left in a text column does not stop recover; the next time counts."""
    with opened(f"sqlite:///{tmp_path / 'odd.db'}") as fleet:
        fleet.upgrade()
        fleet.add("a")
        url = fleet.config.database.url
        sql(url, "UPDATE models SET active = 0, auto_disabled = 1, last_failure_at = 'yesterday'")
        sql(url, f"UPDATE models SET disabled_at = {ago(url, 600)}")
        model = fleet.show("a")
        assert model.seconds_left is not None
        assert 2900 < model.seconds_left <= 3000
        (waiting,) = fleet.recover().waiting
        assert waiting.retry_at == model.retry_at


def test_the_history_is_that_of_modelctl(adopted: Fleet) -> None:
    """What modelctl does to an adopted row is written down as everywhere."""
    adopted.disable("on", reason="why")
    event, *found = adopted.events()
    assert {found.event for found in found} == {"found"}
    assert (event.model_id, event.event, event.actor, event.reason) == (
        "on",
        "disabled",
        ACTOR,
        "why",
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda fleet: fleet.add("x", name="X"), RefusedError),  # slug is NOT NULL
        (lambda fleet: fleet.import_models(b'{"id": "x"}'), RefusedError),
        (
            lambda fleet: fleet.import_models(b'{"id": "on", "provider": "forbidden"}'),
            RefusedError,
        ),
    ],
)
def test_the_tables_own_rules_refuse(
    adopted: Fleet, website: Website, call: Any, error: type[Exception]
) -> None:
    """A CHECK or NOT NULL of the application refuses a change; nothing is written."""
    before = everything(website.url)
    with pytest.raises(error, match="refused the change"):
        call(adopted)
    assert everything(website.url) == before


def test_an_id_that_does_not_fit_is_refused(empty_pg: str) -> None:
    """An id longer than the application's column is a usage error; a name is cut."""
    sql(empty_pg, TABLE["postgresql"].replace("slug text NOT NULL UNIQUE,", ""))
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        with pytest.raises(UsageError, match="value too long"):
            fleet.add("x" * 81)
        assert fleet.import_models(b'{"id": "on", "name": "%s"}' % (b"x" * 50)).added == 1
        assert fleet.show("on").display_name == "x" * 20


def test_a_trigger_of_the_application_refuses(adopted: Fleet, website: Website) -> None:
    """What a trigger of the application raises is a refusal that carries its words."""
    if is_sqlite(website.url):
        sql(
            website.url,
            "CREATE TRIGGER mine BEFORE UPDATE ON models WHEN OLD.id = 'on'"
            " BEGIN SELECT RAISE(ABORT, 'hands off'); END",
        )
    else:
        sql(
            website.url,
            "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'hands off'; END $$",
        )
        sql(
            website.url,
            "CREATE TRIGGER mine BEFORE UPDATE ON models FOR EACH ROW WHEN (OLD.id = 'on')"
            " EXECUTE FUNCTION mine()",
        )
    with pytest.raises(RefusedError, match="hands off"):
        adopted.disable("off", "on")
    adopted.enable("off")


@pytest.mark.parametrize("policy", ["update", "skip", "fail"])
def test_what_is_there_can_be_imported(adopted: Fleet, policy: str) -> None:
    """A catalogue of known models needs no new row, so the columns modelctl does not know are no matter."""
    equal = adopted.import_models(b'{"id": "on", "name": "ON"}', on_conflict=policy)
    assert (equal.unchanged, equal.added) == (1, 0)
    assert not adopted.add("on").changes[0].changed
    if policy == "update":
        result = adopted.import_models(b'{"id": "null", "provider": "p"}\n{"id": "on"}')
        assert (result.updated, result.unchanged) == (1, 1)
        assert adopted.show("null").provider == "p"
        assert fleets.events(adopted.config.database.url)[-1][:2] == ("null", "updated")


def test_two_fleets_share_a_database(empty_pg: str, redis_url: str) -> None:
    """Each has its table by the search path, and a history, an outbox, a count and locks of its own."""
    urls = {}
    for name in ("one", "two"):
        sql(empty_pg, f"CREATE SCHEMA shop_{name}")
        urls[name] = f"{empty_pg}?options=-csearch_path%3Dshop_{name}"
        with opened(urls[name], database_schema=f"fleet_{name}", redis_url=redis_url) as fleet:
            fleet.upgrade()
            fleet.add("a")
    with opened(urls["two"], database_schema="fleet_two", redis_url=redis_url) as fleet:
        fleet.disable("a", reason="why")
        fleet.pause(duration=60)
        assert [event.event for event in fleet.events()] == ["paused", "disabled", "added"]
        assert fleet.count().active == fleet.count().active == 0
    with opened(urls["one"], database_schema="fleet_one", redis_url=redis_url) as fleet:
        assert [event.event for event in fleet.events()] == ["added"]
        assert fleet.count().active == 1
        assert fleet.count().source == "cache"
        assert fleet.holds() == ()
        assert [check for check in fleet.doctor().checks if not check.ok] == []
        with psycopg.connect(empty_pg) as other:
            for lock in (RECOVER_LOCK, GUARD_LOCK, migrate.UPGRADE_LOCK):
                other.execute("SELECT pg_advisory_xact_lock(%s)", [lock_key(lock, "fleet_two")])
            assert not fleet.recover().busy
            fleet.disable("a", force=True)
            assert fleet.upgrade().up_to_date
    queued = [sql(empty_pg, f"SELECT count(*) FROM fleet_{n}.modelctl_outbox") for n in urls]
    assert queued == [[(2,)], [(2,)]]


def test_no_statement_relies_on_the_search_path(pg_database: str) -> None:
    """modelctl works with whatever tables of its names lie in the search path."""
    for table in ("events", "outbox", "state", "holds", "version"):
        sql(pg_database, f"CREATE TABLE public.modelctl_{table} (foreign_shape text)")
    with opened(pg_database) as fleet:
        fleets.seed(fleet, "ab")
        fleets.trip(fleet, "a")
        fleet.recover(cooldown=0)
        fleet.pause(duration=60)
        assert fleet.show("a").status is ACTIVE
        assert len(fleet.events()) == 5
        assert fleet.doctor().ok
        fleet.upgrade()
    assert sql(pg_database, "SELECT count(*) FROM public.modelctl_outbox") == [(0,)]
