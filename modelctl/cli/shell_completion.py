"""The shell's side of completion: its script, and the words that bash hands over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelctl import streams
from modelctl.arguments.completion import BEFORE_COLON, script
from modelctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence


def join_words(environ: MutableMapping[str, str]) -> None:
    """Join the words of the command line again that bash has split.

    Bash makes three words of ``hf:org/model`` and of ``--provider=x``. It replaces only what stands
    behind the last colon, so that part alone is to be completed, and the part before it is put into
    an environment variable.
    """
    command_line = environ.get("COMP_WORDS", "")
    separator = "\n" if "\n" in command_line else " "  # Typer's script has a line for each word
    words = command_line.split(separator)
    given = environ.get("COMP_CWORD", "")
    if not given.isdecimal() or int(given) >= len(words):
        return
    position = joined_position = int(given)
    joined: list[str] = []
    for number, word in enumerate(words):
        previous = joined[-1] if joined else ""
        at_colon = len(joined) > 1 and (re.fullmatch(":+", word) or previous.endswith(":"))
        at_equals = previous.startswith("--") and (word == "=" or previous.endswith("="))
        if at_colon or at_equals:
            joined[-1] += word
        else:
            joined.append(word)
        if number == position:
            joined_position = len(joined) - 1
    if not joined[joined_position].startswith("-"):
        before, colon, joined[joined_position] = joined[joined_position].rpartition(":")
        environ[BEFORE_COLON] = before + colon
    environ["COMP_WORDS"] = separator.join(joined)
    environ["COMP_CWORD"] = str(joined_position)


def answer_completion_option(arguments: Sequence[str]) -> bool:
    """Carry out --show-completion SHELL and --install-completion SHELL; return whether it was one.

    Typer's own options take no shell: they mean the shell that they are called from.
    """
    option, _, shell = " ".join(arguments).replace("=", " ").partition(" ")
    if option not in ("--show-completion", "--install-completion") or not shell:
        return False
    from typer._completion_shared import Shells, install

    known = [str(kind.value) for kind in Shells]
    if shell not in known:
        raise UsageError(f"no completion for '{shell}'", hint=f"one of: {', '.join(known)}")
    if option == "--install-completion":
        _, path = install(shell=shell, prog_name="modelctl")
        streams.say(f"{shell} completion installed in {path}; it works in new shells")
        return True
    streams.write([script(shell), "\n"])
    return True
