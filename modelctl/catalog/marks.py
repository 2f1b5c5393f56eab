"""Which entries are models: what marks them, and what other things carry.

An entry is accepted as a model only if it has a mark of its format: lists of files, users, providers
or prices have ids, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# The fields that `modelctl list -o json` prints.
_OWN = frozenset(
    [
        *("id", "display_name", "name", "provider", "active", "auto_disabled", "status"),
        *("consecutive_failures", "ejections", "success_count", "failure_count"),
        *("last_success_at", "last_failure_at", "failure_type", "failure_reason"),
        *("disabled_at", "disabled_by", "disabled_reason", "disabled_until", "recovered_at"),
        *("would_disable", "created_at", "updated_at", "retry_at", "seconds_left", "tags"),
    ]
)
# Fields that catalogues have for models only.
_OF_A_MODEL = frozenset(
    [
        *("owned_by", "organization", "publisher", "vendor", "provider", "litellm_provider"),
        *("base_model_id", "base_model", "context_length", "context_window", "context_size"),
        *("max_context_length", "max_model_len", "max_input_tokens", "max_output_tokens"),
        *("max_completion_tokens", "input_modalities", "output_modalities", "modalities"),
        *("architecture", "canonical_slug", "supported_parameters"),
        *("supported_generation_methods", "quantization", "parameter_size", "input_price"),
        *("output_price", "pricing", "tool_call", "reasoning", "capabilities"),
        *("supported_endpoint_types", "hugging_face_id"),
    ]
)
_NAMED = frozenset(("name", "display_name"))
# Fields of other things that have an id and a name: providers, users, keys, projects, voices, files,
# jobs, prices, errors.
_OF_SOMETHING_ELSE = frozenset(
    [
        *("models", "env", "npm", "privacy_policy_url", "slug", "email", "role", "roles"),
        *("username", "password", "key", "api_key", "secret", "scopes", "filename", "bytes"),
        *("purpose", "url", "base_url", "message", "error", "errors", "request", "response"),
        *("custom_id", "model", "matchPattern", "match_pattern", "modelName", "price"),
        *("prices", "amount", "currency", "plan", "members", "avatar", "avatar_url"),
        *("picture", "phone", "login", "first_name", "last_name", "is_admin", "user_id"),
        *("account_id", "team_id", "workspace_id", "org_id", "organization_id", "project_id"),
        *("owner_id", "created_by", "archived_at", "default_branch", "voice_id"),
        *("voice_engine", "gender", "accent", "country", "color", "interval", "permissions"),
        *("preview_url",),
    ]
)
# The "type" of other things. Models have a "type", too, such as "chat" or "llm".
_OTHER_TYPES = (
    *("user", "member", "team", "group", "role", "organization", "workspace", "project", "api_key"),
    *(
        "file",
        "dataset",
        "voice",
        "tool",
        "function",
        "filter",
        "pipe",
        "action",
        "agent",
        "assistant",
    ),
    *("provider", "error", "message", "batch", "job", "webhook", "connector"),
)


def other_thing(entry: Mapping[str, object]) -> str | None:
    """Return what the entry says that it is, such as "file" or "user"; None: it may be a model."""
    said = entry.get("object")
    if said in (None, "") and entry.get("type") in _OTHER_TYPES:
        said = entry["type"]
    return None if said in ("model", None, "") else str(said)


def has(*keys: str) -> Callable[[Mapping[str, object]], bool]:
    """Return a mark: all of *keys* have a value."""
    return lambda entry: all(entry.get(key) not in (None, "") for key in keys)


def is_own(entry: Mapping[str, object]) -> bool:
    """Whether it has an id alone, or fields that only models have, or a name and nothing foreign."""
    if other_thing(entry):
        return False
    if entry.keys() <= _OWN or not _OF_A_MODEL.isdisjoint(entry):
        return True
    return not _NAMED.isdisjoint(entry) and _OF_SOMETHING_ELSE.isdisjoint(entry)


def is_openai(entry: Mapping[str, object]) -> bool:
    """Whether it calls itself a model, or has fields that only models have."""
    from_openrouter = is_openrouter(entry) and "owned_by" not in entry and "object" not in entry
    if other_thing(entry) or from_openrouter:
        return False
    marked = entry.get("object") == "model" or not _OF_A_MODEL.isdisjoint(entry)
    # Small servers give nothing but these two.
    return marked or entry.keys() <= {"id", "created"}


def is_openrouter(entry: Mapping[str, object]) -> bool:
    """Whether it has a slug, or a name and an id with a slash."""
    named = isinstance(entry.get("name"), str) and "/" in str(entry.get("id"))
    return "canonical_slug" in entry or named


def says_nothing_of_models(document: Mapping[str, object]) -> bool:
    """Whether a document has neither a name nor fields that only models have."""
    return _OF_A_MODEL.isdisjoint(document) and _NAMED.isdisjoint(document)
