"""Markdown, as the scripts beside this one write it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

# What GitHub would not print as it is.
_SPECIAL = re.compile(r"([*<|])")
# What is code in a sentence of the help: an option, a key of the configuration, a section, a variable.
_CODE = re.compile(
    r"(?<![\w`])(?:-o (?:name|wide|jsonl?|[ct]sv)|-[a-z]|--[a-z][a-z-]*|\[[a-z]+\]|MODELCTL_[A-Z_]+|'[^']*\*[^']*'"
    r"|(?:database|redis|cache|health|recovery|history|notify)\.[a-z_]+)(?![\w`])"
)


def made_from(sources: str) -> str:
    """Return the comment at the top of a page that is made."""
    return (
        f"<!-- Made from {sources} by `python -m tools.pages`: change those, not this page. -->\n"
    )


def said(text: str) -> str:
    """Return a sentence of the help or of a docstring, with its code marked as code."""
    text = text.replace("``", "`")
    parts = re.split(r"(`[^`]*`)", text)
    for number in range(0, len(parts), 2):
        at = 0
        done = []
        for match in _CODE.finditer(parts[number]):
            done += [_SPECIAL.sub(r"\\\1", parts[number][at : match.start()]), f"`{match[0]}`"]
            at = match.end()
        parts[number] = "".join([*done, _SPECIAL.sub(r"\\\1", parts[number][at:])])
    return "".join(parts)


def wrapped(text: str, *, indent: str = "") -> str:
    """Return a paragraph in lines of at most 110 characters; those after the first begin with *indent*."""
    return textwrap.fill(
        text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def rows(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)
