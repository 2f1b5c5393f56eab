"""The embedded database file: opening it, creating it, and what its errors mean to the operator."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    RefusedError,
    clean,
)
from modelctl.forks import gate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUSY_SECONDS = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a retry works once there is room


def connect(path: Path, *, busy: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Open the database at *path* in driver autocommit; the file must exist.

    *busy*: how long (seconds) a statement waits for another writer's lock.

    Raises:
        MissingSchemaError: there is no such file.
        InvalidConfigError: it is not a file, or may not be opened.
    """
    if not exists(path):
        raise MissingSchemaError(
            f"there is no database at {path}", hint="create it: modelctl db upgrade"
        )
    try:
        connection = _open(path, "mode=rw", busy)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.OperationalError:
            # SQLite creates a -shm file beside a file in WAL mode, which fails in a read-only folder.
            # Without a -wal file nobody is writing, so the file can be opened as immutable.
            connection.close()
            if os.access(path.parent, os.W_OK) or path.with_name(path.name + "-wal").exists():
                raise
            connection = _open(path, "immutable=1", busy)
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
    return connection


def complete(path: Path, prefix: str) -> list[str]:
    """Return at most 100 ids that begin with *prefix*.

    Without SQLAlchemy, so that the completion of a shell is fast.
    """
    sql = (
        "SELECT id FROM models WHERE substr(id, 1, length(:prefix)) = :prefix"
        " AND typeof(id) = 'text' ORDER BY id LIMIT 100"
    )
    connection = connect(path)
    try:
        return [row[0] for row in connection.execute(sql, {"prefix": prefix})]
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
    finally:
        connection.close()


def has_models(path: Path) -> bool:
    """Whether there is a database at *path* and a model in it; without SQLAlchemy."""
    if not exists(path):
        return False
    connection = connect(path)
    try:
        return connection.execute("SELECT 1 FROM models LIMIT 1").fetchone() is not None
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
    finally:
        connection.close()


def exists(path: Path) -> bool:
    """Whether there is a file at *path*; raise InvalidConfigError if it is a folder or not readable."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise InvalidConfigError(
            f"the database {path} cannot be opened: {exc.strerror}",
            hint="check the permissions of the file and its folder",
        ) from exc
    if stat.S_ISDIR(mode):
        raise InvalidConfigError(f"the database {path} is a folder, not a file")
    return True


class _Connection(sqlite3.Connection):
    """A connection; as long as it is open in one thread, a fork by another thread waits."""

    _thread: int | None = None

    def __init__(self, *args: Any, **how: Any) -> None:
        self._thread = gate.enter()
        try:
            super().__init__(*args, **how)
        except BaseException:
            self._leave()
            raise

    def close(self) -> None:
        """Close it."""
        try:
            super().close()
        finally:
            self._leave()

    def _leave(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            gate.leave(thread)

    def __del__(self) -> None:
        self._leave()


def _open(path: Path, mode: str, busy: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?{mode}",
        uri=True,
        timeout=busy,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    connection.create_function("sqrt", 1, _root, deterministic=True)  # not in every build
    # So that bytes of another program that are not UTF-8 can be shown, escaped.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection


def compare_with_one(sql: str) -> str:
    """Rewrite IS TRUE in *sql* so that only 1 is true.

    In SQLite 2 IS TRUE holds, but active = TRUE does not count a row with 2.
    """
    return sql.replace(" IS TRUE", " IS 1").replace(" IS NOT TRUE", " IS NOT 1")


def _root(number: float | None) -> float | None:
    return None if number is None else number**0.5


def create(path: Path, migrate: Callable[[Path], None]) -> None:
    """Create the database at *path* (folder 0700, file 0600) with *migrate*, unless it is there.

    It is built under another name and then linked to *path*: no program can open an unfinished
    file, and if two processes create it at the same time, one of them wins.

    Raises:
        InvalidConfigError: the folder cannot be made or written.
    """
    import contextlib
    import tempfile
    from pathlib import Path

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
            draft = Path(folder, path.name)
            os.close(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
            try:
                migrate(draft)
            except ModelctlError as exc:  # its message names the draft, not the file of the user
                message = exc.message.replace(clean(str(draft)), clean(str(path)))
                raise type(exc)(message, hint=exc.hint) from exc
            with contextlib.closing(_open(draft, "mode=rw", BUSY_SECONDS)) as connection:
                # With WAL readers do not wait for writers, and a long listing does not block one.
                # Only now: before, on a full disk, a part of the schema would stay in the -wal file
                # without an error.
                connection.execute("PRAGMA journal_mode = WAL")
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
    except OSError as exc:
        if exc.errno in _FULL:
            raise DatabaseUnavailableError(
                f"cannot create the database {path}: {exc.strerror}",
                hint="free some space, or set MODELCTL_DATABASE_URL or XDG_DATA_HOME",
            ) from exc
        raise InvalidConfigError(
            f"cannot create the database {path}: {exc.strerror}",
            hint="set MODELCTL_DATABASE_URL or XDG_DATA_HOME",
        ) from exc
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc


def translate(exc: BaseException, path: Path) -> ModelctlError:
    """Return the error of modelctl that tells the operator what an error of sqlite3 means."""
    text = str(exc)
    if "no such table" in text or "no such column" in text or "has no column" in text:
        return MissingSchemaError(
            f"the database {path} lacks modelctl's schema ({text})",
            hint="run: modelctl db upgrade",
        )
    if "not a database" in text or "malformed" in text:
        return InvalidConfigError(
            f"{path} is not a SQLite database, or is damaged ({text})",
            hint="restore it from a backup, or name another file in database.url",
        )
    if "readonly" in text or "unable to open" in text or "authoriz" in text:
        return InvalidConfigError(
            f"the database {path} cannot be opened for this ({text})",
            hint="check the permissions of the file and its folder",
        )
    if isinstance(exc, sqlite3.IntegrityError):
        return RefusedError(f"the database refused the change ({text})")
    if isinstance(exc, sqlite3.OperationalError):
        return DatabaseUnavailableError(
            f"the database {path} is not available ({text})", hint="try again later"
        )
    return ModelctlError(f"the database {path} failed ({text})")
