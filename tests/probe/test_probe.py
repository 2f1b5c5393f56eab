from __future__ import annotations

import gzip
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from modelctl.config.probes import ProbeConfig, check_probe
from modelctl.errors import InvalidConfigError, UsageError
from modelctl.model import FailureType
from modelctl.probe.ask import Target, _is_public, ask
from modelctl.reports import ProbeResult

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


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a server without TLS."""
    with serving() as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Make a CA that the probes trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


@contextmanager
def secured(authority: trustme.CA, *names: str) -> Iterator[Server]:
    """Run a server with a certificate for *names*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    with serving(context) as server:
        yield server


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Make models.test these addresses, once; return the names that are asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "models.test":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        now = addresses if len(asked) == 1 else ("127.0.0.3",)
        return [info for address in now for info in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def command(*words: str, **changes: Any) -> ProbeConfig:
    """Make a probe that runs a command."""
    return ProbeConfig("p", command=words, **changes)


def one(config: ProbeConfig, id_: str = "p/m", **how: Any) -> ProbeResult:
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


def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# The request


def test_the_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model gets one small POST with its name, the key and nothing of httpx's own."""
    monkeypatch.setenv("KEY", KEY)
    answer = one(server.config("ok/", key_env="KEY"))
    assert (answer.healthy, answer.failure_type, answer.reason) == (True, None, None)
    assert 0 < answer.seconds < 5
    ((path, headers, body),) = server.requests
    assert path == "/ok/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 16,
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Host"] == server.place
    assert headers["Accept-Encoding"] == "identity"
    assert "httpx" not in str(headers)


def test_fields_of_the_request(server: Server) -> None:
    """The name of the model, and of the field that limits the answer, are configuration."""
    config = server.config("ok", model="x/{id}?{name}", max_tokens_field="max_completion_tokens")
    assert one(config).healthy
    ((_, headers, body),) = server.requests
    assert (body["model"], body["max_completion_tokens"]) == ("x/p/m?m", 16)
    assert "max_tokens" not in body
    assert "Authorization" not in headers


def test_the_limit_of_an_answer_is_configuration(server: Server) -> None:
    """How long the answer may be is said in tokens, and not at all where that is 0."""
    assert one(server.config("ok", max_tokens=64)).healthy
    assert one(server.config("ok", max_tokens=0)).healthy
    assert [body.get("max_tokens") for _, _, body in server.requests] == [64, None]


def test_a_model_that_thought_for_too_long_is_healthy(server: Server) -> None:
    """Whoever answers that our limit of tokens was reached has worked."""
    said = "Could not finish the message because max_tokens or model output limit was reached."
    server.bodies["long"] = json.dumps({"error": {"message": said}}).encode()
    assert one(server.config("refuse/long")).healthy


@pytest.mark.parametrize("id_", [*NASTY, "nul\0", "\ud800", "p/", "p/{id}"])
def test_any_id_goes_into_json_only(server: Server, id_: str) -> None:
    """An id is a value in the JSON of the request, and nowhere else."""
    assert one(server.config("ok", model="{id}"), id_).healthy
    ((path, headers, body),) = server.requests
    assert path == "/ok/chat/completions"
    assert body["model"] == id_
    assert len(id_) < 5 or id_ not in str(headers)


def test_one_request_each(server: Server) -> None:
    """Every model is asked once, also one that is given twice, and progress counts the answers."""
    counted: list[int] = []
    fleet = targets(30)
    answers = list(ask([*fleet, *fleet], {"p": server.config("ok")}, progress=counted.append))
    assert sorted(a.id for a in answers) == sorted(t.id for t in fleet)
    assert all(answer.healthy for answer in answers)
    assert sorted(body["model"] for _, _, body in server.requests) == sorted(
        str(n) for n in range(30)
    )
    assert counted == list(range(1, 31))


def test_nobody_to_ask() -> None:
    """No models, no answers, and no probe is looked at."""
    assert list(ask([], {})) == []


def test_several_providers(server: Server) -> None:
    """Each model is asked as its own provider's probe says, at the same time."""
    probes = {"p": server.config("ok"), "q": command("false"), "unused": ProbeConfig("unused")}
    answers = {a.id: a for a in ask([Target("1", "p"), Target("2", "q")], probes)}
    assert answers["1"].healthy
    failed(answers["2"], FailureType.UNKNOWN, "exit 1")


@pytest.mark.parametrize("limit", [1, 3])
def test_concurrency(server: Server, limit: int) -> None:
    """Never more than the limit are asked at the same time, and as many as that are."""
    answers = list(ask(targets(9), {"p": server.config("slow")}, concurrency=limit))
    assert [answer.healthy for answer in answers] == [True] * 9
    assert server.most == limit


def test_answers_come_at_once(server: Server) -> None:
    """A quick answer does not wait for a slow one."""
    probes = {"p": server.config("silent", timeout=20), "q": server.config("ok")}
    answers = ask([Target("slow", "p"), Target("quick", "q")], probes)
    assert next(answers).id == "quick"
    answers.close()


def test_a_slow_caller_costs_no_model_its_time(server: Server) -> None:
    """Requests go on while the caller works with an answer."""
    answers = ask(targets(12), {"p": server.config("slow", timeout=1)}, concurrency=2)
    seen = [next(answers)]
    time.sleep(1.5)
    assert len(server.requests) == 12
    seen += answers
    assert all(answer.healthy for answer in seen)


# Answers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailureType.CLIENT_ERROR),
        (401, None),  # the key's fault, not the model's
        (403, None),
        (404, FailureType.CLIENT_ERROR),
        (408, FailureType.TIMEOUT),
        (402, None),
        (405, None),  # the path or the method
        (413, None),
        (429, None),  # asked too often
        (499, None),  # we went away
        (500, FailureType.SERVER_ERROR),
        (503, FailureType.SERVER_ERROR),
        (504, FailureType.TIMEOUT),
        (599, FailureType.SERVER_ERROR),
        (200, FailureType.PARSE_ERROR),  # no choices in it
        (201, FailureType.PARSE_ERROR),
        (600, FailureType.PARSE_ERROR),
        (999, FailureType.PARSE_ERROR),
    ],
)
def test_statuses(server: Server, status: int, kind: FailureType | None) -> None:
    """A status is the failure that the health rule makes of it, or says that the probe could not
    ask; the server's words are kept.
    """
    failed(one(server.config(f"status/{status}")), kind, f"HTTP {status}: so", "sorry")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(server: Server, status: int) -> None:
    """What is neither 200 nor an error is no healthy answer."""
    kind = None if status == 304 else FailureType.PARSE_ERROR
    failed(one(server.config(f"status/{status}")), kind, f"HTTP {status}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": {"0": 1}}',
        b'{"choices": "yes"}',
        b"[" * 60_000,
        b"9" * 60_000,
        b"\xff\xfe\x00",
        gzip.compress(json.dumps(HEALTHY).encode()),
    ],
    ids=range(12),
)
def test_parse_errors(server: Server, body: bytes) -> None:
    """A 200 that is not the expected JSON is a parse error."""
    server.bodies["x"] = body
    answer = one(server.config("body/x"))
    failed(answer, FailureType.PARSE_ERROR, "HTTP 200: not a JSON object with choices")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": "overloaded"}, "overloaded"),
        ({"message": "gone"}, "gone"),
        ({"error": {"message": "many\n  lines\0"}}, "many lines\ufffd"),
        ({"error": {"message": ["no", "text"]}}, "not a JSON object with choices"),
        ({"error": {"message": "x" * 1000}}, "x" * 490),
        ({"error": {"message": "\ud800"}}, "\ufffd"),
    ],
)
def test_words_of_the_server(server: Server, document: object, words: str) -> None:
    """What the server says is in the reason, cut, and made so that any database can store it."""
    server.bodies["x"] = json.dumps(document).encode()
    failed(one(server.config("body/x")), FailureType.PARSE_ERROR, f"HTTP 200: {words}")


