"""Which models of a catalogue are taken, and what their ids begin with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from modelctl.catalog.convert import CatalogModel
from modelctl.catalog.modes import mode_words, modes_of
from modelctl.errors import UsageError, clean
from modelctl.globs import matcher
from modelctl.model import check_id, numbered

_MOST_NAMED = 8


class Choice:
    """What was asked for, and how many models were left out for that."""

    def __init__(
        self,
        *,
        only: Sequence[str] = (),
        leave_out: Sequence[str] = (),
        modes: Sequence[str] = (),
        prefix: str = "",
    ) -> None:
        """*only*, *leave_out*: patterns of ids, with their prefix. *modes*: such as "chat".

        *prefix*: what ids begin with; "provider": with the provider of each and a slash.

        Raises:
            UsageError: a pattern is wrong, or a mode is not a word.
        """
        if isinstance(modes, str) or not all(isinstance(mode, str) for mode in modes):
            raise UsageError(f"modes are a list of words, not {modes!r}")
        self._modes = mode_words(modes)
        if len(self._modes) < bool(modes):
            raise UsageError("a mode is a word, such as chat or embedding")
        self._only = matcher(only) if only else None
        self._leave_out = matcher(leave_out)
        self._prefix = prefix
        self.left_out = 0
        self._without_mode = 0
        self._modes_found: dict[str, None] = {}

    def take(self, model: CatalogModel, entry: object) -> CatalogModel | None:
        """Return the model with its prefix; None if it is left out.

        Raises:
            UsageError: its id is not valid with the prefix.
        """
        if self._modes and not self._has_mode(entry):
            self.left_out += 1
            return None
        model = self._with_prefix(model)
        if self._leave_out(model.id) or (self._only and not self._only(model.id)):
            self.left_out += 1
            return None
        return model

    def _has_mode(self, entry: object) -> bool:
        modes = modes_of(entry) if isinstance(entry, Mapping) else frozenset()
        self._without_mode += not modes
        self._modes_found |= dict.fromkeys(sorted(modes))
        return not modes.isdisjoint(self._modes)

    def _with_prefix(self, model: CatalogModel) -> CatalogModel:
        """Put the prefix before the id, unless the id begins with it already."""
        prefix = self._prefix
        if prefix.rstrip("/") == "provider":
            prefix = f"{model.provider}/" if model.provider else ""
        if model.id.startswith(prefix):
            return model
        return model._replace(id=check_id(prefix + model.id))

    def check(self, taken: int) -> None:
        """Check that something was taken, of a catalogue that has models.

        Raises:
            UsageError: everything was left out.
        """
        if taken or not self.left_out:
            return
        everything = numbered(self.left_out)
        if self._modes and not self._modes_found:
            raise UsageError(
                "the catalogue says of no model what it is for, so modes cannot choose any",
                hint="leave modes out",
            )
        if self._modes.isdisjoint(self._modes_found) and self._modes:
            asked, found = _listed(sorted(self._modes)), _listed(self._modes_found)
            raise UsageError(
                f"no model of the catalogue has the mode {asked}", hint=f"it has: {found}"
            )
        raise UsageError(
            f"what was chosen leaves out all the models of the catalogue: {everything}"
        )

    def notes(self) -> Iterator[str]:
        """Give the notes for a person who imports the catalogue."""
        if self.left_out:
            yield f"{numbered(self.left_out)} of the catalogue left out, as asked for"
        if self._without_mode:
            yield f"{numbered(self._without_mode)} of them left out: the catalogue does not say their mode"


def _listed(modes: Iterable[str]) -> str:
    shown = [clean(mode, longest=50) for mode in modes]
    return ", ".join(shown[:_MOST_NAMED]) + (", and more" if len(shown) > _MOST_NAMED else "")
