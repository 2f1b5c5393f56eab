"""`recover` brings models back when their cooldown is over, and says why the others wait."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from modelctl import crash_points
from modelctl.database import bulk
from modelctl.database.locks import RECOVER_LOCK
from tests import ROOT
from tests.commands import Cli, Result, run, seen
from tests.faults.crashing import Call, Job, Nursery
from tests.fleets import (
    ACTIVE,
    AUTO,
    DISABLED,
    HOUR,
    Ago,
    ago,
    alter,
    environ,
    everything,
    is_sqlite,
    opened,
    put,
    put_off,
    sql,
    sql_without_events,
    status,
)
from tests.recovery.outcomes import Fail, listed, story, why
from tests.servers import Redis

# ── Ejected too often ───────────────────────────────────────────────────────────────────────────


def test_ejected_too_often_waits_for_a_person(fleet_url: str, tool: Cli, succeed: Fail) -> None:
    """Neither time nor a success brings it back, every output says so, and enable frees it."""
    put_off(fleet_url, "twice", failed=99 * HOUR, ejections=2)
    put_off(fleet_url, "once", failed=99 * HOUR, ejections=1)
    most = {"recovery_max_ejections": 2}
    with opened(fleet_url, **most) as fleet:
        succeed(fleet, "twice", "once")
        assert status(fleet, "twice", "once") == [AUTO, ACTIVE]
        model = fleet.show("twice")
        assert (model.success_count, model.retry_at, model.seconds_left) == (1, None, None)
    for more in ([], ["--cooldown", "0s"], ["--limit", "0"]):
        assert tool("recover", *more, **most).out == ""
    for words in (["--dry-run"], []):
        told = tool("recover", *words, "-o", "json", **most).json
        assert told["recovered"] == []
        assert told["waiting"] == [
            {"id": "twice", "retry_at": None, "seconds_left": None, "why": "person"}
        ]
        line = tool("recover", *words, "-o", "tsv", **most).out
        assert line == "twice\twaiting\t\tperson\t\n"
    assert "off until a person enables them: twice" in tool("doctor", **most).out
    assert listed(tool, **most)["twice"]["retry_at"] == ""
    assert tool("enable", "twice", **most).code == 0
    model = tool("show", "twice", "-o", "json", **most).json
    assert (model["status"], model["ejections"]) == ("active", 0)


def test_ejected_by_the_rule_until_a_person_comes(fleet_url: str, fail: Fail) -> None:
    """With two allowed ejections the second in a row waits for a person; trust starts the count again."""
    put(fleet_url, *"ab")
    with opened(fleet_url, recovery_max_ejections=2) as fleet:
        fail(fleet, *"ab")
        alter(fleet_url, *"ab", last_failure_at=Ago(2 * HOUR))
        assert sorted(fleet.recover().recovered) == ["a", "b"]
        alter(fleet_url, "a", recovered_at=Ago(2 * HOUR))
        fleet.record_success("a")
        fail(fleet, *"ab")
        alter(fleet_url, *"ab", last_failure_at=Ago(2 * HOUR))
        assert why(fleet) == {"a": "due", "b": "person"}
        assert fleet.recover().recovered == ("a",)
        fleet.enable("b")
        fail(fleet, "b")
        alter(fleet_url, "b", last_failure_at=Ago(2 * HOUR))
        assert fleet.recover().recovered == ("b",)


# ── recover ─────────────────────────────────────────────────────────────────────────────────────


def test_the_longest_waiting_come_first(fleet_url: str, tool: Cli) -> None:
    """--limit, else the configured limit, is how many come back at most; 0 is no limit."""
    for hours, model_id in enumerate("edcba", 2):
        put_off(fleet_url, model_id, failed=hours * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(4.5 * HOUR))
    limit = {"recovery_limit": 2}
    told = tool("recover", "--dry-run", "-o", "json", **limit).json
    assert told["recovered"] == ["a", "timed"]
    assert [(w["id"], w["why"]) for w in told["waiting"]] == [(i, "limit") for i in "bcde"]
    assert tool("recover", **limit).lines == ["a", "timed"]
    assert tool("recover", "--limit", "1", **limit).lines == ["b"]
    assert tool("recover", "--limit", "0", **limit).lines == ["c", "d", "e"]
    tool("recover", "--limit", "-1").failed(2)
    tool("recover", "--limit", "x").failed(2)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_a_limit_is_kept_in_chunks(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Whatever the size of a chunk, a limit lets those through that waited longest."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    ids = [f"m{number}" for number in range(8)]
    for number, model_id in reversed([*enumerate(ids)]):
        put_off(fleet_url, model_id, failed=(20 - number) * HOUR)
    with opened(fleet_url) as fleet:
        assert fleet.recover(limit=3).recovered == tuple(ids[:3])
        assert fleet.recover(dry_run=True).recovered == tuple(ids[3:])
        assert sorted(fleet.recover().recovered) == ids[3:]
        assert [e.model_id for e in fleet.events(limit=8)][5:] == ids[2::-1]


def test_a_dry_run_has_a_reason_for_every_model(fleet_url: str, tool: Cli) -> None:
    """A dry run has one line for each model that is off by the rule or for a time, and is right."""
    put_off(fleet_url, "due", failed=9 * HOUR)
    put_off(fleet_url, "beyond", failed=2 * HOUR)
    put_off(fleet_url, "fresh", failed=HOUR / 2)
    put_off(fleet_url, "often", failed=9 * HOUR, ejections=7)
    put_off(fleet_url, "held", failed=9 * HOUR, provider="p")
    put(fleet_url, *("timed", "for good"), active=False)
    put(fleet_url, "on")
    alter(fleet_url, "timed", disabled_until=Ago(-HOUR / 2))
    tool("pause", "--for", "1h", "--provider", "p")
    rule = {"recovery_max_ejections": 7, "recovery_limit": 1}
    before = everything(fleet_url)
    table = tool("recover", "--dry-run", "-o", "table", **rule).lines[2:8]
    lines = [re.split("  +", line.strip()) for line in table]
    assert everything(fleet_url) == before
    assert {row[0]: (row[1], row[3]) for row in lines} == {
        "due": ("would recover", "its time off is over"),
        "beyond": ("waiting", "due, but beyond the limit of one run"),
        "fresh": ("waiting", "its cooldown ends in 30 min"),
        "timed": ("waiting", "switched off for a time that ends in 30 min"),
        "held": ("waiting", "automatic switching is paused"),
        "often": ("waiting", "ejected too often: waits for a person (modelctl enable)"),
    }
    assert len(lines) == 6
    told = tool("recover", "--dry-run", "-o", "json", **rule).json
    assert {w["id"]: w["why"] for w in told["waiting"]} == {
        "beyond": "limit",
        "fresh": "cooldown",
        "timed": "timed",
        "held": "paused",
        "often": "person",
    }
    done = tool("recover", "-o", "json", **rule).json
    assert (done["recovered"], [w["id"] for w in done["waiting"]]) == (
        told["recovered"],
        [w["id"] for w in told["waiting"]],
    )


def test_silent_unless_something_came_back(fleet_url: str) -> None:
    """In a pipe nothing is printed if nothing came back, and else one line for each model."""
    put_off(fleet_url, "fresh")
    put_off(fleet_url, "often", failed=9 * HOUR, ejections=9)
    variables = environ(fleet_url, recovery_max_ejections=9)
    assert run("recover", **variables) == Result(0, "", "")
    put_off(fleet_url, "one", "the other", failed=9 * HOUR)
    assert run("recover", "--actor", "cron", **variables) == Result(0, "one\nthe other\n", "")
    with opened(fleet_url) as fleet:
        assert [(e.event, e.actor) for e in fleet.events(limit=2)] == [("recovered", "cron")] * 2


def test_silent_while_paused(fleet_url: str, tool: Cli) -> None:
    """A pause is no reason for cron to send a mail."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    tool("pause", "--for", "1h")
    assert tool("recover") == Result(0, "", "")


