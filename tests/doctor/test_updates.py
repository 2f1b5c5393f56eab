"""HOT updates: outcomes write no index of our own table; `doctor` says what would help on another."""

from __future__ import annotations

from modelctl import Fleet
from tests import waiting
from tests.fleets import opened, put, sql

_UPDATED = (
    "SELECT pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_hot_updated(c.oid),"
    " pg_relation_size(c.oid) FROM pg_class c WHERE c.oid = 'models'::regclass"
)
IDS = [f"provider/model-{number:04}" for number in range(400)]


def record(url: str, batches: int) -> tuple[float, float]:
    """Record batches of successes of all models; return the share of HOT updates, and the growth."""
    _, _, before = sql(url, _UPDATED)[0]
    with opened(url) as fleet:
        for _ in range(batches):
            fleet.record_batch({"id": model_id, "outcome": "success"} for model_id in IDS)
    # A session tells the server what it did when it ends.
    waiting.until(lambda: sql(url, _UPDATED)[0][0] >= batches * len(IDS))
    updated, hot, after = sql(url, _UPDATED)[0]
    return hot / updated, after / before


def finding(fleet: Fleet) -> tuple[bool, bool, str]:
    """Return what the check says."""
    (found,) = [check for check in fleet.doctor().checks if check.check == "updates"]
    return found.ok, found.warning, found.detail


def test_outcomes_write_no_index_of_our_own_table(pg_database: str) -> None:
    """At least 95 % of recorded successes are HOT updates, also if a batch changes every row."""
    put(pg_database, *IDS)
    with opened(pg_database) as fleet:
        assert finding(fleet) == (True, False, "too few to judge how outcomes are written")
        share, growth = record(pg_database, 10)
        assert share >= 0.95
        assert growth < 1.3
        ok, warns, detail = finding(fleet)
        assert (ok, warns) == (True, False)
        assert "updates of models wrote no index (HOT)" in detail


def test_an_adopted_table_is_left_as_it_is(empty_pg: str) -> None:
    """Its fillfactor and indexes stay; doctor names what keeps updates from being HOT."""
    sql(
        empty_pg,
        "CREATE TABLE models (id text PRIMARY KEY, active boolean NOT NULL DEFAULT true,"
        " success_count bigint, note text, last_success_at timestamptz, updated_at timestamptz)",
    )
    sql(empty_pg, "CREATE INDEX fresh ON models (updated_at)")
    sql(empty_pg, "CREATE INDEX used ON models (id) WHERE success_count > 10")
    sql(empty_pg, "CREATE INDEX noted ON models (lower(note))")
    sql(empty_pg, "CREATE INDEX range ON models USING brin (last_success_at)")
    with opened(empty_pg) as fleet:
        fleet.upgrade()
        assert fleet.schema_status().up_to_date
        assert sql(empty_pg, "SELECT reloptions FROM pg_class WHERE relname = 'models'") == [
            (None,)
        ]
        put(empty_pg, *IDS)
        record(empty_pg, 3)
        ok, warns, detail = finding(fleet)
    assert (ok, warns) == (True, True)
    assert (
        "; fresh, used use columns that outcomes change: DROP INDEX, if nothing needs it" in detail
    )
    assert "ALTER TABLE models SET (fillfactor = 45), then VACUUM FULL models" in detail
    assert detail.startswith("0% of 1,200 updates of models wrote no index (HOT)")
