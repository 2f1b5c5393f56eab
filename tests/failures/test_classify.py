"""`classify`: exceptions of Python and of applications, chains of causes, and whatever resists."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import errno
import json
import multiprocessing
import socket
import ssl
import subprocess
import sys
import types
from http import HTTPStatus
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl import FailureType, ModelNotFoundError, classify
from modelctl.failures import tables
from modelctl.outcomes import classify as of_the_wing
from tests.waiting import at_most


def named(name: str, *bases: type, **attributes: Any) -> BaseException:
    """Make an exception whose class has this name ("package.module.Class")."""
    module, _, own_name = name.rpartition(".")
    cls = type(own_name, bases or (Exception,), {"__module__": module})
    exception: BaseException = cls()
    for attribute, value in attributes.items():
        setattr(exception, attribute, value)
    return exception


def caused(exception: BaseException, cause: BaseException) -> BaseException:
    """Return *exception* as ``raise exception from cause`` leaves it."""
    exception.__cause__ = cause
    return exception


def during(exception: BaseException, context: BaseException) -> BaseException:
    """Return *exception* as raised while *context* was handled."""
    exception.__context__ = context
    return exception


def status_error(status: int) -> BaseException:
    """Return the error of httpx for a status that a server sent."""
    request = httpx.Request("POST", "http://x")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))


def test_it_has_two_public_names() -> None:
    """`modelctl.classify` and `modelctl.outcomes.classify` are one function."""
    assert classify is of_the_wing


def test_importing_the_wing_of_outcomes_stays_cheap() -> None:
    """The tables are loaded on first use, and no SDK ever."""
    code = (
        "import sys, modelctl.outcomes; assert 'modelctl.failures.tables' not in sys.modules;"
        "from modelctl.outcomes import classify; classify(TimeoutError());"
        "print({'openai', 'httpx', 'sqlalchemy', 'requests', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# The exceptions of Python itself


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (TimeoutError(), "timeout"),
        (TimeoutError("timed out"), "timeout"),
        (multiprocessing.TimeoutError(), "timeout"),
        (subprocess.TimeoutExpired("x", 1), "timeout"),
        (OSError(errno.ETIMEDOUT, "timed out"), "timeout"),
        (ConnectionResetError(), "network-error"),
        (ConnectionRefusedError(), "network-error"),
        (BrokenPipeError(), "network-error"),
        (socket.gaierror(-2, "Name or service not known"), "network-error"),
        (ssl.SSLError("bad"), "network-error"),
        (ssl.SSLCertVerificationError("bad"), "network-error"),
        (OSError(errno.ENETUNREACH, "unreachable"), "network-error"),
        (OSError(errno.EHOSTUNREACH, "no route"), "network-error"),
        (json.JSONDecodeError("no", "x", 0), "parse-error"),
        (asyncio.CancelledError(), None),
        (concurrent.futures.CancelledError(), None),
        (KeyboardInterrupt(), None),
        (SystemExit(503), None),
        (GeneratorExit(), None),
        (FileNotFoundError(2, "no such file"), None),
        (PermissionError(13, "denied"), None),
        (ValueError("no"), None),
        (KeyError("choices"), None),
        (IndexError(), None),
        (TypeError(), None),
        (AttributeError("x"), None),
        (AssertionError(), None),
        (MemoryError(), None),
        (RecursionError(), None),
        (StopIteration(), None),
        (Exception(), None),
    ],
    ids=repr,
)
def test_exceptions_of_python(exception: BaseException, expected: str | None) -> None:
    """Time limits, the network and JSON are of the call; everything else is the application's."""
    assert classify(exception) == expected


def test_time_limits_of_asyncio() -> None:
    """A time limit is a timeout, although the task was cancelled; a cancelled task is none."""

    async def limited() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    async def cancelled() -> None:
        task = asyncio.create_task(asyncio.sleep(5))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(limited())
    assert classify(caught.value) == "timeout"
    with pytest.raises(asyncio.CancelledError) as stopped:
        asyncio.run(cancelled())
    assert classify(stopped.value) is None


