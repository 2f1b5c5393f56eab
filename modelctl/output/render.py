"""Results on stdout as a table, JSON, CSV or names; words on stderr. The only importer of Rich."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelctl.errors import UNSAFE, ModelctlError, clean
from modelctl.model import CacheState, ModelStatus, numbered
from modelctl.recovery.explain import describe, left

if TYPE_CHECKING:
    from modelctl.model import Count, VerifiedCount
    from modelctl.models.results import (
        BatchResult,
        Changes,
        Event,
        ExplainedModel,
        LeaderboardEntry,
        Model,
        Stats,
        StatusChange,
    )
    from modelctl.reports import (
        CacheReport,
        Diagnosis,
        DrainResult,
        ImportResult,
        LastRecover,
        Pause,
        ProbeReport,
        ProbeResult,
        Recovery,
        SchemaStatus,
        Setting,
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


# On a terminal: where long cells are folded rather than a spare column is left out, and where
# they are folded at the most.
_FOLD_WIDE = 50
_FOLD_NARROW = 16
# What nobody reads to the end, and what would not fit in memory.
_MOST_ROWS = 1000
_CACHE_NOTES = {
    CacheState.INVALIDATED: "cache: invalidated",
    CacheState.UNCHANGED: "cache: unchanged",
    CacheState.OFF: "cache: off",
    CacheState.QUEUED: "CACHE STALE: the change is committed, but the invalidation is only queued."
    " To deliver it: modelctl cache drain",
}


class View(NamedTuple):
    """A result as rows: for people, and for machines.

    *columns* and *rows*: the table for people. *names*: the column that names a row there. *spare*:
    what a narrow terminal leaves out, the least important first. *note* and what became of the
    *cache*: lines below the table. *most*: how many rows it has.
    *items*: what JSON Lines, CSV and TSV write, a line each, with the names and values of JSON.
    *fields*: the columns of these in CSV and TSV. *name*: the field that ``-o name`` prints.
    """

    columns: tuple[str, ...]
    rows: Iterable[Sequence[Any]]
    items: Iterable[Any]
    fields: tuple[str, ...]
    name: str = "id"
    names: int = 0
    spare: tuple[str, ...] = ()
    note: str | None = None
    cache: CacheState | None = None
    most: int | None = None


def _fields(kind: type, *first: str) -> tuple[str, ...]:
    """Return the names of a result's fields, *first* in front: scripts know columns by their place."""
    return (*first, *(of.name for of in fields(kind) if of.name not in first))


# ── What each result looks like ─────────────────────────────────────────────────────────────────


# By the name of the type: naming the type itself would load all of them.
_VIEWS: dict[str, Callable[[Any], View]] = {}


def view(result: object) -> View:
    """Return the rows of a result."""
    return _VIEWS[type(result).__name__](result)


def _shows(make: Callable[[Any], View]) -> Callable[[Any], View]:
    _VIEWS[make.__annotations__["result"]] = make
    return make


@_shows
def _(result: Count) -> View:
    row = (result.active, result.source, result.age_seconds, result.expires_in_seconds)
    fresh = result.source == "database"
    origin = "fresh from the database" if fresh else f"cached {result.age_seconds:.1f} s ago"
    return View(
        ("active", "source", "age_seconds", "expires_in_seconds"),
        [row],
        [result],
        _fields(type(result)),
        "active",
        note=f"{numbered(result.active)} active, {origin}",
    )


@_shows
def _(result: VerifiedCount) -> View:
    row = (result.database, result.cached, "yes" if result.match else "no")
    note = f"{numbered(result.database)} active, "
    if result.cached is None:
        note += "and nothing is cached"
    else:
        note += "and the cache agrees" if result.match else f"but the cache says {result.cached}"
    columns = ("database", "cached", "match")
    return View(columns, [row], [result], _fields(type(result), *columns), "database", note=note)


# What the columns of a model in CSV begin with.
_OF_A_MODEL = (
    *("id", "display_name", "provider", "status", "would_disable"),
    *("consecutive_failures", "success_count", "failure_count", "retry_at"),
)


