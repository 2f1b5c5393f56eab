"""An upgrade creates the whole schema in one transaction, and a second upgrade changes nothing."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from modelctl.database import sqlite
from modelctl.errors import InvalidConfigError
from modelctl.migrations import migrate
from modelctl.migrations.results import SchemaStatus
from modelctl.schema.declared import HEAD
from modelctl.schema.triggers import SQLITE, TRIGGERS
from modelctl.tables.columns import AUTO_OFF, TIMED_OFF
from tests.migrations.schemas import (
    NEEDED,
    WEBSITE,
    WEBSITE_INSERT,
    columns,
    connected,
    execute,
    kind,
    snapshot,
    upgrade,
)

ALL_TRIGGERS = {
    "postgresql": [
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_truncate",
        "modelctl_untag",
        "modelctl_untag_all",
        "modelctl_enabled",
        "modelctl_disabled",
    ],
    "sqlite": [
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_untag",
        "modelctl_untag_renamed",
        "modelctl_enabled",
        "modelctl_disabled",
    ],
}


def well(url: str) -> SchemaStatus:
    """Return the status of a database that lacks nothing."""
    on_sqlite = kind(url) == "sqlite"
    table, owner = ("models", None) if on_sqlite else ("public.models", "postgres")
    [(rows,)] = execute(url, "SELECT count(*) FROM models")
    summary = f"the table {table}" + (f" of owner {owner}" if owner else "")
    summary += f", {rows} row{'s' * (rows != 1)}, {len(columns(url))} columns"
    return SchemaStatus(
        *(kind(url), HEAD, HEAD),
        up_to_date=True,
        table=table,
        owner=owner,
        rows=rows,
        summary=summary,
    )


def schema_status(url: str) -> SchemaStatus:
    """Return the status over a connection of its own."""
    with connected(url) as connection:
        return migrate.status(connection)


def test_upgrade_creates_every_column_with_a_default(url: str) -> None:
    """A row that names only its id is a whole model."""
    assert upgrade(url).up_to_date
    assert schema_status(url) == well(url)
    assert list(columns(url)) == list(NEEDED)
    (row,) = execute(url, "INSERT INTO models (id) VALUES ('a')", "SELECT * FROM models")
    assert row[:19] == ("a", "", "", True, False, 0, 0, 0, 0, *[None] * 10)
    assert None not in row[19:]
    hold = "INSERT INTO modelctl_holds (scope, until) VALUES ('*', '2026-01-02T03:04:05.678Z')"
    given = "scope, provider, failure_type, since IS NULL, reason, actor"
    (row,) = execute(url, hold, f"SELECT {given} FROM modelctl_holds")
    assert row == ("*", None, None, False, None, None)


def test_sqlite_times_are_canonical_text(sqlite_url: str) -> None:
    """On SQLite a time is the text that sorts as time does."""
    upgrade(sqlite_url)
    ((text,),) = execute(
        sqlite_url, "INSERT INTO models (id) VALUES ('a')", "SELECT created_at FROM models"
    )
    assert time.strptime(text[:19] + text[23:], "%Y-%m-%dT%H:%M:%SZ")
    assert len(text) == len("2026-01-02T03:04:05.678Z")


def test_upgrade_twice_changes_nothing(url: str) -> None:
    """A second run finds nothing to do and does nothing."""
    upgrade(url)
    execute(url, "INSERT INTO models (id) VALUES ('a')")
    before = snapshot(url)
    assert upgrade(url) == well(url)
    assert snapshot(url) == before


def test_upgrade_is_silent(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, and logging stays as the application set it up."""
    handlers = list(logging.root.handlers)
    upgrade(url)
    upgrade(url)
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers


def test_status_and_triggers_only_look(url: str) -> None:
    """Looking at an empty database creates nothing, and leaves no transaction open."""
    execute(url, "SELECT 1")
    before = snapshot(url)
    with connected(url) as connection:
        found = migrate.status(connection)
        assert (found.current, found.up_to_date, found.table) == (None, False, None)
        assert migrate.upgrade(connection, dry_run=True).findings == found.findings
        assert migrate.triggers(connection) == dict.fromkeys(ALL_TRIGGERS[kind(url)], False)
        assert not connection.in_transaction()
    assert snapshot(url) == before


@pytest.mark.parametrize("adopted", [False, True])
def test_upgrades_at_the_same_time_all_succeed(url: str, adopted: bool) -> None:
    """Of several concurrent upgrades one does the work, and the others find it done."""
    if adopted:
        execute(url, WEBSITE[kind(url)])
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(upgrade, [url] * 6))
    assert all(result.up_to_date for result in results)
    assert execute(url, "SELECT version_num FROM modelctl_version") == [(HEAD,)]


def test_upgrade_waits_for_another_one_beyond_the_lock_timeout(empty_pg: str) -> None:
    """The limits of the session are for other programs' locks, not for the upgrade ahead."""
    limits = {"options": "-c lock_timeout=100ms -c statement_timeout=200ms"}
    with (
        psycopg.connect(empty_pg) as ahead,
        connected(empty_pg, connect_args=limits) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        ahead.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.UPGRADE_LOCK])
        waiting = pool.submit(migrate.upgrade, connection)
        time.sleep(0.5)
        assert not waiting.done()
        ahead.rollback()
        assert waiting.result().up_to_date
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "100ms"
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "200ms"


@pytest.mark.timeout(60)
def test_upgrade_does_not_queue_behind_a_user_of_the_table(empty_pg: str) -> None:
    """A busy table ends the upgrade after lock_timeout, and nothing is left of it."""
    execute(empty_pg, WEBSITE["postgresql"], WEBSITE_INSERT)
    before = snapshot(empty_pg)
    limits = {"options": "-c lock_timeout=100ms"}
    with psycopg.connect(empty_pg) as user, connected(empty_pg, connect_args=limits) as connection:
        user.execute("SELECT FROM models")
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            migrate.upgrade(connection)
        user.rollback()
        assert snapshot(empty_pg) == before
        assert migrate.upgrade(connection).up_to_date


@contextmanager
def failing(url: str) -> Iterator[None]:
    """Let the last statement of an upgrade but one fail: the creation of the last trigger."""
    with pytest.MonkeyPatch.context() as patch:
        if kind(url) == "sqlite":
            patch.setitem(SQLITE, "modelctl_disabled", "AFTER UPDATE ON no_such_table BEGIN END")
        else:
            event = dataclasses.replace(TRIGGERS["modelctl_disabled"], event="AFTER NOTHING")
            patch.setitem(TRIGGERS, "modelctl_disabled", event)
        yield


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ"])
def test_upgrade_sets_the_isolation_it_needs(empty_pg: str, level: str) -> None:
    """Whatever the engine's isolation level is: all or nothing, and a fresh look after the lock."""
    before = snapshot(empty_pg)
    with connected(empty_pg, isolation_level=level) as connection:
        with failing(empty_pg), pytest.raises(sa.exc.ProgrammingError):
            migrate.upgrade(connection)
        assert snapshot(empty_pg) == before
    with connected(empty_pg, isolation_level=level) as connection:
        assert migrate.upgrade(connection).up_to_date


