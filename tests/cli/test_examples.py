"""The examples for cron and systemd in the repository work as they are written."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tests.commands import Cli, Result

UNITS = sorted((ROOT / "examples" / "systemd").iterdir())
INSTALLED = "/opt/modelctl/bin/modelctl"
URL_FILES = {"MODELCTL_DATABASE_URL_FILE", "MODELCTL_REDIS_URL_FILE"}
PROGRAM = Path(sys.executable).with_name("modelctl")


def crontab(text: str) -> list[str]:
    """Return the commands of a crontab, without their five times."""
    lines = [line.strip() for line in text.splitlines()]
    return [line.split(None, 5)[5] for line in lines if line.startswith("*/")]


def exec_start(unit: Path) -> str:
    """Return the command of a service."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    parser.read(unit)
    return parser["Service"]["ExecStart"]


COMMANDS = {
    "crontab": crontab((ROOT / "examples" / "crontab").read_text())[0],
    "operations": crontab((ROOT / "docs" / "operations.md").read_text())[0],
    "recovery": crontab((ROOT / "docs" / "recovery.md").read_text())[0],
    "systemd": exec_start(ROOT / "examples" / "systemd" / "modelctl-recover.service"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_command_of_every_example_is_silent_when_all_is_well(
    command: str, tmp_path: Path
) -> None:
    """What cron and systemd run works without a PATH, and prints not a byte."""
    assert command.startswith(f"{INSTALLED} recover --actor ")
    words = command.replace(INSTALLED, str(PROGRAM)).split()
    environment = {"HOME": str(tmp_path)}
    # An empty fleet would be warned of: perhaps the configuration is missing.
    subprocess.run([PROGRAM, "add", "m"], env=environment, check=True, capture_output=True)
    done = subprocess.run(words, env=environment, capture_output=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_program_prints_the_examples(cli: Cli) -> None:
    """`config example` prints the files of the repository as they are."""
    result = cli("config", "example")
    assert result == Result(0, (ROOT / "config.example.toml").read_text(), "")
    assert cli("config", "example", "--cron").out == (ROOT / "examples" / "crontab").read_text()
    every = cli("config", "example", "--systemd").out
    for unit in UNITS:
        printed = cli("config", "example", "--systemd", unit.name)
        assert printed == Result(0, unit.read_text(), "")
        assert f"# /etc/systemd/system/{unit.name}\n{printed.out}" in every
    cli("config", "example", "--systemd", "x.service").failed(2, "x.service", "modelctl.service")
    cli("config", "example", "modelctl.service").failed(2, "--systemd")
    cli("config", "example", "--systemd", "--cron").failed(2, "ask for one")


def test_the_drain_service_runs_a_command_that_exists() -> None:
    """The service that follows the queue is started by a command of the program."""
    command = exec_start(ROOT / "examples" / "systemd" / "modelctl-drain.service")
    assert command == f"{INSTALLED} cache drain --follow"
    usage = subprocess.run([PROGRAM, "cache", "drain", "-h"], capture_output=True, check=True)
    assert b"--follow" in usage.stdout


def test_the_service_and_kubernetes_run_commands_that_exist(cli: Cli) -> None:
    """systemd, the Deployment and the CronJob start commands with options that they have."""
    unit = exec_start(ROOT / "examples" / "systemd" / "modelctl.service").split()
    page = (ROOT / "docs" / "operations.md").read_text()
    texts = re.findall("^```yaml\n(apiVersion.*?)^```$", page, re.MULTILINE | re.DOTALL)
    deployment, cron_job = map(yaml.safe_load, texts)
    assert (deployment["kind"], cron_job["kind"]) == ("Deployment", "CronJob")
    pods = [deployment["spec"]["template"], cron_job["spec"]["jobTemplate"]["spec"]["template"]]
    assert pods[0]["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    container, job = (pod["spec"]["containers"][0] for pod in pods)
    for pod, of in zip(pods, (container, job), strict=True):
        mounts = {mount["name"] for mount in of["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {variable["name"] for variable in of["env"]} <= URL_FILES
    assert job["args"][0] == "recover"
    for words in (unit[1:], container["args"], job["args"]):
        assert cli(*words, "-h").code == 0
    assert unit[1] == container["args"][0] == "run"
    file = container["args"][container["args"].index("--metrics") + 1]
    assert str(Path(file).parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert file in container["readinessProbe"]["exec"]["command"][-1]


def test_the_image_runs_commands_that_exist(cli: Cli) -> None:
    """The command of the Dockerfile and its check of the health are commands, and no user is root."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    lists = [json.loads(line[line.index("[") :]) for line in lines if "CMD [" in line]
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry[entry.index("[") :]) == ["modelctl"]
    assert lists == [["modelctl", "doctor"], ["run", "--actor", "docker"]]
    assert cli(*lists[1], "-h").code == 0
    assert "USER 10001" in lines


def test_the_timer_comes_as_often_as_the_crontab() -> None:
    """Cron and systemd bring models back equally often."""
    timer = (ROOT / "examples" / "systemd" / "modelctl-recover.timer").read_text()
    assert re.search(r"^OnCalendar=\*:0/5$", timer, re.MULTILINE)
    assert (ROOT / "examples" / "crontab").read_text().splitlines()[-1].startswith("*/5 ")


# It is there or not; nothing installs it with the tests.
if ANALYZE := shutil.which("systemd-analyze"):

    def test_systemd_takes_the_units(tmp_path: Path) -> None:
        """The units have no word that systemd does not know."""
        assert ANALYZE
        for unit in UNITS:
            text = unit.read_text().replace(INSTALLED, str(PROGRAM))
            (tmp_path / unit.name).write_text(text)
        done = subprocess.run(
            [ANALYZE, "verify", *tmp_path.glob("modelctl*.*")], capture_output=True, text=True
        )
        ours = [line for line in done.stderr.splitlines() if "modelctl" in line]
        assert (done.returncode, ours) == (0, []), done.stderr
