"""The commands that change what a model is called and where it belongs: edit, rename."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.model import check_id, storable
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.models.results import Changes
    from modelctl.tables.selection import Selection


class EditCommands(OpenedFleet):
    """Names, providers, tags and ids of models; no status is changed."""

    def edit(
        self,
        *ids: str,
        select: Selection | None = None,
        limit_to: int | None = None,
        name: str | None = None,
        provider: str | None = None,
        tag: str | Sequence[str] = (),
        untag: str | Sequence[str] = (),
        reason: str | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Changes:
        """Change the name, the provider and the tags of models, all or none.

        *name*: the display name, of one id only; '': its id is shown. *provider*: '' is none.
        *tag*, *untag*: tags to add and to remove, one or several; a model that has them, or lacks
        them, stays as it is. Each change is an `EditedModel` with the old and new values that differ.
        *select*, *limit_to*: as of `disable`.

        Raises:
            ModelNotFoundError: an id is unknown, or the selection has no model; nothing is changed.
            RefusedError: more than *limit_to* would change, or a model would have more than 50 tags;
                nothing is changed.
            UsageError: a tag is not valid (1-100 characters, no control characters, no commas, no
                blanks at its ends), or nothing is to be changed.
        """
        from modelctl import operation
        from modelctl.edits.edit import Edit, edit
        from modelctl.models.results import Changes
        from modelctl.models.status_changes import Selected

        which = arguments.models(ids, select, limit_to)
        if name is not None and not (isinstance(which, list) and len(which) == 1):
            raise UsageError("a name is of one model", hint="name one id")
        wanted = Edit(
            None if name is None else storable(name, 200),
            arguments.provider(provider),
            *arguments.tags_to_change(tag, untag),
        )
        if wanted == Edit():
            raise UsageError("nothing is to be changed", hint="give a name, a provider or tags")
        changes = edit(
            self._store.database,
            which if isinstance(which, list) else Selected(which, limit_to),
            wanted,
            actor=self._acting(actor),
            reason=self._reason(reason),
            dry_run=dry_run,
        )
        # The count is as before, but keys of other programs show names and providers, not tags.
        of_rows = (wanted.display_name, wanted.provider) != (None, None)
        cache = self._invalidate(
            owed=of_rows and not dry_run,
            changed=of_rows and any(change.changed for change in changes),
        )
        return Changes(changes, cache, dry_run, None if dry_run else operation.written())

    def rename(
        self,
        old: str,
        new: str,
        *,
        reason: str | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Changes:
        """Give the model *old* the id *new*; its status, counters, tags and history follow.

        A model that was renamed before is no error: its change, a `RenamedModel`, says that nothing
        changed.

        Raises:
            ModelNotFoundError: there is no model *old*.
            RefusedError: there is a model *new* already, or a foreign key of another program
                forbids it; nothing is changed.
            UsageError: the new id is not valid, as in `add`.
        """
        from modelctl import operation
        from modelctl.edits.rename import rename
        from modelctl.models.results import Changes

        arguments.distinct([old])
        change = rename(
            self._store.database,
            old,
            check_id(new),
            actor=self._acting(actor),
            reason=self._reason(reason),
            dry_run=dry_run,
        )
        cache = self._invalidate(owed=not dry_run, changed=change.changed)
        return Changes((change,), cache, dry_run, None if dry_run else operation.written())
