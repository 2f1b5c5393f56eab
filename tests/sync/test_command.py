"""The command sync: a day of a fleet that follows what is offered over HTTP, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelctl import AsyncFleet, Fleet, InvalidConfigError, SyncResult, UsageError
from modelctl.config.config import Config
from tests import fleets
from tests.commands import Cli, Result, finish, on_terminal, plain
from tests.sources.server import Lists, listing, models, status

CONFIG = """
[source.router]
url = "{url}"
allow_http = true
allow_private = true
modes = ["chat"]
except = ["*:free"]
tags = ["routed"]
[source.lab]
file = "{folder}/lab.jsonl"
"""


def listed(**names: str | None) -> dict[str, Any]:
    """Answer as OpenRouter does: id and name of each model; None: not offered."""
    rest = {"created": 1754587413, "context_length": 400000, "pricing": {"prompt": "0.0000025"}}
    kinds = {"pic": "text->image"}
    return {
        "data": [
            {
                "id": f"acme/{key}",
                "canonical_slug": f"acme/{key}-2026",
                "name": name,
                "architecture": {"modality": kinds.get(key, "text+image->text")},
                **rest,
            }
            for key, name in names.items()
            if name is not None
        ]
    }


MORNING: dict[str, str | None] = {**{f"m{n}": f"Acme: M{n}" for n in range(6)}, "pic": "Acme: Pic"}
NOON: dict[str, str | None] = MORNING | {
    "m1": None,
    "m2": "Acme: M2 \x1b[31mTurbo",
    "m6": "Acme: M6",
}


@pytest.fixture
def server() -> Iterator[Lists]:
    """Run the server of a provider."""
    with listing() as server:
        server.answers = [listed(**MORNING)]
        yield server


@pytest.fixture
def file(server: Lists, tmp_path: Path) -> str:
    """Write a configuration with two sources."""
    (tmp_path / "lab.jsonl").write_text('{"id": "own/x", "name": "Own"}\n{"id": "acme/m0"}\n')
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(url=server.url, folder=tmp_path))
    return str(path)


@pytest.fixture
def run(tool: Cli, file: str) -> Callable[..., Result]:
    """Run a command with that configuration."""
    return lambda *words, **how: tool("--config", file, *words, **how)


def test_a_day_in_the_life(run: Callable[..., Result], server: Lists, tmp_path: Path) -> None:
    """Plan, result, history, silence; a model that is gone and comes back; an emptied answer."""
    run("sync").failed(2, "the plan changes 7 models (7 added; 0 unchanged)", "--yes", "--dry-run")
    morning = run("sync", "--yes", "--actor", "cron")
    assert morning.lines == [
        f"+ acme/m{n} name 'Acme: M{n}'; provider 'acme'" for n in range(6)
    ] + ["+ own/x name 'Own'"]
    assert morning.err == ""
    again = run("sync", "--yes")
    assert (again.code, again.out, again.err) == (0, "", "")
    assert run("sync").code == 0  # nothing to ask

    server.answers = [listed(**NOON)]
    noon = [
        "~ acme/m2 name: 'Acme: M2' -> 'Acme: M2 \\x1b[31mTurbo'",
        "+ acme/m6 name 'Acme: M6'; provider 'acme'",
        "- acme/m1 status: 'active' -> 'disabled'; gone from router; disabled",
    ]
    plan = run("sync", "--gone", "disable", "--dry-run")
    assert plan.lines == [*noon, "! acme/m0 belongs to router, which comes first"]
    whole = run("sync", "--gone", "disable", "--dry-run", "-o", "json").json
    assert [whole[k] for k in ("added", "changed", "gone", "clashes", "unchanged")] == [
        1,
        1,
        1,
        1,
        5,
    ]
    assert {change["id"]: change["kind"] for change in whole["changes"]} == {
        "acme/m2": "changed",
        "acme/m6": "added",
        "acme/m1": "gone",
        "acme/m0": "clash",
    }
    assert whole["notes"] == ["router: 1 model of the catalogue left out, as asked for"]
    done = run("sync", "--yes", "--gone", "disable")
    assert (done.code, done.lines, done.err) == (0, noon, "")
    assert run("sync", "--gone", "disable").lines == []
    events = run("events", "--operation", whole_operation(run), "-o", "json").json
    assert {(e["model_id"], e["event"], e["reason"]) for e in events} == {
        ("acme/m1", "disabled", "gone from router"),
        ("acme/m2", "updated", None),
        ("acme/m6", "added", None),
    }
    assert run("list", "--tag", "routed", "--status", "active", "-o", "name").lines == [
        f"acme/m{n}" for n in (0, 2, 3, 4, 5, 6)
    ]

    explanation = run("show", "acme/m1", "-o", "json").json["explanation"]
    assert "sync switched it off, and enables it when its source offers it" in explanation[-1]

    server.answers = [listed(**NOON | {"m1": "Acme: M1"})]
    assert run("sync", "--yes").lines == [
        "+ acme/m1 status: 'disabled' -> 'active'; back in router; enabled"
    ]
    server.answers = [listed(**NOON)]
    removed = run("sync", "--gone", "remove", "--dry-run").lines
    assert removed[0] == "- acme/m1 status 'active'; gone from router; removed"
    before = run("list", "-o", "json").json
    for answer, code, words in [
        ({"data": []}, 8, "6 of the 7 models of router would be gone, and at most 20% may"),
        (listed(m0="Acme: M0"), 8, "6 of the 7 models of router would be gone"),
        (b"<html>maintenance", 3, "source 'router': the answer is a page of HTML"),
        ({"error": {"message": "no credits"}}, 2, "source 'router': this is no catalogue but an"),
        (status(401, {"error": {"message": "bad key"}}), 3, "source 'router': HTTP 401: bad key"),
    ]:
        server.answers = [answer]
        run("sync", "--yes", "--gone", "remove").failed(code, words)
    assert run("list", "-o", "json").json == before
    assert run("sync", "lab", "--yes").lines == []  # the other source alone


def whole_operation(run: Callable[..., Result]) -> str:
    """Return the operation of the newest event."""
    [event] = run("events", "--limit", "1", "-o", "json").json
    return str(event["operation"])


def test_sources_that_are_named(run: Callable[..., Result], server: Lists, tmp_path: Path) -> None:
    """Only these are read; a name that is unknown, or a percentage that is none, is exit 2."""
    assert run("sync", "lab", "--yes", "-o", "name").lines == ["acme/m0", "own/x"]
    assert server.asked == []
    run("sync", "lob").failed(2, "there is no source 'lob'", "configured are: router, lab")
    run("sync", "--max-gone", "many").failed(2, "--max-gone is a percentage", "20%")
    run("sync", "--max-gone", "101%").failed(2, "--max-gone is a percentage")
    run("sync", "--gone", "hide").failed(2, "keep")
    # The model stays with the source that comes first once that is read, too.
    assert "+ acme/m1" in run("sync", "--yes").out
    (tmp_path / "lab.jsonl").unlink()
    run("sync").failed(3, "source 'lab': cannot read the file", "modelctl sync router")
    server.answers = [status(404)]
    run("sync").failed(3, "source 'router': HTTP 404; source 'lab': cannot read")


def test_no_source(tool: Cli) -> None:
    """Without a source there is nothing to follow, and the error says where to write one."""
    tool("sync", "--yes").failed(3, "no source of catalogues is configured", "[source.NAME]")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 8)])
def test_a_terminal_asks(file: str, sqlite_database: str, answer: str, code: int) -> None:
    """On a terminal the plan is shown, then a question; no is exit 8, and nothing is changed."""
    environ = fleets.environ(sqlite_database)
    child = on_terminal("--config", file, "sync", environ=environ)
    child.expect_exact("Sync 7 models? [y/N] ")
    shown = plain(child.before)
    assert "  + own/x name 'Own'" in shown
    assert "! acme/m0 belongs to router, which comes first" in shown
    assert "7 added; 0 unchanged" in shown
    child.sendline(answer)
    ended, text = finish(child)
    assert ended == code
    assert ("done: 7 added" in text) == (code == 0)
    with Fleet.open(fleets.configured(sqlite_database)) as fleet:
        assert len(fleet.list_models()) == (7 if code == 0 else 0)


async def sync_async(config: Config) -> SyncResult:
    """Sync with AsyncFleet."""
    async with AsyncFleet.open(config) as fleet:
        return await fleet.sync("lab", dry_run=True)


def test_in_python(server: Lists, file: str, fleet_url: str) -> None:
    """Sources are named, or given with their models; both at once keep their order."""
    import asyncio
    from dataclasses import replace

    config = replace(fleets.configured(fleet_url), sources=Config.load(file).sources)
    with Fleet.open(config, actor="me") as fleet:
        result = fleet.sync()
        assert (result.sources, result.added, result.clashes) == (("router", "lab"), 7, 1)
        assert fleet.sync(["lab"]).is_silent
        own = fleet.sync([("own", [("own/y", "Y", "own"), ("own/x", "Z", "")])])
        assert [(c.id, c.kind) for c in own.changes] == [("own/y", "added"), ("own/x", "clash")]
        with pytest.raises(UsageError, match="no source 'x'"):
            fleet.sync(["x"])
        server.answers = [status(403)]
        with pytest.raises(InvalidConfigError, match="source 'router': HTTP 403"):
            fleet.sync()
    assert asyncio.run(sync_async(config)).is_silent


def test_what_is_not_taken_is_said(run: Callable[..., Result], server: Lists) -> None:
    """Entries that are no models, and models on two pages, are notes; a pipe stays silent."""

    def pages(**more: str) -> list[dict[str, Any]]:
        first, second = (
            [entry | more for entry in models(*ids)] for ids in (("a", "b"), ("b", "c"))
        )
        return [{"data": [*first, {"id": " "}], "has_more": True, "last_id": "b"}, {"data": second}]

    server.answers = pages()
    run("sync", "router", "--yes").failed(2, "says of no model what it is for")
    server.answers = pages(mode="chat")
    assert run("sync", "router", "--yes", "-o", "json").json["notes"] == [
        "router: 1 model on two pages: the list changed while it was read",
        "router: no models: entry 3: a model id has no blanks at its ends: ' '",
    ]
    server.answers = pages(mode="chat")
    again = run("sync", "router", "--yes")
    assert (again.out, again.err) == ("", "")
