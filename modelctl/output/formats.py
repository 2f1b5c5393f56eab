"""The choice of an output format, and printing in it."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING

from modelctl import streams

if TYPE_CHECKING:
    from modelctl.errors import ModelctlError
    from modelctl.views.view import View


class OutputFormat(StrEnum):
    """The formats that -o takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    NAME = "name"


def default_format() -> OutputFormat:
    """Return the format if none was asked for: a table on a terminal, TSV in a pipe."""
    return OutputFormat.TABLE if sys.stdout.isatty() else OutputFormat.TSV


def write_view(
    view: View, output: OutputFormat | None, *, raw: bool = False, header: bool = True
) -> None:
    """Print a result to stdout.

    *raw*: CSV without the apostrophe that protects spreadsheets. *header*: CSV has a header.
    """
    output = output or default_format()
    if output in (OutputFormat.TABLE, OutputFormat.WIDE):
        from modelctl.output.table import draw

        streams.write([draw(view, wide=output is OutputFormat.WIDE)])
        return
    from modelctl.output import machine

    if output is OutputFormat.JSON:
        streams.write(machine.json_document(view.document))
    elif output is OutputFormat.JSONL:
        streams.write(machine.json_lines(view))
    elif output is OutputFormat.CSV:
        streams.write(machine.csv_lines(view, raw=raw, header=header))
    elif output is OutputFormat.TSV:
        streams.write(machine.tsv_lines(view))
    else:
        streams.write(machine.name_lines(view))


def write_error(error: ModelctlError, *, as_json: bool) -> None:
    """Print the error of a failed command: in words on stderr, or as one JSON value on stdout."""
    if as_json and not streams.stdout_is_gone():
        from modelctl.output.machine import json_document

        fields = {"code": error.code, "message": error.message, "hint": error.hint}
        streams.write(json_document({"error": fields}))
        return
    streams.say(f"error: {error.message}")
    if error.hint:
        streams.say(f"hint: {error.hint}")
