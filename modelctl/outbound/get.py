"""GET a document over HTTP, from an address that was checked, into a file."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from modelctl.errors import clean
from modelctl.outbound.web import BrokenConnectionError, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import IO

    from modelctl.outbound.web import Web

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
# Bytes that are unpacked at once, so that a small answer cannot fill the memory.
_PIECE = 1 << 18


class Received(NamedTuple):
    """What the server answered, besides the body; *url*: where it came from.

    *content_type*, *link*, *retry_after*: these headers.
    """

    status: int
    url: str
    content_type: str
    link: str
    retry_after: str | None


class RefusedAnswerError(Exception):
    """An answer that is not accepted; to ask again does not help. The message says why."""


async def get(
    url: str,
    headers: Mapping[str, str],
    web: Web,
    body: IO[bytes],
    *,
    largest: int,
    timeout: float,
    allow_private: bool,
) -> Received:
    """Ask for a document, and write its body to *body*, unpacked.

    A redirect is followed only if it leads to the same scheme, host and port, because *headers* may
    hold a key. *largest*: how many bytes the body may have. *timeout*, *allow_private* and the other
    errors are those of `request`.

    Raises:
        RefusedAnswerError: a redirect leads elsewhere or to no end, the body is too long, or is
            packed in a way that was not asked for.
    """

    async def read(response: Any) -> tuple[Received, str | None]:
        target = response.headers.get("Location") if response.status_code in _REDIRECTS else None
        if target is None:
            async for part in _unpacked(response):
                if body.tell() + len(part) > largest:
                    raise RefusedAnswerError(f"the answer has more than {largest >> 20} MiB")
                body.write(part)
        fields = response.headers
        received = Received(
            response.status_code,
            url,
            fields.get("Content-Type", ""),
            fields.get("Link", ""),
            fields.get("Retry-After"),
        )
        return received, target

    headers = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate", **headers}
    for _ in range(1 + _MOST_REDIRECTS):
        received, target = await request(
            "GET", url, headers, web, read, timeout=timeout, allow_private=allow_private
        )
        if target is None:
            return received
        followed = on_same_server(url, target)
        if followed is None:
            raise RefusedAnswerError(
                f"HTTP {received.status}: a redirect to another server, refused"
            )
        url = followed
    raise RefusedAnswerError(f"more than {_MOST_REDIRECTS} redirects")


def on_same_server(url: str, reference: str) -> str | None:
    """Return the URL that *reference* means in a document at *url*; None: it is on another server."""
    try:
        parts, base = urlsplit(urljoin(url, reference.strip())), urlsplit(url)
        place, from_place = ((p.scheme, p.hostname, _port(p)) for p in (parts, base))
        # The characters that may stand in a URL, and those that are encoded already, stay.
        path, query = (
            quote(text, safe="%/:@!$&'()*+,;=~?[]") for text in (parts.path, parts.query)
        )
    except ValueError:
        return None
    if place != from_place or "@" in parts.netloc:
        return None
    return f"{base.scheme}://{base.netloc}{path}" + (f"?{query}" if query else "")


def _port(parts: Any) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


async def _unpacked(response: Any) -> AsyncIterator[bytes]:
    """Give the body in pieces, unpacked."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for part in response.aiter_raw():
            yield part
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        shown = clean(encoding, longest=30)
        raise RefusedAnswerError(f"the answer is packed with {shown}, which was not asked for")
    unpacker = None
    try:
        async for part in response.aiter_raw():
            rest = part
            unpacker = unpacker or _unpacker(rest)
            piece = bytes(_PIECE)
            while rest or len(piece) == _PIECE:
                piece = unpacker.decompress(rest, _PIECE)
                rest = unpacker.unconsumed_tail
                yield piece
            if unpacker.unused_data:
                raise RefusedAnswerError("the packed answer goes on after its end")
    except zlib.error:
        raise RefusedAnswerError("the answer is not packed as it says") from None
    if unpacker is None or not unpacker.eof:
        raise BrokenConnectionError("the answer ended too early")


def _unpacker(start: bytes) -> Any:
    """Return what unpacks gzip or zlib; or deflate alone, which some servers send."""
    # The first byte of zlib has the method 8; the first two are a multiple of 31.
    is_zlib = start[0] & 15 == 8 and (len(start) < 2 or int.from_bytes(start[:2], "big") % 31 == 0)
    return zlib.decompressobj(47 if is_zlib or start[0] == 0x1F else -15)
