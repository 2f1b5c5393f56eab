from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from modelctl.errors import ExitCode
from modelctl.model import ModelStatus
from tests import ROOT, commands
from tests.commands import Cli, Result, add, finish, make_fleet, on_terminal, plain, sql, start
from tests.servers import Redis, refused_port

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

CHANGES = {"changes", "cache", "dry_run"}
CHANGE = {"id", "before", "after", "changed", "result"}
MODEL = {
    *("id", "display_name", "provider", "active", "auto_disabled", "consecutive_failures"),
    *("ejections", "success_count", "failure_count", "last_success_at", "last_failure_at"),
    *("failure_type", "failure_reason", "disabled_at", "disabled_by", "disabled_reason"),
    *("created_at", "updated_at", "status", "retry_at", "seconds_left"),
}
EVENT = {
    *("id", "at", "model_id", "event", "before", "after", "actor", "reason", "failure_type"),
    "details",
}
RECOVERY = {"recovered", "waiting", "busy", "cache", "dry_run"}
STATS = {
    *("models", "active", "disabled", "auto_disabled", "providers"),
    *("success_count", "failure_count"),
}
COUNT = {"active", "source", "age_seconds", "expires_in_seconds"}
DRAINED = {"delivered", "queued", "cache"}
SCHEMA = {
    *("database", "current", "head", "up_to_date", "table"),
    *("findings", "obstacles", "repaired", "dry_run"),
}
IMPORTED = {
    *("added", "updated", "unchanged", "skipped", "rejected", "cache", "dry_run"),
}


