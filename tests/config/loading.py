"""Loading a configuration from a text and an environment."""

from __future__ import annotations

from pathlib import Path

from modelctl.config.config import Config

POSTGRES = "postgresql://host/db"


def load(home: Path, text: str | bytes | None = None, **environ: str) -> Config:
    """Load *text* as a named file below the environment."""
    file = None
    if text is not None:
        file = home / "named.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.load(file, environ={"HOME": str(home), **environ})


def database(url: str) -> Config:
    """Load with this database and nothing else."""
    return Config.load(environ={"HOME": "/nowhere", "MODELCTL_DATABASE_URL": url})


def redis(url: str) -> Config:
    """Load with this Redis beside a PostgreSQL without a password."""
    environ = {"HOME": "/nowhere", "MODELCTL_DATABASE_URL": POSTGRES, "MODELCTL_REDIS_URL": url}
    return Config.load(environ=environ)
