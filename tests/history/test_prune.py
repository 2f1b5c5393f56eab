"""`prune` deletes old events and keeps the newest of each model; `recover` does it if `keep` is set."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, UsageError
from modelctl.database import bulk
from tests.commands import Cli
from tests.fleets import ago, is_sqlite, put, sql
from tests.servers import Postgres

DAY = 86400.0


def write(url: str, *events: tuple[str, float, str]) -> None:
    """Add events: the model, its age in days, the kind."""
    for model_id, days, kind in events:
        at = ago(url, days * DAY)
        statement = f"INSERT INTO modelctl_events (model_id, event, at) VALUES (?, ?, {at})"
        sql(url, statement, model_id, kind)


def kept(url: str) -> list[tuple[str, str]]:
    """Return the model and the kind of each event that is left."""
    return [*map(tuple, sql(url, "SELECT model_id, event FROM modelctl_events ORDER BY id"))]


def counted(fleet: Fleet) -> dict[str, int]:
    """Return the numbers of events by kind, as metrics has them."""
    return dict(fleet.metrics().events)


def test_the_newest_event_of_each_model_stays(fleet: Fleet, fleet_url: str) -> None:
    """Old events go, but not the last one of a model, nor that of the fleet, however old they are."""
    write(
        fleet_url,
        *(("a", 200, "added"), ("a", 100, "disabled"), ("b", 150, "added"), ("", 120, "paused")),
        *(("c", 95, "added"), ("c", 5, "disabled"), ("", 110, "resumed")),
    )
    result = fleet.prune(90 * DAY, dry_run=True)
    assert (result.deleted, result.dry_run) == (3, True)
    assert len(kept(fleet_url)) == 7
    result = fleet.prune(90 * DAY)
    assert result.deleted == 3
    assert abs((datetime.now(UTC) - timedelta(days=90) - result.before).total_seconds()) < 60
    expected = [("a", "disabled"), ("b", "added"), ("c", "disabled"), ("", "resumed")]
    assert kept(fleet_url) == expected
    assert fleet.prune(90 * DAY).deleted == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    history=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=12),
    days=st.integers(0, 10),
)
def test_any_history(
    fleet: Fleet, fleet_url: str, history: list[tuple[str, int]], days: int
) -> None:
    """Whatever the order of ids and times: what is left is what is new, or the last of its model."""
    sql(fleet_url, "DELETE FROM modelctl_events")
    write(fleet_url, *((model, age + 0.5, "added") for model, age in history))
    last = {model: place for place, (model, _) in enumerate(history)}
    expected = [
        (model, "added")
        for place, (model, age) in enumerate(history)
        if age + 0.5 <= days or last[model] == place
    ]
    fleet.prune(days * DAY)
    assert kept(fleet_url) == expected


def test_a_time_instead_of_an_age(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """--before takes a time, says how it understood a local one, and refuses what is neither."""
    write(fleet_url, ("a", 400, "added"), ("a", 1, "disabled"))
    day = f"{datetime.now(UTC) - timedelta(days=30):%Y-%m-%d}"
    result = tool("prune", "--before", day, "-o", "json")
    assert result.code == 0
    assert result.json["deleted"] == 1
    assert result.err.startswith("before ")
    assert tool("prune", "--before", "1d", "--dry-run", "-o", "json").json["deleted"] == 0
    tool("prune", "--before", "soon").failed(2, "'soon' is not a time")
    tool("prune", "--before", "-5d").failed(2)
    with pytest.raises(UsageError):
        fleet.prune(datetime.now())
    with pytest.raises(UsageError):
        fleet.prune(float("nan"))


def test_a_model_that_was_removed_stays_known(fleet: Fleet, fleet_url: str) -> None:
    """After its history was pruned, a removed model is still "already removed"."""
    put(fleet_url, "a")
    fleet.remove("a")
    fleet.prune(0)
    (change,) = fleet.remove("a").changes
    assert not change.changed


def test_batches_of_one_transaction_each(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many events are deleted in several transactions, found by one statement; none is forgotten."""
    monkeypatch.setattr(bulk, "CHUNK", 10)
    write(fleet_url, *(("a", 100, "added") for _ in range(35)))
    begun: list[str] = []
    engine = fleet._store.database.engine
    sa.event.listen(engine, "commit", lambda *_: begun.append("commit"))
    seen: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    assert fleet.prune(DAY).deleted == 34
    assert len([statement for statement in seen if "DELETE FROM" in statement]) == 4
    assert len([statement for statement in seen if "AS newer" in statement]) == 1
    assert counted(fleet) == {"added": 35}


