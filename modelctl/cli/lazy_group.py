"""A group of commands that imports and builds a command only when it is asked for.

Building all commands, as Typer does, takes longer than a cached `count`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main
from typer._click.shell_completion import CompletionItem

from modelctl.arguments.options import raw_option
from modelctl.commands.table import CommandGroup

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class LazyGroup(typer.core.TyperGroup):
    """A group whose commands are in *table*: each name with "wing.module:function", or with a group."""

    table: Mapping[str, str | CommandGroup] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order of the table."""
        return [*self.table]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command or a group, built on first use; None: there is no such command."""
        entry = self.table.get(cmd_name)
        if entry is not None and cmd_name not in self.commands:
            self.commands[cmd_name] = (
                _build_group(cmd_name, entry)
                if isinstance(entry, CommandGroup)
                else _build_command(cmd_name, _load(entry))
            )
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is named first in *args*."""
        if args[0] not in self.table:
            for name in self.table:  # Typer's "Did you mean" knows only commands that are built
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin with *incomplete*, without building them; or the options."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=_summary(entry))
            for name, entry in self.table.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first line of its help, without building it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(entry)) for name, entry in self.table.items()])


def _load(path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"modelctl.{module}"), function)
    return found


def _summary(entry: str | CommandGroup) -> str:
    text = entry.help if isinstance(entry, CommandGroup) else _load(entry).__doc__ or ""
    return text.strip().partition("\n")[0]


def _build_command(name: str, function: Callable[..., Any]) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, context_settings=HELP_OPTIONS)(function)
    command = typer.main.get_command(app)
    names = [param.name for param in command.params]
    if "output" in names:
        command.params.insert(names.index("output") + 1, raw_option())
    return command


def _build_group(name: str, entry: CommandGroup) -> LazyGroup:
    group = LazyGroup(
        name=name,
        help=entry.help,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings=HELP_OPTIONS,
    )
    group.table = entry.commands
    return group
