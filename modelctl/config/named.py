"""Sections that are in a file alone; those that may occur several times, such as ``[probe.NAME]``.

Such a section is a dataclass, whose first field is the name and whose other fields are the keys,
made by `described`, and a function that checks it. A new one also needs its word in
`sections.NAMED_SECTIONS`, a field of `Config`, and a line in `Config.load`.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from modelctl.config.keys import read_value
from modelctl.config.spelling import closest_name
from modelctl.errors import InvalidConfigError, UsageError, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")


def described(default: T, about: str, *, secret: bool = False) -> T:
    """Describe a key, as the value of a dataclass field; *about*: one line for docs/config.md."""
    return field(default=default, repr=not secret, metadata={"help": about})


def key_of(name: str) -> str:
    """Return the key of a field, which has a "_" at its end if Python has the word: ``except_``."""
    return name.rstrip("_")


def read_named_sections(
    word: str,
    tables: Mapping[str, Any],
    file: Path | None,
    make: Callable[..., T],
    check: Callable[[T], None],
) -> dict[str, T]:
    """Read all sections ``[word.NAME]`` of *file*, whose contents are *tables*, by their names.

    Raises:
        InvalidConfigError: says what is wrong, where, and what to do.
    """
    sections = {}
    for name, table in tables.items():
        place = f'[{word}."{clean(name, longest=50)}"] in {file}'
        if not isinstance(table, dict):
            hint = f"write [{word}.NAME] on a line of its own, and its keys below"
            raise InvalidConfigError(f"{word}.{name} in {file} must be a section", hint=hint)
        sections[name] = read_section(place, table, make, check, name)
    return sections


def read_section(
    place: str,
    table: Mapping[str, Any],
    make: Callable[..., T],
    check: Callable[[T], None],
    *name: str,
) -> T:
    """Read one section that has no environment variables; *place*: the words for where it is.

    *name*: the first field, of a section that may occur several times. Raises as
    `read_named_sections` does.
    """
    keys = fields(make)[len(name) :]  # type: ignore[arg-type]  # a dataclass
    named = {key_of(key.name): key for key in keys}
    defaults = {name: key.default for name, key in named.items()}
    values = {}
    for key, raw in table.items():
        if key not in defaults:
            hint = f"the nearest is {closest_name(key, defaults)}"
            raise InvalidConfigError(f"unknown key {key} in {place}", hint=hint)
        try:
            values[named[key].name] = read_value(raw, defaults[key])
        except UsageError as exc:
            message = f"{key} of {place}: {exc.message}"
            raise InvalidConfigError(message, hint=exc.hint) from None
    section = make(*name, **values)
    try:
        check(section)
    except UsageError as exc:
        raise InvalidConfigError(f"{place}: {exc.message}", hint=exc.hint) from None
    return section
