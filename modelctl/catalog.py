"""Model catalogues in, rows out. Pure: no files, no network, no database."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH, check_id, storable
from modelctl.record import record
from modelctl.reports import Rejection
from modelctl.spool import KeyedSpool, Spool

if TYPE_CHECKING:
    from typing import BinaryIO

TEXT_LENGTH = 200
# One JSON document, or one line: read into memory whole. LiteLLM's price list has 3 MB.
LARGEST_VALUE = 16 << 20

# One JSON value and the words that name its place, for messages: ("line 17", {...}).
_Entry = tuple[str, object]


class CatalogFormat(StrEnum):
    """The catalogues modelctl can read."""

    JSONL = "jsonl"
    LITELLM = "litellm"
    OPENAI = "openai"
    OPENROUTER = "openrouter"


_FORMATS = ", ".join(CatalogFormat)
_HINT = f"formats known: {_FORMATS}"

_SHAPES = {
    CatalogFormat.JSONL: 'one object with an "id" on each line, or an array of them',
    CatalogFormat.LITELLM: 'one object whose entries have a "litellm_provider"',
    CatalogFormat.OPENAI: 'one object with a list "data"',
    CatalogFormat.OPENROUTER: 'one object with a list "data"',
}

# OpenRouter has no such key; there the id begins with the provider.
_PROVIDER_KEYS = {
    CatalogFormat.JSONL: "provider",
    CatalogFormat.LITELLM: "litellm_provider",
    CatalogFormat.OPENAI: "owned_by",
}


class CatalogModel(NamedTuple):
    """What a catalogue knows about one model."""

    id: str
    display_name: str
    provider: str


@record
class Catalog:
    """The models of a catalogue in its order, and the entries that cannot be taken."""

    format: CatalogFormat
    models: KeyedSpool[CatalogModel]
    rejected: Spool[Rejection]


def parse(
    source: bytes | BinaryIO,
    format: CatalogFormat | None = None,  # noqa: A002 - the word of --format
) -> Catalog:
    """Read a catalogue; its shape tells the format unless *format* does.

    A bad entry is rejected and the others are taken. Of a key that a JSON object repeats the
    last one counts, as everywhere in Python (and in LiteLLM itself). JSON Lines are read one at a
    time, so that they may be longer than the memory.

    Raises:
        UsageError: *source* as a whole is not a catalogue, or not one of *format*, or has a JSON
            value of more than 16 MiB.
    """
    found, entries = _read(io.BytesIO(source) if isinstance(source, bytes) else source, format)
    models = KeyedSpool(CatalogModel)
    rejected: Spool[Rejection] = Spool()
    for place, entry in entries:
        try:
            if not models.add(_model(entry, found)):
                raise UsageError("is in the catalogue twice")
        except UsageError as exc:
            rejected.append(Rejection(_name(entry) or place, exc.message))
    return Catalog(found, models, rejected)


def _read(stream: BinaryIO, wanted: CatalogFormat | None) -> tuple[CatalogFormat, Iterable[_Entry]]:
    """Tell the format, and give one entry after the other."""
    document, lines = _load(stream)
    if lines is not None:
        found, entries = wanted or CatalogFormat.JSONL, lines
        fits = found is CatalogFormat.JSONL
    else:
        found = _recognise(document) if wanted is None else wanted
        in_it = _entries(document, found)
        entries, fits = iter(in_it or ()), in_it is not None
    if not fits:
        raise UsageError(
            f"the catalogue is not in the format {found}: that is {_SHAPES[found]}", hint=_HINT
        )
    return found, entries


def _load(stream: BinaryIO) -> tuple[object, Iterator[_Entry] | None]:
    """Return the one JSON value that there is, or else the objects on the lines."""
    lines = _lines(stream)
    number, first = next(lines, (0, b""))
    if not first:
        raise UsageError("the catalogue is empty")
    place = f"line {number}"
    try:
        value = _json(first, place)
    except UsageError as exc:
        if len(first) > LARGEST_VALUE:
            raise
        # A value that goes on, or a broken line? Printed over several lines, a value starts with a
        # bracket alone; then "line 1 is not JSON" would be true and of no help.
        whole = b"\n" * (number - 1) + first + stream.read(LARGEST_VALUE + 1)
        try:
            return _json(whole, "the catalogue"), None
        except UsageError:
            if first.strip() in (b"{", b"[") or len(whole) > LARGEST_VALUE:
                raise
        raise exc from None
    following = next(lines, None)
    if following is None:
        return value, None

    def objects() -> Iterator[_Entry]:
        yield place, _object(value, place)
        for n, line in chain([following], lines):
            yield f"line {n}", _object(_json(line, f"line {n}"), f"line {n}")

    return None, objects()


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give the lines that are not blank, with their numbers."""
    # By line feeds alone: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST_VALUE + 1), b""), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def _json(source: bytes, place: str) -> object:
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
        return json.loads(text)
    except json.JSONDecodeError as exc:
        line = f"line {exc.lineno}, " if "\n" in text else ""
        raise UsageError(
            f"{place} is not JSON: {exc.msg} ({line}column {exc.colno})", hint=_HINT
        ) from exc
    except ValueError as exc:  # Python reads no integer of more than 4300 digits
        raise UsageError(f"{place} has a number that is too long") from exc
    except RecursionError as exc:
        raise UsageError(f"{place} is nested too deeply") from exc


