"""Processes that do what is measured when they are told: they start `benchmarks.child`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `benchmarks.child` with *arguments* for a block; when the block begins, the child is ready."""
    command = [sys.executable, "-m", "benchmarks.child", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            hear(process)
            yield process
        finally:
            process.communicate(timeout=60)


def tell(process: subprocess.Popen[str], line: object) -> None:
    """Send a line to a child."""
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> None:
    """Wait until a child has done what it was told."""
    assert process.stdout
    if json.loads(process.stdout.readline() or "null") is None:
        raise RuntimeError("a process that is measured ended early")
