"""What other tools and people do to the tables is found and repaired, and writes go on meanwhile."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psycopg
import pytest

from modelctl import Fleet, InvalidConfigError, MissingSchemaError, ModelctlError, ModelStatus
from modelctl.doctor.trial import try_triggers
from modelctl.schema.declared import INDEXES, MODELS_COLUMNS, TABLES
from modelctl.schema.triggers import FUNCTIONS, SQLITE, TRIGGERS
from tests import commands, fleets, servers
from tests.fleets import is_sqlite, opened, sql
from tests.servers import Postgres

FLIP = "UPDATE models SET active = NOT active WHERE id = 'a'"
OWN = {kind: sorted(tables) for kind, tables in TABLES.items()}


def differs(fleet: Fleet) -> list[str]:
    """Return what `db status` says, and hold that it agrees with `up_to_date`."""
    found = fleet.schema_status()
    words = [*found.obstacles, *found.findings]
    assert found.up_to_date == (not words)
    return words


def mended(fleet: Fleet) -> None:
    """Upgrade, and hold that nothing differs then, that all works, and that it is idempotent."""
    assert fleet.upgrade(dry_run=True).findings
    assert fleet.upgrade().repaired
    assert differs(fleet) == []
    assert fleet.upgrade().repaired == ()
    works(fleet)


def works(fleet: Fleet) -> None:
    """Hold that a change is made, logged and queued, and undone."""
    assert fleet._store.schema(try_triggers) == []
    fleet.enable("a")
    before = fleet.count(fresh=True).active
    fleet.disable("a")
    fleet.record_failure("a", "parse-error", reason="no")
    assert fleet.count().active == before - 1
    fleet.enable("a")
    assert fleet.count().active == before
    assert [event.event for event in fleet.events()][:2] == ["enabled", "disabled"]
    fleet.pause(60)
    fleet.resume()
    fleet.recover()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Give the URL of a database with a few models."""
    name = "pg_database" if request.param == "postgresql" else "sqlite_database"
    found = str(request.getfixturevalue(name))
    with opened(found) as fleet:
        fleets.seed(fleet, "abc")
    return found


@pytest.fixture
def pg(pg_database: str) -> str:
    """Give the URL of a PostgreSQL database with a few models."""
    with opened(pg_database) as fleet:
        fleets.seed(fleet, "abc")
    return pg_database


