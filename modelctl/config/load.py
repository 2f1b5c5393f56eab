"""All settings: environment over file over default. The only reader of both."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelctl.errors import CONTROLS, InvalidConfigError, UsageError, clean
from modelctl.model import FailureType, storable

if TYPE_CHECKING:
    from modelctl.config.probes import ProbeConfig
    from modelctl.reports import Setting

SYSTEM_FILE = Path("/etc/modelctl/config.toml")
_LARGEST_FILE = 1_000_000
# Sections that run commands or send keys: a file with one must be written by nobody else.
_COMMANDS = frozenset(("probe", "notify"))
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_LONGEST = 3650 * 86400.0
_MOST = 1_000_000
_T = TypeVar("_T")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``1.5h``, ``2h30m``, ``2d`` or ``1w``.

    Raises:
        UsageError: not numbers with units, the largest first, or more than ten years.
    """
    shown = clean(text, longest=50)
    match = re.fullmatch("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS), text)
    if match is None or not text:
        hint = "write numbers and their units, the largest first: 90s, 15m, 2h30m, 2d or 1w"
        raise UsageError(f"'{shown}' is not a duration", hint=hint)
    parts = zip(match.groups(default="0"), _UNITS.values(), strict=True)
    # To the microsecond: 1.1 h would be 3960.0000000000005 s.
    seconds = round(sum(float(number) * size for number, size in parts), 6)
    if seconds > _LONGEST:
        raise UsageError(f"'{shown}' is longer than {format_duration(_LONGEST)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Write *seconds* in the largest unit up to days that divides them; `parse_duration` reads it."""
    for unit, size in _UNITS.items():
        if seconds and seconds % size == 0 and unit != "w":
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice that *name* was perhaps meant to be."""
    import difflib

    # Cut, because difflib is quadratic; no cutoff, because some name helps more than none.
    return difflib.get_close_matches(name[:100], choices, n=1, cutoff=0.0)[0]


# URLs are checked here, because drivers print a password that is badly escaped: a raw "/", "?", "#"
# or "@" ends it, and what follows is named in their error as a host, a port or a database.
# So nothing reserved passes outside its place, and no message of ours shows anything of a URL.
_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z_.~-]+)?\]|[0-9A-Za-z_.~%-]*)(?::[0-9]{1,5})?"
_PAIR = r"[^=&@#\s]+=[^=&@#\s]*"
_URL = (
    r"(?P<scheme>[a-z][a-z+]*)://"
    r"(?:(?:(?![:@/?#\[\]])[!-~])*(?::(?P<password>(?:(?![@/?#\[\]])[!-~])*))?@)?"
    rf"(?P<place>(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/[^@?#\s]*)?)"
    rf"(?:\?(?P<query>{_PAIR}(?:&{_PAIR})*)?)?"
)
_SECRET_PARAMETER = re.compile("passw|secret|token|scram")
_MALFORMED = (
    "is not a well-formed URL; a reserved character in the user or password must be"
    " percent-encoded (for example @ as %40), and a port is a number"
)
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_SQLITE = "sqlite:///"
_NODES = "[^,/]+(?:,[^,/]+)*"
# Which hosts and path make sense with each scheme (rediss as redis), and an example.
_REDIS = {
    "redis": ("[^,/]*(?:/[0-9]*)?", "redis://host:6379/0"),
    "unix": ("/.+", "unix:///run/redis.sock?db=0"),
    "redis+sentinel": (f"{_NODES}/[^/]+(?:/[0-9]+)?", "redis+sentinel://h1:26379,h2:26379/master"),
    "redis+cluster": (f"{_NODES}(?:/0?)?", "redis+cluster://h1:6379,h2:6379"),
}


def _decode(text: str, errors: str = "strict") -> str | None:
    """Undo percent-encoding; None if that is not possible or gives no text.

    *errors*: ``surrogateescape`` for the name of a file, which may be any bytes.
    """
    from urllib.parse import unquote

    if re.search("%00|%(?![0-9A-Fa-f]{2})", text):
        return None
    try:
        return unquote(text, errors=errors)
    except UnicodeDecodeError:
        return None


def _parse(url: str) -> re.Match[str] | None:
    match = re.fullmatch(_URL, url)
    if match is None or _decode(url) is None:
        return None
    ports = re.findall(r":([0-9]+)(?:,|$)", match["hosts"])
    return match if all(0 < int(port) < 65536 for port in ports) else None


def _secrets(url: str) -> list[tuple[int, int]]:
    """Return where in *url* its passwords begin and end; all of it if it cannot be parsed."""
    if url.startswith(_SQLITE):
        return []
    match = _parse(url)
    if match is None:
        scheme = re.match("[a-z][a-z+]*://", url)
        spans = [(scheme.end() if scheme else 0, len(url))]
    else:
        spans = [match.span("password")]
        query = match.start("query") if match["query"] else len(url)
        for pair in re.compile("([^=&]+)=([^&]*)").finditer(url, query):
            if _SECRET_PARAMETER.search((_decode(pair[1]) or "").lower()):
                spans.append(pair.span(2))
    return [(start, end) for start, end in spans if start < end]


def mask_url(url: str) -> str:
    """Show *url* with ``***`` for each password; only its scheme if it cannot be parsed."""
    for start, end in reversed(_secrets(url)):
        url = f"{url[:start]}***{url[end:]}"
    return url


def _database_url(url: str) -> str:
    if not url:
        return url
    if url.startswith("sqlite:"):
        name = (
            _decode(url.removeprefix(_SQLITE), "surrogateescape")
            if url.startswith(_SQLITE)
            else None
        )
        # SQLite gives ":..." and "file:..." meanings of their own.
        if not name or name.startswith((":", "file:")) or re.search("[?#]", url):
            raise UsageError(
                "must name a file, as in sqlite:///relative.db or sqlite:////absolute.db",
                hint="in memory, every connection would be another, empty database;"
                " %, ? and # in a name are written %25, %3F and %23",
            )
        return url
    if url.partition("://")[0] not in _POSTGRES:
        hint = "write postgresql://user:password@host:5432/name, or sqlite:////path/to/file.db"
        raise UsageError("is neither a PostgreSQL nor a SQLite URL", hint=hint)
    if _parse(url) is None:
        raise UsageError(_MALFORMED, hint="write postgresql://user:password@host:5432/name")
    return url


def _redis_url(url: str) -> str:
    if not url:
        return url
    scheme = re.sub("^rediss", "redis", url.partition("://")[0])
    if scheme not in _REDIS:
        hint = f"its scheme is one of {', '.join(_REDIS)}; rediss in place of redis is with TLS"
        raise UsageError("is not a Redis URL", hint=hint)
    place, example = _REDIS[scheme]
    match = _parse(url)
    if match is None:
        raise UsageError(_MALFORMED, hint=f"write it like {example}")
    if not re.fullmatch(place, match["place"]):
        raise UsageError(f"must have the form of {example}")
    redis_parameters(url)
    return url


# What may follow the question mark of redis.url.
_REDIS_PARAMETERS = ("db", "username", "password", "socket_timeout", "socket_connect_timeout")
_TLS_PARAMETERS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_min_version",
)
_SENTINEL_PARAMETERS = ("sentinel_username", "sentinel_password")
_PARAMETER_VALUES = {
    "db": "[0-9]{1,9}",
    "socket_timeout": r"[0-9]{1,9}(\.[0-9]{1,9})?",
    "socket_connect_timeout": r"[0-9]{1,9}(\.[0-9]{1,9})?",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_min_version": "[0-9]{1,9}",
}


def redis_parameters(url: str) -> dict[str, str]:
    """Return the parameters of a URL of Redis.

    Raises:
        UsageError: one is unknown, or has a value that makes no sense.
    """
    start, _, query = url.partition("?")
    if not query:
        return {}
    from urllib.parse import parse_qsl

    scheme = start.partition("://")[0]
    known: tuple[str, ...] = _REDIS_PARAMETERS
    known += _TLS_PARAMETERS if scheme.startswith("rediss") else ()
    known += _SENTINEL_PARAMETERS if scheme.endswith("+sentinel") else ()
    given = dict(parse_qsl(query))
    for name, value in given.items():
        if name not in known:
            hint = f"known: {', '.join(known)}"
            raise UsageError(f"has an unknown parameter '{clean(name, longest=50)}'", hint=hint)
        if not re.fullmatch(_PARAMETER_VALUES.get(name, "(?s:.*)"), value):
            raise UsageError(f"the value of '{name}' makes no sense")
    return given


def _key(default: _T, about: str, unit: str, check: Callable[[Any], Any]) -> _T:
    """Describe a key, once for the loader, ``config show`` and the example file.

    The type of *default* says how it is written (a float is a duration); *check* returns the
    value to use, or raises a UsageError that says what is wrong. A URL may hold a password.
    """
    metadata = {"help": about, "unit": unit, "check": check}
    return field(default=default, repr=unit != "URL", metadata=metadata)


def _between(low: float, high: float, show: Callable[[Any], str] = str) -> Callable[[Any], Any]:
    def check(value: float) -> float:
        if not low <= value <= high:
            raise UsageError(f"must be {show(low)} to {show(high)}")
        return value

    return check


def _duration(low: float, high: float) -> Callable[[Any], Any]:
    return _between(low, high, format_duration)


def _factor(value: float) -> float:
    # One of 1.001 would take thousands of steps to its cap.
    if value != 1 and not 1.1 <= value <= 10:
        raise UsageError("must be 1, or 1.1 to 10")
    return value


def _failure_types(names: Iterable[str]) -> tuple[FailureType, ...]:
    known = {str(kind): kind for kind in FailureType}
    for name in names:
        if name not in known:
            hint = f"the nearest is '{nearest(name, known)}'; all: {', '.join(known)}"
            raise UsageError(f"'{clean(name, longest=50)}' is not a failure type", hint=hint)
    return tuple(known[name] for name in names)


def _schema(name: str) -> str:
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", name) or name.startswith("pg_"):
        hint = "up to 63 of a-z, 0-9 and _; not a digit or pg_ in front"
        raise UsageError("must be a plain identifier", hint=hint)
    return name


def _count_key(name: str) -> str:
    if not name or "{" in name or "}" in name:
        hint = "the names beside it wrap it in braces, so that a cluster keeps them in one slot"
        raise UsageError("must be a name without { and }", hint=hint)
    return name


def _clear(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        # A shared Redis must not be emptied by a pattern that matches everything.
        if not name or name[0] in "*?[\\":
            hint = "begin with the part that all the keys share, as in db:leaderboard:*"
            raise UsageError(f"'{name}' does not begin with a literal character", hint=hint)
    return names


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """Where the models are."""

    url: str = _key(
        "",
        "where the models are; empty: SQLite in $XDG_DATA_HOME/modelctl/modelctl.db",
        "URL",
        _database_url,
    )
    pool_size: int = _key(
        5, "how many a long-lived process keeps open", "connections", _between(1, 1000)
    )
    pool_timeout: float = _key(
        2.0, "how long a thread waits for one of them", "duration", _duration(0, 3600)
    )
    timeout: float = _key(
        15.0,
        "how long a call waits for the database in all; long work, for each step",
        "duration",
        _duration(1, 3600),
    )
    schema: str = _key(
        "modelctl",
        "where modelctl's own tables are in PostgreSQL; another one for each other fleet",
        "name",
        _schema,
    )


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """Where the active count is cached beside PostgreSQL."""

    url: str = _key(
        "",
        "where the count is cached beside PostgreSQL; empty: nowhere, every count is fresh",
        "URL",
        _redis_url,
    )
    pool_size: int = _key(
        10, "how many a long-lived process may open", "connections", _between(1, 1000)
    )
    timeout: float = _key(
        0.5,
        "how long one conversation with Redis may take, whatever it does",
        "duration",
        _duration(0.01, 60),
    )


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What is cached, and what a change of status makes wrong."""

    ttl: float = _key(
        60.0, "how long a cached count may be believed", "duration", _duration(1, 3600)
    )
    count_key: str = _key(
        "db:models:count:active",
        "the count in Redis, which other programs may share",
        "name",
        _count_key,
    )
    clear: tuple[str, ...] = _key(
        ("db:stats:overall", "db:leaderboard:*"),
        "what else in Redis every change of status deletes",
        "names or patterns",
        _clear,
    )


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When a model is switched off by its failures."""

    threshold: int = _key(
        5, "how many counted ones in a row switch a model off", "failures", _between(1, _MOST)
    )
    counted: tuple[FailureType, ...] = _key(
        (FailureType.PARSE_ERROR, FailureType.CLIENT_ERROR),
        "which failures count; the others are only stored",
        "failure types",
        _failure_types,
    )
    reason_length: int = _key(
        500, "where the stored reason of a failure is cut", "characters", _between(1, 10_000)
    )


@dataclass(frozen=True, slots=True)
class RecoveryConfig:
    """When a model that was switched off by its failures comes back, and what guards the fleet."""

    cooldown: float = _key(
        3600.0,
        "how long after its last failure a model may come back",
        "duration",
        _duration(0, _LONGEST),
    )
    cooldown_factor: float = _key(
        1.0,
        "the cooldown grows by it with each ejection in a row; 1: it does not",
        "number",
        _factor,
    )
    max_cooldown: float = _key(
        86400.0,
        "how far a cooldown grows; not less than recovery.cooldown",
        "duration",
        _duration(0, _LONGEST),
    )
    restart_failures: int = _key(
        2,
        "how many it comes back with; fewer than health.threshold",
        "failures",
        _between(0, _MOST),
    )
    min_active: int = _key(
        0,
        "the health rule leaves at least so many switched on; 0: no floor",
        "models",
        _between(0, _MOST),
    )
    max_auto_disabled_percent: int = _key(
        100,
        "how much of a provider the health rule may switch off; one model may always go",
        "percent",
        _between(0, 100),
    )
    incident_models: int = _key(
        0,
        "so many of a provider that fail alike are its incident, no fault of theirs; 0: never",
        "models",
        _between(0, _MOST),
    )
    incident_window: float = _key(
        600.0,
        "within what time they do, and how long an incident lasts at least after the last",
        "duration",
        _duration(1, _LONGEST),
    )
    max_ejections: int = _key(
        0,
        "after so many in a row a model waits for a person; 0: never",
        "ejections",
        _between(0, _MOST),
    )
    limit: int = _key(
        0,
        "how many one run of recover brings back; 0: all that are due",
        "models",
        _between(0, _MOST),
    )
    expect_every: float = _key(
        0.0,
        "doctor and recover --check complain when no recover has finished for so long; 0s: never",
        "duration",
        _duration(0, _LONGEST),
    )

    @property
    def guarded(self) -> bool:
        """Whether switching a model off depends on the other models."""
        return bool(self.min_active or self.incident_models or self.max_auto_disabled_percent < 100)


class Key(NamedTuple):
    """One setting: ``ttl`` of the section ``cache``."""

    section: str
    field: Field[Any]

    def __str__(self) -> str:
        return f"{self.section}.{self.field.name}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"MODELCTL_{self.section}_{self.field.name}".upper()

    @property
    def secret(self) -> bool:
        """Whether it may hold a password, so that its value must not be shown."""
        return not self.field.repr

    @property
    def number(self) -> bool:
        """Whether it is a plain number, where other floats are durations."""
        return bool(self.field.metadata["unit"] == "number")

    def read(self, raw: object) -> Any:
        """Return the value that *raw*, from a TOML file, stands for.

        Raises:
            UsageError: it stands for none; says what is wrong, not where.
        """
        default, check = self.field.default, self.field.metadata["check"]
        if self.number:
            if type(raw) not in (int, float):
                raise UsageError("must be a number")
            return check(float(raw))  # type: ignore[arg-type]  # the line above
        if isinstance(default, int):
            # By identity, because true is an int to isinstance.
            if type(raw) is not int:
                raise UsageError("must be a whole number")
            return check(raw)
        items = raw if isinstance(default, tuple) else [raw]
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            wanted = {float: 'a duration with its unit, such as "90s"', str: "a string"}
            raise UsageError(f"must be {wanted.get(type(default), 'a list of strings')}")
        if CONTROLS.search("".join(items)):
            raise UsageError("must not contain control characters")
        if isinstance(default, tuple):
            return check(tuple(dict.fromkeys(items)))
        return check(parse_duration(items[0]) if isinstance(default, float) else items[0])

    def read_text(self, text: str) -> Any:
        """Return the value that *text*, from the environment, stands for; raises as `read` does."""
        text = text.strip()
        if not text and not self.secret:
            raise UsageError("is empty", hint="unset it for the default")
        if isinstance(self.field.default, tuple):
            return self.read([item.strip() for item in text.split(",")])
        # No more digits than int() takes; words are left to `read`, which refuses them.
        if self.number and re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text):
            return self.read(float(text))
        number = isinstance(self.field.default, int) and re.fullmatch("-?[0-9]{1,18}", text)
        return self.read(int(text) if number else text)


SECTIONS: Mapping[str, type[Any]] = {
    "database": DatabaseConfig,
    "redis": RedisConfig,
    "cache": CacheConfig,
    "health": HealthConfig,
    "recovery": RecoveryConfig,
}
KEYS = tuple(Key(name, of) for name, section in SECTIONS.items() for of in fields(section))
# What Kubernetes puts into every container beside a service that is called modelctl-redis.
_KUBERNETES = re.compile("_(SERVICE_(HOST|PORT)|PORT_[0-9]+_(TCP|UDP))(_|$)")


def _home(environ: Mapping[str, str], variable: str, below: str) -> Path | None:
    """Return a base folder of the XDG specification: a relative one is ignored."""
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home, below) if os.path.isabs(home) else None


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, and where each came from."""

    database: DatabaseConfig = DatabaseConfig()
    redis: RedisConfig = RedisConfig()
    cache: CacheConfig = CacheConfig()
    health: HealthConfig = HealthConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    # How the models of each provider are asked whether they work.
    probes: Mapping[str, ProbeConfig] = field(default_factory=dict)
    file: Path | None = None
    # "cache.ttl" -> "default", "file" or "environment MODELCTL_CACHE_TTL"; of a probe what is set
    origins: Mapping[str, str] = field(default_factory=dict)
    data_home: Path | None = field(
        default_factory=lambda: _home(os.environ, "XDG_DATA_HOME", ".local/share"), repr=False
    )

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, environ: Mapping[str, str] | None = None
    ) -> Config:
        """Read the file (*path*, or the first that is found) and the environment over it.

        Raises:
            InvalidConfigError: says what is wrong, where, and what to do.
        """
        environ = os.environ if environ is None else environ
        file, tables = _read_file(path, environ)
        _check_names(file, tables, environ)
        values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        origins = {}
        environ = _with_secrets(environ)
        for key in KEYS:
            name, section = key.field.name, values[key.section]
            where, origins[str(key)] = "", "default"
            try:
                # The file is checked also where the environment wins: a fault must not wait there.
                if name in tables.get(key.section, {}):
                    where, origins[str(key)] = f"{key} in {file}", "file"
                    section[name] = key.read(tables[key.section][name])
                forgotten = str(key) == "database.url" and not environ.get(key.variable, "").strip()
                if key.variable in environ and not forgotten:
                    variable = key.variable + "_FILE" * (f"{key.variable}_FILE" in environ)
                    where, origins[str(key)] = variable, f"environment {variable}"
                    section[name] = key.read_text(environ[key.variable])
            except UsageError as exc:
                raise InvalidConfigError(f"{where}: {exc.message}", hint=exc.hint) from None
        _derive(values, origins)
        probes = _read_probes(file, tables.get("probe", {}))
        for provider in probes:
            origins |= {f"probe.{provider}.{name}": "file" for name in tables["probe"][provider]}
        config = cls(
            **{section: SECTIONS[section](**given) for section, given in values.items()},
            probes=probes,
            file=file,
            origins=origins,
            data_home=_home(environ, "XDG_DATA_HOME", ".local/share"),
        )
        config._check_together()
        return config

    def origin(self, key: str) -> str:
        """Say where a setting came from: a file, an environment variable, or the defaults."""
        origin = self.origins.get(key, "default")
        return str(self.file) if origin == "file" else origin

    def _check_together(self) -> None:
        def fail(key: str, wrong: str, hint: str) -> None:
            origin = self.origins[key]
            where = f"{key} in {self.file}" if origin == "file" else f"{key} ({origin})"
            raise InvalidConfigError(f"{where}: {wrong}", hint=hint)

        if self.sqlite_path and self.redis.url:
            hint = "set MODELCTL_DATABASE_URL=postgresql://..., or MODELCTL_REDIS_URL= for no Redis"
            fail("redis.url", "Redis needs PostgreSQL, and database.url is SQLite", hint)
        restart, threshold = self.recovery.restart_failures, self.health.threshold
        if restart >= threshold:
            wrong = (
                f"must be less than health.threshold, but {restart} is not less than {threshold}"
            )
            hint = "a model that comes back must have a failure left"
            fail("recovery.restart_failures", wrong, hint)
        first, longest = self.recovery.cooldown, self.recovery.max_cooldown
        # The default is no word of anybody: a cooldown beyond it just does not grow.
        if longest < first and self.origins["recovery.max_cooldown"] != "default":
            shown = f"{format_duration(longest)} is less than {format_duration(first)}"
            wrong = f"must not be less than recovery.cooldown, but {shown}"
            hint = f"give at least {format_duration(first)}, or leave it out"
            fail("recovery.max_cooldown", wrong, hint)
        own = f"{{{self.cache.count_key}}}:"
        for name in self.cache.clear:
            literal = re.split(r"[*?[\\]", name)[0]
            if name == self.cache.count_key or own.startswith(literal) or literal.startswith(own):
                hint = "the count is cleared in any case, and what is kept beside it must not be"
                fail("cache.clear", f"'{name}' reaches the keys of cache.count_key", hint)

    @property
    def embedded(self) -> bool:
        """Whether no database was named, so that the one in the home folder is used."""
        return not self.database.url

    @property
    def sqlite_path(self) -> Path | None:
        """The file of the SQLite database; None on PostgreSQL."""
        if self.database.url:
            name = self.database.url.removeprefix(_SQLITE)
            return (
                Path(_decode(name, "surrogateescape") or name)
                if name != self.database.url
                else None
            )
        if self.data_home is None:
            hint = "set HOME, or name a database by MODELCTL_DATABASE_URL"
            raise InvalidConfigError("there is no home folder for the database", hint=hint)
        return self.data_home / "modelctl" / "modelctl.db"

    @property
    def postgres_url(self) -> str:
        """The URL as libpq wants it, with its password; empty on SQLite."""
        scheme, _, rest = self.database.url.partition("://")
        return f"postgresql://{rest}" if scheme in _POSTGRES else ""

    def hide(self, text: str) -> str:
        """Put ``***`` for every password of the URLs, wherever it occurs in *text*."""
        hidden = set()
        for url in (self.database.url, self.redis.url):
            for start, end in _secrets(url):
                raw = url[start:end]
                # Query parameters are decoded by some drivers with + as a blank.
                hidden |= {raw, _decode(raw) or raw, _decode(raw.replace("+", " ")) or raw}
        # The longest first, or the rest of one that begins with another would stay.
        words = sorted(hidden, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, words)), "***", text) if words else text


