"""The entries of several sources become one list, with each id once, before a transaction begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.errors import UsageError
from modelctl.model import check_id, storable
from modelctl.spool import KeyedSpool, Spool
from modelctl.sync.results import PlannedChange
from modelctl.sync.stage import Staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # The name of a source, and its models as (id, display name, provider, active), or what opens them.
    Source = tuple[str, Iterable[Sequence[Any]] | Callable[[], Iterable[Sequence[Any]]]]

_LENGTH = 200
IGNORED = "ignored"


class Collected(NamedTuple):
    """The entries of all sources; *clashes*: those of a later source whose id an earlier one has."""

    sources: tuple[str, ...]
    entries: KeyedSpool[Staged]
    clashes: Spool[PlannedChange]
    ignored: int


def collect(sources: Iterable[Source], is_ignored: Callable[[str], bool]) -> Collected:
    """Read all sources; the first source that has an id wins.

    Raises:
        UsageError: no source is given, or one twice, or a model is not valid.
    """
    entries = KeyedSpool(Staged)
    clashes: Spool[PlannedChange] = Spool()
    names: list[str] = []
    ignored = 0
    for name, models in sources:
        if name in names:
            raise UsageError(f"the source '{name}' is given twice")
        names.append(name)
        for model in models() if callable(models) else models:
            entry = _entry(name, model)
            if is_ignored(entry.id):
                entry = entry._replace(left_out=IGNORED)
            if entries.add(entry):
                ignored += entry.left_out is not None
                continue
            first = entries.get(entry.id)
            if first and first.source != name and entry.left_out is None:
                clashes.append(clash(entry.id, name, first.source))
    if not names:
        raise UsageError("no source is given")
    return Collected(tuple(names), entries, clashes, ignored)


def clash(model_id: str, source: str | None, first: str | None) -> PlannedChange:
    """Say that a model belongs to another source, the *first* of those that have it."""
    return PlannedChange(
        "clash", model_id, {}, {}, source, f"belongs to {first}, which comes first"
    )


def _entry(source: str, model: Sequence[Any]) -> Staged:
    model_id, name, provider, *active = model
    return Staged(
        check_id(model_id),
        storable(name, _LENGTH),
        storable(provider, _LENGTH),
        active[0] if active else None,
        source,
    )
