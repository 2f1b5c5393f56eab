"""Make the pages that are made from the program: `python -m tools.pages`.

A test compares what is made with what is committed. The parts by hand are in `tools/by_hand/`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from tools import commands_page, config_page, man_page, picture, python_page

ROOT = Path(__file__).parent.parent
REMAKE = "python -m tools.pages"


def made() -> dict[str, str]:
    """Return each page by its path."""
    pages = {
        "docs/commands.md": commands_page.page(),
        "docs/config.md": config_page.page(),
        "docs/modelctl.1": man_page.page(),
        "docs/python.md": python_page.page(),
    }
    # Tables of older versions are a column wider.
    if int(version("rich").partition(".")[0]) >= 15:
        pages["docs/session.svg"] = picture.picture()
    return pages


def differing() -> list[str]:
    """Return the paths of the pages that are not what the program says."""
    return [name for name, text in made().items() if (ROOT / name).read_text() != text]


if __name__ == "__main__":
    for name, text in made().items():
        (ROOT / name).write_text(text)
