"""The URLs of databases and of Redis: which are accepted, and where their passwords are.

URLs are checked before a driver sees them, because drivers print a password that is not
percent-encoded: a raw "/", "?", "#" or "@" ends the password, and the driver names the rest in its
error as a host, a port or a database. So reserved characters are accepted only where they belong,
and no message of modelctl quotes any part of a URL.
"""

from __future__ import annotations

import re

from modelctl.errors import UsageError, clean

_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z_.~-]+)?\]|[0-9A-Za-z_.~%-]*)(?::[0-9]{1,5})?"
_PARAMETER = r"[^=&@#\s]+=[^=&@#\s]*"
_URL = (
    r"(?P<scheme>[a-z][a-z+]*)://"
    r"(?:(?:(?![:@/?#\[\]])[!-~])*(?::(?P<password>(?:(?![@/?#\[\]])[!-~])*))?@)?"
    rf"(?P<place>(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/[^@?#\s]*)?)"
    rf"(?:\?(?P<query>{_PARAMETER}(?:&{_PARAMETER})*)?)?"
)
_MALFORMED = (
    "is not a well-formed URL; a reserved character in the user or password must be"
    " percent-encoded (for example @ as %40), and a port is a number"
)


def _parse(url: str) -> re.Match[str] | None:
    match = re.fullmatch(_URL, url)
    if match is None or percent_decoded(url) is None:
        return None
    ports = re.findall(r":([0-9]+)(?:,|$)", match["hosts"])
    return match if all(0 < int(port) < 65536 for port in ports) else None


def percent_decoded(text: str, errors: str = "strict") -> str | None:
    """Decode percent-encoding; None if it is malformed, has a NUL, or does not decode to text.

    *errors*: ``surrogateescape`` for the name of a file, which may have any bytes.
    """
    from urllib.parse import unquote

    if re.search("%00|%(?![0-9A-Fa-f]{2})", text):
        return None
    try:
        return unquote(text, errors=errors)
    except UnicodeDecodeError:
        return None


# ── Databases ──

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_SQLITE = "sqlite:///"


def check_database_url(url: str) -> str:
    """Return *url* if it names a PostgreSQL database or a SQLite file; it may be empty.

    Raises:
        UsageError: *url* is neither; the message does not quote it.
    """
    if not url:
        return url
    if url.startswith("sqlite:"):
        name = _decoded_file(url) if url.startswith(_SQLITE) else None
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
    if _parse(url) is None:
        raise UsageError(_MALFORMED, hint="write postgresql://user:password@host:5432/name")
    return url


def sqlite_file(url: str) -> str | None:
    """Return the file that a SQLite URL names; None for any other URL."""
    if not url.startswith(_SQLITE):
        return None
    return _decoded_file(url) or url.removeprefix(_SQLITE)


def _decoded_file(url: str) -> str | None:
    return percent_decoded(url.removeprefix(_SQLITE), "surrogateescape")


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
    match = _parse(url)
    if match is None:
        raise UsageError(_MALFORMED, hint=f"write it like {example}")
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


# ── Passwords ──

_MASKED_PARAMETER = "passw|secret|token|scram"


def _password_spans(url: str) -> list[tuple[int, int]]:
    """Return where each password in *url* begins and ends; all of *url* if it cannot be parsed."""
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
            if re.search(_MASKED_PARAMETER, (percent_decoded(pair[1]) or "").lower()):
                spans.append(pair.span(2))
    return [(start, end) for start, end in spans if start < end]


def mask_url(url: str) -> str:
    """Return *url* with ``***`` for each password; only its scheme if it cannot be parsed."""
    for start, end in reversed(_password_spans(url)):
        url = f"{url[:start]}***{url[end:]}"
    return url


def mask_passwords(text: str, urls: tuple[str, ...]) -> str:
    """Replace every password of *urls* in *text*, encoded or decoded, by ``***``."""
    passwords = set()
    for url in urls:
        for start, end in _password_spans(url):
            raw = url[start:end]
            # Some drivers decode + in a query parameter as a blank.
            decoded = percent_decoded(raw), percent_decoded(raw.replace("+", " "))
            passwords |= {raw, *filter(None, decoded)}
    # The longest first, because a shorter password may be the beginning of a longer one.
    words = sorted(passwords, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, words)), "***", text) if words else text
