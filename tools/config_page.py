"""docs/config.md: every section of the configuration and its keys, as the program has them.

`tools/by_hand/config.md` is the beginning of the page, and below the heading of a section what is
said of the whole section.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from modelctl.config.config import Config
from modelctl.config.durations import format_duration
from modelctl.config.keys import Key
from modelctl.config.named import key_of
from modelctl.config.notify import NotifyConfig
from modelctl.config.probes import ProbeConfig
from modelctl.config.sections import FILE_SECTIONS, KEYS, NAMED_SECTIONS, SECTIONS
from modelctl.config.settings import settings
from modelctl.config.sources import SourceConfig
from modelctl.errors import UsageError
from tools.markdown import HERE, made_from, rows, said, with_parts

BY_HAND = Path(__file__).parent / "by_hand" / "config.md"
# The sections that are in a file alone, with their classes; a test finds those that are missing.
IN_A_FILE: dict[str, type[Any]] = {
    "probe": ProbeConfig,
    "source": SourceConfig,
    "notify": NotifyConfig,
}


def page() -> str:
    """Return the whole page."""
    if {*NAMED_SECTIONS, *FILE_SECTIONS} != {*IN_A_FILE}:
        raise SystemExit(f"{__file__}: IN_A_FILE lacks a section of the configuration")
    sections = {f"[{name}]": _of_environment(name, of) for name, of in SECTIONS.items()}
    for name in FILE_SECTIONS:
        sections[f"[{name}]"] = _of_file(fields(IN_A_FILE[name]))
    for name in NAMED_SECTIONS:
        sections[f"[{name}.NAME]"] = _of_file(fields(IN_A_FILE[name])[1:])
    return made_from("modelctl/config/ and tools/by_hand/config.md") + with_parts(BY_HAND, sections)


def _of_environment(name: str, section: type[Any]) -> str:
    shown = {row.key: row.value for row in settings(Config())}
    keys = [key for key in KEYS if key.section == name]
    table = rows(
        ("key", "what it is, and its environment variable", "type", "default"),
        [
            (
                f"`{key.field.name}`",
                f"{said(key.field.metadata['help'])}. `{key.variable}`"
                + (f" or `{key.variable}_FILE`" if key.secret else ""),
                _type(key),
                # That of the database is in the home folder.
                f"`{json.dumps('' if key.secret else shown[str(key)])}`",
            )
            for key in keys
        ],
    )
    return f"{section.__doc__}\n\n{HERE}{table}"


def _type(key: Key) -> str:
    """Return what a value counts, and the values that are allowed."""
    unit = str(key.field.metadata["unit"])
    if not isinstance(key.field.default, int | float):
        return unit
    try:
        key.field.metadata["check"](-1)
    except UsageError as exc:
        return f"{unit}, {exc.message.removeprefix('must be ')}"
    raise SystemExit(f"{key} takes -1: write here how its range is shown")


def _of_file(keys: Iterable[Field[Any]]) -> str:
    return HERE + rows(
        ("key", "what it is", "type", "default"),
        [
            (f"`{key_of(key.name)}`", said(key.metadata["help"]), *_type_and_default(key.default))
            for key in keys
        ],
    )


def _type_and_default(default: object) -> tuple[str, str]:
    names = {bool: "true or false", int: "number", float: "duration", str: "text", tuple: "list"}
    text = format_duration(default) if isinstance(default, float) else default
    return names[type(default)], f"`{json.dumps(text)}`"
