"""A receiver of notifications over HTTP, and fleets that tell it what happens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from modelctl import Fleet
from modelctl.config.notify import NotifyConfig, check_notify
from tests import fleets

SECRET = "zq7secret"
# How a receiver answers: a status with headers, or something of its own.
Answer = tuple[int, dict[str, str]] | Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the next of the answers of its server, then with 200."""

    server: Receiver

    def do_POST(self) -> None:
        """Record the message and answer it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), json.loads(body)))
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        with suppress(OSError):
            if callable(answer):
                answer(self)
                return
            status, headers = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(f"no {self.path} {SECRET}".encode())

    do_GET = do_POST  # noqa: N815 - the name http.server wants

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Receiver(ThreadingHTTPServer):
    """A server on this machine; *got*: path, headers and JSON of each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[Answer] = []

    @property
    def url(self) -> str:
        """Its URL, with a secret in the path and in the query."""
        return f"http://127.0.0.1:{self.server_port}/{SECRET}?sig={SECRET}"

    @property
    def texts(self) -> list[str]:
        """The text of each message."""
        return [body["text"] for _, _, body in self.got]

    @property
    def events(self) -> list[tuple[str | None, str]]:
        """Model and event of everything that came, in its order."""
        return [(e["model_id"], e["event"]) for _, _, body in self.got for e in body["events"]]


def silent(handler: Handler) -> None:
    """Answer nothing until the client goes away."""
    handler.rfile.read(1)


def slow(handler: Handler) -> None:
    """Send one byte after another."""
    for _ in range(100):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: "[:1])
        time.sleep(0.05)


def endless(handler: Handler) -> None:
    """Say yes, and go on for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 65536)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def telling(url: str, receiver: Receiver | Sequence[str], /, **notify: Any) -> Fleet:
    """Return a fleet on the database at *url* that tells a receiver, or a command, what happens."""
    to: dict[str, Any] = (
        {"url": receiver.url, "allow_http": True, "allow_private": True}
        if isinstance(receiver, Receiver)
        else {"command": tuple(receiver)}
    )
    config = NotifyConfig(**(to | notify))
    check_notify(config)
    settings = {"recovery_max_ejections": 3}
    return Fleet.open(replace(fleets.configured(url, **settings), notify=config), actor="tester")


def later(url: str, seconds: float) -> None:
    """Let so much time pass, also in what `notify` has stored."""
    fleets.let_pass(url, seconds)
    rows = fleets.sql(url, "SELECT value FROM modelctl_state WHERE name = 'notify'")
    for (value,) in rows:
        stored = json.loads(value)
        times = {k: v - seconds for k, v in stored.items() if isinstance(v, float)}
        text = json.dumps(stored | times)
        fleets.sql(
            url,
            f"UPDATE modelctl_state SET value = ?, at = {fleets.ago(url, seconds)}"
            " WHERE name = 'notify'",
            text,
        )
