"""One entry of a catalogue becomes one model: its id, its name, its provider, whether it is on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from modelctl.catalog.formats import FORMATS, Format
from modelctl.catalog.marks import other_thing
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH, check_id, storable

TEXT_LENGTH = 200


class CatalogModel(NamedTuple):
    """What a catalogue says about one model.

    *active*: whether the catalogue says that the model is on; None: it does not say.
    """

    id: str
    display_name: str
    provider: str
    active: bool | None = None


def model_of(entry: object, name: CatalogFormat) -> CatalogModel:
    """Return the model that *entry* describes in the format *name*.

    Raises:
        UsageError: says why the entry is no model, without naming it.
    """
    format_ = FORMATS[name]
    if not isinstance(entry, dict):
        raise UsageError("is not a JSON object")
    key = next((key for key in format_.id if entry.get(key) is not None), None)
    if key is None:
        raise UsageError(f'has no "{format_.id[0]}"')
    model_id = entry[key]
    if isinstance(model_id, str):
        model_id = model_id.removeprefix(format_.prefix)
    model_id = check_id(model_id)
    if not format_.marks(entry):
        raise UsageError(_why_not_a_model(entry, name))
    if format_.deployments and "*" in model_id:
        raise UsageError("is a pattern, not a model")
    display_name = _text(entry, *format_.name)
    return CatalogModel(model_id, display_name, _provider(entry, model_id, format_), _is_on(entry))


def name_of(entry: object, name: CatalogFormat) -> str:
    """Return the id by which a person can find a rejected entry; empty if it has none."""
    model_id = entry.get(FORMATS[name].id[0]) if isinstance(entry, dict) else None
    if not isinstance(model_id, str) or not model_id.strip():
        return ""
    return clean(model_id, longest=ID_LENGTH)


def _why_not_a_model(entry: Mapping[str, object], name: CatalogFormat) -> str:
    if other := other_thing(entry):
        return f"is called {clean(other, longest=50)}, not a model"
    if "alias_of" in entry:
        target = clean(str(entry["alias_of"]), longest=ID_LENGTH)
        return f"is an alias of '{target}', which is no model of this list"
    return FORMATS[name].unmarked or f"has nothing that marks a model of the format {name}"


def _text(entry: Mapping[str, object], *keys: str) -> str:
    """Return the first of *keys* that has a value; null counts as absent."""
    for key in keys:
        value = entry.get(key)
        if isinstance(value, str):
            return storable(value, TEXT_LENGTH).strip()
        if value is not None:
            raise UsageError(f'"{key}" is not text')
    return ""


# ── The provider ──

# What services write as the owner of a model that no provider in particular, or a user, owns.
_NO_PROVIDER = re.compile(
    r"system|openai[-_](?:internal|dev)|(?:user|org|organization|proj|team)(?:[-_:].*)?|owner"
    r"|unknown|none|null|n/?a|undefined|library|local(?:host)?|custom|default|public|private|admin|root",
    re.IGNORECASE,
)


def _provider(entry: Mapping[str, object], model_id: str, format_: Format) -> str:
    if format_.constant:
        return format_.constant
    if format_.provider_is_prefix:
        provider, slash, _ = model_id.partition("/")
        return provider.strip() if slash else ""
    for key in format_.provider:
        found = _text(entry, key)
        if found and not (key == "owned_by" and _NO_PROVIDER.fullmatch(found)):
            return found
    return ""


# ── Whether it is on ──

# The values of "status" for a model that works. Any other value means that it does not.
_WORKS = frozenset(
    [
        *("active", "enabled", "available", "online", "on", "live", "ready", "ok", "running"),
        *("loaded", "ga", "stable", "alpha", "beta", "preview"),
    ]
)


_SAYING_IT = frozenset(
    [
        *("active", "is_active", "enabled", "disabled", "auto_disabled"),
        *("disabled_reason", "status"),
    ]
)


def _is_on(entry: Mapping[str, object]) -> bool | None:
    """Return whether an entry says that its model is on; None: it does not say."""
    if _SAYING_IT.isdisjoint(entry):
        return None
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
