"""The view of the availability: a table with a bar of the period for each model."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from modelctl import streams
from modelctl.config.durations import format_duration
from modelctl.errors import clean
from modelctl.model import numbered
from modelctl.views.values import table_text
from modelctl.views.view import MAX_TABLE_ROWS, View, field_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.availability.results import (
        Availability,
        ModelAvailability,
        ProviderAvailability,
    )

# On, on for a part of the time, off, not there.
_BLOCKS = ("█", "▄", "▁", " ")
_ASCII = ("#", "+", ".", " ")
_NAMED_PROVIDERS = 10  # lines below the table
_NAMED_MODELS = 3


def availability_view(result: Availability) -> View:
    """Return the view of the availability, the lowest share first."""
    from modelctl.availability.results import ModelAvailability

    symbols = _BLOCKS if streams.can_write("".join(_BLOCKS)) else _ASCII
    rows = (
        (
            model.id,
            model.provider,
            percent(model.share),
            model.outages,
            duration(model.longest_outage_seconds),
            duration(model.mean_outage_seconds),
            causes(model),
            bar(model.strip, symbols),
        )
        for model in result.models
    )
    first = ("id", "provider", "status", "share", "outages", "off_seconds")
    return View(
        document=result,
        columns=("id", "provider", "on", "outages", "longest", "mean", "caused_by", "period"),
        rows=rows,
        items=result.models,
        fields=field_names(ModelAvailability, *first),
        optional=("mean", "caused_by", "provider", "longest"),
        note="\n".join(_notes(result, symbols)),
        max_rows=MAX_TABLE_ROWS,
    )


def _notes(result: Availability, symbols: tuple[str, str, str, str]) -> list[str]:
    on, partly, off, _ = symbols
    lines = [
        f"{table_text(result.since)} to {table_text(result.until)};"
        f" {on} on  {partly} partly on  {off} off",
        f"all: {summary(result.total)}",
    ]
    if 1 < len(result.providers) <= _NAMED_PROVIDERS:
        lines += [f"{clean(of.provider or '-')}: {summary(of)}" for of in result.providers]
    return [*lines, *remarks(result)]


def remarks(result: Availability) -> list[str]:
    """Return sentences about what the history does not tell."""
    lines = []
    late = differing = 0
    for model in result.models:
        late += model.concluded_seconds > 0
        differing += model.differs
    if late:
        lines.append(
            f"the history of {numbered(late)} begins later than the period (known_since);"
            " the status before is concluded from the first event, or from the present status"
        )
    if differing:
        names = islice((clean(m.id) for m in result.models if m.differs), _NAMED_MODELS)
        lines.append(
            f"changed by another program without an event: {', '.join(names)}"
            + (f" and {differing - _NAMED_MODELS} more" if differing > _NAMED_MODELS else "")
        )
    return lines


def summary(of: ProviderAvailability) -> str:
    """Return the numbers of a provider, or of all models, in words."""
    words = f"{percent(of.share) or 'nothing'} on, {numbered(of.models)}, {numbered(of.outages, 'outage')}"
    if of.outages:
        words += (
            f" ({of.outages_by_person} by a person, {of.outages_by_rule} by the health rule),"
            f" longest {duration(of.longest_outage_seconds)},"
            f" mean {duration(of.mean_outage_seconds)}"
        )
    return words


def percent(share: float | None) -> str:
    """Write a share; only what was never off has 100 %, and only what was never on has 0 %."""
    if share is None:
        return ""
    shown = f"{share:.2%}"
    if share < 1 and shown == "100.00%":
        return "99.99%"
    return "0.01%" if share > 0 and shown == "0.00%" else shown


def duration(seconds: float | None) -> str:
    """Write a duration in its two largest units, as 2d3h."""
    if seconds is None:
        return ""
    if seconds < 1:
        return "<1s"
    whole = round(seconds)
    for unit, smaller in ((86400, 3600), (3600, 60), (60, 1)):
        if whole >= unit:
            rounded = whole // smaller * smaller
            large, small = rounded // unit * unit, rounded % unit
            # In days at most, although a week may be written as 1w.
            return format_duration(large) + (format_duration(small) if small else "")
    return format_duration(whole)


def causes(of: ModelAvailability | ProviderAvailability) -> str:
    """Return how many outages a person and the health rule began."""
    counts = (of.outages_by_person, "person"), (of.outages_by_rule, "rule")
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def bar(strip: Sequence[float | None], symbols: tuple[str, str, str, str]) -> str:
    """Write a strip with a character for each part; only what was on all the time is full."""
    on, partly, off, absent = symbols
    return "".join(
        absent if share is None else on if share == 1 else off if share == 0 else partly
        for share in strip
    )
