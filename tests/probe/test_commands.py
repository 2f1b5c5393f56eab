"""A probe may be a command; an id is data for it and never code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from modelctl.config.probes import check_probe
from modelctl.errors import UsageError
from modelctl.model import FailureType
from modelctl.probe.ask import Target, ask
from tests.probe.provider import NASTY, alive, ask_one, command, failed
from tests.waiting import until


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit 3"),
        ("echo out; echo one >&2; echo two >&2; echo >&2; exit 1", "exit 1: two"),
        ("kill -9 $$", "signal 9"),
        (r"printf '\377\033[31m\000' >&2; exit 2", "exit 2: \ufffd\x1b[31m\ufffd"),
        (
            "head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 4",
            "exit 4",
        ),  # one line, too long
    ],
)
def test_exit_codes(script: str, reason: str) -> None:
    """A command that does not exit 0 has failed, with its code and the last line of its stderr."""
    answer = ask_one(command("sh", "-c", script))
    failed(answer, FailureType.UNKNOWN)
    assert answer.reason == reason


def test_a_healthy_command() -> None:
    """Exit 0 is healthy, whatever was said."""
    assert ask_one(command("sh", "-c", "echo out; echo err >&2")).healthy


def test_the_end_of_a_long_stderr_is_kept() -> None:
    """Of a long output of a command the last line is kept."""
    script = "yes '' | head -c 3000000 >&2; echo the end >&2; exit 1"
    assert ask_one(command("sh", "-c", script)).reason == "exit 1: the end"


def test_environment_and_session_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command has an empty stdin, our environment, the model's names, and its own session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "mine")
    script = 'cat; echo "$MINE $MODELCTL_ID $MODELCTL_NAME $MODELCTL_PROVIDER $$" > said'
    assert ask_one(command("sh", "-c", f"{script}; ps -o sid= -o tty= $$ > session")).healthy
    *words, pid = (tmp_path / "said").read_text().split()
    assert words == ["mine", "p/m", "m", "p"]
    assert (tmp_path / "session").read_text().split()[0] == pid


@pytest.mark.parametrize("program", ["/no/such/program", "/etc/passwd"])
def test_commands_that_cannot_run(program: str) -> None:
    """A program that is not there or not executable has failed, and says so."""
    failed(ask_one(command(program)), None, f"cannot run {program}: ")


@pytest.mark.parametrize("script", ["sleep 60 & sleep 60", "trap '' TERM; sleep 60; sleep 60"])
def test_the_whole_group_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """At its timeout a command is killed with all it started."""
    monkeypatch.chdir(tmp_path)
    start = "sh -c 'echo $$ > pid; exec sleep 60' &"
    answer = ask_one(command("sh", "-c", f"{start} {script}", timeout=0.5))
    failed(answer, FailureType.TIMEOUT, "no answer in 0.5s")
    assert answer.seconds < 2
    until(lambda: not alive(int((tmp_path / "pid").read_text())), 2)


def test_what_a_command_leaves_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that outlives its command neither delays the answer nor survives it."""
    monkeypatch.chdir(tmp_path)
    answer = ask_one(command("sh", "-c", "sleep 60 & echo $! > pid"))
    assert answer.healthy
    assert answer.seconds < 2
    until(lambda: not alive(int((tmp_path / "pid").read_text())), 2)


def test_a_child_that_escapes_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child in a session of its own may hold stderr open; the answer does not wait for it."""
    monkeypatch.chdir(tmp_path)
    answer = ask_one(command("sh", "-c", "setsid sh -c 'echo $$ > pid; exec sleep 60' & sleep 0.3"))
    assert answer.healthy
    assert answer.seconds < 2
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_ignored_sigchld() -> None:
    """Where exit codes are lost, no command counts as healthy."""
    code = (
        "import signal\n"
        "from modelctl.probe.ask import *\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "print(*ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('false',))}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIGCHLD is ignored" in done.stdout


@pytest.mark.parametrize("id_", ["nul\0", "p/\0", "\ud800", "a\udc80"])
def test_ids_that_are_no_argument(id_: str) -> None:
    """An id that no program can be given exactly has failed, and nothing is run."""
    failed(ask_one(command("true"), id_), None, "cannot be an argument")


IDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    st.text("""'"\\$`(){}id;&|<>#!~*? \n\r\t=-a""", max_size=20),
    st.sampled_from(NASTY),
)
SHELLS = [[name] for name in ("sh", "bash")] + [["env", "LANG=C", "bash", "-eu"]]


