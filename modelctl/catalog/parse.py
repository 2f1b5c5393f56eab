"""A catalogue in, its models out. Reads no file, no network and no database."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from modelctl.catalog.choice import Choice
from modelctl.catalog.convert import CatalogModel, model_of, name_of
from modelctl.catalog.documents import error_in, more_pages, why_no_models
from modelctl.catalog.entries import Entry
from modelctl.catalog.formats import FORMATS
from modelctl.catalog.read import KNOWN_FORMATS, RepeatedKeys, load
from modelctl.catalog.results import Rejection
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH, numbered
from modelctl.redact import redact
from modelctl.spool import KeyedSpool, Spool

if TYPE_CHECKING:
    from typing import BinaryIO

# How many ids that several providers share a message names.
_MOST_SHARED = 3


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of a catalogue in its order, and the entries that are rejected.

    *notes*: sentences for the person who imports it. *left_out*: how many models were not asked for.
    """

    format: CatalogFormat
    models: KeyedSpool[CatalogModel]
    rejected: Spool[Rejection]
    notes: tuple[str, ...] = ()
    left_out: int = 0


def parse(
    source: bytes | BinaryIO,
    format: CatalogFormat | None = None,  # noqa: A002 - the word of --format
    *,
    provider: str = "",
    partial: bool = False,
    choice: Choice | None = None,
) -> Catalog:
    """Read a catalogue; without *format*, recognise its format.

    An entry without the mark of a model is rejected, and the others are taken. If a JSON object
    repeats a key, the last value counts, as everywhere in Python (and in LiteLLM itself). JSON Lines
    are read line by line, so that they may be larger than the memory.
    *provider*: of all models, whatever the catalogue says. *partial*: accept one page of a longer
    list. *choice*: which models are taken, and what their ids begin with.

    Raises:
        UsageError: *source* as a whole is not a catalogue or not in *format*, or is an error message
            or one page of several, or has a JSON value of more than 16 MiB; or it has ids that
            several providers share; or *choice* leaves nothing of it.
    """
    reader = CatalogReader(format, provider=provider, choice=choice)
    page = reader.read(io.BytesIO(source) if isinstance(source, bytes) else source)
    if page.more and not partial:
        raise UsageError(
            f'this is one page of a longer list ("{page.more}" says that there is more)',
            hint="fetch all pages into one list, or import this page alone with --partial",
        )
    return reader.catalog()


class Page(NamedTuple):
    """What a document said besides its models.

    *more*: the field by which it says that the list goes on. *number*: which page it is, from 1.
    *size*: how many entries it has; *last*: the last of them, None if there are none.
    *signature*: a number that two pages with the same ids share.
    """

    document: object
    more: str | None
    number: int
    size: int
    last: object
    signature: int


class CatalogReader:
    """Gathers the models of a catalogue, of one document or of several pages."""

    def __init__(
        self,
        format: CatalogFormat | None = None,  # noqa: A002 - the word of --format
        *,
        provider: str = "",
        choice: Choice | None = None,
        secret: str = "",
    ) -> None:
        """*secret*: what no message may show. The other arguments are those of `parse`."""
        self.format = format
        self._provider = provider
        self._secret = secret
        self._pages = self._entries = 0
        self._choice = choice or Choice()
        self._repeated_keys = RepeatedKeys()
        self._models = KeyedSpool(CatalogModel)
        self._rejected: Spool[Rejection] = Spool()
        self._seen: set[str] | None = None  # on this page; None on the first
        self._further_deployments = self._on_two_pages = 0
        self._shared: dict[str, str] = {}

    def read(self, stream: BinaryIO) -> Page:
        """Read a page, or the whole.

        Raises:
            UsageError: it is no catalogue, as `parse` says.
        """
        document, name, entries, size = self._open(stream)
        self.format = name
        entry = None
        for place, entry in entries:
            try:
                self._add(entry, name)
            except UsageError as exc:
                called = self._hide(name_of(entry, name) or place)
                self._rejected.append(Rejection(called, self._hide(exc.message)))
        self._seen = set()
        self._pages += 1
        before = self._entries
        self._entries += size
        # JSON Lines have no pages.
        ids = () if document is None else tuple(name_of(entry, name) for _, entry in entries)
        more = more_pages(document, size, before=before, page=self._pages)
        return Page(document, more, self._pages, size, entry, hash(ids))

    def catalog(self) -> Catalog:
        """Return what was read.

        Raises:
            UsageError: several providers share an id, or the choice leaves nothing.
        """
        if self._shared:
            raise self._ids_are_shared()
        self._choice.check(len(self._models))
        notes = [*self._repeated_keys.notes(), *self._choice.notes()]
        if self._further_deployments:
            deployments = numbered(self._further_deployments, "further deployment")
            notes.append(f"{deployments} of the same models: each model is imported once")
        if self._on_two_pages:
            notes.append(
                f"{numbered(self._on_two_pages)} on two pages: the list changed while it was read"
            )
        return Catalog(
            self.format or CatalogFormat.JSONL,
            self._models,
            self._rejected,
            tuple(notes),
            self._choice.left_out,
        )

    def _add(self, entry: object, name: CatalogFormat) -> None:
        model = model_of(entry, name)
        if self._provider:
            model = model._replace(provider=self._provider)
        taken = self._choice.take(model, entry)
        if taken is None:
            return
        again = self._seen is not None and taken.id in self._seen
        if self._seen is not None:
            self._seen.add(taken.id)
        if self._models.add(taken):
            return
        if FORMATS[name].deployments:
            self._further_deployments += 1
        elif self._seen is not None and not again:
            self._on_two_pages += 1
        else:
            first = self._models.get(taken.id)
            if name is CatalogFormat.PROVIDERS and first and first.provider != taken.provider:
                self._shared.setdefault(taken.id, f"{first.provider}, {taken.provider}")
            as_this = "" if taken.id == model.id else f" as '{taken.id}'"
            raise UsageError(f"is in the catalogue twice{as_this}")

    def _hide(self, text: str) -> str:
        """Return *text* without the secret, which a server may repeat."""
        return text.replace(self._secret, "***") if self._secret else text

    def _ids_are_shared(self) -> UsageError:
        named = [
            f"'{clean(model_id, longest=ID_LENGTH)}' ({clean(providers, longest=ID_LENGTH)})"
            for model_id, providers in list(self._shared.items())[:_MOST_SHARED]
        ]
        more = len(self._shared) - len(named)
        number = len(self._shared)
        return UsageError(
            f"several providers have {'this id' if number == 1 else f'these {number} ids'}:"
            f" {self._hide('; '.join(named))}{f'; and {more} more' if more else ''}",
            hint='the prefix "provider" (--prefix provider) puts the provider before each id',
        )

    def _open(self, stream: BinaryIO) -> tuple[object, CatalogFormat, Iterable[Entry], int]:
        """Return the document (None: JSON Lines), its format, its entries, and their number."""
        wanted = self.format
        document, lines = load(stream, self._repeated_keys)
        if lines is not None:
            if wanted not in (None, CatalogFormat.JSONL):
                raise _not_in(wanted)
            return None, CatalogFormat.JSONL, lines, 0
        if error := error_in(document):
            said = clean(redact(self._hide(error)), longest=300)
            raise UsageError(
                f"this is no catalogue but an error message: {said}",
                hint="check how the catalogue was fetched: the address, the key",
            )
        name = _recognise(document) if wanted is None else wanted
        entries = FORMATS[name].entries(document)
        if entries is None:
            raise _not_in(name)
        return document, name, entries, len(entries)


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
