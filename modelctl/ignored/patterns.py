"""The ids and globs that import and sync leave out: which texts they are, and how they are stored.

A pattern stands for the ids that it matches as a glob, and for the id that is the same text: so
``a[1]`` can be ignored as it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from modelctl.database.sql import text
from modelctl.errors import CONTROLS, ModelNotFoundError, UsageError
from modelctl.globs import is_glob, matcher, parse
from modelctl.ignored.results import IgnoredPattern, PatternChange
from modelctl.tables.columns import UtcTime
from modelctl.tables.ids import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from modelctl.database.database import Database

_NEW = dict.fromkeys(("pattern", "actor", "reason"), "text")


def check_patterns(patterns: Iterable[object]) -> list[str]:
    """Return patterns, each once, in their order.

    Raises:
        UsageError: there is none, or one is not text, is empty or too long, has control characters or
            blanks at its ends, or is no glob.
    """
    checked: dict[str, None] = {}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UsageError(f"a pattern is text, not {type(pattern).__name__}")
        if not pattern:
            raise UsageError("a pattern has at least one character")
        if CONTROLS.search(pattern):
            raise UsageError(f"a pattern has no control characters: {pattern}")
        if pattern != pattern.strip():
            raise UsageError(f"a pattern has no blanks at its ends: '{pattern}'")
        parse(pattern)
        checked[pattern] = None
    if not checked:
        raise UsageError("no id and no pattern is named")
    return list(checked)


class Ignored:
    """Patterns, as they were read."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = frozenset(patterns)
        self._globs = sorted(filter(_is_readable_glob, self._patterns))
        self._matches = matcher(self._globs)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __call__(self, model_id: str) -> bool:
        """Return whether an id is ignored."""
        return model_id in self._patterns or self._matches(model_id)

    def condition(self, database: Database, column: str) -> str:
        """SQL: whether an id is ignored; its parameters are those of `parameters`."""
        conditions = [database.sql.is_among(column, "ignored_ids")]
        if self._globs:
            conditions.append(database.sql.matches_any(column, "ignored_globs"))
        return f"({' OR '.join(conditions)})"

    def parameters(self, database: Database) -> dict[str, Any]:
        """Return the parameters of `condition`."""
        values = {"ignored_ids": database.sql.list_of_texts(self._patterns)}
        if self._globs:
            values["ignored_globs"] = database.sql.patterns(map(parse, self._globs))
        return values


def _is_readable_glob(pattern: str) -> bool:
    """Whether a stored pattern is a glob; another program may have written one that is none."""
    try:
        parse(pattern)
    except UsageError:
        return False
    return is_glob(pattern)


def read_ignored(database: Database) -> Ignored:
    """Return what is ignored now, in one statement."""
    sql = f"SELECT pattern FROM {database.own}modelctl_ignored"
    with database.reading() as connection:
        found = connection.execute(text(sql)).scalars().all()
    return Ignored(pattern for pattern in found if isinstance(pattern, str))


def all_ignored(database: Database) -> tuple[IgnoredPattern, ...]:
    """Return every pattern, by code points."""
    sql = (
        f"SELECT pattern, at, actor, reason FROM {database.own}modelctl_ignored"
        f" ORDER BY pattern{database.sql.collation}"
    )
    with database.reading() as connection:
        found = connection.execute(sa.text(sql).columns(at=UtcTime)).all()
    return tuple(IgnoredPattern(*row) for row in found)


def ignore(
    database: Database, patterns: Sequence[str], *, actor: str, reason: str | None
) -> tuple[PatternChange, ...]:
    """Store patterns. One that is stored already stays as it is, with its reason."""
    sql = (
        f"INSERT INTO {database.own}modelctl_ignored (pattern, actor, reason)"
        f" SELECT pattern, actor, reason FROM {database.sql.rows('given', _NEW)} WHERE TRUE"
        " ON CONFLICT (pattern) DO NOTHING RETURNING pattern"
    )
    rows = [(pattern, actor, reason) for pattern in sorted(patterns)]

    def work(connection: sa.Connection) -> set[str]:
        return {*connection.execute(text(sql), database.sql.values(_NEW, rows)).scalars()}

    new = database.write(work)
    return tuple(PatternChange(pattern, pattern in new) for pattern in patterns)


def unignore(database: Database, patterns: Sequence[str]) -> tuple[PatternChange, ...]:
    """Delete patterns, all or none.

    Raises:
        ModelNotFoundError: one is not stored; the hint names the one that matches it.
    """
    sql = (
        f"DELETE FROM {database.own}modelctl_ignored WHERE {database.sql.is_among('pattern')}"
        " RETURNING pattern"
    )

    def work(connection: sa.Connection) -> None:
        ids = {"ids": database.sql.list_of_texts(patterns)}
        deleted = {*connection.execute(text(sql), ids).scalars()}
        if missing := [pattern for pattern in patterns if pattern not in deleted]:
            raise _not_ignored(missing)

    try:
        database.write(work)
    except ModelNotFoundError as exc:
        exc.hint = _who_ignores(database, exc.missing[0]) or exc.hint
        exc.missing = ()  # these are no ids, so none is the nearest
        raise
    return tuple(PatternChange(pattern, True) for pattern in patterns)


def _not_ignored(missing: Sequence[str]) -> ModelNotFoundError:
    error = ModelNotFoundError(
        f"not ignored: {quoted(missing)}; nothing was changed", hint="see: modelctl ignore --list"
    )
    error.missing = tuple(missing)
    return error


def _who_ignores(database: Database, model_id: str) -> str | None:
    """Return a hint if an id is left out by a pattern that matches it."""
    for one in all_ignored(database):
        if Ignored([one.pattern])(model_id):
            return f"{quoted([model_id])} is left out by the pattern {quoted([one.pattern])}"
    return None


def matching(database: Database, patterns: Sequence[str]) -> int:
    """Return how many models of the fleet match one of these patterns."""
    ignored = Ignored(patterns)
    sql = f"SELECT count(*) FROM models WHERE {ignored.condition(database, 'id')}"
    with database.reading() as connection:
        return connection.scalar(text(sql), ignored.parameters(database)) or 0
