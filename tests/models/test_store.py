"""Each call sends as few statements as promised, and errors of the database are translated."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelctl import (
    DatabaseUnavailableError,
    Fleet,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    RefusedError,
    UsageError,
)
from modelctl.database import bulk
from modelctl.postgres_client.errors import translate
from tests import fleets, servers
from tests.fleets import opened, seed, sql
from tests.servers import Postgres

PASSWORD = "hunter2-Ärger"


@pytest.fixture
def pg(pg_cleared: str) -> Iterator[Fleet]:
    """Give a fleet on PostgreSQL with one connection."""
    with opened(pg_cleared, database_pool_size=1) as fleet:
        yield fleet


# What is sent


@contextmanager
def sent(fleet: Fleet) -> Iterator[list[str]]:
    """Note for each round trip to PostgreSQL which statements it ran there, BEGIN and COMMIT too.

    By the words of the server, so that two statements in one message are two: ``"BEGIN SELECT"``.
    """
    with fleet._store.database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
    said: list[str] = []
    with tempfile.TemporaryFile("w+") as file:
        driver.pgconn.trace(file.fileno())
        try:
            yield said
        finally:
            driver.pgconn.untrace()
        file.seek(0)
        ran: list[str] = []
        for line in file:
            # Time, direction, length, kind of message, what it says.
            if answer := re.match(r'[^\t]+\tB\t\d+\t(\w+)\t "?(\w+)', line):
                if answer[1] == "CommandComplete":
                    ran.append(answer[2])
                elif answer[1] == "ReadyForQuery":
                    said.append(" ".join(ran))
                    ran.clear()


# What a transaction of two messages sends: the actor, that deferred triggers act at once, the row;
# then the update, how the row is then, its event if there is one, and COMMIT.
BEGIN = "BEGIN SELECT SET"
# What an outcome sends reads the holds, too.
OUTCOME = [f"{BEGIN} SELECT SELECT", "SELECT SELECT COMMIT"]


@pytest.mark.parametrize(
    ("call", "messages"),
    [
        (lambda fleet: fleet.record_failure("m1", "parse-error", reason="no"), OUTCOME),
        (lambda fleet: fleet.record_success("m1"), OUTCOME),
        (lambda fleet: fleet.record_success("off"), [OUTCOME[0], "SELECT SELECT INSERT COMMIT"]),
        (lambda fleet: fleet.disable("m1"), [f"{BEGIN} SELECT", "SELECT SELECT INSERT COMMIT"]),
        (lambda fleet: fleet.enable("off"), [f"{BEGIN} SELECT", "SELECT SELECT INSERT COMMIT"]),
        (lambda fleet: fleet.enable("m1"), [f"{BEGIN} SELECT", "SELECT COMMIT"]),
        # It may have to look into the history.
        (
            lambda fleet: fleet.remove("m1"),
            [BEGIN, "SELECT", "DELETE", "INSERT", "SELECT", "COMMIT"],
        ),
        (lambda fleet: fleet.count(), ["SELECT"]),
        # With the pauses and incidents that last.
        (lambda fleet: fleet.show("m1"), ["SELECT", "SELECT"]),
        (lambda fleet: fleet.stats(), ["SELECT", "SELECT"]),
        (lambda fleet: fleet.leaderboard(), ["SELECT"]),
        (lambda fleet: fleet.events(), ["SELECT"]),
    ],
)
def test_the_statements_of_each_call(pg: Fleet, call: Any, messages: list[str]) -> None:
    """A call sends exactly the statements and round trips that are promised for it."""
    seed(pg, ["m1", "m2", "off"])
    fleets.trip(pg, "off")
    for _ in range(8):  # beyond the point where the driver prepares a statement
        pg.record_failure("m2", "timeout")
    with sent(pg) as said:
        call(pg)
    assert said == messages


def test_a_migration_leaves_its_connection_as_it_was(pg: Fleet) -> None:
    """After it the same connection makes a change in the same two round trips."""
    seed(pg, "a")
    pg.upgrade()
    with sent(pg) as said:
        pg.record_failure("a")
    assert said == OUTCOME


@pytest.mark.parametrize(
    ("verb", "statements"),
    [
        # The last one looks at the rows as they then are.
        ("disable", ["SELECT", "UPDATE", "INSERT", "SELECT"]),
        ("enable", ["SELECT", "UPDATE", "INSERT", "SELECT"]),
        ("remove", ["SELECT", "DELETE", "INSERT", "SELECT"]),
        ("record_batch", ["SELECT", "SELECT", "UPDATE", "INSERT", "SELECT"]),
    ],
)
def test_the_number_of_models_adds_no_statement(
    pg: Fleet, verb: str, statements: list[str]
) -> None:
    """Two models or a thousand take the same few statements in one transaction."""
    ids = [f"m{n}" for n in range(1000)]

    def work(some: list[str]) -> None:
        if verb == "record_batch":
            failure = {"outcome": "failure", "type": "parse-error"}
            pg.record_batch({"id": i, **failure} for i in some for _ in range(5))
        else:
            getattr(pg, verb)(*some)

    for some in (ids[:2], ids):
        fleets.clear(str(pg.config.database.url))
        seed(pg, ids)
        if verb == "enable":
            pg.disable(*some)
        with sent(pg) as said:
            work(some)
        assert said == ["BEGIN SELECT SET", *statements, "COMMIT"]


@pytest.mark.parametrize(("chunk", "chunks"), [(100, 1), (50, 2), (10, 10)])
def test_statements_grow_with_chunks_alone(
    pg: Fleet, monkeypatch: pytest.MonkeyPatch, chunk: int, chunks: int
) -> None:
    """A chunk costs the same few statements, whatever is in it."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    ids = [f"m{n}" for n in range(100)]

    def lines(name: str) -> bytes:
        return b"\n".join(b'{"id": "%s", "name": "%s"}' % (i.encode(), name.encode()) for i in ids)

    def whole(*of_a_chunk: str) -> list[str]:
        return ["BEGIN SELECT SET", *of_a_chunk * chunks, "COMMIT"]

    def imported(*of_a_chunk: str) -> list[str]:
        # What is ignored; the entries beside the models.
        begin, *rest = whole(*of_a_chunk)
        stage = ["CREATE", *["COPY"] * chunks, "CREATE", "CREATE", "ANALYZE"]
        return ["SELECT", begin, *stage, *rest]

    with sent(pg) as said:
        pg.import_models(lines("one"))
    # What is new, what is there then, the events.
    assert said == imported("UPDATE", "SELECT", "INSERT")
    with sent(pg) as said:
        pg.import_models(lines("two"))
    # The same; what differs, its update, its rows, its events.
    assert said == imported("UPDATE", "SELECT", "SELECT", "UPDATE", "SELECT", "INSERT")
    with sent(pg) as said:
        pg.record_batch({"id": i, "outcome": "success"} for i in ids)
    assert said == whole(
        "SELECT", "SELECT", "UPDATE", "SELECT"
    )  # the models, what holds the rule back


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_values_arrive_as_they_are(pg_cleared: str, conforming: str) -> None:
    """Nothing in an id or a reason is taken for SQL, however the server reads its strings."""
    odd = "it's \\' 100%, %s %(ids)s :ids $1 \"x\" \\x41 ☃; DROP TABLE models; -- /*"
    option = f"?options=-c%20standard_conforming_strings%3D{conforming}"
    with opened(pg_cleared + option) as fleet:
        seed(fleet, [odd, "other"])
        fleet.record_failure(odd, "timeout", reason=f"{odd}\n{odd}")
        model = fleet.show(odd)
        assert (model.failure_reason, model.failure_count) == (f"{odd}\n{odd}", 1)
        fleet.disable(odd, reason=odd)
        assert fleet.events(odd)[0].reason == odd
        assert fleet.remove(odd).changes[0].id == odd
        assert [model.id for model in fleet.list_models()] == ["other"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, st.none() | TEXTS, st.none() | st.integers(0, 9))))
