"""Results on stdout as a table, JSON, CSV or names; words on stderr. The only importer of Rich."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import singledispatch
from typing import Any

from modelctl.config import Setting
from modelctl.errors import UNSAFE, ModelctlError, clean
from modelctl.model import (
    BatchResult,
    CacheReport,
    Changes,
    Count,
    Diagnosis,
    DrainResult,
    Event,
    ImportResult,
    LeaderboardEntry,
    Model,
    ModelStatus,
    Recovery,
    SchemaStatus,
    Stats,
    VerifiedCount,
)


class Output(StrEnum):
    """The forms that data can be asked for."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    NAME = "name"


_STYLES = {
    "active": "green",
    "disabled": "red",
    "auto-disabled": "yellow",
    "ok": "green",
    "wrong": "bold red",
}


@dataclass(frozen=True, slots=True)
class View:
    """A result as rows. *names*: the column that ``-o name`` prints; *note*: for people only."""

    columns: tuple[str, ...]
    rows: Iterable[Sequence[Any]]
    names: int = 0
    note: str | None = None


# ── What each result looks like ─────────────────────────────────────────────────────────────────


@singledispatch
def view(result: object) -> View:
    """Return the rows of a result."""
    raise TypeError(f"no view of {type(result).__name__}")


@view.register
def _(result: Count) -> View:
    row = (result.active, result.source, result.age_seconds, result.expires_in_seconds)
    return View(("active", "source", "age_seconds", "expires_in_seconds"), [row])


@view.register
def _(result: VerifiedCount) -> View:
    row = (result.database, result.cached, "yes" if result.match else "no")
    return View(("database", "cached", "match"), [row])


def models_view(models: Iterable[Model]) -> View:
    """Return the rows of a listing; they may stream."""
    columns = (
        *("id", "name", "provider", "status"),
        *("failures_in_a_row", "successes", "failures", "retry_at"),
    )
    rows = (
        (
            m.id,
            m.display_name or m.id,
            m.provider,
            m.status,
            m.consecutive_failures,
            m.success_count,
            m.failure_count,
            m.retry_at,
        )
        for m in models
    )
    return View(columns, rows)


def model_view(model: Model, *, threshold: int, restart: int) -> View:
    """Return one model as lines of an explanation."""
    rows: list[tuple[str, Any]] = [
        ("id", model.id),
        ("name", model.display_name or model.id),
        ("provider", model.provider),
        ("status", model.status),
    ]
    if model.status is not ModelStatus.ACTIVE:
        rows += [
            ("off since", model.disabled_at),
            ("switched off by", model.disabled_by or "unknown (not by modelctl)"),
            ("why", model.disabled_reason),
        ]
    rows += [
        ("failures in a row", f"{model.consecutive_failures} of {threshold}"),
        ("ejections", model.ejections),
        ("successes", model.success_count),
        ("failures", model.failure_count),
        ("last success", model.last_success_at),
        ("last failure", model.last_failure_at),
        ("last failure type", model.failure_type),
        ("last failure reason", model.failure_reason),
        ("may come back", _comes_back(model)),
        ("next recover", _next_recover(model, threshold, restart)),
        ("created", model.created_at),
        ("updated", model.updated_at),
    ]
    return View(("field", "value"), [row for row in rows if row[1] not in (None, "")], names=1)


def _comes_back(model: Model) -> str | None:
    if model.status is ModelStatus.DISABLED:
        return "when a person enables it"
    if model.retry_at is None or model.seconds_left is None:
        return None
    return f"{_cell(model.retry_at)} ({_left(model.seconds_left)})"


def _next_recover(model: Model, threshold: int, restart: int) -> str:
    if model.status is ModelStatus.ACTIVE:
        return "nothing to do"
    if model.status is ModelStatus.DISABLED:
        return "leaves it off: a person switched it off"
    if model.seconds_left:
        return f"leaves it off: its cooldown ends {_left(model.seconds_left)}"
    return f"brings it back with {restart} of {threshold} failures"


