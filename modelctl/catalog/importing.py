"""What `import` accepts of a catalogue, and what it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.catalog.choice import Choice
from modelctl.catalog.parse import Catalog, parse
from modelctl.catalog.results import ImportPlan, ImportResult
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError
from modelctl.model import name_the_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from modelctl.database.database import Database
    from modelctl.model import CacheState


def read_catalog(
    source: bytes | BinaryIO,
    *,
    format: CatalogFormat | str | None,  # noqa: A002 - the word of --format
    provider: str,
    modes: Sequence[str],
    prefix: str,
    partial: bool,
    strict: bool,
    on_conflict: str,
) -> Catalog:
    """Return the catalogue if it may be imported; the arguments are those of `Fleet.import_models`.

    Raises:
        UsageError: it is not a catalogue, has no model, or an entry is rejected and *strict* or
            ``fail`` was asked for.
    """
    if not isinstance(source, bytes) and not hasattr(source, "readline"):
        raise UsageError("a catalogue is bytes, or a stream of them")
    choice = Choice(modes=modes, prefix=prefix)
    known = _known_format(format)
    found = parse(source, known, provider=provider, partial=partial, choice=choice)
    if found.rejected and (strict or on_conflict == "fail" or not found.models):
        first, number = found.rejected[0], len(found.rejected)
        are_rejected = "1 entry is" if number == 1 else f"{number} entries are"
        others = "; without --strict the others are taken" if found.models and strict else ""
        raise UsageError(
            f"{are_rejected} rejected; {first.id}: {first.why}", hint=f"nothing was written{others}"
        )
    if not found.models:
        raise UsageError("the catalogue has no models", hint="nothing was written")
    return found


def import_catalog(
    found: Catalog,
    database: Database,
    *,
    on_conflict: str,
    actor: str,
    dry_run: bool,
    progress: Callable[[int], None],
    invalidate: Callable[..., CacheState],
) -> ImportResult:
    """Write the models of a catalogue, and count what happened to them."""
    from modelctl import operation
    from modelctl.ignored.patterns import read_ignored
    from modelctl.sync.importing import import_models
    from modelctl.sync.stage import Staged

    is_ignored = read_ignored(database)
    left_out = 0

    def entries() -> Iterable[Staged]:
        nonlocal left_out
        left_out = 0  # the transaction may begin again
        for model in found.models.by_key():
            if is_ignored(model.id):
                left_out += 1
            else:
                yield Staged(*model)

    try:
        done = import_models(
            database,
            entries,
            on_conflict=on_conflict,
            actor=actor,
            dry_run=dry_run,
            progress=progress,
        )
    except UsageError as exc:
        raise name_the_text(exc, texts(found.models)) from None
    updates = on_conflict == "update"
    numbers: dict[str, Any] = {
        "added": done.added,
        "updated": done.differing if updates else 0,
        "unchanged": len(found.models) - left_out - done.added - done.differing,
        "skipped": 0 if updates else done.differing,
        "rejected": found.rejected,
        "cache": invalidate(owed=not dry_run, changed=bool(done.added or done.differing)),
        "dry_run": dry_run,
        "ignored_status": done.other_status,
        "notes": found.notes,
        "operation": None if dry_run else operation.written(),
        "ignored": left_out,
    }
    return ImportPlan(**numbers, changes=done.changes) if dry_run else ImportResult(**numbers)


def _known_format(name: CatalogFormat | str | None) -> CatalogFormat | None:
    try:
        return None if name is None else CatalogFormat(name)
    except ValueError:
        known = ", ".join(CatalogFormat)
        raise UsageError(f"no format '{name}'", hint=f"one of: {known}") from None


def texts(entries: Iterable[Sequence[object]]) -> Iterator[tuple[str, object]]:
    """Give each text of models with a description of it, for `name_the_text`."""
    for model_id, name, provider, *_ in entries:
        yield f"the id '{model_id}'", model_id
        yield f"the name of '{model_id}'", name
        yield f"the provider of '{model_id}'", provider