@pytest.mark.parametrize("shell", SHELLS, ids=["sh", "bash", "env"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(id_=IDS)
@example(id_="'")
@example(id_="-n")
@example(id_="p/{id}")
def test_commands_receive_exactly_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: list[str], id_: str
) -> None:
    """Any id arrives as it is: in a script, as an argument, in a longer word, as a variable."""
    monkeypatch.chdir(tmp_path)
    script = 'printf \'%s\\0\' x{id}y {name} "$1" "$2" "$MODELCTL_ID" > got'
    assert ask_one(command(*shell, "-c", script, "sh", "{id}", "--x={id}"), id_).healthy
    name = id_.removeprefix("p/")
    expected = [f"x{id_}y", name, id_, f"--x={id_}", id_, ""]
    assert (tmp_path / "got").read_bytes() == "\0".join(expected).encode()
    assert sorted(os.listdir(tmp_path)) == ["got"]


PIECES = [
    *["{id}"] * 4,
    *["'", '"', "\\", "$", "`", "#", "\n", " ", ";", "(", ")", "{", "}", "=", "!"],
    *["$(", "${", "${id}", "$x", "<<E\n", "\nE\n", "<<<", "$'", '$"', "((", "))", "[[ ", " ]]"],
    *["echo ", "x", "a=", "&", "|", "${x:-", "case x in ", " esac", "if ", "\r", "*", "~"],
]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(script=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@example(script="echo '{id}'")
@example(script='echo "{id}"')
@example(script="echo \\{id}")
@example(script="echo ${id}")
@example(script="# ' \n echo ' {id}")
@example(script="cat <<E\n{id}\nE\n")
@example(script='echo "$(echo "{id}")"')
@example(script="echo `echo {id}`")
@example(script="echo $(echo {id})")
@example(script="echo $'\\' {id} '")
@example(script="echo $(( {id} ))")
@example(script="[[ {id} -eq 1 ]]")
def test_scripts_that_are_accepted_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, script: str
) -> None:
    """Whatever script check_probe lets pass, no id runs anything in it."""
    config = command(shell, "-c", script, timeout=2)
    try:
        check_probe(config)
    except UsageError:
        assume(False)
    monkeypatch.chdir(tmp_path)
    ids = [*NASTY, "\\", "'", "$(touch canary)'$(touch canary)", "a[$(touch canary)]"]
    for answer in ask([Target(id_, "p") for id_ in ids], {"p": config}):
        assert answer.failure_type is not FailureType.TIMEOUT
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["{id}"],
        ["./{name}"],
        ["sh", "-c", "echo '{id}'"],
        ["sh", "-c", 'echo "{id}"'],
        ["sh", "-c", 'echo "a {name}"'],
        ["sh", "-c", r"echo \{id}"],
        ["sh", "-c", "echo ${id}"],
        ["sh", "-c", "# ' \n echo ' {id}"],
        ["sh", "-c", "cat <<E\n{id}\nE"],
        ["sh", "-c", "echo `x {id}`"],
        ["sh", "-c", 'echo "$(x "{id}")"'],
        ["sh", "-c", "echo $'x{id}'"],
        ["sh", "-c", "echo $(( {id} ))"],
        ["sh", "-c", "(( {id} ))"],
        ["bash", "-c", "[[ {id} -eq 1 ]]"],
        ["sh", "", "-c", "{id}"],
        ["sh", "-c", "echo 'unfinished {id}"],
        ["sh", "-c", "-e", "{id}"],
        ["bash", "-co", "pipefail", "{id}"],
        ["sh", "script", "-c", "{id}"],
        ["docker", "--entrypoint", "sh", "image", "-c", "{id}"],
        ["fish", "-c", "check {id}"],
        ["python3", "-c", "print('{id}')"],
        ["ssh", "host", "check {id}"],
        ["curl", "-d", '{"model": "{id}"}'],
        ["env", "-S", "check {id}"],
    ],
)
def test_unsafe_placeholders_are_refused(words: list[str]) -> None:
    """A placeholder where quoting it might not hold is refused."""
    with pytest.raises(UsageError):
        check_probe(command(*words))


@pytest.mark.parametrize(
    "words",
    [
        ["true"],
        ["check", "{id}", "--model={name}", "{id}:latest"],
        ["sh", "-c", "check {id}"],
        ["/bin/bash", "-euo", "pipefail", "-c", "check --model={id} | grep -q 'it''s ok'"],
        ["busybox", "sh", "-c", 'check {id} "$HOME" "${KEY}" 2>&1 && echo "done; $?"'],
        ["env", "A=1", "sh", "-c", "x=$(check {name}); test $x = ok"],
        ["sh", "-c", 'check "$MODELCTL_ID" `x` # "', "sh"],
        ["sh", "-c", 'check "$1"', "sh", "{id}"],
        ["sh", "check.sh", "{id}"],
        ["python3", "-c", "import sys; print('{}', sys.argv)", "{id}"],
    ],
)
def test_commands_that_are_accepted(words: list[str]) -> None:
    """Ordinary commands pass."""
    check_probe(command(*words))
