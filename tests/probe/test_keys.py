"""A key reaches the provider alone, and is never shown."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from modelctl.errors import InvalidConfigError
from modelctl.probe.ask import Target, ask
from tests.probe.provider import KEY, Server, ask_one, command, failed, targets


@pytest.mark.parametrize("what", ["echo", "garbage", "cut/head", "silent"])
def test_keys_are_never_shown(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """No answer and no log of ours has the key, whatever the server does with it."""
    monkeypatch.setenv("KEY", KEY)
    caplog.set_level(logging.INFO)  # httpcore's DEBUG has what the server sends
    config = server.config(what, key_env="KEY", timeout=0.5)
    answer = ask_one(config)
    assert not answer.healthy
    for text in (repr(answer), repr(config), caplog.text):
        assert KEY not in text
        assert KEY[:10] not in text
    if what == "echo":
        failed(answer, None, "bad header Bearer *** bad")


def test_key_file(server: Server, tmp_path: Path) -> None:
    """The key is the first line of its file, without the blanks around it."""
    (tmp_path / "key").write_text(f"  {KEY}\r\nmore\n")
    assert ask_one(server.config("ok", key_file=str(tmp_path / "key"))).healthy
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_key_that_a_command_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a command prints its key, the key is hidden in the reason."""
    monkeypatch.setenv("KEY", KEY)
    answer = ask_one(command("sh", "-c", 'echo "no: $KEY" >&2; exit 1', key_env="KEY"))
    assert answer.reason == "exit 1: no: ***"


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "ünicode", f"{KEY} "])
def test_bad_keys_in_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """A key that is missing or goes into no header is found before any request, and not shown."""
    monkeypatch.delenv("KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("KEY", value)
    probes = {"a": server.config("ok"), "p": server.config("ok", key_env="KEY")}
    with pytest.raises(InvalidConfigError, match="environment variable KEY") as caught:
        ask([Target("1", "a"), Target("2", "p")], probes)
    assert not value or value not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("content", [None, b"", b"\n" + KEY.encode(), b"two words", b"\xff\xfe\0"])
def test_bad_key_files(server: Server, tmp_path: Path, content: bytes | None) -> None:
    """A key file that is missing, empty or no text is found before any request, and not shown."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfigError, match=re.escape(str(path))) as caught:
        ask(targets(1), {"p": server.config("ok", key_file=str(path))})
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert server.requests == []


@pytest.mark.parametrize("path", ["/", "/nul\0"])
def test_key_files_that_are_none(server: Server, path: str) -> None:
    """A folder, or a name that no file has, is a matter of configuration."""
    with pytest.raises(InvalidConfigError, match="cannot read the key"):
        ask(targets(1), {"p": server.config("ok", key_file=path)})
