"""The HTTP clients for the SDKs of OpenAI and Anthropic: each request of a model is recorded, rightly."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.integrations import answers
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


# ── Requests and answers that a test makes up ──


def client(
    collected: Any,
    answer: Callable[[httpx.Request], httpx.Response] | httpx.Response,
    **options: Any,
) -> Any:
    """Return a client of httpx, as `recording` makes it for OpenAI, whose server is a function."""
    transport = httpx.MockTransport(answer if callable(answer) else lambda _: answer)
    return recording(
        *(httpx.Client, collected, options.pop("on_warning", None), {"transport": transport}),
        provider="openai",
        ids=options.get("id"),
        endpoints={"chat/completions": "choices", "responses": "output", "audio/speech": None},
    )


GOOD = {"choices": [{"message": {"content": "hello"}}]}
URL = "http://provider/v1/chat/completions"


def test_which_requests_ask_a_model() -> None:
    """Only a POST to an endpoint that runs a model, with the model in its JSON, is recorded."""
    collected = Collected()
    with client(collected, httpx.Response(200, json=GOOD)) as http:
        http.get("http://provider/v1/models")
        http.post("http://provider/v1/fine_tuning/jobs", json={"model": "m"})
        http.post("http://provider/v1/messages/count_tokens", json={"model": "m"})
        http.get(URL)
        assert http.reported == Reported()
        http.post(URL, json={"messages": []})
        http.post(URL, json={"model": 5})
        http.post(URL, content=b"no JSON")
        http.post(URL, files={"file": b"x"}, data={"model": "m"})
        http.post(URL, content=iter([b"{"]))
        assert collected.outcomes == []
        http.post(
            "http://azure/openai/deployments/d/chat/completions?api-version=1", json={"model": "d"}
        )
    assert collected.outcomes == [("openai/d", None)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (None, ["openai/a", "openai/b"]),
        ({"a": "mine"}, ["mine", "openai/b"]),
        ({"openai/a": "mine"}, ["mine", "openai/b"]),
        (lambda model: f"router/{model}", ["router/a", "router/b"]),
        (lambda model: "mine" if model == "a" else None, ["mine"]),
    ],
)
def test_ids(ids: Any, expected: list[str]) -> None:
    """A mapping or a function says the id in the fleet; None of a function ignores the request."""
    collected = Collected()
    with client(collected, httpx.Response(200, json=GOOD), id=ids) as http:
        for model in ("a", "b"):
            http.post(URL, json={"model": model})
    assert [model for model, _ in collected.outcomes] == expected


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        ("responses", {"status": "completed", "output": [1], "error": None}, ["success"]),
        ("responses", {"status": "failed", "error": {"code": "server_error"}}, ["server-error"]),
        (
            "responses",
            {"status": "failed", "error": {"code": "rate_limit_exceeded"}},
            ["rate-limit"],
        ),
        ("responses", {"status": "queued", "output": []}, []),
        ("responses", {"status": "in_progress", "output": [1]}, []),
        ("responses", {"status": "incomplete", "output": []}, []),
        ("responses", {"status": "completed", "output": []}, ["parse-error"]),
        ("chat/completions", [], ["parse-error"]),
        ("chat/completions", {"choices": None}, ["parse-error"]),
        ("chat/completions", {"choices": [], "error": {"code": 503}}, ["parse-error"]),
        ("audio/speech", None, ["success"]),
    ],
)
def test_answers_with_status_200(path: str, answer: Any, expected: list[str]) -> None:
    """Status 200 is a success only if the answer has what it is asked for."""
    collected = Collected()
    sent = (
        httpx.Response(200, content=b"\x00\xff")
        if answer is None
        else httpx.Response(200, json=answer)
    )
    with client(collected, sent) as http:
        http.post(f"http://provider/v1/{path}", json={"model": "m"})
    assert [kind or "success" for _, kind in collected.outcomes] == expected


def test_the_reason_is_what_the_provider_said() -> None:
    """A failure has status and message, not the whole JSON."""
    collected = Collected()
    with client(
        collected, httpx.Response(400, json={"error": {"message": "no such tool"}})
    ) as http:
        http.post(URL, json={"model": "m"})
    assert collected.reasons == ["HTTP 400: no such tool"]


# ── Streams ──

CHUNK = b'data: {"choices": [{"delta": {"content": "say \\"error\\""}}]}\n\n'


def stream(
    body: list[bytes], *, read: int | None = None, status: int = 200, encoding: str = "identity"
) -> list[str]:
    """Return what is recorded of a stream of these parts, of which the application reads some."""
    collected = Collected()
    made = {"content-type": "text/event-stream", "content-encoding": encoding}
    with (
        client(
            collected, lambda _: httpx.Response(status, headers=made, content=iter(body))
        ) as http,
        http.stream("POST", URL, json={"model": "m"}) as answer,
    ):
        for number, _ in enumerate(answer.iter_bytes(), 1):
            if number == read:
                break
    return [kind or "success" for _, kind in collected.outcomes]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ([CHUNK, b"data: [DONE]\n\n"], ["success"]),
        ([CHUNK[:7], CHUNK[7:20], CHUNK[20:], b"data: [DO", b"NE]\n\n"], ["success"]),
        ([CHUNK.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"], ["success"]),
        ([CHUNK], ["success"]),  # a provider that says no [DONE]
        ([], ["parse-error"]),
        ([b": ping\n\n"], ["parse-error"]),
        ([CHUNK, b'data: {"error": {"code": "rate_limit_exceeded"}}\n\n'], ["rate-limit"]),
        ([CHUNK, b'data: {"error": {"message": "oops"}}\n\n'], ["server-error"]),
        ([CHUNK, b"event: error\ndata: overloaded\n\n"], ["server-error"]),
        ([b'data: {"error": null, "choices": []}\n\n', b"data: [DONE]\n\n"], ["success"]),
        (
            [
                b'event: response.failed\ndata: {"response": {"error": {"code": "server_error"}}}\n\n'
            ],
            ["server-error"],
        ),
        ([b'event: response.completed\ndata: {"response": {"error": null}}\n\n'], ["success"]),
        ([b"data: " + b"x" * 3_000_000, b"\n\n", b"data: [DONE]\n\n"], ["success"]),
    ],
)
def test_streams(body: list[bytes], expected: list[str]) -> None:
    """A stream is a success when it has ended; an error inside of it is what its code says."""
    assert stream(body) == expected


def test_a_stream_that_is_not_read_to_its_end() -> None:
    """Nothing is known of it, unless its end or an error came before."""
    assert stream([CHUNK, CHUNK, b"data: [DONE]\n\n"], read=1) == []
    assert stream([CHUNK, b"data: [DONE]\n\n", b"\n"], read=2) == ["success"]
    assert stream([CHUNK, b"event: error\ndata: {}\n\n", CHUNK], read=2) == ["server-error"]
    assert stream([b'{"error": {"code": "x"}}', b" "], read=1, status=429) == ["rate-limit"]


def test_compressed_streams() -> None:
    """Events are found in gzip; what has another encoding is only followed to its end."""
    packed = gzip.compress(CHUNK + b"event: error\ndata: {}\n\n")
    assert stream([packed[:20], packed[20:]], encoding="gzip") == ["server-error"]


# ── What must not fail a request ──


class Broken:
    """A recorder that is closed."""

    def success(self, id: str) -> None:  # noqa: A002
        """Refuse."""
        raise RuntimeError(f"100% closed: {id}")

    def failure(self, id: str, *_: Any, **__: Any) -> None:  # noqa: A002
        """Refuse."""
        raise RuntimeError("closed")


def test_a_recorder_that_raises_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted each time and said once, in the log unless on_warning is given."""
    said: list[str] = []
    for warn in (None, said.append, 5):
        with client(Broken(), httpx.Response(200, json=GOOD), on_warning=warn) as http:
            for _ in range(3):
                assert http.post(URL, json={"model": "m"}).json() == GOOD
            assert http.reported == Reported(errors=3)
    message = "the outcome of a call is not recorded: RuntimeError: 100% closed: openai/m"
    assert said == [message]
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [message, "on_warning has raised"]


