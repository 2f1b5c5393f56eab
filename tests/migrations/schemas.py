"""Databases before and after an upgrade, and what is in their catalogs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from modelctl.migrations import migrate
from modelctl.migrations.results import SchemaStatus
from modelctl.schema.declared import MODELS_COLUMNS
from tests import fleets

NEEDED = MODELS_COLUMNS
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


def execute(url: str, *statements: str) -> list[Any]:
    """Run each statement in a transaction of its own; return the rows of the last."""
    rows: list[Any] = []
    for statement in statements:
        rows = fleets.sql(url, statement)
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
    return {row[0]: row[1:] for row in execute(url, query)}


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


def kind(url: str) -> str:
    """Return `sqlite` or `postgresql`."""
    return url.partition(":")[0]


TEXT_ID = "id text PRIMARY KEY"


def migrated_fleet(url: str) -> str:
    """Migrate a database, add a few models and empty the outbox."""
    upgrade(url)
    execute(
        url,
        "ALTER TABLE models ADD COLUMN settings json DEFAULT '{}'",
        "INSERT INTO models (id, active) VALUES ('a', true), ('b', false), ('c', true)",
        "TRUNCATE modelctl_outbox",
    )
    return url


OUTBOX = "SELECT count(*) FROM modelctl_outbox"
