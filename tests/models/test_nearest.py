"""The error for an unknown id names the nearest ids in the fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl import Fleet, ModelNotFoundError
from modelctl.tables.look_alikes import nearest
from tests.commands import Cli
from tests.fleets import opened, seed, sql
from tests.waiting import at_most

IDS = [
    *("openai/gpt-5", "openai/gpt-5-mini", "anthropic/claude-sonnet-4-5", "xai/grok-4.3"),
    *("hf:meta-llama/Llama-3.3-70B-Instruct", "@cf/meta/llama-3-8b", "100%_sure"),
]
MEANT = {
    "openai/gpt5": "openai/gpt-5",
    "opnai/gpt-5": "openai/gpt-5",
    "OpenAI/GPT-5": "openai/gpt-5",
    "gpt-5": "openai/gpt-5",
    "openrouter/gpt-5": "openai/gpt-5",
    "anthropic/claude-sonet-4-5": "anthropic/claude-sonnet-4-5",
    "claude-sonnet-4-5": "anthropic/claude-sonnet-4-5",
    "meta-llama/llama-3.3-70b-instruct": "hf:meta-llama/Llama-3.3-70B-Instruct",
    "cf/meta/llama-3-8b": "@cf/meta/llama-3-8b",
    "100%-sure": "100%_sure",
}


@pytest.mark.parametrize("wrong", MEANT)
def test_the_nearest_is_named_first(fleet: Fleet, wrong: str) -> None:
    """Typing errors, other cases and missing providers are found, at most 3 ids each."""
    seed(fleet, [*IDS, *(f"other/model-{n}" for n in range(300))])
    with pytest.raises(ModelNotFoundError) as caught:
        fleet.show(wrong)
    hint = caught.value.hint or ""
    assert hint.startswith(f"the nearest: {MEANT[wrong]}")
    assert hint.endswith("; see: modelctl list")
    assert len(hint.split(";")[0].split(",")) <= 3


CALLS: dict[str, Callable[[Fleet], Any]] = {
    "show": lambda fleet: fleet.show("openai/gpt5"),
    "disable": lambda fleet: fleet.disable("xai/grok-4.3", "openai/gpt5"),
    "enable": lambda fleet: fleet.enable("openai/gpt5"),
    "remove": lambda fleet: fleet.remove("openai/gpt5"),
    "success": lambda fleet: fleet.record_success("openai/gpt5"),
    "failure": lambda fleet: fleet.record_failure("openai/gpt5", "timeout"),
    "aborted": lambda fleet: fleet.record_failure("openai/gpt5", None),
    "batch": lambda fleet: fleet.record_batch([{"id": "openai/gpt5", "outcome": "success"}]),
}


@pytest.mark.parametrize("name", CALLS)
def test_in_every_method(fleet: Fleet, name: str) -> None:
    """Every method that takes an id names the nearest ids."""
    seed(fleet, IDS)
    with pytest.raises(ModelNotFoundError) as caught:
        CALLS[name](fleet)
    assert "the nearest: openai/gpt-5" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "wrong", ["", "zzzzzz", "\0", "\ud800", "%", "_", "!", "'", "\\", "x" * 5000]
)
def test_where_nothing_is_near(fleet: Fleet, wrong: str) -> None:
    """An id without a similar id gets the plain hint; so does any id in an empty fleet."""
    for ids in ([], IDS):
        seed(fleet, ids) if ids else None
        with pytest.raises(ModelNotFoundError) as caught:
            fleet.show(wrong)
        assert caught.value.hint == "see: modelctl list"


def test_on_the_command_line(cli: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is on stderr, and in JSON; an id with controls is shown escaped."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, IDS)
    sql(fleet_url, "INSERT INTO models (id) VALUES (?)", "evil\x1b[31m/model")
    cli("show", "openai/gpt5").failed(4, "hint: the nearest: openai/gpt-5")
    error = cli("disable", "evil[31m/model", "-o", "json").json["error"]
    assert r"evil\x1b[31m/model" in error["hint"]


def test_a_large_fleet_is_not_read(fleet: Fleet, fleet_url: str) -> None:
    """In a fleet of 200,000 the nearest is still found, and not by reading all of them."""
    sql(
        fleet_url,
        "INSERT INTO models (id) WITH RECURSIVE n(i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)"
        " SELECT 'provider-' || (i % 100) || '/model-' || i FROM n",
    )
    seed(fleet, ["openai/gpt-5"])
    with at_most(5):
        with pytest.raises(ModelNotFoundError) as caught:
            fleet.show("openai/gpt5")
        assert "the nearest: openai/gpt-5" in (caught.value.hint or "")


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=20))
def test_any_text(wanted: str, ids: list[str]) -> None:
    """For any text at most three ids are named, each of the fleet, and never the text itself."""
    found = nearest(wanted, ids)
    assert len(found) <= 3
    assert {*found} <= {*ids} - {wanted}
