"""A change is reported only if the row has it, also where triggers of an application keep rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modelctl import Fleet, RefusedError
from modelctl.config.probes import ProbeConfig
from tests.commands import Cli
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    HOUR,
    ago,
    configured,
    everything,
    is_sqlite,
    opened,
    put_off,
    seed,
    sql,
    trip,
)

BAD = "parse-error"


def trigger(url: str, when: str, event: str, ids: str, body: str) -> None:
    """Let the application have a trigger for some ids; *body* in plpgsql, or for SQLite."""
    row = "NEW" if event == "INSERT" else "OLD"
    if is_sqlite(url):
        sql(
            url,
            f"CREATE TRIGGER app_{event} {when} {event} ON models WHEN {row}.id IN ({ids})"
            f" BEGIN {body}; END",
        )
        return
    sql(
        url,
        f"CREATE FUNCTION app_{event}() RETURNS trigger LANGUAGE plpgsql"
        f" AS $$ BEGIN {body}; RETURN NULL; END $$",
    )
    sql(
        url,
        f"CREATE TRIGGER app_{event} {when} {event} ON models FOR EACH ROW"
        f" WHEN ({row}.id IN ({ids})) EXECUTE FUNCTION app_{event}()",
    )


def suppress(url: str, ids: str, event: str = "UPDATE") -> None:
    """Let the application drop every statement of this kind for these models without a word."""
    body = "SELECT RAISE(IGNORE)" if is_sqlite(url) else "RETURN NULL"
    trigger(url, "BEFORE", event, ids, body)


def undo(url: str, ids: str) -> None:
    """Let the application put `active` back after each update."""
    body = "UPDATE models SET active = OLD.active WHERE id = OLD.id AND active <> OLD.active"
    name = "app_undo"
    if is_sqlite(url):
        when = f"WHEN OLD.id IN ({ids}) AND NEW.active <> OLD.active"
        sql(url, f"CREATE TRIGGER {name} AFTER UPDATE OF active ON models {when} BEGIN {body}; END")
        return
    sql(
        url,
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
        f" AS $$ BEGIN {body}; RETURN NULL; END $$",
    )
    sql(
        url,
        f"CREATE TRIGGER {name} AFTER UPDATE ON models FOR EACH ROW WHEN (OLD.id IN ({ids})"
        f" AND NEW.active <> OLD.active AND pg_trigger_depth() = 0) EXECUTE FUNCTION {name}()",
    )


def alter(url: str, ids: str) -> None:
    """Let the application put `active` back before the row is written."""
    if is_sqlite(url):  # a trigger there cannot change the row that is about to be written
        undo(url, ids)
        return
    sql(
        url,
        "CREATE FUNCTION app_alter() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN NEW.active := OLD.active; RETURN NEW; END $$",
    )
    sql(
        url,
        "CREATE TRIGGER app_alter BEFORE UPDATE ON models FOR EACH ROW"
        f" WHEN (OLD.id IN ({ids})) EXECUTE FUNCTION app_alter()",
    )


def put_back_later(url: str, ids: str) -> None:
    """Let the application put `active` back at COMMIT; on SQLite nothing can wait for that."""
    if is_sqlite(url):
        undo(url, ids)
        return
    defer(
        url,
        f"OLD.id IN ({ids}) AND NEW.active <> OLD.active AND pg_trigger_depth() = 0",
        "UPDATE models SET active = OLD.active WHERE id = OLD.id",
    )


def defer(url: str, when: str, body: str) -> None:
    """Let PostgreSQL do this at COMMIT."""
    sql(
        url,
        "CREATE FUNCTION app_later() RETURNS trigger LANGUAGE plpgsql"
        f" AS $$ BEGIN {body}; RETURN NULL; END $$",
    )
    sql(
        url,
        "CREATE CONSTRAINT TRIGGER app_later AFTER UPDATE ON models DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION app_later()",
    )


HOW = {"suppress": suppress, "undo": undo, "alter": alter, "put back later": put_back_later}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Give a database of each kind, with the models a, b and, switched off by the rule, off."""
    name = "pg_database" if request.param == "postgresql" else "sqlite_database"
    url = str(request.getfixturevalue(name))
    with opened(url) as fleet:
        seed(fleet, ["a", "b", "off", "off2"])
        trip(fleet, "off", "off2")
    return url