def models_view(models: Iterable[Model], notes: Iterable[str] = ()) -> View:
    """Return the rows of a listing; they may stream."""
    from modelctl.models.results import Model

    columns = (
        *("id", "name", "provider", "status", "would_disable"),
        *("failures_in_a_row", "successes", "failures", "retry_at"),
    )
    rows = (
        (
            m.id,
            m.display_name or m.id,
            m.provider,
            m.status,
            m.would_disable,
            m.consecutive_failures,
            m.success_count,
            m.failure_count,
            m.retry_at or (None if m.status is ModelStatus.ACTIVE else "never"),
        )
        for m in models
    )
    spare = ("name", "provider", "successes", "failures", "retry_at", "failures_in_a_row")
    note = "\n".join(map(clean, notes)) or None
    return View(columns, rows, models, _fields(Model, *_OF_A_MODEL), spare=spare, note=note)


def model_view(model: ExplainedModel) -> View:
    """Return one model: first the answers, then the facts."""
    rows: list[tuple[str, Any]] = [
        ("id", model.id),
        ("name", model.display_name or model.id),
        ("provider", model.provider),
        ("status", model.status),
        *((" " if number else "why", words) for number, words in enumerate(model.explanation)),
        ("retry at", model.retry_at),
        ("failures in a row", model.consecutive_failures),
        ("ejections", model.ejections),
        ("successes", model.success_count),
        ("failures", model.failure_count),
        ("last success", model.last_success_at),
        ("last failure", model.last_failure_at),
        ("created", model.created_at),
        ("updated", model.updated_at),
    ]
    rows = [row for row in rows if row[1] not in (None, "")]
    return View(("field", "value"), rows, [model], _fields(type(model), *_OF_A_MODEL))


def changes_view(result: Changes, *, same: str) -> View:
    """Return what a command did to each model; *same*: the word for a status that stays."""
    would = "would be " if result.dry_run else ""

    def result_of(c: StatusChange) -> str:
        if failure := getattr(c, "failure_type", None):
            return _counted(c, failure)
        if not getattr(c, "recorded", True):
            return "not recorded: the caller went away"
        if not c.changed:
            kept = getattr(c, "note", None)
            now = c.after or "removed"
            return f"{same} {now}, {kept}" if kept else f"{same} {now}"
        return would + ("added" if c.before is None else c.after or "removed")

    first = ("id", "before", "after", "result")
    items = [_plain(c) | {"result": result_of(c)} for c in result.changes]
    rows = [tuple(item[name] for name in first) for item in items]
    note = "dry run: nothing was changed" if result.dry_run else None
    names = dict.fromkeys((*first, *(name for item in items for name in item)))
    return View(first, rows, items, tuple(names), spare=("before",), note=note, cache=result.cache)


def _counted(change: Any, failure_type: str) -> str:
    """Say what a recorded failure did, as in "counted, 3 of 5"."""
    so_far = f"{change.consecutive_failures} of {change.threshold}"
    if not change.counted:
        return f"not counted ({failure_type}), {so_far}"
    if change.changed:
        return f"counted: switched off ({so_far})"
    kept = f"; kept on ({change.would_disable})" if change.would_disable else ""
    return f"counted, {so_far}{kept}"


@_shows
def _(result: BatchResult) -> View:
    from modelctl.models.results import StatusChange

    rows = [(c.id, c.before, c.after) for c in result.changes]
    switched = "no status changed" if not rows else f"{numbered(len(rows))} changed status"
    note = f"{numbered(result.recorded, 'outcome')} recorded, {switched}"
    columns, names = ("id", "before", "after"), _fields(StatusChange)
    return View(columns, rows, result.changes, names, note=note, cache=result.cache)


_WHY = {
    "cooldown": "its cooldown ends {left}",
    "timed": "switched off for a time that ends {left}",
    "limit": "due, and left to the next run",
    "probe": "due, but it was asked and is not healthy",
    "unasked": "due, but it could not be asked",
    "refused": "due, but the database kept it as it was",
    "unreadable": "its id cannot be read",
    "paused": "automatic switching is paused",
    "person": "ejected too often: waits for a person (modelctl enable)",
}


