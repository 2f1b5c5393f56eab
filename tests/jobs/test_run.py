"""`run` drains, recovers and measures in one process, outlives its servers, and stops at a signal."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from subprocess import Popen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelctl.admin import jobs
from tests import ROOT, commands, fleets
from tests.commands import Cli
from tests.servers import Postgres, Redis
from tests.waiting import at_most, until
from tests.world import World


@contextmanager
def running(url: str, *options: str, **settings: object) -> Iterator[Popen[bytes]]:
    """Run `run` in a process of its own until the block ends."""
    environ = os.environ | fleets.environ(url, **settings)
    with commands.start("run", *options, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def stopped(process: Popen[bytes], code: int = 0, by: int = signal.SIGTERM) -> tuple[str, str]:
    """Stop it; return what it printed since, on stdout and stderr."""
    process.send_signal(by)
    with at_most(8):
        out, err = process.communicate(timeout=commands.SECONDS)
    result = commands.checked(process.returncode, out, err)
    assert result.code == code, result
    return result.out, result.err


def line(stream: object) -> str:
    """Wait for the next line."""
    return str(stream.readline().decode())  # type: ignore[attr-defined]


EVENTS_OF_A = "SELECT id FROM modelctl_events WHERE model_id = 'a'"


def test_all_jobs(fleet_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Raw SQL reaches the count, due models come back, old events go, the metrics are whole; SIGTERM is 0."""
    redis_url = "" if fleets.is_sqlite(fleet_url) else request.getfixturevalue("redis_url")
    file = tmp_path / "modelctl.prom"
    with World(fleet_url, redis_url) as world:
        fleets.put(fleet_url, "a", "b", "c")
        fleets.put_off(fleet_url, "due", failed=2 * fleets.HOUR)
        old = f"('a', 'edited', {fleets.ago(fleet_url, 40 * 24 * fleets.HOUR)})"
        world.sql(f"INSERT INTO modelctl_events (model_id, event, at) VALUES {old}, {old}")
        settings = {"history_keep": "30d"} | ({"redis_url": redis_url} if redis_url else {})
        options = ("--recover-every", "1s", "--metrics", str(file))
        with running(fleet_url, *options, **settings) as process:
            assert line(process.stdout) == "due\n"
            assert world.fleet.count().active == 4
            world.sql("UPDATE models SET active = FALSE WHERE id = 'a'")
            until(lambda: world.fleet.count().active == 3)
            fleets.put_off(fleet_url, "later", failed=2 * fleets.HOUR)
            assert line(process.stdout) == "later\n"
            until(lambda: len(fleets.sql(fleet_url, EVENTS_OF_A)) == 1)
            until(file.exists)
            names = {family.name for family in text_string_to_metric_families(file.read_text())}
            assert "modelctl_active_models" in names
            assert stopped(process) == ("", "")
        assert world.statuses["due"] == "active"
        assert not world.fleet.recover().busy
        assert [path.name for path in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)])
def test_other_signals(sqlite_database: str, tmp_path: Path, by: int, code: int) -> None:
    """Ctrl-C exits 130 as everywhere; SIGHUP ends it as it ends the other commands that follow."""
    file = tmp_path / "file"
    fleets.put(sqlite_database, "a")
    with running(sqlite_database, "--metrics", str(file)) as process:
        until(file.exists)
        out, err = stopped(process, code, by)
    assert (out, err) == ("", "error: Interrupted; what was not committed is not done.\n")


def test_servers_that_go_away(
    pg_database: str, postgres: Postgres, redis_url: str, redis_server: Redis
) -> None:
    """A server that is away gets one line when it goes and one when it is back; then work goes on."""
    with World(pg_database, redis_url) as world:
        fleets.put(pg_database, "a", "b")
        options = ("--recover-every", "1s")
        with running(pg_database, *options, redis_url=redis_url) as process:
            until(lambda: world.queue[0] == 0)
            world.disconnect()
            postgres.kill()
            assert line(process.stderr).startswith("warning: ")
            fails_again(process)
            postgres.start()
            assert line(process.stderr) == "the database is back\n"
            world.fleet.count()
            redis_server.stop()
            world.sql("UPDATE models SET active = FALSE WHERE id = 'a'")
            said = line(process.stderr)
            assert "trying again" in said or "queued" in said
            redis_server.start()
            until(lambda: world.queue[0] == 0)
            assert world.fleet.count().active == 1
            out, err = stopped(process)
    assert out == ""
    assert "the database" not in err
    assert len(err.splitlines()) <= 3, err


