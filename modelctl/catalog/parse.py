"""Model catalogues in, rows out. Pure: no files, no network, no database."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.catalog.formats import (
    FORMATS,
    CatalogFormat,
    Entry,
    Format,
    error_in,
    more_pages,
    names_no_provider,
    other_thing,
    says_on,
    why_none,
)
from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH, check_id, numbered, storable
from modelctl.redact import redact
from modelctl.reports import Rejection
from modelctl.spool import KeyedSpool, Spool

if TYPE_CHECKING:
    from typing import BinaryIO

TEXT_LENGTH = 200
# One JSON document, or one line: read into memory whole. LiteLLM's price list has 3 MB.
LARGEST_VALUE = 16 << 20
# A proxy's configuration has some 10 KiB, and YAML takes a hundred times as long to read.
LARGEST_YAML = 1 << 20

_KNOWN = f"formats known: {', '.join(CatalogFormat)}"
# Keys of objects that stand twice, named in a note; of more of them only the number is told.
_NAMED = 5


class CatalogModel(NamedTuple):
    """What a catalogue knows about one model; *active*: whether it says that the model is on."""

    id: str
    display_name: str
    provider: str
    active: bool | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of a catalogue in its order, and the entries that cannot be taken.

    *notes*: what somebody who imports it should know.
    """

    format: CatalogFormat
    models: KeyedSpool[CatalogModel]
    rejected: Spool[Rejection]
    notes: tuple[str, ...] = ()


def parse(
    source: bytes | BinaryIO,
    format: CatalogFormat | None = None,  # noqa: A002 - the word of --format
    *,
    provider: str = "",
    partial: bool = False,
) -> Catalog:
    """Read a catalogue; its shape tells the format unless *format* does.

    An entry that is not marked as a model of the format is rejected, and the others are taken. Of
    a key that a JSON object repeats the last one counts, as everywhere in Python (and in LiteLLM
    itself). JSON Lines are read one at a time, so that they may be longer than the memory.
    *provider*: of all the models, whatever the catalogue says. *partial*: take one page of a list
    that has more.

    Raises:
        UsageError: *source* as a whole is not a catalogue, or not one of *format*, or is an error
            message or one page of several, or has a JSON value of more than 16 MiB.
    """
    reading = _Reading()
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name, entries = _read(stream, format, reading, partial)
    format_ = FORMATS[name]
    models = KeyedSpool(CatalogModel)
    rejected: Spool[Rejection] = Spool()
    merged = 0
    for place, entry in entries:
        try:
            model = _model(entry, name, format_)
            if provider:
                model = model._replace(provider=provider)
            if models.add(model):
                continue
            if format_.merged:
                merged += 1
            else:
                raise UsageError("is in the catalogue twice")
        except UsageError as exc:
            rejected.append(Rejection(_name(entry, format_) or place, exc.message))
    notes = [*reading.notes()]
    if merged:
        notes.append(f"{numbered(merged, 'further deployment')} of the same models: one model each")
    return Catalog(name, models, rejected, tuple(notes))


