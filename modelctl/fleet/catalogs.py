"""The commands that bring the fleet to what catalogues offer: import, sync."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.errors import RefusedError, UsageError
from modelctl.model import name_the_text, storable
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import BinaryIO

    from modelctl.catalog.results import ImportResult
    from modelctl.catalog_format import CatalogFormat
    from modelctl.sync.collect import Collected, Source
    from modelctl.sync.results import SyncResult
    from modelctl.sync.run import Rules


class CatalogCommands(OpenedFleet):
    """What catalogues change: models that are new, that differ, or that are gone."""

    def import_models(
        self,
        catalog: bytes | BinaryIO,
        *,
        format: CatalogFormat | str | None = None,  # noqa: A002 - its usual name
        provider: str | None = None,
        modes: Sequence[str] = (),
        prefix: str = "",
        on_conflict: str = "update",
        partial: bool = False,
        strict: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> ImportResult:
        """Add and update models from a catalogue, in one transaction. No status is changed.

        *catalog*: its bytes, or a stream of them: a JSON document of at most 16 MiB, or JSON Lines
        of any length, which are not held in memory.
        *format*: one of `CatalogFormat`; None: the shape of the catalogue tells it.
        *provider*: the provider of all models, whatever the catalogue says.
        *modes*: only models with one of these, such as "chat", where the catalogue says what they are
        for. *prefix*: what ids begin with; "provider": with the provider of each model and a slash.
        *on_conflict*: what to do with a model whose name or provider differs: ``update`` it,
        ``skip`` it, or ``fail``. With ``fail`` nothing is written if a model differs or an entry is
        rejected.
        *partial*: accept one page of a longer list. *strict*: write nothing if an entry is rejected.
        *dry_run*: write nothing, and return an `ImportPlan`, which names each model that would change.

        Raises:
            UsageError: this is not a catalogue, it has no model, it is one page of several, or an
                entry is rejected and *strict* or ``fail`` was asked for.
            RefusedError: ``fail``, and a model differs.
        """
        from modelctl.catalog.importing import import_catalog, read_catalog

        policy = arguments.policy(on_conflict, ("update", "skip", "fail"))
        found = read_catalog(
            catalog,
            format=format,
            provider=arguments.provider(provider) or "",
            modes=modes,
            prefix=storable(prefix),
            partial=partial,
            strict=strict,
            on_conflict=policy,
        )
        return import_catalog(
            found,
            self._store.database,
            on_conflict=policy,
            actor=self._acting(actor),
            dry_run=dry_run,
            progress=progress,
            invalidate=self._invalidate,
        )

    def sync(
        self,
        sources: Iterable[str | Source] | None = None,
        *,
        gone: str = "keep",
        max_gone: float = 0.2,
        order: Sequence[str] = (),
        confirm: Callable[[SyncResult], bool] | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> SyncResult:
        """Bring the fleet to what its sources offer, in one transaction.

        New models are added, and names and providers that differ are updated. *sources*: names of
        sources of the configuration; by default all of them. Or each with its name and its models as
        (id, display name, provider), or a function that returns them. If two have the same model, the
        first wins. *order*: the names of all sources, if not all are synced: a model stays with a
        source that comes earlier and still offers it; by default the order of the configuration.

        *gone*: what becomes of models that were in a source and are not any more: ``keep`` (they are
        marked), ``disable`` or ``remove``. A model that comes back is enabled only if `sync` itself
        switched it off, and nobody changed that since.
        *max_gone*: refuse if more than this share (0 to 1) of the models of a source would be gone. One
        model may always go, but the last one of a source only with 1.

        *confirm* is called with the plan, if it changes models, and returns whether to go on. No
        transaction is open meanwhile; if the plan is another one by then, nothing is changed.

        Raises:
            RefusedError: too many models would be gone, fewer than ``recovery.min_active`` would stay
                on, or *confirm* returned False, or the plan has changed; nothing is changed.
            UsageError: there is no such source, one is given twice, or a model is not valid; or what
                a source gives is no catalogue.
            InvalidConfigError: no source is configured, or one of them refused us.
            DatabaseUnavailableError: also if a source cannot be read now.
        """
        from modelctl.ignored.patterns import read_ignored
        from modelctl.sync.collect import collect
        from modelctl.sync.gone import POLICIES

        policy = arguments.policy(gone, POLICIES)
        if not isinstance(max_gone, int | float) or not 0 <= max_gone <= 1:
            raise UsageError("max_gone is a share from 0 to 1")
        given, notes = self._opened(sources)
        found = collect(given, read_ignored(self._store.database))
        order = tuple(order) or (*self.config.sources, *found.sources)
        rules = self._rules(policy, max_gone, order)

        def run(*, dry_run: bool, confirmed: bytes | None = None) -> tuple[SyncResult, bytes]:
            return self._sync(
                found, notes, rules, self._acting(actor), dry_run, confirmed, progress
            )

        if confirm is None or dry_run:
            return run(dry_run=dry_run)[0]
        plan, fingerprint = run(dry_run=True)
        if not plan.is_silent and not confirm(plan):
            raise RefusedError("not confirmed; nothing was changed")
        deadline.renew()
        return run(dry_run=False, confirmed=fingerprint)[0]

    def _rules(self, gone: str, max_gone: float, order: Sequence[str]) -> Rules:
        from modelctl.sync.run import Rules

        recovery, sources = self.config.recovery, self.config.sources
        tags = {name: source.tags for name, source in sources.items() if source.tags}
        return Rules(gone, max_gone, order, recovery.min_active, recovery.guarded, tags)

    def _opened(
        self, sources: Iterable[str | Source] | None
    ) -> tuple[list[Source], tuple[str, ...]]:
        """Read the sources that are named, and return all with their models, and the notes on them."""
        from modelctl.sources.gather import chosen, notes_of, read_all

        if sources is not None:
            arguments.iterable(sources, "sources")
            sources = [sources] if isinstance(sources, str) else [*sources]
        names = [source for source in sources or () if isinstance(source, str)]
        read = read_all(chosen(self.config.sources, names)) if names or sources is None else {}
        given = [source for source in sources or () if not isinstance(source, str)]
        given = [*((name, catalog.models) for name, catalog in read.items()), *given]
        notes = [note for name, catalog in read.items() for note in notes_of(name, catalog)]
        return given, tuple(notes)

    def _sync(
        self,
        found: Collected,
        notes: tuple[str, ...],
        rules: Rules,
        actor: str,
        dry_run: bool,
        confirmed: bytes | None,
        progress: Callable[[int], None],
    ) -> tuple[SyncResult, bytes]:
        from modelctl import operation
        from modelctl.sync.results import SyncResult
        from modelctl.sync.run import sync

        try:
            done = sync(
                self._store.database,
                found,
                rules,
                actor=actor,
                dry_run=dry_run,
                confirmed=confirmed,
                progress=progress,
            )
        except UsageError as exc:
            from modelctl.catalog.importing import texts

            raise name_the_text(exc, texts(found.entries)) from None
        kinds = done.kinds
        changed = any(kinds[kind] for kind in ("added", "changed", "gone", "back"))
        result = SyncResult(
            sources=found.sources,
            added=kinds["added"],
            changed=kinds["changed"],
            gone=kinds["gone"],
            back=kinds["back"],
            kept=kinds["kept"],
            clashes=kinds["clash"],
            unchanged=done.unchanged,
            ignored=found.ignored,
            adopted=done.adopted,
            cache=self._invalidate(owed=not dry_run, changed=changed),
            dry_run=dry_run,
            operation=None if dry_run else operation.written(),
            changes=done.changes,
            notes=notes,
        )
        return result, done.fingerprint
