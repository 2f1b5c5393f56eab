"""Ids that look the same to a person, and the ids that are most similar to an unknown one. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from modelctl.errors import UNSAFE

if TYPE_CHECKING:
    from collections.abc import Iterable

# Letters of other scripts that look like Latin letters: not all that Unicode lists (UTS 39), but the
# usual ones. Capitals have their own table: some look like another letter than their small letter does.
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
# ASCII characters that look the same, besides capitals. Two strings, because SQL uses them too.
ASCII_ALIKE = ("01i|", "olll")
_SIMILAR = 0.6  # the least similarity, as difflib has it by default
_ASCII = str.maketrans(*ASCII_ALIKE, " ")


def skeleton(text: str) -> str:
    """Return *text* without blanks, in lower case and in Latin letters.

    Ids that look the same have the same skeleton.
    """
    visible = UNSAFE.sub("", unicodedata.normalize("NFKC", UNSAFE.sub("", text)))
    folded = unicodedata.normalize("NFKC", visible.translate(_CAPITALS).casefold())
    return folded.translate(_SMALL).translate(_ASCII)


def nearest(wanted: str, ids: Iterable[str]) -> list[str]:
    """Return the at most 3 of *ids* that are similar to *wanted*, the most similar first.

    The last part of an id alone counts nearly as much, because its provider may be missing or wrong.
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
