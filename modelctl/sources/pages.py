"""Where the next page of a list is, from what its services say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from modelctl.catalog.documents import MORE, PAGES, THIS_PAGE, numbers, places
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError
from modelctl.outbound.get import on_same_server

if TYPE_CHECKING:
    from modelctl.catalog.parse import Page

# The parameter of a request for each field with what a request for the next page must have.
_PARAMETERS = {
    "nextPageToken": "pageToken",
    "next_page_token": "page_token",
    "next_cursor": "cursor",
    "nextCursor": "cursor",
    "next_page": "page",
    "nextPage": "page",
}
_LINK = re.compile(r"<([^<>]*)>((?:\s*;\s*[^\s;=,]+\s*(?:=\s*(?:\"[^\"]*\"|[^\s;,\"]*))?)*)")
_IS_NEXT = re.compile(r";\s*rel\s*=\s*(?:\"(?:[^\"]*\s)?next(?:\s[^\"]*)?\"|next\b)", re.IGNORECASE)


def next_page(url: str, page: Page, link: str, name: CatalogFormat | None) -> str | None:
    """Return the URL of the page after the one at *url*; None: it was the last.

    *link*: the header of that name. *name*: the format of the list.

    Raises:
        UsageError: there are more, but not how to get them; or they are on another server.
    """
    reference = next(
        (target for target, rest in _LINK.findall(link[:8192]) if _IS_NEXT.search(rest)), None
    )
    if reference is None and page.more is None:
        return None
    if reference is None:
        reference = next(_references(page, url, name), None)
    if reference is None:
        raise UsageError(
            f'it is one page of a longer list ("{page.more}" says that there is more), and does not'
            " say where the next one is",
            hint="ask for all models at once, if the service has a parameter for that in its URL",
        )
    found = on_same_server(url, reference)
    if found is None:
        raise UsageError("its next page is on another server, which is not asked")
    return found


def _references(page: Page, url: str, name: CatalogFormat | None) -> Iterator[str]:
    """Give what the document says of the next page, the most exact first, as URLs or queries."""
    if not isinstance(page.document, dict):
        return
    around = [*places(page.document)]
    for place in around:
        for field in MORE:
            value = place.get(field)
            if isinstance(value, Mapping):  # as in {"next": {"href": ...}}
                value = value.get("href", value.get("url"))
            if isinstance(value, str) and re.match("https?://|[/?]", value):
                yield value
            elif isinstance(value, str | int) and value is not True and field in _PARAMETERS:
                yield _with(url, _PARAMETERS[field], str(value))
    if page.more in ("has_more", "hasMore"):
        last = page.document.get("last_id") or (
            page.last.get("id") if isinstance(page.last, Mapping) else None
        )
        if isinstance(last, str) and last:
            anthropic = name is CatalogFormat.ANTHROPIC
            yield _with(url, "after_id" if anthropic else "after", last)
    for place in around:
        here = numbers(place, THIS_PAGE)
        offset = numbers(place, ("offset",))
        if here or numbers(place, PAGES):
            query = dict(parse_qsl(urlsplit(url).query))
            parameter = next((field for field in THIS_PAGE if field in query), "page")
            yield _with(url, parameter, str(max(here.values(), default=page.number) + 1))
        elif offset and page.size:
            yield _with(url, "offset", str(offset["offset"] + page.size))


def _with(url: str, parameter: str, value: str) -> str:
    """Return *url* with a parameter, instead of one with the same name."""
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return "?" + urlencode([pair for pair in pairs if pair[0] != parameter] + [(parameter, value)])