@pytest.fixture
def fleet() -> None:
    """Make a database with five models where the program looks for one."""
    make_fleet()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the names of a catalogue, of a bad one, and of a batch of outcomes."""
    texts = {
        "CATALOGUE": '{"id": "new/model", "name": "New"}\n{"id": "acme/one", "name": "Uno"}\n',
        "BATCH": '{"id": "acme/one", "outcome": "success"}\n',
        "CONFIG": "[cache]\nttl = '30s'\n[probe.acme]\ncommand = ['true']\n",
    }
    names = {name: str(tmp_path / name.lower()) for name in texts}
    for name, text in texts.items():
        Path(names[name]).write_text(text)
    return names


def status_of(model_id: str) -> str:
    """Say the status of a row, read without the program."""
    [(active, automatic)] = sql("SELECT active, auto_disabled FROM models WHERE id = ?", model_id)
    return "active" if active else "auto-disabled" if automatic else "disabled"


# --- every command and every option

PAUSE = {"provider", "paused", "until", "reason", "changed"}

# Each line: a command, its exit code on the fleet of five, and the keys of its JSON.
EVERYTHING: list[tuple[str, int, set[str]]] = [
    ("count", 0, COUNT),
    ("count --fresh", 0, COUNT),
    ("count --strong", 0, COUNT),
    ("count --verify", 0, COUNT | {"cached", "database", "match"}),
    ("list", 0, MODEL),
    ("list --status active --provider acme --sort updated --limit 1", 0, MODEL),
    ("show acme/one", 0, MODEL),
    ("stats", 0, STATS),
    (
        "leaderboard",
        0,
        {
            "rank",
            "id",
            "display_name",
            "provider",
            "success_rate",
            "success_count",
            "failure_count",
        },
    ),
    ("leaderboard --top 1 --provider acme --untested", 0, {"rank", "id"}),
    ("add new/model", 0, CHANGES),
    ("add new/model --name New --provider new --actor me", 0, CHANGES),
    ("remove acme/one acme/two --yes --reason old --actor me", 0, CHANGES),
    ("remove acme/one --dry-run", 0, CHANGES),
    ("disable acme/one acme/two --reason why --actor me", 0, CHANGES),
    ("disable acme/one --dry-run", 0, CHANGES),
    ("disable acme/one --for 2h --force", 0, CHANGES),
    ("disable acme/one --until 2999-12-01T08:00Z", 0, CHANGES),
    ("enable acme/off --reason why --actor me", 0, CHANGES),
    ("enable acme/off --dry-run", 0, CHANGES),
    ("record-success acme/one --actor me", 0, CHANGES),
    ("record-failure acme/one", 0, CHANGES),
    ("record-failure acme/one --type timeout --reason slow --actor me", 0, CHANGES),
    ("record-failure acme/one --http-status 404", 0, CHANGES),
    ("record-batch BATCH --actor me --unknown skip", 0, {"recorded", "changes", "cache"}),
    ("recover", 0, RECOVERY),
    ("recover --dry-run", 0, RECOVERY),
    ("recover --limit 1 --cooldown 0s --actor me", 0, RECOVERY),
    ("pause --for 1h --provider acme --reason why --actor me", 0, PAUSE),
    ("resume --provider acme --reason why --actor me", 0, PAUSE),
    ("import CATALOGUE", 0, IMPORTED),
    (
        "import CATALOGUE --format jsonl --on-conflict skip --provider p --partial --strict --dry-run --actor me",
        0,
        IMPORTED,
    ),
    ("events", 0, EVENT),
    ("events acme/one --since 2d --limit 500", 0, EVENT),
    ("cache show", 0, {"backend", "keys", "queued", "settling", "oldest_queued_seconds"}),
    ("cache clear", 0, DRAINED),
    ("cache drain", 0, DRAINED),
    ("db detach --yes", 0, {"removed"}),
    ("db upgrade", 0, SCHEMA),
    ("db upgrade --dry-run", 0, SCHEMA),
    ("db status", 0, SCHEMA),
    ("config show", 0, {"file", "settings"}),
    ("doctor", 0, {"ok", "checks"}),
]
# Covered on their own.
ELSEWHERE = {
    *(("cache drain", "--follow"), ("doctor", "--audit")),
    *(
        ("recover", "--probe"),
        ("recover", "--check"),
    ),  # tests/recovery/test_guards.py, test_recovery.py
}


def test_the_table_of_commands_is_complete() -> None:
    """Every command and every option of the program is in the table that these tests run."""
    known = {
        (" ".join(words), parameter.opts[-1])
        for words, command in commands.commands().items()
        for parameter in command.params
        if parameter.opts[-1].startswith("--") and words != ("probe",)  # it needs a configuration
    }
    names = {" ".join(words) for words in commands.commands()}
    used: set[tuple[str, str]] = set()
    for line, _, _ in EVERYTHING:
        name = " ".join(line.split()[:2])
        name = name if name in names else line.split()[0]
        used |= {(name, word) for word in line.split() if word.startswith("--")}
        used |= {(name, "--output"), (name, "--raw"), (name, "--help")}
    assert {name for name, _ in used} | {"probe"} == names
    assert known - used == ELSEWHERE


@pytest.mark.parametrize(("line", "code", "keys"), EVERYTHING, ids=[e[0] for e in EVERYTHING])
def test_json_of_every_command(
    fleet: None, cli: Cli, files: dict[str, str], line: str, code: int, keys: set[str]
) -> None:
    """Every command prints one JSON value with the documented keys and UTC times, and no words."""
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
    assert all(change.keys() >= CHANGE for change in changes)


def test_probing(fleet: None, cli: Cli, files: dict[str, str]) -> None:
    """`probe` asks models that are off, and says how many requests that would be."""
    probe = ("--config", files["CONFIG"], "probe", "acme/off")
    assert cli(*probe, "--dry-run") == Result(0, "", "1 request would be made\n")
    asked = cli(*probe, "-o", "json", "--actor", "me").json
    assert [(a["id"], a["healthy"]) for a in asked["answers"]] == [("acme/off", True)]
    assert status_of("acme/off") == "disabled"
    cli(*probe[:-1], "acme/one").failed(8, "is active")
    cli("probe", "acme/off").failed(3, "no probe is configured")


def find(value: Any, wanted: Callable[[str], bool]) -> list[Any]:
    """Return what is under the wanted keys, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in find(item, wanted)]
    if not isinstance(value, dict):
        return []
    deep = [found for item in value.values() for found in find(item, wanted)]
    return [item for key, item in value.items() if wanted(key)] + deep


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
        result = cli(*words, "--output", form)
        assert (result.code, result.err) == (code, "")
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
    """Whoever names no command is shown the commands, as help that nobody asked for."""
    result = cli(*group)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: modelctl")
    assert "Commands:" in result.err


