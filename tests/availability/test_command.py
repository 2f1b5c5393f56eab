"""The command `availability`: its table, its formats, its page and its picture."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from modelctl import Fleet
from tests import fleets
from tests.commands import Cli, obey_file_modes, plain, run, seen
from tests.fleets import HOUR, environ

HOSTILE = "<script>document.title='owned'</script>&\"'<!--"
BLOCKS = re.compile("[█▄▁]{24}")


@pytest.fixture
def told(fleet: Fleet, fleet_url: str) -> str:
    """Give a database with models that had outages, the last 10 days of which are told."""
    fleets.seed(fleet, ["acme/good", "acme/bad", HOSTILE])
    fleets.let_pass(fleet_url, 8 * 24 * HOUR)
    fleet.disable("acme/bad")
    fleets.let_pass(fleet_url, 24 * HOUR)
    fleet.enable("acme/bad")
    fleets.let_pass(fleet_url, 24 * HOUR)
    return fleet_url


def test_the_table_fits_into_80_columns(told: str) -> None:
    """On a terminal each model has its share and a whole bar; the legend and the total are below."""
    code, shown = seen("availability", columns=80, environ=environ(told))
    text = plain(shown)
    assert code == 0, shown
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    assert any("acme/bad" in line and "85.7" in line and BLOCKS.search(line) for line in lines), (
        text
    )
    assert len(BLOCKS.findall(text)) == 3, text
    assert "all: 95.24% on, 3 models, 1 outage (1 by a person" in text.replace("\n", " ")


def test_a_terminal_without_blocks_gets_letters(told: str) -> None:
    """Where the encoding has no blocks, the bar is of ASCII."""
    ascii_only = {**environ(told), "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    code, shown = seen("availability", columns=100, environ=ascii_only)
    assert code == 0
    assert re.search(r"acme/bad.* #{10,}\+?\.+\+?#+", plain(shown)), shown


def test_every_format_has_every_model(told: str, tool: Cli) -> None:
    """JSON has the period, the total and the providers; the others have a line for each model."""
    document = tool("availability", "-o", "json").json
    assert [m["id"] for m in document["models"]] == ["acme/bad", HOSTILE, "acme/good"]
    worst = document["models"][0]
    assert worst["share"] == pytest.approx(6 / 7, abs=1e-4)
    assert worst["outages_by_person"] == 1
    assert worst["longest_outage_seconds"] == pytest.approx(24 * HOUR, abs=60)
    assert len(worst["strip"]) == 24
    assert document["total"]["models"] == 3
    assert document["providers"][0]["outages"] == 1
    lines = tool("availability", "-o", "jsonl").lines
    assert [json.loads(line)["id"] for line in lines] == [m["id"] for m in document["models"]]
    csv = tool("availability", "-o", "csv").lines
    assert csv[0].startswith("id,provider,status,share,outages,off_seconds,")
    assert len(csv) == 4
    assert tool("availability", "-o", "tsv").lines[0].startswith("acme/bad\t\tactive\t0.857")
    assert tool("availability", "-o", "name").lines == [m["id"] for m in document["models"]]


def test_selections(told: str, tool: Cli) -> None:
    """Ids and a provider choose models; the period may be given as times."""
    assert tool("availability", "acme/good", "-o", "name").lines == ["acme/good"]
    assert tool("availability", "--provider", "none", "-o", "name").lines == []
    tool("availability", "acme/goof").failed(4, "acme/goof")
    tool("availability", "--since", "tomorrow").failed(2, "tomorrow")
    tool("availability", "--since", "1h", "--until", "2026-01-01T00:00Z").failed(2, "empty")
    early = tool(
        "availability", "--since", "2026-01-01T00:00Z", "--until", "2026-01-02T00:00Z", "-o", "json"
    )
    assert early.json["until"] == "2026-01-02T00:00:00.000Z"


def test_another_programs_change_is_said(told: str, tool: Cli) -> None:
    """A change without an event is named below the table, and in JSON the model says so."""
    fleets.alter(told, "acme/good", active=False)
    fleets.sql(
        told, "DELETE FROM modelctl_events WHERE model_id = 'acme/good' AND event <> 'added'"
    )
    table = tool("availability", "-o", "table").out
    assert "changed by another program without an event: acme/good" in table
    models = tool("availability", "-o", "json").json["models"]
    assert [model["id"] for model in models if model["differs"]] == ["acme/good"]


# ── The page ────────────────────────────────────────────────────────────────────────────────────


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that it ends what began last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def test_the_page_is_whole_and_alone(told: str, tool: Cli, tmp_path: Path) -> None:
    """It has a strip for each model and one for all, well-formed tags, no script and no address."""
    folder = tmp_path / "www"
    folder.mkdir()
    page = folder / "page.html"
    said = tool("availability", "--html", str(page))
    assert (said.code, said.out, said.err) == (0, "", "")
    text = page.read_text()
    found = Tags(text)
    assert found.open == []
    strips = [attrs for _, attrs in found.tags if attrs.get("class") == "strip"]
    assert len(strips) == 4
    assert HOSTILE in found.text
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "a"}
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href")}
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert [*folder.iterdir()] == [page]


def test_the_page_replaces_its_file(told: str, tool: Cli, tmp_path: Path) -> None:
    """The mode stays, a link stays a link, and -o prints as well."""
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    assert tool("availability", "--html", str(link), "-o", "name").lines[0] == "acme/bad"
    assert link.is_symlink()
    assert page.read_text().endswith("</html>\n")
    assert stat.S_IMODE(page.stat().st_mode) == 0o640


def test_a_page_that_cannot_be_written(told: str, tool: Cli, tmp_path: Path) -> None:
    """The error names the file, and what was there stays."""
    tool("availability", "--html", str(tmp_path)).failed(2, "folder")
    tool("availability", "--html", str(tmp_path / "no" / "page.html")).failed(2, "No such file")
    tool("availability", "--html", "").failed(2, "folder")
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "page.html").write_text("old")
    closed.chmod(0o500)
    said = run(
        "availability", "--html", str(closed / "page.html"), before=obey_file_modes, **environ(told)
    )
    said.failed(2, "Permission denied")
    assert (closed / "page.html").read_text() == "old"


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_a_browser_shows_the_page(told: str, tool: Cli, tmp_path: Path) -> None:
    """A real browser runs nothing of an id, and draws each strip as wide as the page."""
    page = tmp_path / "page.html"
    tool("availability", "--html", str(page))
    done = subprocess.run(
        [
            str(shutil.which("chromium")),
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
            ),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = Tags(done.stdout.replace("</meta>", ""))
    assert "<title>Availability of the models</title>" in done.stdout
    assert HOSTILE in found.text
    assert "script" not in {tag for tag, _ in found.tags}


# ── The picture ─────────────────────────────────────────────────────────────────────────────────


def test_a_picture_without_matplotlib(told: str, tmp_path: Path) -> None:
    """The error says what to install, and nothing is written."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')\n")
    picture = tmp_path / "picture.png"
    said = run("availability", "--png", str(picture), PYTHONPATH=str(tmp_path), **environ(told))
    said.failed(2, "matplotlib", "modelctl[plot]")
    assert not picture.exists()


def test_the_picture(told: str, tool: Cli, tmp_path: Path) -> None:
    """It is a PNG."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    said = tool("availability", "--png", str(picture))
    assert (said.code, said.out) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_command_loads_no_plotting(told: str) -> None:
    """Without --png nothing of matplotlib is looked for."""
    script = (
        "import sys; from modelctl.cli.main import main; code = main(['availability', '-o', 'name']);"
        " sys.exit(code or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environ(told), check=False
    )
    assert done.returncode == 0
