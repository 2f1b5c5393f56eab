"""Every error has its exit code, one line on stderr and a hint, in the form that was asked for."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from modelctl import errors
from modelctl.errors import ExitCode, ModelctlError, ModelNotFoundError
from tests import ROOT, commands
from tests.commands import Cli, Result, add, sql, start
from tests.servers import Postgres, refused_port, silent_server

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, ModelctlError) and cls is not ModelctlError
]


# --- the taxonomy


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_one_name_in_three_spellings(cls: type[ModelctlError]) -> None:
    """An error class, its exit code and its JSON code have the same name, and the error has a text."""
    words = re.findall("[A-Z][a-z]+", cls.__name__.removesuffix("Error"))
    error = cls()
    assert error.code == "_".join(words).lower()
    assert ExitCode["_".join(words).upper()] is error.exit_code
    assert (error.message, error.hint, str(error)) == (cls.__doc__, None, cls.__doc__)


def test_every_exit_code_has_its_error() -> None:
    """Every exit code but OK is that of exactly one error, and no error inherits from another."""
    codes = [ModelctlError.exit_code, *(cls.exit_code for cls in CLASSES)]
    assert sorted(codes) == sorted(set(ExitCode) - {ExitCode.OK})
    assert {cls.__bases__ for cls in CLASSES} == {(ModelctlError,)}
    assert set(ModelctlError.__subclasses__()) == set(CLASSES)


def test_exit_codes_are_promised() -> None:
    """The numbers never change: scripts key on them."""
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "INVALID_CONFIG": 3,
        "MODEL_NOT_FOUND": 4,
        "DATABASE_UNAVAILABLE": 5,
        "STALE_CACHE": 6,
        "MISSING_SCHEMA": 7,
        "REFUSED": 8,
        "INTERRUPTED": 130,
    }


def test_the_page_of_commands_lists_the_exit_codes() -> None:
    """The table of docs/commands.md has every exit code with its name, and no other."""
    page = (ROOT / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(c.value, c.name) for c in ExitCode]


def test_errors_are_clean_and_bounded() -> None:
    """A message and its hint carry no control characters and never grow without end."""
    error = ModelNotFoundError("\x1b[31m" + "x" * 100_000, hint="a\nb")
    assert error.message.startswith(r"\x1b[31mxxx")
    assert len(error.message) < 3000
    assert error.hint == r"a\nb"


# --- usage

USAGE = [
    ["nonsense"],
    ["shwo", "acme/one"],
    ["cache", "nonsense"],
    ["count", "--nonsense"],
    ["count", "extra"],
    ["show"],
    ["disable"],
    ["list", "--status", "sad"],
    ["list", "--sort", "sad"],
    ["list", "--limit", "many"],
    ["list", "--limit", "-1"],
    ["leaderboard", "--top", "-1"],
    ["events", "--since", "yesterday"],
    ["events", "--limit", "-1"],
    ["recover", "--limit", "-1"],
    ["recover", "--cooldown", "1"],
    ["recover", "--cooldown", "1e9d"],
    ["record-failure", "acme/one", "--type", "sad"],
    ["record-failure", "acme/one", "--http-status", "200"],
    ["record-failure", "acme/one", "--http-status", "404", "--type", "timeout"],
    ["import", "/nowhere/at/all"],
    ["import", "."],
    ["import", os.devnull],
    ["import", "README.md", "--format", "xml"],
    ["import", "examples/fleet.jsonl", "--on-conflict", "hope"],
    ["import", "README.md"],
    ["record-batch", "/nowhere/at/all"],
    ["record-batch", "README.md"],
    ["add", "a\nb"],
    ["show", "acme/one", "--actor"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage(fleet: None, cli: Cli, arguments: list[str]) -> None:
    """Wrong arguments and wrong input are exit 2, with a text on stderr or with one JSON value."""
    os.chdir(ROOT)
    result = cli(*arguments)
    assert result.code == 2
    assert (result.out, result.err.startswith("error: ")) == ("", True)
    for json_asked in (["-o", "json"], ["--output", "json"], ["-ojson"], ["--output=json"]):
        problem = cli(*arguments[:1], *json_asked, *arguments[1:])
        assert (problem.code, problem.err) == (2, ""), problem
        assert problem.json.keys() == {"error"}
        assert problem.json["error"].keys() == {"code", "message", "hint"}
        assert problem.json["error"]["code"] == "usage"


def test_unknown_command_names_a_near_one(cli: Cli) -> None:
    """The error for a mistyped command or option suggests the nearest existing command or option."""
    cli("lsit").failed(2, "Did you mean 'list'?", "see: modelctl --help")
    cli("cache", "drian").failed(2, "Did you mean 'drain'?", "see: modelctl cache --help")
    cli("qqqq").failed(2, "No such command 'qqqq'.")
    cli("count", "--fesh").failed(2, "--fresh", "see: modelctl count --help")
    bad = cli("count", "-o", "xml")
    bad.failed(2, "table", "jsonl", "modelctl count --help")


def test_what_is_asked_for_last_counts(fleet: None, cli: Cli) -> None:
    """If two output forms are given, the last applies, to an error as to a result."""
    assert cli("show", "nobody", "-o", "json", "-o", "csv").out == ""
    assert cli("show", "nobody", "-o", "csv", "-o", "json").json["error"]["code"]
    assert cli("show", "-o", "csv", "--", "-o").out == ""


JSON_ASKED = [
    ["show", "-o", "json", "-o", "wrong", "x"],
    ["show", "x", "--output", "wrong", "--output=json", "--limit", "1"],
    ["-o", "json", "show", "x"],
    ["show", "-ojson", "x", "y"],
    ["show", "-o", "wrong", "-o", "json", "x", "y"],
    ["disable", "x", "--reason", "-o", "-o", "json"],
    ["disable", "x", "--reason", "--", "-o", "json"],
    ["--config", "-o", "show", "x", "-o", "json"],
    ["db", "nonsense", "-o", "json"],
    ["list", "--limit", "-o", "json", "-o", "json"],
]
NO_JSON_ASKED = [
    ["show", "--", "-o", "json"],
    ["show", "-o", "json", "-o", "table", "x", "y"],
    ["show", "-o", "JSON", "x"],
    ["disable", "nobody", "--reason", "-ojson"],
    ["disable", "nobody", "--actor=-o", "json"],
    ["show", "x", "-o"],
    ["count", "-o", ""],
]


@pytest.mark.parametrize("arguments", JSON_ASKED, ids=" ".join)
def test_error_in_the_form_that_was_asked_for(fleet: None, cli: Cli, arguments: list[str]) -> None:
    """The last -o that names a form counts for an error, wherever it stands."""
    result = cli(*arguments)
    assert result.code in (2, 3, 4)
    assert result.err == ""
    assert result.json.keys() == {"error"}


@pytest.mark.parametrize("arguments", NO_JSON_ASKED, ids=" ".join)
def test_error_in_words(fleet: None, cli: Cli, arguments: list[str]) -> None:
    """What stands behind --, or is the value of another option, is no -o."""
    result = cli(*arguments)
    assert result.code in (2, 3, 4)
    assert result.out == ""
    assert result.err.startswith("error: ")


HUGE = str(10**30)


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--limit", HUGE],
        ["leaderboard", "--top", HUGE],
        ["events", "--limit", HUGE],
        ["recover", "--limit", HUGE],
    ],
    ids=" ".join,
)
def test_huge_numbers(fleet: None, cli: Cli, arguments: list[str]) -> None:
    """A number beyond all bounds is a limit like any other, or wrong usage."""
    assert cli(*arguments).code in (0, 2)


# --- the database


def sqlite_url(file: Path) -> str:
    """Name a database file."""
    return f"sqlite:///{file}"


@pytest.fixture
def file(fleet: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name the database with the five models in the environment."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_url(commands.database()))
    return commands.database()


def test_missing_file_and_missing_schema(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named database that is not there, or is empty, is exit 7 and says what to run."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_url(tmp_path / "my.db"))
    for exists in (False, True):
        if exists:
            (tmp_path / "my.db").touch()
        for command in (["count"], ["list"], ["disable", "x"], ["recover"], ["cache", "show"]):
            cli(*command).failed(7, "modelctl db upgrade")
    assert cli("list", "-o", "json").json["error"]["code"] == "missing_schema"


def test_folder_as_the_file(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the place of the database is exit 3."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_url(tmp_path))
    for command in ("count", "list"):
        cli(command).failed(3, "is a folder")


def test_no_database_at_all(file: Path, cli: Cli) -> None:
    """A file that is not a database is exit 3, not a reason to try again."""
    file.write_bytes(b"this is no database" * 1000)
    for command in (["count"], ["list"], ["disable", "x"], ["db", "status"]):
        cli(*command).failed(3, "not a SQLite database")


def test_a_database_that_fails_within_a_listing(file: Path, cli: Cli) -> None:
    """When the database fails in the middle of a listing, JSON is still one value: the error."""
    add(*(f"many/{n:06d}/{'x' * 150}" for n in range(8000)))
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    [(root,)] = sql("SELECT rootpage FROM sqlite_master WHERE name = 'models'")
    [(page,)] = sql("PRAGMA page_size")
    with file.open("r+b") as stream:
        # Near the end of the file, but not its pages at the front.
        size = file.stat().st_size
        stream.seek(size - size // 8 // page * page)
        stream.write(b"\xff" * (size // 8 // page * page))
    result = cli("list", "-o", "json")
    assert (result.code, result.err) == (3, "")
    assert result.json["error"]["code"] == "invalid_config"
    result = cli("list")
    assert (result.code, result.err.startswith("error: ")) == (3, True)
    assert root


def test_read_only_file(file: Path) -> None:
    """In a folder that may not be written, reads work and a change is exit 3."""
    file.chmod(0o444)
    file.parent.chmod(0o555)
    assert commands.run("count", before=commands.obey_file_modes) == Result(0, "2\n", "")
    assert len(commands.run("list", before=commands.obey_file_modes).lines) == 5
    commands.run("disable", "acme/one", before=commands.obey_file_modes).failed(3, "permissions")
    file.parent.chmod(0o755)


WRONG_URLS = [
    "mysql://ann:s3cret@h/db",
    "postgresql://ann:s3/cret@h/db",
    "postgresql://ann:s3@cret@h/db",
    "ann:s3cret@h",
    "postgresql://ann:s3cret@h:port/db",
    "sqlite://:s3cret:",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_wrong_database_url(cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """An invalid URL is exit 3 and names the variable, but does not show the URL."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    result = cli("--debug", "count", "-o", "json")
    secret_free(result, 3)
    assert result.json["error"]["code"] == "invalid_config"
    assert "MODELCTL_DATABASE_URL" in result.json["error"]["message"]


