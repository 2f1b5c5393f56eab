"""Which URLs of databases and of Redis are accepted, and what they name."""

from __future__ import annotations

import re

from modelctl.errors import UsageError, clean
from modelctl.urls.url import MALFORMED, SQLITE, parse, percent_decoded

# ── Databases ──

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


def check_database_url(url: str) -> str:
    """Return *url* if it names a PostgreSQL database or a SQLite file; it may be empty.

    Raises:
        UsageError: *url* is neither; the message does not quote it.
    """
    if not url:
        return url
    if url.startswith("sqlite:"):
        name = _decoded_file(url) if url.startswith(SQLITE) else None
        # SQLite gives names like ":memory:" and "file:x" a meaning of its own.
        if not name or name.startswith((":", "file:")) or re.search("[?#]", url):
            raise UsageError(
                "must name a file, as in sqlite:///relative.db or sqlite:////absolute.db",
                hint="a database in memory would be a new, empty one for each connection;"
                " write %, ? and # in a file name as %25, %3F and %23",
            )
        return url
    if url.partition("://")[0] not in _POSTGRES:
        hint = "write postgresql://user:password@host:5432/name, or sqlite:////path/to/file.db"
        raise UsageError("is neither a PostgreSQL nor a SQLite URL", hint=hint)
    if parse(url) is None:
        raise UsageError(MALFORMED, hint="write postgresql://user:password@host:5432/name")
    return url


def sqlite_file(url: str) -> str | None:
    """Return the file that a SQLite URL names; None for any other URL."""
    if not url.startswith(SQLITE):
        return None
    return _decoded_file(url) or url.removeprefix(SQLITE)


def _decoded_file(url: str) -> str | None:
    return percent_decoded(url.removeprefix(SQLITE), "surrogateescape")


def libpq_url(url: str) -> str:
    """Return a PostgreSQL URL with the scheme that libpq knows; empty for any other URL."""
    scheme, _, rest = url.partition("://")
    return f"postgresql://{rest}" if scheme in _POSTGRES else ""


# ── Redis ──

_NODES = "[^,/]+(?:,[^,/]+)*"
# Which hosts and path each scheme takes (rediss: the same as redis), and an example.
_REDIS_FORMS = {
    "redis": ("[^,/]*(?:/[0-9]*)?", "redis://host:6379/0"),
    "unix": ("/.+", "unix:///run/redis.sock?db=0"),
    "redis+sentinel": (f"{_NODES}/[^/]+(?:/[0-9]+)?", "redis+sentinel://h1:26379,h2:26379/master"),
    "redis+cluster": (f"{_NODES}(?:/0?)?", "redis+cluster://h1:6379,h2:6379"),
}
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


def check_redis_url(url: str) -> str:
    """Return *url* if it names a Redis; it may be empty.

    Raises:
        UsageError: *url* does not have the form of its scheme, or has a parameter that is unknown
            or has an invalid value; the message does not quote the URL.
    """
    if not url:
        return url
    scheme = re.sub("^rediss", "redis", url.partition("://")[0])
    if scheme not in _REDIS_FORMS:
        hint = f"the scheme must be one of {', '.join(_REDIS_FORMS)}; rediss is redis over TLS"
        raise UsageError("is not a Redis URL", hint=hint)
    place, example = _REDIS_FORMS[scheme]
    match = parse(url)
    if match is None:
        raise UsageError(MALFORMED, hint=f"write it like {example}")
    if not re.fullmatch(place, match["place"]):
        raise UsageError(f"must have the form of {example}")
    redis_parameters(url)
    return url


def redis_parameters(url: str) -> dict[str, str]:
    """Return the parameters after the question mark of a Redis URL.

    Raises:
        UsageError: a parameter is unknown, or its value is invalid.
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
            hint = f"the known parameters are {', '.join(known)}"
            raise UsageError(f"has an unknown parameter '{clean(name, longest=50)}'", hint=hint)
        if not re.fullmatch(_PARAMETER_VALUES.get(name, "(?s:.*)"), value):
            raise UsageError(f"has an invalid value for the parameter '{name}'")
    return given
