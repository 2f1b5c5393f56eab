"""Fetch the pages of a list over HTTP: again with backoff while that may help, within a time limit."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from modelctl.catalog.documents import error_in
from modelctl.catalog.formats import FORMATS
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import clean
from modelctl.outbound.get import RefusedAnswerError, get
from modelctl.outbound.loop import complete
from modelctl.outbound.retry import FailedTryError, is_later, retry_after, retrying
from modelctl.outbound.web import (
    BrokenConnectionError,
    NoConnectionError,
    PrivateAddressError,
    Web,
    trusted_certificates,
)
from modelctl.redact import redact

if TYPE_CHECKING:
    from typing import IO

    from modelctl.config.sources import SourceConfig
    from modelctl.outbound.get import Received

# A list of 100,000 models, as LiteLLM writes them, has this size.
LARGEST = 64 << 20
_TRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 10.0
# Bytes of an answer in which the text of an error is looked for.
_LONGEST_ERROR = 65536


class NotReadError(FailedTryError):
    """A source could not be read. The message says why, without a key or a URL."""


class Fetcher:
    """Asks one server for the pages of one list, within the time limit of the source."""

    def __init__(self, config: SourceConfig, key: str) -> None:
        self._config, self._key = config, key
        self._tls = trusted_certificates(f"the url of source '{clean(config.name)}'", "sync")
        self._headers = _headers(config, key)
        self._end = time.monotonic() + config.timeout

    def fetch(self, url: str, body: IO[bytes]) -> Received:
        """Write the document at *url* to *body*, and return what else the server said.

        Raises:
            NotReadError: there is no such document, or none in time.
        """
        import tenacity

        backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)

        stop = tenacity.stop_after_attempt(_TRIES) | tenacity.stop_before_delay(
            max(0.0, self._end - time.monotonic())
        )
        for attempt in retrying(backoff, stop):
            with attempt:
                body.seek(0)
                body.truncate()
                return complete(self._try(url, body))
        raise AssertionError("tenacity raises what the last try raised")

    async def _try(self, url: str, body: IO[bytes]) -> Received:
        left = self._end - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                received = await get(
                    url,
                    self._headers,
                    Web(self._tls),
                    body,
                    largest=LARGEST,
                    timeout=max(0.1, left),
                    allow_private=self._config.allow_private,
                )
        except TimeoutError:
            raise NotReadError(f"no whole answer within {self._config.timeout:g} s") from None
        except PrivateAddressError as exc:
            why = f"its address {exc} is not public; allow_private permits it"
            raise NotReadError(why, permanent=True) from None
        except NoConnectionError:
            raise NotReadError("no connection in time") from None
        except BrokenConnectionError as exc:
            raise NotReadError(str(exc)) from None
        except RefusedAnswerError as exc:
            raise NotReadError(str(exc), permanent=True) from None
        self._judge(received, body)
        return received

    def _judge(self, received: Received, body: IO[bytes]) -> None:
        """Raise an error unless the answer is a document."""
        body.seek(0)
        status = received.status
        start = body.read(_LONGEST_ERROR)
        body.seek(0)
        if status == 200:
            if _is_html(received.content_type, start):
                raise NotReadError(
                    "the answer is a page of HTML, not a list of models", permanent=True
                )
            return
        seconds = retry_after(received.retry_after)
        said = self._said(start)
        asks = f"; it asks to wait {seconds:g} s" if seconds else ""
        raise NotReadError(
            f"HTTP {status}{said}{asks}", permanent=not is_later(status), retry_after=seconds
        )

    def _said(self, start: bytes) -> str:
        """Return the error message of an answer, without a key, and safe to print."""
        try:
            message = error_in(json.loads(start))
        except (ValueError, RecursionError):
            return ""
        if not message:
            return ""
        message = message.replace(self._key, "***") if self._key else message
        return f": {clean(redact(message), longest=300)}"


def _is_html(content_type: str, start: bytes) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "text/html" or start.lstrip()[:1] == b"<"


def _headers(config: SourceConfig, key: str) -> dict[str, str]:
    """Return the headers of a source: those that its format needs, and its key."""
    format_ = FORMATS[CatalogFormat(config.format)] if config.format else None
    headers = dict(format_.headers) if format_ else {}
    if key:
        name = config.key_header or (format_.key_header if format_ else "")
        headers |= {name: key} if name else {"Authorization": f"Bearer {key}"}
    return headers