def _object(value: object, place: str) -> object:
    if not isinstance(value, dict):
        raise UsageError(f"{place} is not a JSON object", hint=_HINT)
    return value


def _recognise(document: object) -> CatalogFormat:
    # OpenAI comes before OpenRouter, so that an empty list is OpenAI's.
    for format_ in CatalogFormat:
        entries = _entries(document, format_)
        if entries is None:
            continue
        if format_ is CatalogFormat.OPENAI and _is_openrouter(document, entries):
            return CatalogFormat.OPENROUTER
        return format_
    raise UsageError(f"the catalogue has none of the formats known: {_FORMATS}")


def _is_openrouter(document: object, entries: list[_Entry]) -> bool:
    keys = {key for _, entry in entries if isinstance(entry, dict) for key in entry}
    labelled = isinstance(document, dict) and document.get("object") == "list"
    return "canonical_slug" in keys or ("name" in keys and not labelled)


def _entries(document: object, format_: CatalogFormat) -> list[_Entry] | None:
    """Return the entries of one JSON value, None when its shape is not the one of *format_*."""
    if format_ is CatalogFormat.JSONL:
        if isinstance(document, list):
            return _numbered(document)
        return [("entry 1", document)] if _has(document, "id") else None
    if not isinstance(document, dict):
        return None
    if format_ is CatalogFormat.LITELLM:
        if not any(_has(value, "litellm_provider") for value in document.values()):
            return None
        return _priced(document)
    data = document.get("data")
    return _numbered(data) if isinstance(data, list) else None


def _priced(document: dict[str, object]) -> list[_Entry]:
    """Return the models of a price list; what has no provider, or explains the format, is none."""
    return [
        (f"entry {n}", {"id": key, "litellm_provider": value["litellm_provider"]})
        for n, (key, value) in enumerate(document.items(), 1)
        if key != "sample_spec"
        and isinstance(value, dict)
        and value.get("litellm_provider") not in (None, "")
    ]


def _numbered(entries: list[object]) -> list[_Entry]:
    return [(f"entry {n}", entry) for n, entry in enumerate(entries, 1)]


def _has(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _model(entry: object, format_: CatalogFormat) -> CatalogModel:
    """Return the model that *entry* describes, or raise UsageError saying why it does not."""
    if not isinstance(entry, dict):
        raise UsageError("is not a JSON object")
    if entry.get("id") is None:
        raise UsageError('has no "id"')
    model_id = check_id(entry["id"])
    key = _PROVIDER_KEYS.get(format_)
    if key is None:
        vendor, slash, _ = model_id.partition("/")
        provider = vendor.strip() if slash else ""
    else:
        provider = _text(entry, key)
    return CatalogModel(model_id, _text(entry, "display_name", "name"), provider)


def _text(entry: dict[str, object], *keys: str) -> str:
    """Return the first of *keys* that has a value; null is as good as absent."""
    for key in keys:
        value = entry.get(key)
        if isinstance(value, str):
            return storable(value, TEXT_LENGTH).strip()
        if value is not None:
            raise UsageError(f'"{key}" is not text')
    return ""


def _name(entry: object) -> str:
    """Return the id by which a rejected entry can be found, empty when it has no usable one."""
    model_id = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(model_id, str) or not model_id.strip():
        return ""
    return clean(model_id, longest=ID_LENGTH)
