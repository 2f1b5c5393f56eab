"""The names of the catalogue formats, which the configuration knows, too; `catalog` reads them."""

from __future__ import annotations

from enum import StrEnum


class CatalogFormat(StrEnum):
    """The words of ``--format``."""

    JSONL = "jsonl"
    LITELLM = "litellm"
    LITELLM_PROXY = "litellm-proxy"
    OPENAI = "openai"
    OPENROUTER = "openrouter"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    COHERE = "cohere"
    OLLAMA = "ollama"
    LMSTUDIO = "lmstudio"
    CLOUDFLARE = "cloudflare"
    NEWAPI = "newapi"
    BEDROCK = "bedrock"
    FIREWORKS = "fireworks"
    HUGGINGFACE = "huggingface"
    PROVIDERS = "providers"