# Statuses and codes


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((400, "client-error"), (401, "client-error"), (404, "client-error"), (408, "timeout")),
        *((413, None), (414, None), (431, None), (429, "rate-limit"), (499, None)),
        *((500, "server-error"), (503, "server-error"), (504, "timeout"), (520, "server-error")),
        *((522, "timeout"), (524, "timeout"), (529, "server-error"), (598, "timeout")),
        *((302, "unknown"), (200, "parse-error")),
    ],
)
def test_statuses_of_an_sdk(status: int, expected: str | None) -> None:
    """The status that a server sent decides, wherever an SDK keeps it."""
    response = types.SimpleNamespace(status_code=status)
    meta = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": str(status)}}
    for exception in (
        named("openai.APIStatusError", status_code=status),
        named("google.genai.errors.APIError", code=status),
        named("aiohttp.client_exceptions.ClientResponseError", status=status),
        named("requests.exceptions.HTTPError", OSError, response=response),
        named("urllib.error.HTTPError", OSError, code=status),
        named("mistralai.client.errors.sdkerror.SDKError", status_code=str(status)),
        named("botocore.exceptions.ClientError", response=meta),
        named("brand_new.sdk.HttpError", response=response),
        named("openai.APIStatusError", status_code=HTTPStatus(200), response=response)
        if status == 200
        else named("openai.APIStatusError", response=MagicMock(status_code=status)),
    ):
        assert classify(exception) == expected, exception


@pytest.mark.parametrize("value", [True, False, None, "abc", 42, 10**30, -500, 4.29, MagicMock()])
def test_values_that_are_no_status(value: object) -> None:
    """A bool, a mock, or any other number is no status: of the error nothing is known."""
    assert classify(named("openai.NewError", status_code=value)) == "unknown"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (429, "insufficient_quota", "client-error"),
        (429, "rate_limit_exceeded", "rate-limit"),
        (400, "context_length_exceeded", None),
        (400, "content_policy_violation", None),
        (400, "content_filter", None),
        (400, "invalid_api_key", "client-error"),
        (424, "ModelErrorException", "server-error"),
        (200, "overloaded_error", "server-error"),
        (200, "rate_limit_error", "rate-limit"),
        (None, "503", "server-error"),
        (None, "server_error", "server-error"),
        (None, "invalid_request_error", "client-error"),
        (None, "throttlingException", "rate-limit"),
    ],
)
def test_codes(status: int | None, code: str, expected: str | None) -> None:
    """Some codes say more than the status; the others count where there is no status."""
    own = {} if status is None else {"status_code": status}
    body = {"type": "error", "error": {"type": code, "message": "no"}}
    for exception in (
        named("openai.APIError", code=code, **own),
        named("anthropic.APIStatusError", body=body, **own),
        named("mistralai.client.errors.SDKError", body=json.dumps(body), **own),
        named("botocore.exceptions.ClientError", response={"Error": {"Code": code}}, **own),
    ):
        if code != "503" or "openai" in type(exception).__module__:
            assert classify(exception) == expected, exception


@pytest.mark.parametrize("code", ["unknown", "tokens", "404", "aborted"])
def test_a_code_of_another_class(code: object) -> None:
    """`code` and `status` of a class that is of no SDK may mean anything."""
    assert classify(named("shop.OrderError", code=code)) is None
    assert classify(named("shop.OrderError", status=404, code=404)) is None
    assert classify(named("shop.ProviderError", status_code=503)) == "server-error"


@pytest.mark.parametrize("words", tables.REFUSALS)
def test_prompts_that_are_too_long_or_refused(words: str) -> None:
    """Where a provider has no code, its words count; in an answer 4xx only."""
    text = f"Sorry: {words.upper()} (request 1)"
    assert classify(named("anthropic.BadRequestError", status_code=400, message=text)) is None
    assert classify(named("anthropic.E", status_code=500, message=text)) == "server-error"


# Chains of causes


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (caused(RuntimeError("gave up"), status_error(429)), "rate-limit"),
        (during(ValueError("no answer"), status_error(503)), "server-error"),
        (during(json.JSONDecodeError("no", "x", 0), status_error(502)), "server-error"),
        (during(TimeoutError(), status_error(429)), "timeout"),  # the second of two tries
        (caused(TimeoutError("gave up"), status_error(503)), "server-error"),
        (during(ConnectionError(), TimeoutError()), "timeout"),
        (caused(TimeoutError(), asyncio.CancelledError()), "timeout"),
        (caused(ValueError(), asyncio.CancelledError()), None),
        (during(status_error(404), status_error(429)), "client-error"),  # a fallback
        (caused(named("openai.APIConnectionError"), httpx.ReadTimeout("")), "timeout"),
        (caused(named("openai.APIConnectionError"), httpx.DecodingError("")), "parse-error"),
        (caused(named("openai.APIConnectionError"), httpx.LocalProtocolError("")), None),
        (caused(named("openai.APIConnectionError"), ValueError()), "network-error"),
        (named("openai.APIConnectionError"), "network-error"),
        (named("requests.exceptions.X", args=(TimeoutError(),)), "timeout"),
        (named("urllib3.exceptions.MaxRetryError", reason=TimeoutError()), "timeout"),
        (named("openai.OpenAIError"), None),  # no API key
    ],
    ids=lambda value: repr(value)[:60],
)
def test_chains(exception: BaseException, expected: str | None) -> None:
    """A status that was sent, then what is nearest; a wrapper's own class last."""
    assert classify(exception) == expected


