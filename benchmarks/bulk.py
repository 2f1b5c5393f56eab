"""Changes of many rows on PostgreSQL with its default durability, against bare statements.

The floors work on the same rows and indexes, without the triggers and tables of modelctl. What
changes the rows for good gets a fresh copy of a database for each run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.harness import MissingError, Row, at_least, at_most, interleave, seconds
from benchmarks.servers import Bench, model_id
from modelctl import Fleet
from modelctl.catalog.importing import import_catalog
from modelctl.catalog.parse import parse

PARTS = ("recover", "single", "batch", "import", "session")
_DUE_PERCENT = 30
_SINGLES = 50
_BULK_IDS = 10_000
_FAILURE = {"outcome": "failure", "type": "timeout", "reason": "no answer in 30 s"}

# What recover does to the rows, and nothing else.
_RECOVER = """
UPDATE models
SET active = TRUE, auto_disabled = FALSE, consecutive_failures = 2, disabled_at = NULL,
    disabled_by = NULL, disabled_reason = NULL, disabled_until = NULL, would_disable = NULL,
    recovered_at = clock_timestamp(), updated_at = clock_timestamp()
WHERE active IS NOT TRUE AND auto_disabled IS TRUE
    AND coalesce(last_failure_at, disabled_at, updated_at) <= now() - interval '1 hour'
"""
# The same, with the history that it leaves.
_RECOVER_AND_LOG = f"""
WITH recovered AS ({_RECOVER} RETURNING id)
INSERT INTO modelctl.modelctl_events (model_id, event, before, after, actor)
SELECT id, 'recovered', 'auto-disabled', 'active', 'benchmark' FROM recovered
"""
_LOG_ADDED = """
INSERT INTO modelctl.modelctl_events (model_id, event, after, details, actor, operation)
SELECT id, 'added', 'active', jsonb_build_object(
    'old', jsonb_build_object('display_name', NULL, 'provider', NULL),
    'new', jsonb_build_object('display_name', display_name, 'provider', provider)
), 'benchmark', '01KCCCCCCCCCCCCCCCCCCCCCCC' FROM models
"""
_BATCH = """
UPDATE models
SET failure_count = failure_count + 1, last_failure_at = clock_timestamp(),
    failure_type = outcome.type, failure_reason = outcome.reason, updated_at = clock_timestamp()
FROM unnest(%s::text[], %s::text[], %s::text[]) AS outcome(id, type, reason)
WHERE models.id = outcome.id
"""


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these parts."""
    for part in parts:
        {
            "recover": _recover,
            "single": _single,
            "batch": _batch,
            "import": _import,
            "session": _session,
        }[part](bench)


# ── Recover ─────────────────────────────────────────────────────────────────────────────────────


def _recover(bench: Bench) -> None:
    largest = bench.scale.sizes[-1]
    for size in bench.scale.sizes:
        template = bench.fleet(size, _DUE_PERCENT)
        bare = bench.bare(template)
        grown: list[float] = []
        due = size * _DUE_PERCENT // 100
        bench.say(f"recover of {due:,} among {size:,}")

        def product(template: str = template, grown: list[float] = grown) -> float:
            with _copied(bench, template) as database:
                answer = _child(bench, "recover", database)
                _nobody_left(bench, database)
            grown.append(answer["grown"])
            return answer["seconds"]

        def by_hand(sql: str, template: str) -> float:
            with _copied(bench, template) as database, bench.connect(database) as connection:
                took = seconds(lambda: connection.execute(sql.encode()))
                _nobody_left(bench, database)
                return took

        ways = {
            "product": product,
            "floor": lambda bare=bare: by_hand(_RECOVER, bare),
            "logged": lambda template=template: by_hand(_RECOVER_AND_LOG, template),
        }
        times = interleave(ways, bench.scale.bulk_rounds, warmups=0)
        bench.report.add(
            Row(
                "bulk.recover",
                f"recover of {due:,} among {size:,}",
                times["product"],
                "one bare UPDATE",
                times["floor"],
                at_most(1.6) if size == largest else None,
                curve="recover",
                size=size,
            )
        )
        if size == largest:
            bench.report.add(
                Row(
                    "bulk.recover",
                    f"recover of {due:,} among {size:,}",
                    times["product"],
                    "one UPDATE with the same events and triggers",
                    times["logged"],
                ),
                Row(
                    "bulk.recover",
                    f"growth of the process in a recover of {due:,}",
                    grown,
                    target=at_most(10),
                    unit="MiB",
                ),
            )


