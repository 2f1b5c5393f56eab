"""A command starts fast: it loads only what it needs, and Ctrl-C is quiet from the first line on."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelctl
from tests import ROOT, commands
from tests.commands import make_fleet

HEAVY = {"sqlalchemy", "redis", "psycopg", "rich"}

LOADED = """
import json, sys
from modelctl.cli.main import main
try:
    code = main(sys.argv[1:])
finally:
    print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def loaded(*arguments: str) -> set[str]:
    """Run a command in a pipe and return the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=commands.SECONDS,
        check=False,
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize("line", ["--help", "--version", "count --help", "db --help"])
def test_help_is_light(line: str) -> None:
    """Help and version import no driver, no Rich, no migrations and no TOML."""
    modules = loaded(*line.split())
    assert not modules & {*HEAVY, "tomllib", "sqlite3", "asyncio", "ssl"}


INTERRUPTED = """
import builtins, os, signal, sys
from modelctl.__main__ import run

usual, place = builtins.__import__, sys.argv.pop(1)

def interrupting(name, *arguments, **keywords):
    if name == place:
        os.kill(os.getpid(), signal.SIGINT)
    return usual(name, *arguments, **keywords)

builtins.__import__ = interrupting
run()
"""


@pytest.mark.parametrize(
    "place",
    ["signal", "typer", "typer.core", "modelctl.errors", "modelctl.fleet.fleet", "sqlalchemy"],
)
def test_interrupt_during_imports(place: str) -> None:
    """Ctrl-C while modules are loaded, at the start or in a command, is 130 without a traceback."""
    make_fleet()
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, place, "list"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=commands.SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr in (b"", b"error: Interrupted; what was not committed is not done.\n")


def test_interrupt_before_the_program_runs() -> None:
    """Ctrl-C between the load of the entry point and the call of it is 130 without a traceback."""
    code = "import modelctl.__main__, os; os.kill(os.getpid(), 2); import time; time.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_importing_the_package_loads_nothing() -> None:
    """The name of the package alone costs nothing, so that the program begins at once."""
    code = (
        "import sys; before = set(sys.modules); import modelctl; print(set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, check=True, cwd=ROOT
    )
    assert done.stdout.decode().strip() in (
        "{'modelctl'}",
        "{'modelctl', '__future__'}",
        "{'__future__', 'modelctl'}",
    )


def test_a_command_loads_only_the_file_of_its_subject() -> None:
    """The commands of other subjects are not imported, and without a table neither are the views."""
    make_fleet()
    modules = loaded("count")
    subjects = {name for name in modules if name.startswith("modelctl.commands.")}
    assert subjects == {"modelctl.commands.table", "modelctl.commands.count"}
    looks = {name for name in modules if name.startswith(("modelctl.output.", "modelctl.views."))}
    assert looks == {"modelctl.output.formats"}


def test_cached_count_is_light() -> None:
    """A cached count on SQLite needs the standard library alone."""
    make_fleet()
    assert commands.run("count").out == "2\n"
    modules = loaded("count")
    assert not modules & {
        *HEAVY,
        "tomllib",
        "asyncio",
        "ssl",
        "modelctl.models.reads",
        "modelctl.catalog.parse",
    }


def test_cached_count_from_redis_is_light(
    pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that Redis holds needs neither a Redis client nor a database driver."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    assert commands.run("count").out == "0\n"
    modules = loaded("count")
    assert not modules & {*HEAVY, "tomllib", "modelctl.models.reads"}


def test_a_list_needs_no_redis_and_no_rich() -> None:
    """In a pipe, without a Redis, a list loads neither rich nor redis."""
    make_fleet()
    assert not loaded("list") & (HEAVY - {"sqlalchemy"})


def test_the_package_is_light() -> None:
    """`import modelctl` costs nothing, and all its names can be had."""
    code = "import sys, modelctl; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(said.stdout.split())
    assert not modules & {*HEAVY, "typer", "click", "sqlite3", "tomllib"}
    assert {name for name in modules if name.startswith("modelctl.")} == set()
    for name in {*dir(modelctl)} - {"__version__"}:
        assert getattr(modelctl, name).__module__.startswith("modelctl.")
    assert re.fullmatch(r"\d+\.\d+\.\d+", modelctl.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = modelctl.nonsense  # type: ignore[attr-defined]  # type checkers know that, too


def test_type_checkers_see_the_same_names() -> None:
    """The names that a type checker sees in the package are the names that it has, with their modules."""
    stub = ast.parse(Path(modelctl.__file__).with_suffix(".pyi").read_text())
    told = {
        name.asname: statement.module
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
    starred: dict[str, type] = {}
    exec("from modelctl import *", starred)  # noqa: S102 - all names, as a program gets them
    del starred["__builtins__"]
    assert {name: value.__module__ for name, value in starred.items()} == told


def test_module_and_script_are_one_program() -> None:
    """`python -m modelctl` and `modelctl` are the same."""
    script = Path(sys.executable).with_name("modelctl")
    printed = {
        subprocess.run([*program, "--help"], capture_output=True, check=True).stdout
        for program in ([script], commands.PROGRAM)
    }
    assert len(printed) == 1


def test_readme_names_every_command() -> None:
    """Every command of the program is in the README's table, as it is typed."""
    table = (ROOT / "README.md").read_text().partition("## The commands")[2].partition("\n## ")[0]
    names = [" ".join(words) for words in commands.commands()]
    assert [name for name in names if f"`{name}`" not in table] == []
