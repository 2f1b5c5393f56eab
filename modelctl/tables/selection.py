"""A selection of models by what they have in common, and its condition in SQL."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from modelctl.errors import ModelNotFoundError
from modelctl.model import ModelStatus, numbered
from modelctl.spool import Spool
from modelctl.tables.columns import AUTO_OFF, DISABLED, ON, TIMED_OFF
from modelctl.tables.ids import is_storable, quoted
from modelctl.tables.origins import from_source, is_gone
from modelctl.tables.tags import has_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.database.database import Database
    from modelctl.database.sql import Sql

_OF_STATUS = {
    ModelStatus.ACTIVE: ON,
    ModelStatus.DISABLED: DISABLED,
    ModelStatus.AUTO_DISABLED: AUTO_OFF,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The models that have all of these; with *all* alone, every model.

    *match*: a pattern that the whole id matches, case-sensitive: ``*`` is any text, ``?`` any
    character, ``[a-z]`` one of these, ``[!a-z]`` none of these. *timed*: a person disabled it until
    a time. *by*: it is off, and this person (or ``health rule``) switched it off. *tag*: it has this
    tag, or all of these. *source*: `sync` found it in this source; '': in none. *gone*: its source no
    longer offers it.
    """

    provider: str | None = None
    status: ModelStatus | str | None = None
    match: str | None = None
    timed: bool = False
    by: str | None = None
    all: bool = False
    tag: str | Sequence[str] = ()
    source: str | None = None
    gone: bool = False

    def given(self) -> list[str]:
        """Return the names of what is given."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) not in (None, False, (), [])
        ]


def condition(database: Database, selection: Selection) -> str:
    """Return the condition of a row of ``models``; its parameters are those of `parameters`."""
    sql = database.sql
    conditions = {
        "provider": "coalesce(provider, '') = :of_provider",
        "status": f"({_OF_STATUS.get(selection.status, 'FALSE')})",  # type: ignore[call-overload]
        "match": sql.matches("id", "matching"),
        "timed": f"{TIMED_OFF} AND {sql.is_finite('disabled_until')}",
        "by": "active IS NOT TRUE AND disabled_by = :off_by",
        "all": "TRUE",
        "tag": has_tags(database),
        "source": from_source(database, selection.source),
        "gone": is_gone(database),
    }
    return " AND ".join(conditions[name] for name in selection.given()) or "TRUE"


def parameters(sql: Sql, selection: Selection) -> dict[str, Any]:
    """Return the parameters of `condition`."""
    from modelctl.globs import parse

    matching = None if selection.match is None else sql.pattern(parse(selection.match))
    tags = [selection.tag] if isinstance(selection.tag, str) else selection.tag
    values = {
        "of_provider": selection.provider,
        "off_by": selection.by,
        "matching": matching,
        "of_tags": sql.list_of_texts(tags) if tags else None,
        "of_source": selection.source or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def selected_ids(database: Database, selection: Selection, *, only_off: bool = False) -> Spool[str]:
    """Return the ids of the models of a selection, by code points; *only_off*: of those that are off.

    Raises:
        ModelNotFoundError: there is none.
    """
    from modelctl.database.bulk import spooled
    from modelctl.database.sql import text

    off = " AND active IS NOT TRUE" if only_off else ""
    sql = (
        f"SELECT id FROM models WHERE {condition(database, selection)}{off}"
        f" ORDER BY {database.sql.by_id}"
    )
    found = spooled(database, text(sql), parameters(database.sql, selection), lambda row: row[0])
    ids = Spool(one for one in found if isinstance(one, str) and is_storable(one))
    if len(ids) < len(found):
        database.warn(
            f"the ids of {numbered(len(found) - len(ids))} cannot be read; they stay as they are"
        )
    if not ids:
        raise no_model(selection, "no model that is off" if only_off else "no model")
    return ids


def check_named(database: Database, selection: Selection) -> None:
    """Check that a model has the provider, tags and source and matches the pattern, whatever its status is.

    Raises:
        ModelNotFoundError: there is none.
    """
    from modelctl.database.sql import text

    named = replace(selection, status=None, timed=False, by=None, gone=False)
    sql = f"SELECT 1 FROM models WHERE {condition(database, named)} LIMIT 1"
    with database.reading() as connection:
        found = connection.execute(text(sql), parameters(database.sql, named)).first()
    if found is None and not {"all"}.issuperset(named.given()):
        raise no_model(named)


def no_model(selection: Selection, what: str = "no model") -> ModelNotFoundError:
    """Return the error that a selection has no model."""
    words = {"timed": "disabled until a time", "all": "at all", "gone": "gone from its source"}
    words["tag"] = (
        f"tag {quoted([selection.tag] if isinstance(selection.tag, str) else selection.tag)}"
    )
    given = (words.get(name, f"{name} '{getattr(selection, name)}'") for name in selection.given())
    return ModelNotFoundError(f"{what} matches: {', '.join(given)}", hint="see: modelctl list")
