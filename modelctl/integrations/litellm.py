"""Record how each call that LiteLLM makes went, in an application or in its proxy.

    litellm.callbacks = [OutcomeLogger(recorder)]

In the YAML of a proxy: ``litellm_settings: {callbacks: modelctl.integrations.litellm.proxy_logger}``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from litellm.integrations.custom_logger import CustomLogger

from modelctl.integrations.reporting import Reporter, named
from modelctl.model import FailureType

if TYPE_CHECKING:
    from modelctl.integrations.reporting import RecordsOutcomes, Reported

# How many calls are remembered, to find those that are reported twice.
_MOST_SEEN = 1000
# In the arguments of a call that LiteLLM's proxy refused by itself, such as one with a wrong key.
_NOT_SENT = "litellm_no_upstream_llm_call"


@dataclass(frozen=True, slots=True)
class LiteLLMCall:
    """Which model LiteLLM has called.

    *model*: without its provider. *deployment*: the id of the deployment (``model_info.id``), and *group*:
    the name that the caller gave (``model_name``), both '' without a Router.
    """

    model: str
    provider: str
    deployment: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        """Provider and model, as LiteLLM takes them: ``openai/gpt-5``."""
        prefix = f"{self.provider}/"
        return self.model if self.model.startswith(prefix) else prefix + self.model


Ids = Mapping[str, str] | Callable[[LiteLLMCall], str | None]


class OutcomeLogger(CustomLogger):
    """A callback of LiteLLM that records the outcome of each call: sync and async, streams, Routers.

    LiteLLM calls it once for each deployment that it tries, so a fallback is a failure of the first
    deployment and a success of the second one, and the retries of a Router count. The retries of
    ``completion(num_retries=2)`` do not: LiteLLM reports one failure for all three tries. Answers from a
    cache, and requests that LiteLLM refuses by itself, say nothing about a model and are ignored.

    A stream is a success when it has ended; one that is not read to its end is recorded as nothing.

    LiteLLM swallows what a callback raises. So each error is counted (`reported`) and *on_warning*
    (default: the log ``modelctl.integrations``) is told.
    """

    def __init__(
        self,
        recorder: RecordsOutcomes,
        *,
        id: Ids | None = None,  # noqa: A002 - what it is
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        """*id*: the id in the fleet: a mapping, or a function that may return None to ignore the call.

        A mapping is asked for the deployment, for ``provider/model``, and for the model. By default, and
        for what the mapping lacks, the id is ``provider/model``.
        """
        super().__init__()
        self._reporter = Reporter(recorder, on_warning)
        self._ids = id
        self._lock = threading.Lock()
        self._seen: dict[tuple[Any, ...], None] = {}

    @property
    def reported(self) -> Reported:
        """What this logger has told its recorder."""
        return self._reporter.stats

    # LiteLLM passes all arguments by their names. `kwargs` is the only one that is needed; whatever else
    # it may pass one day must not raise.

    def log_success_event(self, *args: Any, **named: Any) -> None:
        """Record that a call has succeeded."""
        self._succeeded(*args, **named)

    def log_failure_event(self, *args: Any, **named: Any) -> None:
        """Record that a call has failed."""
        self._failed(*args, **named)

    async def async_log_success_event(self, *args: Any, **named: Any) -> None:
        """Record that an async call has succeeded."""
        self._succeeded(*args, **named)

    async def async_log_failure_event(self, *args: Any, **named: Any) -> None:
        """Record that an async call has failed."""
        self._failed(*args, **named)

    def _succeeded(self, *args: Any, **named: Any) -> None:
        with self._reporter.guarded():
            call = _arguments(args, named)
            if self._is_repeated(call, "success", getattr(named.get("response_obj"), "id", None)):
                return
            model_id = None if call.get("cache_hit") else self._id(call)
            if not model_id:
                self._reporter.ignored()
            elif getattr(named.get("response_obj"), "choices", None) == []:
                # LiteLLM takes it for an answer.
                reason = "the answer has no choices"
                self._reporter.failure(model_id, FailureType.PARSE_ERROR, reason)
            else:
                self._reporter.success(model_id)

    def _failed(self, *args: Any, **named: Any) -> None:
        with self._reporter.guarded():
            call = _arguments(args, named)
            exception = call["exception"]
            if not isinstance(exception, BaseException):
                raise TypeError(f"an exception is expected, not {type(exception).__name__}")
            if self._is_repeated(call, "failure", named.get("start_time")):
                return
            model_id = self._id(call)
            if model_id:
                self._reporter.raised(model_id, exception)
            else:
                self._reporter.ignored()

    def _is_repeated(self, arguments: Mapping[str, Any], outcome: str, which: object) -> bool:
        """Whether LiteLLM has reported this before: it reports some calls twice, from two threads.

        *which*: tells answers with one call id apart, and the tries of a Router.
        """
        call_id = arguments.get("litellm_call_id")
        if not call_id:
            return False
        key = (call_id, arguments.get("model"), outcome, which)
        with self._lock:
            if key in self._seen:
                return True
            self._seen[key] = None
            if len(self._seen) > _MOST_SEEN:
                del self._seen[next(iter(self._seen))]
            return False

    def _id(self, arguments: Mapping[str, Any]) -> str | None:
        """Return the id of the model that was called; None: the call reached no model."""
        if arguments.get(_NOT_SENT):
            return None
        call = _call(arguments)
        if not call.model or not call.provider:
            return None
        if callable(self._ids):
            return self._ids(call)
        return named(self._ids, call.deployment, call.name, call.model) or call.name


def _arguments(args: tuple[Any, ...], named: dict[str, Any]) -> Mapping[str, Any]:
    """Return what LiteLLM says about a call: its argument ``kwargs``."""
    found = named["kwargs"] if "kwargs" in named else args[0]
    if not isinstance(found, Mapping):
        raise TypeError(f"kwargs of LiteLLM is a dict, not {type(found).__name__}")
    return found


def _call(arguments: Mapping[str, Any]) -> LiteLLMCall:
    parameters = arguments.get("litellm_params") or {}
    # Which of them LiteLLM uses depends on the endpoint.
    metadata = parameters.get("metadata") or parameters.get("litellm_metadata") or {}
    info = metadata.get("model_info") or parameters.get("model_info") or {}
    provider = arguments.get("custom_llm_provider") or parameters.get("custom_llm_provider") or ""
    return LiteLLMCall(
        model=arguments.get("model") or "",
        # The same models, by an older endpoint.
        provider=provider.removeprefix("text-completion-"),
        deployment=info.get("id") or "",
        group=metadata.get("model_group") or "",
    )


def __getattr__(name: str) -> Any:
    """Make `proxy_logger` when it is first asked for: the proxy imports it by its name."""
    if name != "proxy_logger":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from modelctl.fleet.fleet import Fleet

    fleet = Fleet.open(actor="litellm")
    logger = OutcomeLogger(fleet.recorder(), on_warning=lambda message: fleet.on_warning(message))
    globals()[name] = logger
    return logger
