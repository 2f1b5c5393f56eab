"""Ask a model over HTTP: one small chat completion, sent to an address that was checked."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelctl.errors import InvalidConfigError
from modelctl.model import FailureType
from modelctl.probe.addresses import is_public
from modelctl.probe.judge import LARGEST_ANSWER, has_answered, judge
from modelctl.probe.results import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelctl.config.probes import ProbeConfig


def trusted_certificates() -> ssl.SSLContext:
    """Return the CAs to trust: SSL_CERT_FILE or SSL_CERT_DIR if set, else those of certifi.

    Raises:
        InvalidConfigError: httpx is not installed, or there is no certificate in these.
    """
    try:
        import httpx
    except ImportError:
        raise InvalidConfigError(
            "asking a model over HTTP needs httpx", hint="pip install 'modelctl[probe]'"
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


@dataclass(frozen=True, slots=True)
class Request:
    """One request; *model*: its name in the request."""

    config: ProbeConfig
    model: str
    key: str = field(repr=False)
    web: Web

    async def send(self) -> Failure | None:
        """Return what is wrong with the model, None: it is healthy.

        If connecting to an address fails, the next address of the host is tried. A request that
        was sent is never sent again.
        """
        import httpx

        parts = urlsplit(self.config.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            addresses = await self.web.addresses(host, port)
            refused = [address for address in addresses if not is_public(address)]
            if refused and not self.config.allow_private:
                return Failure(
                    None, f"{host} is {refused[0]}, not a public address; allow_private permits it"
                )
            while True:
                # The URL has the checked address, so that the name is not resolved again.
                address = addresses.pop(0)
                place = f"[{address}]" if ":" in address else address
                url = f"{parts.scheme}://{place}:{port}{parts.path.rstrip('/')}/chat/completions"
                connect_seconds = self.config.timeout / (1 + len(addresses))
                try:
                    return await self._post(url, parts.netloc, host, connect_seconds)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if not addresses:
                        raise
        except httpx.TimeoutException:
            return Failure(FailureType.TIMEOUT, "no connection in time")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
            return Failure(FailureType.NETWORK_ERROR, _why(exc))

    async def _post(
        self, url: str, place: str, host: str, connect_seconds: float
    ) -> Failure | None:
        """Send the request to *url*; *place* is its Host header, *host* the name that TLS verifies."""
        import httpx

        connections: list[Any] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                connections.append(info["return_value"])

        request = httpx.Request(
            "POST",
            url,
            headers=self._headers(place),
            content=self._content(),
            extensions={
                "sni_hostname": host,
                "timeout": {"connect": connect_seconds},
                "trace": trace,
            },
        )
        try:
            # A transport without a client: it follows no redirects, keeps no cookies, logs nothing.
            async with (
                httpx.AsyncHTTPTransport(verify=self.web.tls or True, trust_env=False) as transport,
                aclosing(await transport.handle_async_request(request)) as response,
            ):
                body = b""
                async for part in response.aiter_raw():  # raw: a packed answer is not unpacked
                    body += part
                    if len(body) > LARGEST_ANSWER or (self.config.stream and has_answered(body)):
                        break
                return judge(response.status_code, body, stream=self.config.stream)
        finally:
            for connection in connections:  # httpcore forgets it if a TLS handshake is cancelled
                await connection.aclose()

    def _headers(self, place: str) -> dict[str, str]:
        headers = {
            "Host": place,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "modelctl",
        }
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return headers

    def _content(self) -> bytes:
        ping: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "ping"}],
        }
        if self.config.max_tokens:
            ping[self.config.max_tokens_field] = self.config.max_tokens
        if self.config.stream:
            ping["stream"] = True
        return json.dumps(ping).encode()  # ASCII, so that it can hold lone surrogates too


def _why(error: BaseException) -> str:
    """Say why a connection failed, in the words of the system.

    The words of the HTTP client are not used: they may quote the server.
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"certificate refused: {inner.verify_message}"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return "the connection broke, or does not speak HTTP"
