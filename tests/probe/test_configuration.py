"""A bad configuration of probes is refused, and without probes nothing is loaded for them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from modelctl.config.probes import ProbeConfig, check_probe
from modelctl.errors import InvalidConfigError, UsageError
from modelctl.probe.ask import Target, ask
from tests.probe.provider import Server, ask_one, command, targets


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": ""}, "either a url or a command"),
        ({"command": ("true",)}, "either a url or a command"),
        ({"key_env": "A", "key_file": "b"}, "either key_env or key_file"),
        ({"url": "ftp://h/v1"}, "https://"),
        ({"url": "h/v1"}, "https://"),
        ({"url": "https://me:secret@h/v1"}, "no user or password"),
        ({"url": "https://secret@h"}, "no user or password"),
        ({"url": "https://h/v1?secret=1"}, "no query"),
        ({"url": "https://h/v1#secret"}, "no query"),
        ({"url": "https://h/v1?"}, "no query"),
        ({"url": "https://h\\@secret/v1"}, "malformed"),
        ({"url": "https://h/v1 secret"}, "malformed"),
        ({"url": "https://h/v1\nsecret"}, "malformed"),
        ({"url": "https://h:secret/v1"}, "malformed"),
        ({"url": "https://h:0/v1"}, "malformed"),
        ({"url": "https://h:65536/v1"}, "malformed"),
        ({"url": "https:///v1"}, "malformed"),
        ({"url": "https://secret→/v1"}, "malformed"),
        ({"url": "https://[::1/v1"}, "malformed"),
        ({"url": "http://h/v1"}, "plain http"),
        ({"timeout": 0.09}, "timeout"),
        ({"timeout": 600.1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"url": "", "command": ("",)}, "begin with a program"),
        ({"url": "", "command": ("true", "\0")}, "NUL"),
        ({"max_tokens_field": ""}, "max_tokens_field"),
        ({"max_tokens_field": "max tokens"}, "max_tokens_field"),
        ({"max_tokens_field": "zahl_ü"}, "max_tokens_field"),
        ({"max_tokens_field": "model"}, "max_tokens_field"),
    ],
)
def test_bad_probes(changes: dict[str, Any], words: str) -> None:
    """A probe that makes no sense is refused, also by `ask`, and its URL is not shown."""
    config = ProbeConfig("p", **({"url": "https://h/v1"} | changes))
    for check in (lambda: check_probe(config), lambda: ask(targets(1), {"p": config})):
        with pytest.raises(UsageError, match=words) as caught:
            check()
        assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "https://api.openai.com/v1"},
        {"url": "https://h"},
        {"url": "https://h:8443/a/b%20c/"},
        {"url": "https://[2606:4700::1111]:443/v1"},
        {"url": "http://h/v1", "allow_http": True},
        {"timeout": 0.1},
        {"timeout": 600},
    ],
)
def test_good_probes(changes: dict[str, Any]) -> None:
    """Ordinary probes pass."""
    check_probe(ProbeConfig("p", **({"url": "https://h/v1"} | changes)))


def test_a_provider_without_a_probe(server: Server) -> None:
    """A model whose provider has no probe is an error before any request."""
    with pytest.raises(InvalidConfigError, match="provider 'q' has no probe"):
        ask([Target("1", "p"), Target("2", "q")], {"p": server.config("ok")})
    assert server.requests == []


def test_no_concurrency(server: Server) -> None:
    """A concurrency of 0 is refused."""
    with pytest.raises(UsageError, match="concurrency"):
        ask(targets(1), {"p": server.config("ok")}, concurrency=0)


def run_python(code: str) -> str:
    """Run code in a fresh Python and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    """Importing the module, and running commands, loads no HTTP client."""
    code = (
        "import sys\n"
        "from modelctl.probe.ask import *\n"
        "list(ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('true',))}))\n"
        "print(*sys.modules)\n"
    )
    assert not {"httpx", "httpcore", "anyio", "sqlalchemy"} & set(run_python(code).split())


def test_without_httpx() -> None:
    """Without the extra, HTTP probes say how to install it, and commands run."""
    code = (
        "import sys\n"
        "from modelctl.errors import InvalidConfigError\n"
        "from modelctl.probe.ask import *\n"
        "sys.modules['httpx'] = None\n"
        "print(*ask([Target('1', 'p')], {'p': ProbeConfig('p', command=('true',))}))\n"
        "try:\n"
        "    ask([Target('1', 'p')], {'p': ProbeConfig('p', url='https://h')})\n"
        "except InvalidConfigError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    said = run_python(code)
    assert "healthy=True" in said
    assert "needs httpx pip install 'modelctl[probe]'" in said


def test_commands_may_run_modelctl() -> None:
    """The variables that a command gets are accepted by modelctl itself."""
    config = command(sys.executable, "-m", "modelctl", "config", "show", timeout=60)
    assert ask_one(config).healthy


def test_the_name_is_the_id_without_its_provider() -> None:
    """The name is the id without its own provider in front."""
    names = [Target(id_, "p").name for id_ in ("p/m", "p/p/m", "q/m", "p", "pp/m")]
    assert names == ["m", "p/m", "q/m", "p", "pp/m"]
