"""The example of the page for applications, about blocks, functions and streams, is right."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

from modelctl import Fleet
from tests import ROOT
from tests.fleets import seed

PAGE = (ROOT / "docs" / "applications.md").read_text()


def test_the_example(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block, an async block and a stream record what the page says."""
    seed(fleet, ["a", "openai/gpt-5"])
    monkeypatch.setattr(Fleet, "open", lambda: fleet)
    section = PAGE[PAGE.index("## A block, a function, a stream") :]
    found = re.search(r"```python\n(.+?)```", section, re.DOTALL)
    assert found
    scope: dict[str, Any] = {}
    exec(found[1], scope)  # noqa: S102 - our own page

    def client(create: Any) -> Any:
        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))

    def answer(text: str) -> Any:
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    async def create_async(**_: Any) -> str:
        return "answer"

    scope["async_client"] = client(create_async)
    scope["client"] = client(lambda **_: answer("{}"))
    assert scope["ask"]("a", []) == "{}"
    assert asyncio.run(scope["ask_async"]("a", [])) == "answer"
    scope["client"] = client(lambda **_: answer("Sorry"))
    assert scope["ask"]("a", []) == "Sorry"
    model = fleet.show("a")
    assert (model.success_count, model.failure_count) == (2, 1)
    assert (model.failure_type, model.failure_reason) == ("parse-error", "no JSON")
    scope["client"] = client(lambda **_: iter([1, 2]))
    next(scope["stream"]([]))
    assert list(scope["stream"]([])) == [1, 2]
    assert fleet.show("openai/gpt-5").success_count == 1
