"""`metrics` prints what Prometheus' own parsers read, with the numbers of the fleet."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_prometheus

from modelctl import Fleet
from tests import fleets
from tests.cli.test_startup import loaded
from tests.commands import Cli, make_fleet
from tests.fleets import Ago, put, put_hold, put_off
from tests.world import World

Samples = dict[tuple[str, ...], float]
READERS: dict[str, Any] = {"openmetrics": read_openmetrics, "prometheus": read_prometheus}
FORMATS = pytest.mark.parametrize("form", READERS)


def samples(form: str, text: str) -> Samples:
    """Read the text; return each number by the name and the labels of its series."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in READERS[form](text)
        for sample in family.samples
    }


def measured(tool: Cli, form: str = "openmetrics", **settings: object) -> Samples:
    """Run `metrics` and read what it printed."""
    result = tool("metrics", "--format", form, **settings)
    assert (result.code, result.err) == (0, "")
    return samples(form, result.out)


@FORMATS
def test_the_numbers_of_a_fleet(tool: Cli, fleet: Fleet, fleet_url: str, form: str) -> None:
    """Models, count, recover, holds and events have the numbers that the fleet has."""
    put(fleet_url, "a", "b", provider="acme")
    put(fleet_url, "c", provider="acme", active=False)
    put(fleet_url, "d")
    put_off(fleet_url, "e", provider="other")
    put_hold(fleet_url, "fleet", until=Ago(-60))
    put_hold(fleet_url, "provider:acme", provider="acme", until=Ago(60))
    put_hold(fleet_url, "incident", provider="acme", failure_type="parse-error", until=Ago(-60))
    fleet.disable("a")
    fleet.enable("a")
    fleet.recover()
    found = measured(tool, form)
    models = {key[1:]: number for key, number in found.items() if key[0] == "modelctl_models"}
    assert {key: number for key, number in models.items() if number} == {
        ("acme", "active"): 2,
        ("acme", "disabled"): 1,
        ("", "active"): 1,
        ("other", "auto-disabled"): 1,
    }
    assert found["modelctl_active_models",] == 3
    assert found["modelctl_holds", "pause"] == 1
    assert found["modelctl_holds", "incident"] == 1
    assert 0 <= found["modelctl_recover_age_seconds",] < 60
    assert found["modelctl_recover_timestamp_seconds",] > 1.6e9
    assert found["modelctl_events_total", "disabled"] == 1
    assert found["modelctl_events_total", "enabled"] == 1


@FORMATS
def test_an_empty_fleet(tool: Cli, form: str) -> None:
    """Without models, events and a run of recover, what is known is 0 and the rest is absent."""
    found = measured(tool, form)
    assert found["modelctl_active_models",] == 0
    assert found["modelctl_outbox_undelivered",] == 0
    assert found["modelctl_holds", "pause"] == 0
    assert ("modelctl_recover_age_seconds",) not in found