@example(rows=[("NULL", None, 1), ('{"a,b\\"}', "null", None), ("\n\t\x01\u2028", "", 0)])
def test_lists_arrive_as_they_are(
    fleet: Fleet, rows: list[tuple[str, str | None, int | None]]
) -> None:
    """Whatever text there is, rows and ids come to the database unchanged and in their order."""
    database_sql = fleet._store.database.sql
    kinds = {"id": "text", "words": "text", "number": "integer"}
    query = f"SELECT id, words, number FROM {database_sql.rows('given', kinds)}"
    query += f" WHERE {database_sql.ids}"
    values = database_sql.values(kinds, rows) | {
        "ids": database_sql.list_of_texts(row[0] for row in rows)
    }
    with fleet._store.database.reading() as connection:
        assert [tuple(row) for row in connection.execute(sa.text(query), values)] == rows


def test_sqlite_counts_its_statements_too(sqlite_database: str) -> None:
    """On SQLite a change is four statements for any number of models."""
    with opened(sqlite_database) as fleet:
        ids = [f"m{n}" for n in range(500)]
        seed(fleet, ids)
        said: list[str] = []

        @sa.event.listens_for(fleet._store.database.engine, "before_cursor_execute")
        def note(*args: Any) -> None:
            said.append(args[2])

        for some in (ids[:1], ids):
            said.clear()
            fleet.disable(*some)
            changes = [s for s in said if not s.startswith("PRAGMA")]
            assert changes[0] == "BEGIN IMMEDIATE"
            assert len(changes) == 5


