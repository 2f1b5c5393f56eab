"""What a URL is, for databases and Redis, and where its passwords are.

URLs are checked before a driver sees them, because drivers print a password that is not
percent-encoded: a raw "/", "?", "#" or "@" ends the password, and the driver names the rest in its
error as a host, a port or a database. So reserved characters are accepted only where they belong,
and no message of modelctl quotes any part of a URL.
"""

from __future__ import annotations

import re

SQLITE = "sqlite:///"
_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z_.~-]+)?\]|[0-9A-Za-z_.~%-]*)(?::[0-9]{1,5})?"
_PARAMETER = r"[^=&@#\s]+=[^=&@#\s]*"
_URL = (
    r"(?P<scheme>[a-z][a-z+]*)://"
    r"(?:(?:(?![:@/?#\[\]])[!-~])*(?::(?P<password>(?:(?![@/?#\[\]])[!-~])*))?@)?"
    rf"(?P<place>(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/[^@?#\s]*)?)"
    rf"(?:\?(?P<query>{_PARAMETER}(?:&{_PARAMETER})*)?)?"
)
MALFORMED = (
    "is not a well-formed URL; a reserved character in the user or password must be"
    " percent-encoded (for example @ as %40), and a port is a number"
)


def parse(url: str) -> re.Match[str] | None:
    """Return the parts of a well-formed URL; None: it is not one."""
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


# ── Passwords ──

_MASKED_PARAMETER = "passw|secret|token|scram"


def _password_spans(url: str) -> list[tuple[int, int]]:
    """Return where each password in *url* begins and ends; all of *url* if it cannot be parsed."""
    if url.startswith(SQLITE):
        return []
    match = parse(url)
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
