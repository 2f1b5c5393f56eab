"""The availability as one HTML page, which needs nothing from elsewhere: no script, font or image."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from modelctl.errors import clean
from modelctl.views.availability import causes, duration, percent, remarks, summary
from modelctl.views.values import table_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from modelctl.availability.results import Availability, ModelAvailability

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Availability of the models</title>
<style>
:root { --text: #1b1f24; --dim: #59636e; --page: #ffffff; --line: #d1d9e0;
  --on: #2da44e; --partly: #d4a72c; --off: #cf222e; --absent: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --dim: #9198a1; --page: #0d1117; --line: #3d444d;
    --on: #3fb950; --partly: #d29922; --off: #f85149; --absent: #30363d; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, dd { color: var(--dim); margin: .2rem 0; }
dl { margin: 0; }
dt { display: flex; justify-content: space-between; gap: 1rem; margin-top: .9rem; }
dt span { overflow-wrap: anywhere; font-weight: 600; }
dt b { white-space: nowrap; font-variant-numeric: tabular-nums; }
dd { font-size: .85rem; margin: 0; overflow-wrap: anywhere; }
.strip { display: flex; height: 1.6rem; margin: .2rem 0; border-radius: 3px; overflow: hidden;
  background: var(--absent); }
.strip i { display: block; flex-basis: 0; min-width: 0; }
.on { background: var(--on); } .partly { background: var(--partly); }
.strip .partly { background: linear-gradient(to top, var(--on) var(--share), var(--partly) 0); }
.off { background: var(--off); } .absent { background: var(--absent); }
.strip .off { background: repeating-linear-gradient(45deg, var(--off) 0 4px, var(--page) 4px 5px); }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin: 0 .3rem 0 1rem; vertical-align: -.1rem; }
.ends { display: flex; justify-content: space-between; font-size: .85rem; }
</style>
</head>
<body>
"""
_KEY = (
    '<p class="key"><i class="on"></i>on<i class="partly"></i>partly on'
    '<i class="off"></i>off<i class="absent"></i>did not exist</p>\n'
)


def html_page(result: Availability) -> Iterator[str]:
    """Return the page in pieces: the totals, then a strip for each model."""
    since, until = table_text(result.since), table_text(result.until)
    yield _HEAD
    yield f"<h1>Availability of the models</h1>\n<p>{since} to {until} (UTC)</p>\n"
    yield f"<p><b>{_text(summary(result.total))}</b></p>\n"
    yield _strip(result.total.strip, result.since, result.until)
    yield _KEY
    for remark in remarks(result):
        yield f"<p>{_text(remark)}</p>\n"
    if len(result.providers) > 1:
        yield "<h2>Providers</h2>\n<dl>\n"
        for provider in result.providers:
            yield _heading(provider.provider or "no provider", percent(provider.share))
            yield f"<dd>{_strip(provider.strip, result.since, result.until)}"
            yield f"{_text(summary(provider))}</dd>\n"
        yield "</dl>\n"
    yield "<h2>Models</h2>\n"
    if result.models:
        yield "<dl>\n"
        for model in result.models:
            yield _heading(model.id, percent(model.share) or "did not exist")
            yield f"<dd>{_strip(model.strip, result.since, result.until)}{_text(_line(model))}</dd>\n"
        yield "</dl>\n"
    else:
        yield "<p>nothing to show</p>\n"
    yield f'<p class="ends"><span>{since}</span><span>{until}</span></p>\n</body>\n</html>\n'


def _heading(name: str, share: str) -> str:
    # <bdi>: letters that run from right to left do not move the number.
    return f"<dt><span><bdi>{_text(name)}</bdi></span><b>{_text(share)}</b></dt>\n"


def _line(model: ModelAvailability) -> str:
    words = [model.provider] if model.provider else []
    words.append(f"now {model.status}" if model.status else "removed")
    if model.outages:
        words.append(f"{model.outages} off ({causes(model)})")
        words.append(f"longest {duration(model.longest_outage_seconds)}")
        words.append(f"mean {duration(model.mean_outage_seconds)}")
    return " · ".join(words)


def _strip(strip: Sequence[float | None], since: datetime, until: datetime) -> str:
    """Return a strip; equal parts beside each other are one element, so that a page stays small."""
    pieces, place, width = [], 0, (until - since) / len(strip)
    for (kind, share), parts in groupby((_kind(share), share) for share in strip):
        length = len(list(parts))
        begin, end = since + place * width, since + (place + length) * width
        title = f"{table_text(begin)} to {table_text(end)}: {percent(share) or kind}"
        if share is not None:
            title += " on"
        style = f"flex-grow:{length}"
        if share is not None and kind == "partly":
            # So that the shortest outage can be seen.
            style += f";--share:{min(max(share, 0.1), 0.9):.0%}"
        pieces.append(f'<i class="{kind}" style="{style}" title="{_text(title)}"></i>')
        place += length
    return f'<div class="strip">{"".join(pieces)}</div>\n'


def _kind(share: float | None) -> str:
    if share is None:
        return "absent"
    return "on" if share == 1 else "off" if share == 0 else "partly"


def _text(text: str) -> str:
    """Return text as HTML: ids and names of providers are what other programs wrote."""
    return escape(clean(text))
