"""The format of an export: JSON Lines in ASCII, the same bytes for the same fleet on both databases.

The first line is the header, with the version of the format and the time. Each model is a line, in
the order of the ids; then come the pauses and the incidents; the last line has the totals, so that a
file that was cut is noticed. Times are in UTC with microseconds.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from modelctl.errors import UsageError, clean
from modelctl.health import scope_of
from modelctl.model import FailureType, ModelStatus, check_tags
from modelctl.spool import KeyedSpool
from modelctl.tables.ids import is_storable
from modelctl.times import exact, in_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

VERSION = 1
LONGEST_LINE = 1 << 20
_HEADER = "modelctl_export"
_HOLDS = ("pause", "incident")
_TOTALS = ("models", "pauses", "incidents")
_HINT = "nothing was restored"
LARGEST = {
    "consecutive_failures": 2**31 - 1,
    "ejections": 2**31 - 1,
    "success_count": 2**63 - 1,
    "failure_count": 2**63 - 1,
}


class SavedModel(NamedTuple):
    """A model as an export has it. Times are texts; of a model that is on, ``disabled_*`` are None."""

    id: str
    display_name: str
    provider: str
    status: str
    consecutive_failures: int
    ejections: int
    success_count: int
    failure_count: int
    last_success_at: str | None
    last_failure_at: str | None
    failure_type: str | None
    failure_reason: str | None
    disabled_at: str | None
    disabled_by: str | None
    disabled_reason: str | None
    disabled_until: str | None
    recovered_at: str | None
    would_disable: str | None
    created_at: str | None
    updated_at: str | None
    tags: tuple[str, ...]


TIMES = tuple(name for name in SavedModel._fields if name.endswith(("_at", "_until")))


class SavedHold(NamedTuple):
    """A pause (without a failure type) or an incident, as an export has it."""

    provider: str | None
    failure_type: str | None
    since: str
    until: str
    reason: str | None
    actor: str | None


class Line(NamedTuple):
    """A line that was read and checked. *key*: the id of a model, or the scope of a hold."""

    key: str
    number: int
    document: str  # JSON: the values of a `SavedModel` or a `SavedHold`

    def model(self) -> SavedModel:
        """Return the model of this line."""
        model = SavedModel._make(json.loads(self.document))
        return model._replace(tags=tuple(model.tags))

    def hold(self) -> SavedHold:
        """Return the pause or incident of this line."""
        return SavedHold(*json.loads(self.document))


class Saved(NamedTuple):
    """An export that was read to its end and checked."""

    exported_at: str
    models: KeyedSpool[Line]
    holds: KeyedSpool[Line]


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────


def header_line(now: datetime) -> str:
    """Return the first line."""
    return _written({_HEADER: VERSION, "exported_at": exact(now)})


def model_line(model: SavedModel) -> str:
    """Return the line of a model."""
    return _written(model._asdict())


def hold_line(hold: SavedHold) -> str:
    """Return the line of a pause or of an incident."""
    fields = hold._asdict()
    if hold.failure_type is None:
        del fields["failure_type"]
        return _written({"pause": fields})
    return _written({"incident": fields})


def last_line(models: int, pauses: int, incidents: int) -> str:
    """Return the last line: how many lines of each kind there are."""
    return _written({"end": dict(zip(_TOTALS, (models, pauses, incidents), strict=True))})


def _written(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────


def read(stream: BinaryIO) -> Saved:
    """Read an export to its end and check every line; on the way the lines are kept on disk.

    Raises:
        UsageError: a line is wrong; the message gives its number (from 1).
    """
    lines = _objects(stream)
    number, header = next(lines, (1, {}))
    with _naming(number):
        exported_at = _header(header)
    saved = Saved(exported_at, KeyedSpool(Line), KeyedSpool(Line))
    found = dict.fromkeys(_TOTALS, 0)
    complete = False
    for number, value in lines:
        with _naming(number):
            if complete:
                _wrong("comes after the last line of an export", "two exports in one file?")
            complete = _take(number, value, saved, found)
    if not complete:
        raise UsageError(
            f"line {number} is the last, but it does not have the totals:"
            " the end of the export is missing",
            hint=_HINT,
        )
    return saved


def _take(number: int, value: dict[str, Any], saved: Saved, found: dict[str, int]) -> bool:
    """Check a line and keep it; return whether it is the last one."""
    kind = next(iter(value), "")
    if kind == "end":
        _check_totals(value, found)
        return True
    if kind in _HOLDS:
        _only(value, (kind,))
        hold = _read_hold(kind, value[kind])
        key = scope_of(hold.provider, hold.failure_type)
        found[f"{kind}s"] += 1
        if not saved.holds.add(Line(key, number, json.dumps(hold))):
            _wrong(f"is the second {kind} of the same scope")
        return False
    model = _read_model(value)
    found["models"] += 1
    if not saved.models.add(Line(model.id, number, json.dumps(model))):
        _wrong(f"has the id '{clean(model.id, longest=200)}', which an earlier line has too")
    return False


class _naming:  # noqa: N801 - used as a function; a generator would take longer for each line
    """Add the number of the line to an error."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, UsageError):
            raise UsageError(
                f"line {self._number}: {exc.message}",
                hint=f"{exc.hint}; {_HINT}" if exc.hint else _HINT,
            ) from None


def _wrong(what: str, hint: str | None = None) -> NoReturn:
    raise UsageError(what, hint=hint)


