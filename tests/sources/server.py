"""An HTTP server that plays the lists of providers, and sources that read it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from modelctl.config.sources import SourceConfig

KEY = "sk-Very+Secret/0123456789"
# What comes for a request: a document, bytes, or a function that sends what it wants.
Answer = object


class Handler(BaseHTTPRequestHandler):
    """Answers with the next of the answers of its server; the last one for ever."""

    server: Lists

    def do_GET(self) -> None:
        """Record the request and answer it."""
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        with suppress(OSError):
            if callable(answer):
                answer = answer(self)
            if answer is not None:
                self.send(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the request."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def send(self, answer: Answer, status: int = 200, **headers: str) -> None:
        """Send a whole answer."""
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Lists(ThreadingHTTPServer):
    """A server on this machine; *asked*: path and headers of each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: list[Any] = [{"data": []}]
        self.scheme = "http" if context is None else "https"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"{self.scheme}://127.0.0.1:{self.server_port}/v1/models"

    def source(self, *answers: Answer, **keys: Any) -> SourceConfig:
        """Return a source that reads this server, which gives these answers."""
        self.answers = [*answers] or self.answers
        how: dict[str, Any] = {"url": self.url, "allow_http": True, "allow_private": True}
        return SourceConfig("mine", **(how | keys))

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go away, and refuse certificates."""


@contextmanager
def listing(context: ssl.SSLContext | None = None) -> Iterator[Lists]:
    """Run a server."""
    with Lists(context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def models(*ids: str) -> list[dict[str, Any]]:
    """Return entries as OpenAI lists them."""
    return [{"id": model_id, "object": "model", "owned_by": "acme"} for model_id in ids]


def status(code: int, answer: Answer = b"", **headers: str) -> Callable[[Handler], None]:
    """Return an answer with a status."""
    return lambda handler: handler.send(answer, code, **headers)


def paged(
    ids: Sequence[str], size: int, describe: Callable[[Handler, int, list[str]], dict[str, Any]]
) -> Callable[[Handler], dict[str, Any]]:
    """Return an answer that gives *size* ids from where `describe` says; it adds what it says."""

    def answer(handler: Handler) -> dict[str, Any]:
        start = handler.query.get("start", "0")
        chosen = [*ids[int(start) : int(start) + size]]
        return {"data": models(*chosen)} | describe(handler, int(start), chosen)

    return answer
