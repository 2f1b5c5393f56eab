"""The examples of the page for applications run as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from modelctl import AsyncFleet, Fleet
from tests import ROOT, waiting
from tests.failures.answers import Answers, serve
from tests.fleets import configured, put

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (ROOT / "docs" / "applications.md").read_text()
SECTION = PAGE[PAGE.index("## Integrations") : PAGE.index("## What an exception means")]
long = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def example(package: str, language: str = "python") -> str:
    """Return the example that imports a package, or has this line."""
    blocks: list[str] = re.findall(rf"```{language}\n(.+?)```", SECTION, re.DOTALL)
    return next(
        block for block in blocks if re.search(rf"^(from|import) {package}|{package}:", block)
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Answers]:
    """The server that answers as providers do."""
    with serve() as answers:
        yield answers


@pytest.mark.parametrize(
    ("package", "api", "model", "variable"),
    [
        ("openai", "openai", "openai/gpt-5", "OPENAI_BASE_URL"),
        ("anthropic", "anthropic", "anthropic/claude-opus-5", "ANTHROPIC_BASE_URL"),
        pytest.param("litellm", "openai", "openai/gpt-5", "OPENAI_BASE_URL", marks=long),
    ],
)
def test_sdks(
    server: Answers,
    fleet: Fleet,
    fleet_url: str,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    api: str,
    model: str,
    variable: str,
) -> None:
    """One call is one success of the model, in the database."""
    module = pytest.importorskip(package)
    if package == "litellm":  # it keeps the first logger of a class
        module.logging_callback_manager._reset_all_callbacks()
    put(fleet_url, model)
    monkeypatch.setenv(variable, server.url("good", api))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "k")
    monkeypatch.setattr(Fleet, "open", lambda: fleet)
    scope: dict[str, Any] = {}
    exec(example(package), scope)  # noqa: S102 - our own page
    if package == "litellm":  # it reports in a thread
        logger = scope["litellm"].callbacks[0]
        waiting.until(lambda: logger.reported.successes == 1)
    else:
        scope["client"].close()
    scope["recorder"].close()
    assert fleet.show(model).success_count == 1


@pytest.mark.filterwarnings("ignore:.*httpx.*:DeprecationWarning")
def test_fastapi(fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application counts and records."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    put(fleet_url, "m")
    opened = AsyncFleet(configured(fleet_url))
    monkeypatch.setattr(AsyncFleet, "open", lambda *_, **__: opened)
    scope: dict[str, Any] = {}
    exec(example("fastapi"), scope)  # noqa: S102 - our own page
    with TestClient(scope["app"]) as client:
        assert client.get("/models/count").json() == 1
        assert client.post("/ask?model=m").status_code == 200
    assert fleet.show("m").success_count == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_configuration_of_a_proxy() -> None:
    """LiteLLM's own loader finds the callback under the name of the example."""
    pytest.importorskip("litellm")
    import yaml
    from litellm.proxy.types_utils.utils import get_instance_fn

    name = yaml.safe_load(example("litellm_settings", "yaml"))["litellm_settings"]["callbacks"]
    assert type(get_instance_fn(name)).__name__ == "OutcomeLogger"