@_shows
def _(result: Recovery) -> View:
    word = "would recover" if result.dry_run else "recovered"

    def rows() -> Iterator[tuple[Any, ...]]:
        for model_id in result.recovered:
            yield model_id, word, None, "its time has come"
        for w in result.waiting:
            why = _WHY[w.why].format(left=left(w.seconds_left or 0))
            yield w.id, "waiting", w.retry_at, why

    # Of the two lists of JSON one, and which of them each is from.
    names = ("id", "result", "retry_at", "why", "seconds_left")

    def items() -> Iterator[dict[str, Any]]:
        for model_id in result.recovered:
            yield dict.fromkeys(names) | {"id": model_id, "result": "recovered"}
        for w in result.waiting:
            values = (w.id, "waiting", w.retry_at, w.why, w.seconds_left)
            yield dict(zip(names, values, strict=True))

    notes = [f"{len(result.recovered)} {word}, {len(result.waiting)} waiting"]
    if result.paused:
        notes.append(clean(describe(result.paused)))
    if result.requests and not result.dry_run:
        unasked = sum(answer.failure_type is None for answer in result.unhealthy)
        failed = len(result.unhealthy) - unasked
        told = f"{numbered(result.requests - unasked)} asked, {failed} not healthy"
        notes.append(f"{told}, {unasked} could not be asked" if unasked else told)
    if result.dry_run:
        notes.append("dry run: nothing was changed")
    return View(
        ("id", "result", "retry_at", "why"),
        rows(),
        items(),
        names,
        spare=("why", "retry_at"),
        note="; ".join(notes),
        cache=result.cache,
        most=_MOST_ROWS,
    )


def _answered(answer: ProbeResult) -> str:
    if answer.healthy:
        return "healthy"
    return "unhealthy" if answer.failure_type else "could not be asked"


@_shows
def _(result: ProbeReport) -> View:
    columns = ("id", "result", "failure_type", "seconds", "reason")
    items = [_plain(a) | {"result": _answered(a)} for a in result.answers]
    rows = [tuple(item[name] for name in columns) for item in items]
    spare = ("seconds", "failure_type", "reason")
    return View(columns, rows, items, (*columns, "healthy"), spare=spare)


@_shows
def _(result: LastRecover) -> View:
    row = (result.at, result.seconds_ago, result.expect_every, "yes" if result.overdue else "no")
    columns = ("last_finished", "seconds_ago", "expect_every", "overdue")
    return View(columns, [row], [result], _fields(type(result)), "at", spare=("expect_every",))


@_shows
def _(result: Pause) -> View:
    whose = "the fleet" if result.provider is None else result.provider or "no provider"
    state = "paused" if result.paused else "resumed" if result.changed else "was not paused"
    row = (whose, state, result.until, result.reason)
    columns = ("what", "result", "until", "reason")
    return View(columns, [row], [result], _fields(type(result)), "provider", spare=("reason",))


@_shows
def _(result: ImportResult) -> View:
    columns = ("added", "updated", "unchanged", "skipped", "rejected")
    row = (
        *(result.added, result.updated, result.unchanged, result.skipped),
        len(result.rejected),
    )
    note = "dry run: nothing was changed" if result.dry_run else None
    names = _fields(type(result))
    return View(columns, [row], [result], names, "added", note=note, cache=result.cache)


@_shows
def _(result: Stats) -> View:
    from modelctl.models.results import ProviderStats

    rows = [(p.provider, p.models, p.active) for p in result.providers]
    note = (
        f"{numbered(result.models)}: {result.active} active, {result.disabled} disabled,"
        f" {result.auto_disabled} auto-disabled;"
        f" {result.success_count} successes, {result.failure_count} failures"
    )
    note = "\n".join([note, *(clean(describe(hold)) for hold in result.holds)])
    columns, names = ("provider", "models", "active"), _fields(ProviderStats)
    return View(columns, rows, result.providers, names, "provider", note=note)


def leaderboard_view(entries: Iterable[LeaderboardEntry]) -> View:
    """Return the rows of the leaderboard."""
    from modelctl.models.results import LeaderboardEntry

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
    spare = ("name", "provider", "failures", "successes")
    return View(columns, rows, entries, _fields(LeaderboardEntry), names=1, spare=spare)


