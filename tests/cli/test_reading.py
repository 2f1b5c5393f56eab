"""The commands that read show counts, models, statistics and events as they are."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from modelctl.errors import ExitCode
from tests import commands
from tests.commands import Cli, Result, sql

# ── counting ──


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
    """A wrong number in the cache is exit 6, a missing number is not an error."""
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


# ── reading ──


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
        "recovered_at,created_at,updated_at,seconds_left,tags"
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
    left = datetime.fromisoformat(tripped["retry_at"]) - datetime.now(UTC)
    assert tripped["seconds_left"] == pytest.approx(left.total_seconds(), abs=30)


EXPLANATIONS = {
    "acme/one": ["It is active.", "It has 0 of 5 failures in a row"],
    "acme/off": [
        "It has been off since 2026-01-02T03:04:05Z, switched off by ann: too slow.",
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
    """`show` explains since when, by whom and why a model is off, and what the next recover would do."""
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
    """`events` shows who changed which model when and why, newest first."""
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
