"""modelctl works in a shared PostgreSQL: with policies, locks, languages and poolers of others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest

from modelctl import DatabaseUnavailableError, InvalidConfigError, ModelctlError, RefusedError
from modelctl.postgres_client.errors import NoConnectionError, read_answer, translate
from tests import servers
from tests.commands import Cli
from tests.fleets import configured, opened, seed, sql
from tests.servers import PgBouncer, Postgres

POOLED = pytest.mark.skipif(servers.pgbouncer_binary() is None, reason="no PgBouncer here")

# ── Row level security ──


@pytest.fixture
def hidden(postgres: Postgres, pg_database: str) -> Iterator[str]:
    """Give the URL of a role that sees one of three models."""
    with opened(pg_database) as fleet:
        seed(fleet, ["a", "b", "c"])
    for statement in (
        "CREATE ROLE tenant LOGIN",
        "GRANT USAGE ON SCHEMA modelctl TO tenant",
        "GRANT ALL ON ALL TABLES IN SCHEMA public, modelctl TO tenant",
        "ALTER TABLE models ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY one ON models TO tenant USING (id = 'a')",
    ):
        sql(pg_database, statement)
    yield pg_database.replace("postgres@", "tenant@")
    postgres.recover()
    sql(pg_database, "DROP OWNED BY tenant")
    sql(pg_database, "DROP ROLE tenant")


def test_a_policy_that_hides_models(hidden: str, pg_database: str, redis_url: str) -> None:
    """A filtered query is an error, exit 3, and no smaller number is cached; BYPASSRLS cures it."""
    with opened(hidden, redis_url=redis_url) as fleet:
        for call in (
            fleet.count,
            fleet.stats,
            fleet.list_models,
            fleet.recover,
            lambda: fleet.disable("a"),
            lambda: fleet.record_failure("a", "parse-error"),
        ):
            with pytest.raises(InvalidConfigError, match="row level security") as caught:
                call()
            assert "BYPASSRLS" in str(caught.value.hint)
    sql(pg_database, "CREATE POLICY everything ON models TO tenant USING (true)")
    with opened(hidden) as fleet, pytest.raises(InvalidConfigError, match="row level security"):
        fleet.count()
    sql(pg_database, "ALTER ROLE tenant BYPASSRLS")
    with opened(hidden, redis_url=redis_url) as fleet:
        assert fleet.count().active == 3
        assert fleet.disable("a").changes[0].changed
    sql(pg_database, "ALTER ROLE tenant NOBYPASSRLS")


def test_the_owner_of_the_table_sees_all(hidden: str, pg_database: str) -> None:
    """Unless the table forces its policies on its owner, too."""
    sql(pg_database, "ALTER TABLE models OWNER TO tenant")
    with opened(hidden) as fleet:
        assert fleet.count().active == 3
    sql(pg_database, "ALTER TABLE models FORCE ROW LEVEL SECURITY")
    with opened(hidden) as fleet, pytest.raises(InvalidConfigError, match="row level security"):
        fleet.count()
    sql(pg_database, "ALTER TABLE models OWNER TO postgres")


@POOLED
@pytest.mark.parametrize("setting", [(), ("ignore_startup_parameters = options",)])
def test_a_policy_behind_a_pooler(
    postgres: Postgres, hidden: str, setting: tuple[str, ...]
) -> None:
    """Where the pooler drops or refuses startup options, a filtered count is an error as well."""
    name = hidden.rpartition("/")[2]
    with PgBouncer(postgres, *setting) as pooler:
        pooler_url = pooler.url(name)
        # The pooler logs in as postgres.
        postgres.execute(f"ALTER DATABASE {name} SET role = 'tenant'")
        with opened(pooler_url) as fleet:
            for _ in range(3):
                with pytest.raises(InvalidConfigError, match="row level security"):
                    fleet.count()
                with pytest.raises(InvalidConfigError, match="row level security"):
                    fleet.disable("a")
        postgres.execute(f"ALTER DATABASE {name} RESET role")


# ── Locks ──


def test_a_website_is_never_the_victim_of_a_deadlock(pg_database: str) -> None:
    """Transactions of an application that update models in any order never lose a deadlock."""
    ids = [f"m{number}" for number in range(6)]
    broken: list[str] = []
    stop = threading.Event()

    def website() -> int:
        commits = 0
        with psycopg.connect(pg_database) as connection:
            while not stop.is_set():
                try:
                    for model_id in random.sample(ids, 3):
                        connection.execute(
                            "UPDATE models SET success_count = success_count + 1 WHERE id = %s",
                            (model_id,),
                        )
                        time.sleep(0.002)
                    connection.commit()
                    commits += 1
                except psycopg.Error as exc:
                    broken.append(str(exc))
                    connection.rollback()
        return commits

    def administrator() -> int:
        changes = 0
        while not stop.is_set():
            with suppress(DatabaseUnavailableError):
                getattr(fleet, random.choice(["disable", "enable"]))(*random.sample(ids, 4))
                changes += 1
        return changes

    with opened(pg_database) as fleet, ThreadPoolExecutor(4) as threads:
        seed(fleet, ids)
        site = threads.submit(website)
        others = [threads.submit(administrator) for _ in range(3)]
        time.sleep(4)
        stop.set()
        assert site.result() > 20
        assert sum(other.result() for other in others) > 10
    assert not broken


def test_a_locked_row_starves_no_other_row(pg_database: str) -> None:
    """Ten threads want it; reads and changes of other models go on beside them."""
    with (
        opened(pg_database, database_pool_size=3, database_pool_timeout="5s") as fleet,
        psycopg.connect(pg_database) as holder,
        ThreadPoolExecutor(10) as threads,
    ):
        seed(fleet, ["held", "free"])
        holder.execute("UPDATE models SET active = active WHERE id = 'held'")
        stuck = [threads.submit(fleet.record_failure, "held", "parse-error") for _ in range(10)]
        times = []
        while not all(future.done() for future in stuck):
            started = time.monotonic()
            assert fleet.show("free").status == "active"
            times.append(time.monotonic() - started)
            fleet.record_success("free")
        holder.rollback()
        for future in stuck:
            assert isinstance(future.exception(), DatabaseUnavailableError)
        assert max(times) < 4  # a read waits for no writer
        assert fleet.record_failure("held", "parse-error").changes[0].before == "active"


# ── What is said ──


def test_other_peoples_rows_are_not_shown(
    pg_database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed CHECK shows the message and the constraint, not the row; also with --debug."""
    with opened(pg_database) as fleet:
        seed(fleet, ["a"])
        sql(pg_database, "ALTER TABLE models ADD secret text DEFAULT 'zq7'")
        sql(pg_database, "ALTER TABLE models ADD CONSTRAINT stays CHECK (active)")
        with pytest.raises(RefusedError, match="stays") as caught:
            fleet.disable("a")
        assert "zq7" not in caught.value.message
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    for words in (["disable", "a"], ["--debug", "disable", "a"], ["disable", "a", "-o", "json"]):
        result = cli(*words)
        assert result.code == 8
        assert "stays" in result.out + result.err
        assert "zq7" not in result.out + result.err


