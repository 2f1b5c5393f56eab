"""Model catalogues in, rows out. Pure: no files, no network, no database."""

from __future__ import annotations

import json
from enum import StrEnum

from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH, check_id, storable
from modelctl.record import record
from modelctl.reports import Rejection

TEXT_LENGTH = 200

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


@record
class CatalogModel:
    """What a catalogue knows about one model."""

    id: str
    display_name: str
    provider: str


@record
class Catalog:
    """The models of a catalogue in its order, and the entries that cannot be taken."""

    format: CatalogFormat
    models: tuple[CatalogModel, ...]
    rejected: tuple[Rejection, ...]


def parse(text: bytes, format: CatalogFormat | None = None) -> Catalog:  # noqa: A002 - the word of --format
    """Read a catalogue; its shape tells the format unless *format* does.

    A bad entry is rejected and the others are taken. Of a key that a JSON object repeats the
    last one counts, as everywhere in Python (and in LiteLLM itself).

    Raises:
        UsageError: *text* as a whole is not a catalogue, or not one of *format*.
    """
    values = _load(text)
    found = _recognise(values) if format is None else format
    entries = _entries(values, found)
    if entries is None:
        raise UsageError(
            f"the catalogue is not in the format {found}: that is {_SHAPES[found]}", hint=_HINT
        )
    models: dict[str, CatalogModel] = {}
    rejected = []
    for place, entry in entries:
        try:
            model = _model(entry, found)
            if model.id in models:
                raise UsageError("is in the catalogue twice")
            models[model.id] = model
        except UsageError as exc:
            rejected.append(Rejection(_name(entry) or place, exc.message))
    return Catalog(found, tuple(models.values()), tuple(rejected))


def _load(text: bytes) -> list[_Entry]:
    """Return the one JSON value that *text* is, or the objects on its lines."""
    try:
        content = text.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError("the catalogue is not UTF-8 text") from exc
    if "\0" in content:  # never in JSON, but in every UTF-16 text without a byte order mark
        raise UsageError("the catalogue is not UTF-8 text")
    if not content.strip():
        raise UsageError("the catalogue is empty")
    try:
        return [("entry 1", _json(content, "the catalogue"))]
    except UsageError:
        # Many lines, or one broken value? Printed over several lines, a value starts with a
        # bracket alone; then "line 1 is not JSON" would be true and of no help.
        if content.lstrip().partition("\n")[0].rstrip() in ("{", "["):
            raise
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    lines = [(f"line {n}", line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    return [(place, _object(_json(line, place), place)) for place, line in lines]


def _json(text: str, place: str) -> object:
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


def _recognise(values: list[_Entry]) -> CatalogFormat:
    # OpenAI comes before OpenRouter, so that an empty list is OpenAI's.
    for format_ in CatalogFormat:
        entries = _entries(values, format_)
        if entries is None:
            continue
        if format_ is CatalogFormat.OPENAI and _is_openrouter(values[0][1], entries):
            return CatalogFormat.OPENROUTER
        return format_
    raise UsageError(f"the catalogue has none of the formats known: {_FORMATS}")


def _is_openrouter(document: object, entries: list[_Entry]) -> bool:
    keys = {key for _, entry in entries if isinstance(entry, dict) for key in entry}
    labelled = isinstance(document, dict) and document.get("object") == "list"
    return "canonical_slug" in keys or ("name" in keys and not labelled)


def _entries(values: list[_Entry], format_: CatalogFormat) -> list[_Entry] | None:
    """Return the entries of a catalogue, None when its shape is not the one of *format_*."""
    document = values[0][1]
    if format_ is CatalogFormat.JSONL:
        if isinstance(document, list):
            return _numbered(document)
        return values if len(values) > 1 or _has(document, "id") else None
    if len(values) > 1 or not isinstance(document, dict):
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
