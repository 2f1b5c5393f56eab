"""Lists that come in pages are read whole, however a service says where the next page is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelctl import UsageError
from modelctl.outbound.get import on_same_server
from modelctl.sources import read
from modelctl.sources.read import read_source
from tests.sources.server import Handler, Lists, models

IDS = ["a", "b", "c", "d", "e"]
Answer = Callable[[Handler], Any]


def after(parameter: str) -> Callable[[Handler], list[str]]:
    """Return a function that gives the two ids after the one that a parameter names."""

    def page(handler: Handler) -> list[str]:
        last = handler.query.get(parameter)
        start = IDS.index(last) + 1 if last else 0
        return IDS[start : start + 2]

    return page


def by_id(parameter: str, **entry: str) -> Answer:
    """Answer with has_more and the last id."""

    def answer(handler: Handler) -> dict[str, Any]:
        page = after(parameter)(handler)
        data = [{"id": i, **entry} if entry else models(i)[0] for i in page]
        return {"data": data, "has_more": "e" not in page, "last_id": page[-1]}

    return answer


def says(parameter: str, say: Callable[[int, str], dict[str, Any]], per: int = 1) -> Answer:
    """Answer with what *say* gives for the place of the next page; *per*: of one step."""

    def answer(handler: Handler) -> dict[str, Any]:
        start = int(handler.query.get(parameter, "0")) * per
        page = IDS[start : start + 2]
        base = f"http://{handler.headers['Host']}/v1/models"
        return {"data": models(*page)} | say(start + 2, base)

    return answer


def without_last_id(handler: Handler) -> dict[str, Any]:
    """Answer as a service that does not repeat the last id."""
    whole: dict[str, Any] = by_id("after")(handler)
    del whole["last_id"]
    return whole


def in_the_header(handler: Handler) -> None:
    """Answer with a bare list, and the next page in the header Link."""
    start = int(handler.query.get("from", "0"))
    links = '</v1/models?from=0>; rel="first", </v1/models?x="a,b">; title="rel=next"'
    if start + 2 < len(IDS):
        links += f', <?from={start + 2}&x=1>; title="a, b"; rel="prev next"'
    entries = [{"id": i, "modelId": f"org/{i}"} for i in IDS[start : start + 2]]
    handler.send(entries, Link=links)


def unless_last(place: int, more: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Say one thing on each page but the last, and another there."""
    return last if place >= len(IDS) else more


