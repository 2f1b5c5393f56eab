"""`db uninstall` leaves the database as it was before modelctl came, and says what it does before."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path

import psycopg
import pytest

from modelctl import DatabaseUnavailableError, RefusedError, crash_points
from modelctl.migrations import migrate
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
        result = commands.run("db", "uninstall", "--dry-run")
        assert (result.code, "DROP" in result.out, "tired" in result.err) == (8, False, True)
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
    assert "DROP" not in result.out  # psql would not refuse it
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
        assert result.lines[:2] == ["BEGIN;", "SET LOCAL lock_timeout = '2s';"]
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


def test_indexes_of_the_application_stay(url: str) -> None:
    """An index that the application had stays, whatever its name and definition."""
    declared = "ON models (id) WHERE disabled_until IS NOT NULL"
    for statement in (
        f"ALTER TABLE models ADD COLUMN disabled_until {'TEXT' if is_sqlite(url) else 'timestamptz'}",
        "CREATE INDEX modelctl_models_auto_disabled ON models (slug)",
        "CREATE INDEX modelctl_models_auto_disabled_7 ON models (price)",
        f"CREATE INDEX modelctl_models_disabled_until {declared}",
    ):
        sql(url, statement)
    before = schema_of(url)
    with opened(url) as fleet:
        fleet.upgrade()
        printed = fleet.declarations("sql")
        assert "modelctl_models_auto_disabled_2 ON" in printed
        assert "modelctl_models_disabled_until ON" not in printed  # the application declares it
        done = fleet.uninstall()
        [index] = [part for part in done.removed if part.startswith("index")]
        assert index.endswith("modelctl_models_auto_disabled_2")
        assert schema_of(url) == before
        # A note without indexes: those as declared, with our names, are ours.
        fleet.upgrade()
        state = "modelctl_state" if is_sqlite(url) else "modelctl.modelctl_state"
        [(note,)] = sql(url, f"SELECT value FROM {state} WHERE name = 'adoption'")
        note = json.dumps(json.loads(note)[:3])
        sql(url, f"UPDATE {state} SET value = '{note}' WHERE name = 'adoption'")
        fleet.uninstall()
        assert "modelctl_models_auto_disabled ON" in schema_of(url)
        assert "modelctl_models_auto_disabled_7 ON" in schema_of(url)
        assert "modelctl_models_auto_disabled_2 ON" not in schema_of(url)


def test_what_uses_the_own_tables_is_named(empty_pg: str) -> None:
    """What depends on a table of modelctl prevents the removal and is named, in a dry run as well."""
    sql(empty_pg, WEBSITE["postgresql"])
    own = "modelctl.modelctl"
    uses = {
        "view mine": f"CREATE VIEW mine AS SELECT * FROM {own}_events",
        "mine_tag_fkey": f"CREATE TABLE mine (tag text REFERENCES {own}_tags)",
        "column event of table mine": f"CREATE TABLE mine (event {own}_events[])",
        "default value": f"CREATE TABLE mine (n bigint DEFAULT nextval('{own}_events_id_seq'))",
        "function mine": f"CREATE FUNCTION mine() RETURNS bigint RETURN (SELECT count(*) FROM {own}_state)",
    }
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        # Parts of the own tables go with them.
        sql(empty_pg, f"CREATE INDEX reasons ON {own}_events (reason)")
        sql(empty_pg, f"CREATE POLICY p ON {own}_events USING (reason <> '')")
        for words, statement in uses.items():
            sql(empty_pg, statement)
            [why] = fleet.uninstall(dry_run=True).refused
            assert words in why
            assert f" uses the table {own}_" in why
            with pytest.raises(RefusedError, match=f"{words}.*nothing was removed") as caught:
                fleet.uninstall()
            assert "CASCADE" not in caught.value.message
            kind = statement.split()[1]
            sql(empty_pg, f"DROP {kind} mine")
        assert fleet.uninstall().kept == ()


def test_models_that_stay_off(url: str) -> None:
    """It says how many models nothing will bring back, but not those that a person disabled."""
    with opened(url) as fleet:
        fleet.upgrade()
        assert fleet.uninstall(dry_run=True).kept == ()
        fleet.enable("mistral")
        fleet.disable("mistral", duration=3600)
        fleets.trip(fleet, "openai/gpt-5")
        [kept] = fleet.uninstall(dry_run=True).kept
        assert kept.startswith("2 models off, until modelctl recover brings them back")
        assert fleet.uninstall().kept == (kept,)


def test_the_table_was_renamed(empty_pg: str) -> None:
    """A table that has another name now is named; without triggers, its columns are."""
    sql(empty_pg, WEBSITE["postgresql"])
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        sql(empty_pg, "ALTER TABLE models RENAME TO models_old")
        with pytest.raises(
            RefusedError, match=r"on public\.models_old.*give the table its name back"
        ):
            fleet.uninstall()
        fleet.detach()
        [kept] = fleet.uninstall().kept
        assert "which is not found: success_count, " in kept.replace("ejections, ", "")


def test_nothing_is_there(url: str) -> None:
    """Where nothing of modelctl is, uninstall and detach say so, ask nothing and succeed."""
    before = schema_of(url)
    for words in (["uninstall"], ["uninstall", "--dry-run"], ["uninstall", "--yes"]):
        result = commands.run("db", *words)
        assert (result.code, result.out) == (0, "")
        assert "nothing of modelctl is in this database" in result.err
    result = commands.run("db", "detach", "--yes")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert schema_of(url) == before


def test_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run creates no database, says what an upgrade would create, and its SQL creates that."""
    there = commands.database()
    for file in (there, tmp_path / "named.db"):
        if file != there:
            monkeypatch.setenv("MODELCTL_DATABASE_URL", f"sqlite:///{file}")
        result = commands.run("db", "upgrade", "--dry-run")
        assert result.code == 0
        assert "creates a table models; adds" in result.err
        for words in (["uninstall", "--dry-run"], ["uninstall", "--yes"], ["detach", "--yes"]):
            commands.run("db", *words).failed(7, "there is no database")
        assert not file.exists()
        assert not there.parent.exists()
    file.touch()
    execute_script(f"sqlite:///{file}", result.out)
    assert commands.run("db", "status").code == 0