@pytest.mark.parametrize(
    ("status", "document", "kind"),
    [
        # What OpenAI says of a parameter that a newer model does not take.
        (
            400,
            {
                "error": {
                    "message": "Unsupported parameter: 'max_tokens' is not supported with this model."
                    " Use 'max_completion_tokens' instead.",
                    "type": "invalid_request_error",
                    "param": "max_tokens",
                    "code": "unsupported_parameter",
                }
            },
            None,
        ),
        (400, {"error": {"message": "no", "code": "unsupported_value"}}, None),
        (400, {"error": {"message": "Unrecognized request argument supplied: foo"}}, None),
        (400, {"error": {"message": "This model only support stream mode"}}, None),
        (400, {"error": {"message": "API key not valid. Please pass a valid API key."}}, None),
        (400, {"error": {"message": "Your credit balance is too low"}}, None),
        (
            422,
            {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}]},
            None,
        ),
        (422, {"error": {"message": "Extra inputs are not permitted"}}, None),
        (404, {"error": {"message": "This is not a chat model and thus not supported"}}, None),
        (
            404,
            {"error": {"message": "This model is only supported in v1/responses, not here."}},
            None,
        ),
        (404, {"error": {"message": "Invalid URL (POST /v1/v1/x)"}}, None),
        (404, {"detail": "Not Found"}, None),
        (404, {"error": "Not Found"}, None),
        # The model's own failures.
        (
            404,
            {"error": {"message": "The model 'x' does not exist", "code": "model_not_found"}},
            "c",
        ),
        (404, {"error": "model 'x' not found, try pulling it first"}, "c"),
        (404, {"error": {"message": "No endpoints found for x"}}, "c"),
        (400, {"error": {"message": "x is not a valid model ID"}}, "c"),
        (400, {"error": {"message": "invalid model: x"}}, "c"),
        (422, {"error": {"message": "I do not want to"}}, "c"),
    ],
)
def test_a_probe_that_is_wrong_is_not_the_models_fault(
    server: Server, status: int, document: object, kind: str | None
) -> None:
    """An answer that refuses the request itself says nothing of the model."""
    server.bodies["x"] = json.dumps(document).encode()
    answer = one(server.config(f"say/{status}/x"))
    failed(answer, FailureType.CLIENT_ERROR if kind else None, f"HTTP {status}")


