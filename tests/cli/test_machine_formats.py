"""JSON, JSON Lines, CSV and TSV have the same names and values, and leave nothing out."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.errors import clean
from modelctl.model import CacheState, ModelStatus
from modelctl.models.results import Changes, KeptChange, LeaderboardEntry, StatusChange
from modelctl.output import machine
from modelctl.views.models import changes_view, leaderboard_view
from tests import ROOT, commands
from tests.cli.examples import EVERYTHING
from tests.commands import Cli, add, seen, sql

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
# What differs from run to run.
MOVING = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z|\d+ MB|\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b"
)
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def written(value: Any) -> str:
    """How a value is written in a cell: null is nothing, text is itself, the rest is JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def in_csv(text: str) -> str:
    """How CSV writes text: newlines and tabs stay, other controls are escaped."""
    return "".join(c if c in "\n\t" else clean(c) for c in text)


def read_csv(text: str) -> list[dict[str, str]]:
    """Read it as Python's csv module does."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def lists_in(value: Any) -> list[Any]:
    """Return the lists in a JSON value, itself as a list of one included."""
    if isinstance(value, list):
        return [value]
    return [[value], *(of for of in value.values() if isinstance(of, list))]


def still(value: Any) -> Any:
    """Take what differs from run to run out of a value."""
    if isinstance(value, dict):
        return {k: "" if "seconds" in k else still(v) for k, v in value.items()}
    if isinstance(value, list):
        return [still(item) for item in value]
    return MOVING.sub("", value) if isinstance(value, str) else value


def said_to_be_in_json_alone() -> set[str]:
    """Return the names of which docs/commands.md says that only JSON has them."""
    told = (ROOT / "docs" / "commands.md").read_text()
    told = told[told.index("What is said once of all rows only JSON has:") :]
    return set(re.findall("`([a-z_]+)`", told[: told.index(". CSV")]))


@pytest.mark.parametrize("line", [e[0] for e in EVERYTHING])
def test_all_commands(fleet: None, cli: Cli, files: dict[str, str], line: str) -> None:
    """Each line of JSON Lines is a row of CSV and of TSV, with every name and value, and is in JSON."""
    sql(
        "INSERT INTO modelctl_events (model_id, event, provider) VALUES ('', 'paused', 'acme'), ('', 'resumed', NULL)"
    )
    words = [files.get(word, word) for word in line.split()]
    saved = commands.database().read_bytes()
    out = {}
    for form in ("json", "jsonl", "csv", "tsv"):
        commands.database().write_bytes(saved)
        result = cli("--config", files["CONFIG"], *words, "-o", form)
        assert result.code == 0
        out[form] = result.out
    items = [json.loads(item) for item in out["jsonl"].splitlines()]
    rows = read_csv(out["csv"])
    header = next(csv.reader([out["csv"].splitlines()[0]]))
    assert len(set(header)) == len(header)
    lines = [line.split("\t") for line in out["tsv"].splitlines()]
    assert len(items) == len(rows) == len(lines)
    for item, row, cells in zip(items, rows, lines, strict=True):
        assert {*item} <= {*header}
        for name, cell, in_tsv in zip(header, row.values(), cells, strict=True):
            if "seconds" in name:
                assert bool(cell) == bool(in_tsv) == (item[name] is not None)
                continue
            # Whether it begins with what a spreadsheet would run is another test's matter.
            expected = MOVING.sub("", written(item.get(name)))
            assert MOVING.sub("", cell) in (in_csv(expected), "'" + in_csv(expected))
            assert MOVING.sub("", in_tsv) == clean(expected)
    whole = json.loads(out["json"])
    if isinstance(whole, dict):  # the list itself, or lists in one, are the rows
        left_out = {name for name in whole if name not in header and whole[name] not in (items, [])}
        left_out -= {"changes", "recovered", "waiting", "answers", "providers", "keys", "checks"}
        left_out -= {"models"}  # the list of availability
        assert not left_out - {"settings", "removed"} - said_to_be_in_json_alone()
    if line.startswith("recover"):  # two lists of JSON in one
        assert [i["id"] for i in items if i["result"] == "recovered"] == whole["recovered"]
        waiting = [{n: i[n] for n in i if n != "result"} for i in items if i["result"] == "waiting"]
        assert still(waiting) == still(whole["waiting"])
    elif line.startswith("db detach"):
        assert [item["removed"] for item in items] == whole["removed"]
    else:
        assert still(items) in map(still, lists_in(whole))


def test_an_event_of_the_fleet_invents_no_model(fleet: None, cli: Cli) -> None:
    """Without a model there is no id, in any format; the provider has a column of its own."""
    sql(
        "INSERT INTO modelctl_events (model_id, event, provider) VALUES ('', 'paused', 'acme'), ('', 'resumed', NULL)"
    )
    for row in read_csv(cli("events", "-o", "csv").out):
        assert row["model_id"] == ""
    assert [row["provider"] for row in read_csv(cli("events", "-o", "csv").out)] == ["", "acme"]
    assert "fleet" not in cli("events", "-o", "tsv").out
    assert "fleet" not in cli("events", "-o", "table").out


def test_rates_and_numbers(fleet: None, cli: Cli) -> None:
    """A rate is the number of JSON, 1.0 and not 100.0%; a negative number stays a number."""
    sql("UPDATE models SET success_count = -5, failure_count = -1 WHERE id = 'acme/two'")
    best, *_ = read_csv(cli("leaderboard", "-o", "csv").out)
    assert (best["id"], best["success_rate"], best["success_count"]) == ("acme/one", "1.0", "3")
    rows = {row["id"]: row for row in read_csv(cli("list", "-o", "csv").out)}
    assert (rows["acme/two"]["success_count"], rows["acme/two"]["active"]) == ("-5", "true")


def test_the_totals_of_stats_are_sums_of_its_rows(fleet: None, cli: Cli) -> None:
    """Every total that JSON has is the sum of a column of CSV; the first columns stay where they were."""
    sql("UPDATE models SET failure_count = 7 WHERE id = 'acme/two'")
    whole = cli("stats", "-o", "json").json
    rows = read_csv(cli("stats", "-o", "csv").out)
    assert [*rows[0]][:3] == ["provider", "models", "active"]
    totals = ("models", "active", "disabled", "auto_disabled", "success_count", "failure_count")
    for name in totals:
        assert sum(int(row[name]) for row in rows) == whole[name]
    assert (whole["disabled"], whole["auto_disabled"], whole["failure_count"]) == (1, 2, 14 + 7)
    assert [row["provider"] for row in rows] == ["acme", "other"]


def test_spreadsheets_run_nothing(fleet: None, cli: Cli) -> None:
    """A cell that a spreadsheet would run gets an apostrophe in CSV without --raw; TSV and JSON do not."""
    for number, start in enumerate(FORMULAS):
        sql(
            "INSERT INTO models (id, display_name, disabled_reason) VALUES (?, ?, ?)",
            *(f"x{number}", f"{start}SUM(1)", "fine"),
        )
    add("@cf/meta/llama", "-5")
    rows = read_csv(cli("list", "-o", "csv").out)
    assert not [cell for row in rows for cell in row.values() if cell.startswith(FORMULAS)]
    assert {"'@cf/meta/llama", "'-5"} <= {row["id"] for row in rows}
    raw = {
        row["id"]: row["display_name"] for row in read_csv(cli("list", "-o", "csv", "--raw").out)
    }
    assert {"@cf/meta/llama", "-5"} <= raw.keys()
    assert raw["x0"] == "=SUM(1)"
    assert "@cf/meta/llama" in cli("list", "-o", "name").lines
    assert [line for line in cli("list", "-o", "tsv").lines if line.startswith("@cf/meta/llama\t")]
    again = read_csv(cli("list", "-o", "csv").out)
    assert "'-5" in {row["id"] for row in again}  # --raw was for one command


def test_newlines_stay_in_csv_alone(fleet: None, cli: Cli) -> None:
    """CSV quotes newlines, TSV escapes them, and both escape control characters."""
    reason = "Error:\n  line 1\n\tbad\x1b[31m"
    sql("UPDATE models SET failure_reason = ? WHERE id = 'acme/one'", reason)
    [row] = read_csv(cli("show", "acme/one", "-o", "csv").out)
    assert row["failure_reason"] == "Error:\n  line 1\n\tbad\\x1b[31m"
    [line] = cli("show", "acme/one", "-o", "tsv").lines
    assert r"Error:\n  line 1\n\tbad\x1b[31m" in line.split("\t")


TEXTS = st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT)


@given(st.lists(TEXTS, max_size=5), st.booleans())
def test_any_text_survives_csv(rows: list[tuple[str, str, str]], raw: bool) -> None:
    """Python's csv module reads back every id, name and reason, in its place, whatever they hold."""
    changes = tuple(
        KeptChange(a, ModelStatus.ACTIVE, ModelStatus.ACTIVE, False, c)
        if c
        else StatusChange(a, None, ModelStatus.ACTIVE, True)
        for a, _, c in rows
    )
    entries = [LeaderboardEntry(1, a, b, c, 0.5, -3, 0, 0.5) for a, b, c in rows]
    views = [
        changes_view(Changes(changes, CacheState.OFF)),
        leaderboard_view(entries),
    ]
    kept, listed = (read_csv("".join(machine.csv_lines(view, raw=raw))) for view in views)

    def cell(text: str) -> str:
        return ("" if raw or not text.startswith(FORMULAS) else "'") + in_csv(text)

    assert [row["id"] for row in kept] == [cell(a) for a, _, _ in rows]
    assert [row.get("note", "") for row in kept] == [cell(c) for _, _, c in rows]
    found = [(row["id"], row["display_name"], row["provider"]) for row in listed]
    assert found == [(cell(a), cell(b), cell(c)) for a, b, c in rows]
    assert {row["success_count"] for row in listed} <= {"-3"}


