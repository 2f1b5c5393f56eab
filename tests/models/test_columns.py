"""modelctl works with columns of an application that differ from its own, or says which is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from modelctl import ExitCode, Fleet, RefusedError, UsageError
from modelctl.tables.application import look_at_columns
from tests.commands import Cli
from tests.fleets import ACTIVE, AUTO, DISABLED, everything, is_sqlite, opened, sql, trip

# As Django makes it: NOT NULL everywhere, and all defaults in the client.
STRICT = """
    CREATE TABLE models (
        id varchar(100) PRIMARY KEY,
        display_name varchar(12) NOT NULL,
        provider varchar(6) NOT NULL,
        active boolean NOT NULL,
        auto_disabled boolean NOT NULL,
        consecutive_failures integer NOT NULL,
        success_count bigint NOT NULL,
        failure_count bigint NOT NULL,
        failure_type varchar(5) NOT NULL,
        disabled_by varchar(4),
        disabled_reason varchar(8),
        created_at {time} NOT NULL,
        updated_at {time} NOT NULL
    )"""
# As SQLAlchemy makes it of Column(Boolean, default=True): a NULL where a statement names no value.
LOOSE = "CREATE TABLE models (id text PRIMARY KEY, active boolean, display_name text)"
LONG = "much longer than any column of theirs"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Give an empty database of each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("empty_pg"))
    (tmp_path / "app.db").touch()
    return f"sqlite:///{tmp_path / 'app.db'}"


def adopt(url: str, table: str) -> None:
    """Let the application make its table, and modelctl adopt it."""
    sql(url, table.format(time="TEXT" if is_sqlite(url) else "timestamptz"))
    with opened(url) as fleet:
        fleet.upgrade()


@pytest.fixture
def strict(empty: str) -> str:
    """Give a table whose defaults are all in the client."""
    adopt(empty, STRICT)
    return empty


def cut(url: str, text: str, length: int) -> str:
    """Return what a column keeps: SQLite minds no length."""
    return text if is_sqlite(url) else text[:length]


def test_every_column_of_ours_is_named(strict: str) -> None:
    """`add` and `import` begin a row as our own table would, where the server knows no defaults."""
    with opened(strict) as fleet:
        assert fleet.add("a", name=LONG, provider="p").changes[0].after is ACTIVE
        assert fleet.import_models(b'{"id": "b"}\n{"id": "c", "name": "C"}').added == 2
        model = fleet.show("a")
        assert (model.active, model.auto_disabled, model.failure_count) == (True, False, 0)
        assert model.display_name == cut(strict, LONG, 12)
        assert model.created_at is not None
        assert fleet.count().active == 3
    with opened(strict) as fleet:  # another process
        assert fleet.import_models(b'{"id": "d"}').added == 1


def test_an_id_that_is_too_long_is_named(empty_pg: str) -> None:
    """A catalogue with such an id is refused, and `ignore` leaves the id out."""
    adopt(empty_pg, STRICT)
    models = [("a", LONG, LONG), ("x" * 150, "", "")]
    with opened(empty_pg) as fleet:
        for _ in range(2):
            with pytest.raises(UsageError, match=r"the id 'x{150}' is too long: .* 100 characters"):
                fleet.sync([("s", models)])
        fleet.ignore("x" * 150)
        assert fleet.sync([("s", models)]).added == 1


def test_a_name_that_was_cut_is_the_same_name(strict: str) -> None:
    """A name that a column cut is not taken for a different name."""
    catalog = b'{"id": "a", "name": "%s", "provider": "provider"}' % LONG.encode()
    with opened(strict) as fleet:
        assert fleet.import_models(catalog).added == 1
    for policy in ("update", "skip", "fail"):
        with opened(strict) as fleet:
            again = fleet.import_models(catalog, on_conflict=policy)
            assert (again.unchanged, again.updated, again.skipped) == (1, 0, 0)


def single(fleet: Fleet) -> None:
    """Fail one by one."""
    for _ in range(5):
        fleet.record_failure("a", "parse-error", reason=LONG)


def batch(fleet: Fleet) -> None:
    """Fail in a batch."""
    failure = {"id": "a", "outcome": "failure", "type": "parse-error", "reason": LONG}
    fleet.record_batch([failure] * 5)


@pytest.mark.parametrize("fail", [single, batch])
def test_texts_are_cut_in_every_change(strict: str, fail: Any) -> None:
    """A reason, a type or an actor that is too long for a column is cut there, and is whole in the history."""
    with opened(strict) as fleet:
        fleet.add("a")
        fleet.add("b")
    with opened(strict) as fleet:
        fail(fleet)
        model = fleet.show("a")
        assert model.status is AUTO
        assert model.failure_reason == LONG
        assert model.failure_type == cut(strict, "parse-error", 5)
        assert model.disabled_by == cut(strict, "health rule", 4)
        assert model.disabled_reason == cut(strict, LONG, 8)
        assert fleet.events("a")[0].reason == LONG
    with opened(strict) as fleet:
        assert fleet.recover(cooldown=0).recovered == ("a",)
    with opened(strict) as fleet:
        fleet.disable("a", reason=LONG)
        assert fleet.show("a").disabled_reason == cut(strict, LONG, 8)
    with opened(strict) as fleet:
        assert not fleet.disable("a", reason=LONG).changes[0].changed
        before = len(fleet.events())
        assert not fleet.disable("a", "a", reason=LONG).changes[0].changed
        assert len(fleet.events()) == before
        fleet.disable("a", "b", reason=LONG)
        fleet.enable("a", "b")
        fleet.record_success("a")


def test_a_new_model_is_active_without_a_default(empty: str) -> None:
    """Where a row that says nothing would be NULL, a new model is active; a default is kept."""
    adopt(empty, LOOSE)
    with opened(empty) as fleet:
        assert fleet.add("a").changes[0].after is ACTIVE
        assert fleet.import_models(b'{"id": "b"}').added == 1
        assert fleet.count().active == 2


def test_a_default_of_the_application_is_kept(empty: str) -> None:
    """If the column's default is off, new models are off."""
    adopt(empty, LOOSE.replace("active boolean", "active boolean NOT NULL DEFAULT false"))
    with opened(empty) as fleet:
        assert fleet.add("a").changes[0].after is DISABLED


