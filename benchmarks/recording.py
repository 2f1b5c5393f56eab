"""Outcomes of an application on PostgreSQL: the recorder against single calls and bare statements."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack

from benchmarks.children import child, hear, tell
from benchmarks.harness import Row, at_least, at_most, interleave, seconds
from benchmarks.servers import Bench, model_id
from modelctl import Fleet

PARTS = ("recorder", "hot")
_PROCESSES = 8
_MODELS = 1000
_POPULAR = model_id(500)
_GATHERED = 5000  # outcomes of one block
_SINGLES = 50

# What a client that gathers outcomes does by hand.
_GATHER = """
UPDATE models
SET success_count = success_count + outcome.number, consecutive_failures = 0, failure_reason = NULL,
    last_success_at = clock_timestamp(), updated_at = clock_timestamp()
FROM (SELECT id, count(*) AS number FROM unnest(%s::text[]) AS id GROUP BY id) AS outcome
WHERE models.id = outcome.id
"""
_STATE = (
    "SELECT pg_relation_size('models'), pg_stat_get_tuples_updated('models'::regclass),"
    " pg_stat_get_tuples_hot_updated('models'::regclass)"
)


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these parts."""
    for part in parts:
        {"recorder": _recorder, "hot": _hot}[part](bench)


# ── One process ─────────────────────────────────────────────────────────────────────────────────


def _recorder(bench: Bench) -> None:
    database = bench.postgres.copy(bench.fleet(_MODELS, 1))
    bare = bench.postgres.copy(bench.bare(bench.fleet(_MODELS, 1)))
    ids = [model_id(number * 7919 % 200 + 100) for number in range(_GATHERED)]
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(bench.config(database), pool_size=2))
        connection = stack.enter_context(bench.connect(bare))
        recorder = stack.enter_context(fleet.recorder())
        recorder.failure(ids[0], "timeout", wait=True)  # what is loaded and connected on the way

        def gathered() -> None:
            for each in ids:
                recorder.success(each)
            recorder.flush(60)

        def added() -> None:
            for each in ids:
                recorder.success(each)

        bench.say(f"a recorder, {_GATHERED:,} outcomes of 200 models at a time")
        rates = interleave(
            {
                "product": lambda: _GATHERED / seconds(gathered),
                "added": lambda: _GATHERED / seconds(added),
                "single": lambda: 1 / seconds(lambda: fleet.record_success(ids[1]), _SINGLES),
                "unnest": lambda: _GATHERED / seconds(lambda: connection.execute(_GATHER, [ids])),
            },
            bench.scale.bulk_rounds * 3,
            between=lambda: recorder.flush(60),
        )
    what = "a recorder, to the COMMIT"
    for name, words, target in (
        ("single", "record_success, one by one", at_least(10)),
        ("unnest", "one bare UPDATE ... FROM unnest GROUP BY", None),
    ):
        bench.report.add(
            Row(
                "recording.recorder",
                what,
                rates["product"],
                words,
                rates[name],
                target,
                "per second",
            )
        )
    bench.report.add(
        Row("recording.recorder", "success(), for the caller", rates["added"], unit="per second")
    )


# ── One popular model ───────────────────────────────────────────────────────────────────────────


def _hot(bench: Bench) -> None:
    bench.say(f"{_PROCESSES} processes that record one model of {_MODELS:,}")
    database = bench.postgres.copy(bench.fleet(_MODELS, 1))
    with ExitStack() as stack:
        workers = {
            name: [stack.enter_context(_worker(bench, name, database)) for _ in range(_PROCESSES)]
            for name in ("singles", "gathered", "updates")
        }
        number = {"singles": _SINGLES, "gathered": 40 * _SINGLES, "updates": _SINGLES}
        rates = interleave(
            {name: lambda name=name: _together(workers[name], number[name]) for name in workers},  # type: ignore[misc]
            bench.scale.bulk_rounds + 2,
        )
        size, updated, hot = bench.postgres.execute(_STATE, database)[0]
        total = 1_000_000 if bench.scale.block_rounds > 20 else 100_000
        for each in workers["gathered"]:
            tell(each, total // _PROCESSES)
        for each in workers["gathered"]:
            hear(each)
    grown, updated_after, hot_after = bench.postgres.execute(_STATE, database)[0]
    share = (hot_after - hot) / max(1, updated_after - updated)
    who = f"{_PROCESSES} processes, one model"
    for product, against, words, target in (
        ("gathered", "singles", "record_success", at_least(10)),
        ("singles", "updates", "a bare UPDATE", None),
    ):
        bench.report.add(
            Row(
                "recording.hot",
                f"{who}: {'recorders' if product == 'gathered' else 'record_success'}",
                rates[product],
                words,
                rates[against],
                target,
                "per second",
            )
        )
    bench.report.add(
        Row(
            "recording.hot",
            f"size of the table after {total:,} outcomes more, by the size before",
            [grown / size],
            target=at_most(2),
            unit="number",
        ),
        Row(
            "recording.hot",
            "share of HOT updates among single calls",
            [hot / updated],
            target=at_least(0.95),
            unit="number",
        ),
        Row(
            "recording.hot",
            "share of HOT updates of the recorders",
            [share],
            target=at_least(0.95),
            unit="number",
        ),
    )


def _together(workers: list[subprocess.Popen[str]], number: int) -> float:
    """Let each worker record so many outcomes; return how many all recorded in a second."""

    def work() -> None:
        for each in workers:
            tell(each, number)
        for each in workers:
            hear(each)

    return len(workers) * number / seconds(work)


def _worker(
    bench: Bench, name: str, database: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start a process that records as many outcomes as it is told, when it is told."""
    return child(name, bench.postgres.url(database), "", _POPULAR)
