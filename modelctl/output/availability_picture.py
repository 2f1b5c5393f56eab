"""The availability as a picture, drawn by matplotlib, which the extra ``plot`` installs."""

from __future__ import annotations

import importlib
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelctl.errors import ModelctlError, clean
from modelctl.output.values import table_text
from modelctl.output.views_availability import percent, summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from modelctl.availability.results import Availability

# The strips of a picture; more of them would be too thin to see. The lowest share comes first.
MAX_MODELS = 100
_COLOURS = {"on": "#2da44e", "partly": "#d4a72c", "off": "#cf222e", "absent": "#e7ebef"}


def plotting() -> Any:
    """Return matplotlib's module of figures; if it is missing, the error says how to install it."""
    try:
        # By its name, because type checkers would miss it where it is not installed.
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ModelctlError(
            "--png needs matplotlib, which is not installed",
            hint="pip install 'modelctl[plot]', or use --html",
        ) from None


def draw_picture(result: Availability, file: BinaryIO) -> None:
    """Write a PNG with a strip for each of the first `MAX_MODELS`, and one for all."""
    shown = [*islice(result.models, MAX_MODELS)]
    lines: list[tuple[str, Any]] = [("all", result.total), *((m.id, m) for m in shown)]
    figure = plotting().Figure(figsize=(12, 1.4 + 0.28 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for place, (_, of) in enumerate(lines):
        for kind, spans in _spans(of.strip).items():
            axes.broken_barh(spans, (place - 0.4, 0.8), color=_COLOURS[kind], linewidth=0)
    # parse_math: an id with two dollar signs is no formula.
    names = [clean(name, longest=60) for name, _ in lines]
    axes.set_yticks(range(len(lines)), names, parse_math=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(lines)), [percent(of.share) or "-" for _, of in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, len(result.total.strip))
    ends = [table_text(result.since), table_text(result.until)]
    axes.set_xticks([0, len(result.total.strip)], ends)
    for side in ("top", "left", "bottom"):
        axes.spines[side].set_visible(False)
    title = f"Availability: {summary(result.total)}"
    if len(result.models) > len(shown):
        title += f"\n(the {len(shown)} of {len(result.models)} models with the lowest share)"
    axes.set_title(title, loc="left", parse_math=False)
    figure.savefig(file, format="png", dpi=120)


def _spans(strip: Sequence[float | None]) -> dict[str, list[tuple[int, int]]]:
    """Return where each colour begins, and how long it is."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for place, share in enumerate(strip):
        kind = "absent" if share is None else "partly"
        kind = {0.0: "off", 1.0: "on"}.get(-1.0 if share is None else share, kind)
        spans.setdefault(kind, []).append((place, 1))
    return spans
