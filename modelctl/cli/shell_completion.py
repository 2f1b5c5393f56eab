"""Answers a shell that asks, with a script of arguments/shell_scripts.py, what a word may become."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer._click.shell_completion import ShellComplete

from modelctl import streams
from modelctl.arguments.shell_scripts import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.arguments.invocation import Invocation

# What bash takes as it is, without a backslash before it.
_PLAIN = r"[^\w@%+=:,./-]"


def answer_shell(shell: str, words: Sequence[str], program: Any, invocation: Invocation) -> None:
    """Write what the last of *words* may become, a line for each: the first word is the program.

    To a shell that is not known, nothing is written.
    """
    if shell not in SCRIPTS or len(words) < 2:
        return
    kept, (typed, quote) = "", _unquote(words[-1])
    before = words[1:-1]
    if shell == "bash":
        joined, kept = _join(words)
        *before, typed = [_unquote(word)[0] for word in joined[1:]]
    elif shell == "zsh":  # its script removes the quotes
        typed = words[-1]
    for value, about in _possible(before, typed, program, invocation):
        if not value.isprintable() or not value.startswith(kept):
            continue
        if shell == "bash":
            line = _quote(value.removeprefix(kept), quote)
        elif shell == "zsh":
            line = re.sub(r"([\\:])", r"\\\1", value) + (about and f":{about}")
        else:
            line = value + (about and f"\t{about}")
        streams.write([line, "\n"])


def _possible(
    before: Sequence[str], typed: str, program: Any, invocation: Invocation
) -> list[tuple[str, str]]:
    """Return each word that *typed* may become behind the words *before*, and what it means."""
    completion = _Completion(program, {"obj": invocation}, "modelctl", "")
    found = completion.get_completions([*before], typed)
    option, equals, _ = typed.partition("=")
    beginning = option + equals if typed.startswith("--") and equals else ""
    return [(beginning + item.value, " ".join((item.help or "").split())) for item in found]


def _join(pieces: Sequence[str]) -> tuple[list[str], str]:
    """Join the words that bash has split; also return what it keeps of the last word.

    Bash makes three pieces of ``hf:org/model`` and of ``--provider=x``, and replaces only the last
    one. A colon or an equal sign alone it keeps too.
    """
    words = [*pieces[:1]]
    for piece in pieces[1:]:
        if len(words) > 1 and (re.fullmatch("[:=]+", piece) or re.search("[:=]$", words[-1])):
            words[-1] += piece
        else:
            words.append(piece)
    replaced = "" if re.fullmatch("[:=]+", pieces[-1]) else pieces[-1]
    kept, _ = _unquote(words[-1].removesuffix(replaced))
    return words, kept


def _unquote(word: str) -> tuple[str, str]:
    """Return a word without its quotes and backslashes, and the quote that is still open in it."""
    text, quote = "", ""
    letters = iter(word)
    for letter in letters:
        if letter == "\\" and quote != "'":
            text += next(letters, "")
        elif letter in ("'", '"') and quote in ("", letter):
            quote = "" if quote else letter
        else:
            text += letter
    return text, quote


def _quote(word: str, quote: str) -> str:
    """Return a word so that bash, within this open quote, reads it as text and runs nothing."""
    if quote == "'":
        return word.replace("'", "'\\''")
    return re.sub(r'([$`"\\])' if quote else f"({_PLAIN})", r"\\\1", word)


class _Completion(ShellComplete):
    """Finds completions; the shell's side, which Click would have here, is in this file."""

    name = source_template = ""

    def source_vars(self) -> dict[str, Any]:
        raise NotImplementedError

    def get_completion_args(self) -> tuple[list[str], str]:
        raise NotImplementedError

    def format_completion(self, item: Any) -> str:
        raise NotImplementedError
