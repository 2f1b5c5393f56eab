"""What options and arguments complete to in the shell: ids, providers, fixed choices."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from modelctl.errors import ModelctlError

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet

# The environment variable with the part of a word that the shell does not replace: bash replaces only
# what stands behind the last colon.
BEFORE_COLON = "_MODELCTL_COMPLETE_BEFORE"
# Names without a character that a shell would interpret.
_SAFE_NAME = re.compile("[a-zA-Z0-9._/:@+][a-zA-Z0-9._/:@+-]*")


def script(shell: str) -> str:
    """Return the script that makes a shell ask the program for completions."""
    from typer._completion_shared import get_completion_script

    return get_completion_script(
        prog_name="modelctl", complete_var="_MODELCTL_COMPLETE", shell=shell
    )


def complete_id(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids that begin with *incomplete*; none if the database cannot be asked."""
    return _ask_fleet(ctx, incomplete, lambda fleet, start: fleet.complete(start))


def complete_provider(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the providers that begin with *incomplete*; none if the database cannot be asked."""
    return _ask_fleet(
        ctx, incomplete, lambda fleet, _: [of.provider for of in fleet.stats().providers]
    )


def complete_tag(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the tags that begin with *incomplete*; none if the database cannot be asked."""
    return _ask_fleet(ctx, incomplete, lambda fleet, _: [*fleet.tags()])


def complete_source(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the sources that begin with *incomplete*; none if the configuration is wrong."""
    return _ask_fleet(ctx, incomplete, lambda fleet, _: [*fleet.config.sources])


def _ask_fleet(
    ctx: typer.Context, incomplete: str, ask: Callable[[Fleet, str], list[str]]
) -> list[str]:
    from modelctl.config.config import Config
    from modelctl.fleet.fleet import Fleet

    before = os.environ.get(BEFORE_COLON, "")
    start = before + incomplete
    try:
        config = Config.load(ctx.find_root().params.get("config"))
        with Fleet(config, actor="completion", pool_size=1) as fleet:
            found = ask(fleet, start)
    except (ModelctlError, OSError):
        return []
    return [
        name.removeprefix(before)
        for name in found
        if name.startswith(start) and _SAFE_NAME.fullmatch(name)
    ]


def completes(*choices: str) -> Callable[[str], list[str]]:
    """Return a function that completes to one of *choices*."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def complete_catalog_format(incomplete: str) -> list[str]:
    """Return the catalogue formats that begin with *incomplete*."""
    from modelctl.catalog_format import CatalogFormat

    return completes(*CatalogFormat)(incomplete)
