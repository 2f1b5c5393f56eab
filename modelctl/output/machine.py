"""The formats for programs: JSON, JSON Lines, CSV, TSV and names."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from modelctl.errors import clean
from modelctl.views.values import plain, rounded, to_json

if TYPE_CHECKING:
    from modelctl.views.view import View

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_READ_SIZE = 1 << 16
_SPOOL_IN_MEMORY = 1_000_000


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────


def json_document(document: object) -> Iterator[str]:
    """Return *document* as one JSON value, in pieces.

    The first piece comes when the last is known: if the database fails in the middle of a listing,
    stdout gets the error alone, not half of a value.
    """
    import tempfile

    from modelctl.spool import unwritable

    spool = tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY, "w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    try:
        try:
            # writelines would look at the size only after the last piece is in memory.
            for piece in _json_pieces(document):
                spool.write(piece)
            spool.seek(0)
        except OSError as exc:
            raise unwritable(exc) from exc
        while piece := spool.read(_READ_SIZE):
            yield piece
    finally:
        with suppress(OSError):  # closing writes again what could not be written
            spool.close()


def _json_pieces(document: object) -> Iterator[str]:
    """Return the JSON of a document; a long array item by item, for it may not fit in memory."""
    if isinstance(document, Iterator):
        yield from _json_array(document)
    elif _has_members(document):
        before = "{"
        for name, value in _members(document):
            yield f"{before}{to_json(name)}: "
            yield from _json_array(value) if _may_be_long(value) else [to_json(value)]
            before = ", "
        yield "}"
    else:
        yield to_json(document)
    yield "\n"


def _has_members(document: Any) -> bool:
    if isinstance(document, dict):
        return bool(document)
    return is_dataclass(document) and not isinstance(document, type)


def _members(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        yield from document.items()
        return
    for field in fields(document):
        yield field.name, rounded(field.name, getattr(document, field.name))


def _may_be_long(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | tuple | list)


def _json_array(items: Iterable[Any]) -> Iterator[str]:
    before = "["
    for item in items:
        yield f"{before}{to_json(item)}"
        before = ",\n "
    yield "[]" if before == "[" else "]"


def json_lines(view: View) -> Iterator[str]:
    """Return each item as JSON on one line."""
    return (f"{to_json(item)}\n" for item in view.items)


# ── CSV, TSV, names ─────────────────────────────────────────────────────────────────────────────


def csv_lines(view: View, *, raw: bool = False, header: bool = True) -> Iterator[str]:
    """Return CSV; *raw*: without the apostrophe that protects spreadsheets."""
    import csv

    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    if header:
        writer.writerow(view.fields)
    for row in _records(view, view.fields):
        writer.writerow([_csv_cell(value, raw=raw) for value in row])
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()


def tsv_lines(view: View) -> Iterator[str]:
    """Return tab-separated values without a header."""
    return ("\t".join(map(_tsv_cell, row)) + "\n" for row in _records(view, view.fields))


def name_lines(view: View) -> Iterator[str]:
    """Return the name of each item."""
    return (f"{_tsv_cell(name)}\n" for (name,) in _records(view, (view.name_field,)))


def _records(view: View, names: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Return the values of each item, in the order of *names*."""
    for item in view.items:
        if isinstance(item, dict):
            yield [item.get(name) for name in names]
        else:
            yield [rounded(name, getattr(item, name)) for name in names]


def _cell(value: Any) -> str:
    """Return text as it is, nothing for None, and the JSON of any other value."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    written = plain(value)
    return written if isinstance(written, str) else to_json(written)


def _tsv_cell(value: Any) -> str:
    """Return a cell of TSV: on one line, because newlines and tabs are escaped."""
    return clean(_cell(value))


def _csv_cell(value: Any, *, raw: bool) -> str:
    """Return a cell of CSV: newlines and tabs stay, other control characters are escaped."""
    if isinstance(value, bool | int | float):
        return _cell(value)
    text = _cell(value)
    apostrophe = "'" if not raw and text.startswith(_FORMULA_STARTS) else ""
    if not (text.isascii() and text.isprintable()):
        text = re.sub(r"[^\n\t]+", lambda match: clean(match[0]), text)
    return apostrophe + text
