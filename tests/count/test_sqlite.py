"""The cached count in a SQLite file: right after any change, quick beside a long write."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from modelctl.config.config import Config
from modelctl.config.sections import DatabaseConfig
from modelctl.count.cache import Cache
from modelctl.count.sqlite import SqliteCache
from modelctl.errors import InvalidConfigError, MissingSchemaError, ModelctlError
from tests.count.rigs import OPERATIONS, SqliteRig, every_operation, fill, shown
from tests.waiting import at_most


def test_any_change_of_status_takes_the_count_and_the_lease(sqlite_rig: SqliteRig) -> None:
    """Another program's SQL empties the cache in its own transaction; other updates do not."""
    cache = sqlite_rig.cache()
    for sql in (
        "INSERT INTO models (id) VALUES ('a'), ('b')",
        "UPDATE models SET active = 0 WHERE id = 'a'",
        "UPDATE models SET id = 'c' WHERE id = 'a'",
        "DELETE FROM models WHERE id = 'b'",
        "REPLACE INTO models (id) VALUES ('c')",
    ):
        fill(cache, 1)
        sqlite_rig.execute(sql)
        assert shown(cache) is None, sql
    for active in (0, 1):
        token = cache.lease()
        assert token
        sqlite_rig.execute(f"UPDATE models SET active = {active}")
        cache.fill(token, 9)
        assert shown(cache) is None
    fill(cache, 1)
    sqlite_rig.execute("UPDATE models SET success_count = success_count + 1, active = active")
    assert shown(cache) == 1


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_was_set_makes_a_miss(sqlite_rig: SqliteRig, seconds: int) -> None:
    """A value that is too old or comes from the future is not shown; nor does such a lease block."""
    cache = sqlite_rig.cache()
    fill(cache, 1)
    shift = f"UPDATE modelctl_cache SET expires_at = expires_at + {seconds}"
    sqlite_rig.execute(shift)
    assert cache.peek() is None
    assert cache.lease()
    sqlite_rig.execute(shift)
    fill(cache, 2)
    assert shown(cache) == 2


def test_a_long_write_stops_no_reader(sqlite_rig: SqliteRig) -> None:
    """During a long write the cached count is shown, and a fill gives up soon."""
    cache = sqlite_rig.cache()
    fill(cache, 1)
    with closing(sqlite3.connect(sqlite_rig.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with at_most(2):
            assert shown(cache) == 1
            assert cache.lease() is None
            cache.fill("token", 2)
        writer.execute("ROLLBACK")
    assert shown(cache) == 1


def test_a_locked_file_is_waited_for(sqlite_rig: SqliteRig) -> None:
    """In a file without a write-ahead log a reader waits for a writer's last moment."""
    sqlite_rig.execute("PRAGMA journal_mode = DELETE")
    cache = sqlite_rig.cache()
    fill(cache, 1)
    writer = sqlite3.connect(sqlite_rig.path, isolation_level=None, check_same_thread=False)
    with closing(writer):
        writer.execute("BEGIN EXCLUSIVE")
        assert cache.lease() is None
        timer = threading.Timer(0.4, writer.execute, ["ROLLBACK"])
        timer.start()
        assert shown(cache) == 1
        timer.join()


FILES: dict[str, tuple[Callable[[Path], object], type[ModelctlError]]] = {
    "missing": (lambda path: None, MissingSchemaError),
    "empty": (lambda path: path.touch(), MissingSchemaError),
    "a folder": (lambda path: path.mkdir(), InvalidConfigError),
    "no database": (lambda path: path.write_text("hello" * 1000), InvalidConfigError),
}


@every_operation
@pytest.mark.parametrize(("make", "error"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_database_of_ours(
    tmp_path: Path,
    operation: Callable[[Cache], object],
    make: Callable[[Path], object],
    error: type[ModelctlError],
) -> None:
    """Every operation says what is wrong with the file; nothing is created."""
    path = tmp_path / "models.db"
    make(path)
    cache = SqliteCache(Config(database=DatabaseConfig(f"sqlite:///{path}")))
    if error is InvalidConfigError and operation in (OPERATIONS["lease"], OPERATIONS["fill"]):
        # A fill is not needed; the count is returned.
        assert not operation(cache)
        return
    with pytest.raises(error):
        operation(cache)
    assert path.exists() or error is MissingSchemaError