@pytest.mark.parametrize("body", [b"", b"<html>404</html>", b"404 page not found"])
def test_a_path_that_leads_nowhere(server: Server, body: bytes) -> None:
    """A 404 without an error of an API is that of a wrong URL in the probe."""
    server.bodies["x"] = body
    failed(one(server.config("say/404/x")), None, "HTTP 404")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (429, None),
        (401, None),
        (402, None),
        (503, FailureType.SERVER_ERROR),
        (404, FailureType.CLIENT_ERROR),
    ],
)
def test_an_error_that_came_with_200(
    server: Server, code: int, kind: FailureType | None, stream: bool
) -> None:
    """What a router passes on inside of a 200 is judged as the status that it names."""
    document = json.dumps({"error": {"code": code, "message": "upstream says no"}}).encode()
    server.bodies["x"] = b"data: " + document + b"\n\n" if stream else document
    failed(one(server.config("body/x", stream=stream)), kind, f"HTTP {code}: upstream says no")


STREAM = b'data: {"choices": []}\n\ndata: {"choices": [{"delta": {"content": "p"}}]}\n\n'


@pytest.mark.parametrize("start", [b"", b": a comment\n\n", b"event: x\n", b"id: 1\n", b"\r\n"])
def test_an_event_stream_where_json_was_asked_for(server: Server, start: bytes) -> None:
    """An endpoint that answers with a stream only could not be asked; the reason says how."""
    server.bodies["x"] = start + STREAM
    failed(one(server.config("body/x")), None, "an event stream", "stream = true")


@pytest.mark.parametrize(
    "body", [STREAM, STREAM.replace(b"\n", b"\r\n"), STREAM + b"data: [DONE]\n\n"]
)
def test_an_endpoint_that_only_streams_can_be_asked(server: Server, body: bytes) -> None:
    """With stream = true a stream is asked for, and one choice in it is enough."""
    server.bodies["x"] = body
    assert one(server.config("body/x", stream=True)).healthy
    ((_, _, asked),) = server.requests
    assert asked["stream"] is True
    assert one(server.config("ok", stream=True)).healthy  # it may answer with JSON all the same


def test_an_endless_stream_is_read_to_its_first_choice(server: Server) -> None:
    """A stream that goes on is closed as soon as it has shown that the model works."""
    assert one(server.config("chat", stream=True, timeout=5)).healthy
    assert server.left.acquire(timeout=5)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"data: [DONE]\n\n", FailureType.PARSE_ERROR, "a stream without choices"),
        (b"data: nonsense\n\n", FailureType.PARSE_ERROR, "a stream without choices"),
        (b'data: {"choices": "x"}\n\n', FailureType.PARSE_ERROR, "a stream without choices"),
        (b'data: {"error": {"message": "busy"}}\n\n', FailureType.SERVER_ERROR, "busy"),
        (b": " + b"x" * 70_000, FailureType.PARSE_ERROR, "in its first 64 KiB"),
    ],
)
def test_a_stream_that_shows_no_answer(
    server: Server, body: bytes, kind: FailureType, words: str
) -> None:
    """A stream without a choice is a parse error, one with an error in it a server error."""
    server.bodies["x"] = body
    failed(one(server.config("body/x", stream=True)), kind, words)


def test_a_body_of_just_64_kib(server: Server) -> None:
    """A large answer is read to its limit, and no byte further."""
    body = json.dumps(HEALTHY).encode()
    server.bodies = {"fits": body.ljust(65536), "large": body.ljust(65537)}
    assert one(server.config("body/fits")).healthy
    failed(one(server.config("body/large")), FailureType.PARSE_ERROR, "larger than 64 KiB")


def test_an_endless_body(server: Server) -> None:
    """Of an answer without end a little is read, and then the connection is closed."""
    failed(one(server.config("endless")), FailureType.PARSE_ERROR, "larger than 64 KiB")
    assert server.left.acquire(timeout=5)
    assert server.sent < 50_000_000  # what the sockets hold


@pytest.mark.parametrize("what", ["head", "body"])
def test_a_cut_connection(server: Server, what: str) -> None:
    """A connection that ends before its answer does is a network error, and is not tried again."""
    answer = one(server.config(f"cut/{what}"))
    failed(answer, FailureType.NETWORK_ERROR, "the connection broke")
    assert len(server.requests) == 1


def test_nobody_listens(server: Server) -> None:
    """A refused connection is a network error, in the system's words."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answer = one(server.config("", url=f"http://127.0.0.1:{port}"))
    failed(answer, FailureType.NETWORK_ERROR, "onnect")


def test_no_such_host() -> None:
    """A name without addresses is a network error."""
    for host in ("nothing.invalid", "x" * 64 + ".test"):
        failed(one(ProbeConfig("p", url=f"https://{host}/v1")), FailureType.NETWORK_ERROR)


# Time


@pytest.mark.parametrize("what", ["silent", "drip/head", "drip/body"])
def test_timeout_of_a_model(server: Server, what: str) -> None:
    """A server that says nothing, or a byte now and then, has its time and no more."""
    answer = one(server.config(what, timeout=0.5))
    failed(answer, FailureType.TIMEOUT, "no answer in 0.5s")
    assert 0.4 < answer.seconds < 2


def test_timeout_of_a_connection() -> None:
    """A server that does not even accept, or begins no TLS, has its time and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        answer = one(ProbeConfig("p", url=url, timeout=0.5, allow_private=True))
        failed(answer, FailureType.TIMEOUT)
        assert answer.seconds < 2
        connection, _ = listener.accept()
        with connection:  # which the client has closed
            connection.settimeout(2)
            while connection.recv(65536):
                pass