def test_new_models_that_a_trigger_switches_off(pg_database: str) -> None:
    """Adding a model that a trigger switches off is refused, and nothing is written."""
    sql(
        pg_database,
        "CREATE FUNCTION app() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN NEW.active := false; RETURN NEW; END $$",
    )
    sql(
        pg_database,
        "CREATE TRIGGER app BEFORE INSERT ON models FOR EACH ROW EXECUTE FUNCTION app()",
    )
    before = everything(pg_database)
    with opened(pg_database) as fleet, pytest.raises(RefusedError, match="kept 'a' as it was"):
        fleet.add("a")
    assert everything(pg_database) == before


def test_a_column_that_modelctl_does_not_know(empty: str) -> None:
    """A NOT NULL column of the application without a default is named in the refusal."""
    adopt(
        empty,
        LOOSE.replace(
            "active boolean", "active boolean, slug text NOT NULL, price integer NOT NULL"
        ),
    )
    before = everything(empty)
    with opened(empty) as fleet:
        for call in (lambda: fleet.add("a"), lambda: fleet.import_models(b'{"id": "a"}')):
            with pytest.raises(RefusedError, match="slug, price of models are NOT NULL"):
                call()
    assert everything(empty) == before


def test_a_failure_reason_that_is_never_null(empty_pg: str) -> None:
    """An empty text stands in a NOT NULL column where there is no reason."""
    table = LOOSE.replace("active boolean", "active boolean, failure_reason varchar(9)")
    adopt(empty_pg, table)
    with opened(empty_pg) as fleet:
        fleet.add("a")
        fleet.add("b")
        sql(empty_pg, "UPDATE models SET failure_reason = ''")
        sql(empty_pg, "ALTER TABLE models ALTER failure_reason SET NOT NULL")
        for _ in range(2):
            fleet.record_failure("a", "timeout", reason=None)
            fleet.record_success("a")
            fleet.record_batch([{"id": i, "outcome": "success"} for i in "ab"])
            trip(fleet, "a")
            assert fleet.recover(cooldown=0).recovered == ("a",)
        fleet.record_success("a")
        assert not fleet.show("a").failure_reason


NEVER_NULL = """CREATE TABLE models (id text PRIMARY KEY, active boolean NOT NULL,
    failure_type varchar(40) NOT NULL, failure_reason text NOT NULL, disabled_by text NOT NULL,
    disabled_reason varchar(9) NOT NULL, would_disable text NOT NULL)"""


@pytest.mark.parametrize("known", [False, True])
def test_texts_that_are_never_null(empty: str, known: bool) -> None:
    """NOT NULL texts that modelctl empties are adopted and are '' then, in its triggers, too."""
    url = empty
    adopt(url, NEVER_NULL)
    with opened(url) as fleet:
        fleet.add("a")
        fleet.add("b")

    def act(call: Any) -> Any:
        """Call it in a process that knows the columns already, or not."""
        with opened(url) as other:
            if known:
                look_at_columns(other._store.database)
            return call(other)

    def flip(active: bool) -> None:
        sql(url, f"UPDATE models SET active = {active} WHERE id = 'a'")

    for _ in range(2):
        act(lambda fleet: trip(fleet, "a"))
        assert act(lambda fleet: fleet.recover(cooldown=0).recovered) == ("a",)
        act(lambda fleet: trip(fleet, "a"))
        flip(True)
        assert act(lambda fleet: fleet.show("a")).disabled_by is None
        flip(False)
        assert act(lambda fleet: fleet.show("a")).status is DISABLED
        act(lambda fleet: fleet.enable("a", "b"))
        act(lambda fleet: fleet.disable("a", reason=LONG))
        assert act(lambda fleet: fleet.show("a")).disabled_reason == cut(url, LONG, 9)
        flip(True)
        assert sql(url, "SELECT disabled_by, disabled_reason FROM models WHERE id = 'a'") == [
            ("", "")
        ]
        act(lambda fleet: fleet.disable("a"))
        assert act(lambda fleet: fleet.show("a")).disabled_reason is None
        act(lambda fleet: fleet.enable("a"))
        last = act(lambda fleet: fleet.events("a", limit=1))[0]
        assert last.details["old"].keys() == {"disabled_by"}
        for fail in (single, batch):
            act(fail)
            assert act(lambda fleet: fleet.show("a")).status is AUTO
            act(lambda fleet: fleet.record_success("a"))
            assert act(lambda fleet: fleet.show("a")).failure_reason is None
        act(lambda fleet: fleet.record_batch([{"id": i, "outcome": "success"} for i in "ab"]))
        act(lambda fleet: fleet.record_failure("b", "timeout"))
    with opened(url) as fleet:
        assert fleet.schema_status().up_to_date
        triggers = [check for check in fleet.doctor().checks if check.check == "triggers"]
        assert triggers[0].ok
        assert "none" in [c.detail for c in fleet.doctor().checks if c.check == "spared"]