def events_view(events: Iterable[Event]) -> View:
    """Return the rows of the history."""
    from modelctl.models.results import Event

    first = ("at", "model_id", "event", "before", "after", "actor", "failure_type", "reason")
    columns = (*first[:2], "provider", *first[2:], "details")
    rows = (
        (
            *(e.at, e.model_id, e.provider, e.event, e.before, e.after, e.actor, e.failure_type),
            *(e.reason, e.details and to_json(e.details)),
        )
        for e in events
    )
    spare = ("details", "before", "failure_type", "provider", "actor", "after", "reason")
    return View(columns, rows, events, _fields(Event, *first), "model_id", names=1, spare=spare)


@_shows
def _(result: CacheReport) -> View:
    from modelctl.reports import CacheKey

    rows = [(k.key, k.value, k.expires_in_seconds) for k in result.keys]
    oldest = (
        ""
        if result.oldest_queued_seconds is None
        else f", {result.oldest_queued_seconds:.0f} s old"
    )
    note = f"cache: {result.backend}; {result.queued} queued{oldest}, {result.settling} settling"
    names = _fields(CacheKey)
    return View(names, rows, result.keys, names, "key", spare=("expires_in_seconds",), note=note)


@_shows
def _(result: DrainResult) -> View:
    row = (result.delivered, result.queued, result.cache)
    names = _fields(type(result))
    return View(("delivered", "queued", "cache"), [row], [result], names, "delivered")


@_shows
def _(result: SchemaStatus) -> View:
    row = (
        result.database,
        result.current or "none",
        result.head,
        "yes" if result.up_to_date else "no",
        result.table or "none",
    )
    columns = ("database", "current", "head", "up_to_date", "table")
    spare = ("head", "current")
    return View(columns, [row], [result], _fields(type(result)), "database", spare=spare)


def removed_view(names: Sequence[str]) -> View:
    """Return the names of what was taken off."""
    rows = [(name,) for name in names]
    items = [{"removed": name} for name in names]
    return View(("removed",), rows, items, ("removed",), "removed")


def settings_view(settings: Sequence[Setting], file: object) -> View:
    """Return the rows of the configuration."""
    from modelctl.reports import Setting

    rows = [(s.key, to_json(s.value), s.origin, s.variable) for s in settings]
    columns, names = ("key", "value", "from", "variable"), _fields(Setting)
    note = f"file: {file or 'none'}"
    return View(columns, rows, settings, names, "key", spare=("variable", "from"), note=note)


@_shows
def _(result: Diagnosis) -> View:
    columns = ("check", "result", "detail")
    items = [
        _plain(c) | {"result": ("warning" if c.warning else "ok") if c.ok else "wrong"}
        for c in result.checks
    ]
    rows = [tuple(item[name] for name in columns) for item in items]
    return View(columns, rows, items, (*columns, "ok", "warning"), "check")


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────


_stdout_is_gone = False


def default_output() -> Output:
    """A table for a person, tab-separated values for a pipe."""
    return Output.TABLE if sys.stdout.isatty() else Output.TSV


def write(result: object, shown: View, output: Output) -> None:
    """Write *result* to stdout: JSON has all of it, the others what is *shown*."""
    if output is Output.JSON:
        _write(_complete(_json_pieces(result)))
    elif output is Output.JSONL:
        _write(f"{to_json(item)}\n" for item in shown.items)
    elif output is Output.NAME:
        only = shown._replace(fields=(shown.name,))
        _write(f"{_tsv_cell(value)}\n" for (value,) in _values(only))
    elif output is Output.TSV:
        rows = _values(shown)
        _write("\t".join(map(_tsv_cell, row)) + "\n" for row in rows)
    elif output is Output.CSV:
        _write(_csv(shown))
    else:
        _write([_table(shown)])


def write_line(text: object) -> None:
    """Write one line to stdout."""
    write_lines([text])


def write_text(text: str) -> None:
    """Write text of our own as it is, with its line ends."""
    _write([text + "\n"])


def write_lines(texts: Iterable[object]) -> None:
    """Write a line of stdout for each."""
    _write(f"{_cell(text)}\n" for text in texts)