def test_timeout_of_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs delays no answer, and has one thread however many models ask."""
    hang = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        hang.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    probes = {"p": ProbeConfig("p", url="https://models.test", timeout=0.3)}
    started = time.monotonic()
    for answer in ask(targets(20), probes):
        failed(answer, FailureType.TIMEOUT)
    assert time.monotonic() - started < 3
    assert [t.name for t in threading.enumerate()].count("modelctl-resolve") == 1
    hang.set()


def test_deadline(server: Server) -> None:
    """At the deadline of all, what runs has failed as a timeout, what waits was never asked."""
    started = time.monotonic()
    answers = list(ask(targets(20), {"p": server.config("silent")}, concurrency=4, deadline=0.5))
    assert 0.4 < time.monotonic() - started < 2
    assert len(answers) == 20
    assert not any(answer.healthy for answer in answers)
    assert len(server.requests) == 4
    assert sum(answer.failure_type is FailureType.TIMEOUT for answer in answers) == 4
    unasked = [answer for answer in answers if answer.failure_type is None]
    assert sum("not asked" in str(answer.reason) for answer in unasked) == 16


def test_closing(server: Server) -> None:
    """Closing the iterator closes connections and commands at once, and leaves no thread."""
    before, ours = set(threading.enumerate()), children()
    probes = {"p": server.config("silent"), "q": command("sleep", "60")}
    asked = [*targets(3), Target("q", "q"), Target("quick", "r")]
    answers = ask(asked, probes | {"r": command("true")})
    assert next(answers).healthy
    eventually(lambda: len(server.requests) == 3)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 1
    assert all(server.left.acquire(timeout=2) for _ in range(3))
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("modelctl")]
    assert children() <= ours


def children() -> set[str]:
    """Return the processes that this one has started and that are still there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_nothing_is_left_open(server: Server) -> None:
    """A hundred answers later as many files are open as before."""
    probes = {"p": server.config("ok"), "q": command("sh", "-c", "exit 1")}
    list(ask(targets(1), probes))
    before = len(os.listdir("/proc/self/fd"))
    asked = [Target(f"{n}", "pq"[n % 2]) for n in range(100)]
    assert len(list(ask(asked, probes))) == 100
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_interrupt(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends the program at once, with its connections and its commands."""
    code = (
        "import sys\n"
        "from modelctl.probe.ask import *\n"
        "http = ProbeConfig('p', url=sys.argv[1], allow_http=True, allow_private=True)\n"
        "sleeper = ProbeConfig('q', command=('sh', '-c', 'echo $$ > pid; sleep 60'))\n"
        "list(ask([Target('1', 'p'), Target('2', 'q')], {'p': http, 'q': sleeper}))\n"
    )
    program = [sys.executable, "-c", code, f"http://{server.place}/silent"]
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE) as child:
        eventually(lambda: bool(server.requests) and (tmp_path / "pid").exists(), 20)
        eventually(lambda: (tmp_path / "pid").read_text().endswith("\n"))
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=5)
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    assert server.left.acquire(timeout=2)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_failing_progress(server: Server) -> None:
    """An exception of the caller's progress reaches the caller, and ends everything."""

    def progress(done: int) -> None:
        raise RuntimeError("full")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="full"):
        list(ask(targets(5), {"p": server.config("ok")}, progress=progress))
    assert not [t for t in set(threading.enumerate()) - before if t.name == "modelctl-probe"]


# Where a request may go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A redirect is a failure that says so, and nobody else sees the request or the key."""
    monkeypatch.setenv("KEY", KEY)
    with serving() as other:
        server.elsewhere = f"http://{other.place}/ok"
        answer = one(server.config(f"redirect/{status}", key_env="KEY"))
        failed(answer, None, f"HTTP {status}: a redirect, refused")
        assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",  # a name, here without a resolver of our own
        "127.1",
        "0x7f000001",
        "2130706433",
        "0.0.0.0",  # noqa: S104 - to connect to
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:8.8.8.8]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::808:808]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "192.0.0.8",
        "192.0.0.192",  # asked by machines of Oracle about themselves
        "168.63.129.16",  # of Azure
        "100.100.100.200",  # of Alibaba
        "192.88.99.1",
        "198.18.0.1",
        "[64:ff9b::a9fe:a9fe]",  # 169.254.169.254
        "[64:ff9b::a83f:8110]",  # 168.63.129.16
        "[::ffff:0:10.0.0.1]",
        "[::10.0.0.1]",
        "[2001:0:7f00:1::]",  # Teredo
        "[2606:4700::5efe:10.0.0.1]",  # ISATAP
        "[2606:4700::200:5efe:10.0.0.1]",
        "[3fff::1]",
        "[5f00::1]",
        "[fd00:ec2::254]",
    ],
)
def test_private_addresses_are_refused(server: Server, host: str) -> None:
    """Without allow_private nobody connects to an address that is not the Internet's."""
    url = f"http://{host}:{server.server_port}/ok"
    answer = one(server.config("", url=url, allow_private=False))
    failed(answer, None, "not a public address")
    assert server.requests == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    """Ordinary addresses are allowed, also an IPv4 one as a network without IPv4 writes it."""
    assert _is_public(address)


