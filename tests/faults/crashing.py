"""A process that forks a child per job: it runs a fleet's methods and dies, or stops, at a point.

The parent has imported everything and connected to nothing, so a child costs a fork. It reads
one JSON line per question and answers with one; `Nursery` is the side of the tests.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import IO, Any, Self

from modelctl import crash_points
from modelctl.config.config import Config
from modelctl.config.sections import DatabaseConfig, RedisConfig
from modelctl.database import bulk
from modelctl.errors import ModelctlError
from modelctl.fleet.fleet import Fleet
from tests import ROOT

# A child that hangs ends itself, and the test fails.
_PATIENCE = 60
_IMPORTS = (
    "psycopg",
    "redis",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
)


@dataclass(frozen=True)
class Call:
    """One method of `Fleet` and its arguments, as far as JSON can tell them."""

    method: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """What one child does, and where it gets the signal."""

    database: str
    redis: str
    calls: tuple[Call, ...]
    point: str = ""  # empty: it gets none
    arrival: int = 1  # the first time there, or a later one
    signal: int = signal.SIGKILL
    chunk: int = 5000


@dataclass(frozen=True)
class End:
    """How a child ended; what it told is empty when it did not live to tell."""

    signal: int  # 0: none
    stopped: bool
    points: tuple[str, ...] = ()  # every point it reached
    results: tuple[dict[str, Any], ...] = ()
    error: str = ""  # the code of the error that ended it, or the traceback of a bug
    warnings: tuple[str, ...] = ()

    @property
    def killed(self) -> bool:
        """Whether the signal came: it did not end in any other way."""
        return self.signal == signal.SIGKILL


class Nursery:
    """The forking process, in a `with` block; when it ends, its children end."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crashing"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, job: Job) -> int:
        """Start a child and return its process id; `wait` for each of them."""
        return int(self._ask({"job": asdict(job)})["pid"])

    def wait(self, pid: int) -> End:
        """Wait until the child has ended or is stopped; of a stopped one, wait again."""
        told = self._ask({"wait": pid})
        lists: dict[str, Any] = {k: tuple(v) for k, v in told.items() if isinstance(v, list)}
        return End(**told | lists)

    def run(self, job: Job) -> End:
        """Start a child and wait for it."""
        return self.wait(self.start(job))

    def resume(self, pid: int) -> End:
        """Let a stopped child go on and wait for its end."""
        os.kill(pid, signal.SIGCONT)
        return self.wait(pid)

    def end(self, pid: int) -> End:
        """Kill a child that is at work."""
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in
        assert pipe_out
        pipe_in.write(json.dumps(question) + "\n")
        pipe_in.flush()
        answer = pipe_out.readline()
        if not answer:
            raise RuntimeError("the process that forks is gone")
        return dict(json.loads(answer))


def fleet(database: str, redis: str) -> Fleet:
    """Return a fleet as the command line would have it, from nothing but two URLs."""
    return Fleet(Config(database=DatabaseConfig(url=database), redis=RedisConfig(url=redis)))


def _main() -> None:
    """Answer questions until there are no more, then take the children along."""
    # Neither imported by each child nor looked through by its garbage collector.
    for name in _IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    children: dict[int, int] = {}
    try:
        for line in sys.stdin:
            question = json.loads(line)
            if "job" in question:
                pid, told = _fork(_job(question["job"]))
                children[pid] = told
                answer: dict[str, Any] = {"pid": pid}
            else:
                answer = _wait(question["wait"], children)
            print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _job(told: dict[str, Any]) -> Job:
    calls = tuple(Call(**call) for call in told.pop("calls"))
    return Job(calls=calls, **told)


def _fork(job: Job) -> tuple[int, int]:
    """Start a child; return its process id and the end of a pipe that it tells its story to."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    try:
        signal.alarm(_PATIENCE)
        with os.fdopen(write_end, "w") as pipe:
            _child(job, pipe)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _child(job: Job, pipe: IO[str]) -> None:
    reached: list[str] = []

    def arrive(name: str) -> None:
        reached.append(name)
        if name == job.point and reached.count(name) == job.arrival:
            os.kill(os.getpid(), job.signal)

    results: list[dict[str, Any]] = []
    warnings: list[str] = []
    error = ""
    crash_points.hook = arrive
    bulk.CHUNK = job.chunk
    try:
        with fleet(job.database, job.redis) as subject:
            subject.on_warning = warnings.append
            for call in job.calls:
                args = list(call.args)
                if call.method == "import_models":
                    args = [args[0].encode()]
                result = getattr(subject, call.method)(*args, **call.options or {})
                results.append(asdict(result))
    except ModelctlError as exc:
        error = exc.code
    except Exception:
        error = traceback.format_exc()
    story = {"points": reached, "results": results, "error": error, "warnings": warnings}
    json.dump(story, pipe, default=str)


def _wait(pid: int, children: dict[int, int]) -> dict[str, Any]:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"signal": os.WSTOPSIG(status), "stopped": True}
    end = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "stopped": False}
    with os.fdopen(children.pop(pid)) as pipe:
        story = pipe.read()
    return end | (json.loads(story) if story else {})


if __name__ == "__main__":
    _main()
