"""What is taken of a catalogue: modes, patterns, prefixes, and ids that several providers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelctl import UsageError
from modelctl.catalog.choice import Choice
from modelctl.catalog.formats import FORMATS
from modelctl.catalog.modes import mode_words, modes_of
from modelctl.catalog.parse import Catalog, parse
from modelctl.catalog_format import CatalogFormat
from tests.catalog.texts import lines, rows, text
from tests.commands import Cli

FOLDER = Path(__file__).parent / "catalogues"
PRICES = {
    "sample_spec": {"litellm_provider": "one of ...", "mode": "one of: chat, embedding"},
    "gpt-5": {"litellm_provider": "openai", "mode": "chat"},
    "azure/gpt-5": {"litellm_provider": "azure", "mode": "chat"},
    "gpt-5-codex": {"litellm_provider": "openai", "mode": "responses"},
    "text-embedding-3-small": {"litellm_provider": "openai", "mode": "embedding"},
    "deepgram/aura": {"litellm_provider": "deepgram"},
}


def providers(**models: list[str]) -> bytes:
    """Write a document as models.dev does: providers by name, with their models by id."""
    modalities = {"input": ["text", "image"], "output": ["text"]}
    return text(
        {
            name: {
                "id": name,
                "env": [f"{name.upper()}_API_KEY"],
                "npm": "@ai-sdk/openai-compatible",
                "name": name.title(),
                "models": {
                    model_id: {
                        "id": model_id,
                        "name": model_id.title(),
                        "tool_call": True,
                        "modalities": modalities,
                        "limit": {"context": 1000, "output": 100},
                        "provider": {"npm": "@ai-sdk/anthropic"},
                    }
                    for model_id in ids
                },
            }
            for name, ids in models.items()
        }
    )


def ids(catalog: Catalog) -> list[str]:
    """Return the ids of the models that were taken."""
    return [model.id for model in catalog.models]


@pytest.mark.parametrize("name", [*CatalogFormat])
def test_the_example_of_each_format_is_one(name: CatalogFormat) -> None:
    """The example that `formats` prints is recognised as that format, and has one model."""
    found = parse(FORMATS[name].example.encode())
    assert (found.format, len(found.models), len(found.rejected)) == (name, 1, 0)


@pytest.mark.parametrize(
    ("entry", "modes"),
    [
        ({"mode": "image_generation"}, "image_generation"),
        ({"mode": "decisions"}, "decisions"),  # of LiteLLM alone
        ({"modalities": {"input": ["text"], "output": ["text"]}}, "chat"),  # models.dev
        ({"modalities": {"output": ["text"]}, "family": "text-embedding"}, "embedding"),
        ({"modalities": {"output": ["text", "audio"]}}, "audio_speech chat"),
        ({"architecture": {"modality": "text+image->text", "tokenizer": "GPT"}}, "chat"),
        ({"architecture": {"modality": "text->text+image"}}, "chat image_generation"),
        ({"architecture": {"output_modalities": ["embeddings"]}}, "embedding"),  # OpenRouter
        ({"supportedGenerationMethods": ["generateContent", "countTokens"]}, "chat"),  # Google
        ({"supportedGenerationMethods": ["embedContent"]}, "embedding"),
        ({"endpoints": ["embed", "chat"]}, "chat embedding"),  # Cohere
        ({"task": {"id": "1", "name": "Text-to-Image"}}, "image_generation"),  # Cloudflare
        ({"object": "model", "type": "llm"}, "chat"),  # LM Studio
        ({"object": "model", "type": "embeddings"}, "embedding"),
        ({"type": "model"}, ""),  # Anthropic
        ({"outputModalities": ["TEXT"], "inputModalities": ["IMAGE"]}, "chat"),  # Bedrock
        ({"supported_endpoint_types": ["openai", "anthropic"]}, "chat"),  # New API
        ({"pipeline_tag": "feature-extraction"}, "embedding"),  # Hugging Face
        ({"pipeline_tag": "depth-estimation"}, "depth_estimation"),
        ({"supported_output_modalities": ["embeddings"], "capabilities": ["x"]}, "embedding"),
        ({"capabilities": {"completion_chat": True, "vision": True, "ocr": False}}, "chat"),
        ({"capabilities": ["tools"], "mode": None}, ""),
        ({"mode": {"chat": 1}, "architecture": "x", "modalities": ["text"], "type": 5}, ""),
    ],
)
def test_where_a_catalogue_says_what_a_model_is_for(entry: dict[str, Any], modes: str) -> None:
    """Each service says it in its own place and words; the result is in LiteLLM's words."""
    assert modes_of(entry) == {*modes.split()}