@given(
    st.one_of(
        st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
        st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
        st.integers(0x2000 << 112, (0x2004 << 112) - 1).map(ipaddress.IPv6Address),
        st.sampled_from(["192.0.0.0", "192.0.1.0", "168.63.129.0"]).flatmap(
            lambda start: st.integers(0, 255).map(lambda n: ipaddress.ip_address(start) + n)
        ),
    )
)
def test_what_any_python_calls_private_is_refused(ip: Any) -> None:
    """Whatever this Python says of an address, ours is at least as strict, and says so alone."""
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_loopback:
        assert not _is_public(str(ip))


def test_one_private_address_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has a public and a private address is refused."""
    resolving(monkeypatch, "8.8.8.8", "127.0.0.1")
    url = f"http://models.test:{server.server_port}/ok"
    answer = one(server.config("", url=url, allow_private=False))
    failed(answer, None, "models.test is 127.0.0.1")
    assert server.requests == []


def test_a_name_is_resolved_once(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was checked is connected to, while TLS and Host have the name."""
    with secured(authority, "models.test") as server:
        asked = resolving(monkeypatch, "127.0.0.2", "127.0.0.1")  # nobody listens at the first
        url = f"https://models.test:{server.server_port}/ok"
        answers = list(ask(targets(5), {"p": server.config("", url=url)}))
        assert [answer.healthy for answer in answers] == [True] * 5
        assert asked == ["models.test"]
        assert server.names == ["models.test"] * 5
        assert {h["Host"] for _, h, _ in server.requests} == {f"models.test:{server.server_port}"}