failures = [{"id": i, "outcome": "failure", "type": BAD} for i in "ba" for _ in range(5)]
# Each changes the status of a or of off.
CHANGES: dict[str, Callable[[Fleet], Any]] = {
    "disable": lambda fleet: fleet.disable("a"),
    "disable several": lambda fleet: fleet.disable("b", "a"),
    "disable in a dry run": lambda fleet: fleet.disable("b", "a", dry_run=True),
    "enable": lambda fleet: fleet.enable("off"),
    "enable several": lambda fleet: fleet.enable("a", "off", "off2"),
    "record-success": lambda fleet: fleet.record_success("off"),
    "record-batch": lambda fleet: fleet.record_batch(failures),
    "record-batch back": lambda fleet: fleet.record_batch([{"id": "off", "outcome": "success"}]),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_is_refused(url: str, change: str, how: str) -> None:
    """A change that the application undoes is refused in words, and nothing at all is written."""
    HOW[how](url, "'a', 'off'")
    before = everything(url)
    with opened(url) as fleet, pytest.raises(RefusedError) as caught:
        CHANGES[change](fleet)
    place = "a trigger on models" if is_sqlite(url) else "a trigger or rule on public.models"
    assert f"as it was ({place})" in caught.value.message
    assert everything(url) == before


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_a_single_failure_that_is_kept(url: str, how: str, guarded: bool) -> None:
    """The failure that would switch a model off is refused, on the short way and beside guards."""
    settings: dict[str, object] = {"health_threshold": 1, "recovery_restart_failures": 0}
    if guarded:
        settings["recovery_min_active"] = 1
    HOW[how](url, "'a'")
    before = everything(url)
    with opened(url, **settings) as fleet, pytest.raises(RefusedError, match="kept 'a' as it was"):
        fleet.record_failure("a", BAD)
    assert everything(url) == before


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_refused_at_commit(pg_database: str, change: str) -> None:
    """A deferred trigger that raises is a refusal with its words, and nothing is written."""
    with opened(pg_database) as fleet:
        seed(fleet, ["a", "b", "off", "off2"])
        trip(fleet, "off", "off2")
        defer(pg_database, "OLD.id IN ('a', 'off')", "RAISE 'not this one'")
        before = everything(pg_database)
        with pytest.raises(RefusedError, match="not this one"):
            CHANGES[change](fleet)
        assert everything(pg_database) == before


def test_another_end_is_no_end(url: str) -> None:
    """A trigger that changes the end of a timed disable is noticed; a column that rounds it is accepted."""
    change = "UPDATE models SET disabled_until = {} WHERE id = OLD.id AND disabled_until <> {}"
    for model_id, end in (("'a'", "NULL"), ("'b'", f"{ago(url, -9e5)}")):
        when = "" if is_sqlite(url) else " AND pg_trigger_depth() < 2"
        body = change.format(end, "'2100-01-01'") + when
        trigger(url, "AFTER", "UPDATE", model_id, body)
        before = everything(url)
        with opened(url) as fleet:
            for ids in ([model_id[1:-1]], ["off", model_id[1:-1]]):
                with pytest.raises(RefusedError, match="as it was"):
                    fleet.disable(*ids, duration=3600)
            assert everything(url) == before
        drop = "DROP TRIGGER app_UPDATE" if is_sqlite(url) else "DROP FUNCTION app_UPDATE CASCADE"
        sql(url, drop)


def test_a_column_that_rounds_keeps_the_end(pg_database: str) -> None:
    """An end that a column rounds to seconds is the end that was asked for."""
    sql(pg_database, "ALTER TABLE models ALTER disabled_until TYPE timestamp(0)")
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        assert fleet.disable("a", duration=3600.4).changes[0].changed
        assert fleet.disable("a", "b", duration=3600.4).changes[1].changed
        fleet.disable("b")
        assert fleet.disable("b", duration=60).changes[0].after is DISABLED


def test_an_outcome_that_is_dropped_is_said(url: str) -> None:
    """An outcome that a trigger drops is not reported as recorded, even if no status would change."""
    suppress(url, "'a'")
    calls: list[Callable[[Fleet], Any]] = [
        lambda fleet: fleet.record_failure("a", "timeout"),
        lambda fleet: fleet.record_success("a"),
        lambda fleet: fleet.record_batch([{"id": "a", "outcome": "success"}]),
    ]
    for call in calls:
        with opened(url) as fleet, pytest.raises(RefusedError, match="kept 'a' as it was"):
            call(fleet)


def assert_outcomes_are_refused(url: str) -> None:
    """Every way to record an outcome of a is refused, and leaves the database as it was."""
    before = everything(url)
    calls: list[Callable[[Fleet], Any]] = [
        lambda fleet: fleet.record_failure("a", "timeout"),
        lambda fleet: fleet.record_failure("a", BAD),
        lambda fleet: fleet.record_success("a"),
        lambda fleet: fleet.record_batch([{"id": i, "outcome": "success"} for i in "ba"]),
        lambda fleet: fleet.record_batch([{"id": "a", "outcome": "failure", "type": "timeout"}]),
    ]
    for call in calls:
        with opened(url) as fleet, pytest.raises(RefusedError, match="kept 'a' as it was"):
            call(fleet)
        assert everything(url) == before


@pytest.mark.parametrize("body", ["RETURN OLD", "NEW := OLD; NEW.updated_at := now(); RETURN NEW"])
def test_an_outcome_that_is_put_back_is_said(pg_database: str, body: str) -> None:
    """A trigger that leaves the status, and puts all else of the row back, recorded nothing."""
    with opened(pg_database) as fleet:
        fleet.add("a")
        fleet.add("b")
        fleet.record_failure("a", BAD)  # a status that stays, and times of long ago
    for column in ("last_success_at", "last_failure_at"):
        sql(pg_database, f"UPDATE models SET {column} = {ago(pg_database, 60)}")
    trigger(pg_database, "BEFORE", "UPDATE", "'a'", body)
    assert_outcomes_are_refused(pg_database)


@pytest.mark.parametrize("seconds", [None, 3, 60])
def test_an_outcome_that_is_put_back_afterwards_is_said(url: str, seconds: int | None) -> None:
    """A trigger that puts a row back after each update, and leaves the status, recorded nothing."""
    times = ("last_success_at", "last_failure_at")
    if seconds:
        for column in times:
            sql(url, f"UPDATE models SET {column} = {ago(url, seconds)}")
    columns = (*times, "success_count", "failure_count", "consecutive_failures", "failure_type")
    back = ", ".join(f"{column} = OLD.{column}" for column in columns)
    when = "" if is_sqlite(url) else " AND pg_trigger_depth() < 2"
    trigger(url, "AFTER", "UPDATE", "'a'", f"UPDATE models SET {back} WHERE id = OLD.id{when}")
    assert_outcomes_are_refused(url)
    settings: dict[str, object] = {"recovery_min_active": 1}
    with opened(url, **settings) as fleet, pytest.raises(RefusedError, match="kept 'a' as it was"):
        fleet.record_failure("a", BAD)
    with opened(url) as fleet:
        assert fleet.record_success("b").changes[0].after is ACTIVE
        assert fleet.record_batch([{"id": "b", "outcome": "success"}] * 2).recorded == 2


def test_an_outcome_of_a_slow_trigger_is_recorded(pg_database: str) -> None:
    """A trigger that takes its time, and a column that keeps whole seconds, put nothing back."""
    for column in ("last_success_at", "last_failure_at"):
        sql(pg_database, f"ALTER TABLE models ALTER {column} TYPE timestamp(0)")
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        trigger(pg_database, "AFTER", "UPDATE", "'a'", "PERFORM pg_sleep(3)")
        for _ in range(3):
            assert fleet.record_success("b").changes[0].after is ACTIVE
        assert fleet.record_failure("a", "timeout").changes[0].after is ACTIVE
        assert fleet.record_batch([{"id": i, "outcome": "success"} for i in "ab"]).recorded == 2


def test_a_counter_is_the_applications_matter(url: str) -> None:
    """A trigger that counts in its own way stops no outcome."""
    body = "UPDATE models SET success_count = 0 WHERE id = OLD.id AND success_count <> 0"
    if is_sqlite(url):
        sql(url, f"CREATE TRIGGER app AFTER UPDATE ON models BEGIN {body}; END")
    else:
        trigger(url, "AFTER", "UPDATE", "'a'", body)
    with opened(url) as fleet:
        assert fleet.record_success("a").changes[0].after is ACTIVE
        assert fleet.record_batch([{"id": "a", "outcome": "success"}]).recorded == 1
        assert fleet.show("a").success_count == 0


def test_what_cannot_be_removed(url: str) -> None:
    """A model that a trigger keeps stays with its history, and the others stay with it."""
    suppress(url, "'a'", "DELETE")
    before = everything(url)
    with opened(url) as fleet:
        with pytest.raises(RefusedError, match="kept 'a' as it was"):
            fleet.remove("a")
        with pytest.raises(RefusedError, match="kept 'a' as it was"):
            fleet.remove("b", "a")
        assert everything(url) == before
        assert fleet.remove("b").changes[0].changed


@pytest.mark.parametrize("how", ["suppress", "undo"])
def test_what_cannot_be_added(url: str, how: str) -> None:
    """A model that a trigger keeps out, or takes out again, is not called added; add ends."""
    if how == "suppress":
        suppress(url, "'x'", "INSERT")
    else:
        trigger(url, "AFTER", "INSERT", "'x'", "DELETE FROM models WHERE id = NEW.id")
    before = everything(url)
    with opened(url) as fleet:
        with pytest.raises(RefusedError, match="kept 'x' as it was"):
            fleet.add("x")
        with pytest.raises(RefusedError, match="kept 'x' as it was"):
            fleet.import_models(b'{"id": "new"}\n{"id": "x"}')
        assert everything(url) == before
        assert fleet.add("new").changes[0].changed


@pytest.mark.parametrize("how", ["suppress", "put back"])
def test_a_name_that_is_kept(url: str, how: str) -> None:
    """An import whose update is dropped or undone by a trigger is refused as a whole."""
    if how == "suppress":
        suppress(url, "'a'")
    else:
        body = (
            "UPDATE models SET display_name = OLD.display_name"
            " WHERE id = OLD.id AND display_name <> OLD.display_name"
        )
        if not is_sqlite(url):
            body += " AND pg_trigger_depth() = 1"
        trigger(url, "AFTER", "UPDATE", "'a'", body)
    before = everything(url)
    catalog = b'{"id": "a", "name": "A"}\n{"id": "b", "name": "B"}\n{"id": "new"}'
    with opened(url) as fleet:
        with pytest.raises(RefusedError, match="kept 'a' as it was"):
            fleet.import_models(catalog)
        assert everything(url) == before
        assert fleet.import_models(catalog, on_conflict="skip").added == 1


def test_a_name_in_the_applications_own_form_is_no_refusal(url: str) -> None:
    """A trigger that writes names in its own way is no reason to refuse them."""
    body = "UPDATE models SET display_name = upper(display_name) WHERE display_name <> upper(display_name)"
    trigger(url, "AFTER", "UPDATE", "'a'", body)
    with opened(url) as fleet:
        assert fleet.import_models(b'{"id": "a", "name": "name"}').updated == 1
        assert fleet.show("a").display_name == "NAME"


def test_a_rule_is_a_refusal_too(pg_database: str) -> None:
    """A rule that came after the adoption ends a change with exit 8, not with a bug."""
    with opened(pg_database) as fleet:
        seed(fleet, "ab")
        sql(pg_database, "CREATE RULE keep AS ON UPDATE TO models DO INSTEAD NOTHING")
        sql(pg_database, "CREATE RULE stay AS ON DELETE TO models DO INSTEAD NOTHING")
        before = everything(pg_database)
        for change in (CHANGES["disable"], CHANGES["disable several"], CHANGES["record-batch"]):
            with pytest.raises(RefusedError):
                change(fleet)
        with pytest.raises(RefusedError):
            fleet.remove("a")
        assert everything(pg_database) == before


# ── recover ─────────────────────────────────────────────────────────────────────────────────────


def refuse(url: str, ids: str) -> None:
    """Let the application raise where one of these is switched on."""
    body = "SELECT RAISE(ABORT, 'not this one')" if is_sqlite(url) else "RAISE 'not this one'"
    trigger(url, "BEFORE", "UPDATE", ids, body)


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize("how", [*HOW, "refuse"])
def test_recover_leaves_out_what_is_kept(url: str, how: str, limit: int) -> None:
    """Such a model is named and waits, the others come back, and no event says otherwise."""
    (HOW | {"refuse": refuse})[how](url, "'off'")
    with opened(url) as fleet:
        seed(fleet, ["more"])
        trip(fleet, "more")
        said: list[str] = []
        fleet.on_warning = said.append
        done = fleet.recover(cooldown=0, limit=limit)
        assert sorted(done.recovered) == ["more", "off2"]
        assert [(w.id, w.why) for w in done.waiting] == [("off", "refused")]
        (warning,) = said
        assert warning.startswith("'off' did not come back: the database ")
        assert ("not this one" if how == "refuse" else "kept it as it was (a trigger") in warning
        assert [e.event for e in fleet.events("off")] == ["auto-disabled", "added"]
        assert fleet.recover(cooldown=0).recovered == ()
        assert fleet.show("off").status is AUTO


@pytest.mark.parametrize("how", ["suppress", "refuse"])
def test_many_that_are_kept_among_many(url: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any number of chunks, each model comes back once or is left out once."""
    from modelctl.database import bulk

    monkeypatch.setattr(bulk, "CHUNK", 20)
    ids = [f"m{n:02}" for n in range(50)]
    bad = ids[::7]
    (suppress if how == "suppress" else refuse)(url, ", ".join(f"'{i}'" for i in bad))
    with opened(url) as fleet:
        fleet.enable("off", "off2")
        seed(fleet, ids)
        sql(url, "DELETE FROM models WHERE id LIKE 'm%'")
        put_off(url, *ids, failed=2 * HOUR)
        fleet.on_warning = lambda _: None
        done = fleet.recover()
        assert sorted(done.recovered) == sorted({*ids} - {*bad})
        assert sorted(w.id for w in done.waiting) == bad


def test_a_kept_model_takes_no_place_of_a_probed_run(url: str) -> None:
    """`recover --probe --limit 1` asks the next model if the database kept the first."""
    suppress(url, "'off'")
    probes = {"p": ProbeConfig("p", command=("true",))}
    with Fleet(replace(configured(url), probes=probes), actor=ACTOR) as fleet:
        sql(url, "UPDATE models SET provider = 'p'")
        fleet.on_warning = lambda _: None
        done = fleet.recover(probe=True, cooldown=0, limit=1)
        assert (done.recovered, [w.why for w in done.waiting]) == (("off2",), ["refused"])


def test_recover_on_the_command_line(url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit 0 recovered models are on stdout, and the model that was kept is on stderr."""
    suppress(url, "'off'")
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    ran = cli("recover", "--cooldown", "0s")
    assert (ran.code, ran.lines) == (0, ["off2"])
    assert "warning: 'off' did not come back: the database kept it as it was" in ran.err
    refused = cli("enable", "off")
    refused.failed(8, "kept 'off' as it was")


def test_a_failed_probe_that_is_not_stored(url: str) -> None:
    """The history does not say that a cooldown began again where a trigger kept the row."""
    probes = {"p": ProbeConfig("p", command=("false",))}
    sql(url, "UPDATE models SET provider = 'p'")
    suppress(url, "'off'")
    with Fleet(replace(configured(url), probes=probes), actor=ACTOR) as fleet:
        fleet.probe("off", "off2")
        assert [e.model_id for e in fleet.events() if e.event == "probe-failed"] == ["off2"]
