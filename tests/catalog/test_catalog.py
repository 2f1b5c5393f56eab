"""A catalogue is read in each of its forms; a bad entry is rejected by name and the rest is taken."""

from __future__ import annotations

import gc
import io
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.catalog.convert import CatalogModel
from modelctl.catalog.parse import parse
from modelctl.catalog.read import LARGEST_VALUE
from modelctl.catalog.results import Rejection
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError
from modelctl.model import check_id
from tests import ROOT
from tests.catalog.texts import lines, rows, text

FLEET = ROOT / "examples" / "fleet.jsonl"

JSONL, LITELLM = CatalogFormat.JSONL, CatalogFormat.LITELLM
OPENAI, OPENROUTER = CatalogFormat.OPENAI, CatalogFormat.OPENROUTER

PRICES = {
    "sample_spec": {"litellm_provider": "one of https://docs.litellm.ai/docs/providers"},
    "fallback_generalizations": {"rules": []},
    "gpt-5": {"litellm_provider": "openai", "mode": "chat", "display_name": "not theirs"},
    "no-provider": {"mode": "chat"},
    "empty-provider": {"litellm_provider": ""},
    "version": 2,
    "us.anthropic.claude-sonnet-4-5-20250929-v1:0": {"litellm_provider": "bedrock_converse"},
}
OPENAI_LIST = {
    "object": "list",
    "data": [
        {"id": "gpt-5", "object": "model", "created": 1754425777, "owned_by": "openai"},
        {"id": "my-own", "object": "model", "owned_by": None},
    ],
}
OPENROUTER_LIST = {
    "data": [
        {
            "id": "openai/gpt-5",
            "canonical_slug": "openai/gpt-5-2025-08-07",
            "name": "OpenAI: GPT-5",
        },
        {"id": "auto", "canonical_slug": "auto", "name": "Auto Router"},
    ]
}


@pytest.mark.parametrize(
    ("source", "format_", "expected"),
    [
        (
            lines({"id": "a", "display_name": "A", "provider": "OpenAI"}, {"id": "b", "name": "B"}),
            JSONL,
            [("a", "A", "OpenAI"), ("b", "B", "")],
        ),
        (b'\r\n{"id": "a"}\r\n \t\r\n{"id": "b"}\r\n', JSONL, [("a", "", ""), ("b", "", "")]),
        (b'{"id": "a"}', JSONL, [("a", "", "")]),
        (b'{\n  "id": "a"\n}\n', JSONL, [("a", "", "")]),
        (b'\xef\xbb\xbf{"id": "a"}\n{"id": "b"}', JSONL, [("a", "", ""), ("b", "", "")]),
        (
            '{"id": "a", "name": "x\u2028y"}\n{"id": "b"}'.encode(),
            JSONL,
            [("a", "x\u2028y", ""), ("b", "", "")],
        ),
        (text([{"id": "a", "provider": None}, {"id": "b"}]), JSONL, [("a", "", ""), ("b", "", "")]),
        (b"[]", JSONL, []),
        (
            text(PRICES),
            LITELLM,
            [
                ("gpt-5", "", "openai"),
                ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "", "bedrock_converse"),
            ],
        ),
        (text({"sample_spec": PRICES["sample_spec"]}), LITELLM, []),
        (text(OPENAI_LIST), OPENAI, [("gpt-5", "", "openai"), ("my-own", "", "")]),
        (text({"object": "list", "data": []}), OPENAI, []),
        (text({"data": []}), OPENAI, []),
        (
            text({"object": "list", "data": [{"id": "m", "name": "M", "owned_by": "me"}]}),
            OPENAI,
            [("m", "M", "me")],
        ),
        (
            text(OPENROUTER_LIST),
            OPENROUTER,
            [("openai/gpt-5", "OpenAI: GPT-5", "openai"), ("auto", "Auto Router", "")],
        ),
        (text({"data": [{"id": "x/m", "name": "M"}]}), OPENROUTER, [("x/m", "M", "x")]),
    ],
)
def test_shape_tells_format(
    source: bytes, format_: CatalogFormat, expected: list[tuple[str, str, str]]
) -> None:
    """Every format is recognised by its shape, and naming it changes nothing."""
    catalog = parse(source)
    assert catalog.format is format_
    assert rows(catalog) == expected
    # Only the price list has entries beside its models.
    others = (
        ["no-provider", "empty-provider", "version"]
        if len(expected) and b"sample" in source
        else []
    )
    assert [rejection.id for rejection in catalog.rejected] == others
    assert parse(source, format_) == catalog


