"""Read a source: fetch its pages, open its file or run its command, and choose its models."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from typing import TYPE_CHECKING, BinaryIO, cast

from modelctl.catalog.choice import Choice
from modelctl.catalog.parse import CatalogReader
from modelctl.catalog_format import CatalogFormat
from modelctl.config.sources import check_source
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    UsageError,
    clean,
)
from modelctl.outbound import command
from modelctl.outbound.loop import complete
from modelctl.redact import storable_reason
from modelctl.sources.fetch import LARGEST, Fetcher, NotReadError
from modelctl.sources.pages import next_page
from modelctl.spool import unwritable

if TYPE_CHECKING:
    from modelctl.catalog.parse import Catalog
    from modelctl.config.sources import SourceConfig

_MOST_PAGES = 1000
_IN_MEMORY = 1 << 20


def read_source(config: SourceConfig) -> Catalog:
    """Return the models of a source. A list that is empty is an empty catalogue.

    Raises:
        UsageError: what it gives is no catalogue, or no model of it can be taken.
        InvalidConfigError: it refused us, or its configuration is wrong; to try again does not help.
        DatabaseUnavailableError: it cannot be read now.
    """
    name = clean(config.name)
    key = ""
    try:
        check_source(config)
        key = config.key()
        reader = CatalogReader(
            CatalogFormat(config.format) if config.format else None,
            provider=config.provider,
            secret=key,
            choice=Choice(
                only=config.only,
                leave_out=config.except_,
                modes=config.modes,
                prefix=config.prefix,
            ),
        )
        if config.url:
            _read_url(config, key, reader)
        elif config.file:
            _read_file(config, reader)
        else:
            _read_command(config, reader)
        found = reader.catalog()
        if found.rejected and not found.models:
            first = found.rejected[0]
            raise UsageError(f"no entry is a model; {first.id}: {first.why}")
    except NotReadError as exc:
        kind = InvalidConfigError if exc.permanent else DatabaseUnavailableError
        raise kind(f"source '{name}': {exc}", hint=_hint(config, exc)) from None
    except UsageError as exc:
        raise UsageError(f"source '{name}': {exc.message}", hint=exc.hint) from None
    except OSError as exc:  # of the temporary file
        raise unwritable(exc) from exc
    return found


def _hint(config: SourceConfig, error: NotReadError) -> str:
    if not error.permanent:
        return "try again later; nothing was changed"
    where = "the url, the key and" if config.url else "the file or command in"
    return f'see {where} the section [source."{clean(config.name)}"]'


def _read_url(config: SourceConfig, key: str, reader: CatalogReader) -> None:
    """Fetch page after page."""
    fetcher = Fetcher(config, key)
    url: str | None = config.url
    asked: set[str] = set()
    pages: set[int] = set()
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
        while url is not None:
            asked.add(url)
            received = fetcher.fetch(url, body)
            page = reader.read(cast("BinaryIO", body))
            if page.size and page.signature in pages:
                raise UsageError(f"page {len(asked)} repeats an earlier page")
            pages.add(page.signature)
            url = next_page(received.url, page, received.link, reader.format)
            if url in asked:
                raise UsageError(f"page {len(asked)} leads back to an earlier page")
            if len(asked) == _MOST_PAGES and url is not None:
                raise UsageError(
                    f"it has more than {_MOST_PAGES} pages",
                    hint="ask for larger pages, or for fewer models, in the url",
                )


def _read_file(config: SourceConfig, reader: CatalogReader) -> None:
    try:
        with open(config.file, "rb", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise NotReadError("it is not a regular file", permanent=True)
            _read_whole(reader, stream)
    except OSError as exc:
        why = f"cannot read the file {clean(config.file)}: {exc.strerror}"
        raise NotReadError(why, permanent=True) from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, as a pipe would let us do."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_command(config: SourceConfig, reader: CatalogReader) -> None:
    async def run() -> command.Ended:
        async with asyncio.timeout(config.timeout):
            return await command.run(config.command, {}, output=output, largest=LARGEST)

    with tempfile.TemporaryFile() as output:
        try:
            ended = complete(run())
        except TimeoutError:
            raise NotReadError(f"the command did not end within {config.timeout:g} s") from None
        except command.CannotRunError as exc:
            raise NotReadError(str(exc), permanent=True) from None
        except command.TooMuchOutputError:
            why = f"the command printed more than {LARGEST >> 20} MiB"
            raise NotReadError(why, permanent=True) from None
        if ended.code:
            why = storable_reason(str(ended), 300) or ""
            raise NotReadError(f"the command failed: {why}", permanent=ended.cannot_run)
        output.seek(0)
        _read_whole(reader, cast("BinaryIO", output))


def _read_whole(reader: CatalogReader, stream: BinaryIO) -> None:
    page = reader.read(stream)
    if page.more:
        raise UsageError(
            f'it is one page of a longer list ("{page.more}" says that there is more)',
            hint="bring all pages into one list; those of a url are fetched",
        )