def _read_file(
    path: str | Path | None, environ: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    named = path if path is not None else environ.get("MODELCTL_CONFIG") or None
    home = _home(environ, "XDG_CONFIG_HOME", ".config")
    usual = [home / "modelctl" / "config.toml"] if home else []
    hint = "make it readable, or name another with --config or MODELCTL_CONFIG"
    for file in [*usual, SYSTEM_FILE] if named is None else [Path(named)]:
        try:
            with file.open("rb") as stream:
                data = stream.read(_LARGEST_FILE + 1)
                opened = os.fstat(stream.fileno())
        except (OSError, ValueError) as exc:
            if named is None and isinstance(exc, FileNotFoundError | NotADirectoryError):
                continue
            why = getattr(exc, "strerror", None) or exc
            raise InvalidConfigError(f"cannot read the file {file}: {why}", hint=hint) from exc
        tables = _parse_file(file, data)
        if not _COMMANDS.isdisjoint(tables):
            _check_trust(file, opened)
        return file, tables
    return None, {}


def _check_trust(file: Path, opened: os.stat_result) -> None:
    """Refuse a file that runs commands and that another user could have written."""
    from modelctl.config.trust import distrusted

    try:
        wrong = distrusted(str(file), opened)
    except OSError as exc:
        wrong = f"its folders cannot be looked at: {exc.strerror}"
    if wrong:
        hint = "let it and all folders above it belong to you or root: chown, chmod go-w"
        if wrong.endswith("is not a regular file"):
            hint = "write it into a file that only you or root can change"
        raise InvalidConfigError(
            f"the file {file} may run commands, and {wrong}",
            hint=hint,
        )


def _parse_file(file: Path, data: bytes) -> dict[str, Any]:
    import tomllib

    hint = "correct the file; config.example.toml shows every key"
    if len(data) > _LARGEST_FILE:
        raise InvalidConfigError(f"{file} is too large for a configuration", hint=hint)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        wrong = f"is not UTF-8 at byte {exc.start}"
    except RecursionError:
        wrong = "is nested too deeply"
    except ValueError as exc:
        wrong = f"is not valid TOML: {exc}"
    # Outside of the handlers: some of those exceptions carry the file, and with it a password.
    raise InvalidConfigError(f"{file} {wrong}", hint=hint)


def _derive(values: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
    """Give each fleet in a database a count of its own, unless a name was given for it."""
    schema = values["database"].get("schema", DatabaseConfig().schema)
    if schema != DatabaseConfig().schema and "count_key" not in values["cache"]:
        values["cache"]["count_key"] = f"{CacheConfig().count_key}:{schema}"
        origins["cache.count_key"] = "default for this database.schema"


def _with_secrets(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Add what is in the files that ``MODELCTL_DATABASE_URL_FILE`` and the like name.

    Docker and Kubernetes give a secret as a file.
    """
    found = dict(environ)
    for variable in (key.variable for key in KEYS if key.secret):
        named = f"{variable}_FILE"
        if not (path := environ.get(named, "").strip()):
            found.pop(named, None)
            continue
        if environ.get(variable, "").strip():
            raise InvalidConfigError(f"{variable} and {named} are both set", hint="unset one")
        try:
            with Path(path).open("rb") as stream:
                data = stream.read(_LARGEST_FILE)
            found[variable] = data.decode().strip()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "it is not text"
            raise InvalidConfigError(
                f"{named}: cannot read the file {clean(path)}: {why}",
                hint="name a file with the URL alone",
            ) from None
        if not found[variable]:
            raise InvalidConfigError(f"{named}: the file {clean(path)} is empty")
    return found


def _check_names(file: Path | None, tables: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    keys = [str(key) for key in KEYS]
    for name, table in tables.items():
        if name == "probe" and isinstance(table, dict):
            continue
        if name not in SECTIONS:
            what = (
                f"section [{name}]" if isinstance(table, dict) else f"key {name} outside a section"
            )
            near = f"the nearest section is [{nearest(name, SECTIONS)}]"
            raise InvalidConfigError(f"unknown {what} in {file}", hint=near)
        if not isinstance(table, dict):
            hint = f"write [{name}] on a line of its own, and its keys below"
            raise InvalidConfigError(f"{name} in {file} must be a section", hint=hint)
        for key in table:
            if f"{name}.{key}" not in keys:
                elsewhere = [str(other) for other in KEYS if other.field.name == key]
                near = elsewhere[0] if elsewhere else nearest(f"{name}.{key}", keys)
                hint = f"the nearest is {near}"
                raise InvalidConfigError(f"unknown key {name}.{key} in {file}", hint=hint)
    variables = [key.variable for key in KEYS]
    variables += [f"{key.variable}_FILE" for key in KEYS if key.secret]
    prefixes = tuple(f"MODELCTL_{section.upper()}_" for section in SECTIONS)
    for name in sorted(environ):
        if name in (*variables, "MODELCTL_CONFIG", "MODELCTL_ACTOR"):
            continue
        # Also a section that is mistyped: without its URL the fleet would be another one.
        if not name.startswith(prefixes) and not _is_near(name, variables):
            continue
        if not (_KUBERNETES.search(name) or environ[name].startswith(("tcp://", "udp://"))):
            near = f"the nearest is {nearest(name, variables)}"
            raise InvalidConfigError(f"unknown environment variable {name}", hint=near)


def _read_probes(file: Path | None, tables: Mapping[str, Any]) -> dict[str, ProbeConfig]:
    """Read the sections [probe.NAME], where NAME is a provider."""
    if not tables:
        return {}
    from modelctl.config.probes import ProbeConfig, check_probe

    known = {of.name: of.default for of in fields(ProbeConfig) if of.name != "provider"}
    probes = {}
    for provider, table in tables.items():
        section = f'[probe."{clean(provider, longest=50)}"] in {file}'
        if not isinstance(table, dict):
            hint = "write [probe.NAME], where NAME is a provider, and its keys below"
            raise InvalidConfigError(f"probe.{provider} in {file} must be a section", hint=hint)
        values = {}
        for name, raw in table.items():
            if name not in known:
                hint = f"the nearest is {nearest(name, known)}"
                raise InvalidConfigError(f"unknown key {name} in {section}", hint=hint)
            try:
                values[name] = _probe_value(raw, known[name])
            except UsageError as exc:
                raise InvalidConfigError(
                    f"{name} of {section}: {exc.message}", hint=exc.hint
                ) from None
        probes[provider] = ProbeConfig(provider, **values)
        try:
            check_probe(probes[provider])
        except UsageError as exc:
            raise InvalidConfigError(f"{section}: {exc.message}", hint=exc.hint) from None
    return probes


def _probe_value(raw: object, default: object) -> Any:
    """Return the value that *raw* stands for, of the type of *default*; a float is a duration."""
    if isinstance(default, bool):
        if not isinstance(raw, bool):
            raise UsageError("must be true or false")
        return raw
    if isinstance(default, int):
        if type(raw) is not int:
            raise UsageError("must be a whole number")
        return raw
    items = raw if isinstance(default, tuple) else [raw]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        wanted = {float: 'a duration with its unit, such as "10s"', str: "a string"}
        raise UsageError(f"must be {wanted.get(type(default), 'a list of strings')}")
    if isinstance(default, tuple):
        if not items:
            raise UsageError("must have a program to run")
        return tuple(items)
    if CONTROLS.search(items[0]):
        raise UsageError("must not contain control characters")
    return parse_duration(items[0]) if isinstance(default, float) else items[0]


def _is_near(name: str, choices: Iterable[str]) -> bool:
    if not name.startswith("MODELCTL_"):
        return False
    import difflib

    return bool(difflib.get_close_matches(name, choices, cutoff=0.8))


def settings(config: Config) -> list[Setting]:
    """Return every setting as the file would write it, with passwords hidden."""
    from urllib.parse import quote

    from modelctl.reports import Setting

    rows = []
    for key in KEYS:
        value = getattr(getattr(config, key.section), key.field.name)
        if key.secret:
            value = mask_url(value)
            if str(key) == "database.url" and config.embedded:
                value = f"sqlite:///{quote(os.fsencode(config.sqlite_path or ''))}"
        elif key.number:
            value = int(value) if value.is_integer() else value
        elif isinstance(value, float):
            value = format_duration(value)
        rows.append(Setting(str(key), value, config.origins.get(str(key), "default"), key.variable))
    for probe in config.probes.values():
        rows += _probe_settings(config, probe)
    return rows


def _probe_settings(config: Config, probe: ProbeConfig) -> Iterator[Setting]:
    import json

    from modelctl.reports import Setting

    name = probe.provider
    shown = name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
    for of in fields(probe):
        value, origin = getattr(probe, of.name), config.origins.get(f"probe.{name}.{of.name}")
        asks = of.name in ("command", "timeout") or not probe.command
        if of.name == "provider" or not (origin or asks) or value in ("", ()):
            continue
        if of.name == "command":  # only the program: there may be a password in its words
            value = [*value[:1], "..."]
        elif isinstance(value, float):
            value = format_duration(value)
        yield Setting(f"probe.{shown}.{of.name}", value, origin or "default", "")


def default_actor(environ: Mapping[str, str] | None = None) -> str:
    """Return who acts unless told otherwise: MODELCTL_ACTOR, else user@host."""
    environ = os.environ if environ is None else environ
    actor = environ.get("MODELCTL_ACTOR")
    if not actor:
        user = environ.get("LOGNAME") or environ.get("USER") or _user_name()
        # The same as socket.gethostname(), without loading sockets.
        actor = f"{user}@{os.uname().nodename}"
    return storable(actor, 200)


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