def test_a_file_that_cannot_be_written(
    sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file is the fault of its permissions; a dry run waits for no writer of a file."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_database)
    file = Path(sqlite_database.removeprefix("sqlite:///"))
    with sqlite3.connect(file, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for command in ("upgrade", "uninstall"):
            assert commands.run("db", command, "--dry-run").code == 0
        writer.execute("ROLLBACK")
        writer.execute("PRAGMA journal_mode = DELETE")
    writer.close()
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        result = commands.run("db", "uninstall", "--yes", before=commands.obey_file_modes)
        result.failed(3, "cannot be opened", "permissions")
    finally:
        file.parent.chmod(0o700)


def test_an_index_on_a_partition(empty_pg: str) -> None:
    """What the application has on a column of a partition prevents the removal, too."""
    sql(
        empty_pg, "CREATE TABLE models (id text PRIMARY KEY, active boolean) PARTITION BY HASH (id)"
    )
    sql(empty_pg, "CREATE TABLE p PARTITION OF models FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    before = schema_of(empty_pg)
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        sql(empty_pg, "CREATE INDEX tired ON p (ejections)")
        assert "index tired uses" in "".join(fleet.uninstall(dry_run=True).refused)
        with pytest.raises(RefusedError, match="index tired uses the column ejections"):
            fleet.uninstall()
        sql(empty_pg, "DROP INDEX tired")
        fleet.uninstall()
    assert schema_of(empty_pg) == before


def test_the_cached_count_is_removed_before_the_tables(
    pg_database: str, redis_url: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number outlives the tables, even if the process is killed between COMMIT and the next step.

    It is deleted while nobody can count, so that no reader can store it again. If Redis is away, the
    removal goes on, with a warning.
    """
    fleets.put(pg_database, "a")
    seen = []

    def look(point: str) -> None:
        if point == "after-del":
            with psycopg.connect(pg_database, autocommit=True) as other:
                other.execute("SET lock_timeout = '50ms'")
                there = other.execute("SELECT to_regclass('modelctl.modelctl_outbox')").fetchone()
                try:
                    other.execute("SELECT count(*) FROM models")
                    locked = False
                except psycopg.errors.LockNotAvailable:
                    locked = True
            keys = redis_server.ask("EXISTS", "db:models:count:active")
            seen.append((there != (None,), locked, keys))

    with opened(pg_database, redis_url=redis_url) as fleet:
        fleet.drain()
        fleet.count()
        assert redis_server.ask("EXISTS", "db:models:count:active") in (1, "1")
        monkeypatch.setattr(crash_points, "hook", look)
        fleet.uninstall()
        monkeypatch.setattr(crash_points, "hook", None)
        assert [(there, locked) for there, locked, _ in seen] == [(True, True), (False, False)]
        assert {str(keys) for _, _, keys in seen} == {"0"}
        fleet.upgrade()
        fleet.drain()
        redis_server.stop()
        told: list[str] = []
        fleet.on_warning = told.append
        assert fleet.uninstall().removed
        assert "stays for up to a minute" in "".join(told)


def test_another_process_has_the_redis(pg_database: str, redis_url: str) -> None:
    """A process without Redis says which cached count it cannot clear."""
    with opened(pg_database, redis_url=redis_url) as fleet:
        fleet.add("a")
        fleet.drain()
    with opened(pg_database) as fleet:
        planned = fleet.uninstall(dry_run=True)
        assert fleet.uninstall().kept == planned.kept
    assert "for up to a minute: no Redis is configured here" in "".join(planned.kept)


def test_another_upgrade_is_running(pg_database: str) -> None:
    """An uninstall that waits for an upgrade gives up in time, and says why."""
    with psycopg.connect(pg_database) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.UPGRADE_LOCK])
        with (
            opened(pg_database, database_timeout="2s") as fleet,
            pytest.raises(DatabaseUnavailableError, match="another upgrade, detach or uninstall"),
        ):
            fleet.uninstall()
