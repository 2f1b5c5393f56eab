"""On PostgreSQL the history has what other programs change, each change once, and modelctl's own once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet
from tests import servers
from tests.backup.exports import export_of, held, model
from tests.fleets import (
    ACTOR,
    HOUR,
    clear,
    events,
    execute,
    let_pass,
    opened,
    seed,
    sql,
    sql_without_events,
    trip,
)
from tests.replay import replayed, statuses
from tests.servers import PgBouncer, Postgres

OFF = "UPDATE models SET active = false WHERE id = "


def told(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Return the events of other programs, without their order."""
    return sorted(
        execute(
            connection,
            "SELECT model_id, event, before, after FROM modelctl_events WHERE operation IS NULL",
        ),
        key=str,
    )


MERGE = """
    MERGE INTO models m USING (VALUES ('a', false), ('x', true)) AS s (id, on_) ON m.id = s.id
    WHEN MATCHED THEN UPDATE SET active = s.on_ WHEN NOT MATCHED THEN INSERT (id) VALUES (s.id)"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO models (id) VALUES ('x')", [("x", "added", None, "active")]),
        (
            "INSERT INTO models (id, active, auto_disabled) VALUES ('x', false, true), ('y', false, false)",
            [("x", "added", None, "auto-disabled"), ("y", "added", None, "disabled")],
        ),
        ("INSERT INTO models (id) VALUES ('a') ON CONFLICT DO NOTHING", []),
        ("INSERT INTO models (id) SELECT 'x' WHERE false", []),
        ("UPDATE models SET active = active, failure_count = 7, display_name = 'x'", []),
        ("UPDATE models SET id = id", []),
        (f"{OFF}'a'", [("a", "disabled", "active", "disabled")]),
        (f"{OFF}'b'", []),
        (
            "UPDATE models SET active = NOT active",
            [
                ("a", "disabled", "active", "disabled"),
                ("b", "enabled", "disabled", "active"),
                ("c", "enabled", "auto-disabled", "active"),
            ],
        ),
        (
            "UPDATE models SET active = NOT active WHERE id IN ('a', 'b')",
            [("a", "disabled", "active", "disabled"), ("b", "enabled", "disabled", "active")],
        ),
        (
            "UPDATE models SET active = false, auto_disabled = true WHERE id = 'a'",
            [("a", "disabled", "active", "auto-disabled")],
        ),
        (
            "UPDATE models SET auto_disabled = false",
            [("c", "disabled", "auto-disabled", "disabled")],
        ),
        ("UPDATE models SET auto_disabled = true WHERE id = 'a'", []),
        (
            "UPDATE models SET id = 'z' WHERE id = 'c'",
            [("c", "removed", "auto-disabled", None), ("z", "added", None, "auto-disabled")],
        ),
        ("DELETE FROM models WHERE id = 'b'", [("b", "removed", "disabled", None)]),
        ("DELETE FROM models WHERE id = 'nobody'", []),
        (
            "TRUNCATE models",
            [
                ("a", "removed", "active", None),
                ("b", "removed", "disabled", None),
                ("c", "removed", "auto-disabled", None),
            ],
        ),
        (
            "INSERT INTO models (id, active) VALUES ('a', false), ('x', true)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            [("a", "disabled", "active", "disabled"), ("x", "added", None, "active")],
        ),
        (
            "WITH gone AS (DELETE FROM models WHERE id = 'b' RETURNING id)"
            " INSERT INTO models (id) SELECT id FROM gone",
            [("b", "added", None, "active"), ("b", "removed", "disabled", None)],
        ),
        (MERGE, [("a", "disabled", "active", "disabled"), ("x", "added", None, "active")]),
        ("COPY models (id) FROM PROGRAM 'echo x'", [("x", "added", None, "active")]),
    ],
)
def test_what_a_statement_tells(
    pg_cleared: str, statement: str, expected: list[tuple[Any, ...]]
) -> None:
    """There is one event for each model whose status changed, that came or went, and no other."""
    rows = "('a', true, false), ('b', false, false), ('c', false, true)"
    sql_without_events(pg_cleared, f"INSERT INTO models (id, active, auto_disabled) VALUES {rows}")
    with psycopg.connect(pg_cleared) as connection:
        if "MERGE" in statement and connection.info.server_version < 150000:
            pytest.skip("MERGE came with PostgreSQL 15")
        execute(connection, statement)
        assert told(connection) == expected
        connection.rollback()
        assert told(connection) == []


def test_who_did_it(pg: Fleet, pg_cleared: str) -> None:
    """The actor is the role of the session, the details name the program and the provider of a model."""
    url = f"{pg_cleared}?application_name=website%20%5B7%5D"
    sql(url, "INSERT INTO models (id, provider) VALUES ('a', repeat('p', 1000)), ('b', '')")
    sql(url, f"SET ROLE pg_read_all_data; RESET ROLE; {OFF}'a'")
    sql(url, "DELETE FROM models WHERE id = 'a'")
    name, provider = {"application_name": "website [7]"}, {"provider": "p" * 200}
    none = {"provider": None}
    found = {(e.model_id, e.event): (e.actor, e.details, e.operation) for e in pg.events()}
    assert found == {
        ("a", "added"): ("postgres", {**name, "old": none, "new": provider}, None),
        ("b", "added"): ("postgres", name, None),
        ("a", "disabled"): ("postgres", name, None),
        ("a", "removed"): ("postgres", {**name, "old": provider, "new": none}, None),
    }


def test_the_commands_tell_each_change_once(pg: Fleet, pg_cleared: str) -> None:
    """Whatever modelctl changes itself has the event of modelctl and none of the trigger."""
    pg.add("a")
    pg.import_models(b'{"id": "b"}\n{"id": "c"}\n{"id": "d", "provider": "p"}')
    pg.import_models(b'{"id": "d", "provider": "q"}\n{"id": "e"}')
    pg.disable("a")
    pg.disable("a", "b", duration=HOUR)
    pg.enable("a")
    pg.undo()
    trip(pg, "c", "d")
    for _ in range(5):
        pg.record_failure("e", "parse-error")
    pg.disable("c")
    pg.record_success("d")
    pg.enable("a", "b", "c")
    trip(pg, "a", "b")
    let_pass(pg_cleared, 48 * HOUR)
    assert len(pg.recover().recovered) == 3
    pg.undo()
    pg.edit("c", name="C", provider="p", tag="x")
    pg.rename("c", "z")
    pg.restore(export_of(held("d"), model("f")))
    pg.remove("a", "b")
    lines = "".join(pg.export()).encode()
    pg.remove("d")
    pg.disable("e", reason="as before")
    pg.restore(lines, enable=True)
    assert pg.upgrade().repaired == ()
    pg.doctor()
    assert [event for event in pg.events(limit=0) if event.operation is None] == []
    changed = [(e.model_id, e.event) for e in pg.events(limit=0, oldest_first=True)]
    # The history of a model follows when it is renamed.
    assert changed == [
        ("a", "added"),
        *(("b", "added"), ("z", "added"), ("d", "added")),
        *(("d", "updated"), ("e", "added")),
        ("a", "disabled"),
        ("b", "disabled"),
        ("a", "enabled"),
        ("a", "undone"),
        *(("z", "auto-disabled"), ("d", "auto-disabled")),
        ("e", "auto-disabled"),
        ("z", "disabled"),
        ("d", "recovered"),
        *(("a", "enabled"), ("b", "enabled"), ("z", "enabled")),
        *(("a", "auto-disabled"), ("b", "auto-disabled")),
        *(("a", "recovered"), ("b", "recovered"), ("e", "recovered")),
        *(("a", "undone"), ("b", "undone"), ("e", "undone")),
        *(("z", "edited"), ("z", "renamed")),
        *(("d", "restored"), ("f", "restored")),
        *(("a", "removed"), ("b", "removed")),
        *(("d", "removed"), ("e", "disabled")),
        *(("e", "restored"), ("d", "restored")),
    ]
    assert replayed(pg_cleared) == statuses(pg_cleared)


def test_a_setting_that_was_set_by_mistake_hides_nothing(pg: Fleet, pg_cleared: str) -> None:
    """Only the transaction of modelctl is its own, not the next one on the same connection."""
    seed(pg, "ab")
    with psycopg.connect(pg_cleared, autocommit=True) as connection:
        mark = "set_config('modelctl.transaction', pg_current_xact_id()::text, {})"
        execute(connection, f"SELECT {mark.format('false')}")
        execute(connection, f"{OFF}'a'")
        with connection.transaction():
            execute(connection, f"SELECT {mark.format('true')}")
            execute(connection, "UPDATE models SET active = true")
        execute(connection, f"{OFF}'b'")
        assert [row[0] for row in told(connection)] == ["a", "b"]


@pytest.mark.skipif(servers.pgbouncer_binary() is None, reason="no PgBouncer here")
def test_through_a_pooler(
    postgres: Postgres, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In transaction mode a website that gets the connection of modelctl is told from it."""
    monkeypatch.delenv("PGOPTIONS")  # a pooler takes none
    with PgBouncer(postgres) as pooler:
        url = pooler.url(pg_database.rpartition("/")[2])
        with opened(url) as fleet:
            for number in range(3):
                seed(fleet, "ab")
                fleet.disable("a")
                sql(url, f"{OFF}'b'")
                fleet.enable("a", "b")
                found = [e for e in fleet.events(limit=0) if e.operation is None]
                assert [e.model_id for e in found] == ["b"] * (number + 1)
    monkeypatch.undo()
    assert replayed(pg_database) == statuses(pg_database)