WAYS: dict[str, tuple[Answer, dict[str, Any]]] = {
    "OpenAI": (by_id("after"), {}),
    "OpenAI without last_id": (without_last_id, {}),
    "Anthropic": (by_id("after_id", type="model", display_name="M"), {"format": "anthropic"}),
    "Anthropic, recognized": (by_id("after_id", type="model", display_name="M"), {}),
    "Google": (
        says("pageToken", lambda n, _: unless_last(n, {"nextPageToken": str(n)}, {})),
        {},
    ),
    "Cohere": (
        says("page_token", lambda n, _: {"next_page_token": str(n) if n < 5 else ""}),
        {},
    ),
    "cursor": (
        says("cursor", lambda n, _: {"meta": {"next_cursor": str(n) if n < 5 else None}}),
        {},
    ),
    "cursor and has_more": (
        says("cursor", lambda n, _: {"has_more": n < 5, "next_cursor": n if n < 5 else None}),
        {},
    ),
    "cursor and total": (
        says("cursor", lambda n, _: {"total": 5} | ({"next_cursor": str(n)} if n < 5 else {})),
        {},
    ),
    "URL": (says("from", lambda n, base: {"next": f"{base}?from={n}" if n < 5 else None}), {}),
    "query": (says("from", lambda n, _: {"links": {"next": f"?from={n}" if n < 5 else None}}), {}),
    "HAL": (
        says("from", lambda n, b: {"_links": {"next": {"href": f"{b}?from={n}"}} if n < 5 else {}}),
        {},
    ),
    "OData": (
        says("$skip", lambda n, b: unless_last(n, {"@odata.nextLink": f"{b}?$skip={n}"}, {})),
        {},
    ),
    "offset": (says("offset", lambda n, _: {"total": 5, "limit": 2, "offset": n - 2}), {}),
    "zero-based pages": (
        says("page", lambda n, _: {"page": n // 2 - 1, "total_pages": 3}, per=2),
        {},
    ),
    "the header Link": (in_the_header, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_page_is_read(server: Lists, way: str) -> None:
    """All models come once, in their order, and each page is asked for once."""
    answer, how = WAYS[way]
    found = read_source(server.source(answer, **how))
    assert [model.id for model in found.models] == IDS
    assert ([*found.rejected], found.notes) == ([], ())
    pages = 4 if way == "zero-based pages" else 3  # which say only on an empty page that they end
    assert len(server.asked) == len({path for path, _ in server.asked}) == pages


@pytest.mark.parametrize(
    ("query", "describe"),
    [
        ("", lambda n: {"page": n, "total_pages": 3}),
        ("?page=1&per_page=2", lambda n: {"current_page": n, "last_page": 3}),
        ("?current_page=1", lambda n: {"meta": {"current_page": n, "last_page": 3}}),
        ("", lambda n: {"result_info": {"page": n, "per_page": 2, "total_count": 5}}),
        ("", lambda n: {"total_pages": 3}),
    ],
)
def test_pages_by_number(
    server: Lists, query: str, describe: Callable[[int], dict[str, Any]]
) -> None:
    """Where pages have numbers, the next number is asked for until the last page."""

    def answer(handler: Handler) -> dict[str, Any]:
        number = int(handler.query.get("page", handler.query.get("current_page", "1")))
        return {"data": models(*IDS[number * 2 - 2 : number * 2])} | describe(number)

    found = read_source(server.source(answer, url=server.url + query))
    assert [model.id for model in found.models] == IDS
    assert len(server.asked) == 3
    assert all(("per_page=2" in path) == ("per_page" in query) for path, _ in server.asked)


def test_a_list_that_changes_between_pages(server: Lists) -> None:
    """A model that moved to the next page in the meantime is taken once, and that is said."""
    pages = [
        {"data": models("a", "b"), "has_more": True, "last_id": "b"},
        {"data": models("b", "c"), "has_more": True, "last_id": "c"},
        {"data": models("c"), "has_more": False},
    ]
    found = read_source(server.source(*pages))
    assert [model.id for model in found.models] == ["a", "b", "c"]
    assert [*found.rejected] == []
    assert found.notes == ("2 models on two pages: the list changed while it was read",)
    twice = [{"data": models("a", "a")}]
    assert [r.why for r in read_source(server.source(*twice)).rejected] == [
        "is in the catalogue twice"
    ]


PAGE = {"data": models("a", "b"), "has_more": True, "last_id": "b"}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([PAGE], "page 2 repeats an earlier page"),
        ([PAGE | {"has_more": False, "total": 4, "offset": 0}], "page 2 repeats"),
        (
            [PAGE, {"data": models("c"), "has_more": True, "last_id": "b"}],
            "page 2 leads back to an earlier page",
        ),
        ([{"data": models("a"), "next": "/v1/models"}], "page 1 leads back"),
        (
            [{"data": models("a"), "total": 9}],
            r"\"total\" says that there is more.* where the next",
        ),
        ([{"data": models("a"), "next": "somewhere"}], "where the next"),
        ([{"data": [], "has_more": True}], "where the next"),
        ([{"data": models("a"), "next": "http://127.0.0.1:1/x"}], "on another server"),
        ([{"data": models("a"), "next": "https://evil.test/x"}], "on another server"),
        ([PAGE, {"error": {"message": "too many"}}], "an error message: too many"),
        ([PAGE, {"data": 5}], "not in the format openai"),
    ],
)
def test_pages_that_make_no_list(server: Lists, answers: list[Any], words: str) -> None:
    """A list that cannot be read to its end is an error, never a shorter list."""
    with pytest.raises(UsageError, match=words) as caught:
        read_source(server.source(*answers))
    assert caught.value.message.startswith("source 'mine': ")


def test_a_list_without_an_end(server: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many new models each page has: at some number of pages it is an error."""
    monkeypatch.setattr(read, "_MOST_PAGES", 6)

    def answer(handler: Handler) -> dict[str, Any]:
        number = int(handler.query.get("cursor", "0"))
        return {"data": models(f"m{number}"), "next_cursor": number + 1}

    with pytest.raises(UsageError, match="more than 6 pages"):
        read_source(server.source(answer))
    assert len(server.asked) == 6


URLS = st.text("ah.:/?#@[]1&=%\\ \n\tü", max_size=12) | st.sampled_from(
    ["http://h:8/x", "//evil/", "https://h:8/", "http://h:8@evil/", "http://u@h:8/", "\ud800"]
)


@settings(max_examples=200, deadline=None)
@given(URLS)
@example("//h:8/../x")
@example("http://h:8\\@evil/")
@example("http:/\tx")
def test_a_reference_never_leaves_the_server(reference: str) -> None:
    """Whatever a server writes as its next page, the URL has the scheme, host and port of the source."""
    found = on_same_server("http://h:8/v1/models?x=1", reference)
    if found is not None:
        assert found.startswith("http://h:8/") or found in ("http://h:8", "http://h:8?"), found
        assert found.isascii()
        assert " " not in found
