"""Finds the known name that an unknown name was probably meant to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def closest_name(name: str, known: Iterable[str]) -> str:
    """Return the name of *known* that is most similar to *name*, however different it is."""
    import difflib

    # The cut is because difflib takes quadratic time.
    return difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]


def is_misspelt(name: str, known: Iterable[str]) -> bool:
    """Whether *name* is so similar to a name of *known* that it must be a typing error."""
    import difflib

    return bool(difflib.get_close_matches(name[:100], known, cutoff=0.8))
