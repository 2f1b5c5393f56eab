"""The dashboard of `watch`: a snapshot of the fleet laid out for a terminal of any size."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from modelctl.errors import clean
from modelctl.output.table import CELL_STYLES
from modelctl.views.watch import (
    EVENT_COLUMNS,
    EVENTS_LEFT_OUT,
    OFF_COLUMNS,
    OFF_LEFT_OUT,
    Column,
    Part,
    event_row,
    hold_line,
    off_row,
    summary,
)

if TYPE_CHECKING:
    from rich.text import Text

    from modelctl.watch.results import Snapshot

_GAP = "  "
# From this height on there are blank lines between the sections.
_ROOMY = 16
# With fewer lines for both tables there is only that of the models that are off.
_ROOM_FOR_BOTH = 7
_TITLE, _HEADING, _NOTABLE, _PROBLEM = "bold", "dim", "yellow", "bold red"


def dashboard(
    of: Snapshot, *, place: str, keys: str, problem: str, width: int, height: int
) -> Text:
    """Return the lines of the whole screen.

    *place*: which fleet it is. *keys*: how to quit. *problem*: what is wrong with what is shown.
    """
    from rich.text import Text

    blank = [Text("")] if height >= _ROOMY else []
    last = [_line(problem, width, _PROBLEM)] if problem else []
    lines = [
        _title(of, place, keys, width),
        *_summary(of, width, height // 5),
        *_holds(of, width, height // 6),
    ]
    lines += blank
    room = height - len(lines) - len(last)
    off, events = _share(room - len(blank), _off_height(of), 1 + len(of.events))
    lines += _off(of, width, off)
    if events:
        lines += [*blank, *_events(of, width, events)]
    lines = lines[: height - len(last)]
    lines += [Text("")] * (height - len(last) - len(lines)) + last
    return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)


def _title(of: Snapshot, place: str, keys: str, width: int) -> Text:
    clock = f"{of.now:%H:%M:%SZ}"
    right = f"{clock}  {keys}" if width >= 60 else clock if width >= 30 else ""
    room = max(0, width - len(right) - len(_GAP))
    line = _line(f"modelctl  {clean(place)}", room, _TITLE)
    line.append(" " * (room - line.cell_len) + _GAP + right, _HEADING)
    line.truncate(width, overflow="crop")
    return line


def _summary(of: Snapshot, width: int, most: int) -> list[Text]:
    """Put the parts of the summary into few lines; if too many, leave out what is as usual."""
    parts = summary(of)
    while len(lines := _joined(parts, width)) > max(3, most):
        usual = [number for number, part in enumerate(parts) if number and not part.notable]
        del parts[usual[-1] if usual else -1]
    return lines


def _joined(parts: Sequence[Part], width: int) -> list[Text]:
    from rich.text import Text

    lines: list[Text] = []
    for number, part in enumerate(parts):
        style = _NOTABLE if part.notable else "" if number else "bold green"
        text = _line(part.words, width, style)
        if lines and lines[-1].cell_len + 3 + text.cell_len <= width:
            lines[-1].append("   ").append_text(text)
        else:
            lines.append(Text().append_text(text))
    return lines


def _holds(of: Snapshot, width: int, most: int) -> Iterator[Text]:
    shown = of.holds if len(of.holds) <= most else of.holds[: max(1, most - 1)]
    for hold in shown:
        yield _line(hold_line(hold), width, _NOTABLE)
    if more := of.hold_count - len(shown):
        yield _line(f"and {more} more pauses and incidents: modelctl stats", width, _HEADING)


def _share(room: int, off: int, events: int) -> tuple[int, int]:
    """Divide lines between the models that are off, three fifths if they need so many, and the events."""
    if room < _ROOM_FOR_BOTH and off > 1:
        return min(off, room), 0
    for_off = min(off, max(room - events, -(-room * 3 // 5)))
    for_events = min(events, room - for_off)
    # A heading needs an event below it.
    return (for_off, for_events) if for_events > 1 else (min(off, room), 0)


def _off_height(of: Snapshot) -> int:
    """Return how many lines the models that are off would need."""
    return 1 + _off_total(of)


def _off_total(of: Snapshot) -> int:
    return of.disabled + of.auto_disabled + of.spared


def _off(of: Snapshot, width: int, height: int) -> Iterator[Text]:
    """Give the models that are off, the newest first, and how many more there are."""
    total = _off_total(of)
    if not total:
        yield _line("no model is off", width, _HEADING)
        return
    fits = height - 1 if total <= height - 1 else height - 2
    models = of.off[: max(0, fits)]
    rows = [off_row(model, of.now) for model in models]
    styles = [CELL_STYLES[model.status] for model in models]
    yield from _table(OFF_COLUMNS, OFF_LEFT_OUT, rows, styles, width)
    if total > len(rows):
        yield _line(f"and {total - len(rows)} more: modelctl list --off", width, _HEADING)


def _events(of: Snapshot, width: int, height: int) -> Iterator[Text]:
    rows = [event_row(event, of.now) for event in of.events[: height - 1]]
    yield from _table(EVENT_COLUMNS, EVENTS_LEFT_OUT, rows, [""] * len(rows), width)


# ── Tables whose cells are cut to fit ───────────────────────────────────────────────────────────


def _table(
    columns: Sequence[Column],
    left_out: Iterable[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str],
    width: int,
) -> Iterator[Text]:
    """Give the heading and the rows; *styles*: of the model of each row."""
    widths = _widths(columns, left_out, rows, width)
    titles = [column.title for column in columns]
    yield _row(titles, widths, width, [_HEADING] * len(titles))
    for row, style in zip(rows, styles, strict=True):
        of_cells = [style if title == "model" else "" for title in titles]
        yield _row(row, widths, width, of_cells)


def _widths(
    columns: Sequence[Column], left_out: Iterable[str], rows: Sequence[Sequence[str]], width: int
) -> dict[int, int]:
    """Return the width of each column that is shown, by its place."""
    from rich.cells import cell_len

    natural = {
        place: max([len(column.title), *(cell_len(_encodable(row[place])) for row in rows)])
        for place, column in enumerate(columns)
    }
    widths = {place: min(columns[place].least, natural[place]) for place in natural}

    def spare() -> int:
        return width - sum(widths.values()) - len(_GAP) * (len(widths) - 1)

    places = {column.title: place for place, column in enumerate(columns)}
    for title in left_out:
        if spare() < 0:
            del widths[places[title]]
    for most in ({p: column.first for p, column in enumerate(columns)}, natural):
        for place in widths:
            wanted = min(natural[place], most[place])
            widths[place] += max(0, min(wanted - widths[place], spare()))
    return widths


def _row(cells: Sequence[str], widths: dict[int, int], width: int, styles: Sequence[str]) -> Text:
    from rich.text import Text

    line = Text()
    for place, cell_width in widths.items():
        if line:
            line.append(_GAP)
        line.append(_padded(_cut(cells[place], cell_width), cell_width), styles[place])
    line.truncate(max(0, width), overflow="crop")
    return line


def _line(words: str, width: int, style: str = "") -> Text:
    from rich.text import Text

    return Text(_cut(words, width), style)


def _padded(text: str, width: int) -> str:
    from rich.cells import cell_len

    return text + " " * (width - cell_len(text))


def _cut(text: str, width: int) -> str:
    """Return text that takes *width* cells at most; what is cut ends with an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    text = _encodable(text)
    if cell_len(text) <= width:
        return text
    ellipsis = "…" if _encodable("…") == "…" else "~"
    return set_cell_size(text, width - 1) + ellipsis if width > 0 else ""


def _encodable(text: str) -> str:
    """Return text as the terminal gets it: what its encoding lacks becomes an escape, which is longer."""
    if text.isascii():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
