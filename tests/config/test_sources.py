"""The sections [source.NAME] are read in their order, and a mistake in them says where it is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from modelctl.config.sections import KEYS
from modelctl.config.settings import settings
from modelctl.config.sources import SourceConfig, check_source
from modelctl.errors import InvalidConfigError, UsageError
from tests.config.loading import load

SECTIONS = """
[source.zeta]
url = 'https://h/v1/models?key=zq7secret'
key_env = 'MODELCTL_SOURCE_KEY'
except = ['*:free']
timeout = '90s'
[source."a b"]
command = ['list', '--password=zq7secret']
modes = ['chat']
[source.alpha]
file = '/srv/models.json'
"""


def test_sources_are_read_and_shown(home: Path) -> None:
    """The order is that of the file, and `config show` shows no query and no words of a command."""
    config = load(home, SECTIONS, MODELCTL_SOURCE_KEY="zq7secret")
    assert [*config.sources] == ["zeta", "a b", "alpha"]
    assert config.sources["zeta"].except_ == ("*:free",)
    rows = settings(config)[len(KEYS) :]
    assert [(row.key, row.value, row.origin) for row in rows] == [
        ("source.zeta.url", "https://h/v1/models?***", "file"),
        ("source.zeta.key_env", "MODELCTL_SOURCE_KEY", "file"),
        ("source.zeta.except", ("*:free",), "file"),
        ("source.zeta.timeout", "90s", "file"),
        ("source.zeta.allow_http", False, "default"),
        ("source.zeta.allow_private", False, "default"),
        ('source."a b".command', ["list", "..."], "file"),
        ('source."a b".modes', ("chat",), "file"),
        ('source."a b".timeout', "1m", "default"),
        ("source.alpha.file", "/srv/models.json", "file"),
        ("source.alpha.timeout", "1m", "default"),
    ]
    for row in rows:
        tomllib.loads(f"{row.key} = {json.dumps(row.value)}")
    assert "zq7secret" not in repr(config.sources["zeta"])
    assert config.hide("at https://h/v1/models?key=zq7secret: no") == "at ***: no"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "1 to 100 characters"),
        ({"name": "a\x1b"}, "no control characters"),
        ({"name": " a"}, "blanks at its ends"),
        ({"url": ""}, "one of url, file and command"),
        ({"file": "x"}, "one of url, file and command"),
        ({"url": "", "command": ("",)}, "begin with a program"),
        ({"url": "http://h/"}, "plain http"),
        ({"url": "https://me:secret@h/"}, "no user or password"),
        ({"url": "https://h/ secret"}, "malformed"),
        ({"key_env": "A", "key_file": "b"}, "either key_env or key_file"),
        ({"url": "", "file": "x", "key_env": "A"}, "only a url gets a key"),
        ({"key_header": "api-key"}, "key_header needs"),
        ({"key_env": "A", "key_header": "a: b"}, "name of a header"),
        ({"key_env": "A", "key_header": "Host"}, "name of a header"),
        ({"timeout": 0.0}, "timeout must be"),
        ({"format": "openruter"}, "'openruter' is not a format"),
        ({"only": ("gpt[",)}, r"only: 'gpt\[': the \[ has no \]"),
        ({"except_": ("[z-a]",)}, "except: .* runs backwards"),
        ({"modes": ("chat", " ")}, "modes: a mode is a word"),
        ({"prefix": "x" * 200}, "prefix has fewer"),
        ({"tags": ("a,b",)}, "tags: a tag has no commas"),
    ],
)
def test_bad_sources(changes: dict[str, Any], words: str) -> None:
    """A source that makes no sense is refused, and its URL is not shown."""
    values: dict[str, Any] = {"name": "s", "url": "https://h/v1/models"}
    with pytest.raises(UsageError, match=words) as caught:
        check_source(SourceConfig(**(values | changes)))
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[source]\nurl = 'https://h'", ["source.url", "[source.NAME] on a line of its own"]),
        ("[source.s]\nurl = 'https://h'\nexcept_ = []", ["except_", "nearest is except", '"s"']),
        ("[source.s]\nurl = 'https://u:p@h'", ["no user or password", "use key_env or key_file"]),
        ("[source.s]\nurl = 'https://h'\nonly = 'x'", ["only", "list of strings", '"s"']),
        ("[source.s]\nurl = 'https://h'\nformat = 'x'", ['[source."s"]', "format", "all: jsonl"]),
        ("[sources.s]\nurl = 'https://h'", ["[sources]", "nearest section is [source]"]),
    ],
)
def test_a_mistake_names_its_section_and_key(home: Path, text: str, words: list[str]) -> None:
    """A mistake is an error of the configuration that says where it is and what is expected."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, text)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"
