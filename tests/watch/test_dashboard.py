"""The dashboard fits terminals of every size, whatever the names are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from modelctl.count.results import Count
from modelctl.errors import clean
from modelctl.health import Hold
from modelctl.model import ModelStatus
from modelctl.models.results import Model
from modelctl.output.dashboard import dashboard
from modelctl.views.watch import short
from modelctl.watch.results import RecentEvent, Snapshot
from tests.commands import CONTROLS

NOW = datetime(2026, 11, 29, 3, 0, 0, tzinfo=UTC)


def off(model_id: str, text: str = "ann", *, auto: bool = False) -> Model:
    """Return a model that has been off for an hour."""
    status = ModelStatus.AUTO_DISABLED if auto else ModelStatus.DISABLED
    back = NOW + timedelta(minutes=5) if auto else None
    return Model(
        *(model_id, text, text, False, auto, 5, 1, 0, 5, None, None, None, text),
        *(NOW - timedelta(hours=1), text, text, None, None, None, None, None),
        *(status, back, 300.0 if auto else None, ()),
    )


def snapshot(texts: list[str], *, rows: int = 30) -> Snapshot:
    """Return a fleet with so many models that are off, events and holds, of these texts."""
    some = [texts[number % len(texts)] for number in range(rows)]
    return Snapshot(
        now=NOW,
        count=Count(5, "cache", 12.0, 48.0),
        cache_problem=None,
        active=6,
        disabled=rows,
        auto_disabled=0,
        spared=1,
        off=tuple(off(text, text, auto=len(text) % 2 == 0) for text in some),
        holds=tuple(Hold(t, t if len(t) % 2 else None, NOW, NOW, 90.0, t, t) for t in some),
        hold_count=rows,
        events=tuple(RecentEvent(NOW, text, text, "disabled", text, text, text) for text in some),
        queued=3,
        oldest_queued_seconds=90.0,
        recovered_seconds_ago=None,
    )


def lines(of: Snapshot, width: int, height: int, problem: str = "") -> list[str]:
    """Return the lines of the screen."""
    text = dashboard(
        of, place="db.example/app", keys="q: quit", problem=problem, width=width, height=height
    )
    return text.plain.split("\n")


TEXTS = st.lists(
    st.text(max_size=30) | st.sampled_from(["[bold]x[/]", ":smile:", "\x1b]0;x\x07", "你好" * 50]),
    min_size=1,
    max_size=4,
)


@given(TEXTS, st.integers(1, 210), st.integers(1, 70), st.text(max_size=99), st.integers(0, 9))
def test_it_fits(texts: list[str], width: int, height: int, problem: str, rows: int) -> None:
    """It has as many lines as the terminal, none too wide, no control character, and the problem last."""
    found = lines(snapshot(texts, rows=rows), width, height, clean(problem))
    assert len(found) == height
    for line in found:
        assert cell_len(line) <= width
        assert not CONTROLS.search(line)
    if problem:
        assert cell_len(found[-1]) == min(width, cell_len(clean(problem)))
        # An ellipsis follows what is cut, and a blank takes the place of half a wide character.
        assert clean(problem).startswith(found[-1].rstrip("…").rstrip())


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60)])
def test_what_matters_is_there(width: int, height: int) -> None:
    """At usual sizes: the count, the totals, a hold, models that are off, when they come back, events."""
    of = snapshot(["openai/gpt-5-mini", "acme/large"])
    found = "\n".join(lines(of, width, height))
    for words in ("5 active, cached 12s ago", "30 disabled", "pause", "openai/gpt-5-mini", "never"):
        assert words in found
    assert " 5m" in found
    assert "more: modelctl list --off" in found
    assert ("disabled" in found.splitlines()[-1]) == (height > 10)  # events


def test_nothing_is_off() -> None:
    """A healthy fleet says so, and the events get the room."""
    of = replace(snapshot(["a"], rows=0), spared=0, active=5, events=snapshot(["a"]).events)
    found = lines(of, 80, 24)
    assert "no model is off" in found
    assert sum("disabled" in line for line in found[5:]) > 15


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(-1, "0s"), (59.9, "59s"), (60, "1m"), (3900, "1h05m"), (97200, "1d03h"), (1e7, "115d")],
)
def test_short_durations(seconds: float, written: str) -> None:
    """A duration has two units at most, and seven characters."""
    assert short(seconds) == written