# --- counting


def test_count_works_at_once(cli: Cli) -> None:
    """Without any configuration the first count creates the database, says 0 and where that is."""
    result = cli("count")
    assert (result.code, result.out) == (0, "0\n")
    assert f"no database is configured, so {commands.database()} is used" in result.err
    file = commands.database()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_count_says_where_it_came_from(fleet: None, cli: Cli) -> None:
    """A count is from the database first and from the cache then, with its age."""
    fresh = cli("count", "-o", "json").json
    assert fresh == {
        **{"active": 2, "source": "database", "age_seconds": 0, "expires_in_seconds": None}
    }
    cached = cli("count", "-o", "json").json
    assert (cached["active"], cached["source"]) == (2, "cache")
    assert cached["age_seconds"] + cached["expires_in_seconds"] == pytest.approx(60, abs=0.01)
    assert cli("count", "--fresh", "-o", "json").json["source"] == "database"
    cli("disable", "acme/one")
    assert cli("count", "-o", "json").json == fresh | {"active": 1}


def test_verify_reads_both(fleet: None, cli: Cli) -> None:
    """A wrong number in the cache is exit 6, an absent one is no fault."""
    assert cli("count", "--verify", "-o", "json").json["cached"] is None
    cli("count")
    result = cli("count", "--verify")
    assert result == Result(0, "2\n", "")
    sql("UPDATE modelctl_cache SET value = 999")
    result = cli("count", "--verify", "-o", "json")
    assert (result.code, result.err) == (ExitCode.STALE_CACHE, "")
    assert (result.json["cached"], result.json["database"]) == (999, 2)
    assert not result.json["match"]
    result = cli("count", "--verify")
    assert (result.code, result.out) == (6, "2\n")
    assert "differs" in result.err


# --- reading


def test_list_filters_and_sorts(fleet: None, cli: Cli) -> None:
    """The listing obeys status, provider, order and limit."""

    def ids(*arguments: str) -> list[str]:
        return cli("list", *arguments, "-o", "name").lines

    everyone = ["acme/off", "acme/one", "acme/two", "other/due", "other/tripped"]
    assert ids() == everyone
    assert ids("--status", "active") == ["acme/one", "acme/two"]
    assert ids("--status", "disabled") == ["acme/off"]
    assert ids("--status", "auto-disabled") == ["other/due", "other/tripped"]
    assert ids("--provider", "other") == ["other/due", "other/tripped"]
    assert ids("--provider", "nobody") == []
    assert ids("--limit", "2") == everyone[:2]
    assert ids("--sort", "failures")[:2] == ["other/due", "other/tripped"]
    assert ids("--sort", "status")[:2] == ["acme/one", "acme/two"]
    assert ids("--sort", "provider") == everyone
    assert ids("--sort", "name") == ["acme/one", *(i for i in everyone if i != "acme/one")]


def test_listing_columns(fleet: None, cli: Cli) -> None:
    """The columns of a listing in a pipe are fixed: scripts cut them."""
    assert cli("list", "-o", "csv").lines[0] == (
        "id,display_name,provider,status,would_disable,consecutive_failures,success_count,"
        "failure_count,retry_at,active,auto_disabled,ejections,last_success_at,last_failure_at,"
        "failure_type,failure_reason,disabled_at,disabled_by,disabled_reason,disabled_until,"
        "recovered_at,created_at,updated_at,seconds_left"
    )
    line = cli("list", "--limit", "1", "--status", "active").lines[0]
    assert line.split("\t")[:9] == ["acme/one", "One", "acme", "active", "", "0", "3", "0", ""]


