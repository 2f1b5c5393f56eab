"""The command line: each command is one method of `Fleet`, and there is one error boundary."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import typer.core
import typer.main

from modelctl import __version__
from modelctl.config.config import Config
from modelctl.config.durations import parse_duration
from modelctl.errors import (
    DatabaseUnavailableError,
    ExitCode,
    InterruptedError,  # noqa: A004 - one name in three spellings
    InvalidConfigError,
    ModelctlError,
    RefusedError,
    StaleCacheError,
    UsageError,
)
from modelctl.model import CacheState, FailureType, ModelStatus, numbered
from modelctl.output import render
from modelctl.output.render import Output
from modelctl.recovery.explain import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import BinaryIO

    from modelctl.fleet.fleet import Fleet
    from modelctl.models.results import Changes
    from modelctl.reports import SchemaStatus

_EXIT_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 usage, 3 configuration, 4 no such model, 5 database "
    "unavailable, 6 committed but the cache is stale, 7 schema missing, 8 refused, 130 interrupted."
)
# Ids that a warning names; there may be thousands.
_NAMED = 20
_HELP = {"help_option_names": ["-h", "--help"]}
_Function = TypeVar("_Function", bound=Callable[..., Any])
_Item = TypeVar("_Item")


class _Commands(Mapping[str, typer.core.TyperCommand | typer.core.TyperGroup]):
    """The commands of a group by name; each is built when it is asked for.

    Building all of them, as Typer does, takes longer than `count` from the cache.
    """

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        self.groups: dict[str, typer.core.TyperGroup] = {}
        self._built: dict[str, Any] = {}

    def __call__(self, name: str) -> Callable[[_Function], _Function]:
        def register(function: _Function) -> _Function:
            self.functions[name] = function
            return function

        return register

    def __getitem__(self, name: str) -> Any:
        if name in self.groups:
            return self.groups[name]
        if name not in self._built:
            from typer.main import get_command_from_info
            from typer.models import CommandInfo

            info = CommandInfo(name, callback=self.functions[name], context_settings=_HELP)
            built = get_command_from_info(
                info, pretty_exceptions_short=False, rich_markup_mode=None
            )
            places = [place for place, of in enumerate(built.params) if of.name == "output"]
            for place in places:
                built.params.insert(place + 1, _raw_option())
            self._built[name] = built
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.functions, *self.groups])

    def __len__(self) -> int:
        return len(self.functions) + len(self.groups)

    def summaries(self) -> list[tuple[str, str]]:
        """Each name and the first line of its help."""
        helps = {name: function.__doc__ or "" for name, function in self.functions.items()}
        helps |= {name: group.help or "" for name, group in self.groups.items()}
        return [(name, text.strip().partition("\n")[0]) for name, text in helps.items()]


def _raw_option() -> typer.core.TyperOption:
    """--raw, which every command has that has -o: how it prints, no matter of the command itself."""

    def set_it(_: Any, __: Any, value: bool) -> None:
        render.raw = value

    return typer.core.TyperOption(
        param_decls=["--raw"],
        is_flag=True,
        default=False,
        expose_value=False,
        callback=set_it,
        help="In CSV: leave cells that a spreadsheet would run (= + - @) without an apostrophe.",
    )


class _Group(typer.core.TyperGroup):
    """A group whose help builds no command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.commands.summaries())  # type: ignore[attr-defined]  # ours


def _group(name: str, text: str, commands: _Commands) -> _Group:
    group = _Group(
        name=name, help=text, no_args_is_help=True, rich_markup_mode=None, context_settings=_HELP
    )
    group.commands = commands  # type: ignore[assignment]  # nothing is ever added
    return group


command, cache_command, db_command, config_command = (_Commands() for _ in range(4))
app = typer.Typer(
    cls=_Group,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    epilog=_EXIT_CODES,
)


def program() -> typer.core.TyperGroup:
    """Return the whole command line."""
    cache = "Look at the cache, clear it, deliver what is queued."
    command.groups = {
        "cache": _group("cache", cache, cache_command),
        "db": _group("db", "Create or migrate the schema, and say where it stands.", db_command),
        "config": _group("config", "Look at the configuration.", config_command),
    }
    group = typer.main.get_command(app)
    assert isinstance(group, _Group)  # noqa: S101 - for the type checker
    group.commands = command  # type: ignore[assignment]  # nothing is ever added
    return group


_BEFORE_COLON = "_MODELCTL_COMPLETE_BEFORE"
# What means nothing to a shell.
_PLAIN = re.compile("[a-zA-Z0-9._/:@+][a-zA-Z0-9._/:@+-]*")


