"""Runs in turn, ratios of pairs, verdicts, tables and the chart.

A machine that others use is noisy, but for a moment it is equally noisy for everybody. So product
and floor take turns, in another order each round; a ratio is taken in each round, and the figure is
the median of these ratios. The quartiles stand beside it: where they lie on both sides of a target
the verdict carries a question mark.
"""

from __future__ import annotations

import gc
import importlib
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

INSTALL = "pip install -e '.[bench]'"


_LEAST = 7  # rounds, however long they take


class MissingError(Exception):
    """A measurement cannot be made here; the text says why, in a few words."""


def optional(module: str) -> Any:
    """Import a module of the extra `bench`, which type checkers need not find.

    Raises:
        MissingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise MissingError(f"{module.split('.')[0]} is not installed: {INSTALL}") from exc


# ── Taking turns ────────────────────────────────────────────────────────────────────────────────


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warmups: int = 1,
    between: Callable[[], object] | None = None,
    patience: float | None = None,
) -> dict[str, list[float]]:
    """Let all run once per round, in a new order each round; collect the figures they return.

    *between*: called before each round, unmeasured. *patience*: after so many seconds seven rounds
    are enough: a busy machine should not make a quick run a long one.
    """
    order = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in order}
    start = time.monotonic()
    for number in range(-warmups, rounds):
        if patience and number >= _LEAST and time.monotonic() - start > patience:
            break
        if between:
            between()
        random.shuffle(order)
        for name in order:
            figure = contenders[name]()
            if number >= 0:
                figures[name].append(figure)
    return figures


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return how long one call takes, over so many calls."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def enough(work: Callable[[], object], block: float = 0.015, most: int = 200) -> int:
    """Return how many calls fill a block of so many seconds: a clock is poor at less."""
    work()
    return max(1, min(most, round(block / max(seconds(work, 3), 1e-6))))


# ── Figures ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        """Summarise."""
        known = sorted(figures)
        if len(known) == 1:
            return cls(*known * 3)
        return cls(*statistics.quantiles(known, n=4, method="inclusive"))


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure ought to be: at most, or at least, a number."""

    limit: float
    at_least: bool = False
    stretch: bool = False  # wished for, not promised

    def met(self, figure: float) -> bool:
        """Whether the figure is good enough."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + ("*" if self.stretch else "")


def at_most(limit: float, *, stretch: bool = False) -> Target:
    """The figure should not be above this."""
    return Target(limit, stretch=stretch)


def at_least(limit: float) -> Target:
    """The figure should not be below this."""
    return Target(limit, at_least=True)


def _shown(figures: list[float], unit: str) -> str:
    """The median of figures and their quartiles, as a person reads them."""
    spread = Spread.of(figures)
    size, name = next(
        (each for each in _UNITS[unit] if abs(spread.median) >= each[0]), _UNITS[unit][-1]
    )
    low, median, high = (f"{n / size:,.{_digits(n / size)}f}" for n in astuple(spread))
    return f"{median} {name}" if low == high else f"{median} ({low}–{high}) {name}"


def _digits(figure: float) -> int:
    """So many digits after the point that three count."""
    return 0 if abs(figure) >= 100 or figure == int(figure) else 1 if abs(figure) >= 10 else 2


# The sizes of each unit, the largest first.
_UNITS = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "per second": ((1.0, "/s"),),
    "MiB": ((1.0, "MiB"),),
    "number": ((1.0, ""),),
}


@dataclass(slots=True)
class Row:
    """One measurement: the product, perhaps a floor or peer of the same rounds, perhaps a target.

    With a floor the target is one for the ratio, without for the product's own figure.
    """

    group: str
    what: str
    product: list[float]
    against: str = ""
    floor: list[float] = field(default_factory=list)
    target: Target | None = None
    unit: str = "seconds"
    note: str = ""
    # A point of this curve in the chart, at this size.
    curve: str = ""
    size: int = 0

    @property
    def ratio(self) -> Spread | None:
        """The product's figure by the floor's, round by round."""
        pairs = list(zip(self.product, self.floor, strict=False))
        if not pairs or not all(floor for _, floor in pairs):
            return None
        return Spread.of(product / floor for product, floor in pairs)

    @property
    def judged(self) -> Spread:
        """What the target is for."""
        return self.ratio or Spread.of(self.product)

    @property
    def short(self) -> bool:
        """Whether a promised target is missed."""
        target = self.target
        return target is not None and not target.stretch and not target.met(self.judged.median)

    @property
    def verdict(self) -> str:
        """One word."""
        if self.target is None:
            return ""
        figure = self.judged
        sure = self.target.met(figure.low) == self.target.met(figure.high)
        if self.target.met(figure.median):
            word = "ok"
        else:
            word = "not yet" if self.target.stretch else "SHORT"
        return word if sure else f"{word}?"

    def as_json(self) -> dict[str, Any]:
        """Everything, the samples included."""
        ratio = self.ratio
        return {
            "group": self.group,
            "what": self.what,
            "against": self.against or None,
            "unit": self.unit,
            "product": self.product,
            "floor": self.floor or None,
            "ratio": [ratio.low, ratio.median, ratio.high] if ratio else None,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict or None,
            "size": self.size or None,
            "note": self.note or None,
        }


@dataclass(slots=True)
class Report:
    """All rows, in the order in which they were measured."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, *rows: Row) -> None:
        """Take rows in."""
        self.rows += rows

    def skip(self, what: str, why: object) -> None:
        """Remember what cannot be measured here."""
        self.skipped[what] = str(why)

    def fail(self, what: str, why: Exception) -> None:
        """Remember a section that broke."""
        self.failed[what] = f"{type(why).__name__}: {why}"

    @property
    def short(self) -> list[Row]:
        """The rows whose promised target is missed."""
        return [row for row in self.rows if row.short]


