"""A value that makes no sense is wrong usage or is replaced, for every argument of every method."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl import Config, Fleet, ModelctlError, UsageError
from tests.commands import Cli, make_fleet, run
from tests.fleets import seed


def _act(fleet: Fleet, actor: Any) -> object:
    with Fleet(fleet.config, actor=actor) as other:
        return other.enable("a")


NO_TIMES: list[Any] = [
    float("nan"),
    float("inf"),
    float("-inf"),
    1e18,
    -1.0,
    10**400,
    "1h",
    b"1",
    True,
]
NO_LIMITS: list[Any] = [float("nan"), float("inf"), 1e18, 1.5, -1, 2**63, "1"]
ODD_TEXTS: list[Any] = ["\ud800", "\udcff", "a\0b", "x" * 1_000_000, 5, b"x", ["a"], {"a": 1}]

TIMES: dict[str, Callable[[Fleet, Any], object]] = {
    "events since": lambda fleet, value: fleet.events(since=value),
    "disable duration": lambda fleet, value: fleet.disable("a", duration=value),
    "disable until": lambda fleet, value: fleet.disable("a", until=value),
    "recover cooldown": lambda fleet, value: fleet.recover(cooldown=value),
    "pause duration": lambda fleet, value: fleet.pause(value),
}
LIMITS: dict[str, Callable[[Fleet, Any], object]] = {
    "list": lambda fleet, value: fleet.list_models(limit=value),
    "leaderboard": lambda fleet, value: fleet.leaderboard(top=value),
    "events": lambda fleet, value: fleet.events(limit=value),
    "recover": lambda fleet, value: fleet.recover(limit=value),
}
OUTCOME = {"id": "a", "outcome": "failure"}
TEXTS: dict[str, Callable[[Fleet, Any], object]] = {
    "show": lambda fleet, text: fleet.show(text),
    "disable": lambda fleet, text: fleet.disable(text),
    "enable": lambda fleet, text: fleet.enable("a", text),
    "remove": lambda fleet, text: fleet.remove(text),
    "add": lambda fleet, text: fleet.add(text),
    "add name": lambda fleet, text: fleet.add("b", name=text),
    "add provider": lambda fleet, text: fleet.add("c", provider=text),
    "disable reason": lambda fleet, text: fleet.disable("a", reason=text),
    "enable reason": lambda fleet, text: fleet.enable("a", reason=text),
    "success": lambda fleet, text: fleet.record_success(text),
    "failure": lambda fleet, text: fleet.record_failure(text),
    "failure type": lambda fleet, text: fleet.record_failure("a", text),
    "failure reason": lambda fleet, text: fleet.record_failure("a", reason=text),
    "batch": lambda fleet, text: fleet.record_batch([{**OUTCOME, "id": text}]),
    "batch type": lambda fleet, text: fleet.record_batch([{**OUTCOME, "type": text}]),
    "batch reason": lambda fleet, text: fleet.record_batch([{**OUTCOME, "reason": text}]),
    "list provider": lambda fleet, text: fleet.list_models(provider=text),
    "list sort": lambda fleet, text: fleet.list_models(sort=text),
    "list status": lambda fleet, text: fleet.list_models(status=text),
    "leaderboard provider": lambda fleet, text: fleet.leaderboard(provider=text),
    "events": lambda fleet, text: fleet.events(text),
    "pause provider": lambda fleet, text: fleet.pause(1, provider=text),
    "pause reason": lambda fleet, text: fleet.pause(1, reason=text),
    "resume provider": lambda fleet, text: fleet.resume(provider=text),
    "resume reason": lambda fleet, text: fleet.resume(reason=text),
    "complete": lambda fleet, text: fleet.complete(text),
    "look alikes": lambda fleet, text: fleet.look_alikes([text]),
    "import": lambda fleet, text: fleet.import_models(text),
    "import format": lambda fleet, text: fleet.import_models(b'{"id": "a"}', format=text),
    "import policy": lambda fleet, text: fleet.import_models(b'{"id": "a"}', on_conflict=text),
    "probe": lambda fleet, text: fleet.probe(text),
    "actor": _act,
    "file": lambda fleet, text: Config.load(text),
}


@pytest.mark.parametrize("what", TIMES)
def test_no_time_is_wrong_usage(fleet: Fleet, what: str) -> None:
    """A time that is no number of seconds within ten years is a usage error, and changes nothing."""
    seed(fleet, "a")
    before = fleet.show("a")
    for value in NO_TIMES:
        with pytest.raises(UsageError):
            TIMES[what](fleet, value)
    assert fleet.show("a") == before


@pytest.mark.parametrize("what", LIMITS)
def test_no_limit_is_wrong_usage(fleet: Fleet, what: str) -> None:
    """A limit that is no whole number, or below 1, is a usage error."""
    for value in NO_LIMITS:
        with pytest.raises(UsageError):
            LIMITS[what](fleet, value)


def test_a_list_of_ids_says_how_they_are_given(fleet: Fleet) -> None:
    """The usual slip is named, and what to write instead."""
    with pytest.raises(UsageError, match="a model id is text, not list") as caught:
        fleet.disable(["a", "b"])  # type: ignore[arg-type]  # what somebody without mypy writes
    assert "*ids" in str(caught.value.hint)
    with pytest.raises(UsageError, match="outcomes are a list or another iterable"):
        fleet.record_batch(5)  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize("what", TEXTS)
def test_odd_text_is_an_error_of_ours_or_kept(fleet: Fleet, what: str) -> None:
    """Text that no database holds is refused in words, or kept as far as it can be."""
    seed(fleet, "a")
    for text in ODD_TEXTS:
        if what == "file" and not isinstance(text, str):  # a Path, too, may be given there
            continue
        problem = None
        try:
            TEXTS[what](fleet, text)
        except ModelctlError as exc:
            problem = exc
        assert problem or isinstance(text, str), text
        if problem:
            assert problem.exit_code not in (1, 5), text
            assert len(problem.message) <= 2000
    fleet.add("z")
    fleet.disable("z", reason="a\0b\ud800" + "x" * 1000)
    kept = fleet.show("z").disabled_reason
    assert kept is not None
    assert kept.startswith("a\ufffdb\ufffdxxx")


FILES = {
    "NUL": "a\0b",
    "lone surrogate": "\ud800",
    "byte that is not text": "/nowhere/\udcff",
    "too long": "/" + "x" * 10_000,
}


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
@pytest.mark.parametrize("command", ["import", "record-batch", "--config"])
def test_odd_name_of_a_file(cli: Cli, command: str, name: str) -> None:
    """A file name that is impossible or does not exist is an error in the requested form."""
    make_fleet()
    words = (command, name, "count") if command == "--config" else (command, name)
    code = 3 if command == "--config" else 2
    cli(*words).failed(code, "")
    problem = cli(*words, "-o", "json")
    assert (problem.code, problem.err) == (code, "")
    assert problem.json["error"]["message"]


def test_home_with_a_name_that_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded database works in a folder whose name is not UTF-8."""
    home = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    made = run("add", "a", XDG_DATA_HOME=home)
    assert (made.code, made.err) == (0, "")
    assert run("count", XDG_DATA_HOME=home).out == "1\n"
    assert "\\udcff" in run("doctor", XDG_DATA_HOME=home).out
    url = f"sqlite:///{tmp_path}/%FF/modelctl/modelctl.db"
    assert run("count", MODELCTL_DATABASE_URL=url).out == "1\n"
    shown = run("config", "show", XDG_DATA_HOME=home).out
    assert url in shown


@pytest.mark.parametrize("kib", [1, 4, 8, 20, 32, 48, 56, 60])
def test_full_disk_where_the_database_is_created(tmp_path: Path, kib: int) -> None:
    """Where there is no room for the new file, that is said, and nothing half made stays behind."""

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10))

    home = str(tmp_path / "full")
    result = run("count", "-o", "json", before=little, XDG_DATA_HOME=home)
    folder = tmp_path / "full" / "modelctl"
    if result.code:
        assert (result.code, result.err) == (5, "")
        assert result.json["error"]["code"] == "database_unavailable"
        assert ".new-" not in result.out
        assert not [name for name in os.listdir(folder) if name.startswith(".new-")]
    assert run("add", "a", XDG_DATA_HOME=home).code == 0
    assert run("count", XDG_DATA_HOME=home).out == "1\n"
