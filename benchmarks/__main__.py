"""``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import bulk, eventloop, growth, inprocess, processes, recording, sweep
from benchmarks.harness import MissingError, chart, show
from benchmarks.servers import FULL, QUICK, Bench

_SECTIONS = {
    "processes": processes,
    "inprocess": inprocess,
    "eventloop": eventloop,
    "bulk": bulk,
    "recording": recording,
    "growth": growth,
    "sweep": sweep,
}
_NAMES = {name: module.PARTS for name, module in _SECTIONS.items()}

_DESCRIPTION = """
What modelctl costs, as ratios against floors and peers that run beside it, in turn, on this
machine. The program starts its own PostgreSQL (with its default durability) and Valkey. Every
figure is a median; a ratio is taken round by round, and its quartiles stand beside it. A target
that is missed is marked SHORT; a question mark says that the quartiles lie on both sides of it;
a star marks a target that is wished for and not promised. Run it from the top of the project,
which has to be installed with the extra: pip install -e '.[bench]'. The exit code is 1 only if
something could not be measured.
Absolute times mean nothing: only the ratios do.
"""
_EPILOG = """
sections and their parts, for --only (processes, or processes.help):
""" + "\n".join(f"  {name}: {', '.join(parts)}" for name, parts in _NAMES.items())


def main() -> int:
    """Measure, print, and write the files that were asked for."""
    wanted = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 170)
    err = Console(stderr=True)
    start = time.monotonic()
    load = os.getloadavg()
    chosen = _chosen(wanted.only)
    with Bench(QUICK if wanted.quick else FULL, err) as bench:
        for name, parts in chosen.items():
            _section(bench, name, parts)
        about = _environment(bench, wanted.quick, time.monotonic() - start, load)
    report = bench.report
    show(report, console)
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim", highlight=False, markup=False)
    if wanted.json:
        found = {
            "environment": about,
            "rows": [row.as_json() for row in report.rows],
            "skipped": report.skipped,
            "failed": report.failed,
            "short": [f"{row.group}: {row.what}" for row in report.short],
        }
        wanted.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    try:
        chart(report, wanted.png)
        console.print(f"cost against size: {wanted.png}", markup=False)
    except MissingError as exc:
        err.print(f"no chart: {exc}", markup=False)
    return 1 if report.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under three minutes, not a quarter of an hour: fleets of 100,000 models instead of"
        " 1,000,000, and fewer rounds",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="sections or parts; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        default=Path("benchmarks/cost.png"),
        help="where to draw cost against size (default: %(default)s)",
    )
    wanted = parser.parse_args()
    known = {*_NAMES, *(f"{name}.{part}" for name, parts in _NAMES.items() for part in parts)}
    if unknown := [name for name in wanted.only if name not in known]:
        parser.error(f"no such section or part: {', '.join(unknown)}; see --help")
    return wanted


def _chosen(only: list[str]) -> dict[str, tuple[str, ...]]:
    """The parts to measure of each section."""
    if not only:
        return dict(_NAMES)
    chosen = {
        name: tuple(part for part in parts if name in only or f"{name}.{part}" in only)
        for name, parts in _NAMES.items()
    }
    return {name: parts for name, parts in chosen.items() if parts}


def _section(bench: Bench, name: str, parts: Iterable[str]) -> None:
    """Measure a section; one that cannot be measured here does not stop the others."""
    measure: Callable[[Bench, Iterable[str]], None] = _SECTIONS[name].measure
    bench.say(f"── {name}")
    start = time.monotonic()
    try:
        measure(bench, parts)
    except MissingError as exc:
        bench.report.skip(name, exc)
    except Exception as exc:
        bench.console.print_exception()
        bench.report.fail(name, exc)
    bench.say(f"   {time.monotonic() - start:.0f} s")


def _environment(
    bench: Bench, quick: bool, took: float, load: tuple[float, float, float]
) -> dict[str, Any]:
    """What a reader of the figures should know."""
    return {
        "scale": "quick" if quick else "full",
        "took": f"{took:.0f} s",
        "load": f"{load[0]:.1f} at the start, {os.getloadavg()[0]:.1f} at the end, "
        f"{os.cpu_count()} cores",
        "fsync": bench.fsync_time(),
        "versions": ", ".join(
            [
                f"modelctl {version('modelctl')}",
                f"Python {platform.python_version()}",
                f"PostgreSQL {bench.postgres.version}",
                bench.redis.version,
                *(
                    f"{name} {version(name)}"
                    for name in ("typer", "redis", "psycopg", "SQLAlchemy")
                ),
            ]
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
