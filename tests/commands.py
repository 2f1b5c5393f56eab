"""Run the program: in a process, on a terminal, and inside this process."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import pytest

from modelctl.cli import main as cli
from tests import ROOT, fleets

PROGRAM = [sys.executable, "-m", "modelctl"]
SECONDS = 60
# Everything that may move a terminal's cursor, colour or reorder what it shows.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

Cli = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """The lines on stdout."""
        return self.out.splitlines()

    def failed(self, code: int, *words: str) -> None:
        """Check that it failed with *code*, nothing on stdout and these words on stderr."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("error: "), self
        for word in words:
            assert word in self.err, self


def checked(code: int, out: bytes, err: bytes, *, debug: bool = False) -> Result:
    """Check what holds for every run: no control characters, no traceback unless asked, UTF-8."""
    result = Result(code, out.decode(), err.decode())
    for text in (result.out, result.err):
        assert not CONTROLS.search(text), repr(text)
        assert debug or "Traceback" not in text, text
        assert "this is a bug" not in text, text
    return result


def run(
    *arguments: str | bytes,
    stdin: bytes | None = None,
    before: Callable[[], None] | None = None,
    **environ: str,
) -> Result:
    """Run the program in a process of its own, in pipes; *before* runs there at first."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env=os.environ | environ,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        preexec_fn=before,
        timeout=SECONDS,
        check=False,
    )
    debug = "--debug" in arguments
    return checked(done.returncode, done.stdout, done.stderr, debug=debug)


def shell(script: str, **environ: str) -> Result:
    """Run a shell script in which $modelctl is the program."""
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env=os.environ | {"modelctl": " ".join(PROGRAM)} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    return checked(done.returncode, done.stdout, done.stderr)


def start(*arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """Start the program and return at once; use it in a `with` block."""
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL} | pipes
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how
    )


def run_together(
    program: str, arguments: Sequence[Sequence[str]], variables: Mapping[str, str]
) -> None:
    """Run a Python program in a process for each list of arguments, all from the same moment on.

    The program prints "ready" and then waits for the end of its stdin.
    """
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, *words],
                    cwd=ROOT,
                    env=os.environ | variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for words in arguments
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
    assert [process.returncode for process in processes] == [0] * len(arguments)


def obey_file_modes() -> None:
    """Take from root the right to ignore modes, before `run`; other users do not have it."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP: gone after exec


def on_terminal(
    *arguments: str, columns: int = 100, environ: Mapping[str, str] | None = None
) -> pexpect.spawn:
    """Start the program on a terminal of its own."""
    return pexpect.spawn(
        PROGRAM[0],
        [*PROGRAM[1:], *arguments],
        env={**os.environ, **(environ or {})},
        dimensions=(50, columns),
        encoding="utf-8",
        timeout=SECONDS,
        echo=False,
    )


def seen(
    *arguments: str, columns: int = 100, environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run the program on a terminal; return its exit code and what it showed, raw."""
    return finish(on_terminal(*arguments, columns=columns, environ=environ))


def finish(child: pexpect.spawn) -> tuple[int, str]:
    """Read to the end; return the exit code and the text since the last match."""
    shown = child.read().replace("\r\n", "\n")
    child.close()
    assert child.exitstatus is not None, shown
    assert "Traceback" not in shown, shown
    return child.exitstatus, shown


def plain(shown: str) -> str:
    """Take the colours out."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def inside(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs the program in this process, in captured pipes."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = cli.main(arguments)
        said = capsys.readouterr()
        how = "utf-8", "surrogatepass"
        debug = "--debug" in arguments
        return checked(code, said.out.encode(*how), said.err.encode(*how), debug=debug)

    return call


# The command table


@functools.cache
def commands() -> Mapping[tuple[str, ...], Any]:
    """Return every command that the program has, by its words."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                yield from walk(command, (*words, name))
            else:
                yield (*words, name), command

    return dict(walk(cli.program(), ()))


# A fleet to work on


def database() -> Path:
    """Return the file of the database that is used when none is named."""
    return Path(os.environ["XDG_DATA_HOME"], "modelctl", "modelctl.db")


def sql(statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement on that database as another program would."""
    return fleets.sql(f"sqlite:///{database()}", statement, *values)


def add(*ids: str) -> None:
    """Put models into that database without modelctl."""
    fleets.put(f"sqlite:///{database()}", *ids)


# Five models: two active, one disabled, one auto-disabled now, one long ago.
FLEET = """
INSERT INTO models (id, display_name, provider, success_count) VALUES
  ('acme/one', 'One', 'acme', 3), ('acme/two', '', 'acme', 0);
INSERT INTO models (id, provider, active, disabled_at, disabled_by, disabled_reason) VALUES
  ('acme/off', 'acme', FALSE, '2026-01-02T03:04:05.678Z', 'ann', 'too slow');
INSERT INTO models (id, provider, active, auto_disabled, consecutive_failures, ejections,
  failure_count, last_failure_at, failure_type, failure_reason, disabled_at, disabled_by) VALUES
  ('other/tripped', 'other', FALSE, TRUE, 5, 1, 5, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
   'parse-error', 'no JSON', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'health rule'),
  ('other/due', 'other', FALSE, TRUE, 5, 2, 9, '2026-01-01T00:00:00.000Z',
   'client-error', 'HTTP 404', '2026-01-01T00:00:00.000Z', 'health rule');
"""
BESIDE = """
INSERT INTO modelctl_tags (model_id, tags) VALUES ('acme/one', '["eu","prod"]'), ('acme/off', '["eu"]');
INSERT INTO modelctl_ignored (pattern) VALUES ('gone/*');
INSERT INTO modelctl_origins (model_id, source, first_seen_at, gone_since)
  VALUES ('acme/two', 'acme', '2026-01-02T03:04:05.678Z', '2026-01-03T03:04:05.678Z');
"""


def make_fleet() -> None:
    """Fill the database that is used when none is named; it must not be there yet."""
    _create(database())


def _create(file: Path) -> None:
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_bytes(_template())


@functools.cache
def _template() -> bytes:
    """Return a database with the five models, made by the product once."""
    import tempfile

    from modelctl import Fleet

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ["XDG_DATA_HOME"]
        os.environ["XDG_DATA_HOME"] = folder
        try:
            with Fleet.open() as fleet:
                fleet.count()
            connection = sqlite3.connect(database())
            connection.executescript(FLEET + BESIDE)
            connection.close()
            return database().read_bytes()
        finally:
            os.environ["XDG_DATA_HOME"] = before
