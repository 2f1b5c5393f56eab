"""One run of the program: its global options, its configuration, and how commands begin and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl import streams
from modelctl.errors import ExitCode
from modelctl.model import CacheState
from modelctl.output.formats import OutputFormat, default_format, write_view

if TYPE_CHECKING:
    import typer

    from modelctl.config.config import Config
    from modelctl.fleet.fleet import Fleet
    from modelctl.models.results import Changes
    from modelctl.views.view import View


@dataclass(slots=True)
class Invocation:
    """The global options, and the configuration once it is loaded; commands find it in `ctx.obj`."""

    config_file: str | None = None
    debug: bool = False
    raw: bool = False
    config: Config | None = None

    def load_config(self) -> Config:
        """Load the configuration."""
        from modelctl.config.config import Config

        self.config = Config.load(self.config_file)
        return self.config

    def hide_passwords(self, text: str) -> str:
        """Return *text* without the passwords of the configuration."""
        return self.config.hide(text) if self.config else text


@contextmanager
def open_fleet(
    ctx: typer.Context, actor: str | None = None, *, pool_size: int = 1
) -> Iterator[Fleet]:
    """Open the fleet for one command: with one connection, and with warnings on stderr."""
    from modelctl.fleet.fleet import Fleet

    with Fleet(ctx.obj.load_config(), actor=actor, pool_size=pool_size) as fleet:
        fleet.on_warning = lambda message: streams.say(f"warning: {message}")
        yield fleet


def print_result(ctx: typer.Context, result: object, output: OutputFormat | None) -> None:
    """Print a result whose type has a view of its own."""
    from modelctl.views.views import view_of

    print_view(ctx, view_of(result), output)


def print_view(ctx: typer.Context, view: View, output: OutputFormat | None) -> None:
    """Print a view in the format that was asked for."""
    write_view(view, output, raw=ctx.obj.raw)


def print_changes(
    ctx: typer.Context, result: Changes, output: OutputFormat | None, unchanged: str = "already"
) -> ExitCode:
    """Print what a command did to each model; *unchanged*: the word before a status that stayed."""
    from modelctl.views.models import changes_view

    print_view(ctx, changes_view(result, unchanged=unchanged), output)
    return exit_code_of(result.cache)


def exit_code_of(cache: CacheState) -> ExitCode:
    """Return the exit code of a change, by what became of its invalidation."""
    return ExitCode.STALE_CACHE if cache is CacheState.QUEUED else ExitCode.OK


def prints_table(output: OutputFormat | None) -> bool:
    """Return whether the result is printed as a table, so that notes for people belong to it."""
    return (output or default_format()) in (OutputFormat.TABLE, OutputFormat.WIDE)


def prints_plain_lines(output: OutputFormat | None) -> bool:
    """Return whether stdout is a pipe and no format was asked for."""
    return output is None and default_format() is OutputFormat.TSV