def _left(seconds: float) -> str:
    if seconds <= 0:
        return "now"
    if seconds < 90:
        return f"in {seconds:.0f} s"
    return f"in {seconds / 60:.0f} min" if seconds < 5400 else f"in {seconds / 3600:.1f} h"


def changes_view(result: Changes, *, same: str) -> View:
    """Return what a command did to each model; *same*: the word for a status that stays."""
    would = "would be " if result.dry_run else ""
    rows = [
        (
            c.id,
            c.before,
            c.after,
            f"{would}{c.after or 'removed'}" if c.changed else f"{same} {c.after}",
        )
        for c in result.changes
    ]
    return View(("id", "before", "after", "result"), rows, note=_cache_note(result.cache))


@view.register
def _(result: BatchResult) -> View:
    rows = [(c.id, c.before, c.after) for c in result.changes]
    note = f"{result.recorded} outcomes recorded; {_cache_note(result.cache)}"
    return View(("id", "before", "after"), rows, note=note)


@view.register
def _(result: Recovery) -> View:
    word = "would recover" if result.dry_run else "recovered"
    rows: list[tuple[Any, ...]] = [(model_id, word, None, None) for model_id in result.recovered]
    rows += [(w.id, "waiting", w.retry_at, _left(w.seconds_left)) for w in result.waiting]
    note = f"{len(result.recovered)} {word}, {len(result.waiting)} waiting"
    note += f"; {_cache_note(result.cache)}"
    return View(("id", "result", "retry_at", "left"), rows, note=note)


@view.register
def _(result: ImportResult) -> View:
    columns = ("added", "updated", "unchanged", "skipped", "rejected")
    row = (
        *(result.added, result.updated, result.unchanged, result.skipped),
        len(result.rejected),
    )
    note = "nothing was written (dry run)" if result.dry_run else _cache_note(result.cache)
    return View(columns, [row], note=note)


@view.register
def _(result: Stats) -> View:
    rows = [(p.provider, p.models, p.active) for p in result.providers]
    note = (
        f"{result.models} models: {result.active} active, {result.disabled} disabled,"
        f" {result.auto_disabled} auto-disabled;"
        f" {result.success_count} successes, {result.failure_count} failures"
    )
    return View(("provider", "models", "active"), rows, note=note)


def leaderboard_view(entries: Iterable[LeaderboardEntry]) -> View:
    """Return the rows of the leaderboard."""
    columns = ("rank", "id", "name", "provider", "success_rate", "successes", "failures")
    rows = (
        (
            e.rank,
            e.id,
            e.display_name or e.id,
            e.provider,
            "" if e.success_rate is None else f"{e.success_rate:.1%}",
            e.success_count,
            e.failure_count,
        )
        for e in entries
    )
    return View(columns, rows, names=1)


def events_view(events: Iterable[Event]) -> View:
    """Return the rows of the history."""
    columns = ("at", "model_id", "event", "before", "after", "actor", "failure_type", "reason")
    rows = (
        (e.at, e.model_id, e.event, e.before, e.after, e.actor, e.failure_type, e.reason)
        for e in events
    )
    return View(columns, rows, names=1)


@view.register
def _(result: CacheReport) -> View:
    rows = [(k.key, k.value, k.expires_in_seconds) for k in result.keys]
    oldest = (
        ""
        if result.oldest_queued_seconds is None
        else f", {result.oldest_queued_seconds:.0f} s old"
    )
    note = f"cache: {result.backend}; {result.queued} queued{oldest}, {result.settling} settling"
    return View(("key", "value", "expires_in_seconds"), rows, note=note)


@view.register
def _(result: DrainResult) -> View:
    return View(("delivered", "queued", "cache"), [(result.delivered, result.queued, result.cache)])


@view.register
def _(result: SchemaStatus) -> View:
    row = (
        result.database,
        result.current or "none",
        result.head,
        "yes" if result.up_to_date else "no",
    )
    return View(("database", "current", "head", "up_to_date"), [row])


def settings_view(settings: Iterable[Setting], file: object) -> View:
    """Return the rows of the configuration."""
    rows = [(s.key, s.value, s.origin, s.variable) for s in settings]
    return View(("key", "value", "from", "variable"), rows, note=f"file: {file or 'none'}")


