"""What the build adds to pyproject.toml: the README for a package index, and the examples in the wheel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class Description(MetadataHookInterface):
    """The README as the description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README, without links that lead nowhere on a package index."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source", "").rstrip("/")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": _with_absolute_links(text, source),
        }


class Examples(BuildHookInterface):
    """The examples that `modelctl config example` prints, as files of the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to a wheel; an editable install reads them where they are."""
        if version != "editable":
            for name in ("config.example.toml", "examples"):
                build_data["force_include"][name] = f"modelctl/data/{name}"


def _with_absolute_links(text: str, source: str) -> str:
    """Replace links to files of the repository; without its address *source*, keep their text alone."""

    def replace(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        if source:
            return f"{image}[{words}]({source}/{'raw' if image else 'blob'}/HEAD/{path})"
        return "" if image else words

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", replace, text)