def _complete_id(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids that begin like this; none where the fleet cannot be asked."""
    return _ask_to_complete(ctx, incomplete, lambda fleet, start: fleet.complete(start))


def _complete_provider(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the providers that begin like this."""
    return _ask_to_complete(
        ctx, incomplete, lambda fleet, _: [of.provider for of in fleet.stats().providers]
    )


def _ask_to_complete(
    ctx: typer.Context, incomplete: str, ask: Callable[[Fleet, str], list[str]]
) -> list[str]:
    from modelctl.fleet.fleet import Fleet

    before = os.environ.get(_BEFORE_COLON, "")
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
        if name.startswith(start) and _PLAIN.fullmatch(name)
    ]


def _completes(*choices: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _complete_format(incomplete: str) -> list[str]:
    from modelctl.catalog.formats import CatalogFormat

    return _completes(*CatalogFormat)(incomplete)


def _join_words(environ: MutableMapping[str, str]) -> None:
    """Undo what bash does to ``hf:org/model`` and ``--provider=x``: it makes three words of each.

    It puts the answer in the place of what stands behind the last colon, so that is what is to be
    completed; what stands before it is remembered.
    """
    given = environ.get("COMP_WORDS", "")
    between = "\n" if "\n" in given else " "  # Typer's script has a line for each word
    words = given.split(between)
    number_of_it = environ.get("COMP_CWORD", "")
    if not number_of_it.isdecimal() or int(number_of_it) >= len(words):
        return
    place = at = int(number_of_it)
    joined: list[str] = []
    for number, word in enumerate(words):
        before = joined[-1] if joined else ""
        colons = len(joined) > 1 and (re.fullmatch(":+", word) or before.endswith(":"))
        equals = before.startswith("--") and (word == "=" or before.endswith("="))
        if colons or equals:
            joined[-1] += word
        else:
            joined.append(word)
        if number == place:
            at = len(joined) - 1
    if not joined[at].startswith("-"):
        before, colon, joined[at] = joined[at].rpartition(":")
        environ[_BEFORE_COLON] = before + colon
    environ["COMP_WORDS"], environ["COMP_CWORD"] = between.join(joined), str(at)


def _print_completion(arguments: Sequence[str]) -> bool:
    """Answer --show-completion SHELL, which Typer takes for the shell that it runs in."""
    option, _, shell = " ".join(arguments).replace("=", " ").partition(" ")
    if option not in ("--show-completion", "--install-completion") or not shell:
        return False
    from typer._completion_shared import Shells, get_completion_script, install

    known = [str(kind.value) for kind in Shells]
    if shell not in known:
        raise UsageError(f"no completion for '{shell}'", hint=f"one of: {', '.join(known)}")
    if option == "--install-completion":
        _, path = install(shell=shell, prog_name="modelctl")
        render.say(f"{shell} completion installed in {path}; it works in new shells")
        return True
    script = get_completion_script(
        prog_name="modelctl", complete_var="_MODELCTL_COMPLETE", shell=shell
    )
    render.write_text(script)
    return True


# Declared once, so that no two commands drift apart.
Id = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id of a model.", autocompletion=_complete_id),
]
NewId = Annotated[str, typer.Argument(metavar="ID", help="The id of a model.")]
Ids = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="The ids of models.", autocompletion=_complete_id),
]
AnOutput = Annotated[
    Output | None,
    typer.Option(
        "-o",
        "--output",
        help="How to print; default: a table on a terminal, tsv without a header in a pipe.",
    ),
]
Actor = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who acts; default MODELCTL_ACTOR, else user@host."),
]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Why; kept in the history and shown.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Only this provider's models.",
        autocompletion=_complete_provider,
    ),
]
Source = Annotated[str, typer.Argument(metavar="FILE|-", help="A file, or - for standard input.")]


@dataclass(slots=True)
class _Run:
    """What one command knows: its own options, and the configuration once it is read."""

    file: str | None = None
    debug: bool = False
    config: Config | None = None

    def load(self) -> Config:
        self.config = Config.load(self.file)
        return self.config

    def hide(self, text: str) -> str:
        """Hide the passwords of the configuration."""
        return self.config.hide(text) if self.config else text