REFUSALS = {
    "28P01": InvalidConfigError,  # password
    "28000": InvalidConfigError,  # role, NOLOGIN, pg_hba
    "3D000": InvalidConfigError,  # database
    "42501": InvalidConfigError,  # CONNECT
    "55000": InvalidConfigError,  # the database takes no connections
    "57P03": DatabaseUnavailableError,  # starting up
    "53300": DatabaseUnavailableError,  # too many connections
}


@pytest.mark.parametrize(("state", "error"), REFUSALS.items())
def test_a_refusal_is_known_by_its_class(state: str, error: type[ModelctlError]) -> None:
    """A refusal is recognized in any language of the server, and a permanent one is exit 3."""
    config = configured("postgresql://u@h/db")
    for severity, words in (("FATAL", "Passwort für »u« falsch"), ("ВАЖНО", "роль не существует")):
        said = f'connection to server at "h", port 1 failed: {severity}:  {state}: {words}\n'
        said += "DETAIL:  zq7\nLOCATION:  auth_failed, auth.c:1\n"
        answer = read_answer(said)
        assert answer[0] == state
        refused = translate(NoConnectionError([answer]), config)
        assert type(refused) is error
        assert words in refused.message
        assert "zq7" not in refused.message
        assert "database.url" in str(refused.hint)
        assert "MODELCTL_DATABASE_URL" in str(refused.hint)
        # A libpq that cannot be asked for the class: rather exit 3 than for ever.
        unknown = read_answer(said.replace(f"{state}: ", ""))
        assert type(translate(NoConnectionError([unknown]), config)) is (InvalidConfigError)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("no such database: x", InvalidConfigError),
        ("no such user", InvalidConfigError),
        ("bouncer config error", InvalidConfigError),
        ("SASL authentication failed", InvalidConfigError),
        (
            'server login has been failing, cached error: password authentication failed for user "p"'
            " (server_login_retry)",
            InvalidConfigError,
        ),
        (
            "server login has been failing, cached error: connect failed (server_login_retry)",
            DatabaseUnavailableError,
        ),
        (
            "server login has been failing, cached error:  (server_login_retry)",
            DatabaseUnavailableError,
        ),
        (
            "server login has been failing, try again later (server_login_retry)",
            DatabaseUnavailableError,
        ),
        ("no more connections allowed (max_client_conn)", DatabaseUnavailableError),
        (
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            DatabaseUnavailableError,
        ),
        ("the database system is in recovery mode", DatabaseUnavailableError),
        ("the database system is not yet accepting connections", DatabaseUnavailableError),
        ('database "x" is not currently accepting connections', InvalidConfigError),
    ],
)
def test_what_a_pooler_says_is_known_by_its_words(said: str, error: type[ModelctlError]) -> None:
    """Older poolers use one SQLSTATE for everything, so the text of their error decides."""
    answer = read_answer(f'connection to server at "h", port 1 failed: FATAL:  08P01: {said}')
    refused = translate(NoConnectionError([answer]), configured("postgresql://u@h/db"))
    assert type(refused) is error