def test_a_function_for_ids_that_raises_fails_no_request() -> None:
    """An error in the application's own function is said."""
    said: list[str] = []
    with client(
        Collected(), httpx.Response(200, json=GOOD), id={}.__getitem__, on_warning=said.append
    ) as http:
        assert http.post(URL, json={"model": "m"}).json() == GOOD
    assert said == ["the outcome of a call is not recorded: KeyError: 'm'"]


def test_a_cancelled_request_records_nothing(server: Answers) -> None:
    """The caller went away: that says nothing about the model."""
    collected = Collected()

    async def call() -> None:
        async with for_openai.recording_async_client(collected) as http:
            request = http.post(
                server.url("slow", "openai") + "/chat/completions", json={"model": "m"}
            )
            task = asyncio.create_task(request)
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert http.reported == Reported(ignored=1)

    asyncio.run(call())
    assert collected.outcomes == []


# ── The model of a request ──

_JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.just('"model": "x"') | st.just("model"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "content", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(model=st.text(min_size=1, max_size=20), messages=_JSON, after=_JSON, long=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_model_of_a_request(model: str, messages: Any, after: Any, long: bool) -> None:
    """Whatever else a request has, and however long it is, its own model is found."""
    body = {"messages": messages, "model": model, "metadata": after}
    with pytest.MonkeyPatch.context() as patch:
        if long:
            patch.setattr(answers, "_LONGEST_REQUEST", 0)
        assert model_of(json.dumps(body).encode()) == model
        assert model_of(json.dumps(body, ensure_ascii=False).encode()) == model
