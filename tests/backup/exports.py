"""Make and change exports in tests."""

from __future__ import annotations

import json
from typing import Any

from modelctl import Fleet

MODEL: dict[str, Any] = {
    **dict.fromkeys(("id", "display_name", "provider"), ""),
    "status": "active",
    **dict.fromkeys(("consecutive_failures", "ejections", "success_count", "failure_count"), 0),
    **dict.fromkeys(("last_success_at", "last_failure_at", "failure_type", "failure_reason")),
    **dict.fromkeys(("disabled_at", "disabled_by", "disabled_reason", "disabled_until")),
    **dict.fromkeys(("recovered_at", "would_disable", "created_at", "updated_at")),
    "tags": [],
}
PAUSE: dict[str, Any] = {
    "provider": None,
    "since": "2026-01-01T00:00:00Z",
    "until": "2100-01-01T00:00:00Z",
    "reason": "maintenance",
    "actor": "ann",
}
INCIDENT = PAUSE | {"provider": "acme", "failure_type": "parse-error", "actor": "health rule"}
HEADER = {"modelctl_export": 1, "exported_at": "2026-01-01T00:00:00Z"}


def model(model_id: str, **fields: object) -> dict[str, Any]:
    """Return the line of a model."""
    return MODEL | {"id": model_id} | fields


def held(model_id: str, **fields: object) -> dict[str, Any]:
    """Return the line of a model that a person switched off."""
    off = {"status": "disabled", "disabled_at": "2026-01-01T00:00:00Z", "disabled_by": "ann"}
    return model(model_id, **off | fields)


def export_of(*lines: dict[str, Any]) -> bytes:
    """Return an export with these lines."""
    kinds = [next(iter(line)) for line in lines]
    end = {"models": kinds.count("id")}
    end |= {f"{kind}s": kinds.count(kind) for kind in ("pause", "incident")}
    return joined(HEADER, *lines, {"end": end})


def joined(*lines: object) -> bytes:
    """Write JSON Lines; bytes as they are."""
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def exported(fleet: Fleet) -> list[str]:
    """Return the lines of an export, without the header, which has the time."""
    return [*fleet.export()][1:]
