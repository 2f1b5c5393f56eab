"""The command `notify`: its output, its exit codes, --follow; and no secret in anything it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelctl import Fleet
from modelctl.model import EVENTS
from tests import commands
from tests.commands import Cli, Result
from tests.fleets import seed, sql
from tests.notify.receiver import SECRET, Receiver, silent, telling
from tests.waiting import until


@pytest.fixture
def fleet_url(sqlite_database: str) -> str:
    """Give one kind of database: test_notify.py has both."""
    return sqlite_database


@pytest.fixture
def file(fleet_url: str, receiver: Receiver, tmp_path: Path) -> Path:
    """Write a configuration that tells the receiver about disabled models."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'[database]\nurl = "{fleet_url}"\n[notify]\nurl = "{receiver.url}"\n'
        'events = ["disabled"]\nallow_http = true\nallow_private = true\ntimeout = "2s"\n'
    )
    return file


@pytest.fixture
def call(cli: Cli, file: Path) -> Cli:
    """Run the program with this configuration; nothing that it prints has the secret."""

    def call(*arguments: str) -> Result:
        result = cli("--config", str(file), *arguments)
        assert SECRET not in result.out + result.err
        return result

    return call


def test_what_cron_sees(fleet: Fleet, call: Cli, receiver: Receiver) -> None:
    """The first run says that it is the first; later runs are silent; -o prints numbers."""
    seed(fleet, "ab")
    first = call("notify")
    assert (first.code, first.out) == (0, "")
    assert first.err == "this is the first run: what happens from now on will be sent\n"
    assert call("notify") == Result(0, "", "")
    fleet.disable("a", "b")
    last = fleet.events()[0].id
    dry = call("notify", "--dry-run", "-o", "json").json
    assert (dry["waiting"], dry["dry_run"], "2 disabled" in dry["text"]) == (2, True, True)
    assert call("notify") == Result(0, "", "")
    assert call("notify", "-o", "json").json == {
        **dict.fromkeys(("sent", "waiting", "dropped"), 0),
        **dict.fromkeys(("busy", "began", "permanent", "dry_run"), False),
        **dict.fromkeys(("problem", "text")),
        "cursor": last,
    }
    assert receiver.events == [("a", "disabled"), ("b", "disabled")]


def test_exit_codes(fleet: Fleet, call: Cli, receiver: Receiver) -> None:
    """Exit 3 if the receiver refuses a message, 6 if it is away; -o json says why, too."""
    seed(fleet, "a")
    call("notify")
    fleet.disable("a")
    receiver.answers = [(404, {})] * 2
    refused = call("notify")
    assert (refused.code, refused.out) == (3, "")
    assert refused.err == "warning: the receiver did not accept a message: HTTP 404\n"
    as_json = call("notify", "-o", "json")
    assert (as_json.code, as_json.err, as_json.json["problem"]) == (3, "", "HTTP 404")
    receiver.answers = [(503, {"Retry-After": "3000"})]
    away = call("notify")
    assert (away.code, away.out) == (6, "")
    assert "HTTP 503" in away.err


def test_no_secret_is_printed(fleet: Fleet, call: Cli, file: Path) -> None:
    """Neither config show nor doctor nor an error with --debug has a part of the URL."""
    seed(fleet, "a")
    rows = {row["key"]: row for row in call("config", "show", "-o", "json").json["settings"]}
    shown = {key: row["value"] for key, row in rows.items() if key.startswith("notify.")}
    assert shown == {
        "notify.url": "***",
        "notify.events": ["disabled"],
        "notify.min_active": 0,
        "notify.timeout": "2s",
        "notify.allow_http": True,
        "notify.allow_private": True,
    }
    call("doctor")
    text = file.read_text()
    for wrong in (f"https://h/{SECRET} x", f"https://me:{SECRET}@h", f"http://h:99999/{SECRET}"):
        line = next(
            line for line in text.splitlines() if line.startswith("url = ") and "sig" in line
        )
        file.write_text(text.replace(line, f'url = "{wrong}"'))
        result = call("--debug", "notify")
        assert (result.code, "[notify] in " in result.err) == (3, True)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "one of url, url_env, url_file and command"),
        ("url = 'https://h'\ncommand = ['x']", "one of url, url_env, url_file and command"),
        ("command = []", "one of url"),
        ("command = ['']", "begin with a program"),
        ("command = 'x'", "list of strings"),
        (
            "command = ['x']\nevents = ['auto-disable']",
            "the nearest is 'auto-disabled'; all: added",
        ),
        ("command = ['x']\nevents = []", "events or min_active"),
        ("command = ['x']\nmin_active = -1", "min_active"),
        ("command = ['x']\ntimeout = '2m'", "timeout must be"),
        ("command = ['x']\ntoken_env = 'T'", "a command gets no token"),
        ("url = 'https://h'\ntoken_env = 'T'\ntoken_file = 'f'", "not both"),
        ("url = 'http://h'", "plain http"),
        ("url = 'https://h/#x'", "no fragment"),
        ("urll = 'https://h'", "the nearest is url"),
    ],
)
def test_bad_configurations(cli: Cli, tmp_path: Path, lines: str, words: str) -> None:
    """A mistake is exit 3 for every command, and says what is wrong and where."""
    file = tmp_path / "config.toml"
    file.write_text(f"[notify]\n{lines}\n")
    cli("--config", str(file), "list").failed(3, "[notify] in ", words)


