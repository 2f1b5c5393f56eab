"""The end of a process that has a recorder: what waits is written, or was never acknowledged."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.fleets import put, sql
from tests.recorder.conftest import line, locked, run, script

# Longer than any of these programs runs: so what is in the database was written because of its end.
SLOW = "import modelctl.recorder.background as r; r.SECONDS = 600\n"


def counts(url: str) -> tuple[int, int]:
    """Return successes and failures of all models."""
    return sql(url, "SELECT sum(success_count), sum(failure_count) FROM models")[0][:2]


@pytest.fixture
def url(fleet_url: str) -> str:
    """Give the URL of a database of each kind with three models."""
    put(fleet_url, "a", "b", "c")
    return fleet_url


def test_kill_9_loses_no_acknowledged_failure(url: str) -> None:
    """Every failure for which `wait=True` returned is there after SIGKILL, in its order."""
    text = """
for number in range(100_000):
    recorder.success("b")
    recorder.failure("a", "client-error", reason=str(number), wait=True)
    print(number, flush=True)
"""
    with script(url, text) as process:
        while line(process) < 20:
            pass
        process.kill()
        out, _ = process.communicate()
    acknowledged = [20, *map(int, out.split())][-1] + 1
    found = "SELECT failure_count, failure_reason FROM models WHERE id = 'a'"
    failures, reason = sql(url, found)[0]
    assert failures in (acknowledged, acknowledged + 1)
    assert reason == str(failures - 1)
    assert sql(url, "SELECT success_count FROM models WHERE id = 'b'")[0][0] >= acknowledged


@pytest.mark.parametrize("threads", [False, True], ids=["main", "threads"])
def test_sigterm(url: str, threads: bool) -> None:
    """SIGTERM writes what waits, then ends the process as it would have; also one that is busy."""
    work = "    recorder.success('a')\n    recorder.failure('b', 'timeout')\n"
    text = f"""{SLOW}
import threading
def work():
    while True:
{work.replace("    ", "        ")}        time.sleep(0.001)
for _ in range(1000):
{work}
print("1", flush=True)
if {threads}:
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
work()
"""
    with script(url, text) as process:
        assert line(process) == 1
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        assert process.stderr
        assert process.stderr.read() == ""
    successes, failures = counts(url)
    assert successes >= 1000
    assert abs(successes - failures) <= 4


def test_sigterm_while_the_database_is_away(url: str) -> None:
    """The process still ends by the signal, after a few seconds, and says what it loses."""
    text = """
import modelctl.recorder.ending as ending
ending.SIGTERM_SECONDS = 1.0
for _ in range(3):
    recorder.success("a")
print("1", flush=True)
# Python calls no handler for a signal that comes immediately before a long sleep, until that is over.
while True:
    time.sleep(0.05)
"""
    with locked(url), script(url, text, database_timeout="2s") as process:
        assert line(process) == 1
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        assert process.stderr
        assert (
            "the process is ending: 3 outcomes could not be recorded yet" in process.stderr.read()
        )


def test_the_end_while_the_database_is_away(url: str) -> None:
    """The interpreter ends after the time limit of the database, and says what it loses."""
    with locked(url):
        code, _, err = run(url, "recorder.success('a')", database_timeout="1s")
    assert code == 0
    assert "the recorder ended before 1 outcome could be recorded; lost, unless" in err
    assert "Traceback" not in err


def test_an_applications_own_handler(url: str) -> None:
    """A handler that the application has set, before or after, is called and stays."""
    for before in (True, False):
        handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        text = (
            f"{SLOW}recorder.close()\n{handler if before else ''}"
            f"recorder = fleet.recorder()\n{'' if before else handler}"
            "recorder.success('a')\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n"
        )
        code, _, err = run(url, text)
        assert (code, err) == (7, "")
    assert counts(url) == (2, 0)


def test_sigterm_has_its_default_action_again(url: str) -> None:
    """When the last recorder is closed, the handler is gone; an ignored signal stays ignored."""
    text = """
other = fleet.recorder()
recorder.close()
assert callable(signal.getsignal(signal.SIGTERM))
other.close()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with fleet.recorder():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
"""
    assert run(url, text) == (0, "", "")


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise SystemExit(3)", "fleet.close()"])
def test_the_end_of_the_interpreter(url: str, end: str) -> None:
    """What waits is written, also what threads record that outlive the main thread; no traceback."""
    text = f"""{SLOW}
import threading
def work():
    time.sleep(0.3)
    recorder.success("b")
recorder.success("a")
{"threading.Thread(target=work).start()" if not end else 'recorder.success("b")'}
{end}
"""
    code, _, err = run(url, text)
    assert (code, err) == (3 if "3" in end else 0, "")
    assert counts(url) == (2, 0)


@pytest.mark.parametrize("end", ["", "fleet.close()", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_forgotten_recorder(url: str, end: str) -> None:
    """What it was given is written, although the application has no reference to it any more."""
    text = f"""{SLOW}
import gc
def work():
    fleet.recorder().success("a")
work()
del recorder
gc.collect()
{end}
{"time.sleep(60)" if "SIGTERM" in end else ""}
"""
    code, _, err = run(url, text)
    assert (code, err) == (-signal.SIGTERM if "SIGTERM" in end else 0, "")
    assert counts(url) == (1, 0)


def test_outcomes_that_come_too_late(url: str) -> None:
    """After the interpreter has closed the recorder, outcomes are dropped with a warning, not an error."""
    text = """
import builtins
class Late:
    def __del__(self, recorder=recorder):
        recorder.success("a")
        recorder.failure("a", "parse-error")
recorder.success("b")
atexit._clear()
import modelctl.recorder.ending as ending
builtins.late = Late()
atexit.register(lambda: recorder.success("c"))
atexit.register(ending._at_exit)
"""
    code, _, err = run(url, text)
    assert code == 0
    assert err == ("the process is ending: outcomes are dropped, first one of 'c'; see its stats\n")
    assert counts(url) == (1, 0)


def test_first_use_at_the_end(url: str) -> None:
    """A recorder that is first used when no thread can start any more writes without one.

    From Python 3.12 on that is so in functions of `atexit`.
    """
    text = """
import threading
def late():
    recorder.success("a")
    recorder.failure("b", "parse-error")
def no_thread(self):
    raise RuntimeError("can't create new thread at interpreter shutdown")
atexit.register(late)
threading.Thread.start = no_thread
"""
    assert run(url.replace("127.0.0.1", "localhost"), text) == (0, "", "")
    assert counts(url) == (1, 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing(
    url: str, method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A child of `multiprocessing`, which calls no atexit function, writes what waits in its end."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "work.py").write_text(f"""
import multiprocessing, sys
from modelctl import Fleet
{SLOW}
fleet = Fleet.open()
recorder = fleet.recorder()
def work():
    recorder.success("a")
if __name__ == "__main__":
    recorder.success("b")
    context = multiprocessing.get_context("{method}")
    children = [context.Process(target=work) for _ in range(2)]
    for child in children: child.start()
    for child in children: child.join()
    assert [child.exitcode for child in children] == [0, 0]
""")
    text = f"recorder.close(); import runpy; sys.argv[0] = {str(folder / 'work.py')!r}\n"
    code, _, err = run(url, f"{text}os.execv(sys.executable, [sys.executable, sys.argv[0]])\n")
    assert (code, err) == (0, "")
    assert counts(url) == (3, 0)
    assert sys.executable
