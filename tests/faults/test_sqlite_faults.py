"""A SQLite file that is locked, damaged, full or gone: one clear error, nothing lost."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from modelctl import MissingSchemaError
from modelctl.database import sqlite
from tests import commands, fleets
from tests.faults.relays import MULTIPLE, READS, SINGLE
from tests.fleets import opened, seed, sql, trip


class File:
    """A SQLite fleet in its journal mode, for the command line and as other programs see it."""

    def __init__(self, url: str, mode: str) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))
        with opened(url) as fleet:
            seed(fleet, ["m1", "m2", "m3"])
            trip(fleet, "m3")
        assert sql(url, f"PRAGMA journal_mode = {mode}") == [(mode,)]

    def assert_whole(self, before: Any) -> None:
        """Nothing is damaged or changed, and the next change works."""
        assert sql(self.url, "PRAGMA integrity_check") == [("ok",)]
        assert fleets.everything(self.url) == before
        with opened(self.url) as fleet:
            active = fleet.count().active
            assert fleet.disable("m1").changes[0].changed
            assert fleet.count().active == active - 1


@pytest.fixture(params=["wal", "delete"])
def file(
    request: pytest.FixtureRequest, sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> File:
    """Give three models in a file, the last one auto-disabled, that commands use by default."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_database)
    return File(sqlite_database, request.param)


WRITES = {
    "disable": ["disable", "m1", "m2"],
    "enable": ["enable", "m3"],
    "add": ["add", "new"],
    "remove": ["remove", "m1", "--yes"],
    "success": ["record-success", "m3"],
    "failure": ["record-failure", "m1", "--type", "parse-error"],
    "recover": ["recover", "--cooldown", "0s"],
    "cache clear": ["cache", "clear"],
}


def test_a_file_that_stays_locked(
    file: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another writer that does not end is exit 5, nothing is changed, and counting goes on."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    before = fleets.everything(file.url)
    cli = commands.inside(capsys)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for arguments in WRITES.values():
            cli(*arguments).failed(5, "database is locked", "try again")
        assert cli("count").out == "2\n"
    file.assert_whole(before)


def test_a_file_that_is_locked_exclusively(
    file: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that locks out readers, too, makes a count exit 5."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    before = fleets.everything(file.url)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE models SET provider = 'p'")
        commands.inside(capsys)("count").failed(5, "database is locked", "try again")
        other.execute("ROLLBACK")
    file.assert_whole(before)


def test_a_file_that_is_locked_for_a_moment(file: File) -> None:
    """A change waits for another writer, and is made once."""
    with (
        opened(file.url) as fleet,
        closing(sqlite3.connect(file.path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        tried: list[Any] = []

        @sa.event.listens_for(sa.Engine, "handle_error")
        def let_in(context: sa.ExceptionContext) -> None:
            tried.append(context.original_exception)
            if len(tried) == 3:
                other.execute("ROLLBACK")

        try:
            assert fleet.record_failure("m1").changes[0].id == "m1"
        finally:
            sa.event.remove(sa.Engine, "handle_error", let_in)
        assert len(tried) == 3
        assert fleet.show("m1").failure_count == 1


def no_larger_than(size: int) -> Callable[[], None]:
    """Return what lets a process write no file beyond this size, as on a full disk."""
    # Python ignores the signal, so that writing fails.
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("file", "what"), [("wal", "import"), ("delete", "record-batch")], indirect=["file"]
)
def test_a_disk_that_is_full(file: File, what: str) -> None:
    """A change that finds no room is exit 5 and not half made; the file is whole."""
    with opened(file.url) as fleet:
        seed(fleet, [f"filler{number}" for number in range(1000)])
    before = fleets.everything(file.url)
    # The command's copy of what it reads has room; what it writes to the database has not.
    text = "x" * 120
    lines = [f'{{"id": "new{number}", "name": "{text}"}}' for number in range(1000)]
    if what == "record-batch":
        outcome = f'"outcome": "failure", "type": "timeout", "reason": "{text}"'
        lines = [f'{{"id": "filler{number}", {outcome}}}' for number in range(1000)]
    room = no_larger_than(file.path.stat().st_size + 4096)
    data = "\n".join(lines).encode()
    full = commands.run(what, "-", stdin=data, before=room)
    full.failed(5, "not available")
    file.assert_whole(before)
    assert commands.run(what, "-", stdin=data).code == 0


def test_a_count_on_a_full_disk(file: File) -> None:
    """A count works on a full disk; only its cache needs room."""
    sql(file.url, "DELETE FROM modelctl_cache")
    with closing(sqlite3.connect(file.path)) as other:
        other.execute("SELECT 1 FROM models")  # so that the files of the log are there
        done = commands.run("count", "-o", "json", before=no_larger_than(0))
        assert (done.code, done.json["active"], done.err) == (0, 2, "")


def test_a_damaged_page(file: File, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage is exit 3, not "try again"; what is whole stays so, and a backup brings all back."""
    sql(file.url, "PRAGMA wal_checkpoint(TRUNCATE)")
    backup = shutil.copy(file.path, file.path.with_suffix(".bak"))
    before = fleets.everything(file.url)
    ((page,),) = sql(file.url, "SELECT rootpage FROM sqlite_schema WHERE name = 'models'")
    ((size,),) = sql(file.url, "PRAGMA page_size")
    with file.path.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    damaged = file.path.read_bytes()
    cli = commands.inside(capsys)
    for arguments in (["count", "--fresh"], ["list"], ["show", "m1"], *WRITES.values()):
        if arguments != WRITES["cache clear"]:
            cli(*arguments).failed(3, "damaged", "backup")
    assert len(file.path.read_bytes()) == len(damaged)
    shutil.copy(backup, file.path)
    file.assert_whole(before)


def test_a_file_that_goes_and_comes_back(file: File) -> None:
    """A long-lived fleet sees what is there at each call, and makes no empty file by itself."""
    with opened(file.url) as fleet:
        assert fleet.count().active == 2
        moved = file.path.rename(file.path.with_suffix(".moved"))
        for call in (*READS.values(), SINGLE["disable"], MULTIPLE["recover"]):
            with pytest.raises(MissingSchemaError, match="no database at"):
                call(fleet)
        assert not file.path.exists()
        shutil.copy(moved, file.path)
        sql(file.url, "DELETE FROM models WHERE id = 'm1'")
        assert fleet.count().active == 1
        moved.replace(file.path)
        assert fleet.count().active == 2
        assert fleet.disable("m1").changes[0].changed


def test_a_folder_that_may_not_be_entered(sqlite_database: str) -> None:
    """A folder without access and a path that is too long are wrong configuration, exit 3."""
    folder = Path(sqlite_database.removeprefix("sqlite:///")).parent
    folder.chmod(0)
    closed = commands.run(
        "count", before=commands.obey_file_modes, MODELCTL_DATABASE_URL=sqlite_database
    )
    folder.chmod(0o700)
    closed.failed(3, "permission")
    too_long = f"sqlite:///{folder}/{'x' * 300}.db"
    commands.run("count", MODELCTL_DATABASE_URL=too_long).failed(3, "too long")
