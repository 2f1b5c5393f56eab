"""Which ids a person would take for the same. Pure."""

from __future__ import annotations

import unicodedata

from modelctl.errors import UNSAFE

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
_ASCII = str.maketrans(*ASCII_ALIKE, " ")


def skeleton(text: str) -> str:
    """Return what ids have in common that look alike: no blanks, one case, Latin letters."""
    visible = UNSAFE.sub("", unicodedata.normalize("NFKC", UNSAFE.sub("", text)))
    folded = unicodedata.normalize("NFKC", visible.translate(_CAPITALS).casefold())
    return folded.translate(_SMALL).translate(_ASCII)