class _Reading:
    """What was noticed while JSON was read."""

    def __init__(self) -> None:
        self.repeated: dict[str, None] = {}
        self.times = 0

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object of its pairs, and notice the keys that stand twice."""
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self.times += 1
                    if len(self.repeated) < _NAMED:
                        self.repeated[key] = None
                seen.add(key)
        return made

    def notes(self) -> Iterator[str]:
        """Say what the reader should know."""
        if self.times:
            keys = ", ".join(f"'{clean(key, longest=ID_LENGTH)}'" for key in self.repeated)
            more = ", and more" if self.times > len(self.repeated) else ""
            yield f"the last of repeated keys counts: {keys}{more}"


def _read(
    stream: BinaryIO, wanted: CatalogFormat | None, reading: _Reading, partial: bool
) -> tuple[CatalogFormat, Iterable[Entry]]:
    """Tell the format, and give one entry after the other."""
    document, lines = _load(stream, reading)
    if lines is not None:
        if wanted not in (None, CatalogFormat.JSONL):
            raise _not_in(wanted)
        return CatalogFormat.JSONL, lines
    if error := error_in(document):
        raise UsageError(
            f"this is no catalogue but an error message: {clean(redact(error), longest=300)}",
            hint="look at how the catalogue was fetched: its address, the key",
        )
    found = _recognise(document) if wanted is None else wanted
    entries = FORMATS[found].entries(document)
    if entries is None:
        raise _not_in(found)
    if (field := more_pages(document, len(entries))) and not partial:
        raise UsageError(
            f'this is one page of a longer list ("{field}" says that there is more)',
            hint="fetch all pages into one list, or take this one alone with --partial",
        )
    return found, entries


def _not_in(wanted: CatalogFormat) -> UsageError:
    return UsageError(
        f"the catalogue is not in the format {wanted}: that is {FORMATS[wanted].shape}", hint=_KNOWN
    )


def _recognise(document: object) -> CatalogFormat:
    """Return the first format that has an entry with its mark; an empty list is OpenAI's or ours."""
    empty = None
    for name in (*FORMATS, CatalogFormat.OPENAI):
        entries = FORMATS[name].entries(document)
        if any(
            isinstance(entry, dict) and FORMATS[name].marks(entry) for _, entry in entries or ()
        ):
            return name
        if entries == [] and name in (
            CatalogFormat.LITELLM,
            CatalogFormat.OPENAI,
            CatalogFormat.JSONL,
        ):
            empty = empty or name
    if empty:
        return empty
    raise UsageError(f"the catalogue has no models: {why_none(document)}", hint=_KNOWN)


