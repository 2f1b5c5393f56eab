"""A bad row stops only itself: whatever a database keeps, the other rows go on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelctl import ExitCode, Fleet, UsageError
from modelctl.errors import clean
from modelctl.tables.columns import MODELS, StoredFlag, StoredTime
from tests.backup.exports import export_of, model
from tests.commands import Cli
from tests.fleets import DISABLED, ago, clear, everything, is_sqlite, opened, seed, sql, trip
from tests.servers import Postgres

SMILE = "\N{GRINNING FACE}"

# ── SQLite keeps whatever is written into a column ──────────────────────────────────────────────

VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5)
)
COLUMNS = [column.name for column in MODELS.c]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(row={"id": b"\xff", "active": 0, "auto_disabled": 1})
@example(row={"id": "\0", "active": 0, "auto_disabled": 1})
@example(row={"success_count": 2**63 - 1, "failure_count": "many", "provider": b"p"})
@given(row=st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_whatever_a_row_holds(
    sqlite_database: str, cli: Cli, monkeypatch: Any, row: dict[str, Any]
) -> None:
    """Beside a row of any values every command does with the others what it does without it."""
    url = sqlite_database
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    clear(url)
    with opened(url) as fleet:
        seed(fleet, ["good", "off"])
        trip(fleet, "off")
        sql(url, f"UPDATE models SET last_failure_at = {ago(url, 7200)} WHERE id = 'off'")
    row = {"id": "bad"} | row
    names, places = ", ".join(row), ", ".join("?" * len(row))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
        try:
            file.execute(f"INSERT INTO models ({names}) VALUES ({places})", [*row.values()])
        except sqlite3.IntegrityError:  # the id is another one's, or NaN, which is NULL
            return
        select = f"SELECT {', '.join(COLUMNS)} FROM models WHERE id NOT IN ('good', 'off')"
        (kept,) = file.execute(select).fetchall()
    odd = [name for name, value in zip(COLUMNS, kept, strict=True) if is_odd(name, value)]
    is_bytes = isinstance(kept[0], bytes)
    model_id = kept[0].decode("utf-8", "surrogateescape") if is_bytes else kept[0]
    for command in (
        ("list", "-o", "json"),
        ("list", "-o", "table"),
        ("stats", "-o", "json"),
        ("leaderboard", "-o", "json"),
        ("events",),
        ("show", "good"),
        ("recover", "--dry-run"),
        ("count", "--fresh"),
    ):
        ran = cli(*command)
        assert ran.code == 0, (command, ran)
        if odd and command[0] == "list":
            assert f"'{clean(model_id)}' has values that cannot be read: " in ran.err
            assert ", ".join(odd) in ran.err
    assert cli("count", "--fresh").out == f"{1 + (kept[3] == 1)}\n"
    assert len(cli("list", "--status", "active").lines) == 1 + (kept[3] == 1)
    doctor = cli("doctor", "-o", "json")
    (rows,) = [check for check in doctor.json["checks"] if check["check"] == "rows"]
    assert rows["warning"] == bool(odd) or not rows["ok"], (rows, odd)
    assert "good" in cli("list", "-o", "name").lines
    recovered = cli("recover")
    assert "off" in recovered.lines
    if odd[:1] == ["id"] and kept[3] != 1 and kept[4] == 1:
        assert f"'{clean(model_id)}' did not come back: its id cannot be read" in recovered.err
    with opened(url) as fleet:
        fleet.on_warning = lambda _: None
        ids = ["good", "bad"] if kept[0] == "bad" else ["good"]
        batch = [{"id": i, "outcome": "failure", "type": "parse-error"} for i in ids]
        assert fleet.record_batch(batch).recorded == len(ids)
        lines = [json.dumps({"id": i, "name": "N", "provider": "p"}) for i in ids]
        fleet.import_models("\n".join(lines).encode())
        assert fleet.show("good").display_name == "N"
    assert cli("disable", "good").code == 0
    for words in ("show", "record-failure", "record-success", "disable", "enable", "remove --yes"):
        ran = cli(*words.split(), "bad")
        assert ran.code in (*ExitCode,), (words, ran)
        assert ran.code != ExitCode.UNEXPECTED, (words, ran)


def is_odd(name: str, value: Any) -> bool:
    """Whether a value is not what its column is for."""
    kind = MODELS.c[name].type
    if value is None:
        return False
    if isinstance(kind, StoredTime):
        return bool(
            StoredTime().result_processor(sa.create_engine("sqlite://").dialect, None)(value)
            == value
        )
    if isinstance(kind, StoredFlag):
        return value not in (0, 1)
    if isinstance(kind, sa.Integer):
        return type(value) is not int
    return not isinstance(value, str) or "\0" in value


def test_two_is_not_true(sqlite_database: str) -> None:
    """A flag that is neither 0 nor 1 is not active in the count, and in nothing else."""
    url = sqlite_database
    with opened(url) as fleet:
        seed(fleet, ["good", "two", "word"])
        sql(url, "UPDATE models SET active = 2 WHERE id = 'two'")
        sql(url, "UPDATE models SET active = 'yes' WHERE id = 'word'")
        said: list[str] = []
        fleet.on_warning = said.append
        assert fleet.count(fresh=True).active == 1
        assert fleet.stats().active == 1
        assert [m.id for m in fleet.list_models(status="active")] == ["good"]
        assert [m.id for m in fleet.list_models(status="disabled")] == ["two", "word"]
        assert [m.active for m in fleet.list_models()] == [True, False, False]
        assert said[:1] == ["'two' has values that cannot be read: active"]
        assert fleet.enable("two", "word").changes[0].before is DISABLED
        assert fleet.count().active == 3


# ── PostgreSQL: texts that are no UTF-8, times beyond the calendar, NULLs ───────────────────────


def database_in(server: Postgres, encoding: str) -> Iterator[str]:
    """Make a database of this encoding, with the schema; give its URL."""
    name = f"in_{encoding.lower()}"
    server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    with opened(server.url(name)) as fleet:
        fleet.upgrade()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def without_encoding(postgres: Postgres) -> Iterator[str]:
    """Give a database that takes any bytes for text."""
    yield from database_in(postgres, "SQL_ASCII")


@pytest.fixture
def latin1(postgres: Postgres) -> Iterator[str]:
    """Give a database that takes 191 characters."""
    yield from database_in(postgres, "LATIN1")


def test_bytes_that_are_not_text(without_encoding: str, cli: Cli, monkeypatch: Any) -> None:
    """Rows with such bytes are shown, escaped, and named; the others are as they would be without."""
    url = without_encoding
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    with opened(url) as fleet:
        seed(fleet, ["good", "off", "é" + SMILE])
        trip(fleet, "off")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET client_encoding = SQL_ASCII")
        connection.execute(
            rb"INSERT INTO models (id, display_name, success_count) VALUES (E'bad\xff', E'n\xfe', 3)"
        )
        connection.execute(
            rb"INSERT INTO models (id, provider, active, auto_disabled)"
            rb" VALUES (E'badoff\xff', E'p\xfe', false, true)"
        )
        connection.execute(rb"INSERT INTO models (id, display_name) VALUES ('name', E'old\xfe')")
        connection.execute(rb"UPDATE modelctl_events SET reason = E'\xff' WHERE model_id = 'off'")
    bad = r"'bad\udcff' has values that cannot be read: id, display_name"
    assert bad in cli("list").err
    assert cli("list", "-o", "json").code == 0
    assert r"'p\udcfe' of 1 model cannot be read" in cli("stats").err
    assert bad in cli("leaderboard").err
    assert "has values that cannot be read: reason" in cli("events").err
    assert "é" + SMILE in cli("show", "é" + SMILE).out
    planned = cli("recover", "--dry-run", "--cooldown", "0s")
    assert planned.code == 0
    for ran in (planned, cli("recover", "--cooldown", "0s")):
        assert r"'badoff\udcff' did not come back: its id cannot be read" in ran.err
        assert ran.lines[0].split("\t")[0] == "off"
    assert cli("count", "--fresh").out == "5\n"
    assert r"rows	warning	'bad" in cli("doctor").out
    assert cli("doctor").code == 0
    assert cli("db", "status").code == 0
    catalog = b'{"id": "name", "name": "new"}\n{"id": "next", "name": "\xf0\x9f\x98\x80"}'
    with opened(url) as fleet:
        assert fleet.import_models(catalog).updated == 1
        assert fleet.show("next").display_name == SMILE
        assert fleet.record_batch([{"id": i, "outcome": "success"} for i in ("name", "off")])
        assert fleet.disable("name", "good", reason=SMILE).changes[0].changed
        assert fleet.show("good").disabled_reason == SMILE


def as_smile(fleet: Fleet) -> None:
    """Act as an actor whose name LATIN1 cannot hold."""
    with Fleet(fleet.config, actor=SMILE) as other:
        other.disable("a")


CALLS: dict[str, tuple[Any, str]] = {
    "id": (lambda fleet: fleet.disable("a", SMILE), f"the id '{SMILE}'"),
    "show": (lambda fleet: fleet.show(SMILE), f"the id '{SMILE}'"),
    "disable": (lambda fleet: fleet.disable("a", reason=SMILE), "the reason"),
    "enable": (lambda fleet: fleet.enable("off", reason=SMILE), "the reason"),
    "add": (lambda fleet: fleet.add(SMILE), f"the id '{SMILE}'"),
    "name": (lambda fleet: fleet.add("x", name=SMILE), "the name"),
    "provider": (lambda fleet: fleet.add("x", provider=SMILE), "the provider"),
    "failure": (lambda fleet: fleet.record_failure("a", reason=SMILE), "the reason"),
    "pause": (lambda fleet: fleet.pause(60, reason=SMILE), "the reason"),
    "batch": (
        lambda fleet: fleet.record_batch(
            [{"id": "a", "outcome": "failure"}, {"id": "b", "outcome": "failure", "reason": SMILE}]
        ),
        "outcome 2, of 'b': the reason",
    ),
    "batch id": (
        lambda fleet: fleet.record_batch([{"id": i, "outcome": "success"} for i in ("a", SMILE)]),
        f"outcome 2: the id '{SMILE}'",
    ),
    "import": (
        lambda fleet: fleet.import_models(json.dumps({"id": "x", "name": SMILE}).encode()),
        "the name of 'x'",
    ),
    "restore": (
        lambda fleet: fleet.restore(export_of(model("a"), model("x", provider=SMILE))),
        "line 3: 'provider'",
    ),
    "actor": (as_smile, "the actor"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_an_encoding_lacks(latin1: str, name: str) -> None:
    """A text that the database cannot hold is wrong usage, named, and nothing is written."""
    call, what = CALLS[name]
    with opened(latin1) as fleet:
        seed(fleet, ["a", "b", "off", "é"])
        trip(fleet, "off")
        before = everything(latin1)
        with pytest.raises(UsageError) as caught:
            call(fleet)
        words = f"{what}: the database is in LATIN1, which lacks '{SMILE}' (U+1F600)"
        assert caught.value.message == words
        assert everything(latin1) == before
        batch = [{"id": i, "outcome": "success"} for i in ("é", SMILE)]
        done = fleet.record_batch(batch, unknown="skip")
        assert (done.recorded, done.unknown) == (1, (SMILE,))
        assert fleet.disable("é", reason="é").changes[0].changed
        assert fleet.show("é").disabled_reason == "é"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1.5"])
@pytest.mark.parametrize("kind", ["numeric", "double precision"])
@pytest.mark.parametrize(
    "column", ["success_count", "failure_count", "consecutive_failures", "ejections"]
)
def test_counters_that_are_no_whole_numbers(
    pg_database: str, cli: Cli, monkeypatch: Any, column: str, kind: str, value: str
) -> None:
    """In a counter of another type only the odd value is named; the others are listed and ranked."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    with opened(pg_database) as fleet:
        seed(fleet, ["good", "bad"])
        fleet.record_success("good")
        fleet.record_success("bad")
    sql(pg_database, f"ALTER TABLE models ALTER {column} TYPE {kind}")
    sql(pg_database, f"UPDATE models SET {column} = '{value}' WHERE id = 'bad'")
    listed = cli("list", "-o", "table")
    assert listed.code == 0
    assert listed.err == f"warning: 'bad' has values that cannot be read: {column}\n"
    calls = {m["id"]: m["success_count"] for m in json.loads(cli("list", "-o", "json").out)}
    assert calls["good"] == 1
    board = json.loads(cli("leaderboard", "-o", "json").out, parse_constant=pytest.fail)
    assert "good" in [entry["id"] for entry in board]
    stats = cli("stats", "-o", "json")
    assert stats.json["models"] == 2
    if column.endswith("_count") and value != "1.5":
        assert "the calls of provider '' cannot be summed: one of them is no number" in stats.err
    for words in ("show bad", "recover --dry-run", "record-success bad", "record-failure good"):
        assert cli(*words.split()).code == 0, words
    assert f"{column} is {kind}" in cli("doctor").out