def test_model_as_json(fleet: None, cli: Cli) -> None:
    """The columns and what follows from them: status, and the end of the cooldown."""
    off = cli("show", "acme/off", "-o", "json").json
    assert (off["status"], off["disabled_by"], off["retry_at"]) == ("disabled", "ann", None)
    assert off["disabled_at"] == "2026-01-02T03:04:05.678Z"
    due = cli("show", "other/due", "-o", "json").json
    assert (due["retry_at"], due["seconds_left"]) == ("2026-01-01T01:00:00.000Z", 0)
    tripped = cli("show", "other/tripped", "-o", "json").json
    assert tripped["status"] == "auto-disabled"
    assert 3500 < tripped["seconds_left"] <= 3600


EXPLANATIONS = {
    "acme/one": ["It is active.", "It has 0 of 5 failures in a row"],
    "acme/off": [
        "It is off since 2026-01-02T03:04:05Z, switched off by ann: too slow.",
        "The next recover leaves it off: a person switched it off",
    ],
    "other/due": [
        "switched off by health rule",
        "It has 5 of 5 failures in a row",
        "HTTP 404",
        "The next recover brings it back with 2 of 5 failures.",
    ],
}


@pytest.mark.parametrize("model_id", EXPLANATIONS)
def test_show_explains(fleet: None, cli: Cli, model_id: str) -> None:
    """One model is explained: since when, by whom, why, and what the next recover would do."""
    told = cli("show", model_id).out
    for words in EXPLANATIONS[model_id]:
        assert words in told
    assert cli("show", model_id, "-o", "json").json["explanation"]
    assert cli("show", model_id, "-o", "name").out == f"{model_id}\n"


def test_stats_and_leaderboard(fleet: None, cli: Cli) -> None:
    """Totals by status and provider; of the active models the best first, the uncalled last."""
    assert cli("stats", "-o", "json").json == {
        **{"models": 5, "active": 2, "disabled": 1, "auto_disabled": 2},
        "providers": [
            {
                **{"provider": "acme", "models": 3, "active": 2, "disabled": 1},
                **{"auto_disabled": 0, "success_count": 3, "failure_count": 0},
            },
            {
                **{"provider": "other", "models": 2, "active": 0, "disabled": 0},
                **{"auto_disabled": 2, "success_count": 0, "failure_count": 14},
            },
        ],
        **{"success_count": 3, "failure_count": 14, "holds": []},
    }
    lines = [line.split("\t") for line in cli("stats").lines]
    assert [line[:3] for line in lines] == [["acme", "3", "2"], ["other", "2", "0"]]
    best = cli("leaderboard", "--untested", "-o", "json").json
    assert [(e["rank"], e["id"], e["success_rate"]) for e in best] == [
        (1, "acme/one", 1),
        (2, "acme/two", None),
    ]
    assert cli("leaderboard", "--top", "1", "-o", "name").out == "acme/one\n"


def test_history(fleet: None, cli: Cli) -> None:
    """The history names who, what, when and why, newest first."""
    cli("disable", "acme/one", "--reason", "bills", "--actor", "ann")
    cli("enable", "acme/one", "--actor", "bob")
    newest, older = cli("events", "acme/one", "-o", "json").json
    assert [newest[k] for k in ("event", "before", "after", "actor", "reason")] == [
        *("enabled", "disabled", "active", "bob", None)
    ]
    assert [older[k] for k in ("event", "actor", "reason")] == ["disabled", "ann", "bills"]
    assert cli("events", "--limit", "1", "-o", "json").json == [newest]
    sql("UPDATE modelctl_events SET at = '2026-01-01T00:00:00.000Z' WHERE event = 'disabled'")
    assert cli("events", "--since", "1h", "-o", "json").json == [newest]
    assert cli("events", "nobody", "-o", "json").json == []


# --- changing


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
        **{"cache": "unchanged", "dry_run": True},
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


