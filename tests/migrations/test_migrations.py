from __future__ import annotations

import dataclasses
import logging
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from modelctl.database import sqlite
from modelctl.errors import InvalidConfigError
from modelctl.migrations import migrate
from modelctl.reports import SchemaStatus
from modelctl.schema.declared import HEAD, MODELS_COLUMNS
from modelctl.schema.triggers import SQLITE, TRIGGERS
from modelctl.tables.columns import AUTO_OFF, TIMED_OFF
from tests.servers import Postgres

NEEDED = MODELS_COLUMNS
ALL_TRIGGERS = {
    "postgresql": [
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_truncate",
        "modelctl_enabled",
        "modelctl_disabled",
    ],
    "sqlite": [
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_enabled",
        "modelctl_disabled",
    ],
}

# What every application can do to its own table, before and after modelctl came.
WEBSITE = {
    "postgresql": """
        CREATE TABLE models (
            id varchar(80) PRIMARY KEY,
            display_name varchar(120) NOT NULL,
            provider text NOT NULL,
            active boolean NOT NULL DEFAULT true,
            auto_disabled boolean,
            consecutive_failures integer DEFAULT 0,
            last_failure_at timestamp,
            failure_reason text,
            slug text NOT NULL UNIQUE,
            price numeric(10, 4),
            settings json
        )""",
    "sqlite": """
        CREATE TABLE Models (
            Id VARCHAR(80) PRIMARY KEY,
            display_name VARCHAR(120) NOT NULL,
            provider TEXT NOT NULL,
            active INTEGER NOT NULL DEFAULT 1,
            auto_disabled TINYINT(1),
            consecutive_failures SMALLINT DEFAULT 0,
            last_failure_at DATETIME,
            failure_reason TEXT,
            slug TEXT NOT NULL UNIQUE,
            price NUMERIC(10, 4),
            settings JSON
        )""",
}
WEBSITE_INSERT = """
    INSERT INTO models (id, display_name, provider, active, slug, price, settings)
    VALUES ('openai/gpt-5', 'GPT-5', 'openai', true, 'gpt-5', 1.25, '{"a": 1}'),
           ('mistral', 'Mistral', 'mistral', false, 'mistral', NULL, NULL)"""
WEBSITE_ROWS = (
    "SELECT id, display_name, provider, active, auto_disabled, consecutive_failures,"
    " last_failure_at, failure_reason, slug, price FROM models ORDER BY id"
)
WEBSITE_WORK = (
    "INSERT INTO models (id, display_name, provider, slug) VALUES ('new', 'New', '', 'new')",
    "UPDATE models SET active = NOT active, settings = '{}' WHERE provider = 'openai'",
    "UPDATE models SET consecutive_failures = consecutive_failures + 1, failure_reason = 'no'",
    "UPDATE models SET id = 'newer' WHERE id = 'new'",
    "DELETE FROM models WHERE id = 'newer'",
)


@contextmanager
def connected(url: str, **options: Any) -> Iterator[sa.Connection]:
    """Open a connection of SQLAlchemy as the product does."""
    engine = sa.create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool, **options
    )
    if engine.dialect.name == "sqlite":
        # The driver begins nothing by itself.
        @sa.event.listens_for(engine, "connect")
        def manual(driver: sqlite3.Connection, _: object) -> None:
            driver.isolation_level = None

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    with engine.connect() as connection:
        yield connection


def upgrade(url: str) -> SchemaStatus:
    """Upgrade over a connection of its own."""
    with connected(url) as connection:
        return migrate.upgrade(connection)


def well(url: str) -> SchemaStatus:
    """Return the status of a database that lacks nothing."""
    table = "models" if kind(url) == "sqlite" else "public.models"
    return SchemaStatus(kind(url), HEAD, HEAD, up_to_date=True, table=table)


def status(url: str) -> SchemaStatus:
    """Return the status over a connection of its own."""
    with connected(url) as connection:
        return migrate.status(connection)


def run(url: str, *statements: str) -> list[Any]:
    """Run each statement on its own; return the rows of the last."""
    rows: list[Any] = []
    with connected(url) as connection:
        for statement in statements:
            with connection.begin():
                result = connection.exec_driver_sql(statement)
                rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def columns(url: str) -> dict[str, tuple[Any, ...]]:
    """Map the columns of `models` to type, NOT NULL and default, as the database tells them."""
    if kind(url) == "sqlite":
        query = "SELECT lower(name), type, \"notnull\", dflt_value FROM pragma_table_info('models')"
    else:
        query = """
            SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
            FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE attrelid = 'models'::regclass AND attnum > 0 ORDER BY attnum"""
    return {row[0]: row[1:] for row in run(url, query)}


