"""Typer alone: one command that says hello. Its help is plain, because drawing boxes costs more."""

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def hello() -> None:
    """Say hello."""
    print("hello")


def run() -> None:
    """Console entry point."""
    app()
