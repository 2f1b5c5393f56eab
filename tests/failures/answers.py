"""A server on the loopback that answers as failing providers do, for the tests of `classify`."""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# What each provider calls an error of this kind in its answers.
_CODES = {
    "quota": {
        "openai": ("insufficient_quota", "insufficient_quota"),
        "anthropic": ("billing_error", "billing_error"),
        "google": ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
        "bedrock": ("ServiceQuotaExceededException", ""),
    },
    "ctx": {"openai": ("invalid_request_error", "context_length_exceeded")},
    "policy": {"openai": ("invalid_request_error", "content_policy_violation")},
    "key": {"openai": ("invalid_request_error", "invalid_api_key")},
}
_MESSAGES = {
    "quota": "You exceeded your current quota, please check your plan and billing details.",
    "ctx": {
        "openai": "This model's maximum context length is 8192 tokens. However, your messages"
        " resulted in 9001 tokens.",
        "anthropic": "prompt is too long: 209000 tokens > 200000 maximum",
        "google": "The input token count (1100000) exceeds the maximum number of tokens allowed"
        " (1048576).",
        "mistral": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with"
        " 32768 maximum context length",
        "cohere": "too many tokens: size limit exceeded by 11326 tokens. Try using shorter or"
        " fewer inputs. The limit for this model is 8192 tokens.",
        "bedrock": "Input is too long for requested model.",
    },
    "policy": {
        "openai": "Your request was rejected as a result of our safety system.",
        "anthropic": "Output blocked by content filtering policy",
    },
    "key": {
        "openai": "Incorrect API key provided.",
        "anthropic": "invalid x-api-key",
        "google": "API key not valid. Please pass a valid API key.",
    },
}
_BEDROCK = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_GOOGLE = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(api: str, status: int, kind: str = "") -> Any:
    """Return the JSON of an error as the provider with this API writes it."""
    message: Any = _MESSAGES.get(kind, f"this is a {status}")
    if isinstance(message, dict):
        message = message.get(api, message["openai"])
    type_, code = _CODES.get(kind, {}).get(api, ("", ""))
    if api == "anthropic":
        usual = "invalid_request_error" if status < 500 else "api_error"
        type_ = type_ or _ANTHROPIC.get(status, usual)
        return {"type": "error", "error": {"type": type_, "message": message}}
    if api == "google":
        type_ = type_ or _GOOGLE.get(status, "UNKNOWN")
        return {"error": {"code": status, "message": message, "status": type_}}
    if api == "mistral":
        return {"object": "error", "message": message, "type": "error", "code": str(status)}
    if api in ("cohere", "bedrock"):
        return {"message": message}
    type_ = type_ or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": type_, "code": code or None, "param": None}}


_GOOD: dict[str, Any] = {
    "openai": {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
    "anthropic": {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
    "google": {
        "candidates": [
            {
                "content": {"parts": [{"text": "hello"}], "role": "model"},
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 1,
            "candidatesTokenCount": 1,
            "totalTokenCount": 2,
        },
    },
    "cohere": {
        "id": "c1",
        "message": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        "finish_reason": "COMPLETE",
    },
    "bedrock": {
        "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "metrics": {"latencyMs": 1},
    },
}
_GOOD["mistral"] = _GOOD["openai"]
# A good answer that has no text, because the provider refused the prompt.
_DECLINED: dict[str, Any] = {
    "openai": {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": "No."},
                "finish_reason": "content_filter",
            }
        ]
    },
    "anthropic": {"content": [], "stop_reason": "refusal"},
    "google": {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}},
    "bedrock": {
        "output": {"message": {"role": "assistant", "content": []}},
        "stopReason": "guardrail_intervened",
    },
}
# The field of a good answer that is a list, and is empty in the scenario "nochoices".
_LIST = {"anthropic": "content", "google": "candidates"}

_CHUNK = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hel"}}],
}