def snapshot(url: str) -> Any:
    """Everything in the database: on SQLite the file, on PostgreSQL the rows of the catalogs."""
    if url.startswith("sqlite"):
        return Path(url.removeprefix("sqlite:///")).read_bytes()
    catalogs = {
        "pg_class": "relnamespace, relname, relkind, relhastriggers, relnatts",
        "pg_attribute": "attrelid, attname, atttypid, attnotnull, attisdropped",
        "pg_attrdef": "adrelid, pg_get_expr(adbin, adrelid)",
        "pg_constraint": "conname, contype",
        "pg_index": "indexrelid",
        "pg_proc": "proname",
        "pg_trigger": "tgname, tgenabled",
        "pg_type": "typname",
        "pg_sequence": "seqrelid",
    }
    with psycopg.connect(url, autocommit=True) as connection:
        # Rows that initdb made have small ids; xmin tells whether one was written again.
        found = {
            table: connection.execute(
                f"SELECT tableoid, ctid, xmin, {names} FROM {table} ORDER BY ctid".encode()
            ).fetchall()
            for table, names in catalogs.items()
        }
        kind = connection.execute(
            "SELECT relkind FROM pg_class WHERE oid = to_regclass('models')"
        ).fetchone()
        if kind in [("r",), ("p",)]:
            found["models"] = connection.execute(
                "SELECT ctid, xmin, m::text FROM models m ORDER BY ctid"
            ).fetchall()
    return found


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Give the URL of a SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'modelctl.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Give the URL of an empty database of each kind."""
    fixture = "empty_pg" if request.param == "postgresql" else "sqlite_url"
    return str(request.getfixturevalue(fixture))


def kind(url: str) -> str:
    """Return `sqlite` or `postgresql`."""
    return url.partition(":")[0]


# Creation


def test_upgrade_creates_every_column_with_a_default(url: str) -> None:
    """A row that names only its id is a whole model."""
    assert upgrade(url).up_to_date
    assert status(url) == well(url)
    assert list(columns(url)) == list(NEEDED)
    (row,) = run(url, "INSERT INTO models (id) VALUES ('a')", "SELECT * FROM models")
    assert row[:19] == ("a", "", "", True, False, 0, 0, 0, 0, *[None] * 10)
    assert None not in row[19:]
    hold = "INSERT INTO modelctl_holds (scope, until) VALUES ('*', '2026-01-02T03:04:05.678Z')"
    given = "scope, provider, failure_type, since IS NULL, reason, actor"
    (row,) = run(url, hold, f"SELECT {given} FROM modelctl_holds")
    assert row == ("*", None, None, False, None, None)


def test_sqlite_times_are_canonical_text(sqlite_url: str) -> None:
    """On SQLite a time is the text that sorts as time does."""
    upgrade(sqlite_url)
    ((text,),) = run(
        sqlite_url, "INSERT INTO models (id) VALUES ('a')", "SELECT created_at FROM models"
    )
    assert time.strptime(text[:19] + text[23:], "%Y-%m-%dT%H:%M:%SZ")
    assert len(text) == len("2026-01-02T03:04:05.678Z")


