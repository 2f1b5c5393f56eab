"""The HTTP clients for the SDKs of OpenAI and Anthropic: each request of a model is recorded, rightly."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from modelctl.integrations import anthropic as for_anthropic
from modelctl.integrations import openai as for_openai
from modelctl.integrations.answers import model_of
from modelctl.integrations.http_client import recording
from modelctl.integrations.reporting import Reported
from tests.failures.answers import EXPECTED, Answers, serve
from tests.failures.sdks import anthropic, anthropic_async, openai, openai_async
from tests.integrations.collected import Collected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("openai")
pytest.importorskip("anthropic")

# The API, what calls it, and what makes the HTTP client.
CLIENTS: dict[str, tuple[str, Callable[..., None], Callable[..., Any]]] = {
    "openai": ("openai", openai, for_openai.recording_client),
    "openai-async": ("openai", openai_async, for_openai.recording_async_client),
    "anthropic": ("anthropic", anthropic, for_anthropic.recording_client),
    "anthropic-async": ("anthropic", anthropic_async, for_anthropic.recording_async_client),
}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Answers]:
    """The server that answers as failing providers do."""
    with serve() as answers:
        yield answers


def called(name: str, url: str, *, stream: bool = False, **options: Any) -> Collected:
    """Call a model with the SDK; return what its HTTP client recorded."""
    api, call, make = CLIENTS[name]
    collected = Collected()
    client = make(collected)
    try:
        call(url, stream=stream, http_client=client, **options)
    except Exception:
        assert api in url
    return collected


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_good_answer(server: Answers, name: str, stream: bool) -> None:
    """A whole answer, and a stream that ended, is one success."""
    api = CLIENTS[name][0]
    url = server.url("streamgood" if stream else "good", api)
    assert called(name, url, stream=stream).outcomes == [(f"{api}/m", None)]


@pytest.mark.parametrize("name", CLIENTS)
def test_failures(server: Answers, name: str) -> None:
    """Each failure of a provider has the type that `classify` gives to what the SDK raises."""
    api = CLIENTS[name][0]
    wrong = {}
    for failure, expected in EXPECTED.items():
        found = called(name, server.url(failure, api), stream=failure.startswith("stream")).outcomes
        if found != ([(f"{api}/m", expected)] if expected else []):
            wrong[failure] = (found, expected)
    assert wrong == {}


@pytest.mark.parametrize("name", CLIENTS)
def test_failures_of_a_stream_before_it_begins(server: Answers, name: str) -> None:
    """A status instead of a stream is recorded as without a stream, also if nobody reads the answer."""
    api = CLIENTS[name][0]
    for failure in ("429", "429quota", "400ctx", "500", "502html", "refused", "close", "slow"):
        expected = EXPECTED[failure]
        found = called(name, server.url(failure, api), stream=True).outcomes
        assert found == ([(f"{api}/m", expected)] if expected else []), failure


@pytest.mark.parametrize("name", CLIENTS)
def test_retries_of_the_sdk(server: Answers, name: str) -> None:
    """Each request counts: a call with one retry that fails is two failures."""
    api = CLIENTS[name][0]
    found = called(name, server.url("500", api), max_retries=1).outcomes
    assert found == [(f"{api}/m", "server-error")] * 2


@pytest.mark.parametrize("name", CLIENTS)
def test_an_answer_without_text_that_says_why(server: Answers, name: str) -> None:
    """A prompt that the provider refused is no failure of the model."""
    api = CLIENTS[name][0]
    found = called(name, server.url("declined", api)).outcomes
    assert [kind for _, kind in found if kind] == []
