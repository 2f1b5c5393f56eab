"""The sections ``[probe.NAME]``: how to probe the models of one provider, and whether that is safe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelctl.config.keys import check_program
from modelctl.config.named import described, read_named_sections
from modelctl.errors import UsageError
from modelctl.urls.web import check_web_url

PLACE = r"\{(?:id|name)\}"
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash"}
# A word that has a placeholder and anything else could be code for an interpreter that is not
# known here.
_PLAIN_WORD = re.compile(rf"(?:[\w@%+=:,./-]|{PLACE})*")
# The scripts in which every placeholder is certainly outside of quotes. What only a real parser could
# judge is not accepted: backslashes, backquotes, comments, here-documents, arithmetic, $'...' and
# nested quotes.
_VARIABLE = rf"\$(?!{PLACE})(?:\w+|\{{\w+\}}|[?@*!])"
_SCRIPT = re.compile(
    rf"(?:(?<!\$){PLACE}|(?!{PLACE})[^'\"`\\#$<(\[]|<(?!<)|\[(?!\[)|\$?\((?!\()|{_VARIABLE}"
    rf"|'(?:(?!{PLACE})[^'])*'|\"(?:(?!{PLACE})[^\"`\\$]|{_VARIABLE})*\")*"
)


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """How to probe the models of one provider: with *url* or with *command*.

    *command* runs without a shell. ``{id}`` and ``{name}`` in its words are replaced, and its
    environment has MODELCTL_ID, MODELCTL_NAME and MODELCTL_PROVIDER; exit 0 means healthy. An id
    may be any text that another program wrote into the database, so a placeholder is accepted only

    - in a word that is not the first and has otherwise only letters, digits and ``_@%+=:,./-``. The
      word becomes one argument with exactly the id (which may begin with "-": write
      ``--model={id}``);
    - or in the script of ``sh -c`` (any shell of `_SHELLS`, also after env, busybox and the like),
      where it becomes one word in single quotes. That is safe only outside of quotes. So a script
      is refused if it has a placeholder inside quotes, or if it has a placeholder and also a
      backslash, a backquote, ``#``, ``<<``, ``((``, ``[[``, or a ``$`` that begins neither a
      variable nor ``$(``.

    ``"$MODELCTL_ID"`` in a script, or ``"$1"`` with ``{id}`` as a word after it, needs none of these
    rules. Nothing protects a program that runs its arguments as code: eval, ssh, su -c.

    *stream*: ask for an event stream, because the endpoint answers with nothing else.
    """

    provider: str
    url: str = described("", "an OpenAI-compatible endpoint: {url}/chat/completions is asked")
    key_env: str = described("", "the variable that holds the key")
    key_file: str = described("", "the file that holds the key")
    command: tuple[str, ...] = described((), "instead of url: a program; exit 0 is healthy")
    model: str = described(
        "{name}", "the model to ask for; {id}: the whole id; {name}: without the provider"
    )
    max_tokens: int = described(16, "the maximum length of the answer; 0: no limit is sent")
    max_tokens_field: str = described("max_tokens", "or max_completion_tokens")
    stream: bool = described(False, "ask for an event stream")
    timeout: float = described(10.0, "for one model, 0.1s to 10m")
    allow_http: bool = described(False, "plain http, which sends the key unencrypted")
    allow_private: bool = described(False, "localhost and private networks")


def read_probes(file: Path | None, tables: Mapping[str, Any]) -> dict[str, ProbeConfig]:
    """Read the sections [probe.NAME] of *file*, where NAME is a provider.

    Raises:
        InvalidConfigError: says what is wrong, where, and what to do.
    """
    return read_named_sections("probe", tables, file, ProbeConfig, check_probe)


def check_probe(config: ProbeConfig) -> None:
    """Check a probe without contacting anything.

    Raises:
        UsageError: says what is wrong, not in which probe; the message does not quote the URL.
    """
    if bool(config.url) == bool(config.command):
        raise UsageError("a probe needs either a url or a command")
    if config.key_env and config.key_file:
        raise UsageError("a probe takes either key_env or key_file, not both")
    if not 0 <= config.max_tokens <= 10_000:
        raise UsageError("max_tokens must be 0 to 10000; 0 sends no limit")
    if not 0.1 <= config.timeout <= 600:
        raise UsageError("timeout must be 0.1s to 10m")
    name = config.max_tokens_field
    if not (name.isascii() and name.isidentifier()) or name in ("model", "messages", "stream"):
        raise UsageError("max_tokens_field must be a name such as max_completion_tokens")
    if config.url:
        check_web_url(config.url, allow_http=config.allow_http)
    else:
        _check_command(config.command)


def _check_command(command: tuple[str, ...]) -> None:
    check_program(command)
    if re.search(PLACE, command[0]):
        raise UsageError("the program of a command must not depend on the model")
    if not re.search(PLACE, " ".join(command)):
        return
    script = script_of(command)
    for number, word in enumerate(command):
        allowed = _SCRIPT if number == script else _PLAIN_WORD
        if re.search(PLACE, word) and not allowed.fullmatch(word):
            raise UsageError(
                "command has {id} or {name} where quoting it is not safe",
                hint="in the script of sh -c, write it outside of all quotes; elsewhere, write it as a"
                ' word of its own, or use the variables "$MODELCTL_ID" and "$MODELCTL_NAME"',
            )


def script_of(command: tuple[str, ...]) -> int:
    """Return the position of the word of *command* that a shell runs as a script; 0: there is none.

    Raises:
        UsageError: *command* has a shell, but which word is the script is not certain.
    """
    names = [os.path.basename(word) for word in command]
    shell = next((number for number, name in enumerate(names) if name in _SHELLS), len(command))
    for number in range(shell + 1, len(command) - 1):
        if re.fullmatch("-[A-Za-z]*c[A-Za-z]*", command[number]):
            options = command[shell + 1][:1] in ("-", "+") and command[number][-1] == "c"
            if not options or command[number + 1][:1] in ("-", "+"):
                raise UsageError("a shell in a command must be written as sh [OPTIONS] -c SCRIPT")
            return number + 1
    return 0