@pytest.fixture
def win1252(postgres: Postgres) -> Iterator[str]:
    """Give a database whose encoding leaves some bytes undefined."""
    yield from database_in(postgres, "WIN1252")


def test_bytes_that_an_encoding_does_not_define(win1252: str, cli: Cli, monkeypatch: Any) -> None:
    """A row with such bytes is shown, escaped, and named; the others are as they would be without."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", win1252)
    with opened(win1252) as fleet:
        seed(fleet, ["good€", "bad", "off"])
        trip(fleet, "off")
    odd = r"convert_from('\x6e81', 'WIN1252')"
    sql(win1252, f"UPDATE models SET display_name = {odd}, provider = {odd} WHERE id = 'bad'")
    sql(win1252, f"UPDATE modelctl_events SET reason = {odd} WHERE model_id = 'off'")
    listed = cli("list", "-o", "json")
    assert listed.code == 0
    assert [model["id"] for model in listed.json] == ["bad", "good€", "off"]
    assert "'bad' has values that cannot be read: display_name, provider" in cli("list").err
    assert r"n\udc81" in cli("list").out
    for words in ("stats", "leaderboard", "events", "show bad", "show good€", "doctor"):
        assert cli(*words.split()).code == 0, words
    assert cli("recover", "--cooldown", "0s").lines[0] == "off"
    assert cli("disable", "bad", "good€", "--reason", "für 5 €").code == 0
    stored = "SELECT id, disabled_reason FROM models WHERE id LIKE 'good%'"
    assert sql(win1252, stored) == [("good€", "für 5 €")]
    assert "'bad' has values that cannot be read" in cli("doctor").out
    cli("disable", "off", "--reason", SMILE).failed(ExitCode.USAGE, "in WIN1252, which lacks")


@pytest.fixture
def euc_jp(postgres: Postgres) -> Iterator[str]:
    """Give a database in an encoding of several bytes, not all of which are defined."""
    yield from database_in(postgres, "EUC_JP")


def test_bytes_that_postgresql_cannot_convert(euc_jp: str, cli: Cli, monkeypatch: Any) -> None:
    """Such a text is no wrong usage: the encoding is named; what does not read it works."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", euc_jp)
    with opened(euc_jp) as fleet:
        seed(fleet, ["good", "bad"])
    odd = r"convert_from('\xfea1', 'EUC_JP')"
    sql(euc_jp, f"UPDATE models SET display_name = {odd} WHERE id = 'bad'")
    cli("list").failed(ExitCode.INVALID_CONFIG, "the database is in EUC_JP", "0xfe")
    assert cli("count", "--fresh").out == "2\n"
    assert cli("disable", "bad", "good").code == 0
    assert cli("show", "good").code == 0


