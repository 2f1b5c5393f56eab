"""The options that select models: what they ask, refuse and print; and the columns of list."""

from __future__ import annotations

import csv
import json

import pytest

from tests.cli.examples import status_of
from tests.commands import Cli, finish, on_terminal, plain, seen, sql

LEGAL = "a contract that says we may not call it before the court has decided, see ticket 4711"


@pytest.fixture
def openai(fleet: None) -> None:
    """Add twelve models of a provider; one is held without an end."""
    for number in range(12):
        sql("INSERT INTO models (id, provider) VALUES (?, 'openai')", f"openai/gpt-{number:02}")
    sql(
        "UPDATE models SET active = FALSE, disabled_at = '2026-01-02T03:04:05Z', disabled_by = 'ann',"
        " disabled_reason = ? WHERE id = 'openai/gpt-03'",
        LEGAL,
    )


def off() -> int:
    """Return how many of the twelve are off."""
    return int(sql("SELECT count(*) FROM models WHERE provider = 'openai' AND NOT active")[0][0])


def test_twelve_models_off_for_two_hours_and_back_early(openai: None, cli: Cli) -> None:
    """Two commands, and the model that is held without an end stays as it is."""
    done = cli("disable", "--provider", "openai", "--for", "2h", "--yes", "-o", "json").json
    assert [c["id"] for c in done["changes"] if not c["changed"]] == ["openai/gpt-03"]
    assert off() == 12
    assert cli("enable", "--provider", "openai", "--timed", "--yes").code == 0
    assert off() == 1
    assert sql(
        "SELECT disabled_by, disabled_reason FROM models WHERE NOT active AND id LIKE 'o%3'"
    ) == [("ann", LEGAL)]


def test_many_changes_are_counted(openai: None, cli: Cli) -> None:
    """Below a long table stands how many models changed, and the command that takes it back."""
    shown = cli("disable", "--provider", "openai", "--yes", "-o", "table").out
    [(operation,)] = sql("SELECT DISTINCT operation FROM modelctl_events WHERE event = 'disabled'")
    assert f"11 changed, 1 unchanged\nto take it back: modelctl undo {operation}\n" in shown
    assert cli("undo", operation).code == 0
    assert off() == 1
    removed = cli("remove", "--provider", "openai", "--yes", "-o", "table").out
    assert "12 changed, 0 unchanged\n" in removed


def test_where_nobody_can_be_asked(openai: None, cli: Cli) -> None:
    """A change of several models needs --yes or --dry-run, or is exit 2; one model needs neither."""
    for command in ("disable", "enable", "remove"):
        cli(command, "--match", "openai/*").failed(2, "--yes", "nothing was changed")
    assert off() == 1
    assert len(cli("disable", "--match", "openai/*", "--dry-run").lines) == 12
    assert off() == 1
    assert cli("disable", "--match", "openai/gpt-04").code == 0
    assert off() == 2
    cli("remove", "--match", "openai/gpt-04").failed(2, "--yes")
    assert cli("recover", "--provider", "other").code == 0


@pytest.mark.parametrize("command", ["disable", "enable", "remove", "recover", "probe"])
def test_a_selection_that_matches_nothing(fleet: None, cli: Cli, command: str) -> None:
    """It is exit 4 for a change; a listing is empty."""
    flags = [] if command == "recover" else ["--yes"]
    sql("UPDATE models SET active = TRUE WHERE id = 'acme/off'")
    if command != "probe":
        cli(command, "--match", "Acme/*", *flags).failed(4, "Acme/*")
    assert cli("list", "--match", "Acme/*").out == ""


def test_ids_and_a_selection_exclude_each_other(fleet: None, cli: Cli) -> None:
    """Both together are exit 2, and so is neither of them."""
    for command in ("disable", "enable", "remove", "probe"):
        cli(command, "acme/one", "--provider", "acme", *(["--yes"])).failed(2, "either ids")
        cli(command).failed(2, "no model is named", "--match")
        cli(command, "--all", "--provider", "acme", "--yes").failed(2, "all models")
    cli("disable", "--match", "[", "--yes").failed(2, "has no ]")


def test_the_limit(openai: None, cli: Cli) -> None:
    """More models than --limit-to are exit 8, and nothing changes."""
    words = ("disable", "--provider", "openai", "--yes", "--limit-to")
    cli(*words, "10").failed(8, "more than 10 models", "nothing was changed")
    assert off() == 1
    assert cli(*words, "11").code == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 12), ("n", 8, 1), ("", 8, 1)])
def test_a_terminal_asks(openai: None, answer: str, code: int, left: int) -> None:
    """It shows how many models would change, the first of them, and what stays, and then asks."""
    child = on_terminal("disable", "--provider", "openai", columns=80)
    child.expect_exact("disable 11 models:")
    child.expect_exact("  openai/gpt-00 (active)")
    child.expect_exact("  and 1 more")
    child.expect_exact("1 model stays: already disabled, without an end; kept")
    child.expect_exact("Disable 11 models? [y/N] ")
    child.sendline(answer)
    assert finish(child)[0] == code
    assert off() == left


def test_a_terminal_warns_of_holds(openai: None, cli: Cli) -> None:
    """Before a person enables models that somebody holds, they are named, with the way to spare them."""
    cli("disable", "--match", "openai/*", "--for", "1h", "--yes")
    child = on_terminal("enable", "--provider", "openai", columns=80)
    child.expect_exact("openai/gpt-03 is disabled without an end, by ann")
    child.expect_exact("--timed")
    child.expect_exact("Enable 12 models? [y/N] ")
    child.sendline("n")
    assert finish(child)[0] == 8
    assert off() == 12


