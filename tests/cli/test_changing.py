"""The commands that change say what they did, ask before they remove, and repeat without effect."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests import commands
from tests.cli.examples import status_of
from tests.commands import Cli, Result, finish, on_terminal, sql

# ── changing ──


def test_repeating_says_already(fleet: None, cli: Cli) -> None:
    """A repeated command succeeds, says "already" and writes no history."""
    assert cli("add", "acme/new").out == "acme/new\t\tactive\tadded\ttrue\n"
    cli("remove", "acme/new", "--yes")
    sql("DELETE FROM modelctl_events")
    for words, result in {
        ("disable", "acme/off"): "already disabled",
        ("enable", "acme/one"): "already active",
        ("add", "acme/one"): "already active",
        ("add", "acme/off"): "already disabled",
    }.items():
        assert cli(*words).lines[0].split("\t")[3] == result
        assert not cli(*words, "-o", "json").json["changes"][0]["changed"]
    assert sql("SELECT * FROM modelctl_events") == []
    assert cli("remove", "acme/off", "--yes").out == "acme/off\tdisabled\t\tremoved\ttrue\n"
    assert cli("remove", "acme/off", "--yes").out == "acme/off\t\t\talready removed\tfalse\n"


def test_disabling_an_auto_disabled_model(fleet: None, cli: Cli) -> None:
    """A person's disable replaces the health rule's, and recover then leaves the model off."""
    changed = cli("disable", "other/due", "-o", "json").json["changes"]
    assert changed == [
        {
            **{"id": "other/due", "before": "auto-disabled", "after": "disabled"},
            **{"changed": True, "result": "disabled"},
        }
    ]
    assert cli("recover", "-o", "json").json["recovered"] == []


def test_several_ids_are_all_or_none(fleet: None, cli: Cli) -> None:
    """An unknown id among several is exit 4, named, and nothing is changed."""
    for command in (["disable"], ["enable"], ["remove", "--yes"]):
        result = cli(*command, "acme/one", "nobody", "acme/off")
        result.failed(4, "'nobody'", "nothing was changed")
    assert (status_of("acme/one"), status_of("acme/off")) == ("active", "disabled")
    both = cli("disable", "acme/two", "acme/one", "acme/two", "-o", "json").json
    assert [change["id"] for change in both["changes"]] == ["acme/two", "acme/one"]
    assert (status_of("acme/one"), status_of("acme/two")) == ("disabled", "disabled")


def test_dry_runs_change_nothing(fleet: None, cli: Cli, files: dict[str, str]) -> None:
    """A dry run says what would happen and leaves every row as it was."""
    before = sql("SELECT * FROM models")
    assert cli("disable", "acme/one", "--dry-run").lines == [
        "acme/one\tactive\tdisabled\twould be disabled\ttrue"
    ]
    assert cli("enable", "acme/off", "--dry-run", "-o", "json").json == {
        "changes": [
            {
                **{"id": "acme/off", "before": "disabled", "after": "active"},
                **{"changed": True, "result": "would be active"},
            }
        ],
        **{"cache": "unchanged", "dry_run": True, "operation": None},
    }
    assert cli("recover", "--dry-run", "-o", "json").json["recovered"] == ["other/due"]
    assert cli("import", files["CATALOGUE"], "--dry-run", "-o", "json").json["added"] == 1
    assert (sql("SELECT * FROM models"), sql("SELECT * FROM modelctl_events")) == (before, [])


def test_fifth_counted_failure(fleet: None, cli: Cli) -> None:
    """Four failures leave a model active, a type that does not count too; the fifth is the end."""
    for _ in range(4):
        cli("record-failure", "acme/one", "--http-status", "404")
    for words, shown in {
        (
            "record-failure",
            "--http-status",
            "429",
        ): "active\tactive\tnot counted (rate-limit), 4 of 5",
        ("record-failure", "--type", "parse-error"): (
            "active\tauto-disabled\tcounted: switched off (5 of 5)"
        ),
        ("record-success",): "auto-disabled\tactive\tactive",
    }.items():
        [line] = cli(*words, "acme/one").lines
        assert line.startswith(f"acme/one\t{shown}\t")


def test_actor(fleet: None, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history names the flag's actor, else the environment's, else user@host."""
    monkeypatch.setenv("LOGNAME", "ann")
    cli("disable", "acme/one")
    monkeypatch.setenv("MODELCTL_ACTOR", "robot")
    cli("enable", "acme/one")
    cli("disable", "acme/one", "--actor", "me")
    actors = [actor for (actor,) in sql("SELECT actor FROM modelctl_events ORDER BY id")]
    assert actors == [f"ann@{os.uname().nodename}", "robot", "me"]