@given(st.lists(TEXTS, max_size=5))
def test_any_text_is_one_line_of_tsv(rows: list[tuple[str, str, str]]) -> None:
    """Whatever the texts contain, a row of TSV is one line with one tab between two columns."""
    view = leaderboard_view([LeaderboardEntry(1, *texts, 0.5, 1, 1, 0.5) for texts in rows])
    lines = [*machine.tsv_lines(view)]
    assert [line.count("\t") for line in lines] == [len(view.fields) - 1] * len(rows)
    assert not [line for line in lines if len(line.splitlines()) != 1 or line[-1] != "\n"]


def test_the_configuration_has_typed_values(
    cli: Cli, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config show -o json` has numbers, booleans and lists; a duration is text, as in the file."""
    shown = cli("--config", files["CONFIG"], "config", "show", "-o", "json").json
    values = {row["key"]: row["value"] for row in shown["settings"]}
    assert values["health.threshold"] == 5
    assert values["recovery.cooldown_factor"] == 1
    assert values["health.counted"] == ["parse-error", "client-error"]
    assert (values["recovery.cooldown"], values["redis.url"]) == ("1h", "")
    assert {type(v) for k, v in values.items() if k.endswith(".stream")} <= {bool}
    rows = {r["key"]: r for r in read_csv(cli("config", "show", "-o", "csv").out)}
    assert rows["health.threshold"]["value"] == "5"
    assert rows["recovery.cooldown"]["value"] == "1h"
    assert json.loads(rows["health.counted"]["value"]) == values["health.counted"]


def test_people_have_short_columns(fleet: None) -> None:
    """The table for people keeps its own few columns."""
    _, shown = seen("list", columns=160, environ={"NO_COLOR": "1"})
    assert shown.split()[:4] == ["id", "name", "provider", "status"]
    assert "created" not in shown
