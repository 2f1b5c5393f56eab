"""The commands export and restore."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from modelctl import Fleet
from tests.backup.exports import export_of, exported, held, model
from tests.commands import Cli
from tests.fleets import seed


def test_export_to_a_file_and_back(tool: Cli, fleet: Fleet, tmp_path: Path) -> None:
    """--write makes a file that only its owner can read; stdout has the same lines."""
    seed(fleet, "ab")
    fleet.disable("a", reason="é")
    file = tmp_path / "export"
    assert tool("export", "--write", str(file)).out == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().isascii()
    assert tool("export").lines[1:] == file.read_text().splitlines()[1:]
    assert (
        tool("export", "--match", "b")
        .lines[-1]
        .endswith('{"models": 1, "pauses": 0, "incidents": 0}}')
    )
    before = exported(fleet)
    assert tool("restore", str(file), "--yes").out == ""
    assert exported(fleet) == before


def test_a_diff_fits_80_columns(
    tool: Cli, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long ids and long differences are folded."""
    seed(fleet, ["acme/" + "x" * 60, "b"])
    fleet.disable("b")
    file = tmp_path / "export"
    changed = held("acme/" + "x" * 60, disabled_reason="long " * 30)
    file.write_bytes(export_of(changed, model("b"), model("c")))
    monkeypatch.setenv("COLUMNS", "80")
    shown = tool("restore", str(file), "--dry-run", "-o", "table")
    assert shown.code == 0
    assert max(map(len, shown.lines)) <= 80
    assert "! 1 left off (--enable restores them)" in shown.out


def test_restore_asks(tool: Cli, fleet: Fleet, tmp_path: Path) -> None:
    """Where nobody can be asked, restore needs --yes, and exits 8 without it."""
    file = tmp_path / "export"
    file.write_bytes(export_of(model("a"), held("b")))
    refused = tool("restore", str(file))
    assert refused.code == 8
    assert "use --yes" in refused.err
    assert fleet.list_models() == []
    done = tool("restore", str(file), "--yes", "--actor", "ann", "-o", "json").json
    assert (done["added"], done["left_off"], done["dry_run"]) == (2, 0, False)
    assert [change["result"] for change in done["changes"]] == ["added", "added"]
    assert {event.actor for event in fleet.events()} == {"ann"}


@pytest.mark.parametrize("text", [b"", b"{}\n", b"\xff", export_of(model("a"))[:-1][:-5]])
def test_a_bad_file_exits_2(tool: Cli, fleet: Fleet, tmp_path: Path, text: bytes) -> None:
    """What is not a whole export exits 2 and names the line."""
    file = tmp_path / "export"
    file.write_bytes(text)
    refused = tool("restore", str(file), "--yes")
    assert refused.code == 2
    assert "line " in refused.err
    assert fleet.list_models() == []


def test_an_export_of_nothing_warns(cli: Cli) -> None:
    """Without a configuration, as in cron, an export of the empty embedded database warns."""
    done = cli("export")
    assert (done.code, len(done.lines)) == (0, 2)
    assert "no database is configured" in done.err


def test_a_file_that_cannot_be_written(tool: Cli, tmp_path: Path) -> None:
    """A folder that is not there is named, and exits 2."""
    refused = tool("export", "--write", str(tmp_path / "nowhere" / "export"))
    assert (refused.code, refused.out) == (2, "")
