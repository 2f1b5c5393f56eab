"""What makes the database unavailable for a while, and scripts that use a recorder."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from modelctl import Fleet
from tests import ROOT
from tests.fleets import environ, is_sqlite, opened


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Lock the database as another program may: until the end of the block nothing can be written."""
    if is_sqlite(url):
        file = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            file.execute("BEGIN IMMEDIATE")
            yield
        finally:
            file.close()
    else:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE models IN SHARE MODE")
            yield


@dataclass
class Told:
    """A fleet, and what it warned about."""

    url: str
    fleet: Fleet
    warnings: list[str] = field(default_factory=list)


@pytest.fixture
def told(fleet_url: str) -> Iterator[Told]:
    """Give a fleet without models on a database of each kind, which waits 2 s for it at most."""
    with opened(fleet_url, database_timeout="2s") as fleet:
        found = Told(fleet_url, fleet)
        fleet.on_warning = found.warnings.append
        yield found


@contextmanager
def script(url: str, text: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program that has a `fleet` and a `recorder` of it, and kill it in the end."""
    start = (
        "import atexit, os, signal, sys, time\n"
        "from modelctl import Fleet\n"
        "fleet = Fleet.open()\n"
        "fleet.on_warning = lambda text: print(text, file=sys.stderr, flush=True)\n"
        "recorder = fleet.recorder()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start + text],
        cwd=ROOT,
        env={**os.environ, **environ(url, **settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(url: str, text: str, **settings: Any) -> tuple[int, str, str]:
    """Run such a program to its end; return its exit code, output and messages."""
    with script(url, text, **settings) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def line(process: subprocess.Popen[str]) -> Any:
    """Read a line of JSON from a program."""
    assert process.stdout
    return json.loads(process.stdout.readline())
