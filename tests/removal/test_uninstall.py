"""`db uninstall` leaves the database as it was before modelctl came, and says what it does before."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import psycopg
import pytest

from modelctl import RefusedError
from modelctl.schema.declared import INDEXES, TABLES
from modelctl.schema.triggers import TRIGGERS
from tests import commands, fleets, servers
from tests.fleets import is_sqlite, opened, sql
from tests.migrations.schemas import WEBSITE, WEBSITE_INSERT, columns
from tests.servers import Postgres, Redis

ROWS = "SELECT id, display_name, provider, active, slug, price FROM models ORDER BY id"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of a database of each kind with the table of an application; it is configured."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        url = request.getfixturevalue("empty_pg")
    sql(url, WEBSITE[request.param])
    sql(url, WEBSITE_INSERT)
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    return url


def schema_of(url: str) -> str:
    """Return the schema of the whole database, as pg_dump and .schema print it."""
    if is_sqlite(url):
        query = "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY type, name"
        return "\n".join(row[0] for row in sql(url, query) if row[0])
    program = servers.postgres_binary().path.with_name("pg_dump")
    environ = {name: value for name, value in os.environ.items() if name != "PGOPTIONS"}
    done = subprocess.run(
        [program, "--schema-only", url], env=environ, capture_output=True, text=True, check=True
    )
    return "\n".join(line for line in done.stdout.splitlines() if "restrict " not in line)


def execute_script(url: str, script: str) -> None:
    """Execute a script as psql and sqlite3 do."""
    if is_sqlite(url):
        with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as file:
            file.executescript(script)
        file.close()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(script.encode())


def test_the_database_is_as_it_was(url: str) -> None:
    """Upgrade and uninstall leave the schema and the application's values as they were.

    The same holds if a person executes what the two dry runs print.
    """
    before, rows = schema_of(url), sql(url, ROWS)
    with opened(url) as fleet:
        fleet.upgrade()
        fleet.edit("mistral", tag="eu")
        adopted, values = schema_of(url), fleets.everything(url)
        planned = fleet.uninstall(dry_run=True)
        assert (schema_of(url), fleets.everything(url)) == (adopted, values)
        done = fleet.uninstall()
        assert (done.removed, done.kept) == (planned.removed, planned.kept) != ((), ())
        assert fleet.schema_status().current is None
    assert (schema_of(url), sql(url, ROWS)) == (before, rows)
    execute_script(url, commands.run("db", "upgrade", "--dry-run").out)
    assert commands.run("db", "status").code == 0
    execute_script(url, commands.run("db", "uninstall", "--dry-run").out)
    assert (schema_of(url), sql(url, ROWS)) == (before, rows)


def test_what_the_application_uses_stays(url: str) -> None:
    """A view or an index of the application on a column of modelctl: nothing is removed."""
    with opened(url) as fleet:
        fleet.upgrade()
    for use, drop in {
        "CREATE VIEW tired AS SELECT id, ejections FROM models": "DROP VIEW tired",
        "CREATE INDEX tired ON models (slug, ejections)": "DROP INDEX tired",
    }.items():
        sql(url, use)
        before = schema_of(url)
        result = commands.run("db", "uninstall", "--yes")
        result.failed(8, "tired", "nothing was removed")
        assert schema_of(url) == before
        sql(url, drop)
    commands.run("db", "uninstall").failed(8, "asks first", "--dry-run")
    result = commands.run("db", "uninstall", "--yes", "-o", "json")
    assert result.code == 0
    assert "table" in "".join(result.json["removed"])


def test_a_table_that_took_the_place_keeps_its_columns(url: str) -> None:
    """The application makes its table anew, with a column that modelctl had added to the old one."""
    with opened(url) as fleet:
        fleet.upgrade()
        fleet.detach()
        fleet.upgrade()  # what was noted at first holds
        assert "disabled_at" in "".join(fleet.uninstall(dry_run=True).removed)
        sql(url, "DROP TABLE models")
        sql(url, WEBSITE["sqlite" if is_sqlite(url) else "postgresql"])
        sql(url, "ALTER TABLE models ADD COLUMN failure_type text")
        before = columns(url)
        fleet.upgrade()
        assert columns(url) != before
        fleet.uninstall()
    there = {name: of for name, of in columns(url).items() if "pg.dropped" not in name}
    assert there == before


def test_our_own_table_stays(
    sqlite_database: str, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that modelctl created keeps its columns and rows; only what is beside it goes."""
    for url in (sqlite_database, pg_database):
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        fleets.put(url, "a")
        result = commands.run("db", "uninstall", "--yes")
        assert result.code == 0
        assert "modelctl created it" in result.err
        assert sql(url, "SELECT id, ejections FROM models") == [("a", 0)]
        with opened(url) as fleet:
            fleet.upgrade()
            assert fleet.count().active == 1