def fails_again(process: Popen[bytes]) -> None:
    """Let some attempts fail: nothing is said about them, as the next line shows."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd(pg_database: str, postgres: Postgres, tmp_path: Path, kind: str) -> None:
    """systemd hears READY=1 also while the database is away, WATCHDOG=1, the status, and STOPPING=1."""
    name = str(tmp_path / "notify") if kind == "path" else f"@modelctl-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if kind == "abstract" else name)
        manager.settimeout(commands.SECONDS)
        heard: list[str] = []

        def hear(what: str) -> str:
            """Wait for a message with this word."""
            while True:
                heard.append(manager.recv(10000).decode())
                if what in heard[-1]:
                    return heard[-1]

        postgres.stop()
        told = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"}
        environ = os.environ | fleets.environ(pg_database) | told
        with commands.start("run", env=environ) as process:
            try:
                ready = hear("READY=1")
                assert len(ready.split("STATUS=")[1]) > len("all is well"), ready
                hear("WATCHDOG=1")
                postgres.start()
                assert hear("STATUS=all is well")
                stopped(process)
                assert hear("STOPPING=1") == "STOPPING=1"
                assert heard.count(ready) == 1
            finally:
                process.kill()


def test_slow_probes(pg_database: str, redis_url: str, tmp_path: Path) -> None:
    """While a probe is slow, draining goes on; SIGTERM ends the probe, its claim, and the process."""
    config = tmp_path / "config.toml"
    script = "echo $$ ${NOTIFY_SOCKET-unset} > $0.new; mv $0.new $0; sleep 300"
    asked = tmp_path / "asked"
    config.write_text(
        f"[probe.p]\ntimeout = '500s'\ncommand = ['sh', '-c', '{script}', '{asked}']\n"
    )
    settings = {"config": config, "redis_url": redis_url}
    with World(pg_database, redis_url) as world:
        fleets.put(pg_database, "a", "b")
        fleets.put_off(pg_database, "slow", failed=2 * fleets.HOUR, provider="p")
        with running(pg_database, "--probe", **settings) as process:
            until(asked.exists)
            pid, notify_socket = asked.read_text().split()
            assert notify_socket == "unset"
            assert world.fleet.count().active == 2
            world.sql("UPDATE models SET active = FALSE WHERE id = 'a'")
            until(lambda: world.fleet.count().active == 1)
            assert stopped(process) == ("", "")
        until(lambda: not Path(f"/proc/{pid}").exists())
        assert world.statuses["slow"] == "auto-disabled"
        assert world.sql("SELECT count(*) FROM modelctl_holds") == [(0,)]
        assert not world.fleet.recover().busy


def test_notifications(sqlite_database: str, tmp_path: Path) -> None:
    """Events reach the receiver; one that fails is said once, and does not stop the others' work."""
    got, fails = tmp_path / "got", tmp_path / "fails"
    script = f"if [ -e {fails} ]; then exit 1; fi; cat >> {got}"
    config = tmp_path / "config.toml"
    config.write_text(f"[notify]\nevents = ['disabled']\ncommand = ['sh', '-c', '{script}']\n")
    fleets.put(sqlite_database, "a", "b")
    with (
        fleets.opened(sqlite_database) as fleet,
        running(sqlite_database, config=config) as process,
    ):
        assert line(process.stderr).startswith("notifications begin")
        fails.touch()
        fleet.disable("a")
        assert "did not accept a message: the command failed: exit 1" in line(process.stderr)
        fails.unlink()
        assert line(process.stderr) == "the receiver of notifications is back\n"
        assert '"model_id": "a"' in got.read_text()
        assert stopped(process) == ("", "")


def test_a_hanging_receiver(sqlite_database: str, tmp_path: Path) -> None:
    """A command of [notify] that hangs ends with the process."""
    asked, config = tmp_path / "asked", tmp_path / "config.toml"
    script = "echo $$ > $0.new; mv $0.new $0; sleep 300"
    config.write_text(
        "[notify]\nevents = ['disabled']\ntimeout = '60s'\n"
        f"command = ['sh', '-c', '{script}', '{asked}']\n"
    )
    fleets.put(sqlite_database, "a")
    with (
        fleets.opened(sqlite_database) as fleet,
        running(sqlite_database, config=config) as process,
    ):
        assert line(process.stderr).startswith("notifications begin")
        fleet.disable("a")
        until(asked.exists)
        assert stopped(process) == ("", "")
    until(lambda: not Path(f"/proc/{asked.read_text().strip()}").exists())


