"""The settings are shown as they are in force, and the example file agrees with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from modelctl.config.config import Config
from modelctl.config.load import default_actor
from modelctl.config.named import key_of
from modelctl.config.sections import KEYS
from modelctl.config.settings import settings
from modelctl.config.sources import SourceConfig
from modelctl.errors import InvalidConfigError
from tests import ROOT
from tests.config.loading import database, load, redis

EXAMPLE = ROOT / "config.example.toml"


def test_settings_show_each_key_as_the_file_would(home: Path) -> None:
    """A row has the key, its value as in TOML, its origin and its variable; passwords are hidden."""
    config = load(
        home, "[cache]\nttl = '90s'", MODELCTL_DATABASE_URL="postgresql://me:zq7secret@h/db"
    )
    rows = {row.key: row for row in settings(config)}
    assert list(rows) == [str(key) for key in KEYS]
    assert rows["database.url"].value == "postgresql://me:***@h/db"
    assert rows["database.url"].origin == "environment MODELCTL_DATABASE_URL"
    assert rows["cache.ttl"].value == "90s"
    assert rows["cache.ttl"].origin == "file"
    assert rows["cache.ttl"].variable == "MODELCTL_CACHE_TTL"
    assert rows["health.counted"].value == ("parse-error", "client-error")
    for row in rows.values():
        tomllib.loads(f"value = {json.dumps(row.value)}")
    assert settings(Config())[0].origin == "default"


def test_example_file_is_the_defaults() -> None:
    """The example loads, changes nothing, and writes out every key but the URLs."""
    config = Config.load(EXAMPLE, environ={"HOME": "/nowhere"})
    assert config == Config(
        file=EXAMPLE, origins=config.origins, data_home=Path("/nowhere/.local/share")
    )
    assert {key for key, origin in config.origins.items() if origin == "default"} == {
        "database.url",
        "redis.url",
    }


def test_example_file_explains_every_key() -> None:
    """Above each key stand its unit, its sense and its variable, and beside it its default."""
    text = EXAMPLE.read_text()
    for key, row in zip(KEYS, settings(Config()), strict=True):
        section = text.split(f"[{key.section}]\n")[1]
        blocks = [block for block in section.split("\n\n") if f"# {key.variable}" in block]
        unit, sense = key.field.metadata["unit"], key.field.metadata["help"]
        assert blocks[0].startswith(f"# {unit}: {sense}")
        value = '# url = "' if key.secret else f"\n{key.field.name} = {json.dumps(row.value)}"
        assert value in blocks[0]


def test_urls_of_the_example_file_are_valid() -> None:
    """Each URL that the example proposes can be taken over."""
    text = EXAMPLE.read_text().partition("# [probe.")[0]
    lines = [line[2:] for line in text.splitlines() if line.startswith("# url = ")]
    assert len(lines) >= 4
    for line in lines:
        url = tomllib.loads(line)["url"]
        assert database(url) if url.startswith(("postgresql", "sqlite")) else redis(url)


def test_the_recommended_guards_can_be_taken_over(home: Path) -> None:
    """The block that the example recommends for [recovery] is valid, and switches every guard on."""
    text = EXAMPLE.read_text().partition("# Recommended for an unattended fleet")[2]
    block = text.partition("\n\n")[0].splitlines()[1:]
    config = load(home, "[recovery]\n" + "\n".join(line.removeprefix("# ") for line in block))
    rule = config.recovery
    assert (rule.cooldown_factor, rule.min_active, rule.max_auto_disabled_percent) == (2, 1, 50)
    assert (rule.incident_models, rule.max_ejections, rule.limit) == (3, 5, 10)
    assert rule.expect_every == 900


def test_the_named_sections_of_the_example_can_be_taken_over(home: Path) -> None:
    """Each [probe.NAME] and [source.NAME] that the example proposes is valid."""
    text = "[probe." + EXAMPLE.read_text().partition("# [probe.")[2]
    paragraphs = text.replace("\n# [", "\n\n# [").split("\n\n")
    sections = [part.removeprefix("# ") for part in paragraphs if part.lstrip("# ")[:1] == "["]
    lines = [line.removeprefix("# ").removeprefix("#") for s in sections for line in s.splitlines()]
    others = ("key_file", "file", 'command = ["/usr/local/bin/list-models')
    config = load(home, "\n".join(line for line in lines if not line.startswith(others)))
    assert {*config.probes} == {"openai", "my lab"}
    assert config.probes["openai"].max_tokens == 16
    [source] = config.sources.values()
    assert (source.except_, source.timeout) == (("*:free",), 60)
    keys = {line.split()[0].rstrip("_") for line in lines if " = " in line}
    assert {key_of(field.name) for field in fields(SourceConfig)[1:]} <= keys


def test_settings_show_how_each_provider_is_asked(home: Path) -> None:
    """All that matters to a probe, set or not, as the file would write it; no words of a command."""
    config = load(
        home,
        "[probe.p]\nurl = 'http://h/v1'\nkey_env = 'KEY'\nallow_http = true\ntimeout = '90s'\n"
        "[probe.'my lab']\ncommand = ['ask', '--password=zq7secret']\nmodel = '{id}'",
    )
    rows = settings(config)[len(KEYS) :]
    assert [(row.key, row.value, row.origin) for row in rows] == [
        ("probe.p.url", "http://h/v1", "file"),
        ("probe.p.key_env", "KEY", "file"),
        ("probe.p.model", "{name}", "default"),
        ("probe.p.max_tokens", 16, "default"),
        ("probe.p.max_tokens_field", "max_tokens", "default"),
        ("probe.p.stream", False, "default"),
        ("probe.p.timeout", "90s", "file"),
        ("probe.p.allow_http", True, "file"),
        ("probe.p.allow_private", False, "default"),
        ('probe."my lab".command', ["ask", "..."], "file"),
        ('probe."my lab".model', "{id}", "file"),
        ('probe."my lab".timeout', "10s", "default"),
    ]
    for row in rows:
        tomllib.loads(f"{row.key} = {json.dumps(row.value)}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[probe.p]\nurl = 'http://h/v1'", ['probe."p"', "plain http"]),
        ("[probe.p]\nurll = 'x'", ["urll", "nearest is url"]),
        ("[probe.p]\ncommand = 'x'", ["command", "list of strings"]),
        ("[probe.p]\ncommand = []", ["command"]),
        ("[probe.p]\ncommand = ['x']\ntimeout = 5", ["timeout", "duration"]),
        ("[probe.p]\ncommand = ['x']\nallow_http = 1", ["allow_http", "true or false"]),
        ("[probe.p]\ncommand = ['x']\nmax_tokens = '1'", ["max_tokens", "whole number"]),
        ("[probe]\np = 1", ["probe.p", "section"]),
        ("probe = 1", ["probe in", "must be a section", "[probe.NAME]"]),
        ("[recovery]\ncooldown_factor = 1.05", ["cooldown_factor", "1.1 to 10"]),
        ("[recovery]\ncooldown_factor = nan", ["cooldown_factor", "1.1 to 10"]),
        ("[recovery]\ncooldown_factor = '2'", ["cooldown_factor", "a number"]),
        ("[recovery]\nmax_auto_disabled_percent = 101", ["0 to 100"]),
    ],
)
def test_bad_guards_and_probes(home: Path, text: str, words: list[str]) -> None:
    """A mistake in a guard or a probe is one error that says where it is and what is expected."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, text)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_default_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable wins, else it is user@host, under sudo of its caller; it is cut and can be stored."""
    host = os.uname().nodename
    assert default_actor({"MODELCTL_ACTOR": "ci", "USER": "me"}) == "ci"
    assert default_actor({"MODELCTL_ACTOR": "", "LOGNAME": "me", "USER": "you"}) == f"me@{host}"
    assert default_actor({"USER": "you"}) == f"you@{host}"
    assert default_actor({"MODELCTL_ACTOR": "x" * 300}) == "x" * 200
    assert default_actor({"MODELCTL_ACTOR": "a\udcff"}) == "a\ufffd"
    sudo = {"LOGNAME": "root", "SUDO_USER": "alice"}
    assert default_actor(sudo) == f"alice@{host} (sudo)"
    assert default_actor(sudo | {"MODELCTL_ACTOR": "ci"}) == "ci"
    assert default_actor({"LOGNAME": "app", "SUDO_USER": "root"}) == f"app@{host}"
    assert default_actor({"LOGNAME": "me", "SUDO_USER": "me"}) == f"me@{host}"
    assert default_actor({}).endswith(f"@{host}")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert default_actor({}) == f"4000000@{host}"


def test_import_and_load_without_a_file_stay_cheap(home: Path) -> None:
    """Nothing that only a file, a fault or a nameless user needs is loaded at start."""
    code = (
        # Since Python 3.13 pathlib loads pwd.
        "import sys, pathlib; before = set(sys.modules);"
        "import modelctl.config.load as l; from modelctl.config.config import Config;"
        "l.SYSTEM_FILE = l.Path('/nowhere'); Config.load(); l.default_actor();"
        "loaded = set(sys.modules) - before;"
        "print(*{'tomllib', 'difflib', 'pwd', 'json', 'socket'} & loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "USER": "me"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
