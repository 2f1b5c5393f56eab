"""systemd is told how the service is, over whichever socket it names."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from modelctl.jobs.systemd import Systemd
from tests.waiting import at_most


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_both_kinds_of_sockets(tmp_path: Path, kind: str) -> None:
    """A message is one datagram, to a file or to an abstract socket; children get no variables."""
    name = str(tmp_path / "ü") if kind == "path" else f"@modelctl-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if kind == "abstract" else name)
        manager.settimeout(10)
        environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
        systemd = Systemd(environ)
        assert environ == {"PATH": "/bin"}
        assert systemd.watchdog_seconds == 3
        systemd.tell("READY=1", "STATUS=tout va bien: é")
        assert manager.recv(1000).decode() == "READY=1\nSTATUS=tout va bien: é"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@" + "x" * 500, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    """No socket, one that is not there, or a watchdog of another process: the service just runs."""
    systemd = Systemd(environ)
    systemd.tell("READY=1")
    assert systemd.watchdog_seconds is None


def test_the_watchdog_of_this_process() -> None:
    """WATCHDOG_PID names the process that is watched."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid())}
    assert Systemd(environ).watchdog_seconds == 1e-6


def test_a_manager_that_reads_nothing(tmp_path: Path) -> None:
    """A socket whose queue is full delays the service by a second at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "s"))
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "s")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    other.sendto(b"x", str(tmp_path / "s"))
        with at_most(2):
            systemd.tell("WATCHDOG=1")