def _load(stream: BinaryIO, reading: _Reading) -> tuple[object, Iterator[Entry] | None]:
    """Return the one value that there is, JSON or YAML, or else the objects on the lines."""
    lines = _lines(stream)
    number, first = next(lines, (0, b""))
    if not first:
        raise UsageError("the catalogue is empty")
    place = f"line {number}"
    try:
        value = _json(first, place, reading)
    except UsageError as exc:
        if len(first) > LARGEST_VALUE:
            raise
        # A value that goes on, or a broken line? Printed over several lines, a value starts with a
        # bracket alone; then "line 1 is not JSON" would be true and of no help.
        whole = b"\n" * (number - 1) + first + stream.read(LARGEST_VALUE + 1)
        try:
            return _json(whole, "the catalogue", reading), None
        except UsageError:
            if first.strip() in (b"{", b"[") or len(whole) > LARGEST_VALUE:
                raise
        if _YAML.search(whole):
            return _yaml(whole), None
        raise exc from None
    following = next(lines, None)
    if following is None:
        return value, None

    def objects() -> Iterator[Entry]:
        yield place, _object(value, place)
        for n, line in chain([following], lines):
            yield f"line {n}", _object(_json(line, f"line {n}", reading), f"line {n}")

    return None, objects()


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give the lines that are not blank, with their numbers."""
    # By line feeds alone: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST_VALUE + 1), b""), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


# The key that makes a YAML file the configuration of a LiteLLM proxy.
_YAML = re.compile(rb"^model_list[ \t]*:", re.MULTILINE)


def _yaml(source: bytes) -> object:
    """Read the configuration of a LiteLLM proxy. No message quotes it: it may hold keys."""
    import yaml

    if len(source) > LARGEST_YAML:
        raise UsageError("a YAML catalogue has at most 1 MiB", hint="write JSON Lines instead")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(source, loader)  # noqa: S506 - it is a safe loader
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(exc, "problem", None) or "it cannot be read"
        raise UsageError(f"the catalogue is not YAML: {problem}{place}") from None
    except (
        ValueError,
        RecursionError,
        TypeError,
    ) as exc:  # a date that is none, a key that is a list
        raise UsageError(f"the catalogue is not YAML: {type(exc).__name__}") from None


def _json(source: bytes, place: str, reading: _Reading) -> object:
    if len(source) > LARGEST_VALUE:
        raise UsageError(
            f"{place} is a JSON value of more than 16 MiB",
            hint="write JSON Lines, one model on each line: of these there may be any number",
        )
    try:
        text = source.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"{place} is not UTF-8 text") from exc
    if "\0" in text:  # never in JSON, but in every UTF-16 text without a byte order mark
        raise UsageError(f"{place} is not UTF-8 text")
    text = text.rstrip("\r\n")
    try:
        return json.loads(text, object_pairs_hook=reading.object)
    except json.JSONDecodeError as exc:
        line = f"line {exc.lineno}, " if "\n" in text else ""
        raise UsageError(
            f"{place} is not JSON: {exc.msg} ({line}column {exc.colno})", hint=_KNOWN
        ) from exc
    except ValueError as exc:  # Python reads no integer of more than 4300 digits
        raise UsageError(f"{place} has a number that is too long") from exc
    except RecursionError as exc:
        raise UsageError(f"{place} is nested too deeply") from exc


def _object(value: object, place: str) -> object:
    if not isinstance(value, dict):
        raise UsageError(f"{place} is not a JSON object", hint=_KNOWN)
    return value


def _model(entry: object, kind: CatalogFormat, format_: Format) -> CatalogModel:
    """Return the model that *entry* describes, or raise UsageError saying why it does not."""
    if not isinstance(entry, dict):
        raise UsageError("is not a JSON object")
    key = next((key for key in format_.id if entry.get(key) is not None), None)
    if key is None:
        raise UsageError(f'has no "{format_.id[0]}"')
    model_id = entry[key]
    if isinstance(model_id, str):
        model_id = model_id.removeprefix(format_.prefix)
    model_id = check_id(model_id)
    if not format_.marks(entry):
        raise UsageError(_why_not(entry, kind))
    if "*" in model_id and format_.merged:
        raise UsageError("is a pattern, not a model")
    name = _text(entry, *format_.name)
    return CatalogModel(model_id, name, _provider(entry, model_id, format_), says_on(entry))


def _why_not(entry: Mapping[str, object], name: CatalogFormat) -> str:
    if other := other_thing(entry):
        return f"is called {clean(other, longest=50)}, not a model"
    if "alias_of" in entry:
        target = clean(str(entry["alias_of"]), longest=ID_LENGTH)
        return f"is an alias of '{target}', which is no model of this list"
    if name is CatalogFormat.LITELLM:
        return 'has no "litellm_provider"'
    if name is CatalogFormat.LITELLM_PROXY:
        return 'has no "model" in its "litellm_params"'
    return f"has nothing that marks a model of the format {name}"


def _provider(entry: dict[str, object], model_id: str, format_: Format) -> str:
    if format_.constant:
        return format_.constant
    if not format_.provider and format_.prefix_is_provider:
        vendor, slash, _ = model_id.partition("/")
        return vendor.strip() if slash else ""
    for key in format_.provider:
        if (found := _text(entry, key)) and not (key == "owned_by" and names_no_provider(found)):
            return found
    return ""


def _text(entry: dict[str, object], *keys: str) -> str:
    """Return the first of *keys* that has a value; null is as good as absent."""
    for key in keys:
        value = entry.get(key)
        if isinstance(value, str):
            return storable(value, TEXT_LENGTH).strip()
        if value is not None:
            raise UsageError(f'"{key}" is not text')
    return ""


def _name(entry: object, format_: Format) -> str:
    """Return the id by which a rejected entry can be found, empty when it has no usable one."""
    model_id = entry.get(format_.id[0]) if isinstance(entry, dict) else None
    if not isinstance(model_id, str) or not model_id.strip():
        return ""
    return clean(model_id, longest=ID_LENGTH)
