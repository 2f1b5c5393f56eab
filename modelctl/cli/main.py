"""The program: its global options, and the error boundary, which reports every exception."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main

from modelctl import __version__, streams
from modelctl.arguments.completion import COMPLETING
from modelctl.arguments.invocation import Invocation
from modelctl.cli.lazy_group import HELP_OPTIONS, LazyGroup
from modelctl.cli.shell_completion import answer_shell
from modelctl.commands.table import COMMANDS
from modelctl.errors import (
    ExitCode,
    InterruptedError,  # noqa: A004 - one name in three spellings
    ModelctlError,
    UsageError,
)
from modelctl.output.formats import OutputFormat, write_error
from modelctl.signals import Terminated, end_by_signal

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 usage, 3 configuration, 4 no such model, 5 database "
    "unavailable, 6 committed but the cache is stale, 7 schema missing, 8 refused, 130 interrupted."
)
# Typer contains Click, and exports of Click's usage errors only this subclass.
_CLICK_ERROR: Any = typer.BadParameter.__base__


# ── The commands and the global options ─────────────────────────────────────────────────────────


class _Program(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    cls=_Program,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,  # Typer's own; ours is `modelctl completion`
    context_settings=HELP_OPTIONS,
    pretty_exceptions_enable=False,
    epilog=_EXIT_CODES,
)


def _print_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:  # so a shell that completes words reads them
        streams.write_lines([f"modelctl {__version__}"])
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="The configuration file to use.")
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Administer a fleet of LLM models kept as rows in a database."""
    ctx.obj.config_file, ctx.obj.debug = config, debug


def program() -> LazyGroup:
    """Return the whole command line."""
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)  # noqa: S101 - for the type checker
    return group


# ── The error boundary ──────────────────────────────────────────────────────────────────────────


def run() -> int:
    """Run the command line in a process of its own and return the exit code."""
    streams.open_closed_streams()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; every exception is caught and reported here."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = Invocation()
    try:
        return _run_command(arguments, invocation)
    except Terminated as exc:
        code = _report(InterruptedError(), arguments, invocation)
        end_by_signal(exc.number)
        return code
    except (Exception, KeyboardInterrupt) as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":  # its message is the help
            streams.say(*str(exc.format_message()).splitlines())  # type: ignore[union-attr]
            return ExitCode.USAGE
        return _report(_as_our_error(exc, invocation), arguments, invocation)


def _run_command(arguments: list[str], invocation: Invocation) -> int:
    if shell := os.environ.get(COMPLETING):
        answer_shell(shell, arguments, program(), invocation)
        return ExitCode.OK
    code = program()(arguments, prog_name="modelctl", standalone_mode=False, obj=invocation)
    if code == ExitCode.INTERRUPTED:  # what Typer makes of KeyboardInterrupt
        raise InterruptedError
    return int(code or ExitCode.OK)


def _as_our_error(exc: BaseException, invocation: Invocation) -> ModelctlError:
    """Convert any exception to the `ModelctlError` that is reported to the user."""
    if isinstance(exc, ModelctlError):
        return exc
    if isinstance(exc, _CLICK_ERROR):
        hint = f"see: {exc.ctx.command_path} --help" if exc.ctx else None
        # Click writes the choices of an argument on lines of their own.
        return UsageError(exc.format_message().replace("\n\t", " "), hint=hint)
    # If Ctrl-C comes while Python builds a class in an import, Python raises another error from it.
    interrupted = (exc, exc.__cause__ or exc.__context__)
    if any(isinstance(error, KeyboardInterrupt | typer.Abort) for error in interrupted):
        return InterruptedError()
    if isinstance(exc, OSError):  # a full disk or too many open files, not a bug
        return ModelctlError(invocation.hide_passwords(str(exc)))
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return ModelctlError(
        invocation.hide_passwords(text),
        hint="this is a bug; run again with --debug and report it",
    )


def _report(error: ModelctlError, arguments: Sequence[str], invocation: Invocation) -> int:
    """Print the error, after its traceback if --debug asks for that, and return its exit code."""
    if invocation.debug and error.exit_code is not ExitCode.USAGE:
        import traceback

        streams.say(*invocation.hide_passwords(traceback.format_exc()).splitlines())
    try:
        write_error(error, as_json=_asks_for_json(arguments))
    except ModelctlError as stdout_failed:
        streams.say(f"error: {stdout_failed.message}")
    return error.exit_code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether -o json was asked for, even if the arguments as a whole make no sense.

    The last -o with a valid format counts, wherever it stands. The value of another option does not
    count, even if it looks like -o.
    """
    group: Any = program()
    options: dict[str, Any] = {}
    wanted = ""
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        if not word.startswith("-"):
            if isinstance(group, LazyGroup):
                group = group.get_command(None, word) or group
            options = {name: param for param in group.params for name in param.opts}
            continue
        name, assigned, value = (
            word.partition("=") if word[:2] == "--" else (word[:2], "", word[2:])
        )
        is_output = name in ("-o", "--output")
        takes_value = is_output or not getattr(options.get(name), "is_flag", True)
        if takes_value and not (assigned or value):
            value = next(words, "")
        if is_output and value in [*OutputFormat]:
            wanted = value
    return wanted == OutputFormat.JSON