def test_two_of_them(fleet_url: str, request: pytest.FixtureRequest) -> None:
    """Two processes on one fleet: each model comes back once, and the count stays right."""
    redis_url = "" if fleets.is_sqlite(fleet_url) else request.getfixturevalue("redis_url")
    settings = {"redis_url": redis_url} if redis_url else {}
    ids = [f"m{number}" for number in range(60)]
    options = ("--recover-every", "1s")
    with (
        World(fleet_url, redis_url) as world,
        running(fleet_url, *options, **settings) as one,
        running(fleet_url, *options, **settings) as other,
    ):
        for start in range(0, 60, 20):
            some = ids[start : start + 20]
            fleets.put_off(fleet_url, *some, failed=2 * fleets.HOUR)
            until(lambda n=start + 20: world.fleet.count().active == n)  # type: ignore[misc]
        lines = [line for process in (one, other) for line in stopped(process)]
        # A run that has brought models back also says so, although it is stopped then.
        assert sorted(lines[0].split() + lines[2].split()) == sorted(ids)
        assert (lines[1], lines[3]) == ("", "")
        recovered = [model_id for model_id, event in world.events if event == "recovered"]
        assert sorted(recovered) == sorted(ids)


def test_a_database_that_hangs(pg_database: str, postgres: Postgres, tmp_path: Path) -> None:
    """SIGTERM ends it within seconds also while it waits for a database that does not answer."""
    file = tmp_path / "file"
    fleets.put(pg_database, "a")
    with running(pg_database, "--metrics", str(file)) as process:
        until(file.exists)
        postgres.pause()
        fails_again(process)
        out, _ = stopped(process)
    assert out == ""


def test_what_is_wrong_at_the_start(tool: Cli, tmp_path: Path) -> None:
    """What trying again does not mend ends it at once, with the usual exit code."""
    tool("run", "--recover-every", "0s").failed(2, "at least 1s")
    tool("run", "--recover-every", "soon").failed(2, "'soon' is not a duration")
    tool("run", "--metrics", str(tmp_path)).failed(2, "it is a folder")
    tool("run", "--probe").failed(3, "no probe is configured")
    tool("run", health_threshold="x").failed(3)


def test_no_schema(empty_pg: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database without modelctl's tables is exit 7."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    cli("run").failed(7, "db upgrade")


def test_redis_refuses(pg_database: str, tool: Cli) -> None:
    """A wrong password of Redis is exit 3 at once, also while nothing is queued for it."""
    with Redis(password="right") as server:
        url = server.url().replace("right", "wrong")
        tool("run", database_url=pg_database, redis_url=url).failed(3)


def test_memory_stays_constant(sqlite_database: str, tmp_path: Path) -> None:
    """However often the jobs have worked, they need no more memory."""
    with fleets.opened(sqlite_database) as fleet:
        fleets.put(sqlite_database, "a", "b")
        all_jobs = [
            jobs._draining(fleet),
            jobs._recovering(fleet, 1, probe=False),
            jobs._measuring(fleet, str(tmp_path / "metrics")),
        ]

        def needed_after(passes: int) -> int:
            for job in all_jobs * passes:
                job.work(job.progress)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            needed = [needed_after(10) for _ in range(4)]
            # What else the process of the tests does may need more, but not each time.
            assert min(after - before for before, after in pairwise(needed)) < 10 * 50, needed
        finally:
            tracemalloc.stop()


def test_a_job_that_hangs(tmp_path: Path) -> None:
    """A job that makes no progress against all deadlines ends the process, which is started anew."""
    code = (
        "import threading\n"
        "from modelctl.jobs import runner\n"
        "from modelctl.signals import Signals\n"
        "from modelctl.jobs.schedule import Schedule\n"
        "runner._HANGS_AFTER_SECONDS, runner._BEAT_SECONDS = 0.3, 0.05\n"
        "def hang(progress):\n"
        "    for _ in range(20): progress(1) or threading.Event().wait(0.05)\n"
        "    print('hangs now', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "jobs = [runner.Job(name, work, Schedule(0.1)) for name, work in"
        " (('recover', hang), ('drain', lambda _: None))]\n"
        "runner.Runner(jobs[0], jobs[1:], troubles=runner.Troubles(print), patience=0,\n"
        "    systemd=__import__('modelctl.jobs.systemd').jobs.systemd.Systemd({}), describe=str).run(Signals())\n"
    )
    with at_most(20):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (1, "hangs now\n"), done
    assert done.stderr == "error: recover hangs; the process ends\n"
