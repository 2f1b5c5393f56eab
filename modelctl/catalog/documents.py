"""Documents that are no whole catalogue: error messages, one page of several, lists of other things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelctl.catalog.marks import is_openai, other_thing, says_nothing_of_models


def why_no_models(document: object) -> str:
    """Say what a document is in which no format finds models."""
    entries = document
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        entries = lists[0] if lists else [document]
    first = (
        next((e for e in entries if isinstance(e, dict)), {}) if isinstance(entries, list) else {}
    )
    keys = {key.lower() for key in first}
    if is_openai(first) and "id" in first:
        return 'no format has its models at this place; put them into a list "data"'
    if other := other_thing(first):
        return f'it lists what it calls "{other}", not models'
    if keys & {"matchpattern", "match_pattern"}:
        return "it is a price table: its entries are patterns and prices, not models"
    if keys & {"models", "env", "npm", "privacy_policy_url"}:
        return "it is a list of providers without their models"
    if any("price" in key or "cost" in key for key in keys):
        return "it is a price table, not a list of models"
    if first:
        some = ", ".join(f'"{key}"' for key in list(first)[:5])
        return f"its entries have {some} and nothing that marks a model"
    if isinstance(entries, list) and entries and not any(isinstance(e, dict) for e in entries):
        return "its entries are not JSON objects"
    return "it has no entries"


# ── Error messages ──

# Names of the text of an error, in lower case.
_ERROR_TEXTS = (
    *("message", "msg", "detail", "error_description", "errormessage", "error_message"),
    *("title", "reason"),
)


def error_in(document: object) -> str | None:
    """Return the error message if a service answered with an error instead of a list."""
    if isinstance(document, list) and len(document) == 1:  # as Gemini does when it streams
        document = document[0] if isinstance(document[0], dict) and "error" in document[0] else None
    if not isinstance(document, dict):
        return None
    fields = {key.lower(): value for key, value in document.items()}
    error = fields.get("error") or fields.get("errors")
    if not error and not _is_an_error(fields):
        return None
    if not error or error is True:
        error = next((fields[name] for name in _ERROR_TEXTS if fields.get(name)), None)
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error.get("msg") or error.get("code")
    return str(error or fields.get("message") or "no reason given")


def _is_an_error(fields: Mapping[str, object]) -> bool:
    """Whether a document without an "error" is an error: it has a message, and no models."""
    if fields.get("success") is False or fields.get("object") == "error":
        return True
    if isinstance(fields.get("detail"), list):  # FastAPI lists the fields that are wrong
        return True
    lists = any(isinstance(value, list | dict) and value for value in fields.values())
    if lists or not any(isinstance(fields.get(name), str) for name in _ERROR_TEXTS):
        return False
    return says_nothing_of_models(fields)


# ── Pages ──

# Fields that have a value if there is another page.
MORE = (
    *("has_more", "hasMore", "has_next", "has_next_page"),
    *("nextPageToken", "next_page_token", "nextPageUrl", "next_page_url", "next_page", "nextPage"),
    *("next_cursor", "nextCursor", "next_url", "next"),
    *("odata.nextLink", "@odata.nextLink", "nextLink"),
)
# Objects inside of a document that describe its pages.
_ABOUT_PAGES = (
    *("pagination", "paging", "page_info", "pageInfo", "meta", "metadata", "links", "_links"),
    "result_info",
)
_TOTALS = ("total", "total_count", "totalCount", "totalSize", "total_size", "totalItems", "count")
PAGES = ("total_pages", "totalPages", "last_page", "lastPage", "pages", "page_count", "pageCount")
_PAGE_SIZE = ("per_page", "perPage", "page_size", "pageSize", "limit")
THIS_PAGE = ("page", "current_page", "currentPage", "page_number", "pageNumber")


def more_pages(document: object, entries: int, *, before: int = 0, page: int = 1) -> str | None:
    """Return the field by which a document says that it is one page of a longer list.

    *entries*: how many are on this page; *before*: on those before it. *page*: its number.
    """
    if not isinstance(document, dict):
        return None
    for place in places(document):
        for name in MORE:
            if place.get(name) not in (None, False, "", 0, [], {}):
                return name
        here = numbers(place, THIS_PAGE)
        number = max(here.values(), default=page)
        for name, pages in numbers(place, PAGES).items():
            if pages > max(number, 1):
                return name
        size = max(numbers(place, _PAGE_SIZE).values(), default=0) if here else 0
        start = max(numbers(place, ("offset",)).values(), default=before)
        for name, total in numbers(place, _TOTALS).items():
            if total > (number * size or start + entries):
                return name
    return None


def places(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that may say something of pages: the document, and some that are in it."""
    found = (document, *(document.get(name) for name in _ABOUT_PAGES))
    return [place for place in found if isinstance(place, dict)]


def numbers(place: Mapping[str, object], names: tuple[str, ...]) -> dict[str, int]:
    """Return those of the fields *names* that have a whole number."""
    return {name: value for name in names if type(value := place.get(name)) is int}