def test_upgrade_twice_changes_nothing(url: str) -> None:
    """A second run finds nothing to do and does nothing."""
    upgrade(url)
    run(url, "INSERT INTO models (id) VALUES ('a')")
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
    run(url, "SELECT 1")
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
    """Of several upgrades at once one works and the others find it done."""
    if adopted:
        run(url, WEBSITE[kind(url)])
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(upgrade, [url] * 6))
    assert all(result.up_to_date for result in results)
    assert run(url, "SELECT version_num FROM modelctl_version") == [(HEAD,)]


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
    run(empty_pg, WEBSITE["postgresql"], WEBSITE_INSERT)
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
    run(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    before = snapshot(url)
    with failing(url), pytest.raises(sa.exc.DBAPIError):
        upgrade(url)
    assert snapshot(url) == before


@pytest.mark.parametrize("level", [None, "DEFERRED"])
def test_sqlite_upgrade_is_one_transaction_under_any_driver_setting(
    sqlite_url: str, level: str | None
) -> None:
    """Plain engines, which begin nothing or begin late, get all or nothing as well."""
    run(sqlite_url, "CREATE TABLE somebody_elses (id text)")
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
    assert run(sqlite_url, "SELECT version_num FROM modelctl_version") == [(HEAD,)]


def test_a_schema_of_a_newer_release_is_refused(url: str) -> None:
    """An old modelctl does not touch what a newer one has migrated."""
    upgrade(url)
    run(url, "UPDATE modelctl_version SET version_num = '9999'")
    before = snapshot(url)
    assert (status(url).current, status(url).up_to_date) == ("9999", False)
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
        run(
            url,
            "DROP TRIGGER modelctl_insert ON models",
            "ALTER TABLE models DISABLE TRIGGER modelctl_update",
            "ALTER TABLE models ENABLE TRIGGER modelctl_delete",  # not ALWAYS
        )
        gone = {"modelctl_insert", "modelctl_update", "modelctl_delete"}
    else:
        run(url, "DROP TRIGGER modelctl_insert")
        gone = {"modelctl_insert"}
    with connected(url) as connection:
        assert migrate.triggers(connection) == {name: name not in gone for name in expected}
        migrate.upgrade(connection)
        assert migrate.triggers(connection) == expected


def plan(url: str, query: str) -> str:
    """Return the plan of a query."""
    explain = "EXPLAIN QUERY PLAN" if kind(url) == "sqlite" else "EXPLAIN"
    return "\n".join(str(row[-1]) for row in run(url, f"{explain} {query}"))


def test_recover_finds_its_models_by_an_index(url: str) -> None:
    """Neither the auto-disabled models nor those with a time are looked for among all others."""
    upgrade(url)
    if kind(url) == "sqlite":
        numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        run(url, f"{numbers} INSERT INTO models (id) SELECT 'm' || i FROM n")
    else:
        run(url, "INSERT INTO models (id) SELECT 'm' || i FROM generate_series(1, 20000) i")
    run(url, "UPDATE models SET active = false, auto_disabled = true WHERE id LIKE 'm199%%'")
    run(url, "UPDATE models SET active = false, disabled_until = created_at WHERE id LIKE 'm188%%'")
    run(url, "ANALYZE models")
    for index, condition in (("auto_disabled", AUTO_OFF), ("disabled_until", TIMED_OFF)):
        query = f"SELECT id FROM models WHERE {condition}"
        query = sqlite.compare_with_one(query) if kind(url) == "sqlite" else query
        assert f"modelctl_models_{index}" in plan(url, query)


# Adoption


def test_adoption_adds_only_what_is_missing(url: str) -> None:
    """An application's table keeps its columns and rows, and gets ours beside them."""
    run(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    own = columns(url)
    rows = run(url, WEBSITE_ROWS)
    upgrade(url)
    after = columns(url)
    assert list(after)[: len(own)] == list(own)
    assert {name: after[name] for name in own} == own
    assert after.keys() == own.keys() | NEEDED.keys()
    assert run(url, WEBSITE_ROWS) == rows
    added = "ejections, success_count, disabled_at, created_at IS NULL, updated_at IS NULL"
    assert run(url, f"SELECT {added} FROM models") == [(0, 0, None, False, False)] * 2


RECOVERY_COLUMNS = ("disabled_until", "recovered_at", "would_disable")
RECOVERY = {
    "postgresql": ("timestamp", "timestamp with time zone", "varchar(80)"),
    "sqlite": ("DATETIME", "TEXT", "VARCHAR(80)"),
}


@pytest.mark.parametrize("named", [*RECOVERY_COLUMNS, None])
def test_adoption_keeps_the_columns_of_recovery(url: str, named: str | None) -> None:
    """A column of such a name that will do stays what it is, with its values; None: all three."""
    types = dict(zip(RECOVERY_COLUMNS, RECOVERY[kind(url)], strict=True))
    own = {name: types[name] for name in types if named in (None, name)}
    body = ", ".join(f"{name} {declared}" for name, declared in own.items())
    values = "'2026-01-02 03:04:05'"
    run(
        url,
        f"CREATE TABLE models ({TEXT_ID}, {body})",
        f"INSERT INTO models (id, {', '.join(own)}) VALUES ('a', {', '.join([values] * len(own))})",
    )
    before = columns(url)
    rows = run(url, f"SELECT {', '.join(own)} FROM models")
    upgrade(url)
    after = columns(url)
    assert {name: after[name] for name in before} == before
    assert after.keys() == NEEDED.keys()
    assert run(url, f"SELECT {', '.join(own)} FROM models") == rows


def test_adoption_does_not_rewrite_the_table(empty_pg: str) -> None:
    """Columns are added in the catalog alone, however many rows there are."""
    run(empty_pg, WEBSITE["postgresql"], WEBSITE_INSERT)
    file = "SELECT pg_relation_filenode('models')"
    before = run(empty_pg, file)
    upgrade(empty_pg)
    assert run(empty_pg, file) == before


def test_the_application_goes_on_unchanged(url: str, tmp_path: Path) -> None:
    """The statements of the application do with modelctl what they did without it."""
    other = f"sqlite:///{tmp_path / 'other.db'}"
    run(other, WEBSITE["sqlite"], WEBSITE_INSERT, *WEBSITE_WORK)
    run(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    upgrade(url)
    run(url, *WEBSITE_WORK)
    keep = "SELECT id, active, consecutive_failures, failure_reason, slug FROM models ORDER BY id"
    assert run(url, keep) == run(other, keep)


def test_adoption_without_active_counts_every_row(url: str) -> None:
    """A table that knows no `active` gets it like any other missing column."""
    run(url, "CREATE TABLE models (id varchar(20) PRIMARY KEY)", "INSERT INTO models VALUES ('a')")
    upgrade(url)
    assert run(url, "SELECT id, active FROM models") == [("a", True)]


def test_adoption_accepts_a_unique_id(url: str) -> None:
    """A unique index on id alone is as good as a primary key."""
    run(
        url,
        "CREATE TABLE models (nr integer PRIMARY KEY, id text)",
        "CREATE UNIQUE INDEX models_by_id ON models (id)",
    )
    assert upgrade(url).up_to_date


def test_adoption_of_a_strict_table(sqlite_url: str) -> None:
    """A STRICT table of SQLite, which knows few types, is adopted too."""
    if sqlite3.sqlite_version_info < (3, 37):
        pytest.skip("this SQLite has no STRICT tables")
    run(sqlite_url, "CREATE TABLE models (id TEXT PRIMARY KEY) STRICT")
    upgrade(sqlite_url)
    run(sqlite_url, "INSERT INTO models (id) VALUES ('a')")
    assert run(sqlite_url, "SELECT active, auto_disabled FROM models") == [(1, 0)]


def test_adoption_of_a_partitioned_table(empty_pg: str) -> None:
    """Statements on a partitioned table write one row in the outbox, whatever they touch."""
    run(
        empty_pg,
        "CREATE TABLE models (id text PRIMARY KEY, active boolean) PARTITION BY HASH (id)",
        "CREATE TABLE p0 PARTITION OF models FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE p1 PARTITION OF models FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    upgrade(empty_pg)
    run(
        empty_pg,
        "INSERT INTO models (id, active) SELECT i::text, i > 9 FROM generate_series(1, 20) i",
        "UPDATE models SET active = NOT active, id = id || 'x'",
    )
    assert run(empty_pg, OUTBOX) == [(2,)]


def test_adoption_across_schemas(empty_pg: str) -> None:
    """The table is found by the search_path; our own tables are where they are said to be."""
    run(
        empty_pg,
        "CREATE SCHEMA shop",
        WEBSITE["postgresql"].replace("models", "shop.models"),
    )
    with connected(empty_pg) as connection:
        connection.exec_driver_sql("SET search_path = shop, public")
        connection.commit()
        for _ in range(2):
            assert migrate.upgrade(connection, "other_fleet").up_to_date
        assert all(migrate.triggers(connection, "other_fleet").values())
    run(empty_pg, WEBSITE_INSERT.replace("models", "shop.models"))  # with another search_path
    assert run(empty_pg, "SELECT count(*) FROM other_fleet.modelctl_outbox") == [(1,)]
    schemas = "SELECT DISTINCT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
    found = run(empty_pg, f"{schemas} WHERE relname LIKE 'modelctl!_%%' ESCAPE '!' ORDER BY 1")
    assert found == [("other_fleet",), ("shop",)]  # shop: indexes of its table


TEXT_ID = "id text PRIMARY KEY"
BOTH = ("sqlite", "postgresql")
REFUSED = [
    (BOTH, "CREATE VIEW models AS SELECT 'a' AS id", "models is a view"),
    (BOTH, "CREATE TABLE models (name text)", "no column id"),
    (BOTH, "CREATE TABLE models (id integer PRIMARY KEY)", "id is integer, not text"),
    (BOTH, "CREATE TABLE models (id text)", "no primary key or unique index"),
    (BOTH, "CREATE TABLE models (id text, b text, PRIMARY KEY (id, b))", "no primary key"),
    (BOTH, "CREATE TABLE models (id text, b text, UNIQUE (b, id))", "no primary key"),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, active text)", "active is text, not boolean"),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, auto_disabled text)", "auto_disabled is text"),
    (
        BOTH,
        f"CREATE TABLE models ({TEXT_ID}, consecutive_failures text)",
        "consecutive_failures is text, not integer",
    ),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, provider integer)", "provider is integer, not text"),
    (
        BOTH,
        f"CREATE TABLE models ({TEXT_ID}, last_failure_at integer)",
        "last_failure_at is integer, not timestamp",
    ),
    (BOTH, "CREATE TABLE models (id integer, active text)", "(?s)id .*id is .*active is text"),
    (
        BOTH,
        f"CREATE TABLE models ({TEXT_ID}, s integer,"
        " active boolean GENERATED ALWAYS AS (s = 1) STORED)",
        "active is a generated column",
    ),
    (
        BOTH,
        f"CREATE TABLE models ({TEXT_ID}, disabled_until integer, would_disable integer)",
        "disabled_until is integer, not timestamp; would_disable is integer, not text",
    ),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, would_disable integer)", "would_disable is integer"),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, disabled_until text NOT NULL)", "until is NOT NULL"),
    (BOTH, f"CREATE TABLE models ({TEXT_ID}, recovered_at date NOT NULL)", "_at is NOT NULL"),
    (
        BOTH,
        f"CREATE TABLE models ({TEXT_ID}, s text,"
        " would_disable text GENERATED ALWAYS AS (s) STORED)",
        "would_disable is a generated column",
    ),
    (("postgresql",), f"CREATE TABLE models ({TEXT_ID}, disabled_until text)", "until is text"),
    (("postgresql",), f"CREATE TABLE models ({TEXT_ID}, would_disable boolean)", "is boolean"),
    (("postgresql",), "CREATE TABLE models (id uuid PRIMARY KEY)", "id is uuid"),
    *(
        (
            ("postgresql",),
            f"CREATE TABLE models ({TEXT_ID}, {name} smallint)",
            f"{name} is smallint.* ALTER COLUMN {name} TYPE {wanted}",
        )
        for name, wanted in (
            ("consecutive_failures", "integer"),
            ("ejections", "integer"),
            ("success_count", "bigint"),
            ("failure_count", "bigint"),
        )
    ),
    (("postgresql",), "CREATE TABLE models (id char(9) PRIMARY KEY)", r"id is character\(9\)"),
    (
        ("postgresql",),
        "CREATE TABLE models (id text UNIQUE DEFERRABLE)",
        "no primary key or unique index",
    ),
    (("postgresql",), f"CREATE TABLE models ({TEXT_ID}, active integer)", "active is integer"),
    (
        ("postgresql",),
        f"CREATE TABLE models ({TEXT_ID}, last_failure_at text)",
        "is text, not time",
    ),
    (("postgresql",), "CREATE MATERIALIZED VIEW models AS SELECT 'a' AS id", "a materialized view"),
    (("postgresql",), "CREATE SEQUENCE models", "models is a sequence"),
    (("sqlite",), "CREATE TABLE models (id PRIMARY KEY)", "id is of no type"),
    (("sqlite",), "CREATE VIRTUAL TABLE models USING fts5(id)", "models is a virtual table"),
]


