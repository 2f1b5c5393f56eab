"""Characters that show nothing are refused in ids, and ids that look alike are named."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from modelctl import Fleet
from modelctl.errors import UNSAFE, clean
from modelctl.tables.look_alikes import ASCII_ALIKE, skeleton
from tests.commands import Cli, add, make_fleet, seen
from tests.fleets import seed

# Default_Ignorable_Code_Point of Unicode 16, from its DerivedCoreProperties.txt.
IGNORABLE = [
    *(range(0xAD, 0xAE), range(0x34F, 0x350), range(0x61C, 0x61D), range(0x115F, 0x1161)),
    *(range(0x17B4, 0x17B6), range(0x180B, 0x1810), range(0x200B, 0x2010), range(0x202A, 0x202F)),
    *(range(0x2060, 0x2070), range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFEFF, 0xFF00)),
    *(range(0xFFA0, 0xFFA1), range(0xFFF0, 0xFFF9), range(0x1BCA0, 0x1BCA4)),
    *(range(0x1D173, 0x1D17B), range(0xE0000, 0xE1000)),
]
INVISIBLE = {
    "zero width space": "\u200b",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "Hangul filler": "\u3164",
    "Hangul choseong filler": "\u115f",
    "halfwidth Hangul filler": "\uffa0",
    "soft hyphen": "\xad",
    "combining grapheme joiner": "\u034f",
    "variation selector": "\ufe0f",
    "variation selector of the supplement": "\U000e0100",
    "tag": "\U000e0041",
    "invisible times": "\u2062",
    "Mongolian vowel separator": "\u180e",
    "musical format": "\U0001d173",
    "no-break space": "\xa0",
    "empty Braille": "\u2800",
    "null notehead": "\U0001d159",
    "no character": "\uffff",
}


def test_everything_invisible_is_unsafe() -> None:
    """What Unicode calls ignorable, a format, a control or a blank other than the space is escaped."""
    every = {i for r in IGNORABLE for i in r} | {0x2800, 0x1D159}
    every |= {*range(0xFDD0, 0xFDF0)} | {
        p for p in range(sys.maxunicode + 1) if p & 0xFFFE == 0xFFFE
    }
    for point in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(point))
        if category in ("Cc", "Cf", "Cs", "Zl", "Zp") or (category == "Zs" and point != 0x20):
            every.add(point)
    found = {point for point in range(sys.maxunicode + 1) if UNSAFE.match(chr(point))}
    assert not every - found
    # Format characters of a newer Unicode than that of this Python are known already.
    assert {unicodedata.category(chr(point)) for point in found - every} <= {"Cn"}


@pytest.mark.parametrize("character", INVISIBLE.values(), ids=INVISIBLE)
def test_invisible_characters_are_shown(cli: Cli, character: str) -> None:
    """An id with an invisible character is escaped wherever a person sees it, and exact in JSON."""
    make_fleet()
    model_id = f"acme/{character}one"
    add(model_id)
    shown = clean(model_id)
    assert shown != model_id
    assert shown.isascii()
    for form in ("table", "csv", "tsv", "name", "json", "jsonl"):
        result = cli("list", "-o", form)
        assert character not in result.out, form
        assert "json" in form or shown in result.out, form
    assert model_id in [m["id"] for m in json.loads(cli("list", "-o", "json").out)]
    assert shown in cli("show", model_id, "-o", "table").out
    assert shown in cli("disable", model_id, "-o", "table").out
    assert shown in cli("events").out
    cli("show", f"{model_id}?").failed(4, shown)
    _, screen = seen("list")
    assert character not in screen


@pytest.mark.parametrize("character", INVISIBLE.values(), ids=INVISIBLE)
@pytest.mark.parametrize("verb", [["disable"], ["enable"], ["remove", "--yes"]], ids=" ".join)
def test_look_alike_is_named(cli: Cli, verb: list[str], character: str) -> None:
    """A change of a model that looks like another is told so, whichever of the two it is."""
    make_fleet()
    twin = f"acme/one{character}"
    add(twin)
    for given, other in ((twin, "acme/one"), ("acme/one", twin)):
        result = cli(*verb, given)
        assert result.code == 0
        words = f"'{clean(given)}' looks like another model, '{clean(other)}'"
        assert words in result.err
        if verb[0] == "remove":
            add(given)


LOOK_ALIKES = [
    ("gpt-5", "GPT-5"),
    ("gpt-5", "g\u0440t-5"),  # Cyrillic er
    ("GPT-5", "G\u03a1T-5"),  # Greek rho
    ("gpt-5", "\uff47\uff50\uff54-5"),  # full width
    ("gpt-5", "gpt\u20115"),  # non-breaking hyphen
    ("gpt-5", "gpt\u22125"),  # minus
    ("gpt-4o", "gpt-40"),
    ("model-l", "model-1"),
    ("model-l", "model-I"),
    ("caf\xe9", "cafe\u0301"),  # composed or not
    ("a b", "a\xa0b"),
    ("model", "m\U0001d428del"),  # mathematical bold
    ("openai/gpt", "openai\u2215gpt"),  # division slash
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES, ids=ascii)
def test_look_alikes_on_both_databases(fleet: Fleet, one: str, other: str) -> None:
    """Two ids that look the same are found from either side, and others are left alone."""
    seed(fleet, [one, other, "unlike", "gpt-6", "модель", "gpt-5-mini", "gpt-5-mino"])
    assert fleet.look_alikes([one]) == [(one, other)]
    assert fleet.look_alikes([other]) == [(other, one)]
    assert sorted(fleet.look_alikes([one, other, "unlike", "nobody"])) == sorted(
        [(one, other), (other, one)]
    )


def test_sql_and_python_agree_on_ascii() -> None:
    """The letters that SQL folds are those of the skeleton."""
    letters = "".join(map(chr, range(0x21, 0x7F)))
    table = str.maketrans(*ASCII_ALIKE)
    assert [skeleton(c) for c in letters] == [c.lower().translate(table) for c in letters]
