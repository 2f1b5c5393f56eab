"""Typer, SQLAlchemy Core and redis-py: UPDATE one model, DEL the count. No event, no outbox."""

import os

import redis
import sqlalchemy as sa
import typer

app = typer.Typer(rich_markup_mode=None)
models = sa.table(
    "models",
    *(
        sa.column(name)
        for name in (
            "id",
            "active",
            "auto_disabled",
            "disabled_at",
            "disabled_by",
            "disabled_reason",
            "updated_at",
        )
    ),
)


@app.command()
def disable(model_id: str, reason: str = "") -> None:
    """Switch one model off."""
    engine = sa.create_engine(os.environ["FLOOR_DATABASE_URL"])
    off = {"active": False, "auto_disabled": False, "disabled_by": "me", "disabled_reason": reason}
    now = {"disabled_at": sa.func.now(), "updated_at": sa.func.now()}
    with engine.begin() as connection:
        connection.execute(sa.update(models).where(models.c.id == model_id).values(off | now))
    with redis.Redis.from_url(os.environ["FLOOR_REDIS_URL"], protocol=2) as client:
        client.delete("db:models:count:active")
    print(model_id)


def run() -> None:
    """Console entry point."""
    app()