def _complete(pieces: Iterable[str]) -> Iterator[str]:
    """Give the pieces when all are there: an error halfway must not follow half a value."""
    import tempfile

    from modelctl.spool import unwritable

    spool = tempfile.SpooledTemporaryFile(1_000_000, "w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    try:
        try:
            for piece in pieces:  # not writelines, which looks at the size when all is in memory
                spool.write(piece)
            spool.seek(0)
        except OSError as exc:
            raise unwritable(exc) from exc
        while piece := spool.read(1 << 16):
            yield piece
    finally:
        with suppress(OSError):  # what could not be written cannot be written now
            spool.close()


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
    global _stdout_is_gone
    _stdout_is_gone = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _values(shown: View) -> Iterator[Sequence[Any]]:
    """Give the values of each item, in the order of the columns."""
    for item in shown.items:
        if isinstance(item, dict):
            yield [item.get(name) for name in shown.fields]
        else:
            yield [_exact(name, getattr(item, name)) for name in shown.fields]


def _value(value: Any) -> str:
    """What CSV and TSV write for a value: text as it is, null as nothing, the rest as JSON has it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    written = _plain(value)
    return written if isinstance(written, str) else to_json(written)


def _tsv_cell(value: Any) -> str:
    """Write one cell of TSV: on one line, whatever it holds."""
    return clean(_value(value))


# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
# Whether such cells are written all the same (--raw).
raw = False


def _csv(shown: View) -> Iterator[str]:
    import csv

    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(shown.fields)
    for row in _values(shown):
        writer.writerow([_csv_cell(value) for value in row])
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()


def _csv_cell(value: Any) -> str:
    """Write one cell of CSV: newlines and tabs stay, other controls become visible escapes."""
    if isinstance(value, bool | int | float):
        return _value(value)
    text = _value(value)
    guard = "'" if not raw and text.startswith(_FORMULA) else ""
    if not (text.isascii() and text.isprintable()):
        text = re.sub(r"[^\n\t]+", lambda match: clean(match[0]), text)
    return guard + text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, float):
        return f"{value:.1f}"
    return clean(str(value))


def _table(shown: View) -> str:
    """Draw a table: on a terminal no wider than that, else as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(cell: str, style: str = "") -> Text:
        # Text, or a [bracket] in an id would be read as markup.
        return Text(cell, _STYLES.get(cell, style)) if cell else Text("-", "dim")

    titles = [name.replace("_", " ") for name in shown.columns]
    rows = [[_cell(value) for value in row] for row in islice(shown.rows, shown.most)]
    terminal = Console()
    watched = sys.stdout.isatty()
    asked = os.environ.get("COLUMNS", "")  # whoever sets it wants it obeyed in a pipe too
    room = terminal.width if watched or (asked.isdigit() and int(asked)) else None
    widths, left_out = _widths(shown, titles, rows, room)
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=room or sum(widths.values()) + 2 * len(widths),
        color_system=terminal.color_system if watched and not terminal.no_color else None,  # type: ignore[arg-type]
    )
    notes = [(shown.note, "dim")]
    if shown.most and len(rows) == shown.most:
        notes.insert(0, (f"(the first {shown.most}; -o csv has all)", "dim"))
    if left_out:
        notes.insert(0, (f"(no room for {', '.join(left_out)}; -o csv has all)", "dim"))
    if shown.cache:
        style = "bold yellow" if shown.cache is CacheState.QUEUED else "dim"
        notes.append((_CACHE_NOTES[shown.cache], style))

    if not rows:
        console.print(Text("nothing to show", "dim"))
    elif widths:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, width in widths.items():
            numeric = all(re.fullmatch(r"[0-9.]*%?", row[i]) for row in rows)
            side: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(titles[i], justify=side, width=width, overflow="fold")
        for row in rows:
            table.add_row(*(text(row[i]) for i in widths))
        console.print(table)
    else:
        for row in rows:
            console.print(text(row[shown.names], "bold"))
            card = Table.grid(padding=(0, 2, 0, 0))
            card.add_column(no_wrap=True)
            card.add_column(overflow="fold")
            for i, cell in enumerate(row):
                if cell and i != shown.names:
                    card.add_row(f"  {titles[i]}", text(cell))
            console.print(card)
    for note, style in notes:
        for line in (note or "").splitlines():
            console.print(Text(clean(line), style), soft_wrap=room is None)
    return drawn.getvalue()