def litellm(name: str, status: int, *causes: BaseException) -> BaseException:
    """Return an error of LiteLLM, which has a status that no server sent."""
    exception = named(f"litellm.exceptions.{name}", status_code=status)
    at = exception
    for cause in causes:
        at = during(at, cause).__context__ or at
    return exception


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (litellm("InternalServerError", 500), "server-error"),
        (litellm("APIConnectionError", 500), "network-error"),
        (litellm("RateLimitError", 429), "rate-limit"),
        (litellm("Timeout", 408), "timeout"),
        (litellm("ContextWindowExceededError", 400), None),
        (litellm("BudgetExceededError", 429), None),
        (litellm("InternalServerError", 500, ConnectionRefusedError()), "network-error"),
        (litellm("InternalServerError", 500, socket.gaierror()), "network-error"),
        (litellm("APIConnectionError", 500, json.JSONDecodeError("", "", 0)), "parse-error"),
        (litellm("InternalServerError", 500, KeyError("choices")), "parse-error"),
        (litellm("RateLimitError", 429, KeyError("no deployment")), "rate-limit"),
        (litellm("BadRequestError", 400, status_error(413)), None),
        (litellm("APIConnectionError", 500, named("litellm.X", status_code=200)), "parse-error"),
        (litellm("APIError", 500, named("litellm.X", status_code=403)), "client-error"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_wrappers_of_litellm(exception: BaseException, expected: str | None) -> None:
    """The causes say what it was; the made-up status counts if they say nothing."""
    assert classify(exception) == expected


def test_a_suppressed_context() -> None:
    """``raise ... from None`` hides what was handled."""
    exception = during(ValueError(), TimeoutError())
    exception.__suppress_context__ = True
    assert classify(exception) is None


def test_groups() -> None:
    """Of a group the first member counts that says something about the model."""
    assert classify(BaseExceptionGroup("", [ValueError(), status_error(429)])) == "rate-limit"
    assert classify(BaseExceptionGroup("", [asyncio.CancelledError(), TimeoutError()])) == "timeout"
    assert classify(BaseExceptionGroup("", [KeyboardInterrupt()])) is None
    inner = BaseExceptionGroup("", [caused(ValueError(), ConnectionResetError())])
    assert classify(BaseExceptionGroup("", [inner])) == "network-error"
    assert classify(caused(RuntimeError(), inner)) == "network-error"


def test_a_circle_of_causes() -> None:
    """Causes that go in a circle end."""
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert classify(one) is None
    group = ExceptionGroup("", [one])
    two.__cause__ = group
    assert classify(group) is None


def test_long_chains_and_large_groups() -> None:
    """A chain of 100,000 causes and a group of as many members take no longer than others."""
    exception: BaseException = TimeoutError()
    for _ in range(100_000):
        exception = caused(ValueError(), exception)
    group: BaseException = ExceptionGroup("", [ValueError() for _ in range(100_000)])
    for _ in range(200):
        group = BaseExceptionGroup("", [group, ValueError()])
    with at_most(5):
        assert classify(exception) is None
        assert classify(group) is None
    while exception.__cause__:  # or Python frees it by recursion
        exception = exception.__cause__


# The application's own


@pytest.mark.parametrize(
    "name",
    [
        "redis.exceptions.TimeoutError",
        "sqlalchemy.exc.TimeoutError",
        "psycopg.OperationalError",
        "starlette.exceptions.HTTPException",
        "fastapi.exceptions.RequestValidationError",
        "django.core.exceptions.ValidationError",
        "aiohttp.web_exceptions.HTTPException",
    ],
)
def test_databases_and_web_servers(name: str) -> None:
    """A database, a cache or a web server in the same block says nothing about the model."""
    assert classify(named(name, status_code=503)) is None
    assert classify(caused(named(name), ConnectionRefusedError())) is None
    assert classify(caused(RuntimeError(), named(name))) is None


def test_errors_of_modelctl() -> None:
    """An error of modelctl itself is no failure of a model."""
    assert classify(ModelNotFoundError("no")) is None


# Reading an answer


def sdk(source: str, *, module: str = "openai.resources") -> dict[str, Any]:
    """Run source as if it were a module of an SDK; return its names."""
    scope: dict[str, Any] = {"__name__": module}
    exec(compile(source, "<sdk>", "exec"), scope)  # noqa: S102 - the source is in this file
    return scope


ANSWER = sdk("""
class Answer:
    def __init__(self, **fields): self.__dict__.update(fields)
def _process_response(body): return body["choices"]
def create(model): return {}[model]
def final_message(message): assert message is not None
""")
Answer: Any = ANSWER["Answer"]


REFUSED: Any = Answer(content=[], stop_reason="refusal")
BLOCKED: Any = Answer(candidates=None, prompt_feedback=Answer(block_reason="SAFETY"))


class Own:
    """Something of the application's, with fields that are called like those of an answer."""

    content: list[str]
    answer: Any

    def __init__(self) -> None:
        self.content = []
        self.answer = Answer(choices=[])


def reading(kind: str) -> object:
    """Read an answer as applications do, each in another way."""
    own, answer, page = Own(), Answer(choices=[], content=None, parts={}), "<html>"
    good = Answer(choices=[Answer(message=Answer(content=None))])
    refused = Answer(choices=[Answer(finish_reason="content_filter", message=Answer(content=None))])
    names: dict[str, int] = {}
    match kind:
        case "empty list":
            return answer.choices[0].message.content
        case "nothing":
            return answer.content[0].text
        case "loop":
            return [block.text for block in answer.content]
        case "key":
            return answer.parts["text"]
        case "null text":
            return good.choices[0].message.content.strip()
        case "refused":
            return refused.choices[0].message.content.strip()
        case "refused by Anthropic":
            return REFUSED.content[0].text
        case "refused by Google":
            return BLOCKED.candidates[0].content
        case "field of an object":
            return own.answer.choices[0]
        case "several lines":
            return answer.choices[0].message  # the answer
        case "page":
            return page.choices[0]  # type: ignore[attr-defined]
        case "page of anthropic":
            return page.content[0].text  # type: ignore[attr-defined]
        case "own field":
            return own.content[0]
        case "own dictionary":
            return names[good.choices[0].message]
        case "typo":
            return answer.chioces[0]
        case "own function":
            return int(answer.content)
        case "dictionary":
            return names["choices"]
        case "inside":
            return ANSWER["_process_response"]({})
        case "assertion of an SDK":
            return ANSWER["final_message"](None)
        case "argument":
            return ANSWER["create"]("m")
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, "parse-error") for kind in ("empty list", "nothing", "loop", "key", "null text")),
        *((kind, "parse-error") for kind in ("field of an object", "several lines", "page")),
        *((kind, "parse-error") for kind in ("page of anthropic", "inside", "assertion of an SDK")),
        *((kind, None) for kind in ("own field", "own dictionary", "typo", "own function")),
        *((kind, None) for kind in ("dictionary", "argument")),
        *((kind, None) for kind in ("refused", "refused by Anthropic", "refused by Google")),
    ],
)
def test_answers_that_lack_something(kind: str, expected: str | None) -> None:
    """An exception of Python is a parse error if its expression, or an SDK, reads an answer."""
    with pytest.raises((LookupError, AttributeError, TypeError, AssertionError)) as caught:
        reading(kind)
    assert classify(caught.value) == expected


