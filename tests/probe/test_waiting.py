"""A probe ends in time and leaves nothing open, whatever it waits for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelctl.config.probes import ProbeConfig
from modelctl.model import FailureType
from modelctl.probe.ask import Target, ask
from tests.probe.provider import Server, alive, ask_one, command, failed, targets
from tests.waiting import at_most, until


@pytest.mark.parametrize("what", ["silent", "drip/head", "drip/body"])
def test_timeout_of_a_model(server: Server, what: str) -> None:
    """A server that says nothing, or a byte now and then, has its time and no more."""
    answer = ask_one(server.config(what, timeout=0.5))
    failed(answer, FailureType.TIMEOUT, "no answer in 0.5s")
    assert 0.4 < answer.seconds < 2


def test_timeout_of_a_connection() -> None:
    """A server that does not even accept, or begins no TLS, has its time and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        answer = ask_one(ProbeConfig("p", url=url, timeout=0.5, allow_private=True))
        failed(answer, FailureType.TIMEOUT)
        assert answer.seconds < 2
        connection, _ = listener.accept()
        with connection:  # which the client has closed
            connection.settimeout(2)
            while connection.recv(65536):
                pass


def test_timeout_of_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs delays no answer and occupies one thread, however many models ask."""
    hang = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        hang.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    probes = {"p": ProbeConfig("p", url="https://models.test", timeout=0.3)}
    with at_most(3):
        for answer in ask(targets(20), probes):
            failed(answer, FailureType.TIMEOUT)
    assert [t.name for t in threading.enumerate()].count("modelctl-resolve") == 1
    hang.set()


def test_deadline(server: Server) -> None:
    """At the deadline of all, what runs has failed as a timeout, what waits was never asked."""
    started = time.monotonic()
    answers = list(ask(targets(20), {"p": server.config("silent")}, concurrency=4, deadline=0.5))
    assert 0.4 < time.monotonic() - started < 2
    assert len(answers) == 20
    assert not any(answer.healthy for answer in answers)
    assert len(server.requests) == 4
    assert sum(answer.failure_type is FailureType.TIMEOUT for answer in answers) == 4
    unasked = [answer for answer in answers if answer.failure_type is None]
    assert sum("not asked" in str(answer.reason) for answer in unasked) == 16


def test_closing_the_iterator_ends_connections_and_commands(server: Server) -> None:
    """Closing the iterator closes connections and commands at once, and leaves no thread."""
    before, ours = set(threading.enumerate()), children()
    probes = {"p": server.config("silent"), "q": command("sleep", "60")}
    asked = [*targets(3), Target("q", "q"), Target("quick", "r")]
    answers = ask(asked, probes | {"r": command("true")})
    assert next(answers).healthy
    until(lambda: len(server.requests) == 3)
    with at_most(1):
        answers.close()
    assert all(server.left.acquire(timeout=2) for _ in range(3))
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("modelctl")]
    assert children() <= ours


def children() -> set[str]:
    """Return the processes that this one has started and that are still there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_nothing_is_left_open(server: Server) -> None:
    """A hundred answers later as many files are open as before."""
    probes = {"p": server.config("ok"), "q": command("sh", "-c", "exit 1")}
    list(ask(targets(1), probes))
    before = len(os.listdir("/proc/self/fd"))
    asked = [Target(f"{n}", "pq"[n % 2]) for n in range(100)]
    assert len(list(ask(asked, probes))) == 100
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_interrupt(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends the program at once, with its connections and its commands."""
    code = (
        "import sys\n"
        "from modelctl.probe.ask import *\n"
        "http = ProbeConfig('p', url=sys.argv[1], allow_http=True, allow_private=True)\n"
        "sleeper = ProbeConfig('q', command=('sh', '-c', 'echo $$ > pid; sleep 60'))\n"
        "list(ask([Target('1', 'p'), Target('2', 'q')], {'p': http, 'q': sleeper}))\n"
    )
    program = [sys.executable, "-c", code, f"http://{server.place}/silent"]
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE) as child:
        until(lambda: bool(server.requests) and (tmp_path / "pid").exists(), 20)
        until(lambda: (tmp_path / "pid").read_text().endswith("\n"))
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=5)
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    assert server.left.acquire(timeout=2)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_an_exception_of_progress_reaches_the_caller(server: Server) -> None:
    """An exception of the caller's progress reaches the caller, and ends everything."""

    def progress(done: int) -> None:
        raise RuntimeError("full")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="full"):
        list(ask(targets(5), {"p": server.config("ok")}, progress=progress))
    assert not [t for t in set(threading.enumerate()) - before if t.name == "modelctl-probe"]