@pytest.mark.parametrize(
    ("url", "table", "why"),
    [(database, table, why) for databases, table, why in REFUSED for database in databases],
    indirect=["url"],
)
def test_a_table_that_cannot_be_used_is_refused(url: str, table: str, why: str) -> None:
    """The refusal says what is in the way and what to do, and nothing at all is changed."""
    run(url, table)
    before = snapshot(url)
    with pytest.raises(InvalidConfigError, match=f"(?i){why}") as caught:
        upgrade(url)
    assert caught.value.hint
    assert snapshot(url) == before


# The outbox (PostgreSQL)


def _make_fleet(url: str) -> str:
    upgrade(url)
    run(
        url,
        "ALTER TABLE models ADD COLUMN settings json DEFAULT '{}'",
        "INSERT INTO models (id, active) VALUES ('a', true), ('b', false), ('c', true)",
        "TRUNCATE modelctl_outbox",
    )
    return url


@pytest.fixture
def fleet(empty_pg: str) -> str:
    """Give the URL of a migrated database with a few models and an empty outbox."""
    return _make_fleet(empty_pg)


@pytest.fixture(scope="module")
def shared_fleet(postgres: Postgres) -> Iterator[str]:
    """Give the same for tests that commit nothing."""
    name = postgres.create_database()
    yield _make_fleet(postgres.url(name))
    postgres.drop_database(name)


