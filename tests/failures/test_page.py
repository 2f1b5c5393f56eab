"""The page for applications is right: its example runs, and it names every SDK that is tested."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from modelctl import Fleet
from tests import ROOT
from tests.failures.sdks import SDKS
from tests.fleets import seed

PAGE = (ROOT / "docs" / "applications.md").read_text()


def test_the_example(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example records a success, a failure with its type, and nothing of its own errors."""
    seed(fleet, "a")
    monkeypatch.setattr(Fleet, "open", lambda: fleet)
    found = re.search(r"```python\n(.+?)```", PAGE, re.DOTALL)
    assert found
    scope: dict[str, Any] = {}
    exec(found[1], scope)  # noqa: S102 - our own page

    def answers(create: Any) -> None:
        completions = SimpleNamespace(create=create)
        scope["client"] = SimpleNamespace(chat=SimpleNamespace(completions=completions))

    message = SimpleNamespace(content="hello")
    answers(lambda **_: SimpleNamespace(choices=[SimpleNamespace(message=message)]))
    assert scope["ask"]("a", []) == "hello"
    answers(lambda **_: (_ for _ in ()).throw(TimeoutError("too slow")))
    with pytest.raises(TimeoutError):
        scope["ask"]("a", [])
    answers(lambda **_: scope["own"])
    with pytest.raises(KeyError):
        scope["ask"]("a", [])
    model = fleet.show("a")
    assert (model.success_count, model.failure_count) == (1, 1)
    assert (model.failure_type, model.failure_reason) == ("timeout", "too slow")


def test_it_names_every_sdk() -> None:
    """The list of the SDKs is that of the tests."""
    listed = PAGE[PAGE.index("These SDKs are tested") :]
    names = {name.removesuffix("-async").removesuffix("-retries") for name in SDKS}
    names = {"litellm" if name.startswith("litellm-") else name for name in names}
    assert {name for name in names if not re.search(rf"\b{name}\b", listed)} == set()