# ── Triggers of the application ──


@pytest.fixture
def triggered(pg_database: str) -> Iterator[tuple[Fleet, str]]:
    """Give a fleet whose application lets an alias follow its model, and its URL."""
    sql(
        pg_database,
        "ALTER TABLE models ADD COLUMN follows text REFERENCES models ON DELETE CASCADE",
    )
    sql(
        pg_database,
        "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE models"
        " SET active = NEW.active WHERE follows = NEW.id AND active <> NEW.active;"
        " RETURN NULL; END $$",
    )
    sql(
        pg_database,
        "CREATE TRIGGER follow AFTER UPDATE ON models FOR EACH ROW EXECUTE FUNCTION follow()",
    )
    sql(pg_database, "INSERT INTO models (id, follows) VALUES ('a', NULL), ('b', 'a'), ('c', 'b')")
    with opened(pg_database) as fleet:
        yield fleet, pg_database


def test_what_a_trigger_changes_within_our_transaction(triggered: tuple[Fleet, str]) -> None:
    """The models that modelctl named have its events, the others those of the trigger."""
    fleet, url = triggered
    fleet.disable("a")
    assert replayed(url) == statuses(url) == dict.fromkeys("abc", "disabled")
    by = {event.model_id: event.operation is None for event in fleet.events(limit=3)}
    assert by == {"a": False, "b": True, "c": True}
    fleet.enable("a", "b", "c")
    fleet.remove("a")
    assert replayed(url) == statuses(url) == {}