def test_answers_of_an_http_client() -> None:
    """JSON that is read from a response counts if the status was good; another status says more."""
    for status, expected in ((200, "parse-error"), (503, None)):
        response = httpx.Response(status, json={"error": "no"})
        with pytest.raises(KeyError) as caught:
            response.json()["choices"][0]
        assert classify(caught.value) == expected
    response = httpx.Response(200, content=b'{"a": "\xff"}')
    with pytest.raises(UnicodeDecodeError) as undecodable:
        response.json()
    assert classify(undecodable.value) == "parse-error"


def test_reading_without_the_source() -> None:
    """Without the source of the expression, its exception is the application's."""
    scope = sdk("def read(answer): return answer.choices[0]", module="app")
    with pytest.raises(IndexError) as caught:
        scope["read"](Answer(choices=[]))
    assert classify(caught.value) is None


# Whatever resists


class _HostileError(Exception):
    """Raises, whatever it is asked."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__

    @property
    def status_code(self) -> int:
        raise RuntimeError("status_code")

    @property
    def response(self) -> object:
        raise RecursionError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")


class _Text(str):
    """A text whose methods raise."""

    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError

    def lower(self) -> str:
        raise RuntimeError


def test_hostile_exceptions() -> None:
    """An exception that raises when it is looked at says what its class and its causes say."""
    assert classify(_HostileError()) is None
    assert classify(caused(_HostileError(), TimeoutError())) == "timeout"
    assert classify(named("openai.APITimeoutError", _HostileError)) == "timeout"
    odd = named("openai.RateLimitError", status_code=429, message=_Text("x"), body=_Text("{"))
    assert classify(odd) in ("rate-limit", "unknown")
    assert classify(named("openai.E", __module__=5, code=[], body={1: {2: 3}})) == "unknown"


class _SlottedError(Exception):
    __slots__ = ("status_code",)
    status_code: int


def test_exceptions_with_slots_and_properties() -> None:
    """A status in a slot, in a class or in a property is found."""
    slotted = _SlottedError()
    slotted.status_code = 503
    assert classify(slotted) == "server-error"
    cls = type("E", (Exception,), {"status_code": property(lambda _: 429), "__module__": "groq"})
    assert classify(cls()) == "rate-limit"
    assert classify(type("E", (Exception,), {"status_code": 504})()) == "timeout"


@pytest.mark.parametrize("value", [None, 5, "TimeoutError", TimeoutError, MagicMock(), object()])
def test_what_is_no_exception(value: Any) -> None:
    """An object that is no exception is unknown, also a mock and a class."""
    assert classify(value) is FailureType.UNKNOWN
    assert classify(MagicMock(spec=TimeoutError)) is FailureType.UNKNOWN


@pytest.mark.parametrize("huge", ["x" * 10_000_000, "{" * 10_000_000, b"[" * 60_000])
def test_huge_messages(huge: Any) -> None:
    """A message of 10 MB costs nothing: it is neither formatted nor parsed."""
    exception = named("openai.APIStatusError", status_code=400, message=huge, body=huge)
    exception.args = (huge,)
    with at_most(5):
        for _ in range(20):
            assert classify(exception) == "client-error"


_BUILTINS = [
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type)
    and issubclass(cls, Exception)
    and not issubclass(cls, Warning | BaseExceptionGroup | UnicodeError)
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        200,
        404,
        429,
        503,
        10**30,
        "503",
        "insufficient_quota",
        b"{",
        "[[",
        "{}",
        [1],
    ),
    *(
        {"code": "context_length_exceeded"},
        {"error": {"code": 5}},
        {1: 2},
        TimeoutError(),
        object(),
    ),
    types.SimpleNamespace(status_code=500, _content=b"[{}]"),
]
_NAMES = [name.rpartition(".")[2] for name in (*tables.CLASSES, *tables.WRAPPERS)]
_ATTRIBUTES = ["status_code", "code", "response", "body", "message", "reason", "type"]
_EXCEPTIONS = st.tuples(
    st.sampled_from(["openai", "litellm", "app", "grpc", "redis", "httpx", "aiohttp"]),
    st.sampled_from(_NAMES),
    st.sampled_from(_BUILTINS),
    st.dictionaries(st.sampled_from(_ATTRIBUTES), st.sampled_from(_VALUES), max_size=4),
    st.booleans(),
)


@given(st.lists(_EXCEPTIONS, min_size=1, max_size=5))
def test_it_never_raises(chain: list[tuple[str, str, type, dict[str, Any], bool]]) -> None:
    """Whatever names, attributes and causes there are, the answer is a failure type or None."""
    exceptions = [
        named(f"{package}.{name}", base, **attributes)
        for package, name, base, attributes, _ in chain
    ]
    for outer, inner, of in zip(exceptions, exceptions[1:], chain, strict=False):
        (caused if of[-1] else during)(outer, inner)
    assert classify(exceptions[0]) in (None, *FailureType)