def _print_version(wanted: bool) -> None:
    if wanted:
        render.write_line(f"modelctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="The configuration file to use.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Administer a fleet of LLM models kept as rows in a database."""
    ctx.obj.file, ctx.obj.debug = config, debug


class _Ended(BaseException):
    """SIGTERM or SIGHUP came; like KeyboardInterrupt, and no `except Exception` stops it."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _ending_children() -> Iterator[None]:
    """Unwind on SIGTERM and SIGHUP as on Ctrl-C, so that the commands of probes end with us.

    The first signal counts: no other one may interrupt the killing.
    """
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in usual}

    def end(number: int, _: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else _Ended(number)

    for number in before:  # not one that is ignored, as by nohup
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ── The boundary ────────────────────────────────────────────────────────────────────────────────


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error ends here."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    run = _Run()
    try:
        if _print_completion(arguments):
            return ExitCode.OK
        if os.environ.get("_MODELCTL_COMPLETE") == "complete_bash":
            _join_words(os.environ)
        code = program()(arguments, prog_name="modelctl", standalone_mode=False, obj=run)
        if code == ExitCode.INTERRUPTED:
            raise InterruptedError
        return int(code or ExitCode.OK)
    except ModelctlError as exc:
        return _report(exc, arguments, run)
    except _TYPER_USAGE as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":  # its message is the help itself
            render.say(*exc.format_message().splitlines())
            return ExitCode.USAGE
        hint = f"see: {exc.ctx.command_path} --help" if exc.ctx else None
        return _report(UsageError(exc.format_message(), hint=hint), arguments, run)
    except (KeyboardInterrupt, typer.Abort):
        return _report(InterruptedError(), arguments, run)
    except _Ended as exc:  # all is cleaned up: now end as the caller expects
        import signal

        code = _report(InterruptedError(), arguments, run)
        signal.signal(exc.number, signal.SIG_DFL)
        os.kill(os.getpid(), exc.number)
        return code
    except OSError as exc:  # no space left, too many open files: not a fault of ours
        return _report(ModelctlError(run.hide(str(exc))), arguments, run)
    except Exception as exc:
        # What Ctrl-C interrupts while a class is made, in an import, is reported as its error.
        if isinstance(exc.__cause__ or exc.__context__, KeyboardInterrupt):
            return _report(InterruptedError(), arguments, run)
        name = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        hint = "this is a bug; run again with --debug and report it"
        return _report(ModelctlError(run.hide(name), hint=hint), arguments, run)


# Typer carries Click inside and exports of its errors only this one's child.
_TYPER_USAGE: Any = typer.BadParameter.__base__


def run() -> int:
    """Run the command line as a process does, and return its exit code."""
    _complete_standard_streams()
    return main()


def _complete_standard_streams() -> None:
    """Stand in for streams that are closed, so that no file of ours gets their number.

    What is opened the wrong way round fails like a closed one. And ids are not limited to what
    the locale can write.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace"
        )


def _report(error: ModelctlError, arguments: Sequence[str], run: _Run) -> int:
    if run.debug and error.exit_code is not ExitCode.USAGE:
        import traceback

        render.say(*run.hide(traceback.format_exc()).splitlines())
    try:
        render.error(error, as_json=_asks_for_json(arguments))
    except ModelctlError as unwritable:
        render.say(f"error: {unwritable.message}")
    return error.exit_code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether -o json was asked for, even where the rest could not be understood.

    The last -o that names a format counts, wherever it stands; the value of another option is none.
    """
    group: Any = program()
    options: dict[str, Any] = {}
    wanted = ""
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        if not word.startswith("-"):
            group = getattr(group, "commands", {}).get(word, group)
            options = {name: param for param in group.params for name in param.opts}
            continue
        name, assigned, value = (
            word.partition("=") if word[:2] == "--" else (word[:2], "", word[2:])
        )
        output = name in ("-o", "--output")
        if not (assigned or value) and (output or not getattr(options.get(name), "is_flag", True)):
            value = next(words, "")
        if output and value in [*Output]:
            wanted = value
    return wanted == Output.JSON


@contextmanager
def _fleet(ctx: typer.Context, actor: str | None = None) -> Iterator[Fleet]:
    """The fleet of one command: one connection, warnings on stderr."""
    from modelctl.fleet.fleet import Fleet

    with Fleet(ctx.obj.load(), actor=actor, pool_size=1) as fleet:
        fleet.on_warning = lambda message: render.say(f"warning: {message}")
        yield fleet


def _for_people(output: Output | None) -> bool:
    return (output or render.default_output()) is Output.TABLE


def _write(result: object, shown: render.View, output: Output | None) -> None:
    render.write(result, shown, output or render.default_output())


def _exit_code(cache: CacheState) -> ExitCode:
    return ExitCode.STALE_CACHE if cache is CacheState.QUEUED else ExitCode.OK


def _changed(result: Changes, output: Output | None, same: str = "already") -> ExitCode:
    shown = render.changes_view(result, same=same)
    whole = {"changes": shown.items, "cache": result.cache, "dry_run": result.dry_run}
    _write(whole, shown, output)
    return _exit_code(result.cache)


@contextmanager
def _open(source: str) -> Iterator[BinaryIO]:
    """Open FILE|-; the system's errors inside of the block are those of reading it."""
    name = "standard input" if source == "-" else source
    try:
        with nullcontext(sys.stdin.buffer) if source == "-" else _open_file(source) as stream:
            yield stream
    except OSError as exc:
        raise UsageError(f"cannot read {name}: {exc.strerror}") from exc


def _open_file(name: str) -> BinaryIO:
    try:
        return open(name, "rb")
    except ValueError:  # NUL, or a lone surrogate that stands for no byte
        raise UsageError(f"'{name}' is no name of a file") from None


# ── The count ───────────────────────────────────────────────────────────────────────────────────


@command("count")
def count(
    ctx: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Count in the database, do not read the cache.")
    ] = False,
    strong: Annotated[
        bool,
        typer.Option("--strong", help="Right also against every committed change of others."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare cache and database; exit 6 when they differ."),
    ] = False,
    output: AnOutput = None,
) -> ExitCode:
    """Print how many models are active, and how that is known.

    The number comes from the cache, or fresh from the database. In a pipe it prints just the
    number.
    """
    with _fleet(ctx) as fleet:
        result = fleet.verify() if verify else fleet.count(fresh=fresh, strong=strong)
    if output is None and render.default_output() is Output.TSV:
        render.write_line(result.active)
    else:
        _write(result, render.view(result), output)
    if getattr(result, "match", True):
        return ExitCode.OK
    if output is not Output.JSON:
        render.say("warning: the cached count differs from the database")
    return ExitCode.STALE_CACHE


# ── Reads ───────────────────────────────────────────────────────────────────────────────────────


@command("list")
def list_models(
    ctx: typer.Context,
    status: Annotated[ModelStatus | None, typer.Option(help="Only models of this status.")] = None,
    provider: Provider = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="id, name, provider (by code points: A before a), status, failures or updated.",
            autocompletion=_completes("id", "name", "provider", "status", "failures", "updated"),
        ),
    ] = "id",
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N models; 0: no limit.")
    ] = 0,
    output: AnOutput = None,
) -> None:
    """Print the models."""
    with _fleet(ctx) as fleet:
        notes = [*map(describe, fleet.holds())] if _for_people(output) else []
        models = fleet.iter_models(status=status, provider=provider, sort=sort, limit=limit)
        _write(models, render.models_view(models, notes), output)


