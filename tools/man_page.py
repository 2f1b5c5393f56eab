"""docs/modelctl.1: the manual page, made of the help of the program. The wheel installs it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelctl import __version__
from modelctl.cli.main import program
from tools.commands_page import commands, is_option, metavar, paragraphs

_CHANGES = Path(__file__).parents[1] / "CHANGELOG.md"
_ESCAPES = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga"}
)
_FILES = {
    "~/.config/modelctl/config.toml": "The configuration of a user.",
    "/etc/modelctl/config.toml": "The configuration of a machine, if the user has none.",
    "~/.local/share/modelctl/modelctl.db": "The embedded database, if no other is configured.",
}
_ENVIRONMENT = {
    "MODELCTL_CONFIG": "The configuration file; --config goes first.",
    "MODELCTL_ACTOR": "Who makes changes; --actor goes first.",
    "MODELCTL_DATABASE_URL, MODELCTL_REDIS_URL": "The servers. Every key of the configuration has "
    "a variable: see modelctl config example.",
}


def page() -> str:
    """Return the whole page."""
    whole = program()
    summary = paragraphs(whole)[0]
    lines = [
        f'.\\" Made from the program by `python -m tools.pages`: do not change it by hand.\n'
        f'.TH MODELCTL 1 {_last_release()} "modelctl {__version__}" "User Commands"',
        ".SH NAME",
        f"modelctl \\- {_text(summary[0].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B modelctl\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        *[_text(paragraph) for paragraph in paragraphs(whole)],
        ".SH OPTIONS",
        *_parameters(whole.params),
        ".SH COMMANDS",
    ]
    for name, command in commands().items():
        lines += [f".SS {_escaped(name)}", _usage(name, command), *_text_of(command)]
        lines += _parameters(command.params)
    lines += [".SH EXIT STATUS", _text(str(whole.epilog).removeprefix("Exit codes: ").capitalize())]
    lines += [".SH ENVIRONMENT", *_terms(_ENVIRONMENT), ".SH FILES", *_terms(_FILES)]
    return "\n".join(lines) + "\n"


def _last_release() -> str:
    """Return the day of the last release."""
    day, *_ = re.findall(r"^## .* - (\d{4}-\d\d-\d\d)$", _CHANGES.read_text(), re.MULTILINE)
    return str(day)


def _text_of(command: Any) -> Iterator[str]:
    for paragraph in paragraphs(command):
        yield ".PP"
        yield _text(paragraph)


def _usage(name: str, command: Any) -> str:
    words = [metavar(p) for p in command.params if not is_option(p)]
    options = " [\\fIOPTIONS\\fR]" if any(map(is_option, command.params)) else ""
    return f".B {_escaped(name)}\n{options.strip()} {_escaped(' '.join(words))}".strip()


def _parameters(parameters: Any) -> Iterator[str]:
    for parameter in parameters:
        if not is_option(parameter):
            yield from _terms({metavar(parameter): parameter.help or ""})
            continue
        value = "" if parameter.is_flag else parameter.metavar or "|".join(_choices(parameter))
        names = ", ".join(parameter.opts)
        yield from _terms({f"{names} {value}".strip(): parameter.help or ""})


def _choices(option: Any) -> list[str]:
    return [str(choice) for choice in getattr(option.type, "choices", ())] or ["VALUE"]


def _terms(terms: dict[str, str]) -> Iterator[str]:
    for term, text in terms.items():
        yield f".TP\n\\fB{_escaped(term)}\\fR"
        yield _text(text) or "\\&"


def _text(text: str) -> str:
    """Return text as roff, in lines that mandoc calls short; no line of it is a request."""
    lines = textwrap.wrap(_escaped(text), 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join(re.sub(r"^\.", r"\\&.", line) for line in lines)


def _escaped(text: str) -> str:
    """Return text as roff, in which these characters stay what a person can copy."""
    return text.replace("``", "").translate(_ESCAPES)