def test_real_refusals(postgres: Postgres, pg_database: str) -> None:
    """Password, role, NOLOGIN, database, CONNECT: exit 3 each; too many connections: exit 5."""
    postgres.require_password("locked", "right")
    for statement in (
        "CREATE ROLE mute NOLOGIN",
        "CREATE ROLE crowd LOGIN CONNECTION LIMIT 0",
        "CREATE DATABASE closed ALLOW_CONNECTIONS false",
        "CREATE ROLE outside LOGIN",
        "CREATE DATABASE inside",
        "REVOKE CONNECT ON DATABASE inside FROM PUBLIC",
    ):
        postgres.execute(statement)
    at = f"127.0.0.1:{postgres.port}"
    try:
        for login, database in (
            ("locked:wrong", "postgres"),
            ("locked", "postgres"),
            ("nobody_there", "postgres"),
            ("mute", "postgres"),
            ("postgres", "nowhere"),
            ("postgres", "closed"),
            ("outside", "inside"),
        ):
            with (
                opened(f"postgresql://{login}@{at}/{database}") as fleet,
                pytest.raises(InvalidConfigError),
            ):
                fleet.count()
        with (
            opened(f"postgresql://crowd@{at}/postgres") as fleet,
            pytest.raises(DatabaseUnavailableError, match="too many"),
        ):
            fleet.count()
    finally:
        for statement in (
            "DROP DATABASE inside",
            "DROP DATABASE closed",
            "DROP ROLE mute, crowd, outside, locked",
        ):
            postgres.execute(statement)