# What errors mean

READS: list[Callable[[Fleet], Any]] = [
    lambda fleet: fleet.count(fresh=True),
    lambda fleet: fleet.list_models(),
    lambda fleet: fleet.stats(),
]
CHANGES: list[Callable[[Fleet], Any]] = [
    lambda fleet: fleet.disable("a"),
    lambda fleet: fleet.add("b"),
    lambda fleet: fleet.record_success("a"),
    lambda fleet: fleet.record_batch([{"id": "a", "outcome": "success"}]),
    lambda fleet: fleet.import_models(b'{"id": "b"}'),
    lambda fleet: fleet.recover(),
]


@contextmanager
def raises(error: type[ModelctlError], match: str | None = None) -> Iterator[None]:
    """Expect this error, in one line and without the password."""
    with pytest.raises(error, match=match) as caught:
        yield
    assert type(caught.value) is error
    told = f"{caught.value.message} {caught.value.hint}"
    assert "\n" not in told
    for secret in ("hunter2", "Ärger", "%C3%84rger"):
        assert secret not in told


@pytest.fixture(scope="module")
def login(postgres: Postgres) -> str:
    """Make a role that needs a password."""
    postgres.require_password("punctual", PASSWORD)
    return "punctual"


def test_a_right_password(postgres: Postgres, login: str) -> None:
    """The role that the others of these tests fail with can log in."""
    with opened(postgres.url("postgres", login, PASSWORD)) as fleet:
        assert fleet.schema_status().database == "postgresql"


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        ({"password": "hunter2-wrong"}, InvalidConfigError, "authentication failed"),
        ({"password": None}, InvalidConfigError, "password"),
        ({"user": "nobody-here"}, InvalidConfigError, "does not exist"),
        ({"database": "not-there"}, InvalidConfigError, "does not exist"),
        ({"port": True}, DatabaseUnavailableError, "not available"),
        ({"host": "host.invalid"}, DatabaseUnavailableError, "not available"),
        ({"query": "?sslmode=require"}, InvalidConfigError, "SSL"),
    ],
)
def test_a_refused_connection_says_why(
    postgres: Postgres, login: str, where: dict[str, Any], error: type[ModelctlError], says: str
) -> None:
    """What must be corrected is exit 3, what may pass is exit 5, and no message has the password."""
    url = postgres.url(
        where.get("database", "postgres"),
        where.get("user", login),
        where.get("password", PASSWORD),
    )
    if "port" in where:
        url = url.replace(f":{postgres.port}/", f":{servers.refused_port()}/")
    if "host" in where:
        url = url.replace("127.0.0.1", where["host"])
    with opened(url + where.get("query", "")) as fleet:
        for call in (*READS, *CHANGES[:2]):
            with raises(error, says):
                call(fleet)