@command("show")
def show(ctx: typer.Context, model_id: Id, output: AnOutput = None) -> None:
    """Print one model: its status, since when, by whom and why.

    Also when it may come back, and what the next recover would do with it.
    """
    with _fleet(ctx) as fleet:
        model = fleet.show(model_id)
    _write(model, render.model_view(model), output)


@command("stats")
def stats(ctx: typer.Context, output: AnOutput = None) -> None:
    """Print totals by status and provider, from the database."""
    with _fleet(ctx) as fleet:
        result = fleet.stats()
    _write(result, render.view(result), output)


@command("leaderboard")
def leaderboard(
    ctx: typer.Context,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="How many models, 10 by default; 0: all of them."),
    ] = None,
    provider: Provider = None,
    untested: Annotated[
        bool, typer.Option("--untested", help="Also the models without a call, last.")
    ] = False,
    output: AnOutput = None,
) -> None:
    """Print the active models with the best success rates.

    Ranked by the lower bound of the rate (95 %), so that 1 of 1 is less than 420 of 421.
    """
    with _fleet(ctx) as fleet:
        # One more than is shown, to know whether there are more.
        most = (10 if top is None else top) or None
        more = most and most + 1
        found = fleet.leaderboard(top=more, provider=provider, untested=untested)
    entries = found[:most]
    _write(entries, render.leaderboard_view(entries), output)
    if top is None and len(found) > len(entries):
        render.say(f"note: the best {len(entries)} models, and there are more: --top 0 shows all")


@command("events")
def events(
    ctx: typer.Context,
    model_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Of one model.", autocompletion=_complete_id),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|TIME",
            help="Not older than this: 90s, 15m, 2h30m, 2d, 1w; or 08:00, 2026-12-01 (local time).",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most N events; 0: no limit.")
    ] = 100,
    output: AnOutput = None,
) -> None:
    """Print the history, newest first."""
    start = None if since is None or _is_duration(since) else _moment(since, past=True)
    with _fleet(ctx) as fleet:
        ago = start.at if start else _duration(since)
        found = _Cut(fleet.iter_events(model_id, since=ago, limit=limit and limit + 1), limit)
        _write(found, render.events_view(found), output)
    if start:
        start.say("since")
    if found.more:
        render.say(
            f"note: stopped at the newest {numbered(limit, 'event')}, and there are more:"
            " --limit 0 shows all, --since 2d those of two days"
        )