def test_modes_choose() -> None:
    """Only models with one of the modes are taken, and what does not say its mode is left out."""
    found = parse(text(PRICES), choice=Choice(modes=["chat"]))
    assert ids(found) == ["gpt-5", "azure/gpt-5"]
    assert (found.left_out, [*found.rejected]) == (3, [])
    assert found.notes == (
        "3 models of the catalogue left out, as asked for",
        "1 model of them left out: the catalogue does not say their mode",
    )
    assert len(parse(text(PRICES), choice=Choice(modes=["Embeddings", "responses"])).models) == 2
    assert mode_words(["Text-Generation", "chat", " "]) == {"chat"}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"modes": ["chta"]}, ["has the mode chta", "chat, responses, embedding"]),
        ({"leave_out": ["*"]}, ["leaves out all the models of the catalogue: 5 models"]),
        ({"only": ["x*"], "modes": ["chat"]}, ["leaves out all the models of the catalogue"]),
    ],
)
def test_a_choice_that_leaves_nothing(choice: dict[str, Any], words: list[str]) -> None:
    """Where everything is left out, the error says why: a typing error would empty the list."""
    with pytest.raises(UsageError) as caught:
        parse(text(PRICES), choice=Choice(**choice))
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_a_catalogue_without_modes() -> None:
    """Modes cannot choose where no model says what it is for; an empty list is no error of theirs."""
    source = text({"data": [{"id": "gpt-5", "object": "model", "owned_by": "openai"}]})
    with pytest.raises(UsageError, match="says of no model what it is for"):
        parse(source, choice=Choice(modes=["chat"]))
    assert ids(parse(text({"data": []}), choice=Choice(modes=["chat"]))) == []


def test_patterns_see_the_id_with_its_prefix() -> None:
    """`only` and `except` are matched against the id that the fleet will have."""
    choice = Choice(only=["openai/*", "azure/*"], leave_out=["*-codex"], prefix="provider")
    assert ids(parse(text(PRICES), choice=choice)) == [
        "openai/gpt-5",
        "azure/gpt-5",
        "openai/text-embedding-3-small",
    ]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["gpt-5", "openai/gpt-4", "own"]),
        ("router/", ["router/gpt-5", "router/openai/gpt-4", "router/own"]),
        ("provider", ["openai/gpt-5", "openai/gpt-4", "own"]),
        ("provider/", ["openai/gpt-5", "openai/gpt-4", "own"]),
    ],
)
def test_prefixes(prefix: str, expected: list[str]) -> None:
    """A text stands before each id; the provider, too, unless the id begins with it."""
    source = lines(
        {"id": "gpt-5", "provider": "openai"},
        {"id": "openai/gpt-4", "provider": "openai"},
        {"id": "own"},
    )
    assert ids(parse(source, choice=Choice(prefix=prefix))) == expected
    again = lines(*({"id": model_id, "provider": "openai"} for model_id in expected[:2]))
    assert ids(parse(again, choice=Choice(prefix=prefix))) == expected[:2]


def test_an_id_that_a_prefix_makes_wrong_is_rejected() -> None:
    """The rules for ids hold with the prefix, and a second model with the same id is named."""
    source = lines({"id": "a", "provider": "p"}, {"id": "p/a", "provider": "p"}, {"id": "b" * 199})
    found = parse(source, choice=Choice(prefix="provider"))
    assert (ids(found), [r.why for r in found.rejected]) == (
        ["p/a", "b" * 199],
        ["is in the catalogue twice"],
    )
    found = parse(source, choice=Choice(prefix="x" * 60))
    assert [r.why for r in found.rejected] == [
        "a model id has at most 200 characters, this one has 259"
    ]


def test_ids_that_several_providers_share() -> None:
    """In a list of providers they are refused by name; the provider as prefix keeps them apart."""
    source = providers(anthropic=["claude-a"], vertex=["claude-a", "gemini-b"], router=["x/y"])
    with pytest.raises(UsageError) as caught:
        parse(source)
    assert caught.value.message == "several providers have this id: 'claude-a' (anthropic, vertex)"
    assert "--prefix provider" in (caught.value.hint or "")
    assert rows(parse(source, choice=Choice(prefix="provider"))) == [
        ("anthropic/claude-a", "Claude-A", "anthropic"),
        ("vertex/claude-a", "Claude-A", "vertex"),
        ("vertex/gemini-b", "Gemini-B", "vertex"),
        ("router/x/y", "X/Y", "router"),
    ]
    # What is left out is not shared.
    assert ids(parse(source, choice=Choice(leave_out=["claude-a"]))) == ["gemini-b", "x/y"]
    many = providers(p=[*"abcde"], q=[*"abcde"])
    with pytest.raises(UsageError, match=r"these 5 ids: 'a' \(p, q\); .*; and 2 more"):
        parse(many)
    # One provider with an id in two forms is only a repetition.
    twice = text([{"id": "p", "models": ["a", "a"]}])
    assert [r.why for r in parse(twice).rejected] == ["is in the catalogue twice"]


def test_on_the_command_line(tool: Cli, tmp_path: Path) -> None:
    """import --modes and --prefix choose and name; what is refused writes nothing."""
    file = tmp_path / "models.json"
    file.write_bytes(providers(anthropic=["claude-a"], vertex=["claude-a"]))
    tool("import", str(file)).failed(2, "'claude-a' (anthropic, vertex)", "--prefix provider")
    assert tool("import", str(file), "--prefix", "provider", "-o", "json").json["added"] == 2
    file.write_bytes(text(PRICES))
    result = tool("import", str(file), "--modes", "chat,responses", "--dry-run", "-o", "json").json
    assert (result["added"], result["rejected"]) == (3, [])
    assert {*json.loads(tool("formats", "-o", "json").out)[0]} == {
        "format",
        "of",
        "shape",
        "example",
    }
    assert tool("formats", "-o", "name").out.split() == [*FORMATS]
    assert tool("list", "-o", "name").out.split() == ["anthropic/claude-a", "vertex/claude-a"]
