"""A limit is announced, 0 is no limit, and each run warns of a database that nobody configured."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from modelctl import Fleet, ModelNotFoundError, UsageError
from tests import commands
from tests.commands import Cli, add, make_fleet
from tests.fleets import opened, seed, sql

MANY = 40_000
MORE = "and there are more"


@pytest.fixture
def ten(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the program find a fleet whose history has ten events."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, "abcdefghij")
    return fleet_url


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "tsv", "name"])
def test_events_say_that_there_are_more(ten: str, cli: Cli, form: str) -> None:
    """A history that is cut says on stderr that there is more and what to do."""
    cut = cli("events", "--limit", "9", "-o", form)
    assert cut.code == 0
    assert MORE in cut.err
    assert "--limit 0" in cut.err
    assert "--since" in cut.err
    for limit in ("10", "0", "100"):
        whole = cli("events", "--limit", limit, "-o", form)
        assert (whole.code, whole.err) == (0, "")
    if form == "name":
        assert (len(cut.lines), len(whole.lines)) == (9, 10)


def test_the_default_is_a_hundred(ten: str, cli: Cli) -> None:
    """Without --limit the newest hundred are shown, and that is announced."""
    with opened(ten) as fleet:
        seed(fleet, (f"m{n}" for n in range(91)))
    result = cli("events", "-o", "json")
    assert len(result.json) == 100
    assert "100 events shown, the newest" in result.err
    assert len(cli("events", "--limit", "0", "-o", "jsonl").lines) == 101


def test_the_leaderboard_says_that_there_are_more(ten: str, cli: Cli) -> None:
    """Ten models by default are announced where there are more; a --top that was asked for is not."""
    assert cli("leaderboard", "--untested").err == ""
    with opened(ten) as fleet:
        seed(fleet, "z")
    result = cli("leaderboard", "--untested")
    assert (len(result.lines), "--top 0" in result.err) == (10, True)
    assert cli("leaderboard", "--untested", "--top", "3").err == ""
    assert len(cli("leaderboard", "--untested", "--top", "0").lines) == 11


def test_no_limit(ten: str, cli: Cli) -> None:
    """0 and None mean no limit in every command and method; a negative limit is refused."""
    assert len(cli("list", "--limit", "0").lines) == 10
    with opened(ten) as fleet:
        for limit in (0, None):
            assert len(fleet.list_models(limit=limit)) == 10
            assert len(fleet.events(limit=limit)) == 10
            assert len(list(fleet.iter_events(limit=limit))) == 10
            assert len(fleet.leaderboard(top=limit, untested=True)) == 10
            assert fleet.recover(limit=limit).recovered == ()
        bad: Any
        for bad in (-1, 2**63, 1.5):
            for method in (fleet.list_models, fleet.events, fleet.iter_events, fleet.recover):
                with pytest.raises(UsageError, match="a limit is"):
                    method(limit=bad)
    for command in ("list", "events", "recover"):
        cli(command, "--limit", "-1").failed(2)


def test_events_one_by_one(ten: str) -> None:
    """`iter_events` gives what `events` gives, and a slow consumer blocks no writer."""
    with opened(ten) as fleet:
        found = fleet.iter_events(limit=None)
        first = next(found)
        fleet.disable("a")
        assert [first, *found] == [*fleet.events()[1:]]


def test_a_long_history_in_constant_memory(ten: str) -> None:
    """`events --limit 0` over a long history takes no more memory than a short one, in each format."""
    long = "x" * 400
    sql(
        ten,
        "INSERT INTO modelctl_events (model_id, event, reason)"
        f" WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})"
        f" SELECT 'm' || i, 'added', '{long}' FROM n",
    )
    for form in ("tsv", "json", "csv"):
        peak = _peak("events", "--limit", "0", "-o", form)
        assert peak - _peak("events", "-o", form) < MANY * len(long) / 2, form


def _peak(*words: str) -> int:
    """Return the most memory (bytes) that the program ever had."""
    with (
        open(os.devnull, "wb") as nowhere,
        subprocess.Popen([*commands.PROGRAM, *words], stdout=nowhere) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss * 1024


UNATTENDED = [
    ["count"],
    ["count", "--fresh"],
    ["count", "--verify"],
    ["recover"],
    ["recover", "--dry-run"],
    ["record-success", "a"],
    ["record-failure", "a"],
    ["record-failure", "a", "--http-status", "499"],
    ["record-batch", "-"],
]


@pytest.fixture
def unattended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the program in this process, with an empty stdin."""

    def call(*words: str) -> commands.Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        return cli(*words)

    return call


@pytest.mark.parametrize("words", UNATTENDED, ids=" ".join)
def test_nothing_configured(words: list[str], unattended: Cli) -> None:
    """Every run, not only the first, warns if no database is configured and the data folder has none."""
    for _ in range(3):
        result = unattended(*words)
        assert "no database is configured" in result.err
        assert "MODELCTL_DATABASE_URL" in result.err
        assert result.code == (4 if words[0] in ("record-success", "record-failure") else 0)


@pytest.mark.parametrize("words", UNATTENDED, ids=" ".join)
def test_a_fleet_that_is_not_empty(
    words: list[str], sqlite_database: str, unattended: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedded database that has models or is configured causes no warning."""
    with monkeypatch.context() as environment:
        environment.setenv("MODELCTL_DATABASE_URL", sqlite_database)
        assert "configured" not in unattended(*words).err
    make_fleet()
    add("a")
    commands.sql("UPDATE models SET active = FALSE")
    for _ in range(2):
        assert "configured" not in unattended(*words).err


def test_nothing_configured_in_the_api() -> None:
    """The library warns too, each time."""
    said: list[str] = []
    with Fleet.open() as fleet:
        fleet.on_warning = said.append
        for _ in range(2):
            fleet.count()
            fleet.recover()
            with pytest.raises(ModelNotFoundError):
                fleet.record_success("a")
            fleet.record_batch([])
    assert len(said) == 8
    assert {"no database is configured" in message for message in said} == {True}