def test_redis_needs_postgres(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis URL beside SQLite is exit 3."""
    monkeypatch.setenv("MODELCTL_REDIS_URL", "redis://127.0.0.1/0")
    cli("count").failed(3, "Redis needs PostgreSQL")


def secret_free(result: Result, code: int) -> None:
    """Check that --debug showed a traceback, and no spelling of a password anywhere."""
    said = result.out + result.err
    assert (result.code, "Traceback" in said) == (code, True)
    assert "s3cret" not in said
    assert "%2F" not in said


def test_wrong_password(
    postgres: Postgres, empty_pg: str, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """A wrong password is exit 3; no password is shown, not even with --debug."""
    postgres.require_password("secretive_ann", "right/s3cret")
    name = empty_pg.rpartition("/")[2]
    wrong = postgres.url(name, "secretive_ann", "wrong/s3cret")
    monkeypatch.setenv("MODELCTL_DATABASE_URL", wrong)
    cli("list").failed(3, "password authentication failed")
    secret_free(cli("--debug", "list"), 3)
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url(name, "secretive_ann", "right/s3cret"))
    cli("list").failed(7, "modelctl db upgrade")
    postgres.execute("DROP ROLE secretive_ann")


def test_password_in_a_file(tmp_path: Path, cli: Cli) -> None:
    """With --debug a password from the file that --config names is hidden too."""
    url = f"postgresql://ann:s3cret@127.0.0.1:{refused_port()}/s3cret"
    (tmp_path / "config.toml").write_text(f'[database]\nurl = "{url}"\n')
    secret_free(cli("--debug", "--config", str(tmp_path / "config.toml"), "list"), 5)


def test_a_port_without_a_server(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is exit 5 for every command that needs the database."""
    url = f"postgresql://ann:s3cret@127.0.0.1:{refused_port()}/db"
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    for line in ("count", "list", "disable x", "recover", "stats", "db upgrade", "cache drain"):
        result = cli(*line.split(), "-o", "json")
        assert (result.code, result.err) == (5, "")
        assert result.json["error"]["code"] == "database_unavailable"
    cli("count").failed(5, "try again later")


def test_unknown_host_and_database(
    postgres: Postgres, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that the server does not have is exit 3."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url("nobody_has_this"))
    cli("count").failed(3, "does not exist")


def test_missing_schema_on_postgres(
    empty_pg: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty PostgreSQL database is exit 7 and says what to run."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    for command in (["count"], ["list"], ["disable", "x"], ["recover"]):
        cli(*command).failed(7, "modelctl db upgrade")
    result = cli("db", "status", "-o", "json")
    assert (result.code, result.err, result.json["current"]) == (7, "", None)


def test_silent_server(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers is exit 5 after the connect timeout, not a hang."""
    with silent_server() as port:
        monkeypatch.setenv("MODELCTL_DATABASE_URL", f"postgresql://ann:s3cret@127.0.0.1:{port}/db")
        cli("count").failed(5, "timeout")


def test_silent_redis(pg_database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that never answers does not fail a count."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    with silent_server() as port:
        monkeypatch.setenv("MODELCTL_REDIS_URL", f"redis://:s3cret@127.0.0.1:{port}/0")
        result = cli("count", "-o", "json")
    assert (result.code, result.json["source"]) == (0, "database")
    assert result.err.startswith("warning: ")
    assert "s3cret" not in result.err


# --- the configuration

CONFIGS = {
    "unknown key": ("[cache]\nttll = '60s'\n", "cache.ttl"),
    "unknown section": ("[cash]\nttl = '60s'\n", "[cache]"),
    "wrong type": ("[health]\nthreshold = 'five'\n", "whole number"),
    "wrong duration": ("[cache]\nttl = '60'\n", "90s"),
    "not TOML": ("[cache\n", "not valid TOML"),
    "control characters": ("[cache]\ncount_key = '\x1b[31m'\n", "TOML"),
    "deep nesting": ("a = " + "[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "words"), CONFIGS.values(), ids=CONFIGS)
def test_wrong_configuration(tmp_path: Path, cli: Cli, text: str, words: str) -> None:
    """A wrong file is exit 3 and says what is wrong, in words or as JSON."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    cli("--config", str(file), "count").failed(3, words, str(file))
    problem = cli("--config", str(file), "count", "-o", "json")
    assert (problem.code, problem.err) == (3, "")
    assert problem.json["error"]["code"] == "invalid_config"


def test_named_configuration_must_be_there(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named file that is missing is exit 3, by flag and by variable."""
    missing = str(tmp_path / "missing.toml")
    cli("--config", missing, "count").failed(3, missing)
    monkeypatch.setenv("MODELCTL_CONFIG", missing)
    cli("count").failed(3, missing)


# --- interrupts


def test_interrupt_in_the_middle_of_a_batch(fleet: None) -> None:
    """Ctrl-C while a batch is read is exit 130, and nothing is recorded."""
    line = b'{"id": "acme/one", "outcome": "success"}\n'
    with start("record-batch", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        # More than a pipe holds: when it is written, the program is reading.
        process.stdin.write(line * 20_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(commands.SECONDS) == 130
        said = process.stderr.read()
    assert said == b"error: Interrupted; what was not committed is not done.\n"
    assert sql("SELECT success_count FROM models WHERE id = 'acme/one'") == [(3,)]


@pytest.mark.parametrize("form", ["tsv", "json"])
def test_interrupt_while_a_server_is_silent(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Ctrl-C while the database does not answer is exit 130 at once, as JSON too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv(
            "MODELCTL_DATABASE_URL", f"postgresql://127.0.0.1:{port}/db?connect_timeout=60"
        )
        with start("count", "-o", form) as process:
            connection, _ = server.accept()
            with connection:
                # Its first words: now it waits for an answer.
                assert connection.recv(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=12)  # less than database.timeout
    assert process.returncode == 130
    if form == "json":
        assert (json.loads(out)["error"]["code"], err) == ("interrupted", b"")
    else:
        assert (out, err.startswith(b"error: Interrupted")) == (b"", True)


def test_nothing_to_read_twice(fleet: None, cli: Cli) -> None:
    """An error leaves no half result: the next command finds everything as it was."""
    cli("disable", "acme/one", "nobody").failed(4)
    assert cli("count") == Result(0, "2\n", "")