# --- removing asks


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


def test_remove_refuses_where_nobody_can_be_asked(fleet: None, cli: Cli) -> None:
    """In a pipe it is refused without --yes, and nothing is removed."""
    cli("remove", "acme/off").failed(8, "nobody can be asked", "--yes")
    assert status_of("acme/off") == "disabled"


# --- batches


def batch(*outcomes: dict[str, str] | str) -> str:
    """Write JSON Lines; text as it is."""
    return "".join(f"{o if isinstance(o, str) else json.dumps(o)}\n" for o in outcomes)


GOOD = {"id": "acme/one", "outcome": "success"}
FAILED = {"id": "acme/two", "outcome": "failure", "type": "parse-error"}


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give text to read on standard input."""

    def give(text: str) -> None:
        stream = io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape")))
        monkeypatch.setattr(sys, "stdin", stream)

    return give


def test_batch_is_recorded(fleet: None, cli: Cli, stdin: Callable[[str], None]) -> None:
    """Blank lines are nothing; only what changed its status in the end is a change."""
    up_again = [FAILED, FAILED, FAILED, FAILED, FAILED, {"id": "acme/two", "outcome": "success"}]
    stdin(batch("", GOOD, "  ", *up_again, *[FAILED | {"id": "acme/one"}] * 5, "\t"))
    assert cli("record-batch", "-", "-o", "json").json == {
        "recorded": 12,
        "changes": [
            {"id": "acme/one", "before": "active", "after": "auto-disabled", "changed": True}
        ],
        "cache": "invalidated",
        "skipped": 0,
        "unknown": [],
    }
    stdin("")
    assert cli("record-batch", "-", "-o", "json").json["recorded"] == 0


LONG = json.dumps(GOOD | {"reason": "x" * (1 << 20)})
BAD_BATCHES = [
    (batch(GOOD, "{"), 2, "line 2: "),
    (batch(GOOD, "", "[]"), 2, "line 3: "),
    (batch(GOOD | {"outcome": "good"}), 2, "line 1: "),
    (batch(GOOD, FAILED | {"type": "sad"}), 2, "line 2: no failure type 'sad'"),
    (batch(GOOD | {"extra": "1"}), 2, "line 1: "),
    (batch(GOOD, GOOD | {"id": ""}), 2, "line 2: "),
    (batch(GOOD, "[" * 100_000), 2, "line 2: "),
    (batch(GOOD, "\udcff"), 2, "line 2: "),
    (batch(GOOD, LONG), 2, "line 2: is longer than 1 MiB"),
    (batch(GOOD, GOOD | {"id": "nobody"}), 4, "no model 'nobody'"),
    (batch(GOOD, GOOD | {"id": "\udcff"}), 4, "no model"),
    (batch(GOOD, GOOD | {"id": "\x1b[31m"}), 4, r"no model '\x1b[31m'"),
]


@pytest.mark.parametrize(("text", "code", "words"), BAD_BATCHES, ids=[b[2] for b in BAD_BATCHES])
def test_bad_batch_records_nothing(
    fleet: None, cli: Cli, stdin: Callable[[str], None], text: str, code: int, words: str
) -> None:
    """A bad line is exit 2 with its number, an unknown id exit 4; the good lines count neither."""
    stdin(text)
    cli("record-batch", "-").failed(code, words)
    assert sql("SELECT success_count FROM models WHERE id = 'acme/one'") == [(3,)]


def test_longest_line(fleet: None, cli: Cli, stdin: Callable[[str], None]) -> None:
    """A line of 1 MiB is read."""
    fill = len(json.dumps(FAILED | {"reason": ""}))
    stdin(batch(FAILED | {"reason": "x" * ((1 << 20) - fill)}).rstrip("\n"))
    assert cli("record-batch", "-", "-o", "json").json["recorded"] == 1


# --- recovering


def test_recover_in_a_pipe(fleet: None, cli: Cli) -> None:
    """For cron: one line for each model that came back, and silence when there is none."""
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
    """Whoever was switched off by a person stays off, whatever the cooldown."""
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


# --- importing


def test_import_counts_what_it_did(fleet: None, cli: Cli, tmp_path: Path) -> None:
    """Added, updated, unchanged and rejected entries are counted; a status is never touched."""
    file = tmp_path / "catalogue.jsonl"
    file.write_text(
        batch(
            {"id": "new/model"},
            {"id": "acme/off", "name": "Off"},
            {"id": "acme/one", "name": "One", "provider": "acme"},
            {"id": " bad"},
        )
    )
    skipped = cli("import", str(file), "--on-conflict", "skip", "--dry-run", "-o", "json").json
    assert [skipped[k] for k in ("added", "updated", "unchanged", "skipped")] == [1, 0, 1, 1]
    result = cli("import", str(file))
    assert result.out == (
        '1\t1\t1\t0\t[{"id": " bad", "why": "a model id has no blanks at its ends: \' bad\'"}]'
        "\tinvalidated\tfalse\t0\t[]\n"
    )
    assert result.err == "rejected:  bad: a model id has no blanks at its ends: ' bad'\n"
    assert status_of("acme/off") == "disabled"
    again = cli("import", str(file), "-o", "json")
    assert again.err == ""
    assert [again.json[k] for k in ("added", "updated", "unchanged")] == [0, 0, 3]
    assert again.json["rejected"][0].keys() == {"id", "why"}
    file.write_text(batch({"id": "acme/off", "name": "On"}))
    cli("import", str(file), "--on-conflict", "fail").failed(8, "'acme/off' differ")


def test_readme_fleet_can_be_imported(cli: Cli) -> None:
    """The example fleet imports whole, and a second time changes nothing."""
    example = str(ROOT / "examples" / "fleet.jsonl")
    first = cli("import", example, "-o", "json").json
    assert (first["rejected"], first["added"] > 0) == ([], True)
    again = cli("import", example, "-o", "json").json
    assert again["unchanged"] == first["added"]


# --- schema, configuration, doctor


def test_schema_commands(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status of a schema that is missing is exit 7, and an upgrade puts it right."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", f"sqlite:///{tmp_path}/my.db")
    cli("db", "status").failed(7, "no database at", "modelctl db upgrade")
    (tmp_path / "my.db").touch()
    result = cli("db", "status")
    assert (result.code, result.err) == (
        7,
        "differs: there is no table models\n"
        "differs: nothing else of modelctl is there yet\n"
        "hint: run: modelctl db upgrade\n",
    )
    result = cli("db", "status", "-o", "json")
    assert (result.code, result.err, result.json["up_to_date"]) == (7, "", False)
    cli("list").failed(7, "modelctl db upgrade")
    assert cli("db", "upgrade", "-o", "json").json["up_to_date"]
    assert cli("db", "upgrade").code == cli("db", "status").code == 0


def test_config_show(cli: Cli, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is shown with where it came from, without the passwords."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", "postgresql://ann:s3cret@db/app")
    monkeypatch.setenv("MODELCTL_CONFIG", files["CONFIG"])
    shown = cli("config", "show", "-o", "json").json
    rows = {row["key"]: row for row in shown["settings"]}
    assert shown["file"] == files["CONFIG"]
    assert (rows["cache.ttl"]["value"], rows["cache.ttl"]["origin"]) == ("30s", "file")
    assert rows["database.url"]["value"] == "postgresql://ann:***@db/app"
    assert rows["database.url"]["origin"] == "environment MODELCTL_DATABASE_URL"
    assert "s3cret" not in cli("config", "show").out


def test_doctor_finds_a_fault(fleet: None, cli: Cli) -> None:
    """All is well is exit 0; a lost trigger is exit 1, and named."""
    assert cli("doctor").code == 0
    [(name,), *_] = sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    sql(f"DROP TRIGGER {name}")
    result = cli("doctor", "-o", "json")
    assert (result.code, result.err) == (1, "")
    [wrong] = [check for check in result.json["checks"] if not check["ok"]]
    assert (wrong["check"], name in wrong["detail"]) == ("triggers", True)


# --- PostgreSQL and Redis


@pytest.fixture
def served(pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the program at a fresh PostgreSQL database and an empty Redis."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", redis_url)
    with psycopg.connect(pg_database, autocommit=True) as connection:
        text = commands.FLEET.replace("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", "now()")
        for statement in filter(str.strip, text.split(";")):
            connection.execute(statement.encode())
    return pg_database


def test_every_command_on_servers(
    served: str, redis_server: Redis, cli: Cli, files: dict[str, str]
) -> None:
    """Every command has the same JSON with PostgreSQL and Redis as on SQLite."""
    for line, code, keys in EVERYTHING:
        words = [files.get(word, word) for word in line.split()]
        result = cli(*words, "-o", "json")
        assert (result.code, result.err) == (code, ""), line
        value = result.json
        for item in value if isinstance(value, list) else [value]:
            assert keys <= item.keys(), line
        times = find(value, lambda key: key == "at" or key.endswith("_at"))
        assert all(time is None or TIME.fullmatch(time) for time in times), line
        if line.startswith("remove"):
            assert {cli("add", model_id).code for model_id in ("acme/one", "acme/two")} == {0}


def test_cached_count_on_servers(served: str, redis_server: Redis, cli: Cli) -> None:
    """The count is cached in Redis under the shared name and gone after a change."""
    cli("cache", "drain")
    assert cli("count", "-o", "json").json["source"] == "database"
    assert redis_server.ask("GET", "db:models:count:active") == "2"
    assert cli("count", "-o", "json").json["source"] == "cache"
    assert "db:models:count:active\t2\t" in cli("cache", "show").out
    redis_server.ask("SET", "db:stats:overall", "theirs")
    redis_server.ask("SET", "db:leaderboard:top", "theirs")
    changed = cli("disable", "acme/one", "-o", "json").json
    assert (changed["cache"], redis_server.ask("EXISTS", "db:models:count:active")) == (
        *("invalidated", 0),
    )
    assert redis_server.ask("EXISTS", "db:stats:overall", "db:leaderboard:top") == 0
    assert cli("count") == Result(0, "1\n", "")


def test_a_wrong_cached_number_is_found(served: str, redis_server: Redis, cli: Cli) -> None:
    """A wrong number that a count would show is exit 6 for --verify; that of another is not."""
    redis_server.ask("SETEX", "db:models:count:active", "60", "999")
    assert cli("count", "--verify").code == ExitCode.OK
    run_id = redis_server.ask("INFO", "server")["run_id"]
    redis_server.ask("SETEX", "{db:models:count:active}:vouch", "60", f"999 {run_id}")
    result = cli("count", "--verify", "-o", "json")
    assert result.code == ExitCode.STALE_CACHE
    assert (result.json["cached"], result.json["database"], result.json["match"]) == (
        *(999, 2, False),
    )


def test_strong_count(served: str, cli: Cli) -> None:
    """A change that another program committed is seen by --strong before any delivery."""
    cli("cache", "drain")
    cli("count")
    with psycopg.connect(served, autocommit=True) as connection:
        connection.execute("UPDATE models SET active = FALSE WHERE id = 'acme/one'")
    assert cli("count", "--strong", "-o", "json").json["source"] == "database"
    assert cli("count", "--strong") == Result(0, "1\n", "")


def test_redis_away(served: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis a read answers with a warning; a change is done, queued, exit 6, and said."""
    monkeypatch.setenv("MODELCTL_REDIS_URL", f"redis://:s3cret@127.0.0.1:{refused_port()}/0")
    result = cli("count")
    assert (result.code, result.out) == (0, "2\n")
    assert result.err.startswith("warning: ")
    result = cli("disable", "acme/one")
    assert (result.code, result.out) == (6, "acme/one\tactive\tdisabled\tdisabled\ttrue\n")
    assert "committed, but the invalidation is queued" in result.err
    result = cli("enable", "acme/one", "-o", "json")
    assert (result.code, result.json["cache"]) == (6, "queued")
    result = cli("disable", "acme/one", "-o", "table")
    assert "CACHE STALE" in result.out
    assert "modelctl cache drain" in result.out
    cli("cache", "drain").failed(6)
    cli("cache", "clear").failed(6)
    cli("cache", "show").failed(6)
    problem = cli("cache", "drain", "-o", "json")
    assert (problem.code, problem.json["error"]["code"]) == (6, "stale_cache")
    result = cli("doctor")
    assert (result.code, "cache\twrong" in result.out) == (1, True)
    assert "s3cret" not in result.out