def _event(data: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


def _first_events(api: str) -> bytes:
    delta: Any
    if api == "anthropic":
        start: dict[str, Any] = {**_GOOD["anthropic"], "content": [], "stop_reason": None}
        delta = {"type": "text_delta", "text": "hel"}
        block = {"type": "text", "text": ""}
        return (
            _event({"type": "message_start", "message": start}, "message_start")
            + _event(
                {"type": "content_block_start", "index": 0, "content_block": block},
                "content_block_start",
            )
            + _event(
                {"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"
            )
        )
    if api == "google":
        return _event(_GOOD["google"])
    if api == "cohere":
        delta = {"message": {"content": {"text": "hel"}}}
        return _event({"type": "content-delta", "index": 0, "delta": delta}, "content-delta")
    return _event(_CHUNK)


def _last_events(api: str) -> bytes:
    if api == "anthropic":
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
        return (
            _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + _event({**end, "usage": {"output_tokens": 3}}, "message_delta")
            + _event({"type": "message_stop"}, "message_stop")
        )
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return _event({**_CHUNK, "choices": [choice]}) + b"data: [DONE]\n\n"


def _error_event(api: str) -> bytes:
    if api == "anthropic":
        return _event(
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "error",
        )
    if api == "google":
        return _event(error_body("google", 503))
    return _event({"error": {"message": "overloaded", "type": "server_error", "code": 503}})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the class
        pass

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response_only(status, "As asked")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.code:
            self.send_header("x-amzn-ErrorType", self.code)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _reset(self) -> None:
        """Close so that the caller gets a reset (RST) instead of an end of the stream."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.close()
        self.rfile.close()
        self.connection.close()

    code = ""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        _, scenario, api, *_ = self.path.split("/")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = scenario.lstrip("0123456789")
        if scenario[:1].isdigit():
            status = int(scenario[:3])
            if api == "bedrock":
                quota = _CODES.get(kind, {}).get(api, ("", ""))[0]
                self.code = quota or _BEDROCK.get(status, "UnknownException")
            if kind == "html":
                self._send(status, b"<html><body><h1>Bad Gateway</h1></body></html>", "text/html")
            else:
                self._send(status, json.dumps(error_body(api, status, kind)).encode())
            return
        getattr(self, f"_{scenario}")(api)

    def _good(self, api: str) -> None:
        self._send(200, json.dumps(_GOOD[api]).encode())

    def _slow(self, api: str) -> None:
        self.server.stopping.wait(3)  # type: ignore[attr-defined] # `serve` sets it
        self.close_connection = True

    def _resets(self, api: str) -> None:
        self._reset()

    def _close(self, api: str) -> None:
        self.close_connection = True

    def _badjson(self, api: str) -> None:
        self._send(200, b'{"id": "c1", "choices": [{"mess')

    def _html(self, api: str) -> None:
        self._send(200, b"<html><body><h1>Welcome</h1></body></html>", "text/html")

    def _empty(self, api: str) -> None:
        self._send(200, b"")

    def _nochoices(self, api: str) -> None:
        self._send(200, json.dumps({**_GOOD[api], _LIST.get(api, "choices"): []}).encode())

    def _declined(self, api: str) -> None:
        self._send(200, json.dumps({**_GOOD[api], **_DECLINED[api]}).encode())

    def _error200(self, api: str) -> None:
        self._send(200, json.dumps(error_body(api, 503)).encode())

    def _trunc(self, api: str) -> None:
        body = json.dumps(_GOOD[api]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + 100))
        self.end_headers()
        self.wfile.write(body[:50])
        self.close_connection = True

    def _stream(self, api: str, then: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (_first_events(api), then):
            if part:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.close_connection = True

    def _streamcut(self, api: str) -> None:
        self._stream(api, b"")

    def _streamgood(self, api: str) -> None:
        self._stream(api, _last_events(api))
        self.wfile.write(b"0\r\n\r\n")

    def _streamerr(self, api: str) -> None:
        self._stream(api, _error_event(api))
        self.wfile.write(b"0\r\n\r\n")

    def _redirect(self, api: str) -> None:
        self.send_response(302)
        self.send_header("Location", "/501/" + api + "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the callers break their connections, which is what is tested."""


# What each failure is. None: the caller's own doing.
EXPECTED: dict[str, str | None] = {
    "400": "client-error",
    "401": "client-error",
    "402": "client-error",
    "403": "client-error",
    "404": "client-error",
    "405": "client-error",
    "408": "timeout",
    "409": "client-error",
    "413": None,
    "413html": None,
    "418": "client-error",
    "422": "client-error",
    "424": "client-error",
    "425": "client-error",
    "429": "rate-limit",
    "429quota": "client-error",
    "400ctx": None,
    "400policy": None,
    "400key": "client-error",
    "499": None,
    "500": "server-error",
    "501": "server-error",
    "502": "server-error",
    "502html": "server-error",
    "503": "server-error",
    "504": "timeout",
    "520": "server-error",
    "524": "timeout",
    "529": "server-error",
    "slow": "timeout",
    "resets": "network-error",
    "close": "network-error",
    "badjson": "parse-error",
    "html": "parse-error",
    "empty": "parse-error",
    "nochoices": "parse-error",
    "error200": "parse-error",
    "trunc": "network-error",
    "streamcut": "network-error",
    "streamerr": "server-error",
    "redirect": "server-error",  # to an address that answers 501
    "refused": "network-error",
    "dns": "network-error",
    "tls": "network-error",
}


class Answers:
    """The server; `url` is where an SDK finds the API of a provider that fails in this way."""

    def __init__(self, port: int, unused: int) -> None:
        self.port, self._unused = port, unused

    def url(self, scenario: str, api: str) -> str:
        """Return the base URL of *api* (openai, anthropic, google, ...) in this scenario."""
        host, scheme = f"127.0.0.1:{self.port}", "http"
        if scenario == "refused":
            host = f"127.0.0.1:{self._unused}"
        if scenario == "dns":
            host = "no-such-host.invalid"
        if scenario == "tls":
            scheme = "https"
        return f"{scheme}://{host}/{scenario}/{api}"


@contextmanager
def serve() -> Iterator[Answers]:
    """Start the server, and stop it at the end."""
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        try:
            yield Answers(server.server_port, closed.getsockname()[1])
        finally:
            server.stopping.set()
            server.shutdown()
            server.server_close()
