"""Values of results as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from modelctl.errors import UNSAFE, clean
from modelctl.times import written


def to_json(value: Any) -> str:
    """Return JSON that is safe on a terminal: characters that `clean` escapes are escaped here too."""
    import json

    text = json.dumps(plain(value), ensure_ascii=False)
    return UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def plain(value: Any) -> Any:
    """Return *value* made of what JSON knows: dicts, lists, text, numbers, booleans and None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(rounded(f.name, getattr(value, f.name))) for f in fields(value)}
    if isinstance(value, datetime):
        return written(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def rounded(field: str, value: Any) -> Any:
    """Round a number of seconds to milliseconds; any other value stays as it is."""
    return round(value, 3) if isinstance(value, float) and "seconds" in field else value


def table_text(value: Any) -> str:
    """Return what a table shows for *value*; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, float):
        return f"{value:.1f}"
    return clean(str(value))
