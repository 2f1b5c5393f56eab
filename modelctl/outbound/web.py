"""Send one HTTP request to an address that was checked. No redirect is followed."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from modelctl.errors import InvalidConfigError
from modelctl.outbound.addresses import is_public

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")


class PrivateAddressError(Exception):
    """The host has an address that is not public; the message is the address."""


class NoConnectionError(Exception):
    """No address of the host accepted a connection in time."""


class BrokenConnectionError(Exception):
    """No answer came. The message says why, without a word of the URL or of the server."""


def trusted_certificates(what: str, extra: str) -> ssl.SSLContext:
    """Return the CAs to trust: SSL_CERT_FILE or SSL_CERT_DIR if set, else those of certifi.

    *what* needs httpx, and *extra* is the extra of modelctl that installs it.

    Raises:
        InvalidConfigError: httpx is not installed, or there is no certificate in these.
    """
    try:
        import httpx
    except ImportError:
        raise InvalidConfigError(
            f"{what} needs httpx", hint=f"pip install 'modelctl[{extra}]'"
        ) from None
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        why = exc.strerror or "no certificates in it"
        raise InvalidConfigError(f"cannot read SSL_CERT_FILE or SSL_CERT_DIR: {why}") from exc


class Web:
    """What all requests share: the trusted certificates, and the addresses of each host."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self._found: dict[tuple[str, int], asyncio.Future[list[str] | Exception]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Resolve *host*, once, in a thread, so that a slow resolver does not outlast a timeout."""
        loop = asyncio.get_running_loop()

        def resolve() -> None:
            result: list[str] | Exception
            try:
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                result = list(dict.fromkeys(str(info[4][0]) for info in infos))
            except (OSError, UnicodeError) as exc:
                result = exc
            with suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(found.set_result, result)

        if (host, port) not in self._found:
            found = self._found[host, port] = loop.create_future()
            threading.Thread(target=resolve, name="modelctl-resolve", daemon=True).start()
        result = await asyncio.shield(self._found[host, port])
        if isinstance(result, Exception):
            raise result
        return list(result)


async def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    web: Web,
    read: Callable[[Any], Awaitable[T]],
    *,
    content: bytes | None = None,
    timeout: float,
    allow_private: bool,
) -> T:
    """Send a request and return what *read* makes of the answer, an `httpx.Response`.

    If connecting to an address fails, the next address of the host is tried. A request that was sent
    is never sent again. *timeout* is shared by the addresses; the caller ends the whole exchange.

    Raises:
        PrivateAddressError: an address is not public, and *allow_private* is not set.
        NoConnectionError: no address accepted a connection in time.
        BrokenConnectionError: there was another error.
    """
    import httpx

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    rest = f"{parts.path}?{parts.query}" if parts.query else parts.path
    headers = {"Host": parts.netloc, "User-Agent": "modelctl", **headers}
    try:
        addresses = await web.addresses(host, port)
        refused = [address for address in addresses if not is_public(address)]
        if refused and not allow_private:
            raise PrivateAddressError(refused[0])
        while True:
            # The URL has the checked address, so that the name is not resolved again.
            address = addresses.pop(0)
            place = f"[{address}]" if ":" in address else address
            extensions = {
                "sni_hostname": host,  # the name that TLS verifies
                "timeout": {"connect": timeout / (1 + len(addresses))},
            }
            sent = httpx.Request(
                method,
                f"{parts.scheme}://{place}:{port}{rest}",
                headers=headers,
                content=content,
                extensions=extensions,
            )
            try:
                return await _exchange(sent, web, read)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not addresses:
                    raise
    except httpx.TimeoutException:
        raise NoConnectionError from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
        raise BrokenConnectionError(_why(exc)) from None


async def _exchange(request: Any, web: Web, read: Callable[[Any], Awaitable[T]]) -> T:
    import httpx

    connections: list[Any] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            connections.append(info["return_value"])

    request.extensions["trace"] = trace
    try:
        # A transport without a client: it follows no redirects, keeps no cookies, logs nothing.
        async with (
            httpx.AsyncHTTPTransport(verify=web.tls or True, trust_env=False) as transport,
            aclosing(await transport.handle_async_request(request)) as response,
        ):
            return await read(response)
    finally:
        for connection in connections:  # httpcore forgets it if a TLS handshake is cancelled
            await connection.aclose()


def _why(error: BaseException) -> str:
    """Say why a connection failed, in the words of the system.

    The words of the HTTP client are not used: they may quote the server.
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"certificate refused: {inner.verify_message}"
        if isinstance(inner, OSError) and inner.strerror:
            # asyncio's own words, and ours, would repeat the address.
            by_number = inner.errno and not isinstance(inner, socket.gaierror | ssl.SSLError)
            return os.strerror(inner.errno or 0) if by_number else inner.strerror
        inner = inner.__cause__ or inner.__context__
    return "the connection broke, or does not speak HTTP"
