"""The formats of catalogues that modelctl reads.

A new format is a member of `CatalogFormat` and an entry of `FORMATS`: where its entries stand (see
`entries`), what marks an entry as a model (see `marks`), and which keys to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from modelctl.catalog.entries import (
    Entry,
    deployments,
    in_providers,
    list_in,
    objects,
    price_list,
)
from modelctl.catalog.marks import has, is_openai, is_openrouter, is_own
from modelctl.catalog_format import CatalogFormat


class Format(NamedTuple):
    """What one format looks like, and which keys of an entry to read.

    *shape*: in words, for messages. *services*: who answers like that. *example*: a small document.
    *entries*: finds the entries of a document, None if it does not
    have this shape. *marks*: whether an entry is a model.
    *id*, *name*, *provider*: keys, of which the first that has a value counts. *constant*: the
    provider of all models. *provider_is_prefix*: the provider is what precedes the slash of an id.
    *prefix*: what to remove from the beginning of an id.
    *deployments*: the entries are deployments, so the same id may come again, and an id may be a
    pattern, which is no model. *unmarked*: why an entry without the mark is rejected.
    *may_be_empty*: whether an empty list is recognised as this format.
    *key_header*: for the key, instead of ``Authorization: Bearer``. *headers*: what the service demands.
    """

    shape: str
    services: str
    example: str
    entries: Callable[[object], list[Entry] | None]
    marks: Callable[[Mapping[str, object]], bool]
    id: tuple[str, ...] = ("id",)
    name: tuple[str, ...] = ("display_name", "name")
    provider: tuple[str, ...] = ("provider", "organization", "publisher", "vendor", "owned_by")
    constant: str = ""
    provider_is_prefix: bool = False
    prefix: str = ""
    deployments: bool = False
    unmarked: str = ""
    may_be_empty: bool = False
    key_header: str = ""
    headers: Mapping[str, str] = {}


def _is_anthropic(entry: Mapping[str, object]) -> bool:
    return entry.get("type") == "model" and "display_name" in entry and "object" not in entry


def _is_fireworks(entry: Mapping[str, object]) -> bool:
    return bool(re.match("accounts/[^/]+/models/", str(entry.get("name"))))


# In the order in which they are tried: the first format with a marked entry is the format of a
# catalogue, so that a format with weak marks comes after those with strong ones.
FORMATS: dict[CatalogFormat, Format] = {
    CatalogFormat.LITELLM: Format(
        'one object whose entries have a "litellm_provider"',
        "the price list of LiteLLM (model_prices_and_context_window.json)",
        '{"gpt-5": {"litellm_provider": "openai", "mode": "chat"}}',
        price_list,
        has("litellm_provider"),
        provider=("litellm_provider",),
        name=(),
        unmarked='has no "litellm_provider"',
        may_be_empty=True,
    ),
    CatalogFormat.LITELLM_PROXY: Format(
        'a list "model_list" (or "data") of entries with "model_name" and "litellm_params"',
        "a LiteLLM proxy: its configuration (YAML), its answer at /model/info",
        '{"model_list": [{"model_name": "fast", "litellm_params": {"model": "openai/gpt-5"}}]}',
        deployments,
        has("id", "model"),
        name=(),
        deployments=True,
        unmarked='has no "model" in its "litellm_params"',
    ),
    CatalogFormat.PROVIDERS: Format(
        'providers that have their "models" inside',
        "models.dev (https://models.dev/api.json)",
        '{"openai": {"id": "openai", "models": {"gpt-5": {"id": "gpt-5", "name": "GPT-5"}}}}',
        in_providers,
        is_own,
    ),
    CatalogFormat.ANTHROPIC: Format(
        'one object with a list "data" of entries with "type": "model" and a "display_name"',
        "Anthropic (https://api.anthropic.com/v1/models)",
        '{"data": [{"type": "model", "id": "claude-x", "display_name": "Claude X"}]}',
        list_in("data"),
        _is_anthropic,
        constant="anthropic",
        key_header="x-api-key",
        headers={"anthropic-version": "2023-06-01"},
    ),
    CatalogFormat.GEMINI: Format(
        'one object with a list "models" of entries with "supportedGenerationMethods"',
        "Google (https://generativelanguage.googleapis.com/v1beta/models)",
        '{"models": [{"name": "models/gemini-x", "supportedGenerationMethods": ["generateContent"]}]}',
        list_in("models"),
        has("name", "supportedGenerationMethods"),
        id=("name",),
        name=("displayName",),
        constant="google",
        key_header="x-goog-api-key",
        prefix="models/",
    ),
    CatalogFormat.COHERE: Format(
        'one object with a list "models" of entries with "endpoints"',
        "Cohere (https://api.cohere.com/v1/models)",
        '{"models": [{"name": "command-x", "endpoints": ["chat"]}]}',
        list_in("models"),
        has("name", "endpoints"),
        id=("name",),
        name=(),
        constant="cohere",
    ),
    CatalogFormat.OLLAMA: Format(
        'one object with a list "models" of entries with "digest"',
        "Ollama (http://localhost:11434/api/tags)",
        '{"models": [{"name": "llama3:8b", "digest": "365c0bd3c000"}]}',
        list_in("models"),
        has("name", "digest"),
        id=("name",),
        name=(),
        constant="ollama",
    ),
    CatalogFormat.LMSTUDIO: Format(
        'one object with a list "models" of entries with "key" and "publisher"',
        "LM Studio (http://localhost:1234/api/v1/models)",
        '{"models": [{"key": "m-1", "publisher": "acme", "type": "llm"}]}',
        list_in("models"),
        has("key", "publisher"),
        id=("key",),
    ),
    CatalogFormat.CLOUDFLARE: Format(
        'one object with a list "result" of entries with "name" and "task"',
        "Cloudflare Workers AI (.../accounts/ID/ai/models/search)",
        '{"result": [{"name": "@cf/meta/llama-x", "task": {"name": "Text Generation"}}]}',
        list_in("result"),
        has("name", "task"),
        id=("name",),
        name=(),
        constant="cloudflare",
    ),
    CatalogFormat.NEWAPI: Format(
        'one object with a list "data" of entries with "model_name" and "quota_type"',
        "New API and One API (/api/pricing)",
        '{"data": [{"model_name": "gpt-5", "quota_type": 0}]}',
        list_in("data"),
        has("model_name", "quota_type"),
        id=("model_name",),
        name=(),
        provider=(),
    ),
    CatalogFormat.BEDROCK: Format(
        'one object with a list "modelSummaries" of entries with "modelId" and "providerName"',
        "Amazon Bedrock (aws bedrock list-foundation-models)",
        '{"modelSummaries": [{"modelId": "acme.chat-v1", "providerName": "Acme"}]}',
        list_in("modelSummaries"),
        has("modelId", "providerName"),
        id=("modelId",),
        name=("modelName",),
        provider=("providerName",),
    ),
    CatalogFormat.FIREWORKS: Format(
        'one object with a list "models" of entries whose "name" is like accounts/X/models/Y',
        "Fireworks (https://api.fireworks.ai/v1/accounts/fireworks/models)",
        '{"models": [{"name": "accounts/fireworks/models/alpha", "displayName": "Alpha"}]}',
        list_in("models"),
        _is_fireworks,
        id=("name",),
        name=("displayName",),
        constant="fireworks",
    ),
    CatalogFormat.HUGGINGFACE: Format(
        'an array of entries with "id" and "modelId"',
        "the Hugging Face hub (https://huggingface.co/api/models?author=NAME)",
        '[{"id": "acme/alpha", "modelId": "acme/alpha"}]',
        list_in(""),
        has("id", "modelId"),
        name=(),
        provider=(),
        provider_is_prefix=True,
    ),
    CatalogFormat.OPENAI: Format(
        'one object with a list "data" (or "models") of entries with "object": "model" or "owned_by"',
        "OpenAI and most others: Mistral, Groq, xAI, vLLM, LM Studio, Open WebUI (/v1/models)",
        '{"data": [{"id": "gpt-5", "object": "model", "owned_by": "openai"}]}',
        list_in("data", "models"),
        is_openai,
        may_be_empty=True,
    ),
    CatalogFormat.OPENROUTER: Format(
        'one object with a list "data" of entries with "canonical_slug", or "name" and an id'
        " with a slash",
        "OpenRouter (https://openrouter.ai/api/v1/models)",
        '{"data": [{"id": "openai/gpt-5", "canonical_slug": "openai/gpt-5", "name": "GPT-5"}]}',
        list_in("data"),
        is_openrouter,
        provider=(),
        provider_is_prefix=True,
    ),
    CatalogFormat.JSONL: Format(
        'one object with an "id" on each line, or an array of them',
        "modelctl list -o jsonl; Together, GitHub Models, Requesty; what you write yourself",
        '{"id": "openai/gpt-5", "name": "GPT-5", "provider": "openai"}',
        objects,
        is_own,
        may_be_empty=True,
    ),
}
