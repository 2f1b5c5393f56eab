"""The callback of LiteLLM, called by the real LiteLLM: in applications, and with its Router."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from modelctl import Fleet
from modelctl.integrations.reporting import Reported
from tests.failures.answers import EXPECTED, Answers, serve
from tests.fleets import put
from tests.integrations.collected import Collected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelctl.integrations.litellm import OutcomeLogger

pytestmark = [
    pytest.mark.long,  # LiteLLM is part of the extra `sdk-tests`
    pytest.mark.filterwarnings("ignore"),
]

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ARGUMENTS = ("response_obj", "start_time", "end_time")


@pytest.fixture(scope="module")
def server() -> Iterator[Answers]:
    """The server that answers as failing providers do."""
    with serve() as answers:
        yield answers


class Heard:
    """What a logger has recorded."""

    def __init__(self, logger: OutcomeLogger, collected: Collected) -> None:
        self.logger, self._collected = logger, collected

    def call(
        self, make: Callable[[], Any], count: int = 1, *, pause: float = 0.2
    ) -> list[tuple[str, str | None]]:
        """Make a call and read its stream; return what is recorded when *count* calls are reported.

        LiteLLM reports in a thread, and a coroutine's outcome in a task, for which the event loop waits.
        """

        async def called() -> None:
            with suppress(Exception):
                answer = make()
                if inspect.isawaitable(answer):
                    answer = await answer
                    if hasattr(answer, "__aiter__"):
                        async for _ in answer:
                            pass
                else:
                    list(answer)
            await self._reported(before + count)
            await asyncio.sleep(pause)  # to see what is reported twice

        before = self._number()
        self._collected.outcomes.clear()
        asyncio.run(called())
        return self._collected.outcomes[:]

    async def _reported(self, count: int) -> None:
        until = time.monotonic() + 5
        while self._number() < count and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def _number(self) -> int:
        return sum(dataclasses.astuple(self.logger.reported))


@pytest.fixture(scope="module")
def only_heard() -> Heard:
    """The logger that LiteLLM calls. It takes only one of a class, and keeps it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = pytest.importorskip("litellm")
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    from modelctl.integrations.litellm import OutcomeLogger

    # What calls of other tests have left to be reported.
    asyncio.run(GLOBAL_LOGGING_WORKER.clear_queue())
    collected = Collected()
    litellm.callbacks = [OutcomeLogger(collected)]
    litellm.suppress_debug_info = True
    return Heard(litellm.callbacks[0], collected)


@pytest.fixture
def heard(only_heard: Heard) -> Heard:
    """The same logger with no ids of its own, and new numbers."""
    only_heard.logger._ids = None
    only_heard.logger._reporter._counts = dict.fromkeys(Reported.__slots__, 0)
    return only_heard


def options(server: Answers, scenario: str, api: str = "openai", **more: Any) -> dict[str, Any]:
    """Return the arguments of a call of `completion`."""
    model = {"model": f"{api}/m", "api_base": server.url(scenario, api), "api_key": "k"}
    return {**model, "messages": MESSAGES, "timeout": 1, "max_retries": 0, **more}


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_successes(server: Answers, heard: Heard, api: str, stream: bool) -> None:
    """A call and a stream that ended are one success, with the provider in the id."""
    import litellm

    wanted = options(server, "streamgood" if stream else "good", api, stream=stream)
    for function in (litellm.completion, litellm.acompletion):
        assert heard.call(partial(function, **wanted)) == [(f"{api}/m", None)]


@pytest.mark.parametrize("use_async", [False, True])
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_failures(server: Answers, heard: Heard, api: str, use_async: bool) -> None:
    """Each failure is reported once, with the type that `classify` gives to what LiteLLM raises."""
    import litellm

    function = litellm.acompletion if use_async else litellm.completion
    wrong = {}
    for failure, expected in EXPECTED.items():
        if (failure, api) == ("nochoices", "anthropic"):
            continue  # LiteLLM makes a choice without a text of it
        wanted = options(server, failure, api, stream=failure.startswith("stream"), timeout=0.4)
        found = heard.call(partial(function, **wanted), pause=0.1)
        if found != ([(f"{api}/m", expected)] if expected else []):
            wrong[failure] = (found, expected)
    assert wrong == {}


