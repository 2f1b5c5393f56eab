"""The options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from modelctl.arguments.completion import complete_id, complete_provider
from modelctl.output.formats import OutputFormat

DURATION_EXAMPLES = "90s, 15m, 2h30m, 2d, 1w"

ModelId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id of a model.", autocompletion=complete_id),
]
NewModelId = Annotated[str, typer.Argument(metavar="ID", help="The id of the new model.")]
ModelIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...",
        help="The ids of models; or select models with the options below.",
        autocompletion=complete_id,
    ),
]
Output = Annotated[
    OutputFormat | None,
    typer.Option(
        "-o",
        "--output",
        help="The output format. Default: a table on a terminal, tsv without a header in a pipe. "
        "wide: a table that may be wider than the terminal.",
    ),
]
Actor = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Who makes the change. Default: MODELCTL_ACTOR, else user@host "
        "(under sudo the user who called it).",
    ),
]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Why; stored in the history and shown.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would happen, but change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Only models of this provider.",
        autocompletion=complete_provider,
    ),
]
LimitTo = Annotated[
    int | None,
    typer.Option(
        "--limit-to",
        metavar="N",
        min=0,
        help="With these options: refuse (exit 8) if more than N models would change.",
    ),
]
Source = Annotated[str, typer.Argument(metavar="FILE|-", help="A file, or - for standard input.")]


def raw_option() -> typer.core.TyperOption:
    """Return --raw, which every command with -o has; no function takes it as a parameter."""

    def set_raw(ctx: Any, _: Any, value: bool) -> None:
        ctx.obj.raw = value

    return typer.core.TyperOption(
        param_decls=["--raw"],
        is_flag=True,
        default=False,
        expose_value=False,
        callback=set_raw,
        help="In CSV: no apostrophe before a cell that a spreadsheet would run (= + - @).",
    )