def test_a_trigger_that_changes_the_same_row_again(pg_database: str) -> None:
    """The last event says the status of the row, although the inner change is told before the outer."""
    sql(pg_database, "INSERT INTO models (id) VALUES ('a'), ('b')")
    sql(
        pg_database,
        "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE models SET active = true WHERE id = 'a' AND NOT active; RETURN NULL; END $$",
    )
    sql(
        pg_database,
        "CREATE TRIGGER back AFTER UPDATE ON models FOR EACH ROW EXECUTE FUNCTION back()",
    )
    sql(pg_database, "UPDATE models SET active = false")
    assert replayed(pg_database) == statuses(pg_database) == {"a": "active", "b": "disabled"}


# ── A history that cannot be written ──


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE modelctl_events",
        "ALTER TABLE modelctl_events RENAME COLUMN before TO former",
        "ALTER TABLE modelctl_events DROP COLUMN details",
        "ALTER TABLE modelctl_events ALTER COLUMN details TYPE text",
        "ALTER TABLE modelctl_events ALTER COLUMN actor TYPE varchar(10)",
        "ALTER TABLE modelctl_events ALTER COLUMN id DROP IDENTITY",
        "ALTER TABLE modelctl_events ADD COLUMN site text NOT NULL DEFAULT '';"
        " ALTER TABLE modelctl_events ALTER COLUMN site DROP DEFAULT",
        "ALTER FUNCTION modelctl.modelctl_enqueue() OWNER TO pg_monitor; GRANT INSERT ON"
        " modelctl_outbox TO pg_monitor; GRANT USAGE ON SCHEMA modelctl TO pg_monitor",
        "SELECT setval(pg_get_serial_sequence('modelctl.modelctl_events', 'id'), 1, false)",
        "ALTER TABLE modelctl_events ADD CHECK (event <> 'disabled') NOT VALID",
        "ALTER TABLE models RENAME COLUMN auto_disabled TO automatic",
        "ALTER TABLE models RENAME COLUMN provider TO vendor",
    ],
)
def test_a_change_never_fails_because_of_the_history(pg_database: str, damage: str) -> None:
    """A damaged history stops no statement of another program, and the outbox has its row."""
    with opened(pg_database) as fleet:
        seed(fleet, "abc")
    sql(pg_database, "DELETE FROM modelctl_events WHERE model_id <> 'a'")
    sql(pg_database, damage)
    for statement in (
        "INSERT INTO models (id) VALUES ('x')",
        f"{OFF}'a'",
        "UPDATE models SET active = NOT active WHERE id IN ('a', 'b')",
        "UPDATE models SET id = 'z' WHERE id = 'x'",
        "DELETE FROM models WHERE id = 'z'",
        "TRUNCATE models",
    ):
        sql(pg_database, "DELETE FROM modelctl_outbox")
        sql(pg_database, statement)
        assert sql(pg_database, "SELECT count(*) FROM modelctl_outbox") == [(1,)], statement
    with opened(pg_database) as fleet:
        assert fleet.upgrade().repaired or "setval" in damage
        sql(pg_database, "INSERT INTO models (id) VALUES ('new')")
        assert fleet.events(limit=1)[0].model_id == "new"


