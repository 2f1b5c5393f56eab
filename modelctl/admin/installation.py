"""The commands of the installation: db, config, completion, doctor."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelctl import streams
from modelctl.arguments.completion import completes
from modelctl.arguments.invocation import open_fleet, print_result, print_view
from modelctl.arguments.options import DryRun, Output, Yes
from modelctl.errors import CONTROLS, ExitCode, ModelctlError, RefusedError, UsageError
from modelctl.output.formats import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelctl.migrations.results import SchemaStatus
    from modelctl.removal.results import Uninstalled


def db_upgrade(ctx: typer.Context, dry_run: DryRun = False, output: Output = None) -> ExitCode:
    """Create or repair the schema; adopt a table "models".

    With --dry-run it prints the SQL that it would execute, and says what it adopts.
    """
    with open_fleet(ctx) as fleet:
        on_sqlite = fleet.config.sqlite_path is not None
        result = fleet.upgrade(dry_run=dry_run)
    if output is None and result.sql:
        _print_script(result.sql, on_sqlite)
    else:
        print_result(ctx, result, output)
    if output is not OutputFormat.JSON:
        _say_differences(result)
    return ExitCode.INVALID_CONFIG if result.obstacles else ExitCode.OK


def db_status(ctx: typer.Context, output: Output = None) -> ExitCode:
    """Print the state of the schema and what differs; exit 7 if it needs an upgrade."""
    with open_fleet(ctx) as fleet:
        result = fleet.schema_status()
    print_result(ctx, result, output)
    if result.up_to_date:
        return ExitCode.OK
    if output is not OutputFormat.JSON:
        _say_differences(result)
        streams.say("hint: run: modelctl db upgrade")
    return ExitCode.MISSING_SCHEMA


def _say_differences(result: SchemaStatus) -> None:
    """Say what differs, what was repaired, and what only a person can change."""
    from modelctl.migrations.plan import NOTHING_INSTALLED

    repaired = result.repaired
    if result.dry_run and result.findings:
        streams.say(result.summary)
    elif NOTHING_INSTALLED in repaired:  # then the summary has all that was missing
        streams.say(result.summary)
        repaired = repaired[repaired.index(NOTHING_INSTALLED) + 1 :]
    kinds = {
        "in the way": result.obstacles,
        "differs": result.findings,
        "repaired": repaired,
    }
    for kind, lines in kinds.items():
        for line in lines:
            streams.say(f"{kind}: {line}")


def db_schema(
    ctx: typer.Context,
    tool: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="TOOL",
            help="drizzle, prisma, sqlalchemy (also for Alembic) or sql. On SQLite only sql.",
            autocompletion=completes("drizzle", "prisma", "sqlalchemy", "sql"),
        ),
    ],
) -> None:
    """Print modelctl's columns and indexes on models, for the schema file of an application.

    A tool that brings a database to what the application declares then finds nothing to do.
    """
    with open_fleet(ctx) as fleet:
        streams.write([_printable(fleet.declarations(tool))])


def _print_script(statements: Iterable[str], on_sqlite: bool) -> None:
    """Print SQL for `psql` or `sqlite3`: one transaction."""
    # All programs that need the table wait behind a transaction that waits for its lock.
    begin = ("BEGIN",) if on_sqlite else ("BEGIN", "SET LOCAL lock_timeout = '2s'")
    streams.write([f"{_printable(sql).rstrip(';')};\n" for sql in (*begin, *statements, "COMMIT")])


def _printable(sql: str) -> str:
    """Return SQL with control characters in names as PostgreSQL's escapes: it may go to a terminal."""

    def escape(found: re.Match[str]) -> str:
        name: str = found[0]
        if not CONTROLS.search(name):
            return name
        escaped = CONTROLS.sub(lambda m: f"\\{ord(m[0]):04x}", name.replace("\\", "\\\\"))
        return f"U&{escaped}"

    return re.sub(r'"(?:[^"\n]|"")*"', escape, sql)


def db_uninstall(
    ctx: typer.Context, dry_run: DryRun = False, yes: Yes = False, output: Output = None
) -> ExitCode:
    """Remove all that modelctl has made: triggers, tables, and the columns that it added to models.

    The table models stays, with its rows and all other columns. Refused (exit 8) while invalidations
    are queued. With --dry-run it prints the SQL that it would execute.
    """
    with open_fleet(ctx) as fleet:
        on_sqlite = fleet.config.sqlite_path is not None
        if dry_run or not yes:
            result = fleet.uninstall(dry_run=True)
        if not dry_run:
            if not yes and result.removed:
                _confirm_uninstall(result)
            result = fleet.uninstall()
    if output is None and result.sql:
        _print_script(result.sql, on_sqlite)
    else:
        print_result(ctx, result, output)
    if output is not OutputFormat.JSON:
        if not (result.removed or result.refused):
            streams.say("nothing of modelctl is in this database")
        for kind, lines in {"in the way": result.refused, "stays": result.kept}.items():
            for line in lines:
                streams.say(f"{kind}: {line}")
    return ExitCode.REFUSED if result.refused else ExitCode.OK