def test_texts_that_become_never_null(empty_pg: str) -> None:
    """Where a column is NOT NULL since then, db upgrade makes the triggers anew."""
    adopt(empty_pg, LOOSE)
    sql(empty_pg, "ALTER TABLE models ALTER disabled_by SET DEFAULT ''")
    with opened(empty_pg) as fleet:
        fleet.add("a")
        sql(empty_pg, "UPDATE models SET disabled_by = ''")
        sql(empty_pg, "ALTER TABLE models ALTER disabled_by SET NOT NULL")
        assert any("modelctl_trust" in found for found in fleet.schema_status().findings)
        fleet.upgrade()
        fleet.disable("a")
        sql(empty_pg, "UPDATE models SET active = TRUE")
        assert fleet.schema_status().up_to_date


def test_a_counter_that_is_full(empty_pg: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An integer counter at its end is named by the refusal, and by doctor before that."""
    url = empty_pg
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    adopt(url, LOOSE.replace("active", "success_count integer, failure_count integer, active"))
    with opened(url) as fleet:
        fleet.add("a")
        fleet.add("b")
    sql(url, "UPDATE models SET success_count = 2147483646, failure_count = 2000000000")
    names = "success_count, failure_count"
    assert f"counters\twarning\tfull or nearly full: {names}; an outcome fails when" in (
        cli("doctor").out
    )
    assert cli("record-success", "a").code == 0
    assert "counters\twrong\tfull" in cli("doctor").out
    before = everything(url)
    widen = "ALTER TABLE models ALTER COLUMN success_count TYPE bigint"
    cli("record-success", "a").failed(ExitCode.REFUSED, "success_count of models is full", widen)
    with opened(url) as fleet, pytest.raises(RefusedError, match="success_count of models is full"):
        fleet.record_batch([{"id": i, "outcome": "success"} for i in "bbba"])
    assert everything(url) == before
    sql(url, widen)
    assert cli("record-success", "a").code == 0
    assert "counters\twarning" in cli("doctor").out
    assert cli("db", "status").code == 0


OTHER_TYPES = {
    "active": ("integer", "1"),
    "auto_disabled": ("text", "'no'"),
    "provider": ("integer", "7"),
    "failure_type": ("jsonb", "'{}'"),
    "success_count": ("text", "'many'"),
    "consecutive_failures": ("boolean", "TRUE"),
    "last_failure_at": ("text", "'yesterday'"),
    "disabled_until": ("bigint", "0"),
    "would_disable": ("uuid", "gen_random_uuid()"),
}
EVERY = (
    "count --fresh|list|list --status auto-disabled|show a|stats|leaderboard|events|availability|add new"
    "|disable a|disable a b --for 1h|enable a|enable a b|record-success a"
    "|record-failure a --type parse-error|recover --dry-run|recover|remove b --yes|db status"
)


@pytest.mark.parametrize("upgraded", [False, True])
@pytest.mark.parametrize("column", OTHER_TYPES)
def test_a_column_of_another_type(
    empty_pg: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, column: str, upgraded: bool
) -> None:
    """Where a column has another type, before or after db upgrade, no command says wrong usage or bug."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    kind, value = OTHER_TYPES[column]
    sql(empty_pg, "CREATE TABLE models (id text PRIMARY KEY, active boolean)")
    if upgraded:
        assert cli("db", "upgrade").code == 0
    sql(empty_pg, f"ALTER TABLE models DROP COLUMN IF EXISTS {column} CASCADE")
    sql(empty_pg, f"ALTER TABLE models ADD COLUMN {column} {kind} DEFAULT {value}")
    for model_id in "ab":
        sql(empty_pg, "INSERT INTO models (id) VALUES (?)", model_id)
    right = (
        ExitCode.OK,
        ExitCode.INVALID_CONFIG,
        ExitCode.MODEL_NOT_FOUND,
        ExitCode.MISSING_SCHEMA,
    )
    for line in EVERY.split("|"):
        ran = cli(*line.split())
        assert ran.code in right, (line, ran)
    cli("db", "upgrade").failed(ExitCode.INVALID_CONFIG, f"{column} is {kind}, not ")