both = pytest.mark.parametrize("url", ["postgresql", "sqlite"], indirect=True)
DAMAGE = [
    *(("postgresql", f"DROP TABLE modelctl.{table}") for table in OWN["postgresql"]),
    *(("sqlite", f"DROP TABLE {table}") for table in OWN["sqlite"]),
    *(("postgresql", f"DROP INDEX {name}") for name, i in INDEXES.items() if i.postgresql),
    *(("sqlite", f"DROP INDEX {name}") for name, i in INDEXES.items() if i.sqlite),
    *(("postgresql", f"DROP TRIGGER {name} ON models") for name in TRIGGERS),
    *(("postgresql", f"ALTER TABLE models DISABLE TRIGGER {name}") for name in TRIGGERS),
    *(("postgresql", f"ALTER TABLE models ENABLE TRIGGER {name}") for name in TRIGGERS),
    *(("postgresql", f"ALTER TABLE models ENABLE REPLICA TRIGGER {name}") for name in TRIGGERS),
    *(("sqlite", f"DROP TRIGGER {name}") for name in SQLITE),
    *(("postgresql", f"DROP FUNCTION modelctl.{name} CASCADE") for name in FUNCTIONS),
    *(("postgresql", f"GRANT EXECUTE ON FUNCTION modelctl.{name} TO PUBLIC") for name in FUNCTIONS),
    *(("postgresql", f"ALTER FUNCTION modelctl.{name} RESET search_path") for name in FUNCTIONS),
    ("postgresql", "ALTER FUNCTION modelctl.modelctl_enqueue SECURITY INVOKER"),
    (
        "postgresql",
        "CREATE OR REPLACE FUNCTION modelctl.modelctl_enqueue() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'",
    ),
    *(
        ("postgresql", f"ALTER TABLE modelctl.{table} DROP COLUMN {column}")
        for table, columns in TABLES["postgresql"].items()
        for column in columns
    ),
    *(
        ("sqlite", f"ALTER TABLE {table} DROP COLUMN {column}")
        for table, columns in TABLES["sqlite"].items()
        for column, definition in columns.items()
        if "PRIMARY KEY" not in definition.sqlite
        and column not in ("model_id", "at", "operation")  # SQLite refuses: they have an index
    ),
    *(
        ("postgresql", f"ALTER TABLE models DROP COLUMN {name} CASCADE")
        for name in MODELS_COLUMNS
        if name != "id"
    ),
    ("postgresql", "ALTER TABLE modelctl_outbox ALTER COLUMN id DROP IDENTITY"),
    ("postgresql", "ALTER TABLE modelctl_outbox ALTER COLUMN due DROP DEFAULT"),
    ("postgresql", "ALTER TABLE modelctl_events ALTER COLUMN at DROP DEFAULT"),
    ("postgresql", "ALTER TABLE modelctl_holds ALTER COLUMN reason SET NOT NULL"),
    ("postgresql", "ALTER TABLE modelctl_state DROP CONSTRAINT modelctl_state_pkey"),
    ("postgresql", "ALTER TABLE modelctl_holds DROP CONSTRAINT modelctl_holds_pkey"),
    ("postgresql", "ALTER TABLE modelctl_events DROP CONSTRAINT modelctl_events_pkey"),
    *(
        ("postgresql", f"ALTER TABLE modelctl.{what}")
        for what in (
            "modelctl_outbox ALTER settle SET DEFAULT true",
            "modelctl_outbox ALTER due SET DEFAULT 'infinity'",
            "modelctl_outbox ALTER xid SET DEFAULT '3'",
            "modelctl_outbox ALTER settle DROP DEFAULT, ALTER settle DROP NOT NULL",
            "modelctl_outbox ALTER due DROP NOT NULL",
            "modelctl_outbox ALTER due TYPE timestamp",
            "modelctl_outbox ALTER settle DROP DEFAULT, ALTER settle TYPE integer USING 0",
            "modelctl_outbox ALTER id TYPE smallint",
            "modelctl_outbox ALTER id DROP IDENTITY;ALTER TABLE modelctl_outbox ALTER id TYPE text",
            "modelctl_outbox ADD extra text NOT NULL DEFAULT 'x';"
            "ALTER TABLE modelctl_outbox ALTER extra DROP DEFAULT",
            "modelctl_outbox ADD CHECK (settle IS NULL) NOT VALID",
            "modelctl_outbox RENAME TO elsewhere",
            "modelctl_outbox SET SCHEMA public",
            "modelctl_outbox SET UNLOGGED",
            "modelctl_events ALTER details TYPE text",
            "modelctl_events ALTER reason TYPE varchar(3) USING ''",
            "modelctl_events ALTER at SET DEFAULT '2000-01-01'",
            "modelctl_events ALTER at DROP DEFAULT, ALTER at TYPE date",
            "modelctl_events ALTER id DROP IDENTITY;ALTER TABLE modelctl_events ALTER id TYPE text",
            "modelctl_events ALTER model_id DROP NOT NULL",
            "modelctl_events DROP CONSTRAINT modelctl_events_pkey, ADD PRIMARY KEY (id, at)",
            "modelctl_events ADD CHECK (event <> 'disabled') NOT VALID",
            "modelctl_state ALTER value TYPE varchar(90)",
            "modelctl_holds ALTER until DROP NOT NULL",
            "modelctl_version ALTER version_num TYPE text",
            "modelctl_version RENAME version_num TO number",
        )
    ),
    ("postgresql", "CREATE RULE keep AS ON INSERT TO modelctl_outbox DO INSTEAD NOTHING"),
    ("postgresql", "CREATE RULE keep AS ON DELETE TO modelctl_outbox DO INSTEAD NOTHING"),
    (
        "postgresql",
        "INSERT INTO modelctl_outbox (settle) SELECT false FROM generate_series(1, 9);"
        "ALTER SEQUENCE modelctl_outbox_id_seq RESTART 1",
    ),
    ("postgresql", "ALTER SEQUENCE modelctl_events_id_seq RESTART 1"),
    ("postgresql", "ALTER SEQUENCE modelctl_events_id_seq MAXVALUE 9"),
    (
        "postgresql",
        "CREATE TRIGGER second AFTER UPDATE ON models EXECUTE FUNCTION modelctl.modelctl_enqueue()",
    ),
    ("postgresql", "ALTER TRIGGER modelctl_update ON models RENAME TO second"),
    ("postgresql", "ALTER FUNCTION modelctl.modelctl_enqueue SET SCHEMA public"),
    ("postgresql", "ALTER FUNCTION modelctl.modelctl_enqueue RENAME TO other"),
    ("postgresql", "ALTER FUNCTION modelctl.modelctl_enqueue OWNER TO pg_monitor"),
    ("postgresql", "DROP SCHEMA modelctl CASCADE"),
    ("postgresql", "DELETE FROM modelctl.modelctl_version"),
    ("sqlite", "DELETE FROM modelctl_version"),
]

FAIL_CLOSED = (
    "outbox ALTER COLUMN id DROP IDENTITY",
    "outbox ALTER COLUMN due DROP DEFAULT",
    "outbox ALTER id DROP IDENTITY",
    "outbox ALTER settle DROP DEFAULT, ALTER settle TYPE",
    "outbox ADD",
    "outbox_id_seq",
    "OWNER TO",
)


@pytest.mark.parametrize(("url", "statement"), DAMAGE, indirect=["url"])
def test_what_is_dropped_one_by_one(url: str, statement: str) -> None:
    """A dropped object is reported and restored by an upgrade; on PostgreSQL writes go on meanwhile."""
    sql(url, statement)
    with opened(url) as fleet:
        if not is_sqlite(url) and "active CASCADE" not in statement:
            # What keeps rows out of the outbox is no name that is not found.
            strict = any(words in statement for words in FAIL_CLOSED)
            with suppress(psycopg.Error) if strict else nullcontext():
                sql(url, FLIP)
                sql(url, FLIP)
        assert differs(fleet)
        mended(fleet)
        rows = fleet.list_models()
        assert [row.id for row in rows] == ["a", "b", "c"]


