"""A probe asks a model one small question, and each answer makes it healthy, a failure or no verdict."""

from __future__ import annotations

import gzip
import json
import socket
import time

import pytest

from modelctl.config.probes import ProbeConfig
from modelctl.model import FailureType
from modelctl.probe.ask import Target, ask
from tests.probe.provider import HEALTHY, KEY, NASTY, Server, ask_one, command, failed, targets

# The request


def test_the_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model gets one small POST with its name and the key, and no headers of httpx."""
    monkeypatch.setenv("KEY", KEY)
    answer = ask_one(server.config("ok/", key_env="KEY"))
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
    assert ask_one(config).healthy
    ((_, headers, body),) = server.requests
    assert (body["model"], body["max_completion_tokens"]) == ("x/p/m?m", 16)
    assert "max_tokens" not in body
    assert "Authorization" not in headers


def test_the_limit_of_an_answer_is_configuration(server: Server) -> None:
    """How long the answer may be is said in tokens, and not at all where that is 0."""
    assert ask_one(server.config("ok", max_tokens=64)).healthy
    assert ask_one(server.config("ok", max_tokens=0)).healthy
    assert [body.get("max_tokens") for _, _, body in server.requests] == [64, None]


def test_a_model_that_thought_for_too_long_is_healthy(server: Server) -> None:
    """An answer that ended at the limit of tokens is a healthy answer."""
    said = "Could not finish the message because max_tokens or model output limit was reached."
    server.bodies["long"] = json.dumps({"error": {"message": said}}).encode()
    assert ask_one(server.config("refuse/long")).healthy


@pytest.mark.parametrize("id_", [*NASTY, "nul\0", "\ud800", "p/", "p/{id}"])
def test_any_id_goes_into_json_only(server: Server, id_: str) -> None:
    """An id is a value in the JSON of the request, and nowhere else."""
    assert ask_one(server.config("ok", model="{id}"), id_).healthy
    ((path, headers, body),) = server.requests
    assert path == "/ok/chat/completions"
    assert body["model"] == id_
    assert len(id_) < 5 or id_ not in str(headers)


def test_one_request_each(server: Server) -> None:
    """Every model is asked once, also if it is given twice, and progress counts the answers."""
    counted: list[int] = []
    fleet = targets(30)
    answers = list(ask([*fleet, *fleet], {"p": server.config("ok")}, progress=counted.append))
    assert sorted(a.id for a in answers) == sorted(t.id for t in fleet)
    assert all(answer.healthy for answer in answers)
    assert sorted(body["model"] for _, _, body in server.requests) == sorted(
        str(n) for n in range(30)
    )
    assert counted == list(range(1, 31))


def test_no_model_to_ask() -> None:
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
    failed(ask_one(server.config(f"status/{status}")), kind, f"HTTP {status}: so", "sorry")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(server: Server, status: int) -> None:
    """What is neither 200 nor an error is no healthy answer."""
    kind = None if status == 304 else FailureType.PARSE_ERROR
    failed(ask_one(server.config(f"status/{status}")), kind, f"HTTP {status}")


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
    answer = ask_one(server.config("body/x"))
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
    failed(ask_one(server.config("body/x")), FailureType.PARSE_ERROR, f"HTTP 200: {words}")


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
    answer = ask_one(server.config(f"say/{status}/x"))
    failed(answer, FailureType.CLIENT_ERROR if kind else None, f"HTTP {status}")


@pytest.mark.parametrize("body", [b"", b"<html>404</html>", b"404 page not found"])
def test_a_path_that_leads_nowhere(server: Server, body: bytes) -> None:
    """A 404 without an error of an API is that of a wrong URL in the probe."""
    server.bodies["x"] = body
    failed(ask_one(server.config("say/404/x")), None, "HTTP 404")


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
    failed(ask_one(server.config("body/x", stream=stream)), kind, f"HTTP {code}: upstream says no")


STREAM = b'data: {"choices": []}\n\ndata: {"choices": [{"delta": {"content": "p"}}]}\n\n'


@pytest.mark.parametrize("start", [b"", b": a comment\n\n", b"event: x\n", b"id: 1\n", b"\r\n"])
def test_an_event_stream_where_json_was_asked_for(server: Server, start: bytes) -> None:
    """An endpoint that answers with a stream only could not be asked; the reason says how."""
    server.bodies["x"] = start + STREAM
    failed(ask_one(server.config("body/x")), None, "an event stream", "stream = true")


@pytest.mark.parametrize(
    "body", [STREAM, STREAM.replace(b"\n", b"\r\n"), STREAM + b"data: [DONE]\n\n"]
)
def test_an_endpoint_that_only_streams_can_be_asked(server: Server, body: bytes) -> None:
    """With stream = true a stream is requested, and its first choice is enough."""
    server.bodies["x"] = body
    assert ask_one(server.config("body/x", stream=True)).healthy
    ((_, _, asked),) = server.requests
    assert asked["stream"] is True
    assert ask_one(server.config("ok", stream=True)).healthy  # it may answer with JSON all the same


def test_an_endless_stream_is_read_to_its_first_choice(server: Server) -> None:
    """A stream that goes on is closed as soon as it has shown that the model works."""
    assert ask_one(server.config("chat", stream=True, timeout=5)).healthy
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
    """A stream without a choice is a parse error; a stream with an error is a server error."""
    server.bodies["x"] = body
    failed(ask_one(server.config("body/x", stream=True)), kind, words)


def test_a_body_of_just_64_kib(server: Server) -> None:
    """A large answer is read to its limit, and no byte further."""
    body = json.dumps(HEALTHY).encode()
    server.bodies = {"fits": body.ljust(65536), "large": body.ljust(65537)}
    assert ask_one(server.config("body/fits")).healthy
    failed(ask_one(server.config("body/large")), FailureType.PARSE_ERROR, "larger than 64 KiB")


def test_an_endless_body(server: Server) -> None:
    """Of an answer without end a little is read, and then the connection is closed."""
    failed(ask_one(server.config("endless")), FailureType.PARSE_ERROR, "larger than 64 KiB")
    assert server.left.acquire(timeout=5)
    assert server.sent < 50_000_000  # what the sockets hold


@pytest.mark.parametrize("what", ["head", "body"])
def test_a_cut_connection(server: Server, what: str) -> None:
    """A connection that ends before its answer does is a network error, and is not tried again."""
    answer = ask_one(server.config(f"cut/{what}"))
    failed(answer, FailureType.NETWORK_ERROR, "the connection broke")
    assert len(server.requests) == 1


def test_a_port_without_a_server(server: Server) -> None:
    """A refused connection is a network error, in the system's words."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answer = ask_one(server.config("", url=f"http://127.0.0.1:{port}"))
    failed(answer, FailureType.NETWORK_ERROR, "onnect")


def test_no_such_host() -> None:
    """A name without addresses is a network error."""
    for host in ("nothing.invalid", "x" * 64 + ".test"):
        failed(ask_one(ProbeConfig("p", url=f"https://{host}/v1")), FailureType.NETWORK_ERROR)