@view.register
def _(result: Diagnosis) -> View:
    rows = [(c.check, "ok" if c.ok else "wrong", c.detail) for c in result.checks]
    return View(("check", "result", "detail"), rows)


def _cache_note(cache: str) -> str:
    return f"cache: {cache}"


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────


def default_output() -> Output:
    """A table for a person, tab-separated values for a pipe."""
    return Output.TABLE if sys.stdout.isatty() else Output.TSV


def write(
    result: object, shown: View, output: Output, *, items: Iterable[Any] | None = None
) -> None:
    """Write *result* to stdout; *items*: what JSON Lines writes, a line each."""
    if output is Output.JSON:
        _write(_json_pieces(result))
    elif output is Output.JSONL:
        _write(f"{to_json(item)}\n" for item in (items if items is not None else [result]))
    elif output is Output.NAME:
        _write(f"{_cell(row[shown.names])}\n" for row in shown.rows)
    elif output is Output.TSV:
        _write("\t".join(map(_cell, row)) + "\n" for row in shown.rows)
    elif output is Output.CSV:
        _write(_csv(shown))
    else:
        _table(shown)


def write_line(text: object) -> None:
    """Write one line to stdout."""
    _write([f"{_cell(text)}\n"])


def _write(pieces: Iterable[str]) -> None:
    with _stdout():
        for piece in pieces:
            sys.stdout.write(piece)
        sys.stdout.flush()


@contextmanager
def _stdout() -> Iterator[None]:
    """A reader that went away has read enough; anything else is an error."""
    try:
        yield
    except BrokenPipeError:
        _give_up_stdout()
    except OSError as exc:
        _give_up_stdout()
        raise ModelctlError(
            f"cannot write to standard output: {exc.strerror}",
            hint="what the command changed stays changed",
        ) from exc


def _give_up_stdout() -> None:
    """What is still in the buffer must not fail once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _csv(shown: View) -> Iterator[str]:
    import csv
    import io

    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(shown.columns)
    for row in shown.rows:
        writer.writerow(map(_cell, row))
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, float):
        return f"{value:.1f}"
    return clean(str(value))


def _table(shown: View) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Not on a terminal there is no width to keep to, and ids must not be cut.
    console = Console() if sys.stdout.isatty() else Console(width=100_000)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [[_cell(value) for value in row] for row in shown.rows]
    for i, name in enumerate(shown.columns):
        numeric = rows and all(re.fullmatch(r"[0-9.]*%?", row[i]) for row in rows)
        table.add_column(
            name.replace("_", " "), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        # Text, or a [bracket] in an id would be read as markup.
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    with _stdout():
        console.print(table)
        if shown.note:
            console.print(Text(clean(shown.note), style="dim"))


def to_json(value: Any) -> str:
    """Return JSON that is safe on a terminal: controls inside strings are escaped."""
    text = json.dumps(_plain(value), ensure_ascii=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _json_pieces(result: object) -> Iterator[str]:
    """An array streams its items: a large fleet is not held in memory."""
    if not isinstance(result, Iterator):
        yield f"{to_json(result)}\n"
        return
    before = "["
    for item in result:
        yield f"{before}{to_json(item)}"
        before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


# ── Words ───────────────────────────────────────────────────────────────────────────────────────


def say(text: str) -> None:
    """Write a line for a person to stderr."""
    try:
        sys.stderr.write(f"{clean(text)}\n")
        sys.stderr.flush()
    except OSError:  # nobody listens, and there is nowhere left to say so
        pass


def error(exc: ModelctlError, *, as_json: bool) -> None:
    """Report a failed command: on stderr, or as the one JSON value on stdout."""
    if as_json:
        problem = {"code": exc.code, "message": exc.message, "hint": exc.hint}
        _write(_json_pieces({"error": problem}))
        return
    say(f"error: {exc.message}")
    if exc.hint:
        say(f"hint: {exc.hint}")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """Show a running number on stderr while a person watches; silent otherwise."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done: bar.update(task, completed=done)