def _confirm_uninstall(planned: Uninstalled) -> None:
    if not streams.can_ask():
        raise RefusedError(
            "uninstall asks first, and nobody can be asked here; nothing was removed",
            hint="look at it with --dry-run, then use --yes",
        )
    streams.say(*(f"removes: {part}" for part in planned.removed))
    streams.say(*(f"stays: {part}" for part in planned.kept))
    if not streams.ask("Remove modelctl, with its history? [y/N] "):
        raise RefusedError("not confirmed; nothing was removed")


def db_detach(ctx: typer.Context, yes: Yes = False, output: Output = None) -> None:
    """Remove modelctl's triggers and functions for a time; tables and columns stay.

    `db upgrade` puts them back. To remove everything, use `db uninstall`.
    """
    from modelctl.views.upkeep import removed_view

    with open_fleet(ctx) as fleet:
        if not yes:
            _confirm_detach()
        removed = fleet.detach()
    print_view(ctx, removed_view(removed), output)


def _confirm_detach() -> None:
    if not streams.can_ask():
        raise RefusedError(
            "detach asks first, and nobody can be asked here; nothing was removed",
            hint="use --yes",
        )
    streams.say("Changes by other programs will reach the cached count only when it expires.")
    if not streams.ask("Remove modelctl's triggers? [y/N] "):
        raise RefusedError("not confirmed; nothing was removed")


def config_show(ctx: typer.Context, output: Output = None) -> None:
    """Print every setting and where it came from; passwords are hidden."""
    from modelctl.config.settings import settings
    from modelctl.views.upkeep import settings_view

    config = ctx.obj.load_config()
    file = str(config.file) if config.file else None
    print_view(ctx, settings_view(settings(config), file), output)


def config_example(
    cron: Annotated[bool, typer.Option("--cron", help="Print a crontab instead.")] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print the units for systemd instead.")
    ] = False,
    unit: Annotated[
        str | None,
        typer.Argument(metavar="[UNIT]", help="With --systemd: print only this unit."),
    ] = None,
) -> None:
    """Print a configuration file with every key, its default and its environment variable."""
    if cron and systemd:
        raise UsageError("--cron and --systemd are two examples", hint="ask for one of them")
    if unit and not systemd:
        raise UsageError(f"unexpected argument: {unit}", hint="a unit is named after --systemd")
    package = Path(__file__).parent.parent
    data = package / "data"  # the wheel has copies; in a checkout they are beside the package
    root = data if data.is_dir() else package.parent
    if systemd:
        streams.write([_units(root / "examples" / "systemd", unit)])
    else:
        name = "examples/crontab" if cron else "config.example.toml"
        streams.write([(root / name).read_text(encoding="utf-8")])


class Shell(StrEnum):
    """The shells for which there is a completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script that completes commands, options and ids in a shell.

    It works in new shells, once the file of your shell has its line:

    ~/.bashrc: source <(modelctl completion bash)

    ~/.zshrc: source <(modelctl completion zsh)

    ~/.config/fish/completions/modelctl.fish: modelctl completion fish | source
    """
    from modelctl.arguments.shell_scripts import SCRIPTS

    streams.write([SCRIPTS[shell]])


def _units(folder: Path, wanted: str | None) -> str:
    """Return one unit, or all of them, each below its name as `systemctl cat` prints them."""
    units = {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}
    if wanted is None:
        shown = [f"# /etc/systemd/system/{name}\n{text}" for name, text in units.items()]
        return "\n".join(shown)
    if wanted not in units:
        raise UsageError(f"there is no unit '{wanted}'", hint=f"one of: {', '.join(units)}")
    return units[wanted]


def doctor(
    ctx: typer.Context,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Also compare cache and database, twice, 5 s apart."),
    ] = False,
    nagios: Annotated[
        bool,
        typer.Option(
            "--nagios",
            help="Print one line; exit 0 ok, 1 warning, 2 critical, 3 unknown, as Nagios expects.",
        ),
    ] = False,
    output: Output = None,
) -> int:
    """Check that all is well; exit 1 if something is wrong.

    Checks the database, its schema, its triggers and rows, the cache, its queue, and when recover
    last ran.
    """
    if nagios:
        if output:
            raise UsageError("--nagios has a format of its own", hint="use it without -o")
        code, line = _check_for_nagios(ctx, audit)
        streams.write([f"{line}\n"])
        return code
    with open_fleet(ctx) as fleet:
        result = fleet.doctor(audit=audit)
    print_result(ctx, result, output)
    return ExitCode.OK if result.ok else ExitCode.UNEXPECTED


def _check_for_nagios(ctx: typer.Context, audit: bool) -> tuple[int, str]:
    """Return what `nagios_line` does. Our exit codes mean other things to Nagios, so no error leaves."""
    from modelctl.output.nagios import nagios_line, unknown_line

    try:
        with open_fleet(ctx) as fleet:
            return nagios_line(fleet.doctor(audit=audit))
    except ModelctlError as exc:
        return unknown_line(f"{exc.message}; {exc.hint}" if exc.hint else exc.message)
    except Exception as exc:
        return unknown_line(ctx.obj.hide_passwords(f"{type(exc).__name__}: {exc}"))
