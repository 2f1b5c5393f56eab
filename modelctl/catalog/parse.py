"""A catalogue in, its models out. Reads no file, no network and no database."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.catalog.convert import CatalogModel, model_of, name_of
from modelctl.catalog.documents import error_in, more_pages, why_no_models
from modelctl.catalog.entries import Entry
from modelctl.catalog.formats import FORMATS
from modelctl.catalog.read import KNOWN_FORMATS, RepeatedKeys, load
from modelctl.catalog.results import Rejection
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError, clean
from modelctl.model import numbered
from modelctl.redact import redact
from modelctl.spool import KeyedSpool, Spool

if TYPE_CHECKING:
    from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of a catalogue in its order, and the entries that are rejected.

    *notes*: sentences for the person who imports it.
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
    """Read a catalogue; without *format*, recognise its format.

    An entry without the mark of a model is rejected, and the others are taken. If a JSON object
    repeats a key, the last value counts, as everywhere in Python (and in LiteLLM itself). JSON Lines
    are read line by line, so that they may be larger than the memory.
    *provider*: of all models, whatever the catalogue says. *partial*: accept one page of a longer
    list.

    Raises:
        UsageError: *source* as a whole is not a catalogue or not in *format*, or is an error message
            or one page of several, or has a JSON value of more than 16 MiB.
    """
    repeated = RepeatedKeys()
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name, entries = _entries(stream, format, repeated, partial)
    models = KeyedSpool(CatalogModel)
    rejected: Spool[Rejection] = Spool()
    further_deployments = 0
    for place, entry in entries:
        try:
            model = model_of(entry, name)
            if provider:
                model = model._replace(provider=provider)
            if models.add(model):
                continue
            if not FORMATS[name].deployments:
                raise UsageError("is in the catalogue twice")
            further_deployments += 1
        except UsageError as exc:
            rejected.append(Rejection(name_of(entry, name) or place, exc.message))
    notes = [*repeated.notes()]
    if further_deployments:
        deployments = numbered(further_deployments, "further deployment")
        notes.append(f"{deployments} of the same models: each model is imported once")
    return Catalog(name, models, rejected, tuple(notes))


def _entries(
    stream: BinaryIO, wanted: CatalogFormat | None, repeated: RepeatedKeys, partial: bool
) -> tuple[CatalogFormat, Iterable[Entry]]:
    """Return the format and the entries."""
    document, lines = load(stream, repeated)
    if lines is not None:
        if wanted not in (None, CatalogFormat.JSONL):
            raise _not_in(wanted)
        return CatalogFormat.JSONL, lines
    if error := error_in(document):
        raise UsageError(
            f"this is no catalogue but an error message: {clean(redact(error), longest=300)}",
            hint="check how the catalogue was fetched: the address, the key",
        )
    name = _recognise(document) if wanted is None else wanted
    entries = FORMATS[name].entries(document)
    if entries is None:
        raise _not_in(name)
    if (field := more_pages(document, len(entries))) and not partial:
        raise UsageError(
            f'this is one page of a longer list ("{field}" says that there is more)',
            hint="fetch all pages into one list, or import this page alone with --partial",
        )
    return name, entries


def _not_in(wanted: CatalogFormat) -> UsageError:
    shape = FORMATS[wanted].shape
    return UsageError(
        f"the catalogue is not in the format {wanted}: that is {shape}", hint=KNOWN_FORMATS
    )


def _recognise(document: object) -> CatalogFormat:
    """Return the first format that finds a marked entry, else the first whose list may be empty."""
    empty = None
    for name, format_ in FORMATS.items():
        entries = format_.entries(document)
        if any(isinstance(entry, dict) and format_.marks(entry) for _, entry in entries or ()):
            return name
        if entries == [] and format_.may_be_empty:
            empty = empty or name
    if empty:
        return empty
    raise UsageError(f"the catalogue has no models: {why_no_models(document)}", hint=KNOWN_FORMATS)
