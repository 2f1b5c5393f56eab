"""Examples for the tests of the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.commands import sql

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

CHANGES = {"changes", "cache", "dry_run", "operation"}
MODEL = {
    *("id", "display_name", "provider", "active", "auto_disabled", "consecutive_failures"),
    *("ejections", "success_count", "failure_count", "last_success_at", "last_failure_at"),
    *("failure_type", "failure_reason", "disabled_at", "disabled_by", "disabled_reason"),
    *("created_at", "updated_at", "status", "retry_at", "seconds_left", "tags"),
}
EVENT = {
    *("id", "at", "model_id", "event", "before", "after", "actor", "reason", "failure_type"),
    *("details", "operation"),
}
RECOVERY = {"recovered", "waiting", "busy", "cache", "dry_run", "operation"}
STATS = {
    *("models", "active", "disabled", "auto_disabled", "providers"),
    *("success_count", "failure_count"),
}
COUNT = {"active", "source", "age_seconds", "expires_in_seconds"}
DRAINED = {"delivered", "queued", "cache"}
SCHEMA = {
    *("database", "current", "head", "up_to_date", "table"),
    *("findings", "obstacles", "repaired", "dry_run", "owner", "rows", "summary", "sql"),
}
IMPORTED = {
    *("added", "updated", "unchanged", "skipped", "rejected", "cache", "dry_run"),
    "operation",
}


def status_of(model_id: str) -> str:
    """Say the status of a row, read without the program."""
    [(active, automatic)] = sql("SELECT active, auto_disabled FROM models WHERE id = ?", model_id)
    return "active" if active else "auto-disabled" if automatic else "disabled"


SYNCED = {
    *("sources", "added", "changed", "gone", "back", "kept", "clashes", "unchanged", "ignored"),
    *("adopted", "changes", "cache", "dry_run", "operation", "notes"),
}
RESTORED = {
    *("added", "updated", "unchanged", "left_off", "untouched", "holds"),
    *("changes", "cache", "dry_run", "operation"),
}
AVAILABILITY = {"since", "until", "known_since", "total", "providers", "models"}
PAUSE = {"provider", "paused", "until", "reason", "changed", "operation"}

# Each line: a command, its exit code on the fleet of five, and the keys of its JSON.
EVERYTHING: list[tuple[str, int, set[str]]] = [
    ("count", 0, COUNT),
    ("count --fresh", 0, COUNT),
    ("count --strong", 0, COUNT),
    ("count --verify", 0, COUNT | {"cached", "database", "match"}),
    ("list", 0, MODEL),
    ("list --status active --provider acme --sort updated --limit 1", 0, MODEL),
    ("list --off --columns id,since --sort since", 0, {"id", "since"}),
    ("list --off --match acme/* --by ann", 0, MODEL | {"since", "by", "why", "back_at"}),
    ("list --all", 0, MODEL),
    ("list --tag eu", 0, MODEL),
    ("list --source acme --gone -c id,source,gone_since", 0, {"id", "source", "gone_since"}),
    ("show acme/one", 0, MODEL | {"source", "first_seen_at", "last_seen_at", "gone_since"}),
    ("stats", 0, STATS),
    (
        "leaderboard",
        0,
        {
            "rank",
            "id",
            "display_name",
            "provider",
            "success_rate",
            "success_count",
            "failure_count",
        },
    ),
    ("leaderboard --top 1 --provider acme --untested", 0, {"rank", "id"}),
    ("add new/model", 0, CHANGES),
    ("add new/model --name New --provider new --actor me", 0, CHANGES),
    ("remove acme/one acme/two --yes --reason old --actor me", 0, CHANGES),
    ("remove acme/one --dry-run", 0, CHANGES),
    ("disable acme/one acme/two --reason why --actor me", 0, CHANGES),
    ("disable --provider acme --status active --match acme/* --limit-to 2 --yes", 0, CHANGES),
    ("disable --by ann --yes", 0, CHANGES),
    ("disable --all --yes", 0, CHANGES),
    ("disable --tag eu --tag prod --yes", 0, CHANGES),
    (
        "enable --provider acme --status disabled --match acme/* --by ann --limit-to 1 --yes",
        0,
        CHANGES,
    ),
    ("enable --all --yes", 0, CHANGES),
    ("enable --tag eu --yes", 0, CHANGES),
    (
        "remove --provider acme --status disabled --match acme/* --by ann --limit-to 1 --yes",
        0,
        CHANGES,
    ),
    ("remove --all --yes", 0, CHANGES),
    ("remove --tag prod --yes", 0, CHANGES),
    ("recover --provider other --status auto-disabled --match other/* --by me", 0, RECOVERY),
    ("recover --all", 0, RECOVERY),
    ("recover --tag eu", 0, RECOVERY),
    ("disable acme/one --dry-run", 0, CHANGES),
    ("disable acme/one --for 2h --force", 0, CHANGES),
    ("disable acme/one --until 2999-12-01T08:00Z", 0, CHANGES),
    ("enable acme/off --reason why --actor me", 0, CHANGES),
    ("enable acme/off --dry-run", 0, CHANGES),
    (
        "edit acme/one --name New --provider new --tag us --untag eu --reason why --actor me",
        0,
        CHANGES,
    ),
    ("edit --provider acme --status active --match acme/* --tag us --limit-to 2 --yes", 0, CHANGES),
    ("edit --by ann --tag us --yes", 0, CHANGES),
    ("edit --all --tag us --dry-run", 0, CHANGES),
    ("rename acme/one acme/uno --reason why --actor me", 0, CHANGES),
    ("rename acme/one acme/uno --dry-run", 0, CHANGES),
    ("record-success acme/one --actor me", 0, CHANGES),
    ("record-failure acme/one", 0, CHANGES),
    ("record-failure acme/one --type timeout --reason slow --actor me", 0, CHANGES),
    ("record-failure acme/one --http-status 404", 0, CHANGES),
    (
        "record-batch BATCH --actor me --unknown skip",
        0,
        {"recorded", "changes", "cache", "operation"},
    ),
    ("recover", 0, RECOVERY),
    ("recover --dry-run", 0, RECOVERY),
    ("recover --limit 1 --cooldown 0s --actor me", 0, RECOVERY),
    ("pause --for 1h --provider acme --reason why --actor me", 0, PAUSE),
    ("resume --provider acme --reason why --actor me", 0, PAUSE),
    ("import CATALOGUE", 0, IMPORTED),
    (
        "import CATALOGUE --format jsonl --on-conflict skip --provider p --partial --strict --dry-run --actor me",
        0,
        IMPORTED | {"changes"},
    ),
    ("import CATALOGUE --modes chat --prefix new/", 0, IMPORTED),
    ("sync --yes", 0, SYNCED),
    ("sync mine --gone disable --max-gone 50% --dry-run --actor me", 0, SYNCED),
    ("formats", 0, {"format", "of", "shape", "example"}),
    ("ignore acme/old* --reason why --actor me", 0, {"patterns", "matching"}),
    ("ignore --list", 0, {"pattern", "at", "actor", "reason"}),
    ("ignore gone/* --undo", 0, {"patterns", "matching"}),
    ("restore EXPORT --dry-run", 0, RESTORED),
    ("restore EXPORT --yes --enable --force --actor me", 0, RESTORED),
    ("events", 0, EVENT),
    ("events acme/one --since 2d --until 2999-12-01T08:00Z --limit 500", 0, EVENT),
    ("events --provider acme --event added --oldest-first --after 0", 0, EVENT),
    ("availability", 0, AVAILABILITY),
    (
        "availability acme/one --since 2d --until 2999-12-01T08:00Z --provider acme",
        0,
        AVAILABILITY,
    ),
    ("cache show", 0, {"backend", "keys", "queued", "settling", "oldest_queued_seconds"}),
    ("cache clear", 0, DRAINED),
    ("cache drain", 0, DRAINED),
    ("db detach --yes", 0, {"removed"}),
    ("db upgrade", 0, SCHEMA),
    ("db upgrade --dry-run", 0, SCHEMA),
    ("db status", 0, SCHEMA),
    ("config show", 0, {"file", "settings"}),
    ("doctor", 0, {"ok", "checks"}),
    ("prune --before 90d", 0, {"deleted", "before", "dry_run"}),
    ("prune --before 90d --dry-run", 0, {"deleted", "before", "dry_run"}),
]


def find(value: Any, wanted: Callable[[str], bool]) -> list[Any]:
    """Return what is under the wanted keys, at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in find(item, wanted)]
    if not isinstance(value, dict):
        return []
    deep = [found for item in value.values() for found in find(item, wanted)]
    return [item for key, item in value.items() if wanted(key)] + deep


def batch(*outcomes: dict[str, str] | str) -> str:
    """Write JSON Lines; text as it is."""
    return "".join(f"{o if isinstance(o, str) else json.dumps(o)}\n" for o in outcomes)