def test_other_endpoints(server: Answers, heard: Heard) -> None:
    """Embeddings, texts and the API of Anthropic are calls of a model too; each is reported once."""
    import litellm

    base = {"model": "openai/m", "api_key": "k"}
    good, bad = ({**base, "api_base": server.url(each, "openai")} for each in ("good", "503"))
    for make, expected in (
        (lambda: litellm.text_completion(prompt="hi", **good), None),
        (lambda: litellm.atext_completion(prompt="hi", **good), None),
        (lambda: litellm.embedding(input=["hi"], max_retries=0, **bad), "server-error"),
        (lambda: litellm.aembedding(input=["hi"], max_retries=0, **bad), "server-error"),
        (lambda: litellm.aresponses(input="hi", **bad), "server-error"),
    ):
        assert heard.call(make) == [("openai/m", expected)]
    messages = {**options(server, "good", "anthropic"), "max_tokens": 9}
    make = partial(litellm.anthropic.messages.acreate, **messages)
    assert heard.call(make) == [("anthropic/m", None)]


def test_retries_of_a_call(server: Answers, heard: Heard) -> None:
    """LiteLLM reports one failure for `num_retries`; that is what the documentation says."""
    import litellm

    wanted = options(server, "500", num_retries=2)
    wanted.pop("max_retries")
    for function in (litellm.completion, litellm.acompletion):
        assert heard.call(partial(function, **wanted)) == [("openai/m", "server-error")]


def test_calls_that_reach_no_model(
    server: Answers, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer from the cache, a model without a provider and a missing key are ignored."""
    import litellm

    assert heard.call(lambda: litellm.completion(model="nosuch", messages=MESSAGES)) == []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert heard.call(lambda: litellm.completion(**options(server, "good", api_key=None))) == []
    monkeypatch.setattr(litellm, "cache", litellm.Cache())
    cached = partial(litellm.acompletion, **options(server, "good", caching=True))
    assert heard.call(cached) == [("openai/m", None)]
    assert heard.call(cached) == []
    assert heard.logger.reported == Reported(successes=1, ignored=3)


# ── Its Router ──


def deployment(
    server: Answers, group: str, scenario: str, model: str, api: str = "openai"
) -> dict[str, Any]:
    """Return a deployment of a Router; its id is ``dep-MODEL``."""
    parameters = {"model": f"{api}/{model}", "api_base": server.url(scenario, api)}
    return {
        "model_name": group,
        "litellm_params": {**parameters, "api_key": "k", "max_retries": 0},
        "model_info": {"id": f"dep-{model}"},
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("use_async", [False, True])
def test_a_fallback(server: Answers, heard: Heard, stream: bool, use_async: bool) -> None:
    """A failure of the deployment that failed, a success of the one that answered, each once."""
    import litellm

    good = "streamgood" if stream else "good"
    router = litellm.Router(
        model_list=[
            deployment(server, "main", "429", "a"),
            deployment(server, "backup", good, "b", "anthropic"),
        ],
        fallbacks=[{"main": ["backup"]}],
        num_retries=0,
    )
    function = router.acompletion if use_async else router.completion
    found = heard.call(lambda: function("main", messages=MESSAGES, stream=stream), count=2)
    assert found == [("openai/a", "rate-limit"), ("anthropic/b", None)]


def test_all_deployments_fail(server: Answers, heard: Heard) -> None:
    """Each deployment has its own failure; one that rests has none."""
    import litellm

    router = litellm.Router(
        model_list=[
            deployment(server, "main", "500", "a"),
            deployment(server, "backup", "400key", "b"),
        ],
        fallbacks=[{"main": ["backup"]}],
        num_retries=0,
        allowed_fails=0,
        cooldown_time=60,
    )
    make = partial(router.completion, "main", messages=MESSAGES)
    assert heard.call(make, 2) == [("openai/a", "server-error"), ("openai/b", "client-error")]
    assert ("openai/a", "server-error") not in heard.call(make, 0)
    assert heard.call(lambda: router.completion("nosuch", messages=MESSAGES), 0) == []


def test_retries_of_a_router(server: Answers, heard: Heard) -> None:
    """The Router's own retries are calls of their deployments."""
    import litellm

    router = litellm.Router(
        model_list=[deployment(server, "main", "500", "a")],
        num_retries=2,
        retry_after=0,
        disable_cooldowns=True,
    )
    found = heard.call(lambda: router.acompletion("main", messages=MESSAGES), 3)
    assert found == [("openai/a", "server-error")] * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"dep-a": "east"}, "east"),
        ({"openai/a": "mine"}, "mine"),
        ({"a": "mine"}, "mine"),
        ({"b": "other"}, "openai/a"),
        (
            lambda call: f"{call.group}:{call.deployment}:{call.provider}:{call.model}",
            "main:dep-a:openai:a",
        ),
        (lambda call: None, None),
    ],
)
def test_ids(server: Answers, heard: Heard, ids: Any, expected: str | None) -> None:
    """A mapping or a function says which model of the fleet a deployment is."""
    import litellm

    heard.logger._ids = ids
    router = litellm.Router(model_list=[deployment(server, "main", "good", "a")])
    found = heard.call(lambda: router.completion("main", messages=MESSAGES))
    assert found == ([(expected, None)] if expected else [])