def test_invalidations_that_wait(
    pg_database: str, redis_url: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an invalidation is queued it is refused; afterwards nothing is left in Redis."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    fleets.put(pg_database, "a")
    commands.run("db", "uninstall", "--yes").failed(8, "1 invalidation is queued", "cache drain")
    result = commands.run("db", "uninstall", "--dry-run")
    assert (result.code, "in the way: 1 invalidation" in result.err) == (8, True)
    assert commands.run("cache", "drain").code == 0
    commands.run("count")
    assert redis_server.ask("GET", "db:models:count:active") == "1"
    assert commands.run("db", "uninstall", "--yes").code == 0
    assert redis_server.ask("GET", "db:models:count:active") is None
    # A process without Redis must not lose what another one, with Redis, has to deliver.
    with opened(pg_database) as fleet:
        fleet.upgrade()
        sql(
            pg_database,
            "INSERT INTO modelctl.modelctl_state VALUES ('delivery redis:6379', now(), 'x')",
        )
        fleet.disable("a")
        with pytest.raises(RefusedError, match="queued"):
            fleet.uninstall()


def test_the_schema_of_another_program(empty_pg: str, postgres: Postgres) -> None:
    """A schema that was there, or that holds something else, stays. A stranger removes nothing."""
    sql(empty_pg, "CREATE SCHEMA modelctl")
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        assert "modelctl did not create it" in "".join(fleet.uninstall().kept)
        sql(empty_pg, "DROP SCHEMA modelctl")
        sql(empty_pg, "DROP TABLE models")
        fleet.upgrade()
        sql(empty_pg, "CREATE TABLE modelctl.theirs (id int)")
        done = fleet.uninstall()
        assert "other programs" in done.kept[-1]
        assert "schema modelctl" not in done.removed
        fleet.upgrade()
    sql(empty_pg, "CREATE ROLE passer_by LOGIN")
    try:
        sql(empty_pg, "GRANT USAGE ON SCHEMA modelctl TO passer_by")
        sql(empty_pg, "GRANT SELECT ON ALL TABLES IN SCHEMA modelctl TO passer_by")
        with (
            opened(empty_pg.replace("postgres@", "passer_by@")) as stranger,
            pytest.raises(RefusedError, match=r"passer_by does not own public\.models"),
        ):
            stranger.uninstall()
    finally:
        sql(empty_pg, "DROP OWNED BY passer_by")
        sql(empty_pg, "DROP ROLE passer_by")


def test_the_table_is_named_before_it_is_adopted(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run prints the SQL and names the table: schema, owner, rows, columns, and what it adds.

    `db status` and `doctor` name schema, owner and rows, too.
    """
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    sql(empty_pg, "CREATE ROLE webshop")
    try:
        sql(empty_pg, WEBSITE["postgresql"])
        sql(empty_pg, WEBSITE_INSERT)
        sql(empty_pg, "ALTER TABLE models OWNER TO webshop")
        result = commands.run("db", "upgrade", "--dry-run")
        tables, indexes, triggers = len(TABLES["postgresql"]), len(INDEXES), len(TRIGGERS)
        assert (
            "adopts the table public.models of owner webshop, 2 rows, 11 columns; adds 13 columns,"
            f" {tables} tables, {indexes} indexes, {triggers} triggers\n"
        ) in result.err
        assert result.lines[0] == "BEGIN;"
        assert "ADD COLUMN ejections integer NOT NULL DEFAULT 0" in result.out
        with opened(empty_pg) as fleet:
            fleet.upgrade()
        status = commands.run("db", "status", "-o", "json").json
        named = status["table"], status["owner"], status["rows"], status["summary"]
        shown = "the table public.models of owner webshop, 2 rows, 24 columns"
        assert named == ("public.models", "webshop", 2, shown)
        checks = commands.run("doctor", "-o", "json").json["checks"]
        [table] = [check["detail"] for check in checks if check["check"] == "table"]
        assert table == "public.models of owner webshop, 2 rows"
    finally:
        sql(empty_pg, "REASSIGN OWNED BY webshop TO postgres")
        sql(empty_pg, "DROP ROLE webshop")
