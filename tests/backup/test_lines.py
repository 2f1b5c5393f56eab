"""An export is checked to its end before anything is written; an error names the line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from modelctl import Fleet, UsageError
from modelctl.backup import lines
from tests.backup.exports import (
    HEADER,
    INCIDENT,
    MODEL,
    PAUSE,
    export_of,
    held,
    joined,
    model,
)
from tests.fleets import everything

END = {"end": {"models": 1, "pauses": 0, "incidents": 0}}
WHOLE = export_of(
    model("a", tags=["eu", "x"]), held("b"), model("é"), {"pause": PAUSE}, {"incident": INCIDENT}
)


def refused(export: bytes) -> str:
    """Return the message with which an export is refused."""
    with pytest.raises(UsageError) as error:
        lines.read(io.BytesIO(export))
    assert error.value.hint
    assert error.value.hint.endswith("nothing was restored")
    return error.value.message


def test_a_whole_export_is_read() -> None:
    """All lines are taken; blank lines, a byte order mark and the order of the lines do not matter."""
    saved = lines.read(io.BytesIO(b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\n\n")))
    assert [line.key for line in saved.models.by_key()] == ["a", "b", "é"]
    assert [line.key for line in saved.holds] == ["fleet", "incident:parse-error:acme"]


def test_a_cut_export_is_noticed_wherever_it_was_cut(fleet: Fleet, fleet_url: str) -> None:
    """An export without its end, at any line, or within the last one, is refused; nothing is written."""
    whole = WHOLE.splitlines(keepends=True)
    before = everything(fleet_url)
    for number in range(len(whole)):
        cut = b"".join(whole[:number])
        for export in (cut, cut + whole[number][:-2], cut + b"".join(whole[number + 1 :])):
            with pytest.raises(UsageError, match=r"^line "):
                fleet.restore(export)
    assert everything(fleet_url) == before


FIELDS: list[tuple[str, list[Any], str]] = [
    ("id", ["", 5, None, [], "a\0b", "\ud800"], "'id' is not the id of a model"),
    ("display_name", [None, 5], "'display_name' is not text"),
    ("provider", ["\0"], "'provider' has a character that no database stores"),
    ("status", ["on", None, 1, []], "'status' is none of: active, disabled, auto-disabled"),
    ("ejections", [-1, 2**31, 1.0, True, "1", None], "'ejections' is not a whole number from 0"),
    ("success_count", [2**63, -1], "'success_count' is not a whole number from 0"),
    (
        "disabled_until",
        ["2026-01-01", "2026-01-01T00:00:00", 5, "", "infinity", "9999-12-31T23:59:59-01:00"],
        "'disabled_until' is not a time with a zone",
    ),
    ("failure_type", [[]], "'failure_type' is not text"),
    ("tags", [None, {}, "eu"], "'tags' is not a list"),
    ("tags", [["a,b"], [""], [5], [str(n) for n in range(51)]], "tag"),
]


@pytest.mark.parametrize(("name", "values", "message"), FIELDS)
def test_a_wrong_value_is_named(name: str, values: list[Any], message: str) -> None:
    """A value of the wrong type or out of range is refused, with the line and the field."""
    for value in values:
        export = joined(HEADER, model("a"), model("b") | {name: value}, END)
        assert refused(export).startswith("line 3: ")
        assert message in refused(export)


LINES: dict[str, tuple[bytes, str]] = {
    "no header": (joined(model("a"), END), "line 1: is not the first line of an export"),
    "nothing": (b"", "line 1: is not the first line of an export"),
    "a list of models": (joined({"id": "a"}), "line 1: is not the first line of an export"),
    "newer": (joined(HEADER | {"modelctl_export": 2}, END), "line 1: the export has version 2"),
    "odd version": (joined(HEADER | {"modelctl_export": "1"}), "line 1: 'modelctl_export' is not"),
    "odd time": (joined(HEADER | {"exported_at": 1}), "line 1: 'exported_at' is not a time"),
    "twice": (
        export_of(model("a"), model("b"), model("a")),
        "line 4: has the id 'a', which an earlier line has too",
    ),
    "two pauses": (
        export_of({"pause": PAUSE}, {"pause": PAUSE}),
        "line 3: is the second pause of the same scope",
    ),
    "missing field": (
        export_of({k: v for k, v in model("a").items() if k != "provider"}),
        "line 2: has no field 'provider'",
    ),
    "unknown field": (export_of(model("a", colour="red")), "line 2: has a field 'colour'"),
    "field twice": (
        joined(HEADER, b'{"id": "a", "id": "b"}', END),
        "line 2: has the field 'id' twice",
    ),
    "NaN": (
        joined(HEADER, json.dumps(model("a", ejections=float("nan"))).encode(), END),
        "line 2: NaN is not a number of JSON",
    ),
    "no JSON": (joined(HEADER, b"{", END), "line 2: is not JSON"),
    "deep": (joined(HEADER, b"[" * 100_000, END), "line 2: is not JSON"),
    "huge number": (joined(HEADER, b"1" * 5000, END), "line 2: is not JSON"),
    "no object": (joined(HEADER, [], END), "line 2: is not a JSON object"),
    "empty object": (joined(HEADER, {}, END), "line 2: has no field 'id'"),
    "no UTF-8": (joined(HEADER, b'{"id": "\xff"}', END), "line 2: is not UTF-8 text"),
    "too long": (
        export_of(model("a", display_name="x" * (1 << 20))),
        "line 2: is longer than 1 MiB",
    ),
    "wrong totals": (joined(HEADER, END), "line 2: the export had 1 models, and the file has 0"),
    "odd totals": (joined(HEADER, {"end": 1}), "line 2: 'end' is not an object"),
    "more after it": (
        export_of(model("a")) + export_of(model("b")),
        "line 4: comes after the last line",
    ),
    "odd pause": (export_of({"pause": []}), "line 2: 'pause' is not an object"),
    "pause for ever": (export_of({"pause": PAUSE | {"until": None}}), "line 2: 'until' is not"),
    "incident of nobody": (
        export_of({"incident": INCIDENT | {"provider": None}}),
        "line 2: 'provider' of an incident is null",
    ),
    "odd incident": (
        export_of({"incident": INCIDENT | {"failure_type": "x"}}),
        "line 2: 'failure_type' is none of",
    ),
}


@pytest.mark.parametrize(("export", "message"), LINES.values(), ids=LINES)
def test_a_wrong_line_is_named(export: bytes, message: str) -> None:
    """A line that is not as an export has it is refused, with its number."""
    assert refused(export).startswith(message)


def test_the_message_has_no_control_characters() -> None:
    """What is wrong is quoted without its control characters."""
    assert refused(export_of(model("a") | {"\x1b[2J": 1})) == (
        r"line 2: has a field '\x1b[2J', which this modelctl does not know"
    )


def test_each_field_is_checked() -> None:
    """No field of a model or of a hold takes what JSON can hold and the field is not for."""
    for name in MODEL:
        assert f"'{name}'" in refused(export_of(model("a") | {name: {"x": 1}})) or name == "tags"
    for name in PAUSE:
        assert f"'{name}'" in refused(export_of({"pause": PAUSE | {name: [1]}}))
