"""A shell that asks for completions gets commands, options and ids, and never an error."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pexpect  # type: ignore[import-untyped]
import pytest

from modelctl.catalog_format import CatalogFormat
from modelctl.model import FailureType, ModelStatus
from modelctl.models.reads import SORT_KEYS
from tests.commands import PROGRAM, SECONDS, Cli, add, make_fleet, run, sql

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
}


@pytest.mark.parametrize(("line", "expected"), WORDS.values(), ids=WORDS)
def test_bash(line: str, expected: list[str]) -> None:
    """Bash splits words at colons and equal signs, so it gets only what follows the last of them."""
    make_fleet()
    add("hf:org/model:free", "hf:org/model:paid", "hf:$(touch canary)")
    sql("UPDATE models SET provider = '$(x)' WHERE id LIKE 'hf:$%'")
    words = f"modelctl {line}".split(" ")
    result = run(
        _MODELCTL_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(words),  # as Typer's script does
        COMP_CWORD=str(len(words) - 1),
    )
    assert (result.code, result.err) == (0, "")
    assert sorted(result.lines) == sorted(map(str, expected))


PRESSED = {
    "modelctl show hf:o": "modelctl show hf:org/model:",
    "modelctl show hf:org/model:f": "modelctl show hf:org/model:free",
    "modelctl disable acme/one hf:org/model:p": "modelctl disable acme/one hf:org/model:paid",
    "modelctl list --provider=ac": "modelctl list --provider=acme",
    "modelctl list --provider ac": "modelctl list --provider acme",
    "modelctl events hf:": "modelctl events hf:org/model:",
}


@pytest.mark.parametrize(("typed", "line"), PRESSED.items(), ids=PRESSED)
def test_in_a_real_bash(tmp_path: Path, typed: str, line: str) -> None:
    """Tab in bash completes what was typed, in its place."""
    make_fleet()
    add("hf:org/model:free", "hf:org/model:paid")
    program = tmp_path / "modelctl"
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    bash = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env={**os.environ, "PATH": path, "PS1": "READY ", "TERM": "dumb", "INPUTRC": os.devnull},
        dimensions=(20, 200),
        encoding="utf-8",
        timeout=SECONDS,
        echo=False,
    )
    with bash:
        bash.expect_exact("READY ")
        bash.sendline("source <(modelctl completion bash)")
        bash.expect_exact("READY ")
        # A key that writes the line as it is then into a file.
        bash.sendline(f'show() {{ printf %s "$READLINE_LINE" > {tmp_path}/line; }}')
        bash.expect_exact("READY ")
        bash.sendline("bind -x '\"\\C-g\": show'")
        bash.expect_exact("READY ")
        bash.send(f"{typed}\t\x07")
        deadline = time.monotonic() + SECONDS
        written = tmp_path / "line"
        while not (written.exists() and written.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert written.read_text().rstrip() == line
        bash.send("\x15exit\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_a_shell(cli: Cli, shell: str) -> None:
    """`completion` and --show-completion print the script of the shell that is named, wherever it is
    called from.
    """
    marks = {
        "bash": "complete -o default",
        "zsh": "#compdef modelctl",
        "fish": "complete --command",
    }
    options = ["--show-completion", shell], [f"--show-completion={shell}"]
    for words in (["completion", shell], *options):
        result = cli(*words)
        assert (result.code, result.err) == (0, "")
        assert marks[shell] in result.out
        assert "_MODELCTL_COMPLETE" in result.out
    cli("completion", "tcsh").failed(2, "tcsh", "'bash', 'zsh', 'fish'")
    cli("--show-completion", "tcsh").failed(2, "no completion for 'tcsh'", "bash, zsh, fish")
