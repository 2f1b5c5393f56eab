"""`classify` is right for the recorded exceptions of the SDKs, without the SDKs (see `record`)."""

from __future__ import annotations

import builtins
import json
from types import SimpleNamespace
from typing import Any

import pytest

from modelctl import classify
from tests.failures.record import RECORDED

LINES = [json.loads(line) for line in RECORDED.read_text().splitlines()]


def made(of: dict[str, Any]) -> BaseException:
    """Make an exception whose classes have the recorded names, with the recorded attributes."""
    cls = getattr(builtins, of["base"])
    for name in reversed(of["classes"]):
        module, _, own_name = name.rpartition(".")
        cls = type(own_name, (cls,), {"__module__": module})
    exception: BaseException = cls.__new__(cls, *of["args"])
    exception.args = tuple(of["args"])
    for attribute, value in of["attributes"].items():
        setattr(exception, attribute, value)
    if (response := of["response"]) and "ResponseMetadata" not in response:
        content = response["_content"]
        response = SimpleNamespace(**{**response, "_content": content and content.encode()})
    if response:
        exception.response = response  # type: ignore[attr-defined] # as the SDKs do
    return exception


def chained(chain: list[dict[str, Any]]) -> BaseException:
    """Make the exceptions of a chain, and return the one that was raised."""
    exceptions = [made(each) for each in chain]
    for outer, inner, of in zip(exceptions, exceptions[1:], chain[1:], strict=False):
        if of["explicit"]:
            outer.__cause__ = inner
        else:
            outer.__context__ = inner
    return exceptions[0]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['sdk']}-{line['failure']}")
def test_a_recorded_failure(line: dict[str, Any]) -> None:
    """The type follows from the names of the classes and their attributes alone."""
    assert classify(chained(line["chain"])) == line["is"]


def test_the_record_is_whole() -> None:
    """Every failure of the four most used SDKs is recorded, unless Python itself raised."""
    for sdk in ("openai", "anthropic", "litellm-openai", "litellm-anthropic"):
        assert len([line for line in LINES if line["sdk"] == sdk]) >= 40, sdk