OUTBOX = "SELECT count(*) FROM modelctl_outbox"


MERGE = """
    MERGE INTO models m USING (VALUES {0}) AS s (id, on_) ON m.id = s.id
    WHEN MATCHED THEN UPDATE SET active = s.on_"""


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("INSERT INTO models (id) SELECT 'x' WHERE false", 0),
        ("INSERT INTO models (id) VALUES ('x')", 1),
        ("INSERT INTO models (id, active) VALUES ('x', false)", 1),
        ("INSERT INTO models (id) SELECT i::text FROM generate_series(1, 1000) i", 1),
        ("INSERT INTO models (id) VALUES ('a') ON CONFLICT DO NOTHING", 0),
        ("UPDATE models SET active = active", 0),
        ("UPDATE models SET active = false WHERE id = 'b'", 0),
        ("UPDATE models SET active = false WHERE id = 'nobody'", 0),
        ("UPDATE models SET display_name = 'x', settings = '[]', failure_count = 9", 0),
        ("UPDATE models SET active = false WHERE id = 'a'", 1),
        ("UPDATE models SET active = false", 1),
        ("UPDATE models SET active = NOT active WHERE id IN ('a', 'b')", 1),
        ("UPDATE models SET id = 'z' WHERE id = 'b'", 1),
        ("UPDATE models SET id = id", 0),
        ("DELETE FROM models WHERE id = 'nobody'", 0),
        ("DELETE FROM models WHERE id = 'b'", 1),
        ("DELETE FROM models", 1),
        ("TRUNCATE models", 1),
        (
            "INSERT INTO models (id, active) VALUES ('a', false)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            1,
        ),
        (
            "INSERT INTO models (id) VALUES ('a')"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            0,
        ),
        (
            "WITH off AS (UPDATE models SET active = false WHERE id = 'a' RETURNING id)"
            " SELECT id FROM off",
            1,
        ),
        (MERGE.format("('a', false), ('b', true)"), 1),
        (MERGE.format("('a', true), ('b', false)"), 0),
        (MERGE.format("('x', true)") + " WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)", 1),
    ],
)
def test_what_writes_the_outbox(shared_fleet: str, statement: str, rows: int) -> None:
    """One row for each statement that changed a status or the membership, none for others."""
    with psycopg.connect(shared_fleet) as connection:
        if "MERGE" in statement and connection.info.server_version < 150000:
            pytest.skip("MERGE came with PostgreSQL 15")
        connection.execute(statement.encode())
        assert connection.execute(OUTBOX).fetchone() == (rows,)
        connection.rollback()