def _widths(
    shown: View, titles: Sequence[str], rows: Sequence[Sequence[str]], room: int | None
) -> tuple[dict[int, int], list[str]]:
    """Choose the columns that a table *room* wide has, their widths, and name those left out.

    Empty columns are dropped, then the spare ones, then long cells are folded; where even that
    does not fit there are no columns: every row is to be a card.
    """
    from rich.cells import cell_len

    widths: dict[int, int] = {}
    for i, title in enumerate(titles):
        longest = max((cell_len(row[i]) for row in rows), default=0)
        if longest or room is None:
            widths[i] = max(longest, len(title))

    def needed(fold: int) -> int:
        return sum(min(width, fold) for width in widths.values()) + 2 * len(widths) - 2

    dropped: dict[int, int] = {}
    if room is None or needed(room) <= room:
        return widths, []
    for i in widths:  # titles fold at their blanks
        longest = max(cell_len(row[i]) for row in rows)
        widths[i] = max(longest, *map(len, titles[i].split()))
    for name in shown.spare:
        i = shown.columns.index(name)
        if needed(_FOLD_WIDE) > room and i in widths:
            dropped[i] = widths.pop(i)
    for i in reversed([*dropped]):  # what a wider one has left room for
        widths[i] = dropped[i]
        if needed(_FOLD_WIDE) > room:
            del widths[i]
        else:
            del dropped[i]
    left_out = [titles[i] for i in dropped]
    if needed(_FOLD_NARROW) > room:
        return {}, []
    widths = {i: min(width, room) for i, width in sorted(widths.items())}
    while needed(room) > room:
        widths[max(widths, key=widths.__getitem__)] -= 1
    return widths, left_out


def to_json(value: Any) -> str:
    """Return JSON that is safe on a terminal: what `clean` escapes is escaped in JSON's way."""
    import json

    text = json.dumps(_plain(value), ensure_ascii=False)
    return UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _json_pieces(result: object) -> Iterator[str]:
    """What is longer than the memory is written item by item."""
    if isinstance(result, Iterator):
        yield from _array(result)
    elif is_dataclass(result) and not isinstance(result, type):
        before = "{"
        for of in fields(result):
            value = _exact(of.name, getattr(result, of.name))
            yield f"{before}{to_json(of.name)}: "
            yield from _array(value) if _is_long(value) else [to_json(value)]
            before = ", "
        yield "}"
    else:
        yield to_json(result)
    yield "\n"


def _is_long(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | tuple | list)


def _array(items: Iterable[Any]) -> Iterator[str]:
    before = "["
    for item in items:
        yield f"{before}{to_json(item)}"
        before = ",\n "
    yield "[]" if before == "[" else "]"


def _exact(name: str, value: Any) -> Any:
    """To the millisecond where it is a time; a success rate as it is."""
    return round(value, 3) if isinstance(value, float) and "seconds" in name else value


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(_exact(f.name, getattr(value, f.name))) for f in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# ── Words ───────────────────────────────────────────────────────────────────────────────────────


def say(*lines: str) -> None:
    """Write lines for a person to stderr."""
    try:
        sys.stderr.writelines(f"{clean(line)}\n" for line in lines)
        sys.stderr.flush()
    except OSError:  # nobody listens, and there is nowhere left to say so
        pass


def note(*lines: str) -> None:
    """Write lines to stderr where a person watches it."""
    if sys.stderr.isatty():
        say(*lines)


def ask(question: str) -> bool:
    """Ask on stderr, so that what is redirected from stdout holds data alone; no answer is no."""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.buffer.readline().strip().lower() in (b"y", b"yes")


def error(exc: ModelctlError, *, as_json: bool) -> None:
    """Report a failed command: on stderr, or as the one JSON value on stdout."""
    if as_json and not _stdout_is_gone:
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