def _nobody_left(bench: Bench, database: str) -> None:
    sql = "SELECT count(*) FROM models WHERE NOT active"
    if bench.postgres.execute(sql, database) != [(0,)]:
        raise RuntimeError("not everybody was recovered")


@contextmanager
def _copied(bench: Bench, template: str) -> Iterator[str]:
    """A copy of a database, dropped in the end."""
    database = bench.postgres.copy(template)
    try:
        yield database
    finally:
        bench.postgres.drop_database(database)


def _child(bench: Bench, what: str, database: str, *more: str) -> dict[str, float]:
    """Do something in a process of its own and return what it measured."""
    url = bench.postgres.url(database)
    command = [sys.executable, "-m", "benchmarks.child", what, url, bench.redis.url(), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


# ── One outcome at a time ───────────────────────────────────────────────────────────────────────


def _single(bench: Bench) -> None:
    with (
        _copied(bench, bench.fleet(bench.scale.sizes[-1], 1)) as database,
        ExitStack() as stack,
    ):
        fleet = stack.enter_context(Fleet(bench.config(database), pool_size=1))
        unprepared = stack.enter_context(bench.connect(database, prepare_threshold=None))
        prepared = stack.enter_context(bench.connect(database))
        fleet.record_failure(model_id(500), "timeout", reason="once")
        try:
            sql, parameters = _statement(
                lambda: fleet.record_failure(model_id(501), "timeout", reason="no answer in 30 s")
            )
        except MissingError as exc:
            bench.report.skip("bulk.single", exc)
            return
        # All three go over the same models, so that these are equally often updated.
        ours, theirs, others = (_healthy() for _ in range(3))

        def product() -> float:
            fleet.record_failure(next(ours), "timeout", reason="no answer in 30 s")
            return 0.0

        def raw(connection: psycopg.Connection[Any], ids: Iterator[str]) -> Callable[[], None]:
            def one() -> None:
                found = connection.execute(sql, _about(parameters, model_id(501), next(ids)))
                if len(found.fetchall()) != 1:
                    raise RuntimeError("the captured statement found no model")

            return one

        bench.say(f"single outcomes, {_SINGLES} in a row")
        rates = interleave(
            {
                "product": lambda: 1 / seconds(product, _SINGLES),
                "raw": lambda: 1 / seconds(raw(unprepared, theirs), _SINGLES),
                "prepared": lambda: 1 / seconds(raw(prepared, others), _SINGLES),
            },
            bench.scale.block_rounds,
            patience=bench.scale.patience,
        )
    for name, against, target in (
        ("raw", "psycopg, the same statement", at_least(0.70)),
        ("prepared", "psycopg, the same, prepared", None),
    ):
        bench.report.add(
            Row(
                "bulk.single",
                "record_failure on one connection",
                rates["product"],
                against,
                rates[name],
                target,
                "per second",
            )
        )


def _healthy() -> Iterator[str]:
    """The ids of models that are active, again and again."""
    while True:
        yield from (model_id(number) for number in range(1000) if number % 100 >= _DUE_PERCENT)


def _statement(work: Callable[[], object]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement on models that *work* sends, and its parameters.

    Raises:
        MissingError: there is none of the kind.
    """
    sent: list[tuple[object, Any]] = []
    plain = psycopg.Cursor.execute

    def execute(self: Any, query: Any, params: Any = None, **how: Any) -> Any:
        sent.append((query, params))
        return plain(self, query, params, **how)

    psycopg.Cursor.execute = execute  # type: ignore[method-assign]
    try:
        work()
    finally:
        psycopg.Cursor.execute = plain  # type: ignore[method-assign]
    for query, parameters in sent:
        text = query.decode() if isinstance(query, bytes) else str(query)
        # What begins and ends the transaction around it is not the statement.
        found = re.search(r"\bWITH\b.*\bUPDATE models\b.*?(?=;|$)", text, re.DOTALL)
        if found and isinstance(parameters, Mapping):
            return found[0].encode(), dict(parameters)
    raise MissingError("the statement of record_failure was not recognised")


def _about(parameters: dict[str, Any], was: str, now: str) -> dict[str, Any]:
    """The parameters for another model."""
    swapped = {repr(was): now, repr([was]): [now]}
    return {name: swapped.get(repr(value), value) for name, value in parameters.items()}


# ── A batch ─────────────────────────────────────────────────────────────────────────────────────


def _batch(bench: Bench) -> None:
    size, number = bench.scale.sizes[-1], bench.scale.batch
    template = bench.fleet(size, 1)
    # Spread over the table, without those that are off.
    healthy = [i for i in range(size) if i % 100]
    ids = [model_id(i) for i in healthy[:: len(healthy) // number][:number]]
    outcomes = [{"id": each, **_FAILURE} for each in ids]
    arrays = ids, [_FAILURE["type"]] * len(ids), [_FAILURE["reason"]] * len(ids)
    with (
        _copied(bench, template) as database,
        _copied(bench, bench.bare(template)) as bare,
        Fleet(bench.config(database), pool_size=1) as fleet,
        bench.connect(bare) as connection,
    ):
        singles = _healthy()

        def product() -> float:
            return len(ids) / seconds(lambda: fleet.record_batch(outcomes))

        def floor() -> float:
            return len(ids) / seconds(lambda: connection.execute(_BATCH, arrays))

        def single() -> float:
            one = islice(singles, _SINGLES)
            return 1 / seconds(
                lambda: fleet.record_failure(next(one), "timeout", reason=_FAILURE["reason"]),
                _SINGLES,
            )

        def tidy() -> None:
            for name in (database, bare):
                bench.postgres.execute("VACUUM models", name)
                bench.postgres.execute("CHECKPOINT", name)

        bench.say(f"batches of {len(ids):,} outcomes")
        rates = interleave(
            {"product": product, "floor": floor, "single": single},
            bench.scale.bulk_rounds + 2,
            between=tidy,
        )
    what = f"record_batch of {len(ids):,} among {size:,}"
    for name, against, limit in (
        ("floor", "one bare UPDATE ... FROM unnest", 0.75),
        ("single", "record_failure, one by one", 15),
    ):
        bench.report.add(
            Row(
                "bulk.batch",
                what,
                rates["product"],
                against,
                rates[name],
                at_least(limit),
                "per second",
            )
        )


# ── Import ──────────────────────────────────────────────────────────────────────────────────────


def _import(bench: Bench) -> None:
    number = bench.scale.imported
    empty = bench.fleet(0, 0)
    bare = bench.bare(empty)
    text = "".join("\t".join(row) + "\n" for row in _catalog_rows(number))
    with _catalog(number) as file, _catalog(4 * number) as larger:
        bench.say(f"import of {number:,} models")
        found = parse(file.read_bytes())

        def imported(work: Callable[[Fleet], object]) -> float:
            with (
                _copied(bench, empty) as database,
                Fleet(bench.config(database), pool_size=1) as fleet,
            ):
                fleet.count()
                took = seconds(lambda: work(fleet))
                if fleet.count(fresh=True).active != number:
                    raise RuntimeError("not everything was imported")
                return took

        def whole(fleet: Fleet) -> None:
            with file.open("rb") as stream:
                fleet.import_models(stream)

        def written(fleet: Fleet) -> None:
            import_catalog(
                found,
                fleet._store.database,
                on_conflict="update",
                actor="benchmark",
                dry_run=False,
                progress=lambda _: None,
                invalidate=fleet._invalidate,
            )

        def by_copy(template: str, *after: str) -> float:
            with _copied(bench, template) as database, bench.connect(database) as connection:

                def copy() -> None:
                    command = "COPY models (id, display_name, provider) FROM STDIN"
                    with connection.transaction(), connection.cursor() as cursor:
                        with cursor.copy(command) as stream:
                            stream.write(text)
                        for sql in after:
                            cursor.execute(sql.encode())

                return seconds(copy)

        def grown(path: Path) -> float:
            with _copied(bench, empty) as database:
                return _child(bench, "imported", database, str(path))["grown"]

        ways = {
            "whole": lambda: imported(whole),
            "written": lambda: imported(written),
            "floor": lambda: by_copy(bare),
            "logged": lambda: by_copy(empty, _LOG_ADDED),
        }
        times = interleave(ways, bench.scale.bulk_rounds, warmups=0)
        growth = {path: [grown(path) for _ in range(2)] for path in (file, larger)}
    what = f"import of {number:,} models"
    same = "COPY and INSERT ... SELECT with the same events and triggers"
    bench.report.add(
        Row("bulk.import", what, times["whole"], same, times["logged"], at_most(2.5)),
        Row(
            "bulk.import",
            f"{what}, without reading the file",
            times["written"],
            same,
            times["logged"],
            at_most(1.5),
        ),
        Row("bulk.import", what, times["whole"], "COPY, the same indexes", times["floor"]),
        *(
            Row(
                "bulk.import",
                f"growth of the process in an import of {size:,}",
                growth[path],
                target=at_most(20),
                unit="MiB",
            )
            for path, size in ((file, number), (larger, 4 * number))
        ),
    )


def _catalog_rows(number: int) -> Iterator[tuple[str, str, str]]:
    return ((model_id(i), f"Model {i}", f"provider-{i % 50:02}") for i in range(number))


@contextmanager
def _catalog(number: int) -> Iterator[Path]:
    """A file of JSON Lines with so many models."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for row in _catalog_rows(number):
            line = dict(zip(("id", "name", "provider"), row, strict=True))
            file.write(json.dumps(line) + "\n")
        file.flush()
        yield Path(file.name)


# ── A session's past ────────────────────────────────────────────────────────────────────────────


def _session(bench: Bench) -> None:
    """A session that planned its statements for one row must not keep the plans for many."""
    size = bench.scale.sizes[-1]
    many = [model_id(i) for i in range(size) if i % 100][:_BULK_IDS]
    some = islice((model_id(i) for i in count() if i % 100), _BULK_IDS, None)
    with _copied(bench, bench.fleet(size, 1)) as database:

        def disabled(before: int) -> float:
            with Fleet(bench.config(database), pool_size=1) as fleet:
                fleet.count(fresh=True)
                for _ in range(before):
                    fleet.disable(next(some), reason="one")
                return seconds(lambda: fleet.disable(*many, reason="many"))

        def tidy() -> None:
            with bench.connect(database) as connection:
                connection.execute("UPDATE models SET active = TRUE WHERE NOT active")
                connection.execute("VACUUM models")
                connection.execute("CHECKPOINT")

        def used() -> float:
            tidy()
            return disabled(12)

        def fresh() -> float:
            tidy()
            return disabled(0)

        bench.say(f"{len(many):,} ids in one change, in used and in fresh sessions")
        times = interleave({"used": used, "fresh": fresh}, bench.scale.bulk_rounds)
    bench.report.add(
        Row(
            "bulk.session",
            f"disable of {len(many):,}, after 12 changes of one row",
            times["used"],
            "the same in a fresh session",
            times["fresh"],
            at_most(1.3),
        )
    )
