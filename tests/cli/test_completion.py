"""A shell that asks for completions gets commands, options and ids, and never an error."""

from __future__ import annotations

import os
import re
import shutil
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import pytest

from modelctl.arguments.shell_scripts import SCRIPTS
from modelctl.catalog_format import CatalogFormat
from modelctl.model import FailureType, ModelStatus
from modelctl.models.reads import SORT_KEYS
from tests.commands import PROGRAM, SECONDS, Cli, Result, add, make_fleet, run
from tests.servers import silent_server

WORDS = {
    "ids": ("show acme/o", ["acme/off", "acme/one"]),
    "id with a colon": ("show hf : org/m", ["org/model:free", "org/model:paid"]),
    "id right behind a colon": ("show hf :", ["org/model:free", "org/model:paid"]),
    "id with two colons": ("show hf : org/model : f", ["free"]),
    "one of several ids": ("disable acme/one hf : o", ["org/model:free", "org/model:paid"]),
    "events": ("events acme/t", ["acme/two"]),
    "providers": ("list --provider ac", ["acme"]),
    "provider behind =": ("list --provider = o", ["other"]),
    "provider of a new model": ("add x --provider o", ["other"]),
    "statuses": ("list --status ", [*ModelStatus]),
    "tags": ("list --tag ", ["eu", "prod"]),
    "sort keys": ("list --sort ", [*SORT_KEYS]),
    "types": ("record-failure x --type ", [*FailureType]),
    "formats": ("import x --format ", [*CatalogFormat]),
    "policies": ("import x --on-conflict s", ["skip"]),
    "outputs": ("list -o js", ["json", "jsonl"]),
    "commands": ("d", ["db", "disable", "doctor"]),
    "commands of a group": ("db st", ["status"]),
    "options": ("list --s", ["--sort", "--source", "--status"]),
    "behind an option that prints": ("--version list --provider o", ["other"]),
}


ODD = {
    "bash": {
        "odd": ["odd\\ \\$\\(touch\\ canary\\)", "odd:a\\'b"],
        "odd\\ ": ["odd\\ \\$\\(touch\\ canary\\)"],
        "'odd": ["odd $(touch canary)", "odd:a'\\''b"],
        '"odd': ["odd \\$(touch canary)", "odd:a'b"],
    },
    "zsh": {"odd": ["odd $(touch canary)", "odd\\:a'b"]},
    "fish": {"odd": ["odd $(touch canary)", "odd:a'b"], "'odd ": ["odd $(touch canary)"]},
}


def ask(shell: str, *words: str, **environ: Any) -> Result:
    """Ask for completions of the last word as the script of a shell does."""
    return run(*words, _MODELCTL_COMPLETE=shell, **environ)


@pytest.mark.parametrize(("line", "expected"), WORDS.values(), ids=WORDS)
def test_bash(line: str, expected: list[str]) -> None:
    """Bash splits words at colons and equal signs, so it gets only what follows the last of them."""
    make_fleet()
    add("hf:org/model:free", "hf:org/model:paid")
    result = ask("bash", "modelctl", *line.split(" "))
    assert (result.code, result.err) == (0, "")
    assert sorted(result.lines) == sorted(map(str, expected))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish(shell: str) -> None:
    """They get the whole word, with its option, and what it means."""
    make_fleet()
    statuses = ask(shell, "modelctl", "list", "--status=d")
    assert statuses.lines == ["--status=disabled"]
    [status] = ask(shell, "modelctl", "db", "st").lines
    assert re.match("status[:\t]Print the state", status)


@pytest.mark.parametrize("shell", ODD)
def test_odd_ids(shell: str) -> None:
    """Ids are quoted so that the shell runs nothing; one that cannot be typed is not there."""
    make_fleet()
    add("odd $(touch canary)", "odd:a'b", "odd\x1b[2J", "odd\nline", "-odd")
    for typed, expected in ODD[shell].items():
        assert sorted(ask(shell, "modelctl", "show", typed).lines) == sorted(expected)
    assert ask(shell, "modelctl", "show", "-odd").lines == []


