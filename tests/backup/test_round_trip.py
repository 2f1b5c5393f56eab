"""An export has all that a fleet is: restored into an empty fleet it gives the same export."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, ModelStatus, Selection
from modelctl.backup.export import _lines
from tests.backup.exports import exported
from tests.fleets import (
    STARTS,
    Start,
    alter,
    clear,
    everything,
    opened,
    put,
    put_hold,
    put_off,
    put_starts,
    seed,
    sql,
    status,
    trip,
)

OPERATIONS = st.lists(
    st.sampled_from(["disable", "until", "enable", "fail", "trip", "tag", "pause", "recover"]),
    max_size=5,
)


def act(fleet: Fleet, url: str, operation: str) -> None:
    """Change some of the models a, b and c."""
    there = [model.id for model in fleet.iter_models()]
    some = there[:2]
    match operation:
        case "disable":
            fleet.disable(*some, reason="naïve \N{ZERO WIDTH SPACE}reason", actor="ann")
        case "until":
            fleet.disable(*there[-2:], duration=86400.0)
        case "enable":
            fleet.enable(there[0])
        case "fail":
            fleet.record_failure(there[-1], "timeout", reason='slow "answer"')
        case "trip":
            trip(fleet, there[0])
        case "tag":
            sql(url, "DELETE FROM modelctl_tags WHERE model_id = ?", there[0])
            tags = '["eu", "é"]' if url.startswith("sqlite") else '{"eu","é"}'
            sql(url, "INSERT INTO modelctl_tags (model_id, tags) VALUES (?, ?)", there[0], tags)
        case "pause":
            fleet.pause(86400.0, provider="acme", reason="why")
        case "recover":
            fleet.recover()


@given(
    models=st.dictionaries(st.sampled_from(["a", "Z", "é/\N{GRINNING FACE}"]), STARTS, min_size=1),
    operations=OPERATIONS,
)
@settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_fleet_comes_back_whole(
    sqlite_database: str, pg_cleared: str, models: dict[str, Start], operations: list[str]
) -> None:
    """From SQLite to PostgreSQL and back the exports are equal, byte for byte, and so the other way."""
    for one, other in ((sqlite_database, pg_cleared), (pg_cleared, sqlite_database)):
        clear(one)
        put_starts(one, models)
        with opened(one) as first, opened(other) as second:
            for operation in operations:
                act(first, one, operation)
            whole = exported(first)
            text = "".join(first.export()).encode()
            for fleet, url in ((second, other), (first, one)):
                clear(url)
                done = fleet.restore(text)
                assert (done.added, done.left_off) == (len(models), 0)
                assert exported(fleet) == whole
            before = everything(one)
            again = first.restore(text)
            assert (again.unchanged, again.changes, again.holds) == (len(models), (), 0)
            assert everything(one) == before


def test_an_export_shows_one_moment(fleet: Fleet, fleet_url: str) -> None:
    """What changes while the rows are read is not in the export."""
    put(fleet_url, "a")
    lines = _lines(fleet._store.database, None)
    read = [next(lines), next(lines)]
    put_hold(fleet_url, "fleet", since="2026-01-01", until="2100-01-01")
    sql(fleet_url, "INSERT INTO models (id) VALUES ('b')")
    read += lines
    assert json.loads(read[-1]) == {"end": {"models": 1, "pauses": 0, "incidents": 0}}
    assert len(read) == 3
    assert len(exported(fleet)) == 4


def test_a_selection_exports_its_models_alone(fleet: Fleet, fleet_url: str) -> None:
    """Of a selection the other models, the pauses and incidents are left out, and so they stay."""
    put(fleet_url, "a/1", "a/2", "b/1", provider="acme")
    fleet.pause(3600.0)
    lines = [*fleet.export(select=Selection(match="a/*"))]
    assert [json.loads(line)["id"] for line in lines[1:-1]] == ["a/1", "a/2"]
    fleet.disable("a/1", "b/1")
    done = fleet.restore("".join(lines).encode(), enable=True)
    assert (done.updated, done.unchanged, done.untouched) == (1, 1, 1)
    assert status(fleet, "a/1", "b/1") == [ModelStatus.ACTIVE, ModelStatus.DISABLED]


def test_rows_of_other_programs_are_exported(fleet: Fleet, fleet_url: str) -> None:
    """Odd values are exported as `list` shows them; the export can be restored."""
    fleet.on_warning = lambda _: None
    put(fleet_url, "x" * 300, " blanks ", "tab\t", provider="")
    put_off(fleet_url, "off")
    alter(fleet_url, "off", success_count=-5)
    if fleet_url.startswith("sqlite"):
        alter(fleet_url, "off", disabled_at="yesterday", ejections="many", display_name=b"\xff")
        sql(fleet_url, "UPDATE models SET updated_at = '2026-01-01 10:00:00'")
    else:
        alter(fleet_url, "off", disabled_until="infinity", updated_at="2026-01-01 10:00:00.123456")
    whole = "".join(fleet.export()).encode()
    assert fleet.restore(whole).unchanged == 4
    clear(fleet_url)
    assert fleet.restore(whole).added == 4
    assert "".join(exported(fleet)) in whole.decode()


def test_a_file_of_many_models(fleet: Fleet, tmp_path: Path) -> None:
    """More models than are read at once are exported in order, each once, and restored in chunks."""
    ids = [f"m{number:05}" for number in range(5100)]
    seed(fleet, ids)
    file = tmp_path / "export"
    file.write_text("".join(fleet.export()))
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()[1:-1]] == ids
    fleet.disable(select=Selection(match="m0[0-4]*"))
    done_of: list[int] = []
    with file.open("rb") as stream:
        done = fleet.restore(stream, enable=True, progress=done_of.append)
    assert (done.updated, done.unchanged) == (5000, 100)
    assert done_of[-1] == 5100
