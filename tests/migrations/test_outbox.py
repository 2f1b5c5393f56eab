"""The triggers of PostgreSQL queue an invalidation for every change of the count, in its transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.migrations.schemas import OUTBOX, TEXT_ID, execute, migrated_fleet, upgrade
from tests.servers import Postgres


@pytest.fixture(scope="module")
def shared_fleet(postgres: Postgres) -> Iterator[str]:
    """Give the same for tests that commit nothing."""
    name = postgres.create_database()
    yield migrated_fleet(postgres.url(name))
    postgres.drop_database(name)


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
    """A statement that changes a status or the membership writes one row, any other statement none."""
    with psycopg.connect(shared_fleet) as connection:
        if "MERGE" in statement and connection.info.server_version < 150000:
            pytest.skip("MERGE came with PostgreSQL 15")
        connection.execute(statement.encode())
        assert connection.execute(OUTBOX).fetchone() == (rows,)
        connection.rollback()


def test_an_unknown_active_counts_as_a_value(empty_pg: str) -> None:
    """In an adopted table `active` may be NULL; coming from it or going to it is a change."""
    execute(
        empty_pg,
        f"CREATE TABLE models ({TEXT_ID}, active boolean)",
        "INSERT INTO models VALUES ('a', NULL)",
    )
    upgrade(empty_pg)
    for value, rows in (("NULL", 0), ("false", 1), ("NULL", 2), ("true", 3), ("NULL", 4)):
        execute(empty_pg, f"UPDATE models SET active = {value}")
        assert execute(empty_pg, OUTBOX) == [(rows,)]
    execute(empty_pg, "UPDATE models SET id = 'b'")
    assert execute(empty_pg, OUTBOX) == [(5,)]


def test_copy_writes_the_outbox(fleet: str) -> None:
    """Loading rows with COPY is an insert like any other."""
    with psycopg.connect(fleet) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY models (id) FROM STDIN") as copy:
            copy.write("x\ny\n")
        with cursor.copy("COPY models (id) FROM STDIN"):
            pass
    assert execute(fleet, OUTBOX) == [(1,)]


def test_the_outbox_follows_the_transaction(fleet: str) -> None:
    """A rolled back statement leaves no row; a committed statement leaves one in its transaction."""
    with psycopg.connect(fleet) as connection:
        connection.execute("DELETE FROM models")
        connection.rollback()
        connection.execute("UPDATE models SET active = false WHERE id = 'a'")
        connection.execute("UPDATE models SET active = true WHERE id = 'a'")
        row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert (
        execute(fleet, "SELECT xid::text, settle FROM modelctl_outbox")
        == [(row and row[0], False)] * 2
    )


def test_a_replica_session_writes_the_outbox(fleet: str) -> None:
    """session_replication_role = replica silences ordinary triggers, not these."""
    execute(
        fleet,
        "SET session_replication_role = replica",
        "UPDATE models SET active = true WHERE id = 'b'",
        "DELETE FROM models WHERE id = 'c'",
        "INSERT INTO models (id) VALUES ('x')",
        "TRUNCATE models",
    )
    assert execute(fleet, OUTBOX) == [(4,)]


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
    assert execute(fleet, OUTBOX) == [(4,)]


def test_a_shadowing_table_is_not_taken_for_the_outbox(fleet: str) -> None:
    """The trigger finds the outbox whatever the search_path or the temporary tables say."""
    with psycopg.connect(fleet) as connection:
        connection.execute("CREATE TEMP TABLE modelctl_outbox (id integer)")
        connection.execute("SET search_path = pg_temp, public")
        connection.execute("UPDATE models SET active = NOT active")
    assert execute(fleet, OUTBOX) == [(1,)]


def test_a_change_that_cannot_be_queued_does_not_commit(fleet: str) -> None:
    """A change of status is refused rather than lost to the caches."""
    execute(fleet, "ALTER TABLE modelctl_outbox ADD CHECK (id < 0)")  # as good as a full disk
    with pytest.raises(psycopg.errors.CheckViolation, match="modelctl_outbox"):
        execute(fleet, "UPDATE models SET active = false")
    assert execute(fleet, "SELECT count(*) FROM models WHERE active") == [(2,)]


@pytest.mark.parametrize("before", [0, 10])
def test_a_bulk_update_costs_little_more_than_without_the_trigger(fleet: str, before: int) -> None:
    """The join of the trigger is never quadratic, in a new or in a warm session."""
    execute(fleet, "INSERT INTO models (id) SELECT 'm' || i FROM generate_series(1, 22000) i")
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
    execute(fleet, "ALTER TABLE models DISABLE TRIGGER modelctl_update")
    assert joined < 10 * bulk() + 2  # 30 s and more when it is quadratic