def test_a_file_that_others_can_write(cli: Cli, file: Path) -> None:
    """A command or a URL is taken only from a file that no other user could have written."""
    file.chmod(0o666)
    cli("--config", str(file), "list").failed(3, "can be written by everybody")


def test_without_a_section(cli: Cli) -> None:
    """Without [notify] there is nobody to tell."""
    cli("notify").failed(3, "no receiver of notifications", "config example")


def test_what_makes_no_sense_with_follow(call: Cli) -> None:
    """One JSON value and a dry run do not go with an endless run."""
    for words in (("-o", "json"), ("--dry-run",)):
        result = call("notify", "--follow", *words)
        assert (result.code, "do not go together" in result.out + result.err) == (2, True)


def test_follow(fleet: Fleet, file: Path, receiver: Receiver) -> None:
    """--follow sends what comes, and ends at SIGTERM, also while the receiver is silent."""
    seed(fleet, "ab")
    assert fleet.config.notify is None
    with commands.start("--config", str(file), "notify", "--follow") as process:
        assert process.stderr
        assert b"first run" in process.stderr.readline()
        fleet.disable("a")
        until(lambda: receiver.events == [("a", "disabled")])
        receiver.answers = [silent] * 9
        fleet.disable("b")
        until(lambda: len(receiver.got) == 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=5)
    assert process.returncode == -signal.SIGTERM
    assert out.startswith(b"1\t0\t0\t")
    assert err in (b"", b"error: Interrupted; what was not committed is not done.\n")


def test_the_example_can_be_taken_over(cli: Cli, tmp_path: Path) -> None:
    """The block of the example file is valid, with one receiver of its three."""
    example = Path(__file__).parents[2] / "config.example.toml"
    block = example.read_text().partition("# [notify]\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()]
    kept = [line for line in lines if not line.startswith(("url_env", "command"))]
    (tmp_path / "config.toml").write_text("\n".join(["[notify]", *kept]))
    shown = cli("--config", str(tmp_path / "config.toml"), "config", "show", "-o", "json").json
    values = {row["key"]: row["value"] for row in shown["settings"]}
    assert values["notify.url_file"] == "/run/secrets/slack"
    assert values["notify.timeout"] == "10s"


def test_importing_loads_neither_httpx_nor_tenacity(file: Path, tmp_path: Path) -> None:
    """A command that sends nothing loads nothing for it, also with a receiver configured."""
    code = (
        "import sys; from modelctl.cli.main import main; main(sys.argv[1:]);"
        "print(*{'httpx', 'tenacity'} & set(sys.modules), file=sys.stderr)"
    )
    for words in (["count"], ["--help"], ["notify", "-h"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "--config", str(file), *words],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        assert done.stderr.strip() == "", done.stderr


def test_one_message_is_one_json_value(fleet: Fleet, file: Path, tmp_path: Path, cli: Cli) -> None:
    """A command reads one JSON value with the same fields as events -o json prints."""
    got = tmp_path / "got"
    text = file.read_text()
    start = text.index("[notify]")
    file.write_text(
        f"{text[:start]}[notify]\nevents = ['disabled']\ncommand = ['sh', '-c', 'cat > {got}']\n"
    )
    seed(fleet, "a")
    assert cli("--config", str(file), "notify").code == 0
    fleet.disable("a", reason="why\n\x1b[31m")
    assert cli("--config", str(file), "notify").code == 0
    printed = cli("--config", str(file), "events", "--limit", "1", "-o", "json").json
    assert json.loads(got.read_text())["events"] == printed


def test_every_event_can_be_asked_for(pg: Fleet, pg_cleared: str, receiver: Receiver) -> None:
    """The names that the section takes are those that the history has, also of other programs."""
    with telling(pg_cleared, receiver, events=EVENTS) as fleet:
        seed(pg, "ab")
        assert fleet.notify().began
        sql(pg_cleared, "UPDATE models SET active = FALSE WHERE id = 'a'")
        pg.rename("b", "c")
        pg.edit("c", name="C")
        pg.pause(60)
        pg.resume()
        assert fleet.notify().sent == 5
        found = sql(pg_cleared, "SELECT DISTINCT event FROM modelctl_events")
    assert {name for (name,) in found} <= {*EVENTS}
    assert receiver.events[0] == ("a", "disabled")
