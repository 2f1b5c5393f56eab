"""The entries of several sources become one list, with each id once, before a transaction begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.config.sources import check_name
from modelctl.errors import UsageError, clean
from modelctl.model import check_id, storable
from modelctl.spool import KeyedSpool, Spool
from modelctl.sync.results import PlannedChange
from modelctl.sync.stage import Staged

if TYPE_CHECKING:
    from collections.abc import Callable

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
    for source in sources:
        name, models = _checked(source)
        if name in names:
            raise UsageError(f"the source '{name}' is given twice")
        names.append(name)
        for model in _models_of(name, models):
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


def _checked(source: Source) -> Source:
    """Return a source as it was given."""
    if not isinstance(source, Sequence) or len(source) != 2:
        raise UsageError(
            f"a source is a name, or a name with its models, not {type(source).__name__}",
            hint='as in sync([("mine", [("acme/one", "One", "acme")])])',
        )
    name, models = source
    check_name(name)
    return name, models


def _models_of(source: str, models: Any) -> Iterator[Sequence[Any]]:
    found = models() if callable(models) else models
    if isinstance(found, str | bytes) or not isinstance(found, Iterable):
        raise UsageError(
            f"the models of source '{source}' are a list of models, not {type(found).__name__}"
        )
    for model in found:
        if isinstance(model, str) or not isinstance(model, Sequence) or not 3 <= len(model) <= 4:
            raise UsageError(
                f"source '{source}': a model is its id, its name and its provider, not"
                f" {clean(repr(model), longest=80)}"
            )
        yield model


def _entry(source: str, model: Sequence[Any]) -> Staged:
    model_id, name, provider, *active = model
    return Staged(
        check_id(model_id),
        storable(name, _LENGTH),
        storable(provider, _LENGTH),
        active[0] if active else None,
        source,
    )