# ── removing asks ──


@pytest.mark.parametrize(
    ("answer", "code", "left"),
    [("y", 0, 0), ("n", 8, 1), ("", 8, 1)],
)
def test_remove_asks_on_a_terminal(fleet: None, answer: str, code: int, left: int) -> None:
    """On a terminal it shows what would go and removes only on a yes."""
    child = on_terminal("remove", "acme/off")
    child.expect_exact("acme/off (disabled)")
    child.expect_exact("Remove for good? [y/N] ")
    child.sendline(answer)
    assert finish(child)[0] == code
    assert sql("SELECT count(*) FROM models WHERE id = 'acme/off'") == [(left,)]


@pytest.mark.parametrize(("key", "code"), [("c", 130), ("d", 8)])
def test_remove_can_be_left(fleet: None, key: str, code: int) -> None:
    """Ctrl-C at the question is an interrupt, the end of the input is no answer; nothing goes."""
    child = on_terminal("remove", "acme/off")
    child.expect_exact("[y/N] ")
    child.sendcontrol(key)
    assert finish(child)[0] == code
    assert status_of("acme/off") == "disabled"


def test_remove_asks_beside_the_data(fleet: None, tmp_path: Path) -> None:
    """With stdout in a file the question is on the terminal and the file holds data alone."""
    master, terminal = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [*commands.PROGRAM, "remove", "acme/off"], stdin=terminal, stdout=out, stderr=terminal
        )
        os.close(terminal)
        asked = b""
        while b"[y/N] " not in asked:
            asked += os.read(master, 1000)
        os.write(master, b"y\n")
        assert process.wait(commands.SECONDS) == 0
    os.close(master)
    assert (tmp_path / "out").read_text() == "acme/off\tdisabled\t\tremoved\ttrue\n"


def test_remove_without_a_terminal_needs_yes(fleet: None, cli: Cli) -> None:
    """In a pipe it is refused without --yes, and nothing is removed."""
    cli("remove", "acme/off").failed(8, "nobody can be asked", "--yes")
    assert status_of("acme/off") == "disabled"


# ── recovering ──


def test_recover_in_a_pipe(fleet: None, cli: Cli) -> None:
    """For cron, recover prints one line for each model that came back, and nothing if none did."""
    assert cli("recover") == Result(0, "other/due\n", "")
    assert cli("recover") == Result(0, "", "")
    left = cli("recover", "-o", "json").json
    assert (left["recovered"], left["busy"], left["dry_run"]) == ([], False, False)
    [waiting] = left["waiting"]
    assert waiting.keys() == {"id", "retry_at", "seconds_left", "why"}
    assert waiting["id"] == "other/tripped"
    assert cli("recover", "--cooldown", "0s") == Result(0, "other/tripped\n", "")
    assert sql("SELECT DISTINCT consecutive_failures FROM models WHERE provider = 'other'") == [
        (2,)
    ]


def test_recover_never_touches_a_manual_disable(fleet: None, cli: Cli) -> None:
    """A model that a person disabled stays disabled, whatever the cooldown."""
    cli("recover", "--cooldown", "0s")
    cli("record-success", "acme/off")
    assert status_of("acme/off") == "disabled"


def test_recover_limit(fleet: None, cli: Cli) -> None:
    """A limit takes the longest waiting first, 0 is no limit."""
    assert cli("recover", "--cooldown", "0s", "--limit", "1", "--dry-run", "-o", "name").lines == [
        *("other/due", "other/tripped")
    ]
    assert cli("recover", "--cooldown", "0s", "--limit", "1").out == "other/due\n"
    assert cli("recover", "--cooldown", "0s", "--limit", "0").out == "other/tripped\n"
