"""Make docs/session.svg, a picture of a real session: `python -m tools.pages` does it.

The commands run one after the other in a process of its own, on a terminal and in an empty home. What
differs from run to run is made the same afterwards: the times, and the bar that shows progress.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLUMNS = 88
SESSION = (
    "modelctl import examples/fleet.jsonl",
    "modelctl count",
    "modelctl disable openai/gpt-5 --for 2h --reason 'bills too high'",
    "modelctl count",
    "modelctl record-failure xai/grok-4.3 --type parse-error --reason 'no JSON'",
    "modelctl list --off",
)
_BEGINNING = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
# Hides the cursor, draws lines, shows the cursor, and clears the last line.
_PROGRESS = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h\r\x1b\[1A\x1b\[2K", re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\dZ")
_FORM = "%Y-%m-%d %H:%MZ"
# As rich has it, but without fonts that the reader's browser would have to load.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>A session of modelctl on a terminal</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture() -> str:
    """Return the picture, made of a session of now."""
    from rich.console import Console
    from rich.text import Text

    # Nothing is written: it is recorded.
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    # The frame would cut the feet of the letters of the last line, so that is an empty one.
    console.print(Text.from_ansi(session()))
    console.print()
    svg = console.export_svg(title="modelctl", code_format=_SVG, unique_id="modelctl")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def session() -> str:
    """Run the commands and return what the terminal showed, with its colours."""
    with tempfile.TemporaryDirectory() as home:
        shown = _on_terminal(
            {"PATH": os.environ["PATH"], "HOME": home, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
            | {"MODELCTL_ACTOR": "ann", "PYTHONPATH": str(ROOT), "TZ": "UTC"}
        )
    shown = _PROGRESS.sub("", shown)
    first = min((_time(found[0]) for found in _TIME.finditer(shown)), default=_BEGINNING)
    shown = _TIME.sub(lambda found: (_time(found[0]) - first + _BEGINNING).strftime(_FORM), shown)
    return shown.replace("\r\n", "\n").strip()


def _time(text: str) -> datetime:
    return datetime.strptime(text, _FORM).replace(tzinfo=UTC)


def _on_terminal(environ: dict[str, str]) -> str:
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.picture"],
        cwd=ROOT,
        env=environ,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        while read := os.read(ours, 65536):
            shown += read
    except OSError:  # the end, on Linux
        pass
    os.close(ours)
    if process.wait():
        raise SystemExit(f"the session failed: {shown.decode()}")
    return shown.decode()


def _run() -> int:
    from modelctl.cli.main import main

    for number, line in enumerate(SESSION):
        gap = "\n" if number else ""
        print(f"{gap}\x1b[32m$\x1b[0m \x1b[1m{line}\x1b[0m", flush=True)  # noqa: T201 - the prompt
        if code := main(shlex.split(line)[1:]):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(_run())
