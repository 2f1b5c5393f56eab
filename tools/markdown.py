"""Markdown, as the scripts beside this one write it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

# Where the part by hand stands in a section.
HERE = "{by hand}\n"
# What GitHub would not print as it is.
_SPECIAL = re.compile(r"([*<])")
# What is code in a sentence of the help: an option, a key of the configuration, a section, a variable.
_CODE = re.compile(
    r"(?<![\w`])(?:source <\([^)]*\)|-o (?:name|wide|jsonl?|[ct]sv)|-[a-z]|--[a-z][a-z-]*"
    r"|\[[a-z]+\]|MODELCTL_[A-Z_]+|'[^']*\*[^']*'"
    r"|(?:database|redis|cache|health|recovery|history|notify)\.[a-z_]+)(?![\w`])"
)


def made_from(sources: str) -> str:
    """Return the comment at the top of a page that is made."""
    return (
        f"<!-- Made from {sources} by `python -m tools.pages`: change those, not this page. -->\n"
    )


def with_parts(by_hand: Path, sections: Mapping[str, str]) -> str:
    """Return the text of a page: the beginning of *by_hand*, then each section below its heading.

    What *by_hand* has below the same heading takes the place of `HERE` in the section.
    """
    beginning, *parts = re.split(r"^## (?=\[|modelctl )", by_hand.read_text(), flags=re.MULTILINE)
    texts = {heading: text for heading, _, text in (part.partition("\n") for part in parts)}
    if unknown := {*texts} - {*sections}:
        raise SystemExit(f"{by_hand}: the program has no {', '.join(sorted(unknown))}")
    blocks = [beginning.strip()]
    for heading, section in sections.items():
        text = texts.get(heading, "").strip("\n")
        blocks += [
            f"## {heading}",
            section.replace(HERE, f"{text}\n\n" if text else "").strip("\n"),
        ]
    return "\n" + "\n\n".join(blocks) + "\n"


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