def test_a_terminal_asks_nothing_about_one_model(fleet: None) -> None:
    """One model changes at once; only a removal asks always."""
    assert seen("disable", "--match", "acme/one")[0] == 0
    assert status_of("acme/one") == "disabled"
    child = on_terminal("remove", "--match", "acme/one")
    child.expect_exact("Remove for good 1 model? [y/N] ")
    child.sendline("y")
    assert finish(child)[0] == 0


# ── list ──


def test_what_is_off(openai: None, cli: Cli) -> None:
    """Both kinds and what a guard keeps on, with since, by, why and back_at, in every format."""
    sql(
        "UPDATE models SET would_disable = 'floor', failure_type = 'parse-error' WHERE id = 'acme/one'"
    )
    rows = {row["id"]: row for row in cli("list", "--off", "-o", "json").json}
    assert rows.keys() == {"acme/off", "acme/one", "openai/gpt-03", "other/due", "other/tripped"}
    shown = {
        model: [rows[model][name] for name in ("status", "since", "by", "why")]
        for model in ("acme/off", "acme/one", "other/due")
    }
    assert shown == {
        "acme/off": ["disabled", "2026-01-02T03:04:05.678Z", "ann", "too slow"],
        "acme/one": ["active", None, None, "spared (floor), parse-error"],
        "other/due": [
            *("auto-disabled", "2026-01-01T00:00:00.000Z", "health rule"),
            "client-error: HTTP 404",
        ],
    }
    assert rows["acme/off"]["back_at"] is None
    assert rows["other/due"]["back_at"] == rows["other/due"]["retry_at"] is not None
    table = [*csv.DictReader(cli("list", "--off", "-o", "csv").lines)]
    lines = [json.loads(line) for line in cli("list", "--off", "-o", "jsonl").lines]
    assert [[*row] for row in table] == [[*row] for row in lines]
    assert cli("list", "--off").lines[0].split("\t")[:5] == [
        *("acme/off", "disabled", "2026-01-02T03:04:05.678Z", "ann", "too slow")
    ]
    assert cli("list", "--off", "--status", "disabled", "--by", "ann", "-o", "name").lines == [
        *("acme/off", "openai/gpt-03")
    ]


def test_what_is_off_fits_into_80_columns(openai: None) -> None:
    """No line is longer, every word is there, and no column is left out."""
    sql(
        "UPDATE models SET active = FALSE, disabled_at = '2026-11-28T03:04:05Z',"
        " disabled_until = '2036-11-28T23:59:00Z', disabled_by = 'somebody@a-host-with-a-long-name',"
        " disabled_reason = 'why' WHERE id = 'openai/gpt-05'"
    )
    code, shown = seen("list", "--off", columns=80)
    assert code == 0
    lines = plain(shown).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["id", "status", "since", "by", "why", "back", "at"]
    for part in ("auto-disabled", "2026-11-28", "03:04Z", "2036-11-28", "23:59Z", "never", "4711"):
        assert part in plain(shown), shown
    assert "no room" not in shown


def test_columns_are_chosen_in_every_format(fleet: None, cli: Cli) -> None:
    """-c prints these columns and no others, in their order."""
    words = ("list", "--match", "acme/o*", "-c", "status,id,since", "-o")
    off, one = cli(*words, "json").json
    assert [*off.items()] == [
        *(("status", "disabled"), ("id", "acme/off"), ("since", "2026-01-02T03:04:05.678Z"))
    ]
    assert one == {"status": "active", "id": "acme/one", "since": None}
    assert cli(*words, "csv").lines[0] == "status,id,since"
    assert cli(*words, "tsv").lines[1] == "active\tacme/one\t"
    assert cli(*words, "table").lines[0].split() == ["status", "id", "since"]
    assert cli(*words, "name").lines == ["acme/off", "acme/one"]
    cli("list", "-c", "id,nonsense").failed(2, "no column 'nonsense'", "back_at")


def test_a_wide_table_is_not_folded(openai: None) -> None:
    """-o wide leaves out no column and folds nothing, also on a narrow terminal."""
    code, shown = seen("list", "--off", "-o", "wide", columns=80)
    assert code == 0
    assert LEGAL in plain(shown).replace("\n", "")
    assert "failure count" in plain(shown)


def test_sorted_by_since(fleet: None, cli: Cli) -> None:
    """What went off last comes first, and what is on comes last."""
    assert cli("list", "--sort", "since", "-o", "name").lines == [
        *("other/tripped", "acme/off", "other/due", "acme/one", "acme/two")
    ]


# ── probe ──


def test_probing_a_selection(fleet: None, cli: Cli, files: dict[str, str]) -> None:
    """It asks the models that are off and have a probe; several requests need --yes."""
    probe = ("--config", files["CONFIG"], "probe")
    dry = cli(*probe, "--all", "--dry-run")
    assert dry.code == 0
    assert "warning: 2 models not asked: no probe is configured for their providers" in dry.err
    assert dry.err.endswith("1 request would be made\n")
    asked = cli(*probe, "--provider", "acme", "-o", "json").json
    assert [answer["id"] for answer in asked["answers"]] == ["acme/off"]
    cli(*probe, "--provider", "other", "--yes").failed(3, "no probe is configured for 'other'")
    cli(*probe, "--status", "active", "--yes").failed(4, "no model that is off matches")
    sql("UPDATE models SET active = FALSE WHERE id = 'acme/two'")
    cli(*probe, "--provider", "acme").failed(2, "2 requests", "--yes")
    cli(*probe, "--provider", "acme", "--yes", "--limit-to", "1").failed(8, "more than 1")
    child = on_terminal(*probe, "--provider", "acme")
    child.expect_exact("Make 2 requests? [y/N] ")
    child.sendline("n")
    assert finish(child)[0] == 8
    assert len(cli(*probe, "--provider", "acme", "--yes").lines) == 2