def test_rows_that_stay_in_the_outbox(pg: str, redis_url: str) -> None:
    """Where another trigger keeps them, a drain ends with an error, and `doctor` says so."""
    sql(
        pg,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    )
    sql(
        pg,
        "CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON modelctl_outbox"
        " FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    with opened(pg, redis_url=redis_url) as fleet:
        sql(pg, FLIP)
        with pytest.raises(ModelctlError, match="stay in modelctl_outbox"):
            fleet.drain()
        assert fleet.count().active == 2
        [triggers] = [check for check in fleet.doctor().checks if check.check == "triggers"]
        assert not triggers.ok
        assert "cannot be changed" in triggers.detail


@both
def test_an_interrupted_migration_is_completed(url: str) -> None:
    """Whatever an interrupted migration has left, one upgrade completes it."""
    sql(url, "DROP TABLE modelctl_events")
    sql(url, "DROP TABLE modelctl_version")
    sql(url, "DROP INDEX modelctl_models_disabled_until")
    with opened(url) as fleet:
        assert len(differs(fleet)) >= 3
        mended(fleet)


def test_repairs_keep_what_is_there(pg: str) -> None:
    """The rows of tables that are repaired stay, and numbers go on where they were."""
    with opened(pg) as fleet:
        fleet.pause(3600, provider="p", reason="why")
        before = fleet.events()
        sql(pg, "ALTER TABLE modelctl_events ALTER COLUMN id DROP IDENTITY")
        sql(pg, "ALTER TABLE modelctl_events DROP COLUMN actor")
        sql(pg, "ALTER TABLE modelctl_holds DROP COLUMN reason")
        fleet.upgrade()
        assert [e.id for e in fleet.events()] == [e.id for e in before]
        assert [h.provider for h in fleet.holds()] == ["p"]
        fleet.disable("a")
        assert fleet.events()[0].id == before[0].id + 1


def test_a_repair_rewrites_no_table_and_clears_the_count(pg: str, redis_url: str) -> None:
    """The application's table keeps its file, and what was cached while a trigger was off is gone."""
    file = "SELECT pg_relation_filenode('models')"
    before = sql(pg, file)
    with opened(pg, redis_url=redis_url) as fleet:
        fleet.drain()
        assert (fleet.count().active, fleet.count().source) == (3, "cache")
        sql(pg, "ALTER TABLE models DISABLE TRIGGER modelctl_update")
        sql(pg, FLIP)
        assert fleet.count().active == 3
        for column in ("ejections", "would_disable", "updated_at"):
            sql(pg, f"ALTER TABLE models DROP COLUMN {column}")
        fleet.upgrade()
        assert fleet.count().active == 2
    assert sql(pg, file) == before


# The columns of models


@both
@pytest.mark.parametrize(
    "column", ["active", "id", "auto_disabled", "would_disable", "disabled_at"]
)
def test_a_renamed_column(url: str, column: str) -> None:
    """The application goes on under the new name; an upgrade adds the column, and no model comes back."""
    with opened(url) as fleet:
        fleet.disable("b", reason="by hand")
    sql(url, f"ALTER TABLE models RENAME COLUMN {column} TO renamed")
    key, on = (("renamed", "active"), ("id", "renamed"))[column == "active"]
    if column not in ("id", "active"):
        key, on = "id", "active"
    for value in (False, True, False):
        sql(url, f"UPDATE models SET {on} = ? WHERE {key} = 'c'", value)
        sql(url, f"UPDATE models SET display_name = 'x' WHERE {key} = 'c'")
    sql(url, f"INSERT INTO models ({key}, display_name, provider) VALUES ('d', '', '')")
    sql(url, f"DELETE FROM models WHERE {key} = 'd'")
    with opened(url) as fleet:
        assert any(column in words for words in differs(fleet))
        if column == "id":
            with pytest.raises(InvalidConfigError, match="no column id"):
                fleet.upgrade()
            return
        mended(fleet)
        assert [(m.id, m.active) for m in fleet.list_models()] == [
            ("a", True),
            ("b", False),
            ("c", False),
        ]
        if column == "active":
            assert any("renamed" in words for words in fleet.upgrade().repaired) is False


@pytest.mark.parametrize("off", ["", "a", "ab", "abc"])
def test_a_renamed_column_is_filled_whatever_most_rows_are(pg: str, off: str) -> None:
    """Whether few or most are off, and also where a deferred trigger of the application waits."""
    sql(pg, "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    sql(
        pg,
        "CREATE CONSTRAINT TRIGGER audit AFTER UPDATE ON models DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION audit()",
    )
    with opened(pg) as fleet:
        if off:
            fleet.disable(*off)
        sql(pg, "ALTER TABLE models RENAME COLUMN active TO renamed")
        mended(fleet)
        assert [m.id for m in fleet.list_models(status="disabled")] == [*off.replace("a", "")]
        sql(pg, "INSERT INTO models (id) VALUES ('new')")
        assert fleet.show("new").status is ModelStatus.ACTIVE


def test_active_was_dropped(pg: str) -> None:
    """What modelctl had switched off stays off when the column comes back."""
    with opened(pg) as fleet:
        fleet.disable("b", reason="by hand")
        fleets.trip(fleet, "c")
        sql(pg, "ALTER TABLE models DROP COLUMN active CASCADE")
        sql(pg, "UPDATE models SET display_name = 'x'")
        mended(fleet)
        assert [str(m.status) for m in fleet.list_models()] == [
            "active",
            "disabled",
            "auto-disabled",
        ]


def test_a_manual_disable_stays_one_without_a_column(pg: str) -> None:
    """Where a column is gone, the triggers still see to the others: nothing comes back by itself."""
    sql(pg, "ALTER TABLE models DROP COLUMN would_disable")
    sql(pg, "UPDATE models SET auto_disabled = true WHERE id = 'a'")
    sql(pg, FLIP)
    assert sql(pg, "SELECT active, auto_disabled FROM models WHERE id = 'a'") == [(False, False)]
    sql(pg, "UPDATE models SET disabled_by = 'x', disabled_reason = 'y' WHERE id = 'a'")
    sql(pg, FLIP)
    read = "SELECT active, disabled_by, disabled_reason FROM models WHERE id = 'a'"
    assert sql(pg, read) == [(True, None, None)]


# The table and its schema


def test_the_schema_of_the_application_is_renamed(pg: str) -> None:
    """Writes go on and are queued; modelctl says where the table went and never makes another."""
    sql(pg, "CREATE SCHEMA app")
    sql(pg, "ALTER TABLE models SET SCHEMA app")
    there = f"{pg}?options=-csearch_path%3Dapp"
    with opened(there) as fleet:
        assert differs(fleet) == []
        assert fleet.schema_status().table == "app.models"
    sql(pg, "ALTER SCHEMA app RENAME TO shop")
    queued = sql(pg, "SELECT count(*) FROM modelctl_outbox")
    sql(pg, FLIP.replace("models", "shop.models"))
    assert sql(pg, "SELECT count(*) FROM modelctl_outbox") == [(queued[0][0] + 1,)]
    with opened(there) as fleet:
        with pytest.raises(MissingSchemaError):
            fleet.count()
        assert "shop.models" in "".join(differs(fleet))
        with pytest.raises(InvalidConfigError, match=r"shop\.models"):
            fleet.upgrade()
    with opened(f"{pg}?options=-csearch_path%3Dshop") as fleet:
        assert differs(fleet) == []
        works(fleet)


@both
def test_the_table_is_renamed(url: str) -> None:
    """Writes go on; an upgrade makes no new table beside it, and all is well when it is back."""
    sql(url, "ALTER TABLE models RENAME TO models_v2")
    sql(url, FLIP.replace("models", "models_v2"))
    with opened(url) as fleet:
        assert "models_v2" in "".join(differs(fleet))
        with pytest.raises(InvalidConfigError, match="models_v2"):
            fleet.upgrade()
    sql(url, "ALTER TABLE models_v2 RENAME TO models")
    with opened(url) as fleet:
        assert differs(fleet) == []
        works(fleet)


def test_a_table_is_swapped(pg: str, redis_url: str) -> None:
    """A copy made by LIKE INCLUDING ALL has no triggers; an upgrade puts them on it."""
    with opened(pg, redis_url=redis_url) as fleet:
        fleet.drain()
        assert (fleet.count().active, fleet.count().source) == (3, "cache")
        sql(pg, "CREATE TABLE models_new (LIKE models INCLUDING ALL)")
        sql(pg, "INSERT INTO models_new SELECT * FROM models WHERE id <> 'c'")
        sql(pg, "ALTER TABLE models RENAME TO models_old")
        sql(pg, "ALTER TABLE models_new RENAME TO models")
        sql(pg, FLIP)
        sql(pg, FLIP)
        assert "models_old" in "".join(differs(fleet))
        mended(fleet)
        assert fleet.count().active == 2
        sql(pg, "DROP TABLE models_old")
        assert differs(fleet) == []


def test_a_table_is_swapped_in_sqlite(sqlite_database: str) -> None:
    """After SQLite's way to change a table, fill a new one and drop the old, an upgrade repairs it."""
    url = sqlite_database
    with opened(url) as fleet:
        fleets.seed(fleet, "abc")
        assert fleet.count().active == 3
        [(create,)] = sql(url, "SELECT sql FROM sqlite_master WHERE name = 'models'")
        sql(url, create.replace("TABLE models", "TABLE new_models", 1))
        sql(url, "INSERT INTO new_models SELECT * FROM models WHERE id <> 'c'")
        sql(url, "DROP TABLE models")
        sql(url, "ALTER TABLE new_models RENAME TO models")
        sql(url, FLIP)
        sql(url, FLIP)
        assert "triggers" in "".join(differs(fleet))
        mended(fleet)
        assert fleet.count().active == 2


def test_the_own_schema_is_renamed(pg: str) -> None:
    """Writes go on into the outbox beside the function; an upgrade names the fleet of the table."""
    sql(pg, "ALTER SCHEMA modelctl RENAME TO kept")
    [(before,)] = sql(pg, "SELECT count(*) FROM kept.modelctl_outbox")
    sql(pg, FLIP)
    assert sql(pg, "SELECT count(*) FROM kept.modelctl_outbox") == [(before + 1,)]
    with opened(pg) as fleet:
        assert 'database.schema = "kept"' in "".join(differs(fleet))
        with pytest.raises(InvalidConfigError, match="kept"):
            fleet.upgrade()
    with opened(pg, database_schema="kept") as fleet:
        assert differs(fleet) == []
        works(fleet)


def test_another_table_is_found_first(pg: str) -> None:
    """`db status` names the table that the search path finds, with its schema, and the table of modelctl."""
    sql(pg, "CREATE SCHEMA postgres")  # "$user" comes first in the search path
    sql(pg, "CREATE TABLE postgres.models (id text PRIMARY KEY)")
    with opened(pg) as fleet:
        found = fleet.schema_status()
        assert (found.table, found.up_to_date) == ("postgres.models", False)
        assert "public.models" in "".join(differs(fleet))
    sql(pg, "DROP TABLE postgres.models")
    sql(pg, "CREATE VIEW postgres.models AS SELECT * FROM public.models WHERE active")
    with opened(pg) as fleet:
        assert "postgres.models is a view" in "".join(differs(fleet))
        with pytest.raises(InvalidConfigError, match=r"postgres\.models is a view"):
            fleet.upgrade()


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW", "TABLE"])
def test_what_only_has_the_name_is_not_counted(pg: str, redis_url: str, kind: str) -> None:
    """A view or other table that only has the name models is an error, and its number is not cached."""
    sql(pg, "CREATE SCHEMA tenant")
    sql(pg, f"CREATE {kind} tenant.models AS SELECT * FROM public.models WHERE id <> 'b'")
    with (
        opened(pg, redis_url=redis_url) as fleet,
        opened(f"{pg}?options=-csearch_path%3Dtenant", redis_url=redis_url) as lost,
    ):
        for _ in range(2):
            with pytest.raises(InvalidConfigError, match="models"):
                lost.count()
        with pytest.raises(InvalidConfigError, match="models"):
            lost.count(fresh=True)
        if kind == "MATERIALIZED VIEW":
            with pytest.raises(InvalidConfigError, match="no table that can be used"):
                lost.disable("a")
        assert fleet.count().active == 3


@both
def test_a_table_without_triggers_is_not_cached(url: str, redis_url: str) -> None:
    """After a swap nothing would clear the number when the website writes on."""
    with opened(url, **({} if is_sqlite(url) else {"redis_url": redis_url})) as fleet:
        if not is_sqlite(url):
            fleet.drain()
        assert [fleet.count().source for _ in range(2)] == ["database", "cache"]
        if is_sqlite(url):
            sql(url, "CREATE TABLE swapped AS SELECT * FROM models WHERE id <> 'c'")
        else:
            sql(url, "CREATE TABLE swapped (LIKE models INCLUDING ALL)")
            sql(url, "INSERT INTO swapped SELECT * FROM models WHERE id <> 'c'")
        sql(url, "DROP TABLE models")
        sql(url, "ALTER TABLE swapped RENAME TO models")
        if not is_sqlite(url):
            fleet.drain()
        for active in (2, 1, 2):
            for _ in range(2):
                assert (fleet.count().active, fleet.count().source) == (active, "database")
            sql(url, FLIP)


def test_a_role_that_quotes_everything(pg: str) -> None:
    """Settings of the role do not change what the comparison with the catalogue finds."""
    with opened(f"{pg}?options=-c%20quote_all_identifiers%3Don") as fleet:
        assert differs(fleet) == []
        assert fleet.upgrade().repaired == ()


# What stands in the way


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (["CREATE RULE keep AS ON DELETE TO models DO INSTEAD NOTHING"], "rule keep"),
        (["CREATE TABLE child () INHERITS (models)"], "inherit from it .*child"),
        (
            [
                "CREATE TABLE parent (id text, active boolean)",
                "ALTER TABLE models INHERIT parent",
            ],
            r"inherits from .*parent",
        ),
    ],
)
@pytest.mark.parametrize("adopted", [False, True])
def test_tables_that_triggers_do_not_reach(
    empty_pg: str, statements: list[str], why: str, adopted: bool
) -> None:
    """Rules and inheritance are refused in words, before and after modelctl came."""
    sql(empty_pg, "CREATE TABLE models (id text PRIMARY KEY, active boolean)")
    with opened(empty_pg) as fleet:
        if adopted:
            fleet.upgrade()
        for statement in statements:
            sql(empty_pg, statement)
        with pytest.raises(InvalidConfigError, match=why):
            fleet.upgrade()
        dry = fleet.upgrade(dry_run=True)
        assert len(dry.obstacles) == 1


