"""The availability as a picture, drawn by matplotlib, which the extra ``plot`` installs."""

from __future__ import annotations

import importlib
import warnings
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from modelctl.errors import UsageError, clean
from modelctl.model import numbered
from modelctl.views.availability import percent
from modelctl.views.values import table_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from modelctl.availability.results import Availability

# The strips of a picture; more of them would be too thin to see. The lowest share comes first.
MAX_MODELS = 100
_ON, _PARTLY, _OFF, _ABSENT = "#2da44e", "#d4a72c", "#cf222e", "#e7ebef"


def plotting() -> Any:
    """Return matplotlib's module of figures; if it is missing, the error says how to install it."""
    try:
        # By its name, because type checkers would miss it where it is not installed.
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UsageError(
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
        _draw_strip(axes, place, of.strip)
    # parse_math: an id with two dollar signs is no formula.
    names = [clean(name, longest=40) for name, _ in lines]
    axes.set_yticks(range(len(lines)), names, parse_math=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(lines)), [percent(of.share) or "-" for _, of in lines])
    for each in (axes, right):
        each.tick_params(axis="y", length=0)
        for spine in each.spines.values():
            spine.set_visible(False)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, len(result.total.strip))
    ends = [table_text(result.since), table_text(result.until)]
    axes.set_xticks([0, len(result.total.strip)], ends)
    title = (
        f"{percent(result.total.share) or 'nothing'} on, {numbered(result.total.outages, 'outage')}"
    )
    if len(result.models) > len(shown):
        title += f"; the {len(shown)} of {len(result.models)} models with the lowest share"
    axes.set_title(title, loc="left")
    with warnings.catch_warnings():
        # The font lacks letters of some scripts; it draws a box instead.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format="png", dpi=120)


def _draw_strip(axes: Any, place: int, strip: Sequence[float | None]) -> None:
    """Draw a strip; a part that was on for some of its time is filled from below to its share."""
    for share, run in groupby(enumerate(strip), key=lambda part: part[1]):
        parts = [part for part, _ in run]
        where = [(parts[0], len(parts))]
        partly = share is not None and 0 < share < 1
        colour = _ABSENT if share is None else _OFF if share == 0 else _PARTLY if partly else _ON
        axes.broken_barh(where, (place - 0.4, 0.8), color=colour, linewidth=0)
        if share is not None and partly:
            axes.broken_barh(where, (place + 0.4, -0.8 * share), color=_ON, linewidth=0)