def test_an_unknown_active_counts_as_a_value(empty_pg: str) -> None:
    """In an adopted table `active` may be NULL; coming from it or going to it is a change."""
    run(
        empty_pg,
        f"CREATE TABLE models ({TEXT_ID}, active boolean)",
        "INSERT INTO models VALUES ('a', NULL)",
    )
    upgrade(empty_pg)
    for value, rows in (("NULL", 0), ("false", 1), ("NULL", 2), ("true", 3), ("NULL", 4)):
        run(empty_pg, f"UPDATE models SET active = {value}")
        assert run(empty_pg, OUTBOX) == [(rows,)]
    run(empty_pg, "UPDATE models SET id = 'b'")
    assert run(empty_pg, OUTBOX) == [(5,)]


def test_copy_writes_the_outbox(fleet: str) -> None:
    """Loading rows with COPY is an insert like any other."""
    with psycopg.connect(fleet) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY models (id) FROM STDIN") as copy:
            copy.write("x\ny\n")
        with cursor.copy("COPY models (id) FROM STDIN"):
            pass
    assert run(fleet, OUTBOX) == [(1,)]


def test_the_outbox_follows_the_transaction(fleet: str) -> None:
    """What is rolled back owes nothing; each statement that stays owes, with its transaction."""
    with psycopg.connect(fleet) as connection:
        connection.execute("DELETE FROM models")
        connection.rollback()
        connection.execute("UPDATE models SET active = false WHERE id = 'a'")
        connection.execute("UPDATE models SET active = true WHERE id = 'a'")
        row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert (
        run(fleet, "SELECT xid::text, settle FROM modelctl_outbox") == [(row and row[0], False)] * 2
    )


def test_a_replica_session_writes_the_outbox(fleet: str) -> None:
    """session_replication_role = replica silences ordinary triggers, not these."""
    run(
        fleet,
        "SET session_replication_role = replica",
        "UPDATE models SET active = true WHERE id = 'b'",
        "DELETE FROM models WHERE id = 'c'",
        "INSERT INTO models (id) VALUES ('x')",
        "TRUNCATE models",
    )
    assert run(fleet, OUTBOX) == [(4,)]


