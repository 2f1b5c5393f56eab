"""`watch` on a real terminal: keys, signals, sizes, and a database that goes away."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect  # type: ignore[import-untyped]
import pytest

from tests import commands, fleets, waiting
from tests.commands import Cli
from tests.servers import Postgres

ALTERNATE, USUAL = "\x1b[?1049h", "\x1b[?1049l"
CURSOR = "\x1b[?25h"


@contextmanager
def watching(url: str, *, columns: int = 80, **environ: str) -> Iterator[pexpect.spawn]:
    """Run `watch` on a terminal until it has drawn the fleet; check that it leaves the terminal alone."""
    child = commands.on_terminal("watch", columns=columns, environ=fleets.environ(url) | environ)
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact(ALTERNATE)
    child.expect_exact("q: quit")
    waiting.until(lambda: termios.tcgetattr(child.child_fd) != before)
    try:
        yield child
        with waiting.at_most(3):
            shown = child.read()
        assert shown.rindex(CURSOR) > shown.rfind("\x1b[?25l")
        assert shown.rindex(USUAL) > shown.rfind(ALTERNATE)
        assert "Traceback" not in shown
        assert termios.tcgetattr(child.child_fd) == before
    finally:
        child.close(force=True)


def ended(child: pexpect.spawn) -> tuple[int | None, int | None]:
    """Return the exit code and the signal of a process that has ended."""
    return child.exitstatus, child.signalstatus


def test_a_key_ends_it(sqlite_database: str) -> None:
    """It shows what other programs change, also hostile names and on a resized terminal, until q."""
    fleets.put(sqlite_database, "first")
    with watching(sqlite_database) as child:
        child.expect_exact("no model is off")
        fleets.put_off(sqlite_database, "evil\x1b]0;title\x07[red]", disabled_by="\x9b31m")
        child.expect_exact(r"evil\x1b]0;title\x07[re")
        child.setwinsize(20, 150)
        child.expect_exact(r"evil\x1b]0;title\x07[red]")
        child.send("x\x1b[Aq")
    assert "\x1b]0;" not in child.before
    assert ended(child) == (0, None)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, None), (signal.SIGHUP, None)]
)
def test_a_signal_ends_it(sqlite_database: str, number: int, code: int | None) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end it as they end other commands, with the terminal as it was."""
    with watching(sqlite_database) as child:
        if number == signal.SIGINT:
            child.sendintr()
        else:
            child.kill(number)
    assert ended(child) == (code, None if code else number)


def test_ctrl_z(sqlite_database: str) -> None:
    """While Ctrl-Z stops it, the terminal is as it was; afterwards it goes on."""
    script = 'set -m; "$@" & fg >/dev/null; echo stopped; fg >/dev/null; echo "code $?"'
    child = pexpect.spawn(
        "/bin/bash",
        ["--norc", "-c", script, "bash", *commands.PROGRAM, "watch"],
        env=os.environ | fleets.environ(sqlite_database),
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=commands.SECONDS,
    )
    child.expect_exact("q: quit")
    child.send("\x1a")
    child.expect_exact(USUAL)
    child.expect_exact("stopped")
    child.expect_exact(ALTERNATE)
    child.expect_exact("q: quit")
    child.send("q")
    child.expect_exact("code 0")
    child.close()


def test_the_database_goes_away(pg_database: str, postgres: Postgres) -> None:
    """While the server is away the last data stay, with age and error; q works while it is silent."""
    fleets.put_off(pg_database, "there")
    with watching(pg_database) as child:
        child.expect_exact("there")
        postgres.kill()
        child.expect(r"data of \d+ s ago, trying again: the database")
        postgres.start()
        fleets.put_off(pg_database, "newer")
        child.expect_exact("newer")
        assert "data of" not in child.after
        postgres.pause()
        child.expect(r"data of \d s ago, waiting for an answer")
        child.send("q")
    assert ended(child) == (0, None)


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    """An exception inside of the full screen shows on the usual screen."""
    program = (
        "from modelctl.output.full_screen import FullScreen\n"
        "with FullScreen(): raise SystemExit('it broke')"
    )
    child = pexpect.spawn(sys.executable, ["-c", program], encoding="utf-8", timeout=60)
    before = termios.tcgetattr(child.child_fd)
    shown = child.read()
    assert re.search(rf"{re.escape(ALTERNATE)}.*{re.escape(USUAL)}it broke", shown, re.DOTALL)
    assert termios.tcgetattr(child.child_fd) == before
    child.close()


def test_errors_at_the_beginning(cli: Cli, empty_pg: str) -> None:
    """Without a terminal, a schema or a server it fails as every command, and changes no screen."""
    cli("watch").failed(2, "needs a terminal", "events --follow")
    for environ, code, words in (
        ({"TERM": "dumb"}, 2, "needs a terminal"),
        ({"MODELCTL_DATABASE_URL": empty_pg}, 7, "db upgrade"),
        ({"MODELCTL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, 5, "refused"),
        ({"MODELCTL_DATABASE_URL": "nonsense"}, 3, "neither a PostgreSQL nor"),
    ):
        found, shown = commands.seen("watch", environ=environ)
        assert (found, words in shown, "\x1b[?" in shown) == (code, True, False), shown
