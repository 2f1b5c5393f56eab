"""Typer and redis-py: GET the count, on a connection with the settings that modelctl uses."""

import os

import redis
import typer
from redis.backoff import NoBackoff
from redis.retry import Retry

app = typer.Typer(rich_markup_mode=None)


@app.command()
def count() -> None:
    """Print the cached count."""
    url = os.environ["FLOOR_REDIS_URL"]
    how = {"protocol": 2, "legacy_responses": False, "driver_info": None, "socket_timeout": 0.5}
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **how) as client:
        print(int(client.get("db:models:count:active")))


def run() -> None:
    """Console entry point."""
    app()
