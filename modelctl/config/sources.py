"""The sections ``[source.NAME]``: where `sync` finds catalogues, and what it takes of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelctl.catalog_format import CatalogFormat
from modelctl.config.keys import check_program
from modelctl.config.named import described, read_named_sections
from modelctl.config.secrets import read_key
from modelctl.errors import CONTROLS, UsageError, clean
from modelctl.globs import parse
from modelctl.model import ID_LENGTH, check_tags
from modelctl.urls.web import check_web_url

NAME_LENGTH = 100
# The names of headers of which the client takes care itself.
_OWN_HEADERS = ("host", "user-agent", "accept", "accept-encoding", "connection", "content-length")


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """One catalogue: at *url*, in *file*, or what *command* prints.

    *format*: one of `CatalogFormat`. *key_env*, *key_file*: a key that is sent to the host of the URL
    alone, in *key_header*; without that in the header of the format, or as ``Authorization: Bearer``.
    """

    name: str
    url: str = described("", "the URL of a catalogue; further pages are fetched, too", secret=True)
    file: str = described("", "instead of url: a file")
    command: tuple[str, ...] = described((), "instead of url: a program that prints the catalogue")
    format: str = described("", "one of `modelctl formats`; empty: the shape tells it")
    provider: str = described("", "of all models, whatever the catalogue says")
    key_env: str = described("", "the variable that holds a key")
    key_file: str = described("", "the file that holds a key; it is sent to the host of url alone")
    key_header: str = described("", "the header for the key; empty: Authorization: Bearer")
    only: tuple[str, ...] = described((), "patterns of ids; other models are left out")
    except_: tuple[str, ...] = described((), "patterns of ids that are left out")
    modes: tuple[str, ...] = described(
        (), "such as chat, where the catalogue says what models are for"
    )
    prefix: str = described("", "before each id; provider: the provider of each and a slash")
    tags: tuple[str, ...] = described((), "of the models that sync adds")
    timeout: float = described(60.0, "for all pages and all tries, 0.1s to 1h")
    allow_http: bool = described(False, "plain http, which sends the key unencrypted")
    allow_private: bool = described(False, "localhost and private networks")

    def key(self) -> str:
        """Return the key, "" if none is configured. No message and no exception contains it.

        Raises:
            InvalidConfigError: it cannot be read, or is no key.
        """
        return read_key(f"the key of source '{clean(self.name)}'", self.key_env, self.key_file)


def read_sources(file: Path | None, tables: Mapping[str, Any]) -> dict[str, SourceConfig]:
    """Read the sections [source.NAME] of *file*, in their order.

    Raises:
        InvalidConfigError: says what is wrong, where, and what to do.
    """
    return read_named_sections("source", tables, file, SourceConfig, check_source)


def check_name(name: object) -> None:
    """Check the name of a source.

    Raises:
        UsageError: it is not the name of a source.
    """
    is_name = isinstance(name, str) and 0 < len(name) <= NAME_LENGTH and name == name.strip()
    if not is_name or CONTROLS.search(str(name)):
        raise UsageError(
            f"the name of a source has 1 to {NAME_LENGTH} characters, no control characters, and no"
            " blanks at its ends"
        )


def check_source(config: SourceConfig) -> None:
    """Check a source without contacting anything.

    Raises:
        UsageError: says what is wrong, not in which source; the message does not quote the URL.
    """
    check_name(config.name)
    if sum(map(bool, (config.url, config.file, config.command))) != 1:
        raise UsageError("it needs one of url, file and command")
    if config.url:
        check_web_url(config.url, allow_http=config.allow_http, query=True)
    elif config.command:
        check_program(config.command)
    elif "\0" in config.file:
        raise UsageError("file is not the name of a file")
    _check_key(config)
    if not 0.1 <= config.timeout <= 3600:
        raise UsageError("timeout must be 0.1s to 1h")
    _check_choice(config)


def _check_key(config: SourceConfig) -> None:
    if config.key_env and config.key_file:
        raise UsageError("it takes either key_env or key_file, not both")
    has_key = bool(config.key_env or config.key_file)
    if has_key and not config.url:
        raise UsageError("only a url gets a key; a command inherits the environment")
    if config.key_header and not has_key:
        raise UsageError("key_header needs key_env or key_file")
    header = config.key_header
    if not re.fullmatch("[A-Za-z0-9-]*", header) or header.lower() in _OWN_HEADERS:
        raise UsageError("key_header must be the name of a header for a key, such as api-key")


def _check_choice(config: SourceConfig) -> None:
    if config.format and config.format not in tuple(CatalogFormat):
        from modelctl.config.spelling import closest_name

        shown, near = clean(config.format, longest=50), closest_name(config.format, CatalogFormat)
        hint = f"the nearest is '{near}'; all: {', '.join(CatalogFormat)}"
        raise UsageError(f"format: '{shown}' is not a format", hint=hint)
    for key, patterns in (("only", config.only), ("except", config.except_)):
        for pattern in patterns:
            try:
                parse(pattern)
            except UsageError as exc:
                raise UsageError(f"{key}: {exc.message}", hint=exc.hint) from None
    if not all(mode.strip() for mode in config.modes):
        raise UsageError("modes: a mode is a word, such as chat or embedding")
    if len(config.prefix) >= ID_LENGTH or config.prefix != config.prefix.lstrip():
        raise UsageError(f"prefix has fewer than {ID_LENGTH} characters and begins with no blank")
    try:
        check_tags(config.tags)
    except UsageError as exc:
        raise UsageError(f"tags: {exc.message}", hint=None) from None
