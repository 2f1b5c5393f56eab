"""The README and the other pages name files and wings that exist, and say what the program says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from modelctl import FailureType, __version__
from tests import ROOT
from tools import pages

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    """A relative link names a file that exists, and a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    """A path such as `count/protocol.py` is a file of the package, or one of the repository."""
    for name in re.findall(r"`([\w/.*]+/[\w.*]+\.py)`", page.read_text()):
        assert [*ROOT.glob(name), *(ROOT / "modelctl").glob(name)], name


def test_the_pages_that_are_made_are_what_the_program_says() -> None:
    """Each page that is made from the program is committed as it would be made now."""
    assert pages.differing() == [], f"run: {pages.REMAKE}"


def test_the_page_of_the_architecture_has_every_wing() -> None:
    """Each wing and top file of the layer contract has a place on the page, and each wing a row."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    named = {name for layer in layers for name in layer.split(" | ")} - {"__main__"}
    page = ARCHITECTURE.read_text()
    assert {name for name in named if not re.search(rf"\b{name}\b", page)} == set()
    wings = {name for name in named if (ROOT / "modelctl" / name).is_dir()}
    assert wings == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_map_has_every_wing() -> None:
    """The map for contributors names each wing."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    a_map = text[text.index("## The map") :]
    wings = {path.parent.name for path in (ROOT / "modelctl").glob("*/__init__.py")}
    assert {wing for wing in wings if not re.search(rf"\b{wing}\b", a_map)} == set()


def test_every_list_of_the_failure_types_is_complete() -> None:
    """The pages, the example of the configuration and the help of record-failure name each type."""
    pages_and_help = ("docs/recovery.md", "docs/config.md", "modelctl/commands/outcomes.py")
    for name in ("config.example.toml", *pages_and_help):
        text = (ROOT / name).read_text()
        assert {kind for kind in FailureType if kind not in text} == set(), name


def test_the_changelog_has_the_version() -> None:
    """Below "Unreleased" the changelog has this version with its date; examples name the same one."""
    headings = re.findall("^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", headings[1])
    images = re.findall(r"modelctl:(\S+)", (ROOT / "docs" / "operations.md").read_text())
    assert {*images} == {__version__}