def test_postgres_alone(served: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis in the configuration every count is fresh and the cache is off."""
    monkeypatch.delenv("MODELCTL_REDIS_URL")
    for _ in range(2):
        assert cli("count", "-o", "json").json["source"] == "database"
    assert cli("disable", "acme/one", "-o", "json").json["cache"] == "off"
    assert cli("cache", "drain", "-o", "json").json["cache"] == "off"


def test_second_recover_is_busy(served: str, postgres: Any, cli: Cli) -> None:
    """While another run is at work, recover says so, changes nothing and succeeds."""

    from modelctl.database.sql import RECOVER_LOCK

    with psycopg.connect(served) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({RECOVER_LOCK})".encode())
        result = cli("recover")
        assert result == Result(0, "", "another recover is running\n")
        result = cli("recover", "-o", "json")
        assert (result.json["busy"], result.json["recovered"]) == (True, [])
    assert cli("recover") == Result(0, "other/due\n", "")


def test_drain_follows(served: str, redis_server: Redis, cli: Cli) -> None:
    """A follower delivers what other programs change, goes on, and ends on SIGINT with 130."""
    cli("cache", "drain")
    switch = "UPDATE models SET active = NOT active WHERE id = 'acme/one'"
    with (
        psycopg.connect(served, autocommit=True) as connection,
        start("cache", "drain", "--follow") as follower,
    ):
        assert follower.stdout
        for _ in range(2):  # the second time it is known to follow
            redis_server.ask("SET", "db:stats:overall", "theirs")
            connection.execute(switch.encode())
            began = time.monotonic()
            assert re.fullmatch(rb"[1-9]\d*\t0\tinvalidated\n", follower.stdout.readline())
            assert redis_server.ask("EXISTS", "db:stats:overall") == 0
        assert time.monotonic() - began < 5
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=commands.SECONDS)
    assert follower.returncode == 130
    assert err.startswith(b"error: Interrupted")


def test_follow_prints_no_single_json(cli: Cli) -> None:
    """What goes on for ever is not one JSON value, and says what to ask for instead."""
    problem = cli("cache", "drain", "--follow", "-o", "json")
    assert (problem.code, problem.err) == (2, "")
    assert "jsonl" in problem.json["error"]["hint"]


# --- progress


def test_progress_is_for_people(fleet: None, tmp_path: Path) -> None:
    """A terminal on stderr sees a running number that is gone in the end; a pipe sees nothing."""
    add(*(f"many/{n}" for n in range(2000)))
    lines = batch(*[{"id": f"many/{n}", "outcome": "success"} for n in range(2000)] * 10)
    (tmp_path / "batch").write_text(lines)
    piped = commands.run("record-batch", str(tmp_path / "batch"))
    assert piped == Result(0, "", "")
    code, shown = commands.seen("record-batch", str(tmp_path / "batch"))
    assert code == 0
    assert "recording" in plain(shown)
    assert "20000 outcomes recorded" in plain(shown)


def test_statuses_are_documented() -> None:
    """The statuses that --status takes are those of the model."""
    [option] = [p for p in commands.commands()[("list",)].params if p.name == "status"]
    assert set(option.type.choices) == set(ModelStatus)
