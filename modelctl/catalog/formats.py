"""The catalogues that modelctl reads, one table row each: where entries are, and what marks them.

An entry is a model only if it has what the entries of its format have. A list of files, users,
providers or prices has ids too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

# One JSON value and the words that name its place, for messages: ("line 17", {...}).
Entry = tuple[str, object]


class CatalogFormat(StrEnum):
    """The catalogues modelctl can read; the table `FORMATS` says what each looks like."""

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


# What `modelctl list -o json` prints of a model.
_OWN = frozenset(
    [
        "id",
        "display_name",
        "name",
        "provider",
        "active",
        "auto_disabled",
        "status",
        "consecutive_failures",
        "ejections",
        "success_count",
        "failure_count",
        "last_success_at",
        "last_failure_at",
        "failure_type",
        "failure_reason",
        "disabled_at",
        "disabled_by",
        "disabled_reason",
        "disabled_until",
        "recovered_at",
        "would_disable",
        "created_at",
        "updated_at",
        "retry_at",
        "seconds_left",
        "tags",
    ]
)
# What catalogues say of models, and of nothing else.
_OF_A_MODEL = frozenset(
    [
        "owned_by",
        "organization",
        "publisher",
        "vendor",
        "provider",
        "litellm_provider",
        "base_model_id",
        "base_model",
        "context_length",
        "context_window",
        "context_size",
        "max_context_length",
        "max_model_len",
        "max_input_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "input_modalities",
        "output_modalities",
        "modalities",
        "architecture",
        "canonical_slug",
        "supported_parameters",
        "supported_generation_methods",
        "quantization",
        "parameter_size",
        "input_price",
        "output_price",
        "pricing",
        "tool_call",
        "reasoning",
        "capabilities",
        "supported_endpoint_types",
        "hugging_face_id",
    ]
)
_NAMED = frozenset(("name", "display_name"))
# What has an id and a name, too: providers, users, keys, projects, voices, files, jobs, prices, errors.
_OF_SOMETHING_ELSE = frozenset(
    [
        "models",
        "env",
        "npm",
        "privacy_policy_url",
        "slug",
        "email",
        "role",
        "roles",
        "username",
        "password",
        "key",
        "api_key",
        "secret",
        "scopes",
        "filename",
        "bytes",
        "purpose",
        "url",
        "base_url",
        "message",
        "error",
        "errors",
        "request",
        "response",
        "custom_id",
        "model",
        "matchPattern",
        "match_pattern",
        "modelName",
        "price",
        "prices",
        "amount",
        "currency",
        "plan",
        "members",
        "avatar",
        "avatar_url",
        "picture",
        "phone",
        "login",
        "first_name",
        "last_name",
        "is_admin",
        "user_id",
        "account_id",
        "team_id",
        "workspace_id",
        "org_id",
        "organization_id",
        "project_id",
        "owner_id",
        "created_by",
        "archived_at",
        "default_branch",
        "voice_id",
        "voice_engine",
        "gender",
        "accent",
        "country",
        "color",
        "interval",
        "permissions",
        "preview_url",
    ]
)


# Models have a "type", too ("chat", "llm"), but none of these.
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
    """What the entry says that it is, where that is no model: a file, a batch, a user..."""
    said = entry.get("object")
    if said in (None, "") and entry.get("type") in _OTHER_TYPES:
        said = entry["type"]
    return None if said in ("model", None, "") else str(said)


def is_own(entry: Mapping[str, object]) -> bool:
    """An id alone, or with a name, a provider, or what catalogues say of models alone."""
    if other_thing(entry):
        return False
    if entry.keys() <= _OWN or not _OF_A_MODEL.isdisjoint(entry):
        return True
    return not _NAMED.isdisjoint(entry) and _OF_SOMETHING_ELSE.isdisjoint(entry)


def _is_openai(entry: Mapping[str, object]) -> bool:
    if other_thing(entry) or (
        _is_openrouter(entry) and "owned_by" not in entry and "object" not in entry
    ):
        return False
    marked = entry.get("object") == "model" or not _OF_A_MODEL.isdisjoint(entry)
    return marked or entry.keys() <= {"id", "created"}  # a small server says no more


def _is_openrouter(entry: Mapping[str, object]) -> bool:
    named = isinstance(entry.get("name"), str) and "/" in str(entry.get("id"))
    return "canonical_slug" in entry or named


def _has(*keys: str) -> Callable[[Mapping[str, object]], bool]:
    return lambda entry: all(entry.get(key) not in (None, "") for key in keys)


def _list_in(*keys: str) -> Callable[[object], list[Entry] | None]:
    """The entries of a list that stands under one of *keys*; "": the document is the list."""

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
    """Name the entries of a list by their places, from 1."""
    return [(f"entry {n}", entry) for n, entry in enumerate(entries, 1)]


def _own(document: object) -> list[Entry] | None:
    if isinstance(document, list):
        return _numbered(document)
    return [("entry 1", document)] if isinstance(document, dict) and "id" in document else None


# Of LiteLLM's price list: what explains the format, and rules for names that it does not know.
_NOT_PRICED = {"sample_spec", "fallback_generalizations"}


def _priced(document: object) -> list[Entry] | None:
    """The models of a price list: its keys are the ids."""
    if not isinstance(document, dict):
        return None
    priced = [v for v in document.values() if isinstance(v, dict)]
    if not any("litellm_provider" in value for value in priced):
        return None
    entries: list[Entry] = []
    for n, (key, value) in enumerate(document.items(), 1):
        if key in _NOT_PRICED:
            continue
        entry = value | {"id": key} if isinstance(value, dict) else {"id": key}
        if "alias_of" in entry and (provider := _provider_of(document, entry["alias_of"])):
            entry["litellm_provider"] = provider
        entries.append((f"entry {n}", entry))
    return entries


def _provider_of(document: dict[str, Any], target: object) -> object:
    """The provider of the model that an alias stands for; None: it stands for no model."""
    model = document.get(target) if isinstance(target, str) else None
    if not isinstance(model, dict) or "alias_of" in model:
        return None
    return model.get("litellm_provider")


def _by_provider(document: object) -> list[Entry] | None:
    """The models that stand inside of their providers, in a list or by name (models.dev)."""
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
    entries: list[Entry] = []
    for provider, value in pairs:
        models = value.get("models")
        if isinstance(models, dict):
            models = [m | {"id": m.get("id", i)} for i, m in models.items() if isinstance(m, dict)]
        if not isinstance(models, list):
            continue
        for n, model in enumerate(models, 1):
            if isinstance(model, str):
                model = {"id": model}
            if isinstance(model, dict):
                model = model | {"provider": value.get("id", provider)}
            entries.append((f"entry {n} of {provider}", model))
    return entries or None


def _deployments(document: object) -> list[Entry] | None:
    """The deployments of a LiteLLM proxy: its configuration, or its answer at /model/info."""
    entries = _list_in("model_list", "data")(document)
    return entries and [(place, _deployment(entry)) for place, entry in entries]


def _deployment(entry: object) -> object:
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
    }


class Format(NamedTuple):
    """One catalogue: *shape* in words, where its *entries* are, what *marks* one.

    *id*, *name*, *provider*: the keys to read, the first that has a value counts. *constant*: the
    provider of all its models. *prefix*: what ids begin with and lose. *merged*: an id that
    comes again is another deployment of the same model, not a mistake. *prefix_is_provider*: what
    stands before the slash of an id.
    """

    shape: str
    entries: Callable[[object], list[Entry] | None]
    marks: Callable[[Mapping[str, object]], bool]
    id: tuple[str, ...] = ("id",)
    name: tuple[str, ...] = ("display_name", "name")
    provider: tuple[str, ...] = ("provider", "organization", "publisher", "vendor", "owned_by")
    constant: str = ""
    prefix: str = ""
    merged: bool = False
    prefix_is_provider: bool = False


# Those that are more particular come first; the first that has a marked entry is the one.
FORMATS: dict[CatalogFormat, Format] = {
    CatalogFormat.LITELLM: Format(
        'one object whose entries have a "litellm_provider"',
        _priced,
        _has("litellm_provider"),
        provider=("litellm_provider",),
        name=(),
    ),
    CatalogFormat.LITELLM_PROXY: Format(
        'a list "model_list" (or "data") of entries with "model_name" and "litellm_params"',
        _deployments,
        _has("id", "model"),
        name=(),
        merged=True,
    ),
    CatalogFormat.PROVIDERS: Format(
        'providers that have their "models" inside',
        _by_provider,
        is_own,
    ),
    CatalogFormat.ANTHROPIC: Format(
        'one object with a list "data" of entries with "type": "model" and a "display_name"',
        _list_in("data"),
        lambda e: e.get("type") == "model" and "display_name" in e and "object" not in e,
        constant="anthropic",
    ),
    CatalogFormat.GEMINI: Format(
        'one object with a list "models" of entries with "supportedGenerationMethods"',
        _list_in("models"),
        _has("name", "supportedGenerationMethods"),
        id=("name",),
        name=("displayName",),
        constant="google",
        prefix="models/",
    ),
    CatalogFormat.COHERE: Format(
        'one object with a list "models" of entries with "endpoints"',
        _list_in("models"),
        _has("name", "endpoints"),
        id=("name",),
        name=(),
        constant="cohere",
    ),
    CatalogFormat.OLLAMA: Format(
        'one object with a list "models" of entries with "digest"',
        _list_in("models"),
        _has("name", "digest"),
        id=("name",),
        name=(),
        constant="ollama",
    ),
    CatalogFormat.LMSTUDIO: Format(
        'one object with a list "models" of entries with "key" and "publisher"',
        _list_in("models"),
        _has("key", "publisher"),
        id=("key",),
    ),
    CatalogFormat.CLOUDFLARE: Format(
        'one object with a list "result" of entries with "name" and "task"',
        _list_in("result"),
        _has("name", "task"),
        id=("name",),
        name=(),
        constant="cloudflare",
    ),
    CatalogFormat.NEWAPI: Format(
        'one object with a list "data" of entries with "model_name" and "quota_type"',
        _list_in("data"),
        _has("model_name", "quota_type"),
        id=("model_name",),
        name=(),
        provider=(),
    ),
    CatalogFormat.BEDROCK: Format(
        'one object with a list "modelSummaries" of entries with "modelId" and "providerName"',
        _list_in("modelSummaries"),
        _has("modelId", "providerName"),
        id=("modelId",),
        name=("modelName",),
        provider=("providerName",),
    ),
    CatalogFormat.FIREWORKS: Format(
        'one object with a list "models" of entries whose "name" is like accounts/X/models/Y',
        _list_in("models"),
        lambda e: bool(re.match("accounts/[^/]+/models/", str(e.get("name")))),
        id=("name",),
        name=("displayName",),
        constant="fireworks",
    ),
    CatalogFormat.HUGGINGFACE: Format(
        'an array of entries with "id" and "modelId"',
        _list_in(""),
        _has("id", "modelId"),
        name=(),
        provider=(),
        prefix_is_provider=True,
    ),
    CatalogFormat.OPENAI: Format(
        'one object with a list "data" (or "models") of entries with "object": "model" or "owned_by"',
        _list_in("data", "models"),
        _is_openai,
    ),
    CatalogFormat.OPENROUTER: Format(
        'one object with a list "data" of entries with "canonical_slug", or "name" and an id'
        " with a slash",
        _list_in("data"),
        _is_openrouter,
        provider=(),
        prefix_is_provider=True,
    ),
    CatalogFormat.JSONL: Format(
        'one object with an "id" on each line, or an array of them',
        _own,
        is_own,
    ),
}

# What services write for "nobody in particular", or for one of their users.
_NO_PROVIDER = re.compile(
    r"system|openai[-_](?:internal|dev)|(?:user|org|organization|proj|team)(?:[-_:].*)?|owner"
    r"|unknown|none|null|n/?a|undefined|library|local(?:host)?|custom|default|public|private|admin|root",
    re.IGNORECASE,
)


def names_no_provider(owner: str) -> bool:
    """Whether the owner of a model, as a service writes it, is no provider."""
    return bool(_NO_PROVIDER.fullmatch(owner))


# The words for a model that works. Any other word in "status" says that it does not.
_WORKS = frozenset(
    [
        *("active", "enabled", "available", "online", "on", "live", "ready", "ok", "running"),
        *("loaded", "ga", "stable", "alpha", "beta", "preview"),
    ]
)


def says_on(entry: Mapping[str, object]) -> bool | None:
    """Whether an entry says that its model is on, in fields that import ignores; None: it says nothing."""
    switches = [entry.get(key) for key in ("active", "is_active", "enabled")]
    status = entry.get("status")
    word = status.strip().lower() if isinstance(status, str) else ""
    if (
        any(switch is False for switch in switches)
        or any(entry.get(key) is True for key in ("auto_disabled", "disabled"))
        or bool(entry.get("disabled_reason"))
        or (word and word not in _WORKS)
    ):
        return False
    on = any(switch is True for switch in switches) or entry.get("disabled") is False or bool(word)
    return True if on else None


def why_none(document: object) -> str:
    """Say what a document is that has no models in any format known."""
    entries = document
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        entries = lists[0] if lists else [document]
    first = (
        next((e for e in entries if isinstance(e, dict)), {}) if isinstance(entries, list) else {}
    )
    keys = {key.lower() for key in first}
    if _is_openai(first) and "id" in first:
        return 'its models stand in a place that no format has; put them into a list "data"'
    if other := other_thing(first):
        return f'it lists what it calls "{other}", not models'
    if keys & {"matchpattern", "match_pattern"}:
        return "it is a price table: its entries are patterns and prices, not models"
    if keys & {"models", "env", "npm", "privacy_policy_url"}:
        return "it is a list of providers without their models"
    if any("price" in key or "cost" in key for key in keys):
        return "it is a price table, not a list of models"
    if first:
        some = ", ".join(f'"{key}"' for key in list(first)[:5])
        return f"its entries have {some} and nothing that marks a model"
    if isinstance(entries, list) and entries and not any(isinstance(e, dict) for e in entries):
        return "its entries are not JSON objects"
    return "it has no entries"


# What names the message of an error, in small letters.
_ERROR_WORDS = (
    *("message", "msg", "detail", "error_description", "errormessage", "error_message"),
    *("title", "reason"),
)


def error_in(document: object) -> str | None:
    """Return the message where a service answered with an error instead of a list."""
    if isinstance(document, list) and len(document) == 1:  # Gemini, when it streams
        document = document[0] if isinstance(document[0], dict) and "error" in document[0] else None
    if not isinstance(document, dict):
        return None
    said = {key.lower(): value for key, value in document.items()}
    error = said.get("error") or said.get("errors")
    if not error and not _is_an_error(said):
        return None
    if not error or error is True:
        error = next((said[word] for word in _ERROR_WORDS if said.get(word)), None)
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error.get("msg") or error.get("code")
    return str(error or said.get("message") or "no reason given")


def _is_an_error(said: Mapping[str, object]) -> bool:
    """Whether a document without an "error" is one: it has a message, and no models."""
    if said.get("success") is False or said.get("object") == "error":
        return True
    if isinstance(said.get("detail"), list):  # FastAPI, of fields that are wrong
        return True
    lists = any(isinstance(value, list | dict) and value for value in said.values())
    if lists or not any(isinstance(said.get(word), str) for word in _ERROR_WORDS):
        return False
    return _OF_A_MODEL.isdisjoint(said) and _NAMED.isdisjoint(said)


# How lists say that there is more of them: the name, and where it says so.
_MORE = (
    "has_more",
    "hasMore",
    "has_next",
    "has_next_page",
    "nextPageToken",
    "next_page_token",
    "nextPageUrl",
    "next_page_url",
    "next_page",
    "nextPage",
    "next_cursor",
    "nextCursor",
    "next_url",
    "next",
    "odata.nextLink",
    "@odata.nextLink",
    "nextLink",
)
_ABOUT_PAGES = (
    *("pagination", "paging", "page_info", "pageInfo", "meta", "metadata", "links", "_links"),
    "result_info",
)


_TOTALS = ("total", "total_count", "totalCount", "totalSize", "total_size", "totalItems", "count")
_PAGES = ("total_pages", "totalPages", "last_page", "lastPage", "pages", "page_count", "pageCount")
_PAGE_SIZE = ("per_page", "perPage", "page_size", "pageSize", "limit")
_THIS_PAGE = ("page", "current_page", "currentPage", "page_number", "pageNumber")


def more_pages(document: object, entries: int) -> str | None:
    """Return the field by which a document says that it is one page of a longer list.

    *entries*: how many are on this page.
    """
    if not isinstance(document, dict):
        return None
    places = (document, *(document.get(name) for name in _ABOUT_PAGES))
    for place in (place for place in places if isinstance(place, dict)):
        for name in _MORE:
            if place.get(name) not in (None, False, "", 0, [], {}):
                return name
        page = max(_numbers(place, _THIS_PAGE).values(), default=0)
        for name, pages in _numbers(place, _PAGES).items():
            if pages > max(page, 1):
                return name
        size = max(_numbers(place, _PAGE_SIZE).values(), default=0)
        until_here = page * size or max(_numbers(place, ("offset",)).values(), default=0) + entries
        for name, total in _numbers(place, _TOTALS).items():
            if total > until_here:
                return name
    return None


def _numbers(place: Mapping[str, object], names: tuple[str, ...]) -> dict[str, int]:
    return {name: value for name in names if type(value := place.get(name)) is int}
