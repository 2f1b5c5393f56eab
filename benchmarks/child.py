"""What is measured in a process of its own: ``python -m benchmarks.child WHAT URL REDIS-URL``.

Memory, because a process that did other things before has room to reuse; and processes that meet
on one expired key or one popular model. Prints JSON, one line for each answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.servers import configured
from modelctl import Fleet


def recover(fleet: Fleet) -> None:
    """Recover everything; say how long it took and how far memory grew."""
    fleet.count()
    fleet.recover(limit=1)  # what is imported and connected on the way is no growth
    _measured(fleet.recover)


def imported(fleet: Fleet) -> None:
    """Import a file; say how long it took and how far memory grew."""
    fleet.count()
    fleet.import_models(b'{"id": "first"}')  # what is loaded on the way is no growth

    def work() -> object:
        with open(sys.argv[4], "rb") as file:
            return fleet.import_models(file)

    _measured(work)


def sweep(fleet: Fleet) -> None:
    """Clear the caches; say how long it took and how far memory grew."""
    fleet.clear_cache()
    _answer({})
    sys.stdin.readline()  # meanwhile the keys are put there again
    _measured(fleet.clear_cache)


def herd(fleet: Fleet) -> None:
    """Count whenever a line comes in."""
    fleet.count(fresh=True)
    _answer({})
    for _ in sys.stdin:
        _answer({"active": fleet.count().active})


def singles(fleet: Fleet) -> None:
    """Record as many successes of a model as each line says."""
    _when_told(lambda number: _repeat(lambda: fleet.record_success(sys.argv[4]), number))


def gathered(fleet: Fleet) -> None:
    """The same with a recorder."""
    with fleet.recorder() as recorder:

        def work(number: int) -> None:
            _repeat(lambda: recorder.success(sys.argv[4]), number)
            recorder.flush(120)

        _when_told(work)


def updates(fleet: Fleet) -> None:
    """The same with a bare statement."""
    import psycopg

    with psycopg.connect(sys.argv[2], autocommit=True) as connection:
        sql = (
            "UPDATE models SET success_count = success_count + 1, consecutive_failures = 0,"
            " failure_reason = NULL, last_success_at = now(), updated_at = now() WHERE id = %s"
        )
        _when_told(lambda number: _repeat(lambda: connection.execute(sql, [sys.argv[4]]), number))


def _when_told(work: Callable[[int], None]) -> None:
    work(1)
    _answer({})
    for line in sys.stdin:
        work(int(line))
        _answer({})


def _repeat(work: Callable[[], object], number: int) -> None:
    for _ in range(number):
        work()


def _answer(figures: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def _measured(work: Callable[[], object]) -> None:
    _forget_peak()
    before = _status("VmRSS")
    start = time.perf_counter()
    result = work()
    took = time.perf_counter() - start
    _answer({"seconds": took, "grown": max(0.0, _status("VmHWM") - before)})
    del result  # what the caller is given counts


def _forget_peak() -> None:
    """Let the peak of memory begin again at what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """Memory of this process in MiB. Not ru_maxrss: that begins with what the parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    work = {
        "recover": recover,
        "imported": imported,
        "sweep": sweep,
        "herd": herd,
        "singles": singles,
        "gathered": gathered,
        "updates": updates,
    }[sys.argv[1]]
    with Fleet.open(configured(*sys.argv[2:4])) as opened:
        work(opened)