class _Cut(Iterator[_Item]):
    """The first *limit* items (0: all), and whether there are *more*."""

    def __init__(self, items: Iterator[_Item], limit: int) -> None:
        self._items, self._left, self._limited = items, limit, bool(limit)
        self.more = False

    def __next__(self) -> _Item:
        if self._limited and not self._left:
            self.more = self.more or next(self._items, None) is not None
            raise StopIteration
        self._left -= 1
        return next(self._items)


def _is_duration(text: str) -> bool:
    """Whether a number with a unit is meant, and not a time."""
    return text[:1].isdigit() and text[-1] in "wdhms"


def _duration(text: str | None) -> float | None:
    return None if text is None else parse_duration(text)


@dataclass(slots=True, frozen=True)
class _Moment:
    """A time that was given; *local*: without its zone, so that the local one was meant."""

    at: datetime
    local: bool

    def say(self, what: str) -> None:
        """Say how a time without a zone was understood."""
        if self.local:
            render.say(f"{what} {self.at.isoformat(timespec='seconds')} (local time)")


def _moment(text: str | None, *, past: bool = False) -> _Moment | None:
    """Read a time: with a zone, or else in the local one; of a time of day the next, or the last."""
    from datetime import datetime, timedelta

    if text is None:
        return None
    try:
        clock = re.fullmatch("([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?", text)
        if clock is None:
            given = datetime.fromisoformat(text)
            return _Moment(given, False) if given.tzinfo else _Moment(given.astimezone(), True)
        now = datetime.now()
        hour, minute, second = map(int, clock.groups(default="0"))
        at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        if past != (at <= now):
            at += timedelta(days=-1 if past else 1)
        return _Moment(at.astimezone(), True)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"'{text}' is not a time",
            hint="write it like 08:00, 2026-12-01, 2026-12-01T08:00 or 2026-12-01T08:00Z",
        ) from None


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────


@command("add")
def add(
    ctx: typer.Context,
    model_id: NewId,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="The name to display.")] = None,
    provider: Annotated[
        str,
        typer.Option(metavar="NAME", help="Who offers it.", autocompletion=_complete_provider),
    ] = "",
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Add one model, active."""
    with _fleet(ctx, actor) as fleet:
        return _changed(fleet.add(model_id, name=name, provider=provider), output)


@command("remove")
def remove(
    ctx: typer.Context,
    model_ids: Ids,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Delete models; their history stays. All or none.

    A model that is gone already is no error, if the history knows it.
    """
    with _fleet(ctx, actor) as fleet:
        asks = not (yes or dry_run)
        if asks:
            _confirm_removal(fleet, model_ids)
        result = fleet.remove(*model_ids, reason=reason, dry_run=dry_run)
        if not asks:
            _warn_of_look_alikes(fleet, model_ids)
        return _changed(result, output)


def _warn_of_look_alikes(fleet: Fleet, model_ids: Sequence[str]) -> None:
    """Say so where the fleet has another model that a person would take for one of these."""
    with suppress(ModelctlError):  # the change is what was asked for
        pairs = fleet.look_alikes(model_ids)
        for model_id, other in pairs[:10]:
            render.say(f"warning: '{model_id}' looks like another model, '{other}'")
        if len(pairs) > 10:
            render.say(f"warning: and {len(pairs) - 10} more")


def _confirm_removal(fleet: Fleet, model_ids: Sequence[str]) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            "remove asks first, and nobody can be asked here; nothing was removed",
            hint="say --yes",
        )
    there = [change for change in fleet.remove(*model_ids, dry_run=True).changes if change.changed]
    if not there:
        return
    for change in there:
        render.say(f"{change.id} ({change.before})")
    _warn_of_look_alikes(fleet, model_ids)
    if not render.ask("Remove for good? [y/N] "):
        raise RefusedError("not confirmed; nothing was removed")