@pytest.mark.parametrize("shell", SCRIPTS)
def test_what_goes_wrong_is_not_printed(tmp_path: Path, shell: str) -> None:
    """Without a database, with a wrong configuration, or asked by an old script, it prints nothing."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[")
    for environ in ({}, {"MODELCTL_CONFIG": str(wrong)}, {"MODELCTL_DATABASE_URL": "x://"}):
        result = ask(shell, "modelctl", "show", "a", **environ)
        assert (result.code, result.out, result.err) == (0, "", "")
    for words in ((), ("modelctl",)):
        for asked in (shell, f"complete_{shell}"):
            result = ask(asked, *words)
            assert (result.code, result.out, result.err) == (0, "", "")


def test_a_database_that_does_not_answer_is_given_up() -> None:
    """TAB does not hang, however long commands wait for the database."""
    with silent_server() as port:
        url = f"postgresql://x@127.0.0.1:{port}/x?connect_timeout={10 * SECONDS}"
        result = ask("bash", "modelctl", "show", "a", MODELCTL_DATABASE_URL=url)
    assert (result.code, result.out, result.err) == (0, "", "")


PRESSED = {
    "modelctl dis": "modelctl disable",
    "modelctl db st": "modelctl db status",
    "modelctl list --lim": "modelctl list --limit",
    "modelctl list --status dis": "modelctl list --status disabled",
    "modelctl list --status=dis": "modelctl list --status=disabled",
    "modelctl list --provider=ac": "modelctl list --provider=acme",
    "modelctl import x --format litellm-": "modelctl import x --format litellm-proxy",
    "modelctl import cat": "modelctl import catalogue.jsonl",
    "modelctl --config=cat": "modelctl --config=catalogue.jsonl",
    "~/modelctl db st": "~/modelctl db status",
    "~/none/modelctl db st": "~/none/modelctl db st",
    "modelctl show hf:o": "modelctl show hf:org/model:",
    "modelctl show hf:org/model:f": "modelctl show hf:org/model:free",
    "modelctl show 'hf:org/model:f": "modelctl show 'hf:org/model:free'",
    "modelctl disable acme/one hf:org/model:p": "modelctl disable acme/one hf:org/model:paid",
    "modelctl show odd": "modelctl show odd\\ \\$\\(touch\\ canary\\)",
}
# A key that writes the line, as it is then, into a file.
KEY = {
    "bash": """PS1='READY '
show() {{ printf %s "$READLINE_LINE" > {file}; }}
bind -x '"\\C-g": show'
""",
    "zsh": """PS1='READY '
show() {{ print -rn -- $BUFFER > {file} }}
zle -N show
bindkey '^G' show
""",
    "fish": """function fish_prompt; echo 'READY '; end
bind \\cg 'commandline > {file}'
""",
}
# .ci/run installs no shells.
LONG = [pytest.param("bash"), *(pytest.param(of, marks=pytest.mark.long) for of in ("zsh", "fish"))]


@pytest.mark.parametrize("shell", LONG)
def test_in_a_real_shell(cli: Cli, tmp_path: Path, shell: str) -> None:
    """With the line of the help in its file, TAB in a shell completes what was typed, in its place,
    and prints nothing else.
    """
    if not shutil.which(shell):
        pytest.fail(f"{shell} is not installed, and this test needs it")
    make_fleet()
    add("hf:org/model:free", "hf:org/model:paid", "odd $(touch canary)")
    program = tmp_path / "modelctl"
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "catalogue.jsonl").touch()
    lines = re.findall(r"^ +~/(\S+): (.*)", cli("completion", "--help").out, re.MULTILINE)
    [(place, line)] = [(place, line) for place, line in lines if shell in line]
    for name, text in {place: line, f".config/{shell}/config.{shell}": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    written = tmp_path / "written"
    settings = tmp_path / (".config/fish/config.fish" if shell == "fish" else place)
    settings.write_text(settings.read_text() + KEY[shell].format(file=written))
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environ |= {"TERM": "dumb", "INPUTRC": os.devnull}
    for name in ("ZDOTDIR", "XDG_CONFIG_HOME"):
        environ.pop(name, None)
    with pexpect.spawn(
        shell,
        ["-i"],
        cwd=str(tmp_path),
        env=environ,
        dimensions=(20, 200),
        encoding="utf-8",
        timeout=SECONDS,
    ) as terminal:
        terminal.logfile_read = shown = StringIO()
        terminal.expect_exact("READY ")
        for typed, expected in PRESSED.items():
            terminal.send(f"{typed}\t\x07")
            deadline = time.monotonic() + SECONDS
            while not (written.exists() and written.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert written.read_text().rstrip() == expected
            written.unlink()
            terminal.send("\x15")
        terminal.send("exit\r")
        terminal.expect(pexpect.EOF)
    assert not re.search(
        "error|traceback|not found|unknown|no such", shown.getvalue(), re.IGNORECASE
    )


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_of_a_shell(cli: Cli, shell: str) -> None:
    """`completion` prints the script of the shell that is named, wherever it is called from."""
    result = cli("completion", shell)
    assert (result.code, result.out, result.err) == (0, SCRIPTS[shell], "")
    cli("completion", "tcsh").failed(2, "tcsh", "'bash', 'zsh', 'fish'")
    cli("completion").failed(2, "Missing argument 'SHELL'. Choose from: bash, zsh, fish")