def test_names_follow_the_conventions(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """Every name has our prefix, a counter ends in _total, a time is in seconds, no label is an id."""
    put(fleet_url, "an/id", provider="acme")
    fleet.disable("an/id")
    fleet.recover()
    text = tool("metrics").out
    assert text.endswith("\n# EOF\n")
    assert "an/id" not in text
    for family in READERS["openmetrics"](text):
        assert re.fullmatch("modelctl_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "stateset")
        assert family.unit == ("seconds" if family.name.endswith("_seconds") else "")
        names = {sample.name for sample in family.samples}
        assert names <= {family.name + ("_total" if family.type == "counter" else "")}


def test_any_provider_is_a_label(tool: Cli, fleet_url: str) -> None:
    """Quotes, backslashes and newlines survive; control characters never reach the terminal."""
    for number, provider in enumerate(['a"b', "a\\b", "a\nb", "a\\nb", "\x1b[31m", "\\x1b[31m"]):
        put(fleet_url, f"m{number}", provider=provider)
    for form in READERS:
        found = measured(tool, form)
        models = {key[1]: number for key, number in found.items() if key[2:] == ("active",)}
        # What a control character is shown as may be what another provider is called.
        assert sum(models.values()) == 6
        assert 'a"b' in models
        assert "a\\b" in models


def test_the_cached_count_and_its_age(pg_database: str, redis_url: str) -> None:
    """A cached number is what is shown, with its age; a miss comes from the database and fills nothing."""
    with World(pg_database, redis_url) as world:
        put(pg_database, "a")
        world.forget()
        before = world.fleet.metrics()
        assert (before.active, before.source, before.age_seconds) == (1, "database", 0)
        assert world.ask("KEYS", "*") == []
        world.cache_believed(7)
        world.age(20)
        after = world.fleet.metrics()
        assert (after.active, after.source) == (7, "cache")
        assert 19 < after.age_seconds < 60


def test_the_queue(pg_database: str, redis_url: str) -> None:
    """Undelivered and settling invalidations are counted, and the oldest has an age."""
    with World(pg_database, redis_url) as world:
        put(pg_database, "a")
        put(pg_database, "b")
        world.sql("UPDATE modelctl_outbox SET due = due - interval '90 seconds'")
        found = world.fleet.metrics()
        assert (found.queued, found.settling) == (2, 0)
        assert 90 <= found.oldest_queued_seconds < 150
        world.fleet.drain()
        found = world.fleet.metrics()
        assert (found.queued, found.settling, found.oldest_queued_seconds) == (0, 2, 0)


def test_redis_is_away(tool: Cli, pg: Fleet, pg_cleared: str) -> None:
    """Without Redis the number comes from the database, and stderr says why."""
    put(pg_cleared, "a")
    with fleets.opened(pg_cleared, redis_url="redis://127.0.0.1:1/0") as fleet:
        warnings: list[str] = []
        fleet.on_warning = warnings.append
        assert (fleet.metrics().active, fleet.metrics().source) == (1, "database")
        assert "counted from the database" in warnings[0]


@pytest.mark.parametrize("models", [1, 50])
def test_two_statements(fleet: Fleet, fleet_url: str, models: int) -> None:
    """Two statements, however many models, providers and kinds of events there are."""
    put(fleet_url, *(f"m{number}" for number in range(models)))
    for number in range(models):
        fleets.alter(fleet_url, f"m{number}", provider=f"p{number}")
    fleet.metrics()
    seen: list[str] = []
    engine = fleet._store.database.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    fleet.metrics()
    assert len(seen) == 2


def test_write_replaces_the_file_at_once(tool: Cli, fleet_url: str, tmp_path: Path) -> None:
    """--write prints nothing; node_exporter may read the file, and never finds a half or another."""
    put(fleet_url, "a")
    file = tmp_path / "modelctl.prom"
    file.write_text("old")
    reader = file.open()
    result = tool("metrics", "--format", "prometheus", "--write", str(file))
    assert (result.code, result.out, result.err) == (0, "", "")
    with reader:
        assert reader.read() == "old"
    assert samples("prometheus", file.read_text())["modelctl_active_models",] == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.glob("*.prom")] == ["modelctl.prom"]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_write_refuses_what_is_no_file(tool: Cli, tmp_path: Path) -> None:
    """A folder, a device and a folder that is not there are usage errors, and leave nothing behind."""
    for name in (str(tmp_path), "/dev/null", str(tmp_path / "no" / "file"), "a\0b"):
        tool("metrics", "--write", name).failed(2)
    assert Path("/dev/null").is_char_device()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".tmp", ".prom")]


def test_a_database_that_is_away_keeps_the_file(cli: Cli, tmp_path: Path) -> None:
    """If the database cannot be asked, the command fails and the old file stays."""
    file = tmp_path / "modelctl.prom"
    file.write_text("old")
    result = cli("--config", str(tmp_path / "none"), "metrics", "--write", str(file))
    result.failed(3)
    assert file.read_text() == "old"


def test_only_metrics_loads_the_library() -> None:
    """No other command imports the client of Prometheus."""
    make_fleet()
    assert "prometheus_client" in loaded("metrics")
    for line in ("count", "--help", "doctor", "list"):
        assert "prometheus_client" not in loaded(*line.split())
