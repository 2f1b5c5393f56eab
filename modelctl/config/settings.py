"""The lines of ``config show``: every key with its value and where the value comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from urllib.parse import quote

from modelctl.config.durations import format_duration
from modelctl.config.sections import KEYS
from modelctl.config.urls import mask_url

if TYPE_CHECKING:
    from modelctl.config.config import Config
    from modelctl.config.probes import ProbeConfig


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of ``config show``; *value* as the file would write it: a duration is text."""

    key: str
    value: str | float | tuple[str, ...] | list[str]
    origin: str
    variable: str


def settings(config: Config) -> list[Setting]:
    """Return every key with its value as the file would write it, and passwords masked."""
    rows = []
    for key in KEYS:
        value = getattr(getattr(config, key.section), key.field.name)
        if key.secret:
            value = mask_url(value)
            if str(key) == "database.url" and config.embedded:
                value = f"sqlite:///{quote(os.fsencode(config.sqlite_path or ''))}"
        elif key.number:
            value = int(value) if value.is_integer() else value
        elif isinstance(value, float):
            value = format_duration(value)
        rows.append(Setting(str(key), value, config.origins.get(str(key), "default"), key.variable))
    for probe in config.probes.values():
        rows += _probe_settings(config, probe)
    return rows


def _probe_settings(config: Config, probe: ProbeConfig) -> Iterator[Setting]:
    """Give the keys of a probe that are set or that matter to it."""
    name = probe.provider
    shown = name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
    for of in fields(probe):
        value, origin = getattr(probe, of.name), config.origins.get(f"probe.{name}.{of.name}")
        matters = of.name in ("command", "timeout") or not probe.command
        if of.name == "provider" or not (origin or matters) or value in ("", ()):
            continue
        if of.name == "command":
            # Show only the program: an argument may be a password.
            value = [*value[:1], "..."]
        elif isinstance(value, float):
            value = format_duration(value)
        yield Setting(f"probe.{shown}.{of.name}", value, origin or "default", "")