def test_a_silent_server(postgres: Postgres) -> None:
    """A server that takes the connection and says nothing is given up after five seconds."""
    with servers.silent_server() as port:
        url = postgres.url(password=PASSWORD).replace(f":{postgres.port}/", f":{port}/")
        started = time.monotonic()
        with opened(url) as fleet, raises(DatabaseUnavailableError, "not available"):
            fleet.count()
        assert 4 < time.monotonic() - started < 7


def test_a_missing_schema(empty_pg: str, tmp_path: Path) -> None:
    """A database without the tables, or without some columns, is exit 7 and says what to do."""
    lite = tmp_path / "empty.db"
    lite.touch()
    for url in (empty_pg, f"sqlite:///{lite}"):
        with opened(url) as fleet:
            for _ in range(2):
                for call in (*READS, *CHANGES):
                    with raises(MissingSchemaError, "schema"):
                        call(fleet)
                sql(url, "CREATE TABLE IF NOT EXISTS models (id text PRIMARY KEY)")


def test_a_lock_timeout(pg: Fleet, pg_cleared: str) -> None:
    """A row that another program keeps locked is "busy" after two seconds, and nothing is done."""
    seed(pg, "ab")
    with psycopg.connect(pg_cleared) as other:
        other.execute("UPDATE models SET provider = 'p' WHERE id = 'b'")
        started = time.monotonic()
        with raises(DatabaseUnavailableError, "busy"):
            pg.disable("a", "b")
        assert 1.5 < time.monotonic() - started < 5
        assert pg.count().active == 2
    assert pg.disable("a", "b").changes[0].changed


def test_a_statement_timeout(pg_cleared: str) -> None:
    """A statement that takes too long is "busy"; the URL may say what is too long."""
    with (
        opened(
            f"{pg_cleared}?options=-c%20statement_timeout%3D150%20-c%20lock_timeout%3D0"
        ) as slow,
        psycopg.connect(pg_cleared) as other,
    ):
        seed(slow, "a")
        other.execute("SELECT 1 FROM models FOR UPDATE")
        with raises(DatabaseUnavailableError, "busy.*statement timeout"):
            slow.record_failure("a")


def test_the_limits_of_a_session(pg: Fleet) -> None:
    """No lock, statement or idle transaction of ours can hold up others for long."""
    with pg._store.database.engine.connect() as connection:
        limits = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in (
                "lock_timeout",
                "statement_timeout",
                "idle_in_transaction_session_timeout",
                "TimeZone",
                "application_name",
                "client_encoding",
            )
        }
    assert list(limits.values()) == ["2s", "10s", "15s", "UTC", "modelctl", "UTF8"]


@pytest.fixture
def role(postgres: Postgres, pg_database: str) -> Iterator[str]:
    """Give the URL of a role that may only read."""
    sql(pg_database, "CREATE ROLE reader LOGIN")
    sql(pg_database, "GRANT USAGE ON SCHEMA modelctl TO reader")
    for table in (
        "models",
        *(f"modelctl_{name}" for name in ("events", "outbox", "state", "holds", "tags", "ignored")),
        *("modelctl_origins", "modelctl_sources"),
    ):
        sql(pg_database, f"GRANT SELECT ON {table} TO reader")
    yield pg_database.replace("postgres@", "reader@")
    sql(pg_database, "DROP OWNED BY reader")
    sql(pg_database, "DROP ROLE reader")


