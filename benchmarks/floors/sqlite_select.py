"""Typer and the standard library's sqlite3: SELECT the cached count."""

import os
import sqlite3

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def count() -> None:
    """Print the cached count."""
    connection = sqlite3.connect(os.environ["FLOOR_SQLITE_FILE"])
    sql = "SELECT value FROM modelctl_cache WHERE key = 'count:active'"
    print(connection.execute(sql).fetchone()[0])
    connection.close()


def run() -> None:
    """Console entry point."""
    app()
