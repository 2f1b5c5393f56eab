"""Read several sources, one after the other; if one cannot be read, none counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    ModelctlError,
    UsageError,
    clean,
)
from modelctl.sources.read import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelctl.catalog.parse import Catalog
    from modelctl.config.sources import SourceConfig

# How many rejected entries of a source a note names.
_MOST_REJECTED = 5


def chosen(sources: Mapping[str, SourceConfig], names: Iterable[str]) -> dict[str, SourceConfig]:
    """Return the sources of these names, all if there are none, in the order of the configuration.

    Raises:
        UsageError: there is no source of such a name.
        InvalidConfigError: no source is configured.
    """
    wanted = dict.fromkeys(names)
    if not sources:
        raise InvalidConfigError(
            "no source of catalogues is configured",
            hint="write a section [source.NAME] with a url into the configuration file",
        )
    for name in wanted:
        if name not in sources:
            known = ", ".join(map(clean, sources))
            raise UsageError(f"there is no source '{name}'", hint=f"configured are: {known}")
    return {name: of for name, of in sources.items() if name in wanted or not wanted}


def read_all(sources: Mapping[str, SourceConfig]) -> dict[str, Catalog]:
    """Return the catalogues of sources by their names.

    Raises:
        InvalidConfigError, UsageError, DatabaseUnavailableError: as `read_source`; of several
            failures the first of this order, with the words of all.
    """
    found: dict[str, Catalog] = {}
    failures: list[ModelctlError] = []
    for name, source in sources.items():
        try:
            found[name] = read_source(source)
        except (InvalidConfigError, UsageError, DatabaseUnavailableError) as exc:
            failures.append(exc)
    if not failures:
        return found
    kinds = (InvalidConfigError, UsageError, DatabaseUnavailableError)
    first = min(failures, key=lambda failure: kinds.index(type(failure)))
    hint = first.hint
    if found:
        others = " ".join(found)
        hint = f"{hint}; " if hint else ""
        hint += f"nothing was changed; the other sources alone: modelctl sync {others}"
    raise type(first)("; ".join(failure.message for failure in failures), hint=hint)


def notes_of(name: str, catalog: Catalog) -> list[str]:
    """Return what a person should know about the catalogue of a source."""
    notes = [*catalog.notes]
    if number := len(catalog.rejected):
        named = [f"{each.id}: {each.why}" for each in catalog.rejected[:_MOST_REJECTED]]
        more = f"; and {number - len(named)} more" if number > len(named) else ""
        notes.append(f"no models: {'; '.join(named)}{more}")
    return [f"{clean(name)}: {note}" for note in notes]
