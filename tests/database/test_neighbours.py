"""modelctl and open transactions of other programs wait for each other no longer than they must."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import psycopg
import pytest

from modelctl import DatabaseUnavailableError, Fleet
from modelctl.config.probes import ProbeConfig
from tests.fleets import (
    ACTIVE,
    ACTOR,
    DISABLED,
    ago,
    configured,
    is_sqlite,
    opened,
    seed,
    sql,
    trip,
)

MANY = [f"m{n:04}" for n in range(2500)]  # more than the driver reads ahead


def narrow(url: str, *command: str) -> Fleet:
    """Open a fleet with one connection, as the command line does; "p" is asked by a command."""
    probes = {"p": ProbeConfig("p", command=command)} if command else {}
    return Fleet(replace(configured(url), probes=probes), actor=ACTOR, pool_size=1)


@pytest.fixture(params=["postgresql", "sqlite", "sqlite without WAL"])
def url(request: pytest.FixtureRequest) -> str:
    """Give a database of each kind; on a file without WAL a reader stops every writer."""
    kind, _, without_wal = request.param.partition(" ")
    name = "pg_cleared" if kind == "postgresql" else "sqlite_database"
    url = str(request.getfixturevalue(name))
    if without_wal:
        assert sql(url, "PRAGMA journal_mode = DELETE") == [("delete",)]
    return url


def idle_transactions(url: str) -> int:
    """Count what modelctl keeps open without working."""
    idle = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'modelctl'"
        " AND datname = current_database() AND state LIKE 'idle in transaction%'"
    )
    return int(sql(url, idle)[0][0])


# ── One connection is enough ────────────────────────────────────────────────────────────────────


def test_a_limited_recover_asks_with_one_connection(url: str) -> None:
    """`recover --probe --limit N` brings N back where more are due, also of 2,500."""
    with narrow(url, "true") as fleet:
        seed(fleet, MANY)
        sql(
            url,
            "UPDATE models SET active = FALSE, auto_disabled = TRUE, provider = 'p',"
            f" last_failure_at = {ago(url, 7200)}",
        )
        done = fleet.recover(probe=True, limit=3)
        assert (len(done.recovered), done.requests) == (3, 3)
        assert len(done.waiting) == len(MANY) - 3
        assert fleet.recover(probe=True, limit=1, dry_run=True).requests == 1
        sql(url, "UPDATE models SET provider = 'q' WHERE id > 'm1000'")  # some without a probe
        assert len(fleet.recover(probe=True, limit=2).recovered) == 2


def test_no_transaction_is_open_while_a_model_is_asked(pg_cleared: str) -> None:
    """What is asked over the network may take its time: the database holds nothing for it."""
    seen = "import psycopg, sys; c = psycopg.connect(sys.argv[1]); n = c.execute(sys.argv[2])"
    idle = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'modelctl'"
        " AND datname = current_database() AND state <> 'idle'"
    )
    command = (sys.executable, "-c", f"{seen}.fetchone()[0]; sys.exit(n)", pg_cleared, idle)
    with narrow(pg_cleared, *command) as fleet:
        seed(fleet, "abc")
        sql(pg_cleared, "UPDATE models SET active = FALSE, auto_disabled = TRUE, provider = 'p'")
        assert sorted(fleet.recover(probe=True, limit=2, cooldown=0).recovered) == ["a", "b"]
        assert fleet.probe("c").answers[0].healthy


def test_a_slow_reader_holds_no_connection(url: str) -> None:
    """Between two models of a listing or a plan every other call works, with one connection."""
    with narrow(url) as fleet, opened(url) as other:
        seed(fleet, MANY)
        trip(fleet, *MANY[:1500])
        plan = fleet._store.candidates.plan()
        readers: list[Iterator[Any]] = [fleet.iter_models(), fleet.iter_models(limit=5), plan]
        for reader in readers:
            next(reader)
        assert other.disable(MANY[-1]).changes[0].changed
        assert fleet.record_success(MANY[-2]).changes[0].id == MANY[-2]
        assert fleet.show(MANY[-1]).status is DISABLED
        if not is_sqlite(url):
            assert idle_transactions(url) == 0
        assert [len(list(reader)) for reader in readers] == [2499, 4, 1499]


def test_a_listing_is_of_one_moment(url: str) -> None:
    """A change during a listing does not appear in its later pages."""
    with narrow(url) as fleet:
        seed(fleet, MANY)
        models = fleet.iter_models()
        first = [*islice(models, 2)]
        fleet.disable(*MANY[2:])
        assert {model.status for model in (*first, *models)} == {ACTIVE}


# ── Rows that another program refers to ─────────────────────────────────────────────────────────

CALLS = "CREATE TABLE calls (model_id text NOT NULL REFERENCES models (id), at timestamptz)"
BAD = {"outcome": "failure", "type": "parse-error"}

CHANGES: dict[str, Callable[[Fleet], Any]] = {
    "record-success": lambda fleet: fleet.record_success("a"),
    "record-failure": lambda fleet: fleet.record_failure("a", "parse-error", reason="no"),
    "record-batch": lambda fleet: fleet.record_batch([{"id": i, **BAD} for i in "ab"]),
    "disable": lambda fleet: fleet.disable("a"),
    "disable several": lambda fleet: fleet.disable("a", "b"),
    "enable": lambda fleet: fleet.enable("off"),
    "enable several": lambda fleet: fleet.enable("off", "a"),
    "import": lambda fleet: fleet.import_models(b'{"id": "a", "name": "A", "provider": "new"}'),
    "add": lambda fleet: fleet.add("a"),
    "probe": lambda fleet: fleet.probe("off"),
}


@pytest.fixture
def called(pg_database: str) -> Iterator[str]:
    """Give a database with a table of calls, and a transaction that has inserted some."""
    with opened(pg_database) as fleet:
        seed(fleet, ["a", "b", "off", "gone"])
        sql(pg_database, "UPDATE models SET provider = 'p'")
        trip(fleet, "off")
    sql(pg_database, CALLS)
    with psycopg.connect(pg_database) as website:
        website.execute("INSERT INTO calls SELECT id, now() FROM models WHERE id <> 'gone'")
        yield pg_database


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_foreign_key_holds_no_change_up(called: str, change: str, guarded: bool) -> None:
    """A row that an open INSERT of the website refers to can be recorded and switched at once."""
    probes = {"p": ProbeConfig("p", command=("false",))}
    floor = {"recovery_min_active": 1} if guarded else {}
    config = configured(f"{called}?options=-c%20lock_timeout%3D100", **floor)
    with Fleet(replace(config, probes=probes), actor=ACTOR) as fleet:
        CHANGES[change](fleet)


def test_recover_does_not_skip_a_model_that_is_being_called(called: str) -> None:
    """A model that is being called comes back like any other."""
    with opened(called) as fleet:
        assert fleet.recover(cooldown=0).recovered == ("off",)
        sql(called, "UPDATE models SET active = FALSE, auto_disabled = TRUE WHERE id IN ('a', 'b')")
        assert sorted(fleet.recover(cooldown=0).recovered) == ["a", "b"]
        fleet.disable("a", duration=0.001)
        assert fleet.recover().recovered == ("a",)


def test_only_removing_a_referred_model_waits(called: str) -> None:
    """A model is removed beside an open INSERT that does not refer to it; a referred model is refused."""
    with opened(f"{called}?options=-c%20lock_timeout%3D100") as fleet:
        assert fleet.remove("gone").changes[0].changed
        with pytest.raises(DatabaseUnavailableError):
            fleet.remove("a")