@command("disable")
def disable(
    ctx: typer.Context,
    model_ids: Ids,
    reason: Reason = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="DURATION", help="For so long only: 90s, 15m, 2h30m, 2d, 1w."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Until then only: 08:00 or 2026-12-01T08:00 (local time), 2026-12-01T08:00Z.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also below the floor of recovery.min_active, and give an end to what has none.",
        ),
    ] = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Switch models off; nothing automatic brings them back. All or none.

    Unless you say for how long: then recover brings them back when that is over. A model that is
    disabled without an end keeps that.
    """
    end = _moment(until)
    with _fleet(ctx, actor) as fleet:
        result = fleet.disable(
            *model_ids,
            reason=reason,
            duration=_duration(duration),
            until=end.at if end else None,
            force=force,
            dry_run=dry_run,
        )
        if end:
            end.say("until")
        _warn_of_look_alikes(fleet, model_ids)
        return _changed(result, output)


@command("enable")
def enable(
    ctx: typer.Context,
    model_ids: Ids,
    reason: Reason = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Switch models on, as healthy ones. All or none.

    A model that is on already starts afresh: no failures in a row, no ejections.
    """
    with _fleet(ctx, actor) as fleet:
        result = fleet.enable(*model_ids, reason=reason, dry_run=dry_run)
        _warn_of_look_alikes(fleet, model_ids)
        return _changed(result, output)


@command("record-success")
def record_success(
    ctx: typer.Context, model_id: Id, actor: Actor = None, output: AnOutput = None
) -> ExitCode:
    """Record a success; an auto-disabled model comes back."""
    with _fleet(ctx, actor) as fleet:
        return _changed(fleet.record_success(model_id), output, same="still")


@command("record-failure")
def record_failure(
    ctx: typer.Context,
    model_id: Id,
    failure_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="rate-limit, timeout, server-error, network-error, parse-error, client-error "
            "or unknown (the default).",
            autocompletion=_completes(*FailureType),
        ),
    ] = None,
    http_status: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tell the type by an HTTP status, 400-599; of 499, the caller went away, nothing "
            "is recorded.",
        ),
    ] = None,
    reason: Reason = None,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Record a failure; too many in a row switch a model off.

    Only parse-error and client-error count, and the 5th in a row is one too many, unless the
    configuration says otherwise.
    """
    from modelctl.health import failure_type_of_status

    if failure_type is not None and http_status is not None:
        raise UsageError("give either --type or --http-status, not both")
    kind: str | None = failure_type or "unknown"
    if http_status is not None:
        kind = failure_type_of_status(http_status)
    with _fleet(ctx, actor) as fleet:
        result = fleet.record_failure(model_id, kind, reason=reason)
        return _changed(result, output, same="still")


@command("record-batch")
def record_batch(
    ctx: typer.Context,
    source: Source,
    unknown: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="For an id that names no model: fail (record nothing), or skip it and go on.",
            autocompletion=_completes("fail", "skip"),
        ),
    ] = "fail",
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Record JSON Lines of outcomes, all of them or none.

    A line: {"id": ..., "outcome": "success"|"failure", "type": ..., "reason": ...}
    """
    from modelctl.health import read_outcomes

    with _fleet(ctx, actor) as fleet, _open(source) as stream:
        outcomes = read_outcomes(stream, fleet.config.health.reason_length)
        with render.progress("recording") as progress:
            result = fleet.record_batch(outcomes, unknown=unknown, progress=progress)
    if result.skipped and output is not Output.JSON:
        ids = ", ".join(f"'{model_id}'" for model_id in result.unknown[:_NAMED])
        more = len(result.unknown) - _NAMED
        ids += f" and {more} more (-o json names all)" if more > 0 else ""
        what = f"{numbered(result.skipped, 'outcome')} of {numbered(len(result.unknown), 'unknown id')}"
        render.say(f"warning: skipped {what}: {ids}")
    _write(result, render.view(result), output)
    return _exit_code(result.cache)


