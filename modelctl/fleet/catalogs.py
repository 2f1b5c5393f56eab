"""The commands that bring the fleet to what catalogues offer: import, sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from modelctl.sync.collect import Collected
    from modelctl.sync.results import SyncResult


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
        sources: Iterable[
            tuple[str, Iterable[Sequence[Any]] | Callable[[], Iterable[Sequence[Any]]]]
        ],
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

        New models are added, and names and providers that differ are updated. *sources*: each with its
        name and its models as (id, display name, provider), or a function that returns them. If two
        have the same model, the first wins. *order*: the names of all sources, if not all are synced: a
        model stays with a source that comes earlier and still offers it.

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
            UsageError: no source is given, one is given twice, or a model is not valid.
        """
        from modelctl.ignored.patterns import read_ignored
        from modelctl.sync.collect import collect
        from modelctl.sync.gone import POLICIES

        policy = arguments.policy(gone, POLICIES)
        if not 0 <= max_gone <= 1:
            raise UsageError("max_gone is a share from 0 to 1")
        arguments.iterable(sources, "sources")
        found = collect(sources, read_ignored(self._store.database))
        names = tuple(order) or found.sources

        def run(*, dry_run: bool, confirmed: bytes | None = None) -> tuple[SyncResult, bytes]:
            return self._sync(
                found, policy, max_gone, names, self._acting(actor), dry_run, confirmed, progress
            )

        if confirm is None or dry_run:
            return run(dry_run=dry_run)[0]
        plan, fingerprint = run(dry_run=True)
        if not plan.is_silent and not confirm(plan):
            raise RefusedError("not confirmed; nothing was changed")
        deadline.renew()
        return run(dry_run=False, confirmed=fingerprint)[0]

    def _sync(
        self,
        found: Collected,
        gone: str,
        max_gone: float,
        order: Sequence[str],
        actor: str,
        dry_run: bool,
        confirmed: bytes | None,
        progress: Callable[[int], None],
    ) -> tuple[SyncResult, bytes]:
        from modelctl import operation
        from modelctl.sync.results import SyncResult
        from modelctl.sync.run import Rules, sync

        recovery = self.config.recovery
        rules = Rules(gone, max_gone, order, recovery.min_active, recovery.guarded)
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
        )
        return result, done.fingerprint
