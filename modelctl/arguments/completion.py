"""What options and arguments complete to in the shell: ids, providers, fixed choices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet

# The environment variable with the shell that asks for completions; cli/shell_completion.py answers.
COMPLETING = "_MODELCTL_COMPLETE"
# How long a shell waits, at most, for what only the database knows.
_SECONDS = 4.0


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
    """Return the names that begin with *incomplete*, if they are found in time.

    A database that does not answer is waited for in a thread, which ends with the program.
    """
    import threading

    found: list[str] = []

    def run() -> None:
        from modelctl.config.config import Config
        from modelctl.fleet.fleet import Fleet

        with suppress(Exception):  # a prompt is no place for an error; the command itself shows it
            config = Config.load(ctx.find_root().params.get("config"))
            with Fleet(config, actor="completion", pool_size=1) as fleet:
                found.extend(ask(fleet, incomplete))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    # A name that begins with a hyphen would be read as an option.
    return [name for name in found if name.startswith(incomplete) and not name.startswith("-")]


def completes(*choices: str) -> Callable[[str], list[str]]:
    """Return a function that completes to one of *choices*."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def complete_catalog_format(incomplete: str) -> list[str]:
    """Return the catalogue formats that begin with *incomplete*."""
    from modelctl.catalog_format import CatalogFormat

    return completes(*CatalogFormat)(incomplete)
