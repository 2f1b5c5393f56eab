"""One bad row stops itself alone: SQLite keeps whatever is written into a column."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelctl.tables import MODELS
from tests.commands import Cli
from tests.fleets import ago, clear, opened, seed, sql, trip

VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5)
)
COLUMNS = [column.name for column in MODELS.c]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(row={"id": b"\xff", "active": 0, "auto_disabled": 1})
@example(row={"success_count": 2**63 - 1, "failure_count": "many", "provider": b"p"})
@given(row=st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_whatever_a_row_holds(
    sqlite_database: str, cli: Cli, monkeypatch: Any, row: dict[str, Any]
) -> None:
    """Beside a row of any values every command does with the others what it does without it."""
    url = sqlite_database
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    clear(url)
    with opened(url) as fleet:
        seed(fleet, ["good", "off"])
        trip(fleet, "off")
        sql(url, f"UPDATE models SET last_failure_at = {ago(url, 7200)} WHERE id = 'off'")
    row = {"id": "bad"} | row
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
        names, places = ", ".join(row), ", ".join("?" * len(row))
        try:
            file.execute(f"INSERT INTO models ({names}) VALUES ({places})", [*row.values()])
        except sqlite3.IntegrityError:  # the id is another one's, or NaN, which is NULL
            return
    for command in (
        ("list", "-o", "json"),
        ("list", "-o", "table"),
        ("stats", "-o", "json"),
        ("leaderboard", "-o", "json"),
        ("events",),
        ("show", "good"),
        ("recover", "--dry-run"),
        ("count", "--fresh"),
    ):
        ran = cli(*command)
        assert ran.code == 0, (command, ran)
    assert "good" in cli("list", "-o", "name").lines
    assert "off" in cli("recover").lines
    assert cli("disable", "good").code == 0
