"""docs/commands.md: every command with its arguments, options and defaults, as the program has them.

`tools/by_hand/commands.md` has what is written by hand: the beginning of the page, and below the
heading of a command what its help does not say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelctl.cli.main import program
from tools.markdown import HERE, made_from, rows, said, with_parts, wrapped

BY_HAND = Path(__file__).parent / "by_hand" / "commands.md"
# An option that is the same in so many commands is described once.
_MANY = 5


def page() -> str:
    """Return the whole page."""
    every = commands()
    shared = _shared(every)
    sections = {name: _section(name, command, shared) for name, command in every.items()}
    text = with_parts(BY_HAND, sections)
    text = text.replace("{every command}", _summaries(every))
    text = text.replace("{options of many commands}", _options(shared.values()))
    return made_from("the program and tools/by_hand/commands.md") + text


def commands() -> dict[str, Any]:
    """Return every command by its words."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                yield from walk(command, (*words, name))
            else:
                yield " ".join((*words, name)), command

    return dict(walk(program(), ("modelctl",)))


def is_option(parameter: Any) -> bool:
    """Whether it is an option; else it is an argument."""
    return bool(parameter.param_type_name == "option")


def _same(option: Any) -> tuple[str, str]:
    return option.opts[-1], option.help


def _shared(commands: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the options that many commands have, in the order in which they appear."""
    options = [p for command in commands.values() for p in command.params if is_option(p)]
    number = Counter(map(_same, options))
    return {_same(option): option for option in options if number[_same(option)] >= _MANY}


def _summaries(commands: Mapping[str, Any]) -> str:
    return rows(
        ("command", "what it does"),
        [
            (f"[`{name}`](#{name.replace(' ', '-')})", said(paragraphs(command)[0]))
            for name, command in commands.items()
        ],
    )


def paragraphs(command: Any) -> list[str]:
    """Return the paragraphs of the help of a command."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", command.help.strip())]


def _section(name: str, command: Any, shared: Mapping[tuple[str, str], Any]) -> str:
    arguments = [p for p in command.params if not is_option(p)]
    options = [p for p in command.params if is_option(p)]
    own = [option for option in options if _same(option) not in shared]
    words = [name, *(["[OPTIONS]"] if options else []), *map(metavar, arguments)]
    lines = [f"    {' '.join(words)}"]
    lines += [wrapped(said(paragraph)) for paragraph in paragraphs(command)]
    table = [(f"`{metavar(a)}`", said(a.help or "")) for a in arguments]
    if table or own:
        lines.append(_options(own, table))
    if many := [f"`{option.opts[-1]}`" for option in options if _same(option) in shared]:
        as_well = "It also has" if table or own else "It has"
        lines.append(
            wrapped(f"{as_well} these [options of many commands](#options): {', '.join(many)}.")
        )
    return "\n\n".join([*lines, HERE])


def metavar(argument: Any) -> str:
    """Return how the help names an argument."""
    return str(argument.metavar or argument.name.upper())


def _options(options: Any, arguments: Any = ()) -> str:
    return rows(
        ("argument or option" if arguments else "option", "what it does"),
        [*arguments, *((_names(option), _about(option)) for option in options)],
    )


def _names(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.opts[-1].lstrip('-').upper()}"
    return ", ".join(f"`{name}{value if name == option.opts[-1] else ''}`" for name in option.opts)


def _about(option: Any) -> str:
    text = said(option.help or "")
    if choices := getattr(option.type, "choices", ()):
        text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    if option.multiple and not re.search("several times|repeated", text):
        text += " May be given several times."
    if option.required:
        text += " Required."
    # Those that are None are in the help, because they depend on the configuration.
    if not option.is_flag and option.default not in (None, "", ()):
        text += f" Default: `{option.default}`."
    return text
