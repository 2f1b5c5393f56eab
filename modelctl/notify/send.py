"""Send one message: over HTTP, or to a command; again with backoff while that may help."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from modelctl.outbound import command
from modelctl.outbound.loop import complete
from modelctl.outbound.post import post
from modelctl.outbound.retry import FailedTryError, is_later, retry_after, retrying
from modelctl.outbound.web import (
    BrokenConnectionError,
    NoConnectionError,
    PrivateAddressError,
    Web,
    trusted_certificates,
)
from modelctl.redact import storable_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.notify import NotifyConfig
    from modelctl.outbound.post import Answer

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 10.0


class NotDeliveredError(FailedTryError):
    """The receiver did not accept a message. The message says why, without a word of the URL."""


class Sender:
    """Sends messages to the configured receiver."""

    def __init__(self, config: NotifyConfig, url: str, token: str) -> None:
        """*url*, *token*: those that *config* names; without a URL the receiver is a command."""
        self._config, self._url, self._token = config, url, token
        self._tls = trusted_certificates("a URL in [notify]", "notify") if url else None

    def send(self, content: bytes, seconds: float, before: Callable[[], None]) -> None:
        """Send a message; try again for *seconds*. *before* is called before each try.

        Raises:
            NotDeliveredError: the receiver did not accept it.
        """
        import tenacity

        backoff = tenacity.wait_exponential_jitter(_FIRST_WAIT, _LONGEST_WAIT)

        stop = tenacity.stop_before_delay(max(0.0, seconds))
        for attempt in retrying(backoff, stop):
            with attempt:
                before()
                complete(self._try(content))

    async def _try(self, content: bytes) -> None:
        try:
            async with asyncio.timeout(self._config.timeout):
                await (self._post(content) if self._url else self._run(content))
        except TimeoutError:
            raise NotDeliveredError(f"no answer in {self._config.timeout:g} s") from None

    async def _post(self, content: bytes) -> None:
        try:
            answer = await post(
                self._url,
                content,
                {"Authorization": f"Bearer {self._token}"} if self._token else {},
                Web(self._tls),
                timeout=self._config.timeout,
                allow_private=self._config.allow_private,
            )
        except PrivateAddressError as exc:
            why = f"the receiver's address {exc} is not public; allow_private permits it"
            raise NotDeliveredError(why, permanent=True) from None
        except NoConnectionError:
            raise NotDeliveredError("no connection in time") from None
        except BrokenConnectionError as exc:
            raise NotDeliveredError(str(exc)) from None
        _judge(answer)

    async def _run(self, content: bytes) -> None:
        try:
            ended = await command.run(self._config.command, {}, content)
        except command.CannotRunError as exc:
            raise NotDeliveredError(str(exc), permanent=True) from None
        if ended.code:
            why = storable_reason(str(ended), 300) or ""
            raise NotDeliveredError(f"the command failed: {why}", permanent=ended.cannot_run)


def _judge(answer: Answer) -> None:
    """Raise an error unless the receiver accepted the message.

    The body is not quoted: it may repeat the URL, which is a secret.
    """
    status = answer.status
    if 200 <= status <= 299:
        return
    if 300 <= status <= 399:
        raise NotDeliveredError(f"HTTP {status}: a redirect, refused", permanent=True)
    raise NotDeliveredError(
        f"HTTP {status}",
        permanent=not is_later(status),
        retry_after=retry_after(answer.retry_after),
    )
