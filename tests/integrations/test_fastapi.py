"""The lifespan and the dependencies for FastAPI, in a real application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from modelctl import Fleet, UsageError
from tests.fleets import ACTOR, configured, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytest.importorskip("fastapi")
pytestmark = pytest.mark.filterwarnings("ignore:.*httpx.*:DeprecationWarning")


def application(lifespan: Any) -> Any:
    """Return an application that counts models and records a call."""
    from fastapi import FastAPI

    from modelctl.integrations.fastapi import CurrentFleet, CurrentRecorder

    app = FastAPI(lifespan=lifespan)

    async def count(fleet: CurrentFleet) -> int:
        return (await fleet.count()).active

    async def ask(model: str, recorder: CurrentRecorder) -> str:
        recorder.success(model)
        return "hello"

    # The annotations are names of this function, which FastAPI could not look up by itself.
    for function in (count, ask):
        hints = {"fleet": CurrentFleet, "recorder": CurrentRecorder, "model": str}
        function.__annotations__ = {n: hints[n] for n in function.__annotations__ if n in hints}
    app.get("/count")(count)
    app.post("/ask")(ask)
    return app


def test_an_application(fleet: Fleet, fleet_url: str) -> None:
    """Requests share one fleet and one recorder; what waits is written when the application ends."""
    from fastapi.testclient import TestClient

    from modelctl.integrations.fastapi import fleet_lifespan

    put(fleet_url, "a", "b")
    lifespan = fleet_lifespan(configured(fleet_url), actor=ACTOR)
    with TestClient(application(lifespan)) as client:
        assert client.get("/count").json() == 2
        assert [client.post("/ask", params={"model": "a"}).json() for _ in range(3)] == [
            "hello"
        ] * 3
    assert fleet.show("a").success_count == 3


def test_a_lifespan_of_the_application(fleet: Fleet, fleet_url: str) -> None:
    """The application's own lifespan enters that of the fleet, and adds its own state."""
    from fastapi.testclient import TestClient

    from modelctl.integrations.fastapi import fleet_lifespan

    put(fleet_url, "a")
    steps = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with fleet_lifespan(configured(fleet_url))(app) as state:
            steps.append("begin")
            yield {**state, "mine": 1}
            steps.append("end")

    with TestClient(application(own)) as client:
        assert client.get("/count").json() == 1
    assert steps == ["begin", "end"]


def test_an_application_without_the_lifespan() -> None:
    """The error says what is missing."""
    from fastapi.testclient import TestClient

    with (
        TestClient(application(None)) as client,
        pytest.raises(UsageError, match="the application has no fleet"),
    ):
        client.get("/count")
