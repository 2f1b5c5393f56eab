"""Fixtures of the tests of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelctl.config import load


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an empty home folder."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the system-wide file where no real one is."""
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    monkeypatch.setattr(load, "SYSTEM_FILE", file)
    return file
