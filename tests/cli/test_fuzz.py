"""Any command line at all ends in a documented way, in the form that was asked for."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelctl.cli import main as cli
from modelctl.errors import ExitCode
from tests import commands
from tests.fleets import opened
from tests.servers import refused_port

IDS = ["acme/one", "acme/two", "acme/off", "other/tripped", "other/due", "acme/\u200bone", "hf:a/b"]
ODD = [
    "",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "inf",
    "1e18",
    "9" * 400,
    "1h",
    "0s",
    "99999999d",
    "2026-12-01T08:00Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00+23:59",
    "\0",
    "\ud800",
    "\udcff",
    "a\x1b[2J\nb",
    "\u202e\u2066",
    "x" * 5000,
    "[red]x[/]",
    "%s{0}$(id)`id`",
    ".",
    "..",
    "/",
    "json",
    "-o",
    "--output=json",
    "--debug",
    "modelctl",
]
FILES = {
    "models.jsonl": b'{"id": "new/one", "provider": "new"}\n{"id": "acme/two", "name": "Two"}\n',
    "list.json": b'{"object": "list", "data": [{"id": "a"}, {"id": "\\u0000"}, 5]}',
    "outcomes.jsonl": b'{"id": "acme/one", "outcome": "failure", "type": "parse-error"}\n' * 6,
    "unknown.jsonl": b'{"id": "nobody", "outcome": "success"}\n',
    "broken.json": b'{"id": "a", \xff\x00',
    "config.toml": b'[probe.other]\ncommand = ["true"]\n[recovery]\nexpect_every = "1h"\n',
    "wrong.toml": b'[health]\nthreshold = "\x1b[2J"\n',
}
# What runs for ever or waits for seconds.
NEVER = {"--follow", "--audit"}
ENDLESS = ("run",)

words = st.one_of(
    st.sampled_from(IDS),
    st.sampled_from(ODD),
    st.sampled_from([*FILES, "/dev/null", "/nowhere/at/all"]),
    st.sampled_from(["active", "disabled", "update", "skip", "fail", "openai", "jsonl", "acme"]),
    st.sampled_from(["timeout", "parse-error", "404", "499", "200", "name", "provider", "updated"]),
    st.text(st.characters(), max_size=12),
    st.integers().map(str),
)
outputs = st.one_of(
    st.sampled_from(["json", "json", "json", "jsonl", "csv", "tsv", "name", "table", "wrong"]),
    words,
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with its own options and arguments, and perhaps what does not belong there."""
    ending = [item for item in commands.commands().items() if item[0] != ENDLESS]
    names, command = draw(st.sampled_from(ending))
    said = list(names)
    for param in command.params:
        if NEVER & {*param.opts}:
            continue
        if param.param_type_name == "argument":
            most = 3 if param.nargs == -1 else 1
            ids = st.one_of(st.sampled_from(IDS), words)
            said += draw(st.lists(ids, min_size=draw(st.integers(0, 1)), max_size=most))
        elif draw(st.integers(0, 3)) == 0:
            name = draw(st.sampled_from(param.opts))
            if param.is_flag:
                said.append(name)
            else:
                value = draw(outputs if "-o" in param.opts else words)
                said += [f"{name}={value}"] if draw(st.booleans()) else [name, value]
    if draw(st.integers(0, 2)) == 0:
        said[1:1] = ["-o", draw(outputs)]
    if draw(st.integers(0, 5)) == 0:
        said.insert(draw(st.integers(0, len(said))), draw(words))
    if draw(st.integers(0, 9)) == 0 and said:
        said.pop(draw(st.integers(0, len(said) - 1)))
    if draw(st.integers(0, 9)) == 0:
        said.insert(0, "--debug")
    return [word for word in said if word not in NEVER]


def call(arguments: list[str], stdin: bytes) -> commands.Result:
    """Run the program in this process with streams of its own."""
    usual = sys.stdin, sys.stdout, sys.stderr
    how: dict[str, Any] = {"encoding": "utf-8", "newline": ""}
    streams = [io.TextIOWrapper(io.BytesIO(data), **how) for data in (stdin, b"", b"")]
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        code = cli.main(arguments)
    finally:
        sys.stdin, sys.stdout, sys.stderr = usual
    for stream in streams:
        stream.seek(0)  # and flush it
    out, err = (stream.buffer.read() for stream in streams[1:])
    return commands.checked(code, out, err, debug="--debug" in arguments)


def check(arguments: list[str], stdin: bytes) -> None:
    """Run a command line and check what holds for every one."""
    result = call(arguments, stdin)
    assert result.code in {*ExitCode}, result
    failed = '"code": "unexpected"' in result.out or result.err.startswith("error: Unexpected")
    assert not failed, result
    if result.code == ExitCode.UNEXPECTED:  # a check that found something
        assert {"doctor", "probe", "recover"} & {*arguments}, result
    if not cli._asks_for_json(arguments) or result.out.startswith("Usage: "):
        return
    if result.out.startswith("modelctl ") and result.code == 0:  # --version
        return
    if result.err.lstrip().startswith("Usage: "):  # a group without a command: its help
        return
    value = json.loads(result.out)
    if isinstance(value, dict) and "error" in value and result.code not in (0, 1):
        assert value.keys() == {"error"}
        assert value["error"].keys() == {"code", "message", "hint"}
        assert value["error"]["code"] == ExitCode(result.code).name.lower()
        assert "--debug" in arguments or result.err == "", result


@pytest.fixture(params=["sqlite", "postgresql", "redis", "redis away"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Name the kind of servers; the fleet of five is there, and the files are in the folder."""
    kind = str(request.param)
    url = request.getfixturevalue("sqlite_database" if kind == "sqlite" else "pg_database")
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    if kind == "redis":
        monkeypatch.setenv("MODELCTL_REDIS_URL", request.getfixturevalue("redis_url"))
    with opened(url) as fleet:
        for model_id in IDS:
            fleet.add(model_id, provider=model_id.partition("/")[0])
        fleet.disable("acme/off")
    if kind == "redis away":
        monkeypatch.setenv("MODELCTL_REDIS_URL", f"redis://127.0.0.1:{refused_port()}")
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("MODELCTL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)
    return kind


# How many command lines: where Redis is away each change waits for it for 2 s.
SHORT = {"sqlite": 100, "postgresql": 40, "redis": 40, "redis away": 5}
LONG = {"sqlite": 3000, "postgresql": 1000, "redis": 900, "redis away": 100}


def fuzz(examples: int) -> None:
    """Try this many command lines."""

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    @given(command_lines(), st.sampled_from([b"", *FILES.values()]))
    def run(arguments: list[str], stdin: bytes) -> None:
        check(arguments, stdin)

    run()


def test_some_command_lines(environment: str) -> None:
    """A few hundred command lines: documented exit codes, no traceback, JSON where it was asked for."""
    fuzz(SHORT[environment])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_command_lines(environment: str) -> None:
    """Five thousand command lines hold the same."""
    fuzz(LONG[environment])
