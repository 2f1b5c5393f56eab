"""The configuration: all settings, where each comes from, and what follows from them.

A value of the environment overrides the file, which overrides the default. Nothing else in modelctl
reads the file or the variables of the keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelctl.config.durations import format_duration
from modelctl.config.load import check_names, home_folder, read_file, read_values
from modelctl.config.sections import (
    NAMED_SECTIONS,
    SECTIONS,
    CacheConfig,
    DatabaseConfig,
    HealthConfig,
    HistoryConfig,
    RecoveryConfig,
    RedisConfig,
)
from modelctl.errors import InvalidConfigError
from modelctl.urls.accepted import libpq_url, sqlite_file
from modelctl.urls.url import mask_passwords

if TYPE_CHECKING:
    from modelctl.config.notify import NotifyConfig
    from modelctl.config.probes import ProbeConfig
    from modelctl.config.sources import SourceConfig


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, and where each comes from."""

    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    # How to probe the models of each provider.
    probes: Mapping[str, ProbeConfig] = field(default_factory=dict)
    # Where `sync` finds catalogues, by name, in the order of the file.
    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    # Whom `notify` tells what; None: nobody.
    notify: NotifyConfig | None = None
    file: Path | None = None
    # By key: "default", "file" or "environment MODELCTL_CACHE_TTL". Keys of a named section are in
    # it only if they are set.
    origins: Mapping[str, str] = field(default_factory=dict)
    data_home: Path | None = field(
        default_factory=lambda: home_folder(os.environ, "XDG_DATA_HOME", ".local/share"), repr=False
    )

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, environ: Mapping[str, str] | None = None
    ) -> Config:
        """Read the file (*path*, or the first file that is found) and the environment.

        Raises:
            InvalidConfigError: says what is wrong, where, and what to do.
        """
        environ = os.environ if environ is None else environ
        file, tables = read_file(path, environ)
        check_names(file, tables, environ)
        values, origins = read_values(file, tables, environ)
        _name_count_by_schema(values, origins)
        probes: dict[str, ProbeConfig] = {}
        if "probe" in tables:
            from modelctl.config.probes import read_probes

            probes = read_probes(file, tables["probe"])
        sources: dict[str, SourceConfig] = {}
        if "source" in tables:
            from modelctl.config.sources import read_sources

            sources = read_sources(file, tables["source"])
        notify: NotifyConfig | None = None
        if "notify" in tables:
            from modelctl.config.notify import read_notify

            notify = read_notify(file, tables["notify"])
            origins |= {f"notify.{key}": "file" for key in tables["notify"]}
        for word in NAMED_SECTIONS:
            for name, table in tables.get(word, {}).items():
                origins |= {f"{word}.{name}.{key}": "file" for key in table}
        config = cls(
            **{section: SECTIONS[section](**given) for section, given in values.items()},
            probes=probes,
            sources=sources,
            notify=notify,
            file=file,
            origins=origins,
            data_home=home_folder(environ, "XDG_DATA_HOME", ".local/share"),
        )
        _check_redis_has_postgres(config)
        _check_recovery(config)
        _check_clear_spares_count(config)
        return config

    def origin(self, key: str) -> str:
        """Return where the value of a key comes from: a file, an environment variable, "default"."""
        origin = self.origins.get(key, "default")
        return str(self.file) if origin == "file" else origin

    @property
    def embedded(self) -> bool:
        """Whether no database is configured, so that the SQLite file in the home folder is used."""
        return not self.database.url

    @property
    def sqlite_path(self) -> Path | None:
        """The file of the SQLite database; None on PostgreSQL."""
        if self.database.url:
            file = sqlite_file(self.database.url)
            return None if file is None else Path(file)
        if self.data_home is None:
            hint = "set HOME, or name a database in MODELCTL_DATABASE_URL"
            raise InvalidConfigError("there is no home folder for the database", hint=hint)
        return self.data_home / "modelctl" / "modelctl.db"

    @property
    def postgres_url(self) -> str:
        """The PostgreSQL URL as libpq expects it, with its password; empty on SQLite."""
        return libpq_url(self.database.url)

    def hide(self, text: str) -> str:
        """Replace every password of the configured URLs in *text* by ``***``."""
        text = mask_passwords(text, (self.database.url, self.redis.url))
        # That of a webhook is a secret as a whole, and the query of a source may hold a key.
        secrets = [source.url for source in self.sources.values() if "?" in source.url]
        secrets += [self.notify.url] if self.notify and self.notify.url else []
        for secret in secrets:
            text = text.replace(secret, "***")
        return text


def _name_count_by_schema(values: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
    """Give each fleet of a database its own count in Redis, unless the user named its key."""
    schema = values["database"].get("schema", DatabaseConfig().schema)
    if schema != DatabaseConfig().schema and "count_key" not in values["cache"]:
        values["cache"]["count_key"] = f"{CacheConfig().count_key}:{schema}"
        origins["cache.count_key"] = "default for this database.schema"


# ── Keys that contradict each other ──


def _fail(config: Config, key: str, wrong: str, hint: str) -> NoReturn:
    origin = config.origins[key]
    where = f"{key} in {config.file}" if origin == "file" else f"{key} ({origin})"
    raise InvalidConfigError(f"{where}: {wrong}", hint=hint)


def _check_redis_has_postgres(config: Config) -> None:
    if config.sqlite_path and config.redis.url:
        hint = "set MODELCTL_DATABASE_URL=postgresql://..., or MODELCTL_REDIS_URL= for no Redis"
        _fail(config, "redis.url", "Redis needs PostgreSQL, and database.url is SQLite", hint)


def _check_recovery(config: Config) -> None:
    restart, threshold = config.recovery.restart_failures, config.health.threshold
    if restart >= threshold:
        wrong = f"must be less than health.threshold, but {restart} is not less than {threshold}"
        hint = "a model that comes back must not be switched off before it fails again"
        _fail(config, "recovery.restart_failures", wrong, hint)
    shortest, longest = config.recovery.cooldown, config.recovery.max_cooldown
    # Complain only if the user set max_cooldown: with the default maximum, a longer cooldown
    # simply does not grow.
    if longest < shortest and config.origins["recovery.max_cooldown"] != "default":
        shown = f"{format_duration(longest)} is less than {format_duration(shortest)}"
        wrong = f"must not be less than recovery.cooldown, but {shown}"
        hint = f"write at least {format_duration(shortest)}, or leave it out"
        _fail(config, "recovery.max_cooldown", wrong, hint)


def _check_clear_spares_count(config: Config) -> None:
    own = f"{{{config.cache.count_key}}}:"
    for name in config.cache.clear:
        literal = re.split(r"[*?[\\]", name)[0]
        if name == config.cache.count_key or own.startswith(literal) or literal.startswith(own):
            wrong = f"'{name}' matches the keys of cache.count_key"
            hint = (
                "leave it out: modelctl clears the count itself, and must keep the keys beside it"
            )
            _fail(config, "cache.clear", wrong, hint)