def test_own_list_output_is_a_catalogue() -> None:
    """What `modelctl list` prints can be imported, its other columns are ignored."""
    row = {"id": "a", "display_name": "A", "provider": "p", "active": False, "status": "disabled"}
    assert rows(parse(text([row]))) == rows(parse(lines(row))) == [("a", "A", "p")]


@pytest.mark.parametrize(
    ("entry", "shown", "why"),
    [
        ({}, "line 3", 'has no "id"'),
        ({"id": None}, "line 3", 'has no "id"'),
        ({"id": 7}, "line 3", "is text, not int"),
        ({"id": float("nan")}, "line 3", "is text, not float"),
        ({"id": ["x"]}, "line 3", "is text, not list"),
        ({"id": ""}, "line 3", "at least one character"),
        ({"id": "  "}, "line 3", "no blanks at its ends"),
        ({"id": " x"}, " x", "no blanks at its ends"),
        ({"id": "x" * 201}, "x" * 199 + "…", "at most 200 characters"),
        ({"id": "x\x1b[2J"}, r"x\x1b[2J", "no control characters"),
        ({"id": "x\ud800"}, r"x\ud800", "no control characters"),
        ({"id": "x", "display_name": 5}, "x", '"display_name" is not text'),
        ({"id": "x", "name": {}}, "x", '"name" is not text'),
        ({"id": "x", "provider": False}, "x", '"provider" is not text'),
        ({"id": "good"}, "good", "is in the catalogue twice"),
    ],
)
def test_bad_entry_is_rejected_alone(entry: object, shown: str, why: str) -> None:
    """A bad entry is rejected under its id or its place, and the others go in."""
    catalog = parse(lines({"id": "good"}) + b"\n" + lines(entry, {"id": "last"}))
    assert [model.id for model in catalog.models] == ["good", "last"]
    (rejection,) = catalog.rejected
    assert rejection.id == shown
    assert why in rejection.why


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([{"id": "a"}, "b"], Rejection("entry 2", "is not a JSON object")),
        (
            {"object": "list", "data": [{"id": "a"}, None]},
            Rejection("entry 2", "is not a JSON object"),
        ),
        (
            {"data": [{"id": "x/a", "name": "A"}, {"name": "B"}]},
            Rejection("entry 2", 'has no "id"'),
        ),
        (
            {"a": {"litellm_provider": "p"}, "b": {"litellm_provider": 1}},
            Rejection("b", '"litellm_provider" is not text'),
        ),
        (
            {"a": {"litellm_provider": "p"}, "": {"litellm_provider": "p"}},
            Rejection("entry 2", "a model id has at least one character"),
        ),
    ],
)
def test_bad_entry_of_one_document(source: object, expected: Rejection) -> None:
    """In the formats that are one document, an entry without a usable id is named by its place, from 1."""
    catalog = parse(text(source))
    assert [model.id.removeprefix("x/") for model in catalog.models] == ["a"]
    assert catalog.rejected == (expected,)


def test_only_a_taken_model_makes_a_duplicate() -> None:
    """The second of two entries with one id is taken when the first was rejected."""
    catalog = parse(lines({"id": "a", "provider": 1}, {"id": "a", "provider": "p"}, {"id": "A"}))
    assert rows(catalog) == [("a", "", "p"), ("A", "", "")]
    assert len(catalog.rejected) == 1


def test_repeated_key_of_a_price_list() -> None:
    """The last of two equal keys in a price list counts."""
    source = b'{"m": {"litellm_provider": "first"}, "m": {"litellm_provider": "last"}}'
    assert rows(parse(source)) == [("m", "", "last")]


