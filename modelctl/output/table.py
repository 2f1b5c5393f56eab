"""Results as a table for people. Only this file, the dashboard and the progress display use Rich."""

from __future__ import annotations

import io
import os
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING, Literal

from modelctl.errors import clean
from modelctl.model import CacheState
from modelctl.views.values import table_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

    from modelctl.views.view import View

CELL_STYLES = {
    "active": "green",
    "disabled": "red",
    "auto-disabled": "yellow",
    "ok": "green",
    "wrong": "bold red",
}
_CACHE_NOTES = {
    CacheState.INVALIDATED: "cache: invalidated",
    CacheState.UNCHANGED: "cache: unchanged",
    CacheState.OFF: "cache: off",
    CacheState.QUEUED: "CACHE STALE: the change is committed, but the invalidation is only queued."
    " To deliver it: modelctl cache drain",
}
# A terminal that is too narrow first loses optional columns, until the others fit with their cells
# folded at _FOLD_WIDE. If they do not fit folded at View.narrowest, there is no table at all.
_FOLD_WIDE = 50
_SHORT = 13  # a column that is not wider is folded last
_GAP = 2


def draw(view: View, *, wide: bool = False) -> str:
    """Return the table: as wide as the terminal at most, or as wide as needed in a pipe.

    *wide*: as wide as needed, also on a terminal.
    """
    from rich.console import Console
    from rich.text import Text

    titles = [name.replace("_", " ") for name in view.columns]
    rows = [[table_text(value) for value in row] for row in islice(view.rows, view.max_rows)]
    terminal = Console()
    on_terminal = sys.stdout.isatty()
    available = None if wide else _available_width(terminal.width if on_terminal else None)
    widths, left_out = _choose_columns(view, titles, rows, available)
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=available or sum(widths.values()) + _GAP * len(widths),
        color_system=terminal.color_system if on_terminal and not terminal.no_color else None,  # type: ignore[arg-type]
    )
    if not rows:
        console.print(Text("nothing to show", "dim"))
    elif widths:
        _print_table(console, titles, rows, widths)
    else:
        _print_cards(console, titles, rows, view.heading)
    for note, style in _notes(view, left_out, cut=len(rows) == view.max_rows):
        for line in note.splitlines():
            console.print(Text(clean(line), style), soft_wrap=available is None)
    return drawn.getvalue()


def _available_width(terminal_width: int | None) -> int | None:
    """Return the width that a table may have; None: any. COLUMNS limits it in a pipe too."""
    if terminal_width is not None:
        return terminal_width
    columns = os.environ.get("COLUMNS", "")
    return (int(columns) or None) if columns.isdigit() else None


def _notes(view: View, left_out: Sequence[str], *, cut: bool) -> Iterator[tuple[str, str]]:
    """Return the lines below the table, each with its style."""
    if left_out:
        yield f"(no room for {', '.join(left_out)}; -o csv has all)", "dim"
    if cut and view.max_rows:
        yield f"(the first {view.max_rows}; -o csv has all)", "dim"
    if view.note:
        yield view.note, "dim"
    if view.cache:
        yield (
            _CACHE_NOTES[view.cache],
            "bold yellow" if view.cache is CacheState.QUEUED else "dim",
        )


def _print_table(
    console: Console,
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: dict[int, int],
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, width in widths.items():
        numeric = all(re.fullmatch(r"[0-9.]*%?", row[column]) for row in rows)
        side: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(titles[column], justify=side, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(_styled(row[column]) for column in widths))
    console.print(table)


def _print_cards(
    console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]], heading: int
) -> None:
    """Print each row as a card, a value on a line; *heading*: the column above the others."""
    from rich.table import Table

    for row in rows:
        console.print(_styled(row[heading], "bold"))
        card = Table.grid(padding=(0, 2, 0, 0))
        card.add_column(no_wrap=True)
        card.add_column(overflow="fold")
        for column, cell in enumerate(row):
            if cell and column != heading:
                card.add_row(f"  {titles[column]}", _styled(cell))
        console.print(card)


def _styled(cell: str, style: str = "") -> Text:
    """Return the cell as Rich's Text: in a plain string Rich would take a [bracket] for markup."""
    from rich.text import Text

    return Text(cell, CELL_STYLES.get(cell, style)) if cell else Text("-", "dim")


def _choose_columns(
    view: View, titles: Sequence[str], rows: Sequence[Sequence[str]], available: int | None
) -> tuple[dict[int, int], list[str]]:
    """Return the columns that fit with their widths, and the titles of those that were left out.

    Empty columns go first, then the optional ones, then long cells are folded. Without any column
    the rows do not fit into a table.
    """
    from rich.cells import cell_len

    def longest_cell(column: int) -> int:
        return max((cell_len(row[column]) for row in rows), default=0)

    widths: dict[int, int] = {}
    for column, title in enumerate(titles):
        longest = longest_cell(column)
        if longest or available is None:
            widths[column] = max(longest, len(title))
    if available is None or _table_width(widths, fold=available) <= available:
        return widths, []
    for column in widths:  # a title may be folded between its words
        widths[column] = max(longest_cell(column), *map(len, titles[column].split()))
    dropped = _drop_optional(view, widths, available)
    short = [c for c, width in widths.items() if width <= _SHORT]
    if _table_width(widths, fold=available) > available:
        for column in map(view.columns.index, view.split):
            if column in widths:
                cells = [titles[column], *(row[column] for row in rows)]
                widths[column] = max(cell_len(word) for cell in cells for word in cell.split())
    if _table_width(widths, fold=view.narrowest) > available:
        return {}, []
    lengths = {column: [cell_len(row[column]) for row in rows] for column in widths}
    folded = _fold(widths, lengths, short, view.narrowest, available)
    return folded, [titles[column] for column in dropped]


def _drop_optional(view: View, widths: dict[int, int], available: int) -> list[int]:
    """Take optional columns out of *widths* until the others fit; return those taken out."""
    dropped: dict[int, int] = {}
    for name in view.optional:
        column = view.columns.index(name)
        if _table_width(widths, fold=_FOLD_WIDE) > available and column in widths:
            dropped[column] = widths.pop(column)
    # A wide column that was dropped last may leave room for a narrow one that was dropped before.
    for column in reversed([*dropped]):
        widths[column] = dropped[column]
        if _table_width(widths, fold=_FOLD_WIDE) > available:
            del widths[column]
        else:
            del dropped[column]
    return [*dropped]


def _fold(
    widths: dict[int, int],
    cells: dict[int, list[int]],
    short: Sequence[int],
    narrowest: int,
    available: int,
) -> dict[int, int]:
    """Make columns narrower until the table fits, where that adds the fewest lines.

    *cells*: the lengths of the cells of each column. The *short* columns are folded last.
    """
    folded = {column: min(width, available) for column, width in sorted(widths.items())}

    def price(column: int) -> tuple[int, int]:
        """How many lines it adds to make a column narrower; of equal ones the wider one is folded."""
        width = folded[column]
        more = (-(-length // (width - 1)) - -(-length // width) for length in cells[column])
        return sum(more), -width

    while _table_width(folded, fold=available) > available:
        long = [c for c, width in folded.items() if width > narrowest and c not in short]
        if long:
            folded[min(long, key=price)] -= 1
        else:
            folded[max(folded, key=folded.__getitem__)] -= 1
    return folded


def _table_width(widths: dict[int, int], *, fold: int) -> int:
    """Return the width of a table whose cells are folded at *fold*."""
    return sum(min(width, fold) for width in widths.values()) + _GAP * len(widths) - _GAP