def test_a_failure_in_the_middle_leaves_nothing(url: str) -> None:
    """What the last step refuses takes all steps before it along."""
    execute(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    before = snapshot(url)
    with failing(url), pytest.raises(sa.exc.DBAPIError):
        upgrade(url)
    assert snapshot(url) == before


@pytest.mark.parametrize("level", [None, "DEFERRED"])
def test_sqlite_upgrade_is_one_transaction_under_any_driver_setting(
    sqlite_url: str, level: str | None
) -> None:
    """Plain engines, which begin nothing or begin late, get all or nothing as well."""
    execute(sqlite_url, "CREATE TABLE somebody_elses (id text)")
    before = snapshot(sqlite_url)
    engine = sa.create_engine(
        sqlite_url, poolclass=sa.NullPool, connect_args={"isolation_level": level}
    )
    with engine.connect() as connection:
        with failing(sqlite_url), pytest.raises(sa.exc.OperationalError):
            migrate.upgrade(connection)
        assert snapshot(sqlite_url) == before
    with engine.connect() as connection:
        assert migrate.upgrade(connection).up_to_date
    assert execute(sqlite_url, "SELECT version_num FROM modelctl_version") == [(HEAD,)]


def test_a_schema_of_a_newer_release_is_refused(url: str) -> None:
    """An old modelctl does not touch a schema that a newer release migrated."""
    upgrade(url)
    execute(url, "UPDATE modelctl_version SET version_num = '9999'")
    before = snapshot(url)
    assert (schema_status(url).current, schema_status(url).up_to_date) == ("9999", False)
    with pytest.raises(InvalidConfigError, match=r"9999.*upgrade modelctl"):
        upgrade(url)
    assert snapshot(url) == before


def test_an_old_server_is_refused(empty_pg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL that lacks what the triggers need is refused by its version."""
    monkeypatch.setattr(migrate, "OLDEST_POSTGRESQL", 99)
    before = snapshot(empty_pg)
    with pytest.raises(InvalidConfigError, match="needs 99 or newer"):
        upgrade(empty_pg)
    assert snapshot(empty_pg) == before


def test_upgrade_puts_back_triggers(url: str) -> None:
    """A trigger that was dropped or disabled is reported, and the next upgrade repairs it."""
    upgrade(url)
    expected = dict.fromkeys(ALL_TRIGGERS[kind(url)], True)
    with connected(url) as connection:
        assert migrate.triggers(connection) == expected
    if kind(url) == "postgresql":
        execute(
            url,
            "DROP TRIGGER modelctl_insert ON models",
            "ALTER TABLE models DISABLE TRIGGER modelctl_update",
            "ALTER TABLE models ENABLE TRIGGER modelctl_delete",  # not ALWAYS
        )
        gone = {"modelctl_insert", "modelctl_update", "modelctl_delete"}
    else:
        execute(url, "DROP TRIGGER modelctl_insert")
        gone = {"modelctl_insert"}
    with connected(url) as connection:
        assert migrate.triggers(connection) == {name: name not in gone for name in expected}
        migrate.upgrade(connection)
        assert migrate.triggers(connection) == expected


def plan(url: str, query: str) -> str:
    """Return the plan of a query."""
    explain = "EXPLAIN QUERY PLAN" if kind(url) == "sqlite" else "EXPLAIN"
    return "\n".join(str(row[-1]) for row in execute(url, f"{explain} {query}"))


def test_recover_finds_its_models_by_an_index(url: str) -> None:
    """Neither the auto-disabled models nor those with a time are looked for among all others."""
    upgrade(url)
    if kind(url) == "sqlite":
        numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        execute(url, f"{numbers} INSERT INTO models (id) SELECT 'm' || i FROM n")
    else:
        execute(url, "INSERT INTO models (id) SELECT 'm' || i FROM generate_series(1, 20000) i")
    execute(url, "UPDATE models SET active = false, auto_disabled = true WHERE id LIKE 'm199%'")
    execute(
        url, "UPDATE models SET active = false, disabled_until = created_at WHERE id LIKE 'm188%'"
    )
    execute(url, "ANALYZE models")
    for index, condition in (("auto_disabled", AUTO_OFF), ("disabled_until", TIMED_OFF)):
        query = f"SELECT id FROM models WHERE {condition}"
        query = sqlite.compare_with_one(query) if kind(url) == "sqlite" else query
        assert f"modelctl_models_{index}" in plan(url, query)
