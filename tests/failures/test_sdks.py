"""`classify` is right for what the real SDKs raise; they are the extra `sdk-tests`, 500 MB of packages."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from modelctl import classify
from tests.failures.answers import EXPECTED, Answers, serve
from tests.failures.sdks import NO_ERROR, OTHERWISE, SDKS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.long,
    # The SDKs warn of each other's deprecations when they are imported.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Answers]:
    """The server that answers as failing providers do."""
    with serve() as answers:
        yield answers


@pytest.mark.parametrize("name", SDKS)
def test_what_an_sdk_raises(server: Answers, name: str) -> None:
    """Each failure of a provider is classified, from what this SDK makes of it."""
    api, call = SDKS[name]
    call(server.url("good", api), stream=False)  # so the failures are those of the provider
    wrong: dict[str, tuple[str | None, str | None, str]] = {}
    for failure, usual in EXPECTED.items():
        expected = OTHERWISE.get((name, failure), usual)
        try:
            call(server.url(failure, api), stream=failure.startswith("stream"))
        except Exception as exc:
            if (found := classify(exc)) != expected:
                wrong[failure] = (found, expected, repr(exc)[:200])
        else:
            if (name, failure) not in NO_ERROR:
                wrong[failure] = ("nothing was raised", expected, "")
    assert wrong == {}


@pytest.mark.parametrize(
    "name",
    [
        *("openai", "openai-async", "anthropic", "anthropic-async", "google-genai", "botocore"),
        *("google-genai-async", "litellm-openai", "litellm-anthropic"),
    ],
)
def test_an_answer_that_says_why_it_has_no_text(server: Answers, name: str) -> None:
    """If the provider refused the prompt, reading the text that is not there is no parse error."""
    api, call = SDKS[name]
    with pytest.raises((LookupError, AttributeError, TypeError)) as caught:
        call(server.url("declined", api), stream=False)
    assert classify(caught.value) is None


# The codes of gRPC, and what they are.
_GRPC = {
    "CANCELLED": None,
    "UNKNOWN": "server-error",
    "INVALID_ARGUMENT": "client-error",
    "DEADLINE_EXCEEDED": "timeout",
    "NOT_FOUND": "client-error",
    "PERMISSION_DENIED": "client-error",
    "RESOURCE_EXHAUSTED": "rate-limit",
    "FAILED_PRECONDITION": "client-error",
    "UNIMPLEMENTED": "server-error",
    "INTERNAL": "server-error",
    "UNAVAILABLE": "server-error",
    "UNAUTHENTICATED": "client-error",
}


@pytest.fixture(scope="module")
def grpc_address() -> Iterator[str]:
    """A server of gRPC whose methods fail with the code that they are called."""
    import grpc

    def fail(code: str) -> Any:
        def method(request: bytes, context: Any) -> bytes:
            context.abort(grpc.StatusCode[code], "as asked")
            return request

        return grpc.unary_unary_rpc_method_handler(method)

    service = grpc.server(ThreadPoolExecutor(2))
    handlers = {code: fail(code) for code in _GRPC}
    service.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("fails", handlers)])
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    yield f"127.0.0.1:{port}"
    service.stop(None)


@pytest.mark.parametrize(("code", "expected"), _GRPC.items())
def test_grpc(grpc_address: str, code: str, expected: str | None) -> None:
    """The codes of gRPC, from the blocking client and from the one of asyncio."""
    import grpc

    with grpc.insecure_channel(grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/fails/{code}")(b"")
    assert classify(caught.value) == expected

    async def call() -> None:
        async with grpc.aio.insecure_channel(grpc_address) as channel:
            await channel.unary_unary(f"/fails/{code}")(b"")

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(call())
    assert classify(caught.value) == expected


def test_grpc_without_a_server(server: Answers) -> None:
    """A server of gRPC that cannot be reached is a network error; a deadline is a timeout."""
    import grpc

    address = server.url("refused", "x").split("/")[2]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/fails/x")(b"")
    assert classify(caught.value) == "network-error"
    silent = f"127.0.0.1:{server.port}"
    with grpc.insecure_channel(silent) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/fails/x")(b"", timeout=0.2, wait_for_ready=True)
    assert classify(caught.value) == "timeout"
