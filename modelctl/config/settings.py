"""The lines of ``config show``: every key with its value and where the value comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelctl.config.durations import format_duration
from modelctl.config.named import key_of
from modelctl.config.sections import KEYS
from modelctl.urls.url import mask_url

if TYPE_CHECKING:
    from modelctl.config.config import Config
    from modelctl.config.notify import NotifyConfig
    from modelctl.config.probes import ProbeConfig
    from modelctl.config.sources import SourceConfig


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
    for name, probe in config.probes.items():
        rows += _named_settings(config, "probe", name, probe)
    for name, source in config.sources.items():
        rows += _named_settings(config, "source", name, source)
    if config.notify:
        rows += _notify_settings(config, config.notify)
    return rows


def _notify_settings(config: Config, notify: NotifyConfig) -> Iterator[Setting]:
    """Give the keys of the receiver that are set or have a default."""
    for of in fields(notify):
        value = getattr(notify, of.name)
        unused = notify.command and of.name in ("allow_http", "allow_private")
        if value in ("", ()) or unused:
            continue
        if of.name == "url":
            value = "***"  # that of a webhook is a secret as a whole
        yield _file_setting(config, f"notify.{of.name}", f"notify.{of.name}", value)


def _file_setting(config: Config, key: str, shown: str, value: Any) -> Setting:
    """Return the line of a key that no environment variable sets."""
    if key.endswith(".command"):
        # Show only the program: an argument may be a password.
        value = [*value[:1], "..."]
    elif isinstance(value, float):
        value = format_duration(value)
    return Setting(shown, value, config.origins.get(key, "default"), "")


def _named_settings(
    config: Config, word: str, name: str, section: ProbeConfig | SourceConfig
) -> Iterator[Setting]:
    """Give the keys of a probe or a source that are set or that matter to it."""
    shown = name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
    for of in fields(section)[1:]:
        key, value = key_of(of.name), getattr(section, of.name)
        origin = config.origins.get(f"{word}.{name}.{key}")
        if not (origin or section.url or key in ("command", "timeout")) or value in ("", ()):
            continue
        if key == "url" and "?" in value:
            value = f"{value.partition('?')[0]}?***"  # a query may hold a key
        yield _file_setting(config, f"{word}.{name}.{key}", f"{word}.{shown}.{key}", value)
