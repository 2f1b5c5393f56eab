"""A configuration that runs commands is taken only from files that nobody else could have written."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from modelctl import Config, InvalidConfigError
from tests import commands
from tests.commands import Cli, make_fleet

PROBE = '[probe.other]\ncommand = ["true"]\n'
STRANGER = 12345


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder in which nobody else can write, with a configuration that runs a command."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "config.toml").write_text(PROBE)
    (folder / "config.toml").chmod(0o644)
    return folder


def link(folder: Path) -> Path:
    """Put a link to the file into a folder that everybody may write."""
    place = folder.parent / "open"
    place.mkdir()
    place.chmod(0o777)
    (place / "config.toml").symlink_to("../b/config.toml")
    return place / "config.toml"


def linked_folder(folder: Path) -> Path:
    """Reach the file by a link to a folder that everybody may write."""
    (folder.parent / "link").symlink_to(folder)
    folder.chmod(0o777)
    return folder.parent / "link" / "config.toml"


def strange_link(folder: Path) -> Path:
    """Reach the file by a link of another user in a folder such as /tmp."""
    place = folder.parent / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    (place / "config.toml").symlink_to(folder / "config.toml")
    os.lchown(place / "config.toml", STRANGER, STRANGER)
    return place / "config.toml"


def moded(name: str, mode: int) -> Callable[[Path], Path]:
    """Let others write what *name* names, from the folder of the file."""

    def change(folder: Path) -> Path:
        (folder / name).chmod(mode)
        return folder / "config.toml"

    return change


def owned(name: str) -> Callable[[Path], Path]:
    """Give it to another user."""

    def change(folder: Path) -> Path:
        os.chown(folder / name, STRANGER, -1)
        return folder / "config.toml"

    return change


def pipe(folder: Path) -> Path:
    """Put a pipe in the place of the file."""
    (folder / "config.toml").unlink()
    os.mkfifo(folder / "config.toml")
    file = folder / "config.toml"
    threading.Thread(target=file.write_text, args=(PROBE,), daemon=True).start()
    return file


UNSAFE = {
    "file by its group": (moded("config.toml", 0o664), "can be written by its group"),
    "file by everybody": (moded("config.toml", 0o646), "can be written by everybody"),
    "folder by its group": (moded(".", 0o775), "can be written by its group"),
    "folder above by everybody": (moded("..", 0o777), "can be written by everybody"),
    "file of another": (owned("config.toml"), "belongs to another user (uid 12345)"),
    "folder of another": (owned("."), "belongs to another user"),
    "folder above of another": (owned(".."), "belongs to another user"),
    "link in an open folder": (link, "can be written by everybody"),
    "link to an open folder": (linked_folder, "can be written by everybody"),
    "link of another": (strange_link, "belongs to another user"),
    "pipe": (pipe, "is not a regular file"),
}


@pytest.mark.parametrize(("change", "words"), UNSAFE.values(), ids=UNSAFE)
def test_file_that_others_could_write(
    folder: Path, cli: Cli, change: Callable[[Path], Path], words: str
) -> None:
    """A file with [probe] that another user could write is exit 3 for every command, in words."""
    if "another" in words and os.geteuid():
        pytest.skip("only root can give files away")
    file = str(change(folder))
    advice = "write it into a file" if "regular" in words else "chown, chmod go-w"
    cli("--config", file, "count").failed(3, "may run commands", words, advice)


@pytest.mark.parametrize("change", [moded(".", 0o1777), moded("..", 0o1775)], ids=["one", "above"])
def test_sticky_folder(folder: Path, change: Callable[[Path], Path]) -> None:
    """A folder such as /tmp, in which only owners rename their files, is safe."""
    assert Config.load(change(folder), environ={}).probes


def test_dots_and_links_that_are_safe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names, dots and links between safe folders are followed."""
    (folder / "link").symlink_to("../b")
    monkeypatch.chdir(folder.parent)
    for name in ("b/config.toml", "./b/../b/config.toml", "b/link/link/config.toml"):
        assert Config.load(name, environ={}).probes
    (folder / "round").symlink_to("round")
    with pytest.raises(InvalidConfigError):
        Config.load("b/round/config.toml", environ={})


def test_without_commands_nothing_is_asked(folder: Path) -> None:
    """A file without such a section may be written by a group, as before."""
    (folder / "config.toml").write_text("[health]\nthreshold = 3\n")
    (folder / "config.toml").chmod(0o666)
    assert Config.load(folder / "config.toml", environ={}).health.threshold == 3


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    "command", [["probe", "other/due"], ["recover", "--probe"], ["sync", "--yes"]], ids=" ".join
)
def test_signal_ends_a_command(tmp_path: Path, number: signal.Signals, command: list[str]) -> None:
    """A signal that ends modelctl ends the commands of its configuration, and what they started."""
    make_fleet()
    script = f"sleep 300 & echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 300"
    file = tmp_path / "config.toml"
    how = f'command = ["sh", "-c", "{script}"]\ntimeout = "5m"\n'
    file.write_text(f"[probe.other]\n{how}[source.lab]\n{how}")
    with commands.start("--config", str(file), *command, "-o", "json") as process:
        deadline = time.monotonic() + commands.SECONDS
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        group = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        out, err = process.communicate(timeout=commands.SECONDS)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert (b'"interrupted"' in out, err) == (True, b"")
    # What was killed and has no parent any more is waited for by the first process of all.
    deadline = time.monotonic() + commands.SECONDS
    while left := _in_group(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def _in_group(group: int) -> list[str]:
    """Return what /proc/*/stat says of the processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            said = (entry / "stat").read_text()
            fields = said.rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in ("Z", "X"):
                found.append(said)
    return found


def test_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    """Under nohup a probe goes on when the terminal goes away."""
    make_fleet()
    file = tmp_path / "config.toml"
    file.write_text('[probe.other]\ncommand = ["sh", "-c", "kill -HUP $PPID; sleep 0.2"]\n')
    result = commands.shell(f"nohup $modelctl --config {file} probe other/due -o json")
    assert result.code == 0
    assert result.json["answers"][0]["healthy"]