def test_texts_are_made_storable() -> None:
    """Names and providers are trimmed, cut to 200 characters and rid of what no database holds."""
    source = lines(
        {"id": "a", "display_name": "  A\x1b[1m ", "provider": " P "},
        {"id": "b", "display_name": "x" * 300, "provider": "\0"},
        {"id": "c", "display_name": "\ud800", "provider": "é"},
    )
    assert rows(parse(source)) == [
        ("a", "A\x1b[1m", "P"),
        ("b", "x" * 200, "\ufffd"),
        ("c", "\ufffd", "é"),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b" \r\n\t\n", "is empty"),
        ('{"id": "a"}'.encode("utf-16"), "is not UTF-8"),
        ('{"id": "a"}'.encode("utf-16-le"), "is not UTF-8"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        (b"model_lists:\n  - model_name: x\n", "line 1 is not JSON"),
        (b'{"id": "a"}\n{"id": "b"\n{"id": "c"}', "line 2 is not JSON"),
        (b'{"id": "a"\n{"id": "b"}', "line 1 is not JSON"),
        (b'{"id": "a"}\n\n["b"]', "line 3 is not a JSON object"),
        (b'5\n{"id": "a"}', "line 1 is not a JSON object"),
        (b'{"id": "a"} {"id": "b"}', "line 1 is not JSON: Extra data"),
        (b'{\n  "m": {\n    "litellm_provider" "p"\n  }\n}', "(line 3, column 24)"),
        (b'{"id": "a"}\n{"id": ' + b"9" * 5000 + b"}", "line 2 has a number that is too long"),
        (b"[\n" + b"9" * 5000 + b"]", "the catalogue has a number that is too long"),
        (b"[\n" + b"[" * 100_000, "the catalogue is nested too deeply"),
        (b'{"id": "a"}\n' + b'{"a":' * 100_000, "line 2 is nested too deeply"),
        (b"5", "the catalogue has no models"),
        (b"NaN", "the catalogue has no models"),
        (b"null", "the catalogue has no models"),
        (b'"text"', "the catalogue has no models"),
        (b"{}", "the catalogue has no models"),
        (b'{"data": {}}', "the catalogue has no models"),
        (b'{"error": {"message": "no key"}}', "an error message: no key"),
    ],
)
def test_what_is_no_catalogue(source: bytes, message: str) -> None:
    """Input that is broken as a whole is a usage error that says where."""
    with pytest.raises(UsageError) as raised:
        parse(source)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("source", "format_", "message"),
    [
        (text(PRICES), JSONL, 'one object with an "id" on each line'),
        (text(OPENAI_LIST), JSONL, 'one object with an "id" on each line'),
        (b"5", JSONL, 'one object with an "id" on each line'),
        (b"{}", LITELLM, '"litellm_provider"'),
        (text(OPENAI_LIST), LITELLM, '"litellm_provider"'),
        (lines({"id": "a"}, {"id": "b"}), LITELLM, '"litellm_provider"'),
        (text(PRICES), OPENAI, 'a list "data"'),
        (b'{"object": "list"}', OPENAI, 'a list "data"'),
        (lines({"data": []}, {"data": []}), OPENAI, 'a list "data"'),
        (b"[]", OPENROUTER, 'a list "data"'),
    ],
)
def test_named_format_must_fit(source: bytes, format_: CatalogFormat, message: str) -> None:
    """A named format that the input has not is a usage error that describes the format."""
    with pytest.raises(UsageError) as raised:
        parse(source, format_)
    assert f"not in the format {format_}" in raised.value.message
    assert message in raised.value.message
    assert "openrouter" in (raised.value.hint or "")


def test_named_format_decides_between_equal_shapes() -> None:
    """A list can be read as OpenAI's or OpenRouter's when its format is named."""
    source = text({"data": [{"id": "x/m", "name": "M", "owned_by": "y"}]})
    assert rows(parse(source, OPENAI)) == [("x/m", "M", "y")]
    assert rows(parse(source, OPENROUTER)) == [("x/m", "M", "x")]


class Stream(io.RawIOBase):
    """JSON Lines that are made while they are read."""

    def __init__(self, line: bytes, times: int) -> None:
        self.line, self.left, self.number = line, times, 0

    def readline(self, size: int | None = -1, /) -> bytes:
        """Make the next line."""
        self.number += 1
        return self.line % self.number if self.number <= self.left else b""


