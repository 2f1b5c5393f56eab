"""Sequences on disk: for rows that may not fit in memory and are read more than once."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, overload

from modelctl.errors import ModelctlError

T = TypeVar("T")
Row = TypeVar("Row", bound=NamedTuple)

_IN_MEMORY = 1 << 20
_BATCH = 1000
_CACHE_KIB = 4096


def unwritable(exc: OSError) -> ModelctlError:
    """Return the error that the folder for temporary files cannot be written."""
    return ModelctlError(
        f"cannot write to {tempfile.gettempdir()}: {exc.strerror}",
        hint="TMPDIR names another folder for temporary files",
    )


class Spool(Sequence[T]):
    """A sequence that is in memory up to a mebibyte, then in a temporary file without a name.

    Raises:
        ModelctlError: the folder for temporary files cannot be written.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        """Read *items* to the end; their exceptions are not caught."""
        self._file: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - open as long as the spool
        weakref.finalize(self, self._file.close)
        self._written = 0
        self._latest: list[T] = []
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Add an item at the end."""
        self._latest.append(item)
        if len(self._latest) == _BATCH:
            self._write()

    def _write(self) -> None:
        import pickle

        try:
            self._file.seek(0, 2)
            pickle.dump(self._latest, self._file, protocol=5)
            self._file.flush()  # so that a full disk fails here, not where the file is read
        except OSError as exc:
            raise unwritable(exc) from exc
        self._written += len(self._latest)
        self._latest = []

    def __len__(self) -> int:
        return self._written + len(self._latest)

    def __iter__(self) -> Iterator[T]:
        import pickle

        position = 0
        for _ in range(0, self._written, _BATCH):
            self._file.seek(position)
            batch = pickle.load(self._file)  # noqa: S301 - our own file, which no other program can open by name
            position = self._file.tell()
            yield from batch
        yield from self._latest

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        places = range(len(self))[index]
        if isinstance(places, range):
            if places.step > 0:
                return tuple(islice(self, places.start, places.stop, places.step))
            return tuple(self)[index]
        return next(islice(self, places, None))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"Spool([{shown}{', ...' if len(self) > 3 else ''}], length={len(self)})"


class KeyedSpool(Sequence[Row]):
    """A sequence of rows of text with unique keys (the first field), in a temporary file if it is long.

    Raises:
        ModelctlError: the folder for temporary files cannot be written.
    """

    def __init__(self, kind: type[Row]) -> None:
        import sqlite3

        self._make: Callable[[Iterable[Any]], Row] = kind._make
        self._failed = sqlite3.Error
        names = kind._fields
        # For "" SQLite makes a temporary file of its own, and deletes it on closing. The garbage
        # collector may close the connection in any thread.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._rows.close)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._rows.execute(f"PRAGMA {setting}")
        self._rows.execute(f"CREATE TABLE rows ({', '.join(names)}, UNIQUE ({names[0]}))")
        # One transaction for all rows: to end one after each takes longer than to insert it.
        self._rows.execute("BEGIN")
        self._insert = f"INSERT OR IGNORE INTO rows VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - only placeholders
        self._select = f"SELECT * FROM rows WHERE {names[0]} = ?"  # noqa: S608 - the name of a field
        self._length = 0

    def add(self, row: Row) -> bool:
        """Add a row at the end, unless its key is there already; return whether it was added."""
        try:
            added = self._rows.execute(self._insert, row).rowcount > 0
        except self._failed as exc:
            raise ModelctlError(f"cannot write to {tempfile.gettempdir()}: {exc}") from exc
        self._length += added
        return added

    def get(self, key: str) -> Row | None:
        """Return the row with this key."""
        row = self._rows.execute(self._select, (key,)).fetchone()
        return None if row is None else self._make(row)

    def by_key(self) -> Iterator[Row]:
        """Yield all rows in the order of their keys, by code points."""
        return map(self._make, self._rows.execute("SELECT * FROM rows ORDER BY 1"))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return map(self._make, self._rows.execute("SELECT * FROM rows ORDER BY rowid"))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))