def test_a_partition_is_refused(empty_pg: str) -> None:
    """Statements on the table above fire no statement triggers of a partition."""
    sql(empty_pg, "CREATE TABLE every (id text PRIMARY KEY, active boolean) PARTITION BY HASH (id)")
    sql(
        empty_pg,
        "CREATE TABLE models PARTITION OF every FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    with opened(empty_pg) as fleet, pytest.raises(InvalidConfigError, match="is a partition"):
        fleet.upgrade()


def test_a_partitioned_table_works(empty_pg: str) -> None:
    """On an adopted partitioned table every command works and changes are queued."""
    sql(
        empty_pg,
        "CREATE TABLE models (id text PRIMARY KEY, active boolean DEFAULT true) PARTITION BY HASH (id)",
    )
    for part in (0, 1):
        sql(
            empty_pg,
            f"CREATE TABLE p{part} PARTITION OF models"
            f" FOR VALUES WITH (MODULUS 2, REMAINDER {part})",
        )
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        assert differs(fleet) == []
        fleets.seed(fleet, "abcdef")
        sql(empty_pg, "UPDATE models SET active = false WHERE id IN ('b', 'c')")
        assert fleet.count().active == 4
        fleets.trip(fleet, "d")
        assert fleet.recover(cooldown=0).recovered == ("d",)
        works(fleet)


def test_a_table_without_rowid_works(sqlite_database: str, tmp_path: Path) -> None:
    """SQLite's other kind of table is adopted as well."""
    path = tmp_path / "rowid.db"
    path.touch()
    url = f"sqlite:///{path}"
    sql(url, "CREATE TABLE models (id TEXT PRIMARY KEY, active INTEGER DEFAULT 1) WITHOUT ROWID")
    with opened(url) as fleet:
        fleet.upgrade()
        fleets.seed(fleet, "abc")
        sql(url, "UPDATE models SET active = 0 WHERE id = 'b'")
        assert fleet.count().active == 2
        works(fleet)


@both
def test_something_else_has_a_name_of_ours(url: str) -> None:
    """A view in the place of an own table is refused in words; nothing is changed."""
    own = "" if is_sqlite(url) else "modelctl."
    sql(url, f"DROP TABLE {own}modelctl_state")
    sql(url, f"CREATE VIEW {own}modelctl_state AS SELECT 'x' AS name")
    with opened(url) as fleet:
        assert "modelctl_state is a view" in "".join(differs(fleet))
        with pytest.raises(InvalidConfigError, match="modelctl_state is a view"):
            fleet.upgrade()


def test_the_dry_run_says_what_would_be_done(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run on an application's table says what would be added, or what prevents it with exit 3."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    sql(empty_pg, "CREATE TABLE models (id text PRIMARY KEY, provider text, active boolean)")
    result = commands.run("db", "upgrade", "--dry-run")
    assert result.code == 0
    assert "differs: public.models has no columns display_name, auto_disabled" in result.err
    assert commands.run("db", "status").code == 7
    sql(empty_pg, "ALTER TABLE models ADD COLUMN ejections smallint")
    result = commands.run("db", "upgrade", "--dry-run", "-o", "json")
    assert (result.code, result.err) == (3, "")
    [why] = result.json["obstacles"]
    assert "ejections is smallint" in why
    commands.run("db", "upgrade").failed(3, "ejections is smallint")


def test_a_role_that_may_not_is_told_before(postgres: Postgres, pg: str) -> None:
    """An upgrade by a role that does not own the table is refused before anything is changed."""
    sql(pg, "CREATE ROLE stranger LOGIN")
    try:
        sql(pg, "GRANT SELECT ON models TO stranger")
        sql(pg, "GRANT USAGE ON SCHEMA modelctl TO stranger")
        sql(pg, "GRANT SELECT ON modelctl_version TO stranger")
        sql(pg, "DROP TABLE modelctl_state")
        with opened(pg.replace("postgres@", "stranger@")) as fleet:
            with pytest.raises(InvalidConfigError, match=r"stranger does not own public\.models"):
                fleet.upgrade()
            assert "does not own" in "".join(fleet.upgrade(dry_run=True).obstacles)
    finally:
        sql(pg, "DROP OWNED BY stranger")
        sql(pg, "DROP ROLE stranger")


def test_a_role_that_may_not_read_is_told_whom_to_ask(pg: str) -> None:
    """Without rights on modelctl's schema, upgrade, status, uninstall and detach name the role that owns it."""
    sql(pg, "CREATE ROLE stranger LOGIN")
    try:
        with opened(pg.replace("postgres@", "stranger@")) as fleet:
            for look in (fleet.upgrade, fleet.schema_status, fleet.uninstall):
                with pytest.raises(InvalidConfigError, match="stranger may not read") as caught:
                    look()
                assert "db commands are for postgres" in str(caught.value.hint)
            with pytest.raises(InvalidConfigError, match="run it as postgres"):
                fleet.detach()
    finally:
        sql(pg, "DROP ROLE stranger")


def test_the_first_upgrade_says_what_it_added(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first upgrade prints what it adopted and added; a later one, what it repaired."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    sql(empty_pg, "CREATE TABLE models (id text PRIMARY KEY)")
    sql(empty_pg, "INSERT INTO models VALUES ('a')")
    assert commands.run("db", "upgrade").err.splitlines() == [
        "adopted the table public.models of owner postgres, 1 row, 1 column;"
        " added 20 columns, 9 tables, 6 indexes, 8 triggers",
        "repaired: the history did not say the status of 1 model",
    ]
    sql(empty_pg, "DROP INDEX modelctl_models_disabled_until")
    repaired = "repaired: public.models has no index modelctl_models_disabled_until\n"
    assert commands.run("db", "upgrade").err == repaired
    assert commands.run("db", "upgrade").err == ""


@pytest.mark.parametrize(
    ("setup", "why", "cure"),
    [
        (
            "CREATE TABLE models (id text PRIMARY KEY); ALTER TABLE models OWNER TO keeper",
            "may not create the indexes of",
            "GRANT CREATE ON SCHEMA public TO keeper",
        ),
        ("SELECT 1", "may not create public.models", "GRANT CREATE ON SCHEMA public TO keeper"),
        (
            "REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; GRANT CREATE ON SCHEMA public TO keeper",
            "may not use the language plpgsql",
            "GRANT USAGE ON LANGUAGE plpgsql TO keeper",
        ),
        (
            "REVOKE CREATE ON DATABASE {database} FROM keeper; CREATE SCHEMA modelctl;"
            "GRANT CREATE ON SCHEMA public TO keeper",
            "may not create the schema modelctl, or tables in it",
            "GRANT USAGE, CREATE ON SCHEMA modelctl TO keeper",
        ),
        (
            'CREATE SCHEMA "My App"; ALTER ROLE keeper SET search_path = "My App"',
            "may not use My App",
            'GRANT USAGE, CREATE ON SCHEMA "My App" TO keeper',
        ),
    ],
)
def test_the_right_that_is_missing_is_named(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch, setup: str, why: str, cure: str
) -> None:
    """A dry run and an upgrade name each right that the role lacks, and the GRANT that gives it."""
    database = empty_pg.rpartition("/")[2]
    sql(empty_pg, "CREATE ROLE keeper LOGIN")
    try:
        sql(empty_pg, f"GRANT CREATE ON DATABASE {database} TO keeper")
        for statement in setup.format(database=database).split(";"):
            sql(empty_pg, statement)
        monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg.replace("postgres@", "keeper@"))
        monkeypatch.delenv("PGOPTIONS")
        result = commands.run("db", "upgrade", "--dry-run")
        assert (result.code, "CREATE TABLE" in result.out) == (3, False)
        assert why in result.err
        assert cure in result.err
        commands.run("db", "upgrade").failed(3, why, cure)
        sql(empty_pg, f"{cure}")
        if "My App" in cure:
            sql(empty_pg, "GRANT CREATE ON SCHEMA public TO keeper")
        assert commands.run("db", "upgrade").code == 0
        assert commands.run("db", "uninstall", "--yes").code == 0
    finally:
        sql(empty_pg, "GRANT USAGE ON LANGUAGE plpgsql TO PUBLIC")
        sql(empty_pg, "DROP OWNED BY keeper")
        sql(empty_pg, "DROP ROLE keeper")


def test_control_characters_in_names(empty_pg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SQL of a dry run shows none of them, and names the same table."""
    schema = '"odd\x1b[31m\x9b\\"'
    sql(empty_pg, f"CREATE SCHEMA {schema}")
    sql(empty_pg, f"CREATE TABLE {schema}.models (id text PRIMARY KEY)")
    sql(empty_pg, f"ALTER DATABASE {empty_pg.rpartition('/')[2]} SET search_path = {schema}")
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    monkeypatch.delenv("PGOPTIONS")
    for command in ("upgrade", "uninstall"):
        script = commands.run("db", command, "--dry-run").out  # which checks the characters
        assert 'LOCK TABLE U&"odd\\001b[31m\\009b\\\\".models' in script
        assert commands.run("db", "schema", "--for", "sql").code == 0
        with psycopg.connect(empty_pg, autocommit=True) as connection:
            connection.execute(script.encode())
        assert commands.run("db", "status").code == (0 if command == "upgrade" else 7)


def test_two_fleets_do_not_share_a_table(pg: str) -> None:
    """The upgrade of a second fleet is refused and names the fleet of the table."""
    with (
        opened(pg, database_schema="second") as fleet,
        pytest.raises(InvalidConfigError, match=r'database\.schema = "modelctl"'),
    ):
        fleet.upgrade()


# Detaching


@both
def test_detach_drops_triggers_and_functions(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triggers and functions go, tables and columns stay, and an upgrade puts them back."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    commands.run("db", "detach").failed(8, "asks first", "--yes")
    before = fleets.everything(url)
    result = commands.run("db", "detach", "--yes", "-o", "json")
    expected = len(SQLITE) if is_sqlite(url) else len(TRIGGERS) + len(FUNCTIONS)
    assert (result.code, len(result.json["removed"])) == (0, expected)
    assert fleets.everything(url) == before
    assert commands.run("db", "detach", "--yes", "-o", "json").json["removed"] == []
    with opened(url) as fleet:
        assert "triggers" in "".join(differs(fleet))
        mended(fleet)


# Dumps


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Give the folder with pg_dump, pg_restore and psql."""
    return servers.postgres_binary().path.parent


@pytest.fixture
def postgres_tool(binaries: Path) -> Callable[..., str]:
    """Run one of PostgreSQL's programs."""

    def run(name: str, *words: str, stdin: str | None = None) -> str:
        environ = {k: v for k, v in os.environ.items() if k != "PGOPTIONS"}
        done = subprocess.run(
            [binaries / name, *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environ,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def other(postgres: Postgres) -> Iterator[str]:
    """Give the URL of another empty database."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_a_dump_is_restored_elsewhere(
    pg: str, other: str, postgres_tool: Callable[..., str], tmp_path: Path, form: str
) -> None:
    """Nothing is missing there, and the triggers queue into the outbox beside them."""
    file = str(tmp_path / "dump")
    postgres_tool("pg_dump", f"--format={form}", f"--file={file}", pg)
    if form == "plain":
        postgres_tool("psql", "-v", "ON_ERROR_STOP=1", "-q", "-f", file, other)
    else:
        postgres_tool("pg_restore", "--exit-on-error", f"--dbname={other}", file)
    with opened(other) as fleet:
        assert differs(fleet) == []
        works(fleet)


def test_a_dump_is_restored_under_other_schemas(pg: str, postgres_tool: Callable[..., str]) -> None:
    """The copy's triggers find the copy's outbox, and the original's its own."""
    dump = postgres_tool("pg_dump", "--schema=public", "--schema=modelctl", pg)
    sql(pg, "ALTER SCHEMA public RENAME TO app_old")
    sql(pg, "ALTER SCHEMA modelctl RENAME TO modelctl_old")
    postgres_tool("psql", "-v", "ON_ERROR_STOP=1", "-q", pg, stdin=dump)
    old = f"{pg}?options=-csearch_path%3Dapp_old"
    queued = {
        schema: sql(pg, f"SELECT count(*) FROM {schema}.modelctl_outbox")[0][0]
        for schema in ("modelctl", "modelctl_old")
    }
    sql(pg, "UPDATE app_old.models SET active = NOT active")
    for schema, more in (("modelctl", 0), ("modelctl_old", 1)):
        found = sql(pg, f"SELECT count(*) FROM {schema}.modelctl_outbox")
        assert found == [(queued[schema] + more,)]
    with opened(pg) as fleet:
        assert differs(fleet) == []
        works(fleet)
    with opened(old, database_schema="modelctl_old") as fleet:
        assert differs(fleet) == []


def test_only_the_data_are_restored(
    pg: str, postgres_tool: Callable[..., str], tmp_path: Path
) -> None:
    """Loading rows fires the triggers; if the dump disabled them, that is reported and repaired."""
    data = postgres_tool("pg_dump", "--data-only", "--table=models", pg)
    [(queued,)] = sql(pg, "SELECT count(*) FROM modelctl_outbox")
    sql(pg, "DELETE FROM models")
    postgres_tool("psql", "-v", "ON_ERROR_STOP=1", "-q", pg, stdin=data)
    assert sql(pg, "SELECT count(*) FROM modelctl_outbox") == [(queued + 2,)]
    with opened(pg) as fleet:
        assert differs(fleet) == []
        silent = postgres_tool("pg_dump", "--data-only", "--disable-triggers", "--table=models", pg)
        sql(pg, "DELETE FROM models")
        postgres_tool("psql", "-v", "ON_ERROR_STOP=1", "-q", pg, stdin=silent)
        assert "ENABLE ALWAYS" in "".join(differs(fleet))
        mended(fleet)


@pytest.mark.parametrize("how", ["--strong", "drain"])
def test_a_dump_is_restored_over_a_live_database(
    pg: str, redis_url: str, postgres_tool: Callable[..., str], how: str
) -> None:
    """No trigger fires for the rows of a table that was dropped and made anew: the count goes too."""
    with opened(pg, redis_url=redis_url) as fleet:
        fleet.disable("a", "b")
        dump = postgres_tool("pg_dump", "--clean", "--if-exists", pg)
        fleet.enable("a", "b")
        sql(pg, "DELETE FROM modelctl_outbox")
        assert (fleet.count().active, fleet.count().source) == (3, "cache")
        assert fleet.drain().delivered == 0
    postgres_tool("psql", "-v", "ON_ERROR_STOP=1", "-q", pg, stdin=dump)
    with opened(pg, redis_url=redis_url) as fleet:
        assert differs(fleet) == []
        if how == "drain":
            assert fleet.drain().delivered
            assert fleet.count().active == 1
        else:
            assert fleet.count(strong=True).active == 1
        while fleet.drain().delivered:
            sql(pg, "UPDATE modelctl_outbox SET due = now()")
        works(fleet)


def test_a_swap_is_noticed_without_an_upgrade(pg: str, redis_url: str) -> None:
    """The count of the table before goes with the next drain."""
    with opened(pg, redis_url=redis_url) as fleet:
        sql(pg, "DELETE FROM modelctl_outbox")
        assert (fleet.count().active, fleet.count().source) == (3, "cache")
        sql(pg, "CREATE TABLE models_new (LIKE models INCLUDING ALL)")
        sql(pg, "ALTER TABLE models RENAME TO models_old")
        sql(pg, "ALTER TABLE models_new RENAME TO models")
        assert fleet.drain().delivered == 1
        assert fleet.drain().delivered == 0
        assert fleet.count().active == 0
