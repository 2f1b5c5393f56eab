"""A fleet and a recorder for an application of FastAPI or Starlette, open as long as it runs.

app = FastAPI(lifespan=fleet_lifespan())

@app.get("/models/count")
def count(fleet: CurrentFleet) -> int:
    return fleet.count().active
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

# FastAPI reads annotations when the application starts, so these are imported now.
from modelctl.aio.fleet import AsyncFleet
from modelctl.errors import UsageError
from modelctl.recorder.recorder import Recorder

if TYPE_CHECKING:
    from pathlib import Path

    from modelctl.config.config import Config

_FLEET, _RECORDER = "modelctl_fleet", "modelctl_recorder"


def fleet_lifespan(
    config: Config | str | Path | None = None, *, actor: str | None = None
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that opens a fleet and its recorder, and closes them when the application ends.

    The parameters are those of `AsyncFleet.open`. Each worker process has its own. To have a lifespan of your
    own as well, enter this one in it, and yield its state::

        async with fleet_lifespan()(app) as state:
            yield state
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, Any]]:
        async with AsyncFleet.open(config, actor=actor) as fleet:
            # Closing the fleet writes what waits in the recorder.
            yield {_FLEET: fleet, _RECORDER: fleet.recorder()}

    return lifespan


def _of(connection: HTTPConnection, name: str) -> Any:
    found = getattr(connection.state, name, None)
    if found is None:
        raise UsageError(
            "the application has no fleet", hint="write FastAPI(lifespan=fleet_lifespan())"
        )
    return found


def get_fleet(connection: HTTPConnection) -> AsyncFleet:
    """Return the fleet of the application; a dependency."""
    fleet: AsyncFleet = _of(connection, _FLEET)
    return fleet


def get_recorder(connection: HTTPConnection) -> Recorder:
    """Return the recorder of the application; a dependency. Its methods wait for nothing."""
    recorder: Recorder = _of(connection, _RECORDER)
    return recorder


CurrentFleet = Annotated[AsyncFleet, Depends(get_fleet)]
CurrentRecorder = Annotated[Recorder, Depends(get_recorder)]
