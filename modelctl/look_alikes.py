"""Which ids a person would take for the same, and which one was perhaps meant. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from modelctl.errors import UNSAFE

if TYPE_CHECKING:
    from collections.abc import Iterable

# Letters of other scripts that look like Latin ones: not all that Unicode lists (UTS 39), the usual
# ones. Capitals have a table of their own, because some look like another letter than small ones.
_CAPITALS = str.maketrans(
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" + "АВЕЅІЈКМНОРСТУХ", "abezhikmnoptyx" + "abesijkmhopctyx"
)
_SMALL = str.maketrans(
    "авеѕіјӏкмнортсухԁԛԝһгпѵѡ"
    + "αβεηικνορτυχωγϲϳ"
    + "օսոհցզ"
    + "ɑɡɩʟɴʀʏʙʜᴏᴄᴠᴡᴢꜱı"
    + "‐‑‒–—―−⁃⁄∕꞉∶․·",
    "abesijlkmhoptcyxdqwhrnvw"
    + "abenikvoptuxwycj"
    + "ounhgq"
    + "agilnrybhocvwzsi"
    + "--------//::..",
)
# What looks the same within ASCII, beside capitals: as two strings, for SQL too.
ASCII_ALIKE = ("01i|", "olll")
_SIMILAR = 0.6  # of 1, as difflib has it by default
_ASCII = str.maketrans(*ASCII_ALIKE, " ")


def skeleton(text: str) -> str:
    """Return what ids have in common that look alike: no blanks, one case, Latin letters."""
    visible = UNSAFE.sub("", unicodedata.normalize("NFKC", UNSAFE.sub("", text)))
    folded = unicodedata.normalize("NFKC", visible.translate(_CAPITALS).casefold())
    return folded.translate(_SMALL).translate(_ASCII)


def nearest(wanted: str, ids: Iterable[str]) -> list[str]:
    """Return at most 3 of *ids*, the most similar first; fewer where the others are too different.

    The last part alone counts nearly as much: the provider in front may be missing or another.
    """
    import difflib

    whole, last = difflib.SequenceMatcher(), difflib.SequenceMatcher()
    whole.set_seq2(wanted.lower())
    last.set_seq2(_last_part(wanted))

    def similarity(model_id: str) -> float:
        best = 0.0
        for matcher, text, weight in (
            (whole, model_id.lower(), 1.0),
            (last, _last_part(model_id), 0.95),
        ):
            matcher.set_seq1(text)
            if matcher.quick_ratio() * weight > max(best, _SIMILAR):
                best = max(best, matcher.ratio() * weight)
        return best

    ranked = sorted((-similarity(i), i) for i in ids if i != wanted)
    return [model_id for rank, model_id in ranked[:3] if -rank > _SIMILAR]


def _last_part(model_id: str) -> str:
    return re.split("[/:]", model_id.lower())[-1]