@command("recover")
def recover(
    ctx: typer.Context,
    dry_run: DryRun = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Bring back at most N; 0: no limit; default: recovery.limit."
        ),
    ] = None,
    cooldown: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="For this run: 90s, 15m, 2h30m, 2d, 1w."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Ask each model first, one small request; costs money."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only look: exit 1 if recover has not run as expected."),
    ] = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Bring models back whose cooldown, or timed disable, is over.

    Meant for cron. In a pipe it prints one line for each model that came back, and else nothing.
    """
    with _ending_children() if probe else nullcontext(), _fleet(ctx, actor) as fleet:
        if check:
            return _check_recover(fleet, output)
        with render.progress("asked and recovered" if probe else "recovered") as progress:
            result = fleet.recover(
                limit=limit,
                cooldown=_duration(cooldown),
                probe=probe,
                dry_run=dry_run,
                progress=progress,
            )
        if result.busy:
            render.say("another recover is running")
        if probe and dry_run and output is not Output.JSON:
            render.say(f"{numbered(result.requests, 'request')} would be made")
        if output is None and not dry_run and render.default_output() is Output.TSV:
            render.write_lines(result.recovered)
        else:
            _write(result, render.view(result), output)
    return _exit_code(result.cache)


def _check_recover(fleet: Fleet, output: Output | None) -> ExitCode:
    if not fleet.config.recovery.expect_every:
        raise InvalidConfigError(
            "recovery.expect_every is not set, so there is nothing to expect",
            hint='set it to some three runs of your cron job, as in expect_every = "15m"',
        )
    last = fleet.last_recover()
    _write(last, render.view(last), output)
    if not last.overdue:
        return ExitCode.OK
    if output is not Output.JSON:
        ahead = last.seconds_ago is not None and last.seconds_ago < 0
        render.say(
            "error: the last recover finished in the future: the database's clock was set back"
            if ahead
            else "error: recover has not finished for longer than recovery.expect_every"
        )
    return ExitCode.UNEXPECTED


@command("probe")
def probe(
    ctx: typer.Context,
    model_ids: Ids,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Ask models that are off whether they work; exit 1 if one does not, or could not be asked.

    One small request each, which costs money. Nothing comes back by that; a model that fails
    starts its cooldown again.
    """
    with (
        _ending_children(),
        _fleet(ctx, actor) as fleet,
        render.progress("asked") as progress,
    ):
        result = fleet.probe(*model_ids, dry_run=dry_run, progress=progress)
    shown = render.view(result)
    whole = {"answers": shown.items, "requests": result.requests, "dry_run": result.dry_run}
    _write(whole, shown, output)
    if dry_run and output is not Output.JSON:
        render.say(f"{numbered(result.requests, 'request')} would be made")
    well = all(answer.healthy for answer in result.answers)
    return ExitCode.OK if well else ExitCode.UNEXPECTED


@command("pause")
def pause(
    ctx: typer.Context,
    duration: Annotated[
        str,
        typer.Option("--for", metavar="DURATION", help="For how long: 90s, 15m, 2h30m, 2d, 1w."),
    ],
    provider: Provider = None,
    reason: Reason = None,
    actor: Actor = None,
    output: AnOutput = None,
) -> None:
    """Stop all automatic switching, off and on; it ends by itself.

    Neither the health rule nor recover changes a status meanwhile; people still can.
    """
    with _fleet(ctx, actor) as fleet:
        result = fleet.pause(parse_duration(duration), provider=provider, reason=reason)
    _write(result, render.view(result), output)


@command("resume")
def resume(
    ctx: typer.Context,
    provider: Provider = None,
    reason: Reason = None,
    actor: Actor = None,
    output: AnOutput = None,
) -> None:
    """End a pause before its time."""
    with _fleet(ctx, actor) as fleet:
        result = fleet.resume(provider=provider, reason=reason)
        others = [hold for hold in fleet.holds() if hold.failure_type is None]
    _write(result, render.view(result), output)
    render.note(*map(describe, others))


@command("import")
def import_models(
    ctx: typer.Context,
    source: Source,
    catalog_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, litellm, litellm-proxy, openai, openrouter, anthropic, gemini, cohere, "
            "ollama, lmstudio, cloudflare, newapi, bedrock, fireworks, huggingface or providers; "
            "default: told by the shape.",
            autocompletion=_complete_format,
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of all the models, whatever the catalogue says."),
    ] = None,
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="For a model whose name or provider differs: update, skip or fail.",
            autocompletion=_completes("update", "skip", "fail"),
        ),
    ] = "update",
    partial: Annotated[
        bool, typer.Option("--partial", help="Take one page of a list that has more pages.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing if an entry is not a model.")
    ] = False,
    dry_run: DryRun = False,
    actor: Actor = None,
    output: AnOutput = None,
) -> ExitCode:
    """Add and update models from a catalogue, in one transaction. Never a status.

    One JSON document of at most 16 MiB, or JSON Lines, of any length. What is not a model is
    named on stderr, and the others are taken.
    """
    with (
        _fleet(ctx, actor) as fleet,
        _open(source) as stream,
        render.progress("imported") as progress,
    ):
        result = fleet.import_models(
            stream,
            format=catalog_format,
            provider=provider,
            on_conflict=on_conflict,
            partial=partial,
            strict=strict,
            dry_run=dry_run,
            progress=progress,
        )
    if output is not Output.JSON:
        for note in result.notes:
            render.say(f"note: {note}")
        if result.ignored_status:
            what = numbered(result.ignored_status, "status").replace("statuss", "statuses")
            were = "was" if result.ignored_status == 1 else "were"
            render.say(
                f"note: {what} {were} ignored (on in the fleet and off in the catalogue, or the other"
                " way round): import never changes a status; use enable or disable"
                " (restore, which will bring a whole fleet back, is not there yet)"
            )
        for rejection in result.rejected:
            render.say(f"rejected: {rejection.id}: {rejection.why}")
    _write(result, render.view(result), output)
    return _exit_code(result.cache)


