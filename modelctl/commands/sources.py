"""The commands about the sources of catalogues: formats."""

from __future__ import annotations

import typer

from modelctl.arguments.invocation import print_view
from modelctl.arguments.options import Output


def formats(ctx: typer.Context, output: Output = None) -> None:
    """Print the formats of catalogues that import and sync read, with an example of each."""
    from modelctl.views.sources import formats_view

    print_view(ctx, formats_view(), output)