def test_an_address_that_hangs(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """One dead address of several leaves the others their share of the time."""
    with secured(authority, "models.test") as server:
        resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
        url = f"https://models.test:{server.server_port}/ok"
        with socket.create_server(("127.0.0.2", server.server_port)):  # begins no TLS
            answer = one(server.config("", url=url, timeout=2))
        assert answer.healthy
        assert 0.9 < answer.seconds < 2


def test_what_was_sent_is_not_sent_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another address is tried only if nothing was sent to the one before."""
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    url = f"http://models.test:{server.server_port}/cut/head"
    with socket.create_server(("127.0.0.2", server.server_port)) as other:
        failed(one(server.config("", url=url, timeout=2)), FailureType.NETWORK_ERROR)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert len(server.requests) == 1


def test_ipv6() -> None:
    """An IPv6 address in a URL is connected to."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        url = f"http://[::1]:{listener.getsockname()[1]}/v1"
        config = ProbeConfig("p", url=url, allow_http=True, allow_private=True, timeout=0.5)
        failed(one(config), FailureType.TIMEOUT)
        connection, _ = listener.accept()
        with connection:
            assert f"Host: {url[7:-3]}\r\n".encode() in connection.recv(65536)


def test_tls(authority: trustme.CA) -> None:
    """A certificate that is trusted and of the right host is accepted, by address too."""
    with secured(authority, "127.0.0.1") as server:
        assert one(server.config("ok")).healthy


def test_certificate_of_another_name(authority: trustme.CA) -> None:
    """A certificate of another host is refused before anything is sent."""
    with secured(authority, "other.example") as server:
        url = f"https://localhost:{server.server_port}/ok"
        failed(
            one(server.config("", url=url)),
            FailureType.NETWORK_ERROR,
            "certificate refused: Hostname mismatch",
        )
        assert server.requests == []


def test_certificate_of_a_stranger(authority: trustme.CA) -> None:
    """A certificate that no trusted CA signed is refused."""
    with secured(trustme.CA(), "127.0.0.1") as server:
        answer = one(server.config("ok"))
        failed(answer, FailureType.NETWORK_ERROR, "certificate refused: ")
        assert server.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A wrong SSL_CERT_FILE is a matter of configuration, not of the models."""
    if content:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(InvalidConfigError, match="SSL_CERT_FILE"):
        ask(targets(1), {"p": ProbeConfig("p", url="https://models.test")})


def test_proxies_and_netrc_are_ignored(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the environment sends a request elsewhere or adds a password."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.place}")
        assert one(server.config("ok")).healthy
        assert proxy.requests == []
    assert "Authorization" not in server.requests[0][1]


# Keys


@pytest.mark.parametrize("what", ["echo", "garbage", "cut/head", "silent"])
def test_keys_are_never_shown(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """No answer and no log of ours has the key, whatever the server does with it."""
    monkeypatch.setenv("KEY", KEY)
    caplog.set_level(logging.INFO)  # httpcore's DEBUG has what the server sends
    config = server.config(what, key_env="KEY", timeout=0.5)
    answer = one(config)
    assert not answer.healthy
    for text in (repr(answer), repr(config), caplog.text):
        assert KEY not in text
        assert KEY[:10] not in text
    if what == "echo":
        failed(answer, None, "bad header Bearer *** bad")


def test_key_file(server: Server, tmp_path: Path) -> None:
    """The key is the first line of its file, without the blanks around it."""
    (tmp_path / "key").write_text(f"  {KEY}\r\nmore\n")
    assert one(server.config("ok", key_file=str(tmp_path / "key"))).healthy
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_key_that_a_command_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is told the name of its key has it hidden in what it says."""
    monkeypatch.setenv("KEY", KEY)
    answer = one(command("sh", "-c", 'echo "no: $KEY" >&2; exit 1', key_env="KEY"))
    assert answer.reason == "exit 1: no: ***"


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "ünicode", f"{KEY} "])
def test_bad_keys_in_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """A key that is missing or goes into no header is found before any request, and not shown."""
    monkeypatch.delenv("KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("KEY", value)
    probes = {"a": server.config("ok"), "p": server.config("ok", key_env="KEY")}
    with pytest.raises(InvalidConfigError, match="environment variable KEY") as caught:
        ask([Target("1", "a"), Target("2", "p")], probes)
    assert not value or value not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("content", [None, b"", b"\n" + KEY.encode(), b"two words", b"\xff\xfe\0"])
def test_bad_key_files(server: Server, tmp_path: Path, content: bytes | None) -> None:
    """A key file that is missing, empty or no text is found before any request, and not shown."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfigError, match=re.escape(str(path))) as caught:
        ask(targets(1), {"p": server.config("ok", key_file=str(path))})
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert server.requests == []


@pytest.mark.parametrize("path", ["/", "/nul\0"])
def test_key_files_that_are_none(server: Server, path: str) -> None:
    """A folder, or a name that no file has, is a matter of configuration."""
    with pytest.raises(InvalidConfigError, match="cannot read the key"):
        ask(targets(1), {"p": server.config("ok", key_file=path)})


# Commands


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit 3"),
        ("echo out; echo one >&2; echo two >&2; echo >&2; exit 1", "exit 1: two"),
        ("kill -9 $$", "signal 9"),
        (r"printf '\377\033[31m\000' >&2; exit 2", "exit 2: \ufffd\x1b[31m\ufffd"),
        (
            "head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 4",
            "exit 4",
        ),  # one line, too long
    ],
)
def test_exit_codes(script: str, reason: str) -> None:
    """A command that does not exit 0 has failed, with its code and the last line of its stderr."""
    answer = one(command("sh", "-c", script))
    failed(answer, FailureType.UNKNOWN)
    assert answer.reason == reason


def test_a_healthy_command() -> None:
    """Exit 0 is healthy, whatever was said."""
    assert one(command("sh", "-c", "echo out; echo err >&2")).healthy


def test_the_end_of_a_long_stderr_is_kept() -> None:
    """However much a command says, its last line is the one that is kept."""
    script = "yes '' | head -c 3000000 >&2; echo the end >&2; exit 1"
    assert one(command("sh", "-c", script)).reason == "exit 1: the end"


def test_surroundings_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command has an empty stdin, our environment, the model's names, and its own session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "mine")
    script = 'cat; echo "$MINE $MODELCTL_ID $MODELCTL_NAME $MODELCTL_PROVIDER $$" > said'
    assert one(command("sh", "-c", f"{script}; ps -o sid= -o tty= $$ > session")).healthy
    *words, pid = (tmp_path / "said").read_text().split()
    assert words == ["mine", "p/m", "m", "p"]
    assert (tmp_path / "session").read_text().split()[0] == pid


@pytest.mark.parametrize("program", ["/no/such/program", "/etc/passwd"])
def test_commands_that_cannot_run(program: str) -> None:
    """A program that is not there or not executable has failed, and says so."""
    failed(one(command(program)), None, f"cannot run {program}: ")


@pytest.mark.parametrize("script", ["sleep 60 & sleep 60", "trap '' TERM; sleep 60; sleep 60"])
def test_the_whole_group_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """At its timeout a command is killed with all it started."""
    monkeypatch.chdir(tmp_path)
    start = "sh -c 'echo $$ > pid; exec sleep 60' &"
    answer = one(command("sh", "-c", f"{start} {script}", timeout=0.5))
    failed(answer, FailureType.TIMEOUT, "no answer in 0.5s")
    assert answer.seconds < 2
    eventually(lambda: not alive(int((tmp_path / "pid").read_text())), 2)


def test_what_a_command_leaves_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that outlives its command neither delays the answer nor survives it."""
    monkeypatch.chdir(tmp_path)
    answer = one(command("sh", "-c", "sleep 60 & echo $! > pid"))
    assert answer.healthy
    assert answer.seconds < 2
    eventually(lambda: not alive(int((tmp_path / "pid").read_text())), 2)


def test_a_child_that_escapes_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child in a session of its own may hold stderr open; the answer does not wait for it."""
    monkeypatch.chdir(tmp_path)
    answer = one(command("sh", "-c", "setsid sh -c 'echo $$ > pid; exec sleep 60' & sleep 0.3"))
    assert answer.healthy
    assert answer.seconds < 2
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_ignored_sigchld() -> None:
    """Where exit codes are lost, no command counts as healthy."""
    code = (
        "import signal\n"
        "from modelctl.probe.ask import *\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "print(*ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('false',))}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIGCHLD is ignored" in done.stdout


@pytest.mark.parametrize("id_", ["nul\0", "p/\0", "\ud800", "a\udc80"])
def test_ids_that_are_no_argument(id_: str) -> None:
    """An id that no program can be given exactly has failed, and nothing is run."""
    failed(one(command("true"), id_), None, "cannot be an argument")


IDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    st.text("""'"\\$`(){}id;&|<>#!~*? \n\r\t=-a""", max_size=20),
    st.sampled_from(NASTY),
)
SHELLS = [[name] for name in ("sh", "bash")] + [["env", "LANG=C", "bash", "-eu"]]


