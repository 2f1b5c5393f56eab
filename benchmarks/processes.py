"""Whole processes: what a person or cron waits for, from the start of Python to its end.

The console script of modelctl and the floors are started alike: a stub, run by the same interpreter
with the same flags and the same environment, that imports a compiled module and calls its `run`.
All programs that were asked for take turns in the same rounds, into pipes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path

import modelctl
from benchmarks.harness import MissingError, Row, Spread, at_most, interleave
from benchmarks.servers import COUNT_KEY, Bench, configured, model_id
from modelctl import Fleet
from tests.servers import postgres_binary

_FLOORS = Path(__file__).with_name("floors")
_STUB = """import re
import sys
from {module} import run
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(run())
"""
_MODELS = 100
_SECONDS = 60.0


@dataclass(slots=True)
class _Program:
    """A command line, and what it must say so that its time counts."""

    command: Callable[[], list[str | Path]]
    environ: dict[str, str]
    says: str
    cpu: list[float] = field(default_factory=list)

    def run(self) -> float:
        """Run it once, return how long it took and remember what it used of a processor."""
        command = self.command()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(
            command, env=self.environ, capture_output=True, timeout=_SECONDS, check=False
        )
        took = time.perf_counter() - start
        if done.returncode or self.says not in done.stdout.decode():
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, command))} said {said}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return took


class _Programs:
    """Every program of this section, by name, prepared when it is first asked for."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._folder = bench.folder / "programs"
        self._folder.mkdir()
        self._modelctl = Path(sys.executable).with_name("modelctl")
        if not self._modelctl.exists():
            raise MissingError(f"no console script {self._modelctl}: install the project first")
        # Without variables of Python: one of them would forbid compiled modules.
        self._environ = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(bench.folder),
            "LC_ALL": "C.UTF-8",
        }
        self._numbers = iter(range(10**9))

    def get(self, name: str) -> _Program:
        """Return a program.

        Raises:
            MissingError: it is not there.
        """
        program: _Program = getattr(self, "_" + name.replace("-", "_"))()
        program.run()
        return program

    # ── Floors ──

    def _stub(self, name: str) -> Path:
        """A console script for a floor, whose module lies beside it as that of modelctl does."""
        module = f"floor_{name}"
        script = self._folder / name
        shutil.copy(_FLOORS / f"{name}.py", self._folder / f"{module}.py")
        script.write_text(_STUB.format(module=module))
        return script

    def _floor(self, name: str, *words: str, says: str, **environ: str) -> _Program:
        command: list[str | Path] = [sys.executable, self._stub(name), *words]
        return _Program(lambda: command, self._environ | environ, says)

    def _python(self) -> _Program:
        return _Program(lambda: [sys.executable, "-c", "pass"], self._environ, "")

    def _hello(self) -> _Program:
        return self._floor("hello", says="hello")

    def _hello_help(self) -> _Program:
        return self._floor("hello", "--help", says="Say hello")

    def _redis_get(self) -> _Program:
        self._counted_in_redis()
        url = self._bench.redis.url()
        return self._floor("redis_get", says=str(_MODELS), FLOOR_REDIS_URL=url)

    def _sqlite_select(self) -> _Program:
        file = self._counted_in_sqlite()
        return self._floor("sqlite_select", says=str(_MODELS), FLOOR_SQLITE_FILE=str(file))

    def _update_and_del(self) -> _Program:
        bench = self._bench
        database = bench.postgres.copy(bench.bare(bench.fleet(1000, 0)))
        url = bench.postgres.url(database).replace("postgresql:", "postgresql+psycopg:")
        environ = {"FLOOR_DATABASE_URL": url, "FLOOR_REDIS_URL": bench.redis.url(1)}
        program = self._floor("update_and_del", says="provider-", **environ)
        words = program.command()
        program.command = lambda: [*words, model_id(next(self._numbers) % 1000), "--reason", "why"]
        return program

    # ── modelctl ──

    def _product(self, *words: str, says: str, **environ: str) -> _Program:
        command: list[str | Path] = [sys.executable, self._modelctl, *words]
        environ = {f"MODELCTL_{name}": value for name, value in environ.items()}
        return _Program(lambda: command, self._environ | environ, says)

    def _help(self) -> _Program:
        return self._product("--help", says="count")

    def _version(self) -> _Program:
        return self._product("--version", says="modelctl")

    def _count_redis(self) -> _Program:
        database = self._counted_in_redis()
        urls = {"DATABASE_URL": database, "REDIS_URL": self._bench.redis.url(), "CACHE_TTL": "1h"}
        self._product("count", "-o", "json", says='"cache"', **urls).run()
        return self._product("count", says=f"{_MODELS}\n", **urls)

    def _count_sqlite(self) -> _Program:
        url = f"sqlite:///{self._counted_in_sqlite()}"
        self._product("count", "-o", "json", says='"cache"', DATABASE_URL=url, CACHE_TTL="1h").run()
        return self._product("count", says=f"{_MODELS}\n", DATABASE_URL=url, CACHE_TTL="1h")

    def _count_fresh(self) -> _Program:
        urls = {"DATABASE_URL": self._counted_in_redis(), "REDIS_URL": self._bench.redis.url(2)}
        return self._product("count", "--fresh", says=f"{_MODELS}\n", **urls)

    def _db_status(self) -> _Program:
        return self._product("db", "status", says="", DATABASE_URL=self._counted_in_redis())

    def _disable(self) -> _Program:
        bench = self._bench
        database = bench.postgres.url(bench.postgres.copy(bench.fleet(1000, 0)))
        urls = {"DATABASE_URL": database, "REDIS_URL": bench.redis.url(1)}
        program = self._product("disable", "--reason", "why", says="provider-", **urls)
        words = program.command()
        program.command = lambda: [*words, model_id(next(self._numbers) % 1000)]
        return program

    def _completion(self) -> _Program:
        words = {"_MODELCTL_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
        words["COMP_WORDS"] = f"modelctl disable {model_id(7)[:-4]}"
        program = self._product(
            says=model_id(7), DATABASE_URL=f"sqlite:///{self._counted_in_sqlite()}"
        )
        program.environ |= words
        try:
            program.run()
        except RuntimeError as exc:
            raise MissingError("modelctl does not complete ids (yet)") from exc
        return program

    # ── Peers ──

    def _script(self, name: str) -> Path:
        script = Path(sys.executable).with_name(name)
        if not script.exists():
            raise MissingError(f"no {name} beside this interpreter")
        return script

    def _rq_info(self) -> _Program:
        rq: list[str | Path] = [sys.executable, self._script("rq")]
        command = [*rq, "info", "--url", self._bench.redis.url(3)]
        return _Program(lambda: command, self._environ, "queues")

    def _alembic_current(self) -> _Program:
        folder = self._folder / "alembic"
        command: list[str | Path] = [sys.executable, self._script("alembic")]
        file = self._folder / "alembic.ini"
        subprocess.run(
            [*command, "-c", file, "init", folder],
            cwd=self._folder,
            capture_output=True,
            check=True,
        )
        url = self._counted_in_redis().replace("postgresql:", "postgresql+psycopg:")
        lines = file.read_text().splitlines()
        named = "sqlalchemy.url = "
        file.write_text(
            "\n".join(named + url if line.startswith(named) else line for line in lines)
        )
        return _Program(lambda: [*command, "-c", file, "current"], self._environ, "")

    def _psql(self) -> _Program:
        # That of the server's wheel: the one on a PATH may be a wrapper in another language.
        path = postgres_binary().path.with_name("psql")
        found = path if path.exists() else shutil.which("psql")
        if not found:
            raise MissingError("no psql")
        sql = "SELECT count(*) FROM models WHERE active"
        command: list[str | Path] = [found, "-X", "-At", "-c", sql, self._counted_in_redis()]
        return _Program(lambda: command, self._environ, str(_MODELS))

    def _redis_cli(self) -> _Program:
        self._counted_in_redis()
        found = shutil.which("redis-cli") or shutil.which("valkey-cli")
        if not found:
            raise MissingError("no redis-cli on PATH")
        command: list[str | Path] = [found, "-u", self._bench.redis.url(), "GET", COUNT_KEY]
        return _Program(lambda: command, self._environ, str(_MODELS))

    # ── What they work on ──

    def _counted_in_redis(self) -> str:
        """The URL of a database whose count is in Redis."""
        bench = self._bench
        database = bench.fleet(_MODELS, 0)
        with Fleet(bench.config(database)) as fleet:
            fleet.count()
        return bench.postgres.url(database)

    def _counted_in_sqlite(self) -> Path:
        """A SQLite database whose count is cached in it."""
        file = self._bench.folder / "models.db"
        with Fleet(configured(f"sqlite:///{file}")) as fleet:
            if not file.exists():
                fleet.upgrade()
                lines = (f'{{"id": "{model_id(i)}"}}' for i in range(_MODELS))
                fleet.import_models("\n".join(lines).encode())
            fleet.count()
        return file


@dataclass(frozen=True, slots=True)
class _Claim:
    """A program of modelctl, beside a floor or a peer."""

    part: str
    product: str
    what: str
    floor: str
    against: str
    limit: float | None = None
    stretch: bool = False


_CLAIMS = (
    _Claim("count", "count-redis", "count, in Redis", "redis-get", "typer, redis-py GET", 1.15),
    _Claim(
        "count", "count-sqlite", "count, in SQLite", "sqlite-select", "typer, sqlite3 SELECT", 1.25
    ),
    _Claim("count", "count-sqlite", "count, in SQLite", "hello", "typer hello", 1.35, stretch=True),
    _Claim("count", "count-redis", "count, in Redis", "hello", "typer hello", 1.35, stretch=True),
    _Claim(
        "disable",
        "disable",
        "disable, PostgreSQL and Redis",
        "update-and-del",
        "typer, SQLAlchemy UPDATE, redis-py DEL",
        1.10,
    ),
    _Claim("help", "help", "--help", "hello-help", "typer hello --help, without Rich", 1.25),
    _Claim("version", "version", "--version", "hello", "typer hello", 1.10),
    _Claim("completion", "completion", "completion of an id, SQLite", "hello", "typer hello", 1.25),
    _Claim("peers", "version", "--version", "python", "python -c pass"),
    _Claim("peers", "count-redis", "count, in Redis", "rq-info", "rq info"),
    _Claim("peers", "count-redis", "count, in Redis", "redis-cli", "redis-cli GET"),
    _Claim("peers", "count-fresh", "count --fresh, PostgreSQL", "psql", "psql -c SELECT count(*)"),
    _Claim("peers", "db-status", "db status, PostgreSQL", "alembic-current", "alembic current"),
)
PARTS = tuple(dict.fromkeys(claim.part for claim in _CLAIMS))


def measure(bench: Bench, parts: Iterable[str]) -> None:
    """Run the programs of these parts in turn."""
    asked = [claim for claim in _CLAIMS if claim.part in set(parts)]
    programs = _Programs(bench)
    ready: dict[str, _Program] = {}
    for claim in asked:
        for name in (claim.product, claim.floor):
            if name not in ready:
                try:
                    ready[name] = programs.get(name)
                except MissingError as exc:
                    bench.report.skip(f"processes.{claim.part}: {name}", exc)
    # They have run once now. Where modules cannot be stored each run would compile them again.
    if not Path(cache_from_source(modelctl.__file__)).exists():
        raise MissingError("modelctl is not compiled, and its folder cannot be written")
    for judged in (True, False):
        claims = [claim for claim in asked if (claim.limit is not None) is judged]
        rounds = bench.scale.process_rounds if judged else bench.scale.process_rounds // 3
        if claims:
            _in_turn(bench, claims, ready, rounds)


def _in_turn(bench: Bench, claims: list[_Claim], ready: dict[str, _Program], rounds: int) -> None:
    claims = [claim for claim in claims if {claim.product, claim.floor} <= ready.keys()]
    names = dict.fromkeys(name for claim in claims for name in (claim.product, claim.floor))
    bench.say(f"{len(names)} programs, {rounds} rounds: {', '.join(names)}")
    times = interleave({name: ready[name].run for name in names}, rounds)
    for claim in claims:
        target = None if claim.limit is None else at_most(claim.limit, stretch=claim.stretch)
        row = Row(
            f"processes.{claim.part}",
            claim.what,
            times[claim.product],
            claim.against,
            times[claim.floor],
            target,
        )
        # Less disturbed by others, but not what a person waits for.
        ours, theirs = (ready[name].cpu[-rounds:] for name in (claim.product, claim.floor))
        by_cpu = Spread.of(a / b for a, b in zip(ours, theirs, strict=True) if b)
        row.note = f"by processor time {by_cpu.median:.2f}"
        bench.report.add(row)