LOOSE = """CREATE TABLE models (id text UNIQUE, display_name text, provider text, active boolean,
    auto_disabled boolean, consecutive_failures integer, success_count bigint,
    failure_count bigint, created_at timestamp, updated_at timestamp)"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_adopted_row_of_nulls(
    kind: str, tmp_path: Any, request: Any, cli: Cli, monkeypatch: Any
) -> None:
    """An adopted row of NULLs, its id too, is named, and the others go on."""
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/adopted.db"
        sqlite3.connect(tmp_path / "adopted.db").close()
    else:
        url = request.getfixturevalue("empty_pg")
    sql(url, LOOSE if kind == "postgresql" else LOOSE.replace("timestamp", "text"))
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    assert cli("db", "upgrade").code == 0
    for model_id in ("good", "off", "nulls", None):
        sql(url, "INSERT INTO models (id) VALUES (?)", model_id)
    sql(url, "UPDATE models SET active = TRUE WHERE id = 'good'")
    off = f"auto_disabled = TRUE, last_failure_at = {ago(url, 7200)}"
    sql(url, f"UPDATE models SET {off} WHERE id = 'off' OR id IS NULL")
    for form in ("table", "json", "jsonl", "csv", "tsv", "name"):
        listed = cli("list", "-o", form)
        assert listed.code == 0, listed
        assert "'' has values that cannot be read: id" in listed.err
    assert cli("count", "--fresh").out == "1\n"
    for words in ("stats", "leaderboard", "events", "show good", "show nulls"):
        assert cli(*words.split()).code == 0, words
    planned, recovered = cli("recover", "--dry-run"), cli("recover")
    assert recovered.lines == ["off"]
    if not is_sqlite(url):  # there it is no candidate
        for ran in (planned, recovered):
            assert "'' did not come back: its id cannot be read" in ran.err
    assert "values that cannot be read" in cli("doctor").out
    with opened(url) as fleet:
        batch = [{"id": i, "outcome": "failure", "type": "parse-error"} for i in ("nulls", "off")]
        assert fleet.record_batch(batch).recorded == 2
        fleet.import_models(b'{"id": "nulls", "name": "N"}')
        assert fleet.enable("nulls", "good").changes[0].changed


def test_times_beyond_the_calendar(pg_database: str, cli: Cli, monkeypatch: Any) -> None:
    """Times that Python cannot hold are named and shown as missing; an end that never comes is valid."""
    url = pg_database
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    with opened(url) as fleet:
        seed(fleet, ["late", "early", "never", "ends", "off", "good"])
        trip(fleet, "late", "early", "never", "off")
        fleet.disable("ends")
    ends = {"late": "294276-12-31", "early": "4713-01-01 BC", "never": "infinity"}
    for model_id, time in ends.items():
        for column in ("last_failure_at", "disabled_at", "updated_at", "created_at"):
            sql(url, f"UPDATE models SET {column} = '{time}' WHERE id = '{model_id}'")
    sql(url, "UPDATE models SET disabled_until = 'infinity' WHERE id = 'ends'")
    sql(url, f"UPDATE models SET last_failure_at = {ago(url, 7200)} WHERE id = 'off'")
    sql(url, "UPDATE modelctl_events SET at = '294276-12-31' WHERE model_id = 'good'")
    sql(url, "UPDATE modelctl_events SET before = 'odd', after = '' WHERE model_id = 'off'")
    listed = cli("list", "-o", "json")
    assert len(listed.json) == 6
    for model_id in ends:
        assert f"'{model_id}' has values that cannot be read: last_failure_at" in listed.err
    assert "'ends'" not in listed.err
    for form in ("table", "json", "csv", "tsv"):
        history = cli("events", "-o", form)
        assert history.code == 0, history
        assert "cannot be read: at" in history.err
        assert "cannot be read: before" in history.err
    for words in ("stats", "leaderboard", "show late", "show early", "show never", "show ends"):
        assert cli(*words.split()).code == 0, words
    assert cli("recover", "--dry-run").code == 0
    assert sorted(cli("recover").lines) == ["early", "off"]
    assert "'early' and 2 more have values that cannot be read" in cli("doctor").out
    assert is_sqlite(url) or cli("record-failure", "late").code == 0
