"""An upgrade takes over the table of an application and adds only what is missing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from modelctl.errors import InvalidConfigError
from modelctl.migrations import migrate
from tests.migrations.schemas import (
    NEEDED,
    OUTBOX,
    TEXT_ID,
    WEBSITE,
    WEBSITE_INSERT,
    columns,
    connected,
    execute,
    kind,
    snapshot,
    upgrade,
)

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


def test_adoption_adds_only_what_is_missing(url: str) -> None:
    """An application's table keeps its columns and rows, and gets ours beside them."""
    execute(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    own = columns(url)
    rows = execute(url, WEBSITE_ROWS)
    upgrade(url)
    after = columns(url)
    assert list(after)[: len(own)] == list(own)
    assert {name: after[name] for name in own} == own
    assert after.keys() == own.keys() | NEEDED.keys()
    assert execute(url, WEBSITE_ROWS) == rows
    added = "ejections, success_count, disabled_at, created_at IS NULL, updated_at IS NULL"
    assert execute(url, f"SELECT {added} FROM models") == [(0, 0, None, False, False)] * 2


RECOVERY_COLUMNS = ("disabled_until", "recovered_at", "would_disable")
RECOVERY = {
    "postgresql": ("timestamp", "timestamp with time zone", "varchar(80)"),
    "sqlite": ("DATETIME", "TEXT", "VARCHAR(80)"),
}


@pytest.mark.parametrize("named", [*RECOVERY_COLUMNS, None])
def test_adoption_keeps_the_columns_of_recovery(url: str, named: str | None) -> None:
    """Existing columns of recovery with a usable type keep their type and values."""
    types = dict(zip(RECOVERY_COLUMNS, RECOVERY[kind(url)], strict=True))
    own = {name: types[name] for name in types if named in (None, name)}
    body = ", ".join(f"{name} {declared}" for name, declared in own.items())
    values = "'2026-01-02 03:04:05'"
    execute(
        url,
        f"CREATE TABLE models ({TEXT_ID}, {body})",
        f"INSERT INTO models (id, {', '.join(own)}) VALUES ('a', {', '.join([values] * len(own))})",
    )
    before = columns(url)
    rows = execute(url, f"SELECT {', '.join(own)} FROM models")
    upgrade(url)
    after = columns(url)
    assert {name: after[name] for name in before} == before
    assert after.keys() == NEEDED.keys()
    assert execute(url, f"SELECT {', '.join(own)} FROM models") == rows


def test_adoption_does_not_rewrite_the_table(empty_pg: str) -> None:
    """Columns are added in the catalog alone, however many rows there are."""
    execute(empty_pg, WEBSITE["postgresql"], WEBSITE_INSERT)
    file = "SELECT pg_relation_filenode('models')"
    before = execute(empty_pg, file)
    upgrade(empty_pg)
    assert execute(empty_pg, file) == before


def test_the_application_goes_on_unchanged(url: str, tmp_path: Path) -> None:
    """The statements of the application do with modelctl what they did without it."""
    other = f"sqlite:///{tmp_path / 'other.db'}"
    execute(other, WEBSITE["sqlite"], WEBSITE_INSERT, *WEBSITE_WORK)
    execute(url, WEBSITE[kind(url)], WEBSITE_INSERT)
    upgrade(url)
    execute(url, *WEBSITE_WORK)
    keep = "SELECT id, active, consecutive_failures, failure_reason, slug FROM models ORDER BY id"
    assert execute(url, keep) == execute(other, keep)


def test_adoption_without_active_counts_every_row(url: str) -> None:
    """A table that knows no `active` gets it like any other missing column."""
    execute(
        url, "CREATE TABLE models (id varchar(20) PRIMARY KEY)", "INSERT INTO models VALUES ('a')"
    )
    upgrade(url)
    assert execute(url, "SELECT id, active FROM models") == [("a", True)]


def test_adoption_accepts_a_unique_id(url: str) -> None:
    """A unique index on id alone is as good as a primary key."""
    execute(
        url,
        "CREATE TABLE models (nr integer PRIMARY KEY, id text)",
        "CREATE UNIQUE INDEX models_by_id ON models (id)",
    )
    assert upgrade(url).up_to_date


def test_adoption_of_a_strict_table(sqlite_url: str) -> None:
    """A STRICT table of SQLite, which knows few types, is adopted too."""
    if sqlite3.sqlite_version_info < (3, 37):
        pytest.skip("this SQLite has no STRICT tables")
    execute(sqlite_url, "CREATE TABLE models (id TEXT PRIMARY KEY) STRICT")
    upgrade(sqlite_url)
    execute(sqlite_url, "INSERT INTO models (id) VALUES ('a')")
    assert execute(sqlite_url, "SELECT active, auto_disabled FROM models") == [(1, 0)]


def test_adoption_of_a_partitioned_table(empty_pg: str) -> None:
    """Statements on a partitioned table write one row in the outbox, whatever they touch."""
    execute(
        empty_pg,
        "CREATE TABLE models (id text PRIMARY KEY, active boolean) PARTITION BY HASH (id)",
        "CREATE TABLE p0 PARTITION OF models FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE p1 PARTITION OF models FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    upgrade(empty_pg)
    execute(
        empty_pg,
        "INSERT INTO models (id, active) SELECT i::text, i > 9 FROM generate_series(1, 20) i",
        "UPDATE models SET active = NOT active, id = id || 'x'",
    )
    assert execute(empty_pg, OUTBOX) == [(2,)]


def test_adoption_across_schemas(empty_pg: str) -> None:
    """The table is found by the search_path; our own tables are where they are said to be."""
    execute(
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
    execute(empty_pg, WEBSITE_INSERT.replace("models", "shop.models"))  # with another search_path
    assert execute(empty_pg, "SELECT count(*) FROM other_fleet.modelctl_outbox") == [(1,)]
    schemas = "SELECT DISTINCT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
    found = execute(empty_pg, f"{schemas} WHERE relname LIKE 'modelctl!_%' ESCAPE '!' ORDER BY 1")
    assert found == [("other_fleet",), ("shop",)]  # shop: indexes of its table


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
    (
        ("postgresql",),
        "CREATE TYPE entry AS (id text); CREATE TABLE models OF entry (PRIMARY KEY (id))",
        r"composite type.* ALTER TABLE public\.models NOT OF",
    ),
    (
        ("postgresql",),
        f"CREATE TABLE models ({TEXT_ID}); CREATE TABLE archive (rows models[])",
        "the column archive.rows has rows of public.models",
    ),
    (
        ("postgresql",),
        f"CREATE TABLE models ({TEXT_ID}, {', '.join(f'c{n} int' for n in range(1590))})",
        "has had 1,591 columns, 20 are needed, and PostgreSQL takes 1,600",
    ),
    (
        ("postgresql",),
        f"CREATE TABLE models ({TEXT_ID}); CREATE TRIGGER modelctl_update BEFORE UPDATE ON models"
        " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "the trigger modelctl_update of public.models belongs to another program",
    ),
    (
        ("sqlite",),
        f"CREATE TABLE models ({TEXT_ID});\n"
        "CREATE TRIGGER Modelctl_update AFTER UPDATE ON models BEGIN SELECT 1; END",
        "the trigger modelctl_update belongs to another program",
    ),
    (
        ("postgresql",),
        f"CREATE TABLE models ({TEXT_ID}, success_count bigint GENERATED ALWAYS AS IDENTITY)",
        "success_count is a generated column, so modelctl could not write it",
    ),
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
    execute(url, *table.split(";\n"))
    before = snapshot(url)
    with pytest.raises(InvalidConfigError, match=f"(?i){why}") as caught:
        upgrade(url)
    assert caught.value.hint
    assert snapshot(url) == before