def test_an_error_is_one_line_and_a_hint(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database is away, cron gets one line, a hint and a non-zero exit code."""
    urls = {
        f"sqlite:///{tmp_path}/gone.db": 7,
        "postgresql://nobody@127.0.0.1:1/none": 5,
    }
    for url, code in urls.items():
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        result = cli("recover")
        result.failed(code)
        error, hint = result.err.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")


def test_a_second_run_leaves_it_to_the_first(
    fleet_url: str, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two concurrent runs one works; the other exits 0 and recovers nothing."""
    put_off(fleet_url, *"abc", failed=9 * HOUR)
    stopped, go = threading.Event(), threading.Event()

    def stop(name: str) -> None:
        if name == "before-commit" and threading.current_thread() is not threading.main_thread():
            stopped.set()
            assert go.wait(20)

    monkeypatch.setattr(crash_points, "hook", stop)
    with opened(fleet_url) as fleet, ThreadPoolExecutor(1) as pool:
        first = pool.submit(fleet.recover)
        assert stopped.wait(20)
        if is_sqlite(fleet_url):  # a file has one writer: the other one waits, and finds nothing
            threading.Timer(0.3, go.set).start()
            assert tool("recover") == Result(0, "", "")
        else:
            assert tool("recover") == Result(0, "", "another recover is running\n")
            told = tool("recover", "-o", "json")
            assert (told.code, told.json["busy"], told.json["recovered"]) == (0, True, [])
            go.set()
        assert first.result().recovered == ("a", "b", "c")
        assert story(fleet) == ["recovered"] * 3


def test_a_run_that_loses_the_lock_says_what_it_did(
    pg_cleared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another run comes in between two chunks, the rest is left to it."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    put_off(pg_cleared, *"abcde", failed=9 * HOUR)
    with opened(pg_cleared) as fleet, psycopg.connect(pg_cleared) as other:

        def come_in_between(done: int) -> None:
            other.execute("SELECT pg_advisory_xact_lock(%s)", [RECOVER_LOCK])

        result = fleet.recover(progress=come_in_between)
        assert (len(result.recovered), result.busy) == (2, False)
        left = sorted({*"abcde"} - {*result.recovered})
        assert sorted(w.id for w in result.waiting) == left
        assert fleet.last_recover().at is None
        other.rollback()
        assert sorted(fleet.recover().recovered) == left
        assert fleet.last_recover().at is not None


def fill(url: str, count: int, name: str = "some-provider/model") -> None:
    """Add *count* models that are due, in one statement."""
    numbers = (
        "(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n"
        f" WHERE n < {count}) SELECT n FROM n) AS numbers"
    )
    sql_without_events(
        url,
        "INSERT INTO models (id, active, auto_disabled, consecutive_failures, ejections,"
        f" last_failure_at) SELECT '{name}-' || n, false, true, 5, 1, {ago(url, 9 * HOUR)}"
        f" FROM {numbers}",
    )


def test_twenty_thousand_in_chunks(fleet_url: str, tool: Cli) -> None:
    """All come back in one run, each with one event, in several transactions."""
    fill(fleet_url, 20_000)
    result = tool("recover")
    assert (result.code, result.err) == (0, "")
    assert len(set(result.lines)) == len(result.lines) == 20_000
    assert sql(fleet_url, "SELECT count(*), count(DISTINCT model_id) FROM modelctl_events") == [
        (20_000, 20_000)
    ]
    assert tool("count", "--fresh").out == "20000\n"


def test_many_small_chunks(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is one transaction, and progress is reported after each."""
    monkeypatch.setattr(bulk, "CHUNK", 7)
    fill(fleet_url, 50)
    commits: list[str] = []
    told: list[int] = []
    monkeypatch.setattr(crash_points, "hook", commits.append)
    with opened(fleet_url) as fleet:
        result = fleet.recover(progress=told.append)
    assert len(set(result.recovered)) == 50
    assert told == [7, 14, 21, 28, 35, 42, 49, 50]
    # And one more, which remembers that the run is through.
    assert commits.count("before-commit") == 9
    assert commits.count("after-commit") == 1


def test_one_invalidation_for_all_chunks(
    pg_database: str, redis_server: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks a run has, the cached count is deleted once, at its end."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    fill(pg_database, 9)
    put(pg_database, "on")
    with opened(pg_database, redis_url=redis_url) as fleet:
        fleet.drain()
        assert fleet.count().active == 1
        reached: list[str] = []
        monkeypatch.setattr(crash_points, "hook", reached.append)
        assert len(fleet.recover().recovered) == 9
        assert reached.count("after-del") == 1
        assert reached.index("after-del") > reached.index("after-commit")
        monkeypatch.setattr(crash_points, "hook", None)
        assert fleet.count().active == 10


MEMORY = """
import sys
from pathlib import Path
from modelctl.cli import main as cli
code = cli.main(sys.argv[1:])
assert code == 0, code
sys.stderr.write(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak of memory")
@pytest.mark.parametrize(
    "words", [["-o", "tsv"], ["--limit", "30000", "-o", "json"]], ids=["tsv", "json"]
)
def test_memory_does_not_grow_with_the_fleet(
    sqlite_database: str, tmp_path: Path, words: list[str]
) -> None:
    """Sixty thousand due models take less than 16 MiB more than a thousand do."""
    peaks = []
    file = Path(sqlite_database.removeprefix("sqlite:///"))
    empty = file.read_bytes()
    for count in (1000, 60_000):
        for rest in tmp_path.glob("fleet.db*"):
            rest.unlink()
        file.write_bytes(empty)
        fill(sqlite_database, count)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, "recover", *words],
            cwd=ROOT,
            env=os.environ | environ(sqlite_database),
            capture_output=True,
            check=True,
        )
        assert done.stdout.count(b"some-provider/model-") == count
        if "json" in words:
            told = json.loads(done.stdout)
            assert len(told["recovered"]) == min(count, 30_000)
            assert len(told["waiting"]) == max(0, count - 30_000)
        peaks.append(int(done.stderr) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks


@pytest.mark.parametrize(
    ("count", "words"), [(8000, []), (5000, ["--dry-run", "--limit", "1", "-o", "json"])]
)
def test_a_full_temporary_folder(pg_cleared: str, count: int, words: list[str]) -> None:
    """What is longer than the memory and cannot be kept is an error that says where and what to do."""
    fill(pg_cleared, count, name="x" * 180)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = run("recover", *words, before=full, **environ(pg_cleared))
    said = result.json["error"] if words else {"message": result.err, "hint": result.err}
    assert (result.code, "cannot write to /" in said["message"]) == (1, True)
    assert "TMPDIR" in said["hint"]
    assert len(result.err.splitlines()) == (0 if words else 2)
    with opened(pg_cleared) as fleet:
        assert fleet.count().active == 0


@pytest.mark.parametrize("arrival", [1, 2, 3, 4, 5])
def test_killed_in_the_middle(fleet_url: str, nursery: Nursery, arrival: int) -> None:
    """Killed before any commit, or after the last chunk, a run loses nothing, and the next goes on."""
    put_off(fleet_url, *"abcde", failed=9 * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(HOUR))
    put(fleet_url, "for good", active=False)
    point = ("before-commit", arrival) if arrival < 5 else ("after-commit", 1)
    job = Job(fleet_url, "", (Call("recover"),), point[0], point[1], chunk=2)
    assert nursery.run(job).killed
    # Three chunks of two, then it is remembered that it is through, and then the invalidation.
    back = {1: 0, 2: 2, 3: 4, 4: 6, 5: 6}[arrival]
    with opened(fleet_url) as fleet:
        assert fleet.count().active == back
        assert story(fleet) == ["recovered"] * back
        assert (fleet.last_recover().at is None) == (arrival < 5)
        assert len(fleet.recover().recovered) == 6 - back
        assert story(fleet) == ["recovered"] * 6
        assert {e.model_id for e in fleet.events()} == {*"abcde", "timed"}
        assert fleet.show("for good").status is DISABLED
        assert fleet.count().active == 6


# ── The dead man ────────────────────────────────────────────────────────────────────────────────


def test_the_last_run_is_remembered(fleet_url: str, tool: Cli) -> None:
    """--check and doctor exit 1 when no run finished for longer than expected, or ever."""
    expect = {"recovery_expect_every": "15m"}

    def doctor() -> tuple[int, str]:
        result = tool("doctor", "-o", "json", **expect)
        (check,) = [c for c in result.json["checks"] if c["check"] == "recover"]
        assert check["ok"] == (result.code == 0)
        return result.code, check["detail"]

    check = tool("recover", "--check", **expect)
    assert (check.code, check.out) == (1, "\t\t900.0\ttrue\n")
    assert check.err.startswith("error: recover has not finished")
    assert doctor() == (1, "never ran, expected every 900 s")
    tool("recover", "--dry-run")
    assert tool("recover", "--check", **expect).code == 1
    assert tool("recover") == Result(0, "", "")
    check = tool("recover", "--check", "-o", "json", **expect)
    assert (check.code, check.json["overdue"], check.json["expect_every"]) == (0, False, 900)
    assert doctor()[0] == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, 890)} WHERE name = 'recover'")
    assert tool("recover", "--check", **expect).code == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, 910)} WHERE name = 'recover'")
    check = tool("recover", "--check", "-o", "json", **expect)
    assert (check.code, check.json["overdue"], check.err) == (1, True, "")
    assert 909 < check.json["seconds_ago"] < 970
    assert doctor()[0] == 1


