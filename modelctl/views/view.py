"""The form that every result takes before it is printed: `View`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from modelctl.model import CacheState

# A table longer than this is cut: nobody reads it to the end, and its rows are held in memory.
MAX_TABLE_ROWS = 1000


class View(NamedTuple):
    """One result, ready for every output format.

    *document*: the whole result, which ``-o json`` prints as one value.

    *columns* and *rows*: the table for people. *heading*: the index of the column that names a row.
    *optional*: the columns that a narrow terminal leaves out, the least important first. *split*: the
    columns whose cells are split between words before others are folded. *narrowest*: cells are
    folded at this width at least. *note* and *cache* (the state of the cache): lines below the table.
    *max_rows*: where the table is cut.

    *items*: the records that JSON Lines, CSV and TSV print, one on a line. *fields*: the columns of
    CSV and TSV. *name_field*: the field that ``-o name`` prints.
    """

    document: Any
    columns: tuple[str, ...]
    rows: Iterable[Sequence[Any]]
    items: Iterable[Any]
    fields: tuple[str, ...]
    name_field: str = "id"
    heading: int = 0
    optional: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    narrowest: int = 16
    note: str | None = None
    cache: CacheState | None = None
    max_rows: int | None = None


class Each(Sequence[Any]):
    """What *make* makes of each of some items, which may be on disk."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], Any]) -> None:
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, self._items)

    def __getitem__(self, index: Any) -> Any:
        found = self._items[index]
        return [*map(self._make, found)] if isinstance(index, slice) else self._make(found)


def field_names(kind: type, *first: str) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass, those in *first* in front.

    Scripts find the columns of TSV by their position, so the important columns come first and stay
    in their places.
    """
    return (*first, *(field.name for field in fields(kind) if field.name not in first))


def record_view(
    result: Any,
    *,
    columns: tuple[str, ...],
    row: Sequence[Any],
    name_field: str,
    optional: tuple[str, ...] = (),
    note: str | None = None,
    cache: CacheState | None = None,
) -> View:
    """Return the view of a dataclass that is one record: a table of one row, and all its fields."""
    return View(
        document=result,
        columns=columns,
        rows=[row],
        items=[result],
        fields=field_names(type(result)),
        name_field=name_field,
        optional=optional,
        note=note,
        cache=cache,
    )


def dry_run_note(dry_run: bool) -> str | None:
    """Return the line that says that a dry run changed nothing."""
    return "dry run: nothing was changed" if dry_run else None
