"""Ask a model over HTTP: one small chat completion."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelctl.model import FailureType
from modelctl.outbound.post import is_too_large, post
from modelctl.outbound.web import BrokenConnectionError, NoConnectionError, PrivateAddressError
from modelctl.probe.judge import has_answered, judge
from modelctl.probe.results import Failure

if TYPE_CHECKING:
    from modelctl.config.probes import ProbeConfig
    from modelctl.outbound.web import Web


@dataclass(frozen=True, slots=True)
class Request:
    """One request; *model*: its name in the request."""

    config: ProbeConfig
    model: str
    key: str = field(repr=False)
    web: Web

    async def send(self) -> Failure | None:
        """Return what is wrong with the model, None: it is healthy."""
        config = self.config
        try:
            answer = await post(
                f"{config.url.rstrip('/')}/chat/completions",
                self._content(),
                {"Authorization": f"Bearer {self.key}"} if self.key else {},
                self.web,
                timeout=config.timeout,
                allow_private=config.allow_private,
                enough=self._is_enough,
            )
        except PrivateAddressError as exc:
            host = urlsplit(config.url).hostname
            why = f"{host} is {exc}, not a public address; allow_private permits it"
            return Failure(None, why)
        except NoConnectionError:
            return Failure(FailureType.TIMEOUT, "no connection in time")
        except BrokenConnectionError as exc:
            return Failure(FailureType.NETWORK_ERROR, str(exc))
        return judge(answer.status, answer.body, stream=config.stream)

    def _is_enough(self, body: bytes) -> bool:
        return is_too_large(body) or (self.config.stream and has_answered(body))

    def _content(self) -> bytes:
        ping: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "ping"}],
        }
        if self.config.max_tokens:
            ping[self.config.max_tokens_field] = self.config.max_tokens
        if self.config.stream:
            ping["stream"] = True
        return json.dumps(ping).encode()  # ASCII, so that it can hold lone surrogates too