def test_other_programs_need_no_right_on_our_tables(fleet: str) -> None:
    """A role with rights on models alone goes on writing, and can do nothing else."""
    with psycopg.connect(fleet, autocommit=True) as connection:
        role = f"website_of_{connection.info.dbname}"
        connection.execute(
            f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON models TO {role}".encode()
        )
        try:
            connection.execute(f"SET SESSION AUTHORIZATION {role}".encode())
            connection.execute("UPDATE models SET active = NOT active")
            connection.execute("INSERT INTO models (id) VALUES ('x')")
            connection.execute("DELETE FROM models WHERE id = 'x'")
            connection.execute("TRUNCATE models")
            for denied in (
                "SELECT FROM modelctl.modelctl_outbox",
                "DELETE FROM modelctl.modelctl_outbox",
                "INSERT INTO modelctl.modelctl_outbox DEFAULT VALUES",
                "SELECT FROM modelctl.modelctl_events",
                "SELECT FROM modelctl.modelctl_holds",
                "SELECT modelctl.modelctl_enqueue()",
                "CREATE TEMP TABLE t (id text); CREATE TRIGGER t AFTER INSERT ON t"
                " EXECUTE FUNCTION modelctl.modelctl_enqueue()",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(denied.encode())
        finally:
            connection.execute("RESET SESSION AUTHORIZATION")
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
    assert run(fleet, OUTBOX) == [(4,)]


def test_a_shadowing_table_is_not_taken_for_the_outbox(fleet: str) -> None:
    """The trigger finds the outbox whatever the search_path or the temporary tables say."""
    with psycopg.connect(fleet) as connection:
        connection.execute("CREATE TEMP TABLE modelctl_outbox (id integer)")
        connection.execute("SET search_path = pg_temp, public")
        connection.execute("UPDATE models SET active = NOT active")
    assert run(fleet, OUTBOX) == [(1,)]


def test_a_change_that_cannot_be_queued_does_not_commit(fleet: str) -> None:
    """A change of status is refused rather than lost to the caches."""
    run(fleet, "ALTER TABLE modelctl_outbox ADD CHECK (id < 0)")  # as good as a full disk
    with pytest.raises(sa.exc.IntegrityError, match="modelctl_outbox"):
        run(fleet, "UPDATE models SET active = false")
    assert run(fleet, "SELECT count(*) FROM models WHERE active") == [(2,)]


@pytest.mark.parametrize("before", [0, 10])
def test_a_bulk_update_costs_little_more_than_without_the_trigger(fleet: str, before: int) -> None:
    """The join is never quadratic, in a fresh session or one that planned it for single rows."""
    run(fleet, "INSERT INTO models (id) SELECT 'm' || i FROM generate_series(1, 22000) i")
    # A change of no status: that is known only when every row has found its partner.
    update = "UPDATE models SET failure_count = failure_count + 1"

    def bulk() -> float:
        with psycopg.connect(fleet, autocommit=True) as connection:
            for _ in range(before):
                connection.execute(f"{update} WHERE id = 'm1'".encode())
            start = time.perf_counter()
            connection.execute(update.encode())
            return time.perf_counter() - start

    joined = bulk()
    run(fleet, "ALTER TABLE models DISABLE TRIGGER modelctl_update")
    assert joined < 10 * bulk() + 2  # 30 s and more when it is quadratic


# A model that is switched on is trusted again, and a plain disable is one by hand


TIME = "'2026-01-01T00:00:00.000Z'"
ODD = f"auto_disabled = true, disabled_until = {TIME}"  # what brings a model back by itself
DISABLED = f"{ODD}, disabled_at = {TIME}, disabled_by = 'rule', disabled_reason = 'why'"
KEPT = (
    "SELECT active, auto_disabled, disabled_until IS NULL, disabled_at IS NULL, disabled_by,"
    " disabled_reason, would_disable FROM models"
)
BACK = "SELECT active, auto_disabled, disabled_until, would_disable FROM models"


@pytest.fixture(params=[False, True])
def pragmas(url: str, request: pytest.FixtureRequest) -> list[str]:
    """Give what precedes the statements: on SQLite, recursive triggers off and on."""
    if not request.param:
        return []
    if kind(url) == "postgresql":
        pytest.skip("a setting of SQLite")
    return ["PRAGMA recursive_triggers = ON"]


@pytest.mark.parametrize("before", ["false", "NULL"])
def test_switching_on_by_hand_clears_why_it_was_off(
    url: str, before: str, pragmas: list[str]
) -> None:
    """After active = true, a later active = false by hand is a plain disable without a reason."""
    run(url, f"CREATE TABLE models ({TEXT_ID}, active boolean)")
    upgrade(url)
    run(
        url,
        *pragmas,
        "INSERT INTO models (id) VALUES ('a')",
        f"UPDATE models SET active = {before}, {DISABLED}",
        "UPDATE models SET would_disable = 'share'",
    )
    row = run(url, *pragmas, "UPDATE models SET active = true", KEPT)
    assert row == [(True, False, True, True, None, None, None)]
    row = run(url, *pragmas, "UPDATE models SET active = false", KEPT)
    assert row == [(False, False, True, True, None, None, None)]


def test_only_a_flip_clears(url: str) -> None:
    """Whoever switches off may say when it comes back; a change of anything else keeps that."""
    upgrade(url)
    kept = [(False, True, False, False, "rule", "why", None)]
    run(url, "INSERT INTO models (id) VALUES ('a')")
    assert run(url, f"UPDATE models SET active = false, {DISABLED}", KEPT) == kept
    assert run(url, "UPDATE models SET active = false", KEPT) == kept
    assert run(url, "UPDATE models SET failure_count = 7, id = 'b'", KEPT) == kept
    run(url, "DELETE FROM models", "INSERT INTO models (id) VALUES ('a')")
    row = run(url, f"UPDATE models SET active = true, would_disable = 'floor', {DISABLED}", KEPT)
    assert row == [(True, True, False, False, "rule", "why", "floor")]


def test_switching_on_keeps_when_it_last_came_back(url: str) -> None:
    """`recovered_at` is history: the statement that brings a model back may set it."""
    upgrade(url)
    run(url, "INSERT INTO models (id, active, auto_disabled) VALUES ('a', false, true)")
    read = "SELECT active, auto_disabled, recovered_at IS NULL FROM models"
    row = run(url, f"UPDATE models SET active = true, recovered_at = {TIME}", read)
    assert row == [(True, False, False)]
    assert run(url, "UPDATE models SET active = false", read) == [(False, False, False)]


@pytest.mark.parametrize("off", ["false", "NULL"])
@pytest.mark.parametrize("disabled_at", ["NULL", TIME])
def test_a_plain_disable_forgets_what_the_row_carried(
    url: str, off: str, disabled_at: str, pragmas: list[str]
) -> None:
    """What an active row has from elsewhere does not bring back what a person switched off."""
    run(url, f"CREATE TABLE models ({TEXT_ID}, active boolean)")
    upgrade(url)
    run(url, f"INSERT INTO models (id, active, disabled_at) VALUES ('a', true, {disabled_at})")
    run(url, f"UPDATE models SET would_disable = 'incident', {ODD}")
    row = run(url, *pragmas, f"UPDATE models SET active = {off}", BACK)
    assert row == [(False if off == "false" else None, False, None, None)]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("assign", "auto", "timed"),
    [
        # The health rule, `disable --for` and `disable`, which all say since when.
        (f"auto_disabled = true, disabled_at = {TIME}", True, False),
        (f"auto_disabled = false, disabled_at = {TIME}, disabled_until = {TIME}", False, True),
        (f"auto_disabled = false, disabled_at = {TIME}, disabled_until = NULL", False, False),
        # Another program, which does not.
        ("auto_disabled = true", True, False),
        ("auto_disabled = false, disabled_until = '2027-01-01T00:00:00.000Z'", False, True),
    ],
)
def test_a_disable_that_says_how_it_ends_is_kept(
    url: str, assign: str, auto: bool, timed: bool, odd: bool
) -> None:
    """One UPDATE switches off and says what brings the model back, whatever the row carried."""
    upgrade(url)
    run(url, "INSERT INTO models (id, would_disable) VALUES ('a', 'floor')")
    if odd:
        run(url, f"UPDATE models SET {ODD}")
        if "disabled_at" not in assign:
            auto = False  # then the flag is the old one, and a person comes first
        elif "disabled_until" not in assign:
            timed = True  # modelctl sets both
    ((active, automatic, until, would),) = run(
        url, f"UPDATE models SET active = false, {assign}", BACK
    )
    assert (active, automatic, until is not None, would) == (False, auto, timed, None)


