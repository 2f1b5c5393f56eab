"""The section ``[notify]``: whom `notify` tells what, and whether that is safe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelctl.config.keys import check_program
from modelctl.config.named import described, read_section
from modelctl.config.secrets import read_secret
from modelctl.errors import InvalidConfigError, UsageError, clean
from modelctl.model import EVENTS
from modelctl.urls.web import check_web_url

# Not an event of its own: an auto-disabled model that waits for a person from then on.
EJECTED = "ejected"
NOTIFIABLE = (*EVENTS, EJECTED)


@dataclass(frozen=True, slots=True)
class NotifyConfig:
    """How to reach the receiver: with *command* or with a URL, and what it is told.

    The URL is *url*, or a secret in *url_env* or *url_file*. *token_env*, *token_file*: a token that
    is sent as ``Authorization: Bearer``. *events*: names of the history; `EJECTED` is an
    auto-disabled model that waits for a person. *min_active*: also tell when fewer models are
    active, and when they are as many again; 0: never. *timeout*: of one try.
    """

    url: str = described("", "the URL of a webhook", secret=True)
    url_env: str = described("", "the variable that holds the URL")
    url_file: str = described("", "the file that holds the URL")
    token_env: str = described("", "the variable that holds a token: Authorization: Bearer")
    token_file: str = described("", "the file that holds a token")
    command: tuple[str, ...] = described((), "a program that reads the message, JSON, from stdin")
    events: tuple[str, ...] = described(
        ("auto-disabled", "incident", "would-disable", "recovered"),
        "which events of the history, and ejected: a model that waits for a person",
    )
    min_active: int = described(0, "also tell when fewer models are active, and when no more")
    timeout: float = described(10.0, "for one try, 0.1s to 1m")
    allow_http: bool = described(False, "plain http, which sends the token unencrypted")
    allow_private: bool = described(False, "localhost and private networks")

    def address(self) -> str:
        """Return the URL, which may be a secret; "" if the receiver is a command.

        Raises:
            InvalidConfigError: it cannot be read, or is no URL. No message contains it.
        """
        found = self.url or read_secret("the URL of [notify]", self.url_env, self.url_file)
        if found and not self.url:
            try:
                check_web_url(found, allow_http=self.allow_http, query=True, name="token")
            except UsageError as exc:
                message = f"[notify], {self.url_file or self.url_env}: {exc.message}"
                raise InvalidConfigError(message, hint=exc.hint) from None
        return found

    def token(self) -> str:
        """Return the token, "" if none is configured; raises as `address` does."""
        token = read_secret("the token of [notify]", self.token_env, self.token_file)
        if not re.fullmatch("[!-~]*", token):
            raise InvalidConfigError("the token of [notify] has characters that no token has")
        return token


def read_notify(file: Path | None, table: Mapping[str, Any]) -> NotifyConfig:
    """Read the section of *file*.

    Raises:
        InvalidConfigError: says what is wrong, where, and what to do.
    """
    return read_section(f"[notify] in {file}", table, NotifyConfig, check_notify)


def check_notify(config: NotifyConfig) -> None:
    """Check the section without contacting anything.

    Raises:
        UsageError: says what is wrong; the message does not quote the URL.
    """
    receivers = (config.url, config.url_env, config.url_file, config.command)
    if sum(map(bool, receivers)) != 1:
        raise UsageError("it needs one of url, url_env, url_file and command")
    if config.token_env and config.token_file:
        raise UsageError("it takes either token_env or token_file, not both")
    if config.command and (config.token_env or config.token_file):
        raise UsageError("a command gets no token; it inherits the environment")
    for name in config.events:
        if name not in NOTIFIABLE:
            from modelctl.config.spelling import closest_name

            shown, near = clean(name, longest=50), closest_name(name, NOTIFIABLE)
            hint = f"the nearest is '{near}'; all: {', '.join(NOTIFIABLE)}"
            raise UsageError(f"events: '{shown}' is not an event", hint=hint)
    if not config.events and not config.min_active:
        raise UsageError("nothing would be told: it needs events or min_active")
    if not 0 <= config.min_active <= 1_000_000:
        raise UsageError("min_active must be 0 to 1000000")
    if not 0.1 <= config.timeout <= 60:
        raise UsageError("timeout must be 0.1s to 1m")
    if config.url:
        check_web_url(config.url, allow_http=config.allow_http, query=True, name="token")
    elif config.command:
        check_program(config.command)