def test_a_role_that_may_not_write(pg_database: str, role: str) -> None:
    """Reads work; every change is exit 3 and speaks of the role's rights."""
    with opened(pg_database) as fleet:
        seed(fleet, "a")
    with opened(role) as fleet:
        assert fleet.count().active == 1
        assert fleet.show("a").id == "a"
        for change in CHANGES:
            with raises(InvalidConfigError, "may not do this"):
                change(fleet)


def test_a_role_that_is_read_only(pg_database: str, role: str) -> None:
    """A role or a server that takes no changes is exit 3 and speaks of the primary."""
    with opened(pg_database) as fleet:
        seed(fleet, "a")
    sql(pg_database, "ALTER ROLE reader SET default_transaction_read_only = on")
    with opened(role) as fleet:
        assert fleet.list_models()[0].id == "a"
        for change in CHANGES:
            with raises(InvalidConfigError, "takes no changes"):
                change(fleet)


class _Error(psycopg.Error):
    """An error of the server with any SQLSTATE."""

    def __init__(self, state: str | None) -> None:
        super().__init__(f"it says {PASSWORD}\nand more")
        self.sqlstate = state


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("42P01", MissingSchemaError),
        ("42703", MissingSchemaError),
        ("3F000", MissingSchemaError),
        ("25006", InvalidConfigError),
        ("28P01", InvalidConfigError),
        ("28000", InvalidConfigError),
        ("3D000", InvalidConfigError),
        ("42501", InvalidConfigError),
        ("23514", RefusedError),
        ("23502", RefusedError),
        ("44000", RefusedError),
        ("P0001", RefusedError),
        ("22001", UsageError),
        ("22P05", UsageError),
        ("55P03", DatabaseUnavailableError),
        ("57014", DatabaseUnavailableError),
        ("40001", DatabaseUnavailableError),
        ("40P01", DatabaseUnavailableError),
        ("08006", DatabaseUnavailableError),
        ("53300", DatabaseUnavailableError),
        ("57P01", DatabaseUnavailableError),
        ("57P03", DatabaseUnavailableError),
        ("58030", DatabaseUnavailableError),
        (None, DatabaseUnavailableError),
        ("XX000", ModelctlError),
        ("42601", ModelctlError),
    ],
)
def test_what_a_sqlstate_means(state: str | None, error: type[ModelctlError]) -> None:
    """Each class of errors has its exit code, and a password in the server's words is hidden."""
    config = fleets.configured(f"postgresql://u:{PASSWORD.replace('Ä', '%C3%84')}@h/db")
    with raises(error):
        raise translate(_Error(state), config)


# Servers that come and go


@pytest.mark.parametrize("how", ["stop", "kill", "terminate"])
def test_a_restart_between_two_calls_is_not_noticed(
    postgres: Postgres, pg_database: str, how: str
) -> None:
    """A fleet that lives long connects anew, on every pooled connection."""
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(fleet._store.database.reading())
        if how == "terminate":
            sql(
                pg_database,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'modelctl'",
            )
        else:
            getattr(postgres, how)()
            postgres.start()
        for _ in range(4):
            assert fleet.record_failure("a").changes[0].id == "a"
        assert fleet.count().active == 2
        assert fleet.show("a").failure_count == 4


def test_a_server_that_is_down_and_comes_back(postgres: Postgres, pg_database: str) -> None:
    """Meanwhile every call says try again; afterwards the same fleet works."""
    with opened(pg_database) as fleet:
        seed(fleet, "a")
        postgres.kill()
        for call in (*READS, *CHANGES):
            with raises(DatabaseUnavailableError, "not available"):
                call(fleet)
        postgres.start()
        assert fleet.disable("a").changes[0].changed


# SQLite


def test_errors_of_a_file(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is something else have their own words."""
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database at all" * 100)
    for path, error, says in (
        (tmp_path / "missing.db", MissingSchemaError, "no database at"),
        (tmp_path, InvalidConfigError, "folder"),
        (garbage, InvalidConfigError, "not a SQLite database"),
    ):
        with opened(f"sqlite:///{path}") as fleet:
            for call in (*READS, *CHANGES):
                with raises(error, says):
                    call(fleet)
