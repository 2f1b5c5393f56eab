"""The commands about ids that import and sync leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.opened.opened_fleet import OpenedFleet

if TYPE_CHECKING:
    from modelctl.ignored.results import IgnoredPattern, IgnoreResult


class IgnoreCommands(OpenedFleet):
    """What import and sync leave out."""

    def ignore(
        self, *patterns: str, reason: str | None = None, actor: str | None = None
    ) -> IgnoreResult:
        """Let import and sync leave out these ids: they neither add nor change such a model.

        *patterns*: ids, or globs as in `Selection.match`. An id with ``*``, ``?`` or ``[`` may be
        given as it is, but as a glob it stands for other ids as well; ``glob.escape`` of Python makes
        a pattern for the id alone. Models of the fleet that match stay. A pattern that is ignored
        already keeps its reason.

        Raises:
            UsageError: a pattern is empty or longer than 500 characters, has control characters or
                blanks at its ends, or is no glob.
        """
        from modelctl.ignored import patterns as stored
        from modelctl.ignored.results import IgnoreResult

        checked, database = stored.check_patterns(patterns), self._store.database
        actor, reason = self._acting(actor), self._reason(reason)
        changes = stored.ignore(database, checked, actor=actor, reason=reason)
        return IgnoreResult(changes, stored.matching(database, checked))

    def unignore(self, *patterns: str) -> IgnoreResult:
        """Let import and sync take these ids again: the same patterns that `ignore` was given.

        Raises:
            ModelNotFoundError: a pattern is not ignored; nothing is changed.
        """
        from modelctl.ignored import patterns as stored
        from modelctl.ignored.results import IgnoreResult

        checked, database = stored.check_patterns(patterns), self._store.database
        changes = stored.unignore(database, checked)
        return IgnoreResult(changes, stored.matching(database, checked), undone=True)

    def ignored(self) -> tuple[IgnoredPattern, ...]:
        """Return the ids and globs that import and sync leave out, by code points."""
        from modelctl.ignored.patterns import all_ignored

        return all_ignored(self._store.database)
