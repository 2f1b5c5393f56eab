"""How the models of a provider are asked, and whether that is safe. Part of the configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from modelctl.errors import UsageError

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<place>(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>(?:/[\w.~!$&'()*+,;=:@%-]*)*)",
    re.ASCII,
)
PLACE = r"\{(?:id|name)\}"
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "mksh", "ash"}
# Anything else beside a placeholder looks like code for an interpreter that is not known here.
_PLAIN_WORD = re.compile(rf"(?:[\w@%+=:,./-]|{PLACE})*")
# The scripts in which every placeholder certainly stands unquoted: nothing that would need a real
# parser (backslashes, backquotes, comments, here-documents, arithmetic, $'...', nested quotes).
_VARIABLE = rf"\$(?!{PLACE})(?:\w+|\{{\w+\}}|[?@*!])"
_SCRIPT = re.compile(
    rf"(?:(?<!\$){PLACE}|(?!{PLACE})[^'\"`\\#$<(\[]|<(?!<)|\[(?!\[)|\$?\((?!\()|{_VARIABLE}"
    rf"|'(?:(?!{PLACE})[^'])*'|\"(?:(?!{PLACE})[^\"`\\$]|{_VARIABLE})*\")*"
)


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """How the models of one provider are asked: with *url* or *command*.

    *command* is run without a shell. ``{id}`` and ``{name}`` in its words are replaced, and its
    environment has MODELCTL_ID, MODELCTL_NAME and MODELCTL_PROVIDER; exit 0 is healthy. An id may
    be anything that another program wrote into the database, so a placeholder stands

    - not in the first word, and elsewhere beside letters, digits and ``_@%+=:,./-`` alone; the
      word is then one argument, exactly the id (which may begin with "-": write ``--model={id}``);
    - or in the script of ``sh -c`` (any shell of `_SHELLS`, also behind env, busybox...), where it
      becomes one word in single quotes. That holds only outside of quotes, so a script is refused
      that has a placeholder inside quotes, or that has a placeholder and also a backslash, a
      backquote, ``#``, ``<<``, ``((``, ``[[``, or a ``$`` that begins no variable and no ``$(``.

    *stream*: the endpoint answers with an event stream only, so it is asked for one.

    ``"$MODELCTL_ID"`` in a script, or ``"$1"`` with ``{id}`` as a word behind it, needs no such
    rules. Nothing can help a program that makes code of its arguments: eval, ssh, su -c.
    """

    provider: str
    url: str = ""
    key_env: str = ""
    key_file: str = ""
    command: tuple[str, ...] = ()
    model: str = "{name}"
    max_tokens: int = 16
    max_tokens_field: str = "max_tokens"
    stream: bool = False
    timeout: float = 10.0
    allow_http: bool = False
    allow_private: bool = False


def check_probe(config: ProbeConfig) -> None:
    """Check what can be checked without asking anybody; never shows the URL.

    Raises:
        UsageError: says what is wrong, not in which probe.
    """
    if bool(config.url) == bool(config.command):
        raise UsageError("a probe has either a url or a command")
    if config.key_env and config.key_file:
        raise UsageError("a probe has either key_env or key_file, not both")
    if not 0 <= config.max_tokens <= 10_000:
        raise UsageError("max_tokens must be 0 (none is sent) to 10000")
    if not 0.1 <= config.timeout <= 600:
        raise UsageError("timeout must be 0.1s to 10m")
    name = config.max_tokens_field
    if not (name.isascii() and name.isidentifier()) or name in ("model", "messages", "stream"):
        raise UsageError("max_tokens_field must be a name such as max_completion_tokens")
    if config.url:
        _check_url(config.url, config.allow_http)
    else:
        _check_command(config.command)


def _check_url(url: str, allow_http: bool) -> None:
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https"):
        raise UsageError("url must begin with https://")
    if "@" in re.split(r"[/?#\\]", rest)[0]:
        raise UsageError("url must have no user or password", hint="use key_env or key_file")
    if "?" in url or "#" in url:
        raise UsageError("url must have no query and no fragment")
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 443) < 65536:
        raise UsageError("url is malformed", hint="write it like https://api.openai.com/v1")
    if scheme == "http" and not allow_http:
        raise UsageError("url is plain http, which shows the key", hint="allow_http permits it")


def _check_command(command: tuple[str, ...]) -> None:
    if not command[0].strip() or "\0" in "".join(command):
        raise UsageError("command must begin with a program, and have no NUL")
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
                hint="in the script of sh -c, write it outside of all quotes; anywhere else as a"
                ' word of its own, or read the variables "$MODELCTL_ID" and "$MODELCTL_NAME"',
            )


def script_of(command: tuple[str, ...]) -> int:
    """Return which word of *command* a shell runs as a script (0: none); when in doubt, refuse."""
    names = [os.path.basename(word) for word in command]
    shell = next((number for number, name in enumerate(names) if name in _SHELLS), len(command))
    for number in range(shell + 1, len(command) - 1):
        if re.fullmatch("-[A-Za-z]*c[A-Za-z]*", command[number]):
            options = command[shell + 1][:1] in ("-", "+") and command[number][-1] == "c"
            if not options or command[number + 1][:1] in ("-", "+"):
                raise UsageError("a shell in a command is written: sh [OPTIONS] -c SCRIPT")
            return number + 1
    return 0