def test_unusual_ids(empty_pg: str) -> None:
    """An id that is missing, too long for an index or full of control characters stops nothing."""
    sql(empty_pg, "CREATE TABLE models (id text UNIQUE, active boolean)")
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        random_text = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 84) i)"
        odd = "E'\\x1b[2J\\u202e'"
        sql(
            empty_pg,
            f"INSERT INTO models VALUES (NULL, true), ({random_text}, true), ({odd}, false),"
            " (repeat('x', 2000), NULL)",
        )
        sql(empty_pg, "UPDATE models SET active = active IS NOT TRUE")
        sql(empty_pg, "UPDATE models SET id = id || '.'")
        assert fleet.upgrade().repaired == ()
        assert {e.model_id for e in fleet.events(limit=0)} == {
            "\x1b[2J\u202e",
            "\x1b[2J\u202e.",
            "x" * 2000,
        }
        sql(empty_pg, "DELETE FROM models")
    assert replayed(empty_pg) == {}


def test_all_tables_are_emptied_at_once(pg: Fleet, pg_cleared: str) -> None:
    """TRUNCATE of models and all own tables together works, as test suites do it."""
    seed(pg, "ab")
    tables = ("events", "outbox", "state", "holds")
    names = ", ".join(["models", *(f"modelctl.modelctl_{name}" for name in tables)])
    sql(pg_cleared, f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    sql(pg_cleared, "INSERT INTO models (id) VALUES ('a')")
    assert replayed(pg_cleared) == statuses(pg_cleared) == {"a": "active"}


# ── The history as a whole ──

IDS = st.sampled_from("abcdé ")
LISTS = st.lists(IDS, min_size=1, max_size=4, unique=True)
FLAGS = st.sampled_from(["true", "false"])


def _texts(ids: list[str]) -> str:
    return ", ".join(f"'{model_id}'" for model_id in ids)


def _rows(ids: list[str], flags: list[str]) -> str:
    return ", ".join(
        f"('{i}', {on}, {auto})" for i, on, auto in zip(ids, flags, flags[4:], strict=False)
    )


RAW = st.one_of(
    st.builds(
        lambda ids, flags: (
            f"INSERT INTO models (id, active, auto_disabled) VALUES {_rows(ids, flags)}"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active,"
            " auto_disabled = excluded.auto_disabled"
        ),
        LISTS,
        st.lists(FLAGS, min_size=8, max_size=8),
    ),
    st.builds(
        lambda ids: f"INSERT INTO models (id) VALUES ('{ids[0]}') ON CONFLICT DO NOTHING", LISTS
    ),
    st.builds(
        lambda ids, flags: (
            f"MERGE INTO models m USING (VALUES {_rows(ids, flags)}) AS s (id, on_, auto)"
            " ON m.id = s.id WHEN MATCHED AND s.auto THEN DELETE"
            " WHEN MATCHED THEN UPDATE SET active = s.on_"
            " WHEN NOT MATCHED THEN INSERT (id, active) VALUES (s.id, s.on_)"
        ),
        LISTS,
        st.lists(FLAGS, min_size=8, max_size=8),
    ),
    st.builds(
        lambda on, ids: f"UPDATE models SET active = {on} WHERE id IN ({_texts(ids)})",
        st.sampled_from(["true", "false", "NOT active", "active", "auto_disabled"]),
        LISTS,
    ),
    st.builds(
        lambda auto, ids: f"UPDATE models SET auto_disabled = {auto} WHERE id IN ({_texts(ids)})",
        FLAGS,
        LISTS,
    ),
    st.builds(lambda ids: f"DELETE FROM models WHERE id IN ({_texts(ids)})", LISTS),
    st.builds(
        lambda old, new: (
            f"UPDATE models SET id = '{new}', active = NOT active WHERE id = '{old}'"
            f" AND NOT EXISTS (SELECT FROM models WHERE id = '{new}')"
        ),
        IDS,
        IDS,
    ),
    st.just("TRUNCATE models"),
    st.just("UPDATE models SET failure_count = failure_count + 1"),
    st.just("COPY"),
    st.just("ROLLBACK"),
)
OWN = st.tuples(
    st.sampled_from(
        ["add", "disable", "enable", "fail", "remove", "recover", "undo", "prune", "rename"]
    ),
    LISTS,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(RAW, OWN), max_size=12))