# ── Showing ─────────────────────────────────────────────────────────────────────────────────────


def show(report: Report, console: Console) -> None:
    """Print a table for each section, then what falls short and what was left out."""
    sections = dict.fromkeys(row.group.partition(".")[0] for row in report.rows)
    for section in sections:
        rows = [row for row in report.rows if row.group.partition(".")[0] == section]
        console.print(_table(section, rows))
    for what, why in report.skipped.items():
        console.print(f"skipped: {what}: {why}", style="yellow", markup=False)
    for what, why in report.failed.items():
        console.print(f"failed: {what}: {why}", style="red", markup=False)
    judged = [row for row in report.rows if row.target and not row.target.stretch]
    short = report.short
    console.print(f"{len(judged) - len(short)} of {len(judged)} targets met.", style="bold")
    for row in short:
        figure = f"{row.judged.median:.3g}" if row.ratio else _shown(row.product, row.unit)
        note = f"; {row.note}" if row.note else ""
        console.print(
            f"falls short: {row.group}: {row.what}: {figure}, wanted {row.target}{note}",
            style="red",
            markup=False,
        )


def _table(section: str, rows: list[Row]) -> Table:
    table = Table(title=section, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("what", min_width=28)
    table.add_column("median (quartiles)", justify="right", no_wrap=True)
    table.add_column("against")
    table.add_column("median (quartiles)", justify="right", no_wrap=True)
    table.add_column("ratio (quartiles)", justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("", min_width=7, no_wrap=True)
    for row in rows:
        ratio = row.ratio
        verdict = row.verdict
        style = "red" if row.short else "green" if verdict.startswith("ok") else "yellow"
        table.add_row(
            row.what + (f"\n  {row.note}" if row.note else ""),
            _shown(row.product, row.unit),
            row.against,
            _shown(row.floor, row.unit) if row.floor else "",
            f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "",
            str(row.target or ""),
            f"[{style}]{verdict}[/]" if verdict else "",
        )
    return table


def chart(report: Report, path: Path) -> None:
    """Draw cost against size, one panel for each curve, the quartiles as bars.

    Raises:
        MissingError: matplotlib is not installed, or nothing was measured that it could draw.
    """
    curves = list(dict.fromkeys(row.curve for row in report.rows if row.curve))
    if not curves:
        raise MissingError("nothing was measured at several sizes")
    matplotlib = optional("matplotlib")
    matplotlib.use("Agg")
    plt = optional("matplotlib.pyplot")
    figure, panels = plt.subplots(
        1, len(curves), figsize=(5 * len(curves), 4.2), squeeze=False, layout="constrained"
    )
    for panel, curve in zip(panels[0], curves, strict=True):
        rows = sorted((r for r in report.rows if r.curve == curve), key=lambda row: row.size)
        sizes = [row.size for row in rows]
        for label, mark, of in (
            ("modelctl", "o-", [Spread.of(row.product) for row in rows]),
            (rows[0].against, "s--", [Spread.of(row.floor) for row in rows]),
        ):
            bars = [
                [(s.median - s.low) * 1e3 for s in of],
                [(s.high - s.median) * 1e3 for s in of],
            ]
            medians = [s.median * 1e3 for s in of]
            panel.errorbar(sizes, medians, yerr=bars, fmt=mark, capsize=3, label=label)
        panel.set(title=curve, xlabel=_X_AXIS.get(curve, "models"), ylabel="milliseconds")
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


_X_AXIS = {"sweep": "other keys in Redis"}