@pytest.mark.parametrize(
    ("line", "times"),
    [(b'{"id": "m%d", "name": "' + b"x" * 100_000 + b'"}\n', 500), (b'{"id": "m%d"}\n', 50_000)],
    ids=["long lines", "many models"],
)
def test_json_lines_are_not_held_in_memory(line: bytes, times: int) -> None:
    """Fifty megabytes of JSON Lines, or fifty thousand models, are read in a few megabytes."""
    tracemalloc.start()
    try:
        catalog = parse(cast("BinaryIO", Stream(line, times)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(catalog.models) == times
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("head", "tail", "place"),
    [
        (b'{"object": "list", "data": [', b"]}", "line 1"),
        (b'{\n"data": [', b"\n]}", "the catalogue"),
        (b'{"id": "a"}\n{"id": "b", "note": [', b"]}\n", "line 2"),
    ],
    ids=["document on one line", "document", "line"],
)
def test_too_large_a_value(head: bytes, tail: bytes, place: str) -> None:
    """A JSON value of more than 16 MiB is refused in words before all of it is read."""
    source = io.BytesIO(head + b"1," * LARGEST_VALUE + b"1" + tail)
    with pytest.raises(UsageError) as raised:
        parse(source)
    assert raised.value.message == f"{place} is a JSON value of more than 16 MiB"
    assert "JSON Lines" in (raised.value.hint or "")
    assert source.tell() < LARGEST_VALUE + 100


def test_largest_value() -> None:
    """A document of 16 MiB is read."""
    entries = b",".join(b'{"id": "m%d"}' % n for n in range(1000))
    filler = b" " * (LARGEST_VALUE - len(entries) - 12)
    assert len(parse(b'{"data": [' + entries + filler + b"]}").models) == 1000


def test_time_grows_with_the_catalogue() -> None:
    """Eight times as many entries take no more than some 8 times as long, as one document and as lines."""

    def seconds(number: int, make: Callable[[dict[str, Any]], bytes]) -> float:
        source = make(
            {f"m{n}": {"litellm_provider": "p", "note": "x" * 500} for n in range(number)}
        )
        gc.collect()
        gc.disable()  # its time grows with what other tests have left
        try:
            started = time.process_time()
            assert len(parse(source).models) == number
            return time.process_time() - started
        finally:
            gc.enable()

    for make in (text, lambda prices: lines(*({"id": key, "name": "x" * 500} for key in prices))):
        assert seconds(6000, make) < 20 * max(seconds(750, make), 0.01)


KEYS = st.sampled_from(
    [
        "id",
        "name",
        "display_name",
        "provider",
        "owned_by",
        "data",
        "object",
        "canonical_slug",
        "litellm_provider",
    ]
)
# Any code point, surrogates too: an escape in JSON can spell them.
TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(["list", "a", "a/b", "x" * 250])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | TEXTS, inner, max_size=5),
    max_leaves=20,
)
FORMATS = st.none() | st.sampled_from(CatalogFormat)


def sound_or_refused(source: bytes, format_: CatalogFormat | None) -> None:
    """Fail unless *source* is a usage error or a catalogue whose models can be stored."""
    try:
        catalog = parse(source, format_)
    except UsageError:
        return
    ids = [check_id(model.id) for model in catalog.models]
    assert len(ids) == len(set(ids))
    for model in catalog.models:
        f"{model.display_name}{model.provider}".encode()  # no surrogate is left
        assert max(len(model.display_name), len(model.provider)) <= 200
    assert all(rejection.id and rejection.why for rejection in catalog.rejected)


@given(st.binary(), FORMATS)
def test_any_bytes(source: bytes, format_: CatalogFormat | None) -> None:
    """Arbitrary bytes are a sound catalogue or a usage error, never anything else."""
    sound_or_refused(source, format_)


@given(VALUES, FORMATS)
def test_any_json(value: object, format_: CatalogFormat | None) -> None:
    """An arbitrary JSON value is a sound catalogue or a usage error."""
    sound_or_refused(text(value), format_)


@given(st.lists(VALUES, max_size=4), FORMATS)
def test_any_json_lines(values: list[object], format_: CatalogFormat | None) -> None:
    """Arbitrary JSON values on lines are a sound catalogue or a usage error."""
    sound_or_refused(lines(*values), format_)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200).map(str.strip)
IDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=200)
MODELS = st.lists(
    st.builds(CatalogModel, IDS, NAMES, NAMES, st.sampled_from([None, True, False])),
    min_size=1,
    unique_by=lambda model: model.id,
)


@given(MODELS, st.booleans())
def test_json_lines_round_trip(models: list[CatalogModel], ascii_only: bool) -> None:
    """Models written as JSON Lines are read back as they were."""
    source = "\n".join(
        json.dumps(
            {
                "id": model.id,
                "display_name": model.display_name,
                "provider": model.provider,
                "active": model.active,
            },
            ensure_ascii=ascii_only,
        )
        for model in models
    )
    catalog = parse(source.encode())
    assert (catalog.format, [*catalog.models], [*catalog.rejected]) == (JSONL, models, [])
    assert [m.id for m in catalog.models.by_key()] == sorted(m.id for m in models)


def test_example_fleet() -> None:
    """The example fleet is a small, sorted catalogue of several providers without a flaw."""
    catalog = parse(FLEET.read_bytes())
    ids = [model.id for model in catalog.models]
    assert catalog.format is JSONL
    assert catalog.rejected == ()
    assert 20 <= len(ids) <= 40
    assert ids == sorted(set(ids))
    assert len({model.provider for model in catalog.models}) >= 5
    assert all(model.display_name and model.provider for model in catalog.models)
