"""What is published is complete: the wheel, the source distribution and their metadata."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(3 * 3600)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*words: str | Path, folder: Path | None = None) -> str:
    """Run a program that must succeed; return what it prints."""
    done = subprocess.run([*words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def make_venv(folder: Path, *packages: str | Path) -> Path:
    """Make a virtual environment with these packages; return the folder of its programs."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "-q", *packages)
    return folder / "bin"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs that check packages."""
    return make_venv(tmp_path_factory.mktemp("tools"), *PROJECT["dependency-groups"]["release"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Path:
    """The folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(tools / "python", "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    [file] = built.glob("*.whl")
    return file


def test_the_checkers_of_packages_find_nothing(tools: Path, built: Path, wheel: Path) -> None:
    """twine, check-wheel-contents, validate-pyproject and pyroma have no complaint."""
    run(tools / "twine", "check", "--strict", *built.iterdir())
    run(tools / "check-wheel-contents", wheel)
    run(tools / "validate-pyproject", ROOT / "pyproject.toml")
    # The project has no address of its own yet, and its authors have none in common.
    missing = {"Url": "urls" in PROJECT["project"], "AuthorEmail": False}
    skipped = ",".join(name for name, there in missing.items() if not there)
    rating = run(tools / "pyroma", "--min=10", f"--skip-tests={skipped}", ROOT)
    assert "Final rating: 10/10" in rating


def test_the_checkers_of_images_and_workflows_find_nothing(tools: Path) -> None:
    """hadolint, zizmor and the schemas of the code host have no complaint."""
    run(tools / "hadolint", ROOT / "Dockerfile")
    host = ROOT / ".github"
    run(tools / "zizmor", "--offline", host)
    for schema, files in {
        "github-workflows": [*(host / "workflows").iterdir()],
        "github-issue-forms": [host / "ISSUE_TEMPLATE" / "bug.yml"],
        "github-issue-config": [host / "ISSUE_TEMPLATE" / "config.yml"],
        "dependabot": [host / "dependabot.yml"],
    }.items():
        run(tools / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_the_manual_page_is_clean() -> None:
    """mandoc has no complaint about it, not even about its style."""
    if not shutil.which("mandoc"):
        pytest.fail("mandoc is not installed, and this test needs it")
    assert run("mandoc", "-T", "lint", ROOT / "docs" / "modelctl.1") == ""


def test_what_the_wheel_brings(wheel: Path, tmp_path: Path) -> None:
    """An installed wheel prints the examples, is typed, and its description has no dead link."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "modelctl/py.typed" in names
    [name] = [name for name in names if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    targets = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    programs = make_venv(tmp_path / "venv", wheel)
    assert (programs.parent / "share" / "man" / "man1" / "modelctl.1").exists()
    for option, file in {"": "config.example.toml", "--cron": "examples/crontab"}.items():
        printed = run(programs / "modelctl", "config", "example", *option.split(), folder=tmp_path)
        assert printed == (ROOT / file).read_text()
    assert "ExecStart=" in run(programs / "modelctl", "config", "example", "--systemd")


def test_the_source_distribution_is_complete(built: Path, tools: Path, tmp_path: Path) -> None:
    """It has every file of the repository; from it, without git, the same two files are built."""
    [file] = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = sorted(archive.getnames())
        archive.extractall(tmp_path, filter="data")
    [folder] = tmp_path.iterdir()
    if (ROOT / ".git").exists():
        tracked = run("git", "ls-files", folder=ROOT).split("\n")[:-1]
        assert names == sorted(f"{folder.name}/{name}" for name in [*tracked, "PKG-INFO"])
    run(tools / "python", "-m", "build", "--outdir", tmp_path / "again", folder)
    for first in built.iterdir():
        assert (tmp_path / "again" / first.name).read_bytes() == first.read_bytes()


def test_the_source_distribution_passes_its_own_tests(built: Path, tmp_path: Path) -> None:
    """All that the tests need is in it: they pass in an empty folder, as its README says."""
    [file] = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = tmp_path.iterdir()
    expected = {".ci/run", "uv.lock", "benchmarks", "docs", "examples", "tests", "CHANGELOG.md"}
    assert {name for name in expected if not (folder / name).exists()} == set()
    programs = make_venv(folder / ".venv", "-e", f"{folder}[dev]")
    run(programs / "pytest", "-q", folder=folder)