def test_the_history_replays_to_the_present(
    pg_cleared: str, steps: list[str | tuple[str, list[str]]]
) -> None:
    """After any mix of commands and of SQL by other programs, the events give the status of each model."""
    clear(pg_cleared)
    with opened(pg_cleared, recovery_cooldown="1h") as fleet:
        for step in steps:
            if isinstance(step, tuple):
                _run(fleet, pg_cleared, *step)
            else:
                _execute(pg_cleared, step)
            assert replayed(pg_cleared) == statuses(pg_cleared), step
        assert fleet.upgrade().repaired == ()
        assert not any(m.differs for m in fleet.availability(since=HOUR).models)


def _run(fleet: Fleet, url: str, command: str, ids: list[str]) -> None:
    there = [model_id for model_id in ids if model_id in statuses(url) and model_id.strip()]
    match command:
        case "add":
            for model_id in ids:
                if model_id.strip() and model_id not in statuses(url):
                    fleet.add(model_id, provider="p")
        case "fail" if there:
            trip(fleet, *there)
        case "recover":
            let_pass(url, 3 * HOUR)
            fleet.recover()
        case "undo":
            operations = [
                e.operation for e in fleet.events(event=["disabled", "enabled", "undone"])
            ]
            if own := [operation for operation in operations if operation]:
                fleet.undo(own[-1])
        case "prune":
            fleet.prune(0)
        case "rename" if there and "new" not in statuses(url):
            fleet.rename(there[0], "new")
        case "disable" | "enable" | "remove" if there:
            getattr(fleet, command)(*there)


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        if "MERGE" in statement and connection.info.server_version < 150000:
            return
        if statement == "ROLLBACK":
            execute(connection, "DELETE FROM models")
            connection.rollback()
        elif statement == "COPY":
            new = {"a", "b"} - {row[0] for row in execute(connection, "SELECT id FROM models")}
            with connection.cursor() as cursor, cursor.copy("COPY models (id) FROM STDIN") as copy:
                for model_id in new:
                    copy.write_row([model_id])
        else:
            execute(connection, statement)


# ── A history that says nothing of a model ──


def test_an_adopted_table_is_told(fleet_url: str) -> None:
    """`db upgrade` writes an event for each model whose status the history does not say, once."""
    clear(fleet_url)
    sql_without_events(
        fleet_url,
        "INSERT INTO models (id, active, auto_disabled) VALUES ('a', TRUE, FALSE),"
        " ('b', FALSE, FALSE), ('c', FALSE, TRUE)",
    )
    with opened(fleet_url) as fleet:
        fleet.add("own")
        fleet.add("gone")
        fleet.disable("gone")
        sql_without_events(fleet_url, "UPDATE models SET active = FALSE WHERE id = 'own'")
        sql_without_events(fleet_url, "DELETE FROM models WHERE id = 'gone'")
        assert fleet.upgrade().repaired == ("the history did not say the status of 5 models",)
        assert sorted(event[:5] for event in events(fleet_url) if event[1] == "found") == [
            ("a", "found", "active", "active", ACTOR),
            ("b", "found", "disabled", "disabled", ACTOR),
            ("c", "found", "auto-disabled", "auto-disabled", ACTOR),
            ("gone", "found", "disabled", None, ACTOR),
            ("own", "found", "active", "disabled", ACTOR),
        ]
        assert replayed(fleet_url) == statuses(fleet_url)
        assert fleet.upgrade().repaired == ()
