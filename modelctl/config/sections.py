"""Every section of the configuration and its keys, as data.

A new key is one line in its section, and a block in config.example.toml. A new section is a class
here and one entry in `SECTIONS`; `Config` has a field of the same name. Sections that may
occur several times, each with its own name (``[probe.NAME]``), are in `probes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from modelctl.config.durations import LONGEST
from modelctl.config.keys import Key, between, duration_between, key
from modelctl.errors import CONTROLS, UsageError, clean
from modelctl.model import FailureType
from modelctl.urls.accepted import check_database_url, check_redis_url

_MOST = 1_000_000


def _check_factor(value: float) -> float:
    # A cooldown that grows by less takes thousands of steps to its maximum.
    if value != 1 and not 1.1 <= value <= 10:
        raise UsageError("must be 1, or 1.1 to 10")
    return value


def _check_failure_types(names: Iterable[str]) -> tuple[FailureType, ...]:
    known = {str(kind): kind for kind in FailureType}
    for name in names:
        if name not in known:
            from modelctl.config.spelling import closest_name

            hint = f"the nearest is '{closest_name(name, known)}'; all: {', '.join(known)}"
            raise UsageError(f"'{clean(name, longest=50)}' is not a failure type", hint=hint)
    return tuple(dict.fromkeys(known[name] for name in names))


def _check_schema(name: str) -> str:
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", name) or name.startswith("pg_"):
        hint = "write up to 63 of a-z, 0-9 and _, and begin with neither a digit nor pg_"
        raise UsageError("must be a plain identifier", hint=hint)
    return name


def _check_count_key(name: str) -> str:
    if not name or "{" in name or "}" in name:
        hint = "modelctl adds braces itself, so that a cluster keeps its keys in one slot"
        raise UsageError("must be a name without { and }", hint=hint)
    return name


def _check_clear(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if CONTROLS.search(name):
            raise UsageError("must not contain control characters")
        # A pattern that matches everything would empty a Redis that other programs use too.
        if not name or name[0] in "*?[\\":
            hint = "begin with what all the keys have in common, as in db:leaderboard:*"
            raise UsageError(f"'{name}' does not begin with a literal character", hint=hint)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """The database that holds the models."""

    url: str = key(
        "",
        "the database of the models; empty: SQLite in $XDG_DATA_HOME/modelctl/modelctl.db",
        "URL",
        check_database_url,
    )
    pool_size: int = key(
        5, "how many a long-running process keeps open", "connections", between(1, 1000)
    )
    pool_timeout: float = key(
        2.0, "how long a thread waits for a free connection", "duration", duration_between(0, 3600)
    )
    timeout: float = key(
        15.0,
        "how long a call waits for the database in total; a long operation, in each step",
        "duration",
        duration_between(1, 3600),
    )
    schema: str = key(
        "modelctl",
        "the PostgreSQL schema of modelctl's own tables; each fleet in a database needs another one",
        "name",
        _check_schema,
    )


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """The Redis that caches the active count of a PostgreSQL database."""

    url: str = key(
        "",
        "the cache of the count, for PostgreSQL; empty: no cache, every count asks the database",
        "URL",
        check_redis_url,
    )
    pool_size: int = key(
        10, "how many a long-running process may open", "connections", between(1, 1000)
    )
    timeout: float = key(
        0.5,
        "how long one exchange with Redis may take in total",
        "duration",
        duration_between(0.01, 60),
    )


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What is cached, and what a change of status invalidates."""

    ttl: float = key(
        60.0, "the time to live of a cached count", "duration", duration_between(1, 3600)
    )
    count_key: str = key(
        "db:models:count:active",
        "the key of the count in Redis; other programs may read it",
        "name",
        _check_count_key,
    )
    clear: tuple[str, ...] = key(
        ("db:stats:overall", "db:leaderboard:*"),
        "which other keys in Redis every change of status deletes",
        "names or patterns",
        _check_clear,
    )


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When failures switch a model off."""

    threshold: int = key(
        5, "how many counted failures in a row switch a model off", "failures", between(1, _MOST)
    )
    counted: tuple[FailureType, ...] = key(
        (FailureType.PARSE_ERROR, FailureType.CLIENT_ERROR),
        "which failures count; the others are only stored",
        "failure types",
        _check_failure_types,
    )
    reason_length: int = key(
        500, "the maximum length of a stored failure reason", "characters", between(1, 10_000)
    )


@dataclass(frozen=True, slots=True)
class RecoveryConfig:
    """When an auto-disabled model comes back, and the guards that protect the fleet."""

    cooldown: float = key(
        3600.0,
        "how long after its last failure a model may come back",
        "duration",
        duration_between(0, LONGEST),
    )
    cooldown_factor: float = key(
        1.0,
        "by how much each ejection in a row multiplies the cooldown; 1: it stays the same",
        "number",
        _check_factor,
    )
    max_cooldown: float = key(
        86400.0,
        "the longest cooldown; not less than recovery.cooldown",
        "duration",
        duration_between(0, LONGEST),
    )
    restart_failures: int = key(
        2,
        "the failure count of a model that comes back; less than health.threshold",
        "failures",
        between(0, _MOST),
    )
    min_active: int = key(
        0,
        "the health rule keeps at least this many active; 0: no minimum",
        "models",
        between(0, _MOST),
    )
    max_auto_disabled_percent: int = key(
        100,
        "how much of a provider the health rule may switch off; it may always switch off one model",
        "percent",
        between(0, 100),
    )
    incident_models: int = key(
        0,
        "this many of one provider failing the same way are a provider incident; 0: never",
        "models",
        between(0, _MOST),
    )
    incident_window: float = key(
        600.0,
        "the time within which they fail; an incident lasts this long after the last failure",
        "duration",
        duration_between(1, LONGEST),
    )
    max_ejections: int = key(
        0,
        "after this many in a row, a model stays off until a person enables it; 0: never",
        "ejections",
        between(0, _MOST),
    )
    limit: int = key(
        0,
        "how many one run of recover brings back; 0: all that are due",
        "models",
        between(0, _MOST),
    )
    expect_every: float = key(
        0.0,
        "doctor and recover --check report a recover that has not finished for this long; 0s: never",
        "duration",
        duration_between(0, LONGEST),
    )

    @property
    def guarded(self) -> bool:
        """Whether switching a model off depends on the other models."""
        return bool(self.min_active or self.incident_models or self.max_auto_disabled_percent < 100)


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """How long the history is kept."""

    keep: float = key(
        0.0,
        "recover deletes older events, but the newest of each model; 0s: they stay for ever",
        "duration",
        duration_between(0, LONGEST),
    )


SECTIONS: Mapping[str, type[Any]] = {
    "database": DatabaseConfig,
    "redis": RedisConfig,
    "cache": CacheConfig,
    "health": HealthConfig,
    "recovery": RecoveryConfig,
    "history": HistoryConfig,
}
KEYS = tuple(Key(name, of) for name, section in SECTIONS.items() for of in fields(section))
# The sections that may occur several times, each with its own name: [probe.NAME]; see `named`.
NAMED_SECTIONS = ("probe", "source")
# The sections that no environment variable sets; see `named`.
FILE_SECTIONS = ("notify",)
# A file with one of these sections runs commands or sends keys: see `trust`.
TRUSTED_SECTIONS = frozenset({"probe", "notify", "source"})
