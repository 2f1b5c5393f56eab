"""`doctor --nagios` prints one line, and exits as Nagios' plugins do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelctl import Fleet
from tests.commands import Cli, Result
from tests.fleets import ago, alter, put, sql

LINE = re.compile(r"(OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]+)(?: \| ([^|\n]+))?\n")
# The performance data of a plugin: label=value[unit];warning;critical;least
NUMBER = re.compile(r"[a-z_]+=[0-9]+(\.[0-9]+)?s?(;;;0)?")
CODES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def parts(result: Result) -> tuple[str, str, dict[str, str]]:
    """Return the word, the text and the numbers of the one line; its word fits the exit code."""
    found = LINE.fullmatch(result.out)
    assert found, result
    word, text, numbers = found.groups()
    assert result.code == CODES[word]
    data = (numbers or "").split()
    assert all(NUMBER.fullmatch(number) for number in data), data
    return word, text, dict(number.split("=") for number in data)


@pytest.fixture
def fleet_url(fresh_url: str) -> str:
    """Give a database of its own: doctor also looks at what all programs did with the table."""
    return fresh_url


def test_all_is_well(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """A fleet without faults is OK, with its numbers."""
    put(fleet_url, "a", "b")
    fleet.disable("a")
    fleet.recover()
    result = tool("doctor", "--nagios")
    word, text, numbers = parts(result)
    assert (word, result.err) == ("OK", "")
    assert text.endswith(" checks passed")
    assert (numbers["active"], numbers["models"]) == ("1;;;0", "2;;;0")
    assert numbers["recover_age"].endswith("s")


def test_a_warning(tool: Cli, fleet_url: str) -> None:
    """What a person should look at is WARNING, although doctor itself exits 0."""
    put(fleet_url, "a", active=False)
    word, text, _ = parts(tool("doctor", "--nagios"))
    assert word == "WARNING"
    assert text.startswith("fleet: 0 active of 1 model")
    assert tool("doctor").code == 0


def test_what_is_wrong_comes_first(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """A fault is CRITICAL; its text stands before the warnings."""
    put(fleet_url, "a", active=False)
    fleet.recover()
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, 900)} WHERE name = 'recover'")
    word, text, numbers = parts(tool("doctor", "--nagios", recovery_expect_every="5m"))
    assert word == "CRITICAL"
    assert text.index("recover: last finished 9") < text.index("fleet: 0 active")
    assert float(numbers["recover_age"].rstrip("s")) >= 900


def test_a_database_that_is_away(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer is CRITICAL, with no traceback and no numbers that are not known."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", "postgresql://nobody:s3cret@127.0.0.1:1/nothing")
    result = cli("doctor", "--nagios")
    word, text, numbers = parts(result)
    assert (word, numbers) == ("CRITICAL", {})
    assert "database:" in text
    assert "s3cret" not in result.out + result.err


def test_a_wrong_configuration_is_unknown(cli: Cli, tmp_path: Path) -> None:
    """If nothing could be checked, the line says UNKNOWN and why."""
    file = tmp_path / "config.toml"
    file.write_text("[cache]\nttl = 5\n")
    result = cli("--config", str(file), "doctor", "--nagios")
    word, text, _ = parts(result)
    assert (word, result.err) == ("UNKNOWN", "")
    assert "ttl" in text


def test_text_cannot_end_the_line(tool: Cli, fleet_url: str) -> None:
    """A | or a newline in an id neither begins the numbers nor a second line."""
    put(fleet_url, "a|b\nc")
    alter(fleet_url, active=True, auto_disabled=False, would_disable="floor")
    put(fleet_url, "x", active=True, auto_disabled=True)
    put(fleet_url, "long" * 40, success_count=0)
    word, text, _ = parts(tool("doctor", "--nagios"))
    assert word == "CRITICAL"
    assert len(text) <= 1000


def test_it_has_one_format(tool: Cli) -> None:
    """With -o the command is refused: Nagios reads one line."""
    tool("doctor", "--nagios", "-o", "csv").failed(2, "--nagios")
