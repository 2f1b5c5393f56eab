"""Clearing `db:leaderboard:*` among many other keys of a shared Redis."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from benchmarks.harness import Row, at_most, interleave, seconds
from benchmarks.servers import Bench, configured, model_id
from modelctl import Fleet

PARTS = ("cost", "longest", "memory", "shared", "bounded")
_PREFIX = "db:leaderboard:"
_LEADERBOARDS = 500
_BOUND = 2.0  # seconds that a change may sweep
_CHANGES = 10

_FILL = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
    redis.call('SET', ARGV[3] .. i, 'a value of a usual length, some 50 characters long')
end
"""


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Measure these parts, at every number of other keys where that matters."""
    asked = set(parts)
    database = bench.fleet(1000, 0)
    filled = 0
    with Fleet(bench.config(database)) as fleet:
        fleet.clear_cache()
        for keys in bench.scale.keys:
            if keys != bench.scale.keys[-1] and "cost" not in asked:
                continue
            _fill(bench, "other:", filled, keys)
            filled = keys
            bench.say(f"sweeps among {keys:,} other keys")
            if "cost" in asked:
                _cost(bench, fleet, keys)
        for part in PARTS[1:]:
            if part in asked:
                {
                    "longest": _longest,
                    "memory": _memory,
                    "shared": _shared,
                    "bounded": _bounded,
                }[part](bench, fleet, filled)
    with bench.redis_client() as client:
        client.flushdb()


def _fill(bench: Bench, prefix: str, first: int, end: int) -> None:
    with bench.redis.client() as client:
        for start in range(first, end, 50_000):
            client.eval(_FILL, 0, start, min(start + 50_000, end), prefix)


def _leaderboards(bench: Bench, number: int = _LEADERBOARDS) -> None:
    _fill(bench, _PREFIX, 0, number)


def _left(bench: Bench) -> int:
    """How many of the usual leaderboard keys are there."""
    names = [f"{_PREFIX}{number}" for number in range(_LEADERBOARDS)]
    return int(bench.redis.ask("EXISTS", *names))


def _page(bench: Bench, fleet: Fleet) -> int:
    """The COUNT of the SCANs that modelctl sends; the floor uses the same."""
    for _, words in _slowlog(bench, fleet):
        if words[0] == "SCAN":
            return int(words[words.index("COUNT") + 1])
    raise RuntimeError("modelctl sends no SCAN")


def _cost(bench: Bench, fleet: Fleet, keys: int) -> None:
    page = _page(bench, fleet)
    with bench.redis_client() as client:

        def bare() -> None:
            cursor = 0
            while True:
                cursor, found = client.scan(cursor, match=f"{_PREFIX}*", count=page)
                if found:
                    client.unlink(*found)
                if not cursor:
                    return

        def timed(work: Any) -> float:
            _leaderboards(bench)
            took = seconds(work)
            if _left(bench):
                raise RuntimeError("something is left of the leaderboard")
            return took

        times = interleave(
            {"product": lambda: timed(fleet.clear_cache), "floor": lambda: timed(bare)},
            bench.scale.block_rounds,
            patience=bench.scale.patience,
        )
    bench.report.add(
        Row(
            "sweep.cost",
            f"invalidation and sweep, {keys:,} other keys",
            times["product"],
            f"SCAN COUNT {page:,}, UNLINK",
            times["floor"],
            at_most(1.2) if keys == bench.scale.keys[-1] else None,
            curve="sweep",
            size=keys,
        )
    )


def _slowlog(bench: Bench, fleet: Fleet) -> list[tuple[float, list[str]]]:
    """Sweep, and return every command with how long it kept the server busy (seconds)."""
    _leaderboards(bench)
    bench.redis.ask("CONFIG", "SET", "slowlog-max-len", 100_000)
    bench.redis.ask("CONFIG", "SET", "slowlog-log-slower-than", 0)
    bench.redis.ask("SLOWLOG", "RESET")
    fleet.clear_cache()
    entries = bench.redis.ask("SLOWLOG", "GET", -1)
    bench.redis.ask("CONFIG", "SET", "slowlog-log-slower-than", -1)
    bench.redis.ask("SLOWLOG", "RESET")
    # An entry: id, time, microseconds, words, and who it was.
    commands = [(entry[2] / 1e6, list(map(str, entry[3]))) for entry in entries]
    return [each for each in commands if each[1][0] not in ("CONFIG", "SLOWLOG")]


def _longest(bench: Bench, fleet: Fleet, keys: int) -> None:
    longest = [max(_slowlog(bench, fleet))[0] for _ in range(bench.scale.block_rounds // 2)]
    bench.report.add(
        Row(
            "sweep.longest",
            f"longest single command of a sweep, {keys:,} other keys (ms)",
            [each * 1e3 for each in longest],
            target=at_most(5),
            unit="number",
            note=f"the worst of {len(longest)} sweeps: {max(longest) * 1e3:.2f} ms",
        )
    )


def _memory(bench: Bench, _: Fleet, keys: int) -> None:
    url = bench.postgres.url(bench.fleet(1000, 0))
    command = [sys.executable, "-m", "benchmarks.child", "sweep", url, bench.redis.url()]
    grown = []
    matching = keys // 10
    for _round in range(bench.scale.bulk_rounds):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            process.stdout.readline()
            _leaderboards(bench, matching)
            said, _said = process.communicate("go\n")
        grown.append(json.loads(said)["grown"])
    bench.report.add(
        Row(
            "sweep.memory",
            f"growth of the process in a sweep of {matching:,} among {keys:,}",
            grown,
            target=at_most(2),
            unit="MiB",
        )
    )


def _shared(bench: Bench, fleet: Fleet, keys: int) -> None:
    def scans() -> int:
        with bench.redis.client() as client:
            stats: Any = client.info("commandstats")
        return int(stats.get("cmdstat_scan", {}).get("calls", 0))

    before = scans()
    fleet.clear_cache()
    alone = scans() - before

    def counted(work: Callable[[], object]) -> float:
        before = scans()
        work()
        return (scans() - before) / alone

    def disable(number: int) -> object:
        return fleet.disable(model_id(number), reason="one of many")

    def later() -> object:
        """What is delivered once more 15 seconds after a change; here at once."""
        bench.postgres.execute(
            "UPDATE modelctl.modelctl_outbox SET due = now()", bench.fleet(1000, 0)
        )
        return fleet.drain()

    in_a_row, at_once, settled = [], [], []
    with ThreadPoolExecutor(_CHANGES) as pool:

        def one_by_one(first: int) -> None:
            for number in range(first, first + _CHANGES):
                disable(number)

        def together(first: int) -> None:
            list(pool.map(disable, range(first, first + _CHANGES)))

        for first in range(0, 6 * _CHANGES, 2 * _CHANGES):
            later()
            in_a_row.append(counted(partial(one_by_one, first)))
            settled.append(counted(later))
            at_once.append(counted(partial(together, first + _CHANGES)))
    among = f"{keys:,} other keys"
    for what, sweeps, target in (
        (f"sweeps at once of {_CHANGES} changes in a row, {among}", in_a_row, None),
        (f"later sweeps of {_CHANGES} changes in a row, {among}", settled, at_most(1)),
        (f"sweeps of {_CHANGES} threads that change at the same time, {among}", at_once, None),
    ):
        bench.report.add(Row("sweep.shared", what, sweeps, target=target, unit="number"))


def _bounded(bench: Bench, fleet: Fleet, keys: int) -> None:
    """A Redis so far away that a sweep would take four seconds."""
    pages = keys // _page(bench, fleet) + 1
    took, queued, unswept, wrong = [], [], [], []
    database = bench.postgres.url(bench.fleet(1000, 0))
    with _far_away(bench.redis.port, 2 * _BOUND / pages) as port:
        url = f"redis://127.0.0.1:{port}/0"
        with Fleet(configured(database, url)) as far:
            far.on_warning = lambda _: None
            far.count()
            for number in range(900, 902):
                _leaderboards(bench)
                start = time.perf_counter()
                result = far.disable(model_id(number), reason="far away")
                took.append(time.perf_counter() - start)
                queued.append(result.cache == "queued")
                unswept.append(_left(bench))
                wrong.append(fleet.count().active != fleet.verify().database)
                fleet.drain()
    left = _left(bench)
    what = f"a change while a sweep takes {2 * _BOUND:g} s"
    group = "sweep.bounded"
    bench.report.add(
        Row(
            group,
            what,
            took,
            target=at_most(_BOUND + 0.2),
            note=f"said 'queued' {sum(queued):g} of {len(queued)} times",
        ),
        Row(group, "wrong counts right after it", [sum(wrong)], target=at_most(0), unit="number"),
        Row(
            group,
            "leaderboard keys left after the next count or drain",
            [left],
            target=at_most(0),
            unit="number",
            note=f"right after the change {max(unswept)} were",
        ),
    )


@contextmanager
def _far_away(port: int, delay: float) -> Iterator[int]:
    """A way to the server on which every answer takes so long (seconds)."""

    def carry(source: socket.socket, sink: socket.socket, wait: float) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(wait)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for how in ((near, far, 0.0), (far, near, delay)):
                    threading.Thread(target=carry, args=how, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