def test_a_run_in_the_future_is_overdue(fleet_url: str, tool: Cli) -> None:
    """If the clock was set back, the age of the last run is unknown and the run is overdue."""
    expect = {"recovery_expect_every": "15m"}
    tool("recover")
    # As with two servers whose clocks differ a little.
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, -2)} WHERE name = 'recover'")
    assert tool("recover", "--check", **expect).code == 0
    sql(fleet_url, f"UPDATE modelctl_state SET at = {ago(fleet_url, -600)} WHERE name = 'recover'")
    check = tool("recover", "--check", **expect)
    assert (check.code, "clock was set back" in check.err) == (1, True)
    doctor = tool("doctor", **expect)
    assert (doctor.code, "clock was set back" in doctor.out) == (1, True)
    tool("recover")
    assert tool("recover", "--check", **expect).code == 0


def test_nothing_is_expected_by_default(fleet_url: str, tool: Cli) -> None:
    """Without expect_every --check is a wrong configuration, and doctor does not mind."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    before = everything(fleet_url)
    tool("recover", "--check").failed(3, "recovery.expect_every", "hint: ")
    assert tool("doctor").code == 0
    assert everything(fleet_url) == before


def test_a_run_that_failed_is_none(fleet_url: str, tool: Cli) -> None:
    """A run that ended with an error has not finished."""
    sql(fleet_url, "ALTER TABLE modelctl_holds RENAME TO away")
    try:
        assert tool("recover").code == 7
    finally:
        sql(fleet_url, "ALTER TABLE away RENAME TO modelctl_holds")
    assert tool("recover", "--check", recovery_expect_every="15m").code == 1


def test_a_paused_run_is_a_run(fleet_url: str, tool: Cli) -> None:
    """Cron is alive also where nothing may come back."""
    tool("pause", "--for", "1h")
    tool("recover")
    assert tool("recover", "--check", recovery_expect_every="15m").code == 0


# ── Nothing raw ─────────────────────────────────────────────────────────────────────────────────


HOSTILE = "\x1b[31m[bold]x[/]\x07\u202egnp\x9b2J\u2028\n- FORGED\r\x1b]0;title\x07"


def test_hostile_words_never_reach_the_terminal(fleet_url: str, tool: Cli) -> None:
    """Names and reasons full of controls are escaped in every output, and begin no line."""
    put_off(fleet_url, HOSTILE, provider=HOSTILE, failed=9 * HOUR, failure_reason=HOSTILE)
    put(fleet_url, "timed", "on", provider=HOSTILE)
    rule = {"recovery_min_active": 1, "recovery_expect_every": "1h", "recovery_max_ejections": 1}
    outputs = [
        tool("pause", "--for", "1h", "--reason", HOSTILE, "--actor", HOSTILE),
        tool("pause", "--for", "1h", "--reason", HOSTILE, "--provider", HOSTILE),
        tool("disable", "timed", "--for", "1h", "--reason", HOSTILE),
        tool("disable", HOSTILE, "--until", HOSTILE),
        tool("disable", HOSTILE, "--for", HOSTILE),
        tool("pause", "--for", HOSTILE),
    ]
    reads = [
        ["show", HOSTILE],
        ["show", "timed"],
        ["recover", "--dry-run"],
        ["recover"],
        ["list"],
        ["stats"],
        ["doctor"],
        ["events"],
        ["resume", "--provider", HOSTILE + "other"],
    ]
    for words in reads:
        outputs += [tool(*words, "-o", form, **rule) for form in ("table", "json", "tsv")]
        # CSV quotes newlines, and nothing else of it.
        quoted = tool(*words, "-o", "csv", **rule).out
        rows = [*csv.reader(io.StringIO(quoted, newline=""))]
        assert not any(row[0].startswith("- FORGED") for row in rows)
    for result in outputs:  # that there are no controls is checked of every run
        for line in (result.out + result.err).splitlines():
            assert not line.strip().startswith("- FORGED"), line
    for words in (["show", HOSTILE], ["list"], ["recover", "--dry-run"]):
        code, shown = seen(*words, columns=200, environ=environ(fleet_url, **rule))
        # Colours and the line that shows progress are ours.
        text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", shown)
        assert code == 0
        assert text.replace("\n", "").isprintable(), repr(text)
        assert "\\x1b[31m[bold]x[/]" in text
        assert not any(line.strip().startswith("- FORGED") for line in text.splitlines()), text
