"""An HTTP server that plays a provider, and one question to it."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from modelctl.config.probes import ProbeConfig
from modelctl.model import FailureType
from modelctl.probe.ask import Target, ask
from modelctl.probe.results import ProbeResult

KEY = "sk-Very+Secret/0123456789"
HEALTHY = {"choices": [{"message": {"role": "assistant", "content": "pong"}}]}
# Strings that would do something if anything but a value were made of them.
NASTY = [
    "../../x",
    "--help",
    "a b",
    "",
    "line\nbreak",
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "\\'; touch canary; \\'",
    "\ntouch canary\n",
    "{name}{id}",
    "x" * 200,
    "ünï→😀",
]


class Handler(BaseHTTPRequestHandler):
    """Answers as the path says: ``/ok``, ``/status/404``, ``/silent``..."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Record the request and answer it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        what, *rest = self.path.removesuffix("/chat/completions").strip("/").split("/")
        try:
            with suppress(OSError):
                getattr(self, f"answer_{what}")(*rest)
        finally:
            self.server.left.release()

    do_GET = do_POST  # noqa: N815 - the name http.server wants

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_ok(self) -> None:
        """ProbeResult as a healthy model does."""
        self.send(200, json.dumps(HEALTHY).encode())

    def answer_slow(self) -> None:
        """ProbeResult well, after a while that is counted."""
        with self.server.counted():
            time.sleep(0.1)
        self.answer_ok()

    def answer_status(self, status: str) -> None:
        """Answer with a status and an error as OpenAI writes it."""
        self.send(int(status), json.dumps({"error": {"message": "so\x1b[31m sorry"}}).encode())

    def answer_body(self, name: str) -> None:
        """Answer 200 with one of the bodies of the server."""
        self.send(200, self.server.bodies[name])

    def answer_refuse(self, name: str) -> None:
        """Answer 400 with one of the bodies of the server."""
        self.send(400, self.server.bodies[name])

    def answer_say(self, status: str, name: str) -> None:
        """Answer with a status and one of the bodies of the server."""
        self.send(int(status), self.server.bodies[name])

    def answer_chat(self) -> None:
        """Send a stream of choices that does not end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n')
            time.sleep(0.02)

    def answer_echo(self) -> None:
        """Show what was sent, as a careless server does."""
        said = f"bad header {self.headers['Authorization']} " * 40
        self.send(401, json.dumps({"error": {"message": said}}).encode(), X_Echo=KEY)

    def answer_garbage(self) -> None:
        """Answer with no HTTP at all, but with the key."""
        self.wfile.write(f"{KEY} {KEY}\r\n\r\n".encode())
        self.close_connection = True

    def answer_redirect(self, status: str) -> None:
        """Send the client to another server."""
        self.send(int(status), b"", Location=self.server.elsewhere)

    def answer_silent(self) -> None:
        """Say nothing until the client goes away."""
        self.rfile.read(1)
        self.close_connection = True

    def answer_drip(self, what: str) -> None:
        """Send one byte after another, for ever."""
        start = b"HTTP/1.1 200 OK\r\n" + (b"X: " if what == "head" else b"\r\n")
        self.wfile.write(start)
        while True:
            self.wfile.write(b" ")
            time.sleep(0.05)

    def answer_endless(self) -> None:
        """Send as much as the client takes."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.wfile.write(b" " * 65536)
            self.server.sent += 65536

    def answer_cut(self, what: str) -> None:
        """Close the connection before or in the middle of the answer."""
        if what == "body":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"choices"')
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """A server on this machine that remembers what it was asked."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 100
    elsewhere = ""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.names: list[str | None] = []
        self.bodies: dict[str, bytes] = {}
        self.left = threading.Semaphore(0)
        self.sent = 0
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._context = context
        if context is not None:
            context.sni_callback = lambda _, name, __: self.names.append(name)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count how many are slow at the same time."""
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS if there is a certificate; in the thread of the connection."""
        if self._context is None:
            super().finish_request(request, client_address)
        else:
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go away, and refuse certificates."""

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_port}"

    def config(self, what: str, **changes: Any) -> ProbeConfig:
        """Make a probe that asks this server for *what*."""
        scheme = "http" if self._context is None else "https"
        how: dict[str, Any] = {"allow_http": True, "allow_private": True}
        return ProbeConfig("p", **({"url": f"{scheme}://{self.place}/{what}"} | how | changes))


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server."""
    with Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def secured(authority: trustme.CA, *names: str) -> Iterator[Server]:
    """Run a server with a certificate for *names*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    with serving(context) as server:
        yield server


def command(*words: str, **changes: Any) -> ProbeConfig:
    """Make a probe that runs a command."""
    return ProbeConfig("p", command=words, **changes)


def ask_one(config: ProbeConfig, id_: str = "p/m", **how: Any) -> ProbeResult:
    """Ask one model."""
    (answer,) = ask([Target(id_, "p")], {"p": config}, **how)
    assert answer.id == id_
    assert answer.healthy is (answer.reason is None)
    assert answer.reason is None or len(answer.reason) <= 500
    return answer


def failed(answer: ProbeResult, kind: FailureType | None, *words: str) -> None:
    """Check that an answer is this failure, with these words in its reason."""
    assert answer.failure_type is kind, answer
    for word in words:
        assert word in (answer.reason or ""), answer


def targets(number: int) -> list[Target]:
    """Make some models of one provider."""
    return [Target(f"p/{n}", "p") for n in range(number)]


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
