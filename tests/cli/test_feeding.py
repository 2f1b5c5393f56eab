"""Batches, imports and the commands for schema and configuration say what they did."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT
from tests.cli.examples import batch, status_of
from tests.commands import Cli, Result, sql

# ── batches ──


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
    result = cli("record-batch", "-", "-o", "json").json
    assert len(result.pop("operation")) == 26
    assert result == {
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


# ── importing ──


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
    values, operation, ignored = result.out.rstrip("\n").rsplit("\t", 2)
    assert values == (
        '1\t1\t1\t0\t[{"id": " bad", "why": "a model id has no blanks at its ends: \' bad\'"}]'
        "\tinvalidated\tfalse\t0\t[]"
    )
    assert (len(operation), ignored) == (26, "0")
    assert result.err == "rejected:  bad: a model id has no blanks at its ends: ' bad'\n"
    assert status_of("acme/off") == "disabled"
    again = cli("import", str(file), "-o", "json")
    assert again.err == ""
    assert [again.json[k] for k in ("added", "updated", "unchanged")] == [0, 0, 3]
    assert again.json["rejected"][0].keys() == {"id", "why"}
    file.write_text(batch({"id": "acme/off", "name": "On"}))
    cli("import", str(file), "--on-conflict", "fail").failed(8, "'acme/off' differ")


def test_a_dry_run_of_an_import_shows_the_plan(fleet: None, cli: Cli, tmp_path: Path) -> None:
    """Each model that would be added, changed or kept is shown with what differs, in every format."""
    file = tmp_path / "catalogue.jsonl"
    file.write_text(
        batch(
            {"id": "new/model", "name": "\x1b[31mNew\u202e", "provider": "new"},
            {"id": "new/plain"},
            {"id": "acme/off", "name": "Off"},
            {"id": "acme/one", "name": "One", "provider": "acme"},
        )
    )

    def plan(*options: str) -> Result:
        return cli("import", str(file), "--dry-run", *options)

    nothing = {"source": None, "note": None}
    changed = {"id": "acme/off", "old": {"display_name": ""}, "new": {"display_name": "Off"}}
    new = {"display_name": "\x1b[31mNew\u202e", "provider": "new"}
    changes = [
        {"kind": "changed", **changed, **nothing},
        {"kind": "added", "id": "new/model", "old": {}, "new": new, **nothing},
        {"kind": "added", "id": "new/plain", "old": {}, "new": {}, **nothing},
    ]
    assert plan("-o", "json").json["changes"] == changes
    assert [json.loads(line) for line in plan("-o", "jsonl").lines] == changes
    assert plan("-o", "name").lines == ["acme/off", "new/model", "new/plain"]
    assert plan("-o", "csv").lines[:2] == [
        "kind,id,old,new,source,note",
        'changed,acme/off,"{""display_name"": """"}","{""display_name"": ""Off""}",,',
    ]
    table = [line.strip() for line in plan("-o", "table").out.splitlines()]
    assert [" ".join(line.split()) for line in table if line[:1] in "+~!"] == [
        "~ acme/off name: '' -> 'Off'",
        r"+ new/model name '\x1b[31mNew\u202e'; provider 'new'",
        "+ new/plain new",
    ]
    assert table[-3:-1] == [
        "2 added, 1 updated, 1 unchanged, 0 skipped, 0 rejected",
        "dry run: nothing was changed",
    ]
    kept = plan("-o", "json", "--on-conflict", "skip").json["changes"][0]
    assert kept == {
        **{"kind": "kept", **changed, "source": None},
        "note": "the fleet keeps its values",
    }


def test_readme_fleet_can_be_imported(cli: Cli) -> None:
    """The example fleet imports whole, and a second time changes nothing."""
    example = str(ROOT / "examples" / "fleet.jsonl")
    first = cli("import", example, "-o", "json").json
    assert (first["rejected"], first["added"] > 0) == ([], True)
    again = cli("import", example, "-o", "json").json
    assert again["unchanged"] == first["added"]


# ── schema, configuration, doctor ──


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