def test_a_replica_session_clears_too(fleet: str) -> None:
    """The flip is seen under session_replication_role = replica as well."""
    with psycopg.connect(fleet) as connection:
        connection.execute(f"UPDATE models SET {DISABLED} WHERE id = 'b'".encode())
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE models SET active = true WHERE id = 'b'")
    assert (True, False, True, True, None, None, None) in run(fleet, KEPT)


# The cache (SQLite)


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
@pytest.mark.parametrize(
    ("statement", "emptied"),
    [
        ("INSERT INTO models (id) VALUES ('x')", True),
        ("INSERT INTO models (id) SELECT 'x' WHERE false", False),
        ("REPLACE INTO models (id, active) VALUES ('a', 0)", True),
        ("INSERT OR IGNORE INTO models (id) VALUES ('a')", False),
        (
            "INSERT INTO models (id, active) VALUES ('a', 0)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            True,
        ),
        (
            "INSERT INTO models (id, active) VALUES ('a', 1)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            False,
        ),
        ("UPDATE models SET active = 0 WHERE id = 'a'", True),
        ("UPDATE models SET active = 1 WHERE id = 'b'", True),
        ("UPDATE models SET active = 1 - active", True),
        ("UPDATE models SET active = active", False),
        ("UPDATE models SET id = 'z' WHERE id = 'b'", True),
        ("UPDATE models SET failure_count = 1, failure_reason = 'x'", False),
        ("DELETE FROM models WHERE id = 'b'", True),
        ("DELETE FROM models", True),
        ("DELETE FROM models WHERE id = 'nobody'", False),
    ],
)
def test_a_change_empties_the_sqlite_cache_in_its_transaction(
    sqlite_url: str, statement: str, emptied: bool, recursive: str
) -> None:
    """Values and leases go with the change of status, come back with a rollback, and else stay."""
    upgrade(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA recursive_triggers = {recursive}")
        connection.execute("INSERT INTO models (id, active) VALUES ('a', 1), ('b', 0)")
        connection.execute(
            "INSERT INTO modelctl_cache (key, value, nonce, expires_at)"
            " VALUES ('value', 1, NULL, 9e9), ('lease', NULL, 'n', 9e9)"
        )
        rows = "SELECT count(*) FROM modelctl_cache"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(statement)
        assert connection.execute(rows).fetchone() == (0 if emptied else 2,)
        connection.execute("ROLLBACK")
        assert connection.execute(rows).fetchone() == (2,)