@pytest.mark.parametrize("shell", SHELLS, ids=["sh", "bash", "env"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(id_=IDS)
@example(id_="'")
@example(id_="-n")
@example(id_="p/{id}")
def test_commands_receive_exactly_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: list[str], id_: str
) -> None:
    """Any id arrives as it is: in a script, as an argument, in a longer word, as a variable."""
    monkeypatch.chdir(tmp_path)
    script = 'printf \'%s\\0\' x{id}y {name} "$1" "$2" "$MODELCTL_ID" > got'
    assert one(command(*shell, "-c", script, "sh", "{id}", "--x={id}"), id_).healthy
    name = id_.removeprefix("p/")
    expected = [f"x{id_}y", name, id_, f"--x={id_}", id_, ""]
    assert (tmp_path / "got").read_bytes() == "\0".join(expected).encode()
    assert sorted(os.listdir(tmp_path)) == ["got"]


PIECES = [
    *["{id}"] * 4,
    *["'", '"', "\\", "$", "`", "#", "\n", " ", ";", "(", ")", "{", "}", "=", "!"],
    *["$(", "${", "${id}", "$x", "<<E\n", "\nE\n", "<<<", "$'", '$"', "((", "))", "[[ ", " ]]"],
    *["echo ", "x", "a=", "&", "|", "${x:-", "case x in ", " esac", "if ", "\r", "*", "~"],
]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(script=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@example(script="echo '{id}'")
@example(script='echo "{id}"')
@example(script="echo \\{id}")
@example(script="echo ${id}")
@example(script="# ' \n echo ' {id}")
@example(script="cat <<E\n{id}\nE\n")
@example(script='echo "$(echo "{id}")"')
@example(script="echo `echo {id}`")
@example(script="echo $(echo {id})")
@example(script="echo $'\\' {id} '")
@example(script="echo $(( {id} ))")
@example(script="[[ {id} -eq 1 ]]")
def test_scripts_that_are_accepted_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, script: str
) -> None:
    """Whatever script check_probe lets pass, no id runs anything in it."""
    config = command(shell, "-c", script, timeout=2)
    try:
        check_probe(config)
    except UsageError:
        assume(False)
    monkeypatch.chdir(tmp_path)
    ids = [*NASTY, "\\", "'", "$(touch canary)'$(touch canary)", "a[$(touch canary)]"]
    for answer in ask([Target(id_, "p") for id_ in ids], {"p": config}):
        assert answer.failure_type is not FailureType.TIMEOUT
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["{id}"],
        ["./{name}"],
        ["sh", "-c", "echo '{id}'"],
        ["sh", "-c", 'echo "{id}"'],
        ["sh", "-c", 'echo "a {name}"'],
        ["sh", "-c", r"echo \{id}"],
        ["sh", "-c", "echo ${id}"],
        ["sh", "-c", "# ' \n echo ' {id}"],
        ["sh", "-c", "cat <<E\n{id}\nE"],
        ["sh", "-c", "echo `x {id}`"],
        ["sh", "-c", 'echo "$(x "{id}")"'],
        ["sh", "-c", "echo $'x{id}'"],
        ["sh", "-c", "echo $(( {id} ))"],
        ["sh", "-c", "(( {id} ))"],
        ["bash", "-c", "[[ {id} -eq 1 ]]"],
        ["sh", "", "-c", "{id}"],
        ["sh", "-c", "echo 'unfinished {id}"],
        ["sh", "-c", "-e", "{id}"],
        ["bash", "-co", "pipefail", "{id}"],
        ["sh", "script", "-c", "{id}"],
        ["docker", "--entrypoint", "sh", "image", "-c", "{id}"],
        ["fish", "-c", "check {id}"],
        ["python3", "-c", "print('{id}')"],
        ["ssh", "host", "check {id}"],
        ["curl", "-d", '{"model": "{id}"}'],
        ["env", "-S", "check {id}"],
    ],
)
def test_unsafe_placeholders_are_refused(words: list[str]) -> None:
    """A placeholder where quoting it might not hold is refused."""
    with pytest.raises(UsageError):
        check_probe(command(*words))


@pytest.mark.parametrize(
    "words",
    [
        ["true"],
        ["check", "{id}", "--model={name}", "{id}:latest"],
        ["sh", "-c", "check {id}"],
        ["/bin/bash", "-euo", "pipefail", "-c", "check --model={id} | grep -q 'it''s ok'"],
        ["busybox", "sh", "-c", 'check {id} "$HOME" "${KEY}" 2>&1 && echo "done; $?"'],
        ["env", "A=1", "sh", "-c", "x=$(check {name}); test $x = ok"],
        ["sh", "-c", 'check "$MODELCTL_ID" `x` # "', "sh"],
        ["sh", "-c", 'check "$1"', "sh", "{id}"],
        ["sh", "check.sh", "{id}"],
        ["python3", "-c", "import sys; print('{}', sys.argv)", "{id}"],
    ],
)
def test_commands_that_are_accepted(words: list[str]) -> None:
    """Ordinary commands pass."""
    check_probe(command(*words))


# Configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": ""}, "either a url or a command"),
        ({"command": ("true",)}, "either a url or a command"),
        ({"key_env": "A", "key_file": "b"}, "either key_env or key_file"),
        ({"url": "ftp://h/v1"}, "https://"),
        ({"url": "h/v1"}, "https://"),
        ({"url": "https://me:secret@h/v1"}, "no user or password"),
        ({"url": "https://secret@h"}, "no user or password"),
        ({"url": "https://h/v1?secret=1"}, "no query"),
        ({"url": "https://h/v1#secret"}, "no query"),
        ({"url": "https://h/v1?"}, "no query"),
        ({"url": "https://h\\@secret/v1"}, "malformed"),
        ({"url": "https://h/v1 secret"}, "malformed"),
        ({"url": "https://h/v1\nsecret"}, "malformed"),
        ({"url": "https://h:secret/v1"}, "malformed"),
        ({"url": "https://h:0/v1"}, "malformed"),
        ({"url": "https://h:65536/v1"}, "malformed"),
        ({"url": "https:///v1"}, "malformed"),
        ({"url": "https://secret→/v1"}, "malformed"),
        ({"url": "https://[::1/v1"}, "malformed"),
        ({"url": "http://h/v1"}, "plain http"),
        ({"timeout": 0.09}, "timeout"),
        ({"timeout": 600.1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"url": "", "command": ("",)}, "begin with a program"),
        ({"url": "", "command": ("true", "\0")}, "NUL"),
        ({"max_tokens_field": ""}, "max_tokens_field"),
        ({"max_tokens_field": "max tokens"}, "max_tokens_field"),
        ({"max_tokens_field": "zahl_ü"}, "max_tokens_field"),
        ({"max_tokens_field": "model"}, "max_tokens_field"),
    ],
)
def test_bad_probes(changes: dict[str, Any], words: str) -> None:
    """A probe that makes no sense is refused, also by `ask`, and its URL is not shown."""
    config = ProbeConfig("p", **({"url": "https://h/v1"} | changes))
    for check in (lambda: check_probe(config), lambda: ask(targets(1), {"p": config})):
        with pytest.raises(UsageError, match=words) as caught:
            check()
        assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "https://api.openai.com/v1"},
        {"url": "https://h"},
        {"url": "https://h:8443/a/b%20c/"},
        {"url": "https://[2606:4700::1111]:443/v1"},
        {"url": "http://h/v1", "allow_http": True},
        {"timeout": 0.1},
        {"timeout": 600},
    ],
)
def test_good_probes(changes: dict[str, Any]) -> None:
    """Ordinary probes pass."""
    check_probe(ProbeConfig("p", **({"url": "https://h/v1"} | changes)))


def test_a_provider_without_a_probe(server: Server) -> None:
    """A model that nobody can ask is found before any request."""
    with pytest.raises(InvalidConfigError, match="provider 'q' has no probe"):
        ask([Target("1", "p"), Target("2", "q")], {"p": server.config("ok")})
    assert server.requests == []


def test_no_concurrency(server: Server) -> None:
    """Asking nobody at a time would take for ever."""
    with pytest.raises(UsageError, match="concurrency"):
        ask(targets(1), {"p": server.config("ok")}, concurrency=0)


def run_python(code: str) -> str:
    """Run code in a fresh Python and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    """Importing the module, and running commands, loads no HTTP client."""
    code = (
        "import sys\n"
        "from modelctl.probe.ask import *\n"
        "list(ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('true',))}))\n"
        "print(*sys.modules)\n"
    )
    assert not {"httpx", "httpcore", "anyio", "sqlalchemy"} & set(run_python(code).split())


def test_without_httpx() -> None:
    """Without the extra, HTTP probes say how to install it, and commands run."""
    code = (
        "import sys\n"
        "from modelctl.errors import InvalidConfigError\n"
        "from modelctl.probe.ask import *\n"
        "sys.modules['httpx'] = None\n"
        "print(*ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('true',))}))\n"
        "try:\n"
        "    ask([Target('1', 'p')], {'p': ProbeConfig('p', url='https://h')})\n"
        "except InvalidConfigError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    said = run_python(code)
    assert "healthy=True" in said
    assert "needs httpx pip install 'modelctl[probe]'" in said


def test_commands_may_run_modelctl() -> None:
    """The variables that a command gets are none that modelctl itself would refuse."""
    config = command(sys.executable, "-m", "modelctl", "config", "show", timeout=60)
    assert one(config).healthy


def test_names() -> None:
    """The name is the id without its own provider in front."""
    names = [Target(id_, "p").name for id_ in ("p/m", "p/p/m", "q/m", "p", "pp/m")]
    assert names == ["m", "p/m", "q/m", "p", "pp/m"]