# How a pooler knows its users: by a file of its own, or by asking the server.
ASKS = "auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1"
KNOWS_USERS = {
    "scram": ["auth_type = scram-sha-256"],
    "md5": ["auth_type = md5"],
    "plain": ["auth_type = plain"],
    "auth_query": ["auth_type = scram-sha-256", "auth_user = postgres", ASKS],
}


@POOLED
@pytest.mark.parametrize("auth", KNOWS_USERS)
def test_a_pooler_that_refuses_the_login(
    postgres: Postgres, pg_database: str, auth: str, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """A wrong password, of the client or of the pooler itself, an unknown user or database: exit 3."""
    postgres.require_password("guest", "right")
    with opened(pg_database) as fleet:
        fleet.upgrade()
    name = pg_database.rpartition("/")[2]
    behind = f"host=127.0.0.1 port={postgres.port} dbname={name}"
    more = [
        *("ignore_startup_parameters = options", *KNOWS_USERS[auth], "[databases]"),
        f"its_password = {behind} user=guest password=wrong",
        f"its_missing_password = {behind} user=guest",
        f"its_role = {behind} user=nobody_there",
        f"through = {behind}",
    ]
    logins = {"postgres": "", "ann": "right"}
    try:
        with PgBouncer(postgres, *more, logins=logins) as pooler:
            at = f"127.0.0.1:{pooler.port}"
            asks = auth == "auth_query"
            refused = [
                *(("ann:bad-one", name), ("ann", name), ("ann:right", "nowhere")),
                ("guest:bad-one" if asks else "nobody-here:some-password", "through"),
                *(
                    ("ann:right", f"its_{what}")
                    for what in ("password", "missing_password", "role")
                ),
            ]
            for login, database in refused:
                monkeypatch.setenv("MODELCTL_DATABASE_URL", f"postgresql://{login}@{at}/{database}")
                cli("count").failed(3, "the database refused the connection")
            monkeypatch.setenv("MODELCTL_DATABASE_URL", f"postgresql://ann:right@{at}/{name}")
            assert cli("count", "-o", "json").json["active"] == 0
    finally:
        postgres.execute("DROP ROLE guest")


@POOLED
def test_a_pooler_that_has_no_room(
    postgres: Postgres, pg_database: str, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """Too many clients, and too long a wait for a connection of the server: exit 5, each heals by itself."""
    name = pg_database.rpartition("/")[2]
    ignored = "ignore_startup_parameters = options"
    for setting in ("max_client_conn = 1", "query_wait_timeout = 1"):
        with PgBouncer(postgres, ignored, setting, connections=1) as pooler:
            monkeypatch.setenv("MODELCTL_DATABASE_URL", pooler.url(name))
            with psycopg.connect(pooler.url(name)) as other:
                other.execute("SELECT 1")
                cli("count").failed(5, "the database is not available", "try again")


@POOLED
def test_the_console_of_a_pooler_is_no_database(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """A URL that names PgBouncer's own console is exit 3, and says what it names."""
    with PgBouncer(postgres, "ignore_startup_parameters = options") as pooler:
        monkeypatch.setenv("MODELCTL_DATABASE_URL", pooler.url("pgbouncer"))
        cli("count").failed(3, "console of PgBouncer")


@POOLED
def test_refusals_of_a_pooler(postgres: Postgres) -> None:
    """A database that the server does not have is exit 3; a server that is down is exit 5."""
    with PgBouncer(postgres) as pooler:
        with opened(pooler.url("nowhere")) as fleet, pytest.raises(InvalidConfigError):
            fleet.count()
        pooler_url = pooler.url("postgres")
        postgres.stop()
        try:
            with (
                opened(pooler_url, database_timeout="5s") as fleet,
                pytest.raises(DatabaseUnavailableError),
            ):
                fleet.count()
        finally:
            postgres.start()