def test_metrics_count_on(fleet: Fleet, fleet_url: str) -> None:
    """The number of events never falls: what prune deletes is added to what is left."""
    write(fleet_url, *(("a", 100 - age, kind) for age in range(9) for kind in ("off", "on")))
    assert counted(fleet) == {"off": 9, "on": 9}
    fleet.prune(95.5 * DAY)
    assert len(kept(fleet_url)) == 8
    assert counted(fleet) == {"off": 9, "on": 9}
    fleet.prune(0)
    assert len(kept(fleet_url)) == 1
    assert counted(fleet) == {"off": 9, "on": 9}


def test_two_at_once_count_once(pg: Fleet, pg_cleared: str) -> None:
    """Of two runs that delete the same events, one counts them."""
    from modelctl.history import prune as module

    write(pg_cleared, *(("a", 100, "added") for _ in range(5)))
    database = pg._store.database
    ids = [number for (number,) in sql(pg_cleared, "SELECT id FROM modelctl_events ORDER BY id")][
        :4
    ]
    deleted = [
        database.write(lambda connection: module._delete_on_postgres(database, connection, ids))
        for _ in range(2)
    ]
    assert deleted == [4, 0]
    assert counted(pg) == {"added": 5}


def test_recover_prunes_if_keep_is_set(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """Without history.keep nothing goes; with it each run of recover, but no dry run, deletes old events."""
    write(fleet_url, ("a", 100, "added"), ("a", 1, "disabled"))
    assert tool("recover").code == 0
    assert tool("recover", "--dry-run", history_keep="30d").code == 0
    assert len(kept(fleet_url)) == 2
    result = tool("recover", history_keep="30d")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert kept(fleet_url) == [("a", "disabled")]


def test_one_run_of_recover_does_a_bounded_part(
    tool: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long history is deleted over several runs, so that no run takes long."""
    from modelctl.history import prune as module

    monkeypatch.setattr(module, "IN_ONE_RUN", 10)
    write(fleet_url, *(("a", 100, "added") for _ in range(15)))
    left = []
    for _ in range(3):
        assert tool("recover", history_keep="30d").code == 0
        left.append(len(kept(fleet_url)))
    assert left == [5, 1, 1]


@pytest.fixture
def narrow(postgres: Postgres, pg_cleared: str) -> Any:
    """Give the URL of a role that may do all but delete events, and a statement of the owner."""
    name = pg_cleared.rpartition("/")[2].partition("?")[0]
    postgres.execute("CREATE ROLE pruner LOGIN", name)
    for statement in (
        "GRANT SELECT, INSERT, UPDATE, DELETE ON models TO pruner",
        "GRANT USAGE ON SCHEMA modelctl TO pruner",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA modelctl TO pruner",
        "REVOKE DELETE ON modelctl.modelctl_events FROM pruner",
    ):
        postgres.execute(statement, name)
    yield postgres.url(name, user="pruner"), name
    postgres.execute("DROP OWNED BY pruner", name)
    postgres.execute("DROP ROLE pruner", name)


def test_without_the_right(
    narrow: tuple[str, str],
    postgres: Postgres,
    pg_cleared: str,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the right prune is exit 3, recover warns and goes on, and doctor names the GRANT."""
    url, name = narrow
    write(pg_cleared, ("a", 100, "added"), ("a", 1, "disabled"))
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    assert cli("doctor", "-o", "json").code == 0
    cli("prune", "--before", "30d").failed(3)
    assert cli("prune", "--before", "30d", "--dry-run").code == 0
    monkeypatch.setenv("MODELCTL_HISTORY_KEEP", "30d")
    result = cli("recover")
    assert result.code == 0
    assert "old events could not be deleted" in result.err
    checks = json.loads(cli("doctor", "-o", "json").out)["checks"]
    (rights,) = [check for check in checks if check["check"] == "rights"]
    grant = "GRANT DELETE ON modelctl.modelctl_events TO pruner"
    assert not rights["ok"]
    assert grant in rights["detail"]
    postgres.execute(grant, name)
    assert cli("doctor", "-o", "json").code == 0
    assert cli("recover").err == ""
    assert kept(pg_cleared) == [("a", "disabled")]


def test_a_writer_does_not_wait(pg: Fleet, pg_cleared: str) -> None:
    """An application's open transaction with a new event stops no prune, and is not stopped by it."""
    write(pg_cleared, ("a", 100, "added"), ("a", 1, "disabled"))
    with psycopg.connect(pg_cleared) as other:
        other.execute("INSERT INTO modelctl_events (model_id, event) VALUES ('a', 'enabled')")
        assert pg.prune(30 * DAY).deleted == 1
    assert kept(pg_cleared) == [("a", "disabled"), ("a", "enabled")]
    assert not is_sqlite(pg_cleared)