def _objects(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the JSON objects of the lines, with their numbers; blank lines are skipped."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        with _naming(number):
            if len(line) > LONGEST_LINE:
                _wrong("is longer than 1 MiB")
            if line.strip():
                yield number, _json(line)


def _json(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            line.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        _wrong("is not UTF-8 text")
    except (ValueError, RecursionError) as exc:
        _wrong(f"is not JSON ({exc})")
    if not isinstance(value, dict):
        _wrong("is not a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _wrong(f"has the field '{clean(twice, longest=50)}' twice")
    return made


def _refuse_constant(name: str) -> NoReturn:
    _wrong(f"{name} is not a number of JSON")


def _header(value: dict[str, Any]) -> str:
    version = value.get(_HEADER)
    if version is None:
        _wrong("is not the first line of an export", "modelctl export writes exports")
    if type(version) is not int or version < 1:
        _wrong(f"'{_HEADER}' is not the version of an export")
    if version > VERSION:
        _wrong(
            f"the export has version {version}, and this modelctl reads up to version {VERSION}",
            "use the release that wrote it, or a newer one",
        )
    _only(value, (_HEADER, "exported_at"))
    return _time("exported_at", value["exported_at"])


def _check_totals(value: dict[str, Any], found: dict[str, int]) -> None:
    _only(value, ("end",))
    totals = value["end"]
    if not isinstance(totals, dict):
        _wrong("'end' is not an object")
    _only(totals, _TOTALS)
    for name in _TOTALS:
        if type(totals[name]) is not int or totals[name] != found[name]:
            _wrong(
                f"the export had {clean(str(totals[name]), longest=50)} {name},"
                f" and the file has {found[name]}"
            )


def _read_model(value: dict[str, Any]) -> SavedModel:
    _only(value, SavedModel._fields)
    model = SavedModel(*(check(name, value[name]) for name, check in _MODEL.items()))
    return canonical(model)


def _read_hold(kind: str, value: Any) -> SavedHold:
    if not isinstance(value, dict):
        _wrong(f"'{kind}' is not an object")
    is_pause = kind == "pause"
    _only(value, [n for n in SavedHold._fields if n != "failure_type" or not is_pause])
    value = {"failure_type": None, **value}
    hold = SavedHold(*(check(name, value[name]) for name, check in _HOLD.items()))
    if not is_pause:
        if hold.provider is None:
            _wrong("'provider' of an incident is null")
        if hold.failure_type not in [*FailureType]:
            _wrong(f"'failure_type' is none of: {', '.join(FailureType)}")
    return hold


def shortest(time: Any) -> Any:
    """Return a time with milliseconds, as SQLite stores times, unless that would lose something.

    None stays None.
    """
    return time[:-4] + "Z" if time and time.endswith("000Z") else time


def canonical(model: SavedModel) -> SavedModel:
    """Return a model without what its status makes meaningless."""
    if model.status != ModelStatus.ACTIVE:
        return model._replace(would_disable=None)
    return model._replace(
        disabled_at=None, disabled_by=None, disabled_reason=None, disabled_until=None
    )


# ── The checks of the fields ────────────────────────────────────────────────────────────────────


def _only(value: dict[str, Any], names: Any) -> None:
    """Check that an object has these fields and no others."""
    if value.keys() == {*names}:
        return
    for name in names:
        if name not in value:
            _wrong(f"has no field '{name}'")
    unknown = min(value.keys() - {*names})
    _wrong(f"has a field '{clean(unknown, longest=50)}', which this modelctl does not know")


def _id(name: str, value: Any) -> str:
    # Not as strict as for a new model: a table of an application may have ids that `add` refuses,
    # and every export can be restored.
    if not isinstance(value, str) or not value or not is_storable(value):
        _wrong("'id' is not the id of a model")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        _wrong(f"'{name}' is not text")
    if not is_storable(value):
        _wrong(f"'{name}' has a character that no database stores")
    return value


def _text_or_null(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value) or None


def _provider(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)  # '' is a provider of its own


def _status(name: str, value: Any) -> str:
    if value not in [*ModelStatus]:
        _wrong(f"'{name}' is none of: {', '.join(ModelStatus)}")
    return str(value)


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST[name]:
        _wrong(f"'{name}' is not a whole number from 0 to {LARGEST[name]}")
    return value


def _time(name: str, value: Any) -> str:
    try:
        given = datetime.fromisoformat(value)
        time = in_utc(given) if given.tzinfo else None
    except (TypeError, ValueError):
        time = None
    if time is None:
        _wrong(f"'{name}' is not a time with a zone, such as 2026-12-01T08:00:00Z")
    return exact(time)


def _time_or_null(name: str, value: Any) -> str | None:
    return None if value is None else _time(name, value)


def _tags(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        _wrong(f"'{name}' is not a list")
    return check_tags(value)


_MODEL: dict[str, Callable[[str, Any], Any]] = {
    "id": _id,
    "display_name": _text,
    "provider": _text,
    "status": _status,
    **dict.fromkeys(LARGEST, _count),
    "last_success_at": _time_or_null,
    "last_failure_at": _time_or_null,
    "failure_type": _text_or_null,
    "failure_reason": _text_or_null,
    "disabled_at": _time_or_null,
    "disabled_by": _text_or_null,
    "disabled_reason": _text_or_null,
    "disabled_until": _time_or_null,
    "recovered_at": _time_or_null,
    "would_disable": _text_or_null,
    "created_at": _time_or_null,
    "updated_at": _time_or_null,
    "tags": _tags,
}
_HOLD: dict[str, Callable[[str, Any], Any]] = {
    "provider": _provider,
    "failure_type": _text_or_null,
    "since": _time,
    "until": _time,
    "reason": _text_or_null,
    "actor": _text_or_null,
}
