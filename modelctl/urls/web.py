"""Which URLs modelctl sends something to, or asks."""

from __future__ import annotations

import re

from modelctl.errors import UsageError

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<place>(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>(?:/[\w.~!$&'()*+,;=:@%-]*)*)(?:\?(?P<query>[\w.~!$&'()*+,;=:@%/?-]*))?",
    re.ASCII,
)


def check_web_url(url: str, *, allow_http: bool, query: bool = False, name: str = "key") -> None:
    """Check a URL without contacting anything; *query*: it may have a query.

    *name*: how the settings that hold a password begin.

    Raises:
        UsageError: says what is wrong; the message does not quote the URL.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https"):
        raise UsageError("url must begin with https://")
    if "@" in re.split(r"[/?#\\]", rest)[0]:
        hint = f"use {name}_env or {name}_file"
        raise UsageError("url must have no user or password", hint=hint)
    if "#" in url or ("?" in url and not query):
        raise UsageError(
            "url must have no fragment" if query else "url must have no query and no fragment"
        )
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 443) < 65536:
        raise UsageError("url is malformed", hint="write it like https://api.openai.com/v1")
    if scheme == "http" and not allow_http:
        raise UsageError(
            "url is plain http, which sends everything unencrypted", hint="allow_http permits it"
        )
