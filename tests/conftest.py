"""Fixtures for all tests: servers, databases, and an environment without the user's settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelctl import Fleet
from tests import commands, fleets, servers
from tests.faults.crashing import Nursery
from tests.servers import Postgres, Redis

# When imported, so that session fixtures and subprocesses do not see them either. libpq reads PG*.
for _name in [name for name in os.environ if name.startswith(("MODELCTL_", "PG"))]:
    del os.environ[_name]
# The tests' own connections find the tables of modelctl without their schema. The product does not:
# it names the schema, and gives libpq options of its own, so that it does not see these.
os.environ["PGOPTIONS"] = "-c search_path=public,modelctl"

_MEMORY = "/dev/shm"  # noqa: S108 - mkdtemp makes the folders in it
_NEEDED_BYTES = 4 << 30


def _use_memory_for_files() -> None:
    """Put servers and temporary files into memory where there is room: a third of the time less."""
    try:
        room = os.statvfs(_MEMORY)
    except OSError:
        return
    is_large = room.f_bavail * room.f_frsize >= _NEEDED_BYTES
    if "TMPDIR" not in os.environ and is_large and not room.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY


_use_memory_for_files()


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: the tests wait as much as they work."""
    return (os.cpu_count() or 1) + 1


# Files that take long: if one worker began such a file last, the other workers would rest meanwhile.
SLOW = (
    "test_state_machine",
    "test_history",
    "test_protocol_model",
    "test_concurrency",
    "test_batch",
    "test_topologies",
    "test_limits",
    "test_outcomes",
    "test_forks",
    "test_deadline",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    places = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOW)))


def pytest_report_header() -> list[str]:
    """Name the servers that the tests will use."""
    return servers.describe()


@pytest.fixture(autouse=True)
def clean_environment(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the user's files and terminal settings out of every test."""
    for name, value in _home(tmp_path_factory).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("MODELCTL_REDIS_TIMEOUT", fleets.PATIENCE)
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def _home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    # Not its mktemp, which reads the names of all folders before it makes one.
    home = Path(tempfile.mkdtemp(prefix="home", dir=tmp_path_factory.getbasetemp()))
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
    }


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run one PostgreSQL server for all tests."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """Run one Redis server for all tests."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def pg_template(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name a database in which the product has made its schema."""
    name = postgres.create_database()
    settings: dict[str, Any] = _home(tmp_path_factory) | {
        "MODELCTL_DATABASE_URL": postgres.url(name)
    }
    upgrade = commands.run("db", "upgrade", **settings)
    assert upgrade.code == 0, upgrade
    return name


@pytest.fixture
def pg_database(postgres: Postgres, pg_template: str) -> Iterator[str]:
    """Give the URL of a fresh database with the product's schema; `postgres` may be stopped."""
    yield from _database(postgres, pg_template)


@pytest.fixture
def empty_pg(postgres: Postgres) -> Iterator[str]:
    """Give the URL of a fresh database with nothing in it."""
    yield from _database(postgres, None)


def _database(server: Postgres, template: str | None) -> Iterator[str]:
    server.recover()
    name = server.create_database(template)
    yield server.url(name)
    server.recover()
    server.drop_database(name)


@pytest.fixture
def redis_url(redis_server: Redis) -> Iterator[str]:
    """Give the URL of an empty Redis; the test may stop or pause `redis_server`."""
    redis_server.recover()
    redis_server.ask("FLUSHALL")
    yield redis_server.url()
    redis_server.recover()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a SQLite database with the product's schema, to copy."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    with fleets.opened(f"sqlite:///{path}") as fleet:
        fleet.upgrade()
    return path


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> str:
    """Give the URL of a fresh SQLite database with the product's schema."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'fleet.db')}"


@pytest.fixture(scope="session")
def shared_database(postgres: Postgres, pg_template: str) -> str:
    """Name a database with the product's schema that many tests use one after another."""
    return postgres.create_database(pg_template)


@pytest.fixture
def pg_cleared(postgres: Postgres, shared_database: str) -> str:
    """Give the URL of a database with empty tables: faster than a fresh one, for rows alone."""
    url = postgres.url(shared_database)
    fleets.clear(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet_url(request: pytest.FixtureRequest) -> str:
    """Give the URL of a database of each kind, with the product's schema and no rows."""
    name = "pg_cleared" if request.param == "postgresql" else "sqlite_database"
    return str(request.getfixturevalue(name))


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_url(request: pytest.FixtureRequest) -> str:
    """Give the URL of a database of each kind that is the test's own: it may change the schema."""
    name = "pg_database" if request.param == "postgresql" else "sqlite_database"
    return str(request.getfixturevalue(name))


@pytest.fixture
def fleet(fleet_url: str) -> Iterator[Fleet]:
    """Give a fleet without models on a database of each kind."""
    with fleets.opened(fleet_url) as fleet:
        yield fleet


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> commands.Cli:
    """Run the program in this process."""
    return commands.inside(capsys)


@pytest.fixture
def tool(cli: commands.Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> commands.Cli:
    """Run the program on the database of `fleet_url`; keywords are settings like ``recovery_limit=2``."""

    def call(*arguments: str, **configured: object) -> commands.Result:
        with monkeypatch.context() as environment:
            for name, value in fleets.environ(fleet_url, **configured).items():
                environment.setenv(name, value)
            return cli(*arguments)

    return call


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Run a process that forks the children that a module stops or kills."""
    with Nursery() as process:
        yield process


@pytest.fixture
def pg(pg_cleared: str) -> Iterator[Fleet]:
    """Give a fleet without models on PostgreSQL."""
    with fleets.opened(pg_cleared) as fleet:
        yield fleet
