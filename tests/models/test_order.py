"""Sorted lists have one order, whatever the database and its locale."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelctl import Fleet
from tests.fleets import opened, sql
from tests.servers import Postgres

IDS = ["a", "B", "_", "Z", "é", "b", "a/b", "A-1", "a1", "ab", "Ａ", "😀"]
FAILURE = {"outcome": "failure", "type": "parse-error"}
LONG_AGO = "2026-01-01T00:00:00.000Z"


def orders(fleet: Fleet, execute: Callable[[str], Any]) -> dict[str, list[Any]]:
    """Return every list of ids that has an order."""
    lines = (f'{{"id": "{i}", "provider": "{i}", "name": "n{i}"}}' for i in IDS)
    fleet.import_models("\n".join(lines).encode())
    found: dict[str, list[Any]] = {
        key: [m.id for m in fleet.list_models(sort=key)]
        for key in ("id", "name", "provider", "status", "failures")
    }
    found["page"] = [m.id for m in fleet.list_models(limit=4)]
    found["leaderboard"] = [entry.id for entry in fleet.leaderboard(top=99, untested=True)]
    found["leaders"] = [entry.id for entry in fleet.leaderboard(top=4, untested=True)]
    found["added"] = [event.model_id for event in fleet.events()]
    found["providers"] = [p.provider for p in fleet.stats().providers]
    result = fleet.record_batch({"id": i, **FAILURE} for i in IDS for _ in range(5))
    found["batch"] = [change.id for change in result.changes]
    execute(f"UPDATE models SET last_failure_at = '{LONG_AGO}'")
    for dry_run in (True, False):
        run = fleet.recover(limit=5, dry_run=dry_run)
        found[f"recovered {dry_run}"] = [*run.recovered]
        found[f"waiting {dry_run}"] = [waiting.id for waiting in run.waiting]
    fleet.disable(*IDS)
    found["disabled"] = [event.model_id for event in fleet.events(limit=len(IDS))]
    for provider in IDS:
        fleet.pause(10, provider=provider)
    found["holds"] = [hold.provider for hold in fleet.holds()]
    found["completion"] = fleet.complete("")
    return found


@pytest.fixture
def with_locale(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name a locale that sorts as a dictionary does, made here if it can be; else C."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user
        command = ["localedef", "-i", "en_US", "-f", "UTF-8", f"{folder}/en_US.UTF-8"]
        monkeypatch.setenv("LOCPATH", folder)
        made = (
            shutil.which("localedef")
            and not subprocess.run(command, capture_output=True, check=False).returncode
        )
        yield "en_US.UTF-8" if made else "C"


def test_one_order_on_all_databases(sqlite_database: str, with_locale: str) -> None:
    """Lists are sorted by code points, also where the database's own order is another."""
    with opened(sqlite_database) as fleet:
        here = orders(fleet, lambda text: sql(sqlite_database, text))
    for name, found in here.items():
        expected = sorted(found, reverse=name in ("added", "disabled"))
        assert found == expected, name
    with Postgres() as server:
        server.execute(
            "CREATE DATABASE dictionary LOCALE_PROVIDER libc"
            f" LOCALE '{with_locale}' TEMPLATE template0"
        )
        url = server.url("dictionary")
        with opened(url) as fleet:
            fleet.upgrade()
            assert orders(fleet, lambda text: sql(url, text)) == here