# ── The cache ───────────────────────────────────────────────────────────────────────────────────


@cache_command("show")
def cache_show(ctx: typer.Context, output: AnOutput = None) -> None:
    """Print the cache's keys and what is queued for delivery."""
    with _fleet(ctx) as fleet:
        result = fleet.cache_report()
    _write(result, render.view(result), output)


@cache_command("clear")
def cache_clear(ctx: typer.Context, output: AnOutput = None) -> None:
    """Invalidate now, whether or not something is queued."""
    with _fleet(ctx) as fleet:
        result = fleet.clear_cache()
    _write(result, render.view(result), output)


@cache_command("drain")
def cache_drain(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on, once a second, until interrupted.")
    ] = False,
    output: AnOutput = None,
) -> None:
    """Deliver the queued invalidations."""
    if follow and output is Output.JSON:
        raise UsageError("--follow prints more than one JSON value", hint="say -o jsonl")
    with _fleet(ctx) as fleet:
        if not follow:
            result = fleet.drain()
            _write(result, render.view(result), output)
            return
        trouble = None
        while True:
            try:
                result = fleet.drain()
                if result.delivered:
                    _write(result, render.view(result), output)
                trouble = None
            except (StaleCacheError, DatabaseUnavailableError) as exc:
                if exc.code != trouble:  # once, not once a second
                    render.say(f"warning: {exc.message}; trying again every second")
                trouble = exc.code
            time.sleep(1)


# ── Schema, configuration, doctor ───────────────────────────────────────────────────────────────


@db_command("upgrade")
def db_upgrade(ctx: typer.Context, dry_run: DryRun = False, output: AnOutput = None) -> ExitCode:
    """Create or repair the schema; adopt a table "models"."""
    with _fleet(ctx) as fleet:
        result = fleet.upgrade(dry_run=dry_run)
    _write(result, render.view(result), output)
    if output is not Output.JSON:
        _say_what_differs(result)
    return ExitCode.INVALID_CONFIG if result.obstacles else ExitCode.OK


@db_command("status")
def db_status(ctx: typer.Context, output: AnOutput = None) -> ExitCode:
    """Print where the schema stands and what differs; exit 7 if it needs an upgrade."""
    with _fleet(ctx) as fleet:
        result = fleet.schema_status()
    _write(result, render.view(result), output)
    if result.up_to_date:
        return ExitCode.OK
    if output is not Output.JSON:
        _say_what_differs(result)
        render.say("hint: run: modelctl db upgrade")
    return ExitCode.MISSING_SCHEMA


def _say_what_differs(result: SchemaStatus) -> None:
    kinds = {
        "in the way": result.obstacles,
        "to do" if result.dry_run else "differs": result.findings,
        "done": result.repaired,
    }
    for kind, lines in kinds.items():
        for line in lines:
            render.say(f"{kind}: {line}")


@db_command("detach")
def db_detach(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: AnOutput = None,
) -> None:
    """Take triggers and functions off; tables and columns stay."""
    with _fleet(ctx) as fleet:
        if not yes:
            _confirm_detaching()
        removed = fleet.detach()
    _write({"removed": removed}, render.removed_view(removed), output)


def _confirm_detaching() -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            "detach asks first, and nobody can be asked here; nothing was removed",
            hint="say --yes",
        )
    render.say("Changes by other programs will reach the cached count only when it expires.")
    if not render.ask("Take modelctl's triggers off? [y/N] "):
        raise RefusedError("not confirmed; nothing was removed")


@config_command("show")
def config_show(ctx: typer.Context, output: AnOutput = None) -> None:
    """Print every value and where it came from; no passwords."""
    from modelctl.config.settings import settings

    config = ctx.obj.load()
    rows = settings(config)
    result = {"file": str(config.file) if config.file else None, "settings": rows}
    _write(result, render.settings_view(rows, config.file), output)


@command("doctor")
def doctor(
    ctx: typer.Context,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Also compare cache and database, twice, 5 s apart."),
    ] = False,
    output: AnOutput = None,
) -> ExitCode:
    """Look whether all is well; exit 1 if something is wrong.

    At the database, its schema, its triggers and rows, the cache, its queue, and the last recover.
    """
    with _fleet(ctx) as fleet:
        result = fleet.doctor(audit=audit)
    shown = render.view(result)
    _write({"ok": result.ok, "checks": shown.items, "audit": result.audit}, shown, output)
    return ExitCode.OK if result.ok else ExitCode.UNEXPECTED
