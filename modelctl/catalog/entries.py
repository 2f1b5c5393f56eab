"""Where the entries stand in the document of each format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The place of a JSON value in words, for messages, and the value: ("line 17", {...}).
Entry = tuple[str, object]


def list_in(*keys: str) -> Callable[[object], list[Entry] | None]:
    """Return a function that finds the entries in the list under one of *keys*.

    The key "" stands for the document itself. An empty list counts only under the first key.
    """

    def entries(document: object) -> list[Entry] | None:
        for key in keys:
            found = document.get(key) if key and isinstance(document, dict) else None
            if not key:
                found = document
            if isinstance(found, list) and (found or key == keys[0]):
                return _numbered(found)
        return None

    return entries


def _numbered(entries: list[object]) -> list[Entry]:
    return [(f"entry {number}", entry) for number, entry in enumerate(entries, 1)]


def objects(document: object) -> list[Entry] | None:
    """Find the entries of a JSON array, or the one entry that the document is."""
    if isinstance(document, list):
        return _numbered(document)
    return [("entry 1", document)] if isinstance(document, dict) and "id" in document else None


# Keys of LiteLLM's price list that are no models: an example, and rules for unknown names.
_NOT_PRICED = {"sample_spec", "fallback_generalizations"}


def price_list(document: object) -> list[Entry] | None:
    """Find the entries of LiteLLM's price list, whose keys are the ids."""
    if not isinstance(document, dict):
        return None
    priced = [value for value in document.values() if isinstance(value, dict)]
    if not any("litellm_provider" in value for value in priced):
        return None
    entries: list[Entry] = []
    for number, (key, value) in enumerate(document.items(), 1):
        if key in _NOT_PRICED:
            continue
        entry = value | {"id": key} if isinstance(value, dict) else {"id": key}
        if "alias_of" in entry and (provider := _provider_of_alias(document, entry["alias_of"])):
            entry["litellm_provider"] = provider
        entries.append((f"entry {number}", entry))
    return entries


def _provider_of_alias(document: dict[str, Any], target: object) -> object:
    """Return the provider of the model that an alias stands for; None: there is no such model."""
    model = document.get(target) if isinstance(target, str) else None
    if not isinstance(model, dict) or "alias_of" in model:
        return None
    return model.get("litellm_provider")


def in_providers(document: object) -> list[Entry] | None:
    """Find the models inside of their providers, in a list or by name, as models.dev has them."""
    if isinstance(document, dict):
        listed = document.get("providers", document.get("data"))
        providers: object = listed if isinstance(listed, list | dict) else document
    else:
        providers = document
    if isinstance(providers, dict):
        pairs = [(key, value) for key, value in providers.items() if isinstance(value, dict)]
    elif isinstance(providers, list):
        pairs = [(value.get("id"), value) for value in providers if isinstance(value, dict)]
    else:
        return None
    return [entry for name, value in pairs for entry in _of_provider(name, value)] or None


def _of_provider(name: object, provider: dict[str, Any]) -> list[Entry]:
    models = provider.get("models")
    if isinstance(models, dict):
        models = [m | {"id": m.get("id", i)} for i, m in models.items() if isinstance(m, dict)]
    if not isinstance(models, list):
        return []
    entries: list[Entry] = []
    for number, model in enumerate(models, 1):
        if isinstance(model, str):
            model = {"id": model}
        if isinstance(model, dict):
            model = model | {"provider": provider.get("id", name)}
        entries.append((f"entry {number} of {name}", model))
    return entries


def deployments(document: object) -> list[Entry] | None:
    """Find the deployments of a LiteLLM proxy, in its configuration or its answer at /model/info."""
    entries = list_in("model_list", "data")(document)
    return entries and [(place, _deployment(entry)) for place, entry in entries]


def _deployment(entry: object) -> object:
    """Bring what is in the sections of a deployment up to the entry."""
    if not isinstance(entry, dict):
        return entry
    params, info = entry.get("litellm_params"), entry.get("model_info")
    params = params if isinstance(params, dict) else {}
    info = info if isinstance(info, dict) else {}
    model = params.get("model")
    prefix, slash, _ = model.partition("/") if isinstance(model, str) else ("", "", "")
    known = params.get("custom_llm_provider") or info.get("litellm_provider")
    name = entry.get("model_name")
    return {
        **({} if name is None else {"id": name}),
        **({"model": model} if isinstance(model, str) and model else {}),
        "provider": known or (prefix if slash else ""),
        **({"mode": info["mode"]} if "mode" in info else {}),
    }
