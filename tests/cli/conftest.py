"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backup.exports import export_of, held, model
from tests.commands import make_fleet


@pytest.fixture
def fleet() -> None:
    """Make a database with five models where the program looks for one."""
    make_fleet()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the names of a catalogue, of a bad one, and of a batch of outcomes."""
    texts = {
        "CATALOGUE": '{"id": "new/model", "name": "New", "mode": "chat"}\n{"id": "acme/one", "name": "Uno", "mode": "chat"}\n',
        "BATCH": '{"id": "acme/one", "outcome": "success"}\n',
        "CONFIG": "[cache]\nttl = '30s'\n[probe.acme]\ncommand = ['true']\n"
        f"[source.mine]\nfile = '{tmp_path}/catalogue'\n",
    }
    texts["EXPORT"] = export_of(held("acme/one"), model("new/model")).decode()
    names = {name: str(tmp_path / name.lower()) for name in texts}
    for name, text in texts.items():
        Path(names[name]).write_text(text)
    return names
