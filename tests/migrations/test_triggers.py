"""The triggers keep the columns of a status together after any change, and empty the SQLite cache."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import psycopg
import pytest

from tests.migrations.schemas import TEXT_ID, execute, kind, upgrade

# A model that is switched on is trusted again, and a plain disable is one by hand


TIME = "'2026-01-01T00:00:00.000Z'"
ODD = f"auto_disabled = true, disabled_until = {TIME}"  # what brings a model back by itself
DISABLED = f"{ODD}, disabled_at = {TIME}, disabled_by = 'rule', disabled_reason = 'why'"
KEPT = (
    "SELECT active, auto_disabled, disabled_until IS NULL, disabled_at IS NULL, disabled_by,"
    " disabled_reason, would_disable FROM models"
)
BACK = "SELECT active, auto_disabled, disabled_until, would_disable FROM models"


@pytest.fixture(params=[False, True])
def pragmas(url: str, request: pytest.FixtureRequest) -> list[str]:
    """Give what precedes the statements: on SQLite, recursive triggers off and on."""
    if not request.param:
        return []
    if kind(url) == "postgresql":
        pytest.skip("a setting of SQLite")
    return ["PRAGMA recursive_triggers = ON"]


@pytest.mark.parametrize("before", ["false", "NULL"])
def test_switching_on_by_hand_clears_why_it_was_off(
    url: str, before: str, pragmas: list[str]
) -> None:
    """After active = true, a later active = false by hand is a plain disable without a reason."""
    execute(url, f"CREATE TABLE models ({TEXT_ID}, active boolean)")
    upgrade(url)
    execute(
        url,
        *pragmas,
        "INSERT INTO models (id) VALUES ('a')",
        f"UPDATE models SET active = {before}, {DISABLED}",
        "UPDATE models SET would_disable = 'share'",
    )
    row = execute(url, *pragmas, "UPDATE models SET active = true", KEPT)
    assert row == [(True, False, True, True, None, None, None)]
    row = execute(url, *pragmas, "UPDATE models SET active = false", KEPT)
    assert row == [(False, False, True, True, None, None, None)]


def test_only_a_flip_clears(url: str) -> None:
    """A statement that disables may also say when the model comes back; other changes keep that."""
    upgrade(url)
    kept = [(False, True, False, False, "rule", "why", None)]
    execute(url, "INSERT INTO models (id) VALUES ('a')")
    assert execute(url, f"UPDATE models SET active = false, {DISABLED}", KEPT) == kept
    assert execute(url, "UPDATE models SET active = false", KEPT) == kept
    assert execute(url, "UPDATE models SET failure_count = 7, id = 'b'", KEPT) == kept
    execute(url, "DELETE FROM models", "INSERT INTO models (id) VALUES ('a')")
    row = execute(
        url, f"UPDATE models SET active = true, would_disable = 'floor', {DISABLED}", KEPT
    )
    assert row == [(True, True, False, False, "rule", "why", "floor")]


def test_switching_on_keeps_when_it_last_came_back(url: str) -> None:
    """`recovered_at` is history: the statement that brings a model back may set it."""
    upgrade(url)
    execute(url, "INSERT INTO models (id, active, auto_disabled) VALUES ('a', false, true)")
    read = "SELECT active, auto_disabled, recovered_at IS NULL FROM models"
    row = execute(url, f"UPDATE models SET active = true, recovered_at = {TIME}", read)
    assert row == [(True, False, False)]
    assert execute(url, "UPDATE models SET active = false", read) == [(False, False, False)]


@pytest.mark.parametrize("off", ["false", "NULL"])
@pytest.mark.parametrize("disabled_at", ["NULL", TIME])
def test_a_plain_disable_forgets_what_the_row_carried(
    url: str, off: str, disabled_at: str, pragmas: list[str]
) -> None:
    """What an active row has from elsewhere does not bring back what a person switched off."""
    execute(url, f"CREATE TABLE models ({TEXT_ID}, active boolean)")
    upgrade(url)
    execute(url, f"INSERT INTO models (id, active, disabled_at) VALUES ('a', true, {disabled_at})")
    execute(url, f"UPDATE models SET would_disable = 'incident', {ODD}")
    row = execute(url, *pragmas, f"UPDATE models SET active = {off}", BACK)
    assert row == [(False if off == "false" else None, False, None, None)]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("assign", "auto", "timed"),
    [
        # The health rule, `disable --for` and `disable`, which all say since when.
        (f"auto_disabled = true, disabled_at = {TIME}", True, False),
        (f"auto_disabled = false, disabled_at = {TIME}, disabled_until = {TIME}", False, True),
        (f"auto_disabled = false, disabled_at = {TIME}, disabled_until = NULL", False, False),
        # Another program, which does not.
        ("auto_disabled = true", True, False),
        ("auto_disabled = false, disabled_until = '2027-01-01T00:00:00.000Z'", False, True),
    ],
)
def test_a_disable_that_says_how_it_ends_is_kept(
    url: str, assign: str, auto: bool, timed: bool, odd: bool
) -> None:
    """One UPDATE may disable a model and say what brings it back, whatever the row had before."""
    upgrade(url)
    execute(url, "INSERT INTO models (id, would_disable) VALUES ('a', 'floor')")
    if odd:
        execute(url, f"UPDATE models SET {ODD}")
        if "disabled_at" not in assign:
            auto = False  # then the flag is the old one, and a person comes first
        elif "disabled_until" not in assign:
            timed = True  # modelctl sets both
    ((active, automatic, until, would),) = execute(
        url, f"UPDATE models SET active = false, {assign}", BACK
    )
    assert (active, automatic, until is not None, would) == (False, auto, timed, None)


def test_a_replica_session_clears_too(fleet: str) -> None:
    """The flip is seen under session_replication_role = replica as well."""
    with psycopg.connect(fleet) as connection:
        connection.execute(f"UPDATE models SET {DISABLED} WHERE id = 'b'".encode())
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE models SET active = true WHERE id = 'b'")
    assert (True, False, True, True, None, None, None) in execute(fleet, KEPT)


# The cache (SQLite)


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
@pytest.mark.parametrize(
    ("statement", "emptied"),
    [
        ("INSERT INTO models (id) VALUES ('x')", True),
        ("INSERT INTO models (id) SELECT 'x' WHERE false", False),
        ("REPLACE INTO models (id, active) VALUES ('a', 0)", True),
        ("INSERT OR IGNORE INTO models (id) VALUES ('a')", False),
        (
            "INSERT INTO models (id, active) VALUES ('a', 0)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            True,
        ),
        (
            "INSERT INTO models (id, active) VALUES ('a', 1)"
            " ON CONFLICT (id) DO UPDATE SET active = excluded.active",
            False,
        ),
        ("UPDATE models SET active = 0 WHERE id = 'a'", True),
        ("UPDATE models SET active = 1 WHERE id = 'b'", True),
        ("UPDATE models SET active = 1 - active", True),
        ("UPDATE models SET active = active", False),
        ("UPDATE models SET id = 'z' WHERE id = 'b'", True),
        ("UPDATE models SET failure_count = 1, failure_reason = 'x'", False),
        ("DELETE FROM models WHERE id = 'b'", True),
        ("DELETE FROM models", True),
        ("DELETE FROM models WHERE id = 'nobody'", False),
    ],
)
def test_a_change_empties_the_sqlite_cache_in_its_transaction(
    sqlite_url: str, statement: str, emptied: bool, recursive: str
) -> None:
    """Values and leases go with the change of status, come back with a rollback, and else stay."""
    upgrade(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA recursive_triggers = {recursive}")
        connection.execute("INSERT INTO models (id, active) VALUES ('a', 1), ('b', 0)")
        connection.execute(
            "INSERT INTO modelctl_cache (key, value, nonce, expires_at)"
            " VALUES ('value', 1, NULL, 9e9), ('lease', NULL, 'n', 9e9)"
        )
        rows = "SELECT count(*) FROM modelctl_cache"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(statement)
        assert connection.execute(rows).fetchone() == (0 if emptied else 2,)
        connection.execute("ROLLBACK")
        assert connection.execute(rows).fetchone() == (2,)