# ── What LiteLLM would swallow ──


def test_what_goes_wrong_is_counted_and_said() -> None:
    """Arguments that LiteLLM may pass one day raise nothing, and are not silent."""
    pytest.importorskip("litellm")
    from modelctl.integrations.litellm import OutcomeLogger

    said: list[str] = []
    logger = OutcomeLogger(Collected(), on_warning=said.append)
    rest = dict.fromkeys(ARGUMENTS)
    call = {"model": "m", "custom_llm_provider": "openai"}
    logger.log_success_event(details=call, **rest)
    logger.log_success_event(kwargs=None, **rest)
    logger.log_failure_event(kwargs=call, **rest)
    logger.log_failure_event(kwargs={**call, "exception": "no"}, **rest)
    asyncio.run(logger.async_log_failure_event(**rest))
    assert logger.reported == Reported(errors=5)
    assert len(said) == 4
    logger.log_success_event(kwargs=call, new=1, **rest)
    logger.log_success_event(call, None, None, None)
    assert logger.reported == Reported(successes=2, errors=5)


def test_what_a_proxy_refuses_is_ignored() -> None:
    """A wrong key of a proxy's user says nothing about the model that the user asked for."""
    pytest.importorskip("litellm")
    from litellm.constants import LITELLM_LOGGING_NO_UPSTREAM_LLM_CALL

    from modelctl.integrations.litellm import OutcomeLogger

    logger = OutcomeLogger(Collected())
    call = {"model": "m", "custom_llm_provider": "openai", "exception": ValueError()}
    logger.log_failure_event(kwargs={**call, LITELLM_LOGGING_NO_UPSTREAM_LLM_CALL: True})
    assert logger.reported == Reported(ignored=1)


def test_the_logger_of_a_proxy(
    fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`proxy_logger` opens the configured fleet and its recorder, once."""
    pytest.importorskip("litellm")
    from modelctl.integrations import litellm as module

    put(fleet_url, "openai/m")
    monkeypatch.setattr(Fleet, "open", lambda **_: fleet)
    monkeypatch.delitem(vars(module), "proxy_logger", raising=False)
    logger = module.proxy_logger
    assert module.proxy_logger is logger
    logger.log_success_event(kwargs={"model": "m", "custom_llm_provider": "openai"})
    logger._reporter._recorder.flush()
    assert fleet.show("openai/m").success_count == 1
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        module.nosuch  # noqa: B018 - it raises
    vars(module).pop("proxy_logger")
