"""Every command has help and every output: the table of commands is complete."""

from __future__ import annotations

import json
import re

import pytest

from modelctl.model import ModelStatus
from tests import commands
from tests.cli.examples import EVERYTHING, TIME, find, status_of
from tests.commands import Cli, Result, sql

CHANGE = {"id", "before", "after", "changed", "result"}
PLANNED = {"kind", "id", "old", "new", "source", "note"}  # of import and sync


# ── every command and every option ──


# Covered on their own.
# They need a configuration or an operation, have no -o or no end: they have tests of their own.
NEEDY = (
    *(("probe",), ("undo",), ("metrics",), ("run",), ("watch",), ("notify",), ("export",)),
    *(("config", "example"), ("completion",), ("db", "uninstall"), ("db", "schema")),
)
CHANGING = ("disable", "enable", "remove", "edit", "recover")
ELSEWHERE = {
    *(("cache drain", "--follow"), ("doctor", "--audit")),
    *(("events", name) for name in ("--follow", "--actor", "--operation")),  # tests/history
    *(("availability", "--html"), ("availability", "--png")),  # tests/availability
    ("doctor", "--nagios"),  # tests/doctor/test_nagios.py
    *(
        *((name, "--timed") for name in ("list", *CHANGING)),
        *((name, f"--{of}") for name in CHANGING for of in ("source", "gone")),
        ("recover", "--probe"),
        ("recover", "--check"),
    ),  # tests/recovery/test_guards.py, test_recovery.py, tests/models/test_selection.py, test_origins.py
}


def test_the_table_of_commands_is_complete() -> None:
    """Every command and every option of the program is in the table that these tests run."""
    known = {
        (" ".join(words), parameter.opts[-1])
        for words, command in commands.commands().items()
        for parameter in command.params
        if parameter.opts[-1].startswith("--") and words not in NEEDY
    }
    names = {" ".join(words) for words in commands.commands()}
    used: set[tuple[str, str]] = set()
    for line, _, _ in EVERYTHING:
        name = " ".join(line.split()[:2])
        name = name if name in names else line.split()[0]
        used |= {(name, word) for word in line.split() if word.startswith("--")}
        used |= {(name, "--output"), (name, "--raw"), (name, "--help")}
    assert {name for name, _ in used} | {" ".join(words) for words in NEEDY} == names
    assert known - used == ELSEWHERE


@pytest.mark.parametrize(("line", "code", "keys"), EVERYTHING, ids=[e[0] for e in EVERYTHING])
def test_json_of_every_command(
    fleet: None, cli: Cli, files: dict[str, str], line: str, code: int, keys: set[str]
) -> None:
    """Every command prints one JSON value with the documented keys and times in UTC, and no other text."""
    sql("INSERT INTO modelctl_events (model_id, event) VALUES ('acme/one', 'added')")
    words = [files.get(word, word) for word in line.split()]
    result = cli("--config", files["CONFIG"], *words, "-o", "json")
    assert (result.code, result.err) == (code, "")
    value = result.json
    assert value, "an empty list shows no keys"
    # Fields may be added, never taken away.
    assert all(keys <= item.keys() for item in (value if isinstance(value, list) else [value]))
    times = find(value, lambda key: key == "at" or key.endswith("_at"))
    assert all(time is None or TIME.fullmatch(time) for time in times)
    changes = value.get("changes", []) if isinstance(value, dict) else []
    assert all(change.keys() >= (PLANNED if "kind" in change else CHANGE) for change in changes)


def test_probing(fleet: None, cli: Cli, files: dict[str, str]) -> None:
    """`probe` asks models that are off, and says how many requests that would be."""
    probe = ("--config", files["CONFIG"], "probe", "acme/off")
    assert cli(*probe, "--dry-run") == Result(0, "", "1 request would be made\n")
    asked = cli(*probe, "-o", "json", "--actor", "me").json
    assert [(a["id"], a["healthy"]) for a in asked["answers"]] == [("acme/off", True)]
    assert status_of("acme/off") == "disabled"
    cli(*probe[:-1], "acme/one").failed(8, "is active")
    cli("probe", "acme/off").failed(3, "no probe is configured")


@pytest.mark.parametrize(("line", "code", "keys"), EVERYTHING, ids=[e[0] for e in EVERYTHING])
def test_every_output_of_every_command(
    fleet: None, cli: Cli, files: dict[str, str], line: str, code: int, keys: set[str]
) -> None:
    """Every command prints in every form, without colours and without trailing noise in a pipe."""
    words = [files.get(word, word) for word in line.split()]
    saved = commands.database().read_bytes()
    printed = {}
    for form in ("table", "csv", "tsv", "jsonl", "name"):
        commands.database().write_bytes(saved)
        result = cli("--config", files["CONFIG"], *words, "--output", form)
        # The models of the test have no events.
        repaired = "repaired: the history did not say the status of 5 models\n"
        assert (result.code, result.err) == (code, repaired if line == "db upgrade" else "")
        assert "\x1b" not in result.out
        printed[form] = result.lines
    header, *rows = printed["csv"]
    assert re.fullmatch("[a-z_]+(,[a-z_]+)*", header)
    assert len(printed["name"]) == len(printed["tsv"]) == len(printed["jsonl"]) == len(rows)
    assert all(len(row.split("\t")) == len(header.split(",")) for row in printed["tsv"])
    assert all(isinstance(json.loads(row), dict) for row in printed["jsonl"])
    assert printed["table"]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(cli: Cli, option: str) -> None:
    """Every command and group explains itself, every option included, in full on 80 columns."""
    for words, command in commands.commands().items():
        result = cli(*words, option)
        assert result.code == 0
        assert result.out.startswith(f"Usage: modelctl {' '.join(words)}")
        assert command.help
        assert all(parameter.help for parameter in command.params), words
    for group in ([], ["cache"], ["db"], ["config"]):
        result = cli(*group, option)
        assert (result.code, result.err) == (0, "")
        assert "..." not in result.out.replace("[ARGS]...", "")


def test_version(cli: Cli) -> None:
    """The version is printed wherever it is asked for before a command."""
    for arguments in (["-V"], ["--version"], ["--debug", "-V"], ["--version", "count"]):
        result = cli(*arguments)
        assert (result.code, result.err) == (0, "")
        assert re.fullmatch(r"modelctl \d+\.\d+\.\d+\n", result.out)


@pytest.mark.parametrize("group", [[], ["cache"], ["db"], ["config"]], ids=lambda g: "".join(g))
def test_no_command_shows_the_help(cli: Cli, group: list[str]) -> None:
    """Without a command the program shows its commands, as help on stderr."""
    result = cli(*group)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: modelctl")
    assert "Commands:" in result.err


# ── progress ──


def test_statuses_are_documented() -> None:
    """The statuses that --status takes are those of the model."""
    [option] = [p for p in commands.commands()[("list",)].params if p.name == "status"]
    assert set(option.type.choices) == set(ModelStatus)
