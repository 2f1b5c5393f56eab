"""The options that select models, and the question before many of them change."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modelctl import streams
from modelctl.arguments.completion import complete_source, complete_tag
from modelctl.arguments.options import Provider
from modelctl.errors import RefusedError, UsageError
from modelctl.model import ModelStatus, numbered

if TYPE_CHECKING:
    from modelctl.models.results import Changes
    from modelctl.tables.selection import Selection

    Chosen = Selection | None
else:
    Chosen = Any  # Typer evaluates the annotations of a command, and the class loads SQLAlchemy

_T = TypeVar("_T")

# The options, each with its default. Their names are those of the fields of `Selection`.
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "provider": (Provider, None),
    "status": (
        Annotated[ModelStatus | None, typer.Option(help="Only models with this status.")],
        None,
    ),
    "match": (
        Annotated[
            str | None,
            typer.Option(
                metavar="PATTERN",
                help="Only models whose whole id matches, case-sensitive: 'gpt-4*'; * is any text, "
                "? any character, [a-z] one of these, [!a-z] none of these.",
            ),
        ],
        None,
    ),
    "timed": (
        Annotated[
            bool,
            typer.Option("--timed", help="Only models that are disabled with --for or --until."),
        ],
        False,
    ),
    "by": (
        Annotated[
            str | None,
            typer.Option(
                metavar="NAME", help="Only models that NAME (or 'health rule') switched off."
            ),
        ],
        None,
    ),
    "tag": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="TAG",
                help="Only models with this tag; given several times: with all of them.",
                autocompletion=complete_tag,
            ),
        ],
        None,
    ),
    "source": (
        Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Only models that sync found in this source; '': in none.",
                autocompletion=complete_source,
            ),
        ],
        None,
    ),
    "gone": (
        Annotated[
            bool, typer.Option("--gone", help="Only models that their source no longer offers.")
        ],
        False,
    ),
    "all": (Annotated[bool, typer.Option("--all", help="All models.")], False),
}
# The ids that the question names.
_MAX_NAMED = 10


def selects(
    command: Callable[..., _T], *, own: tuple[str, ...] = (), with_ids: tuple[str, ...] = ()
) -> Callable[..., _T]:
    """Give a command the options that select models.

    *command* gets them as its parameter ``selection``; None if none of them was given. If it has a
    parameter ``model_ids``, ids and a selection exclude each other. *own*: options of these names
    mean something else in this command; *with_ids*: only where ids are given.
    """

    options = {name: kind for name, kind in _OPTIONS.items() if name not in own}

    @functools.wraps(command)
    def call(ctx: typer.Context, **given: Any) -> _T:
        from modelctl.tables.selection import Selection

        chosen = {name: given.pop(name) for name in options}
        for name in with_ids:
            value = chosen[name]
            given[name], chosen[name] = (value, None) if given["model_ids"] else (None, value)
        selection = Selection(**chosen | {"tag": tuple(chosen.get("tag") or ())})
        if not selection.given():
            if given.get("model_ids", "none are needed") is None:
                hint = "give ids, or a selection such as --provider or --match"
                raise UsageError("no model is named", hint=hint)
            return command(ctx, selection=None, **given)
        if given.get("model_ids"):
            raise UsageError("give either ids or a selection (--provider, --match, ...), not both")
        return command(ctx, selection=selection, **given)

    # Typer reads the parameters of a command from these two.
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["selection"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    options |= {name: (parameters.pop(name).annotation, None) for name in with_ids}
    selecting = [
        inspect.Parameter(name, keyword, default=default, annotation=option)
        for name, (option, default) in options.items()
    ]
    ids = parameters.pop("model_ids", None)
    first = [parameters.pop("ctx"), *([ids] if ids else [])]
    rest = (parameter.replace(kind=keyword) for parameter in parameters.values())
    call.__signature__ = inspect.Signature([*first, *selecting, *rest])  # type: ignore[attr-defined]
    annotations = {
        name: kind for name, kind in command.__annotations__.items() if name != "selection"
    }
    call.__annotations__ = annotations | {name: option for name, (option, _) in options.items()}
    return call


def confirm(
    change: Callable[..., Changes],
    limit_to: int | None,
    verb: str,
    *,
    always: bool = False,
    warn: Callable[[], None] = lambda: None,
) -> int | None:
    """Show what a change of a selection would do, and ask; return how many models may change.

    *change* takes ``limit_to`` and ``dry_run``. *verb*: of the question, as in "disable". *always*: ask
    also about one model. *warn* says what a person should know before the answer.

    Raises:
        RefusedError: the answer is no.
        UsageError: nobody can be asked.
    """
    preview = change(limit_to=limit_to, dry_run=True)
    if not streams.can_ask():
        if always or len(preview.changes) > 1:
            raise UsageError(
                f"{numbered(len(preview.changes))} would be changed or kept, and nobody can be asked;"
                " nothing was changed",
                hint="use --yes to change them, --dry-run to see what would change",
            )
        return limit_to
    changing, shown = _show(preview, verb)
    if not changing or (changing == 1 and not always):
        return limit_to
    streams.say(*shown)
    warn()
    if not streams.ask(f"{verb.capitalize()} {numbered(changing)}? [y/N] "):
        raise RefusedError("not confirmed; nothing was changed")
    return changing  # as the limit: if the selection has more models by then, none changes


def _show(preview: Changes, verb: str) -> tuple[int, list[str]]:
    """Return how many models would change, and the lines that say which, and which stay."""
    named: list[str] = []
    stay: dict[str, int] = {}
    changing = 0
    for change in preview.changes:
        if change.changed:
            changing += 1
            if changing <= _MAX_NAMED:
                named.append(f"  {change.id} ({change.before})")
            continue
        note = getattr(change, "note", None)
        why = "has these values" if hasattr(change, "old") else f"already {change.after}"
        why += f", {note}" if note else ""
        stay[why] = stay.get(why, 0) + 1
    if changing > _MAX_NAMED:
        named.append(f"  and {changing - _MAX_NAMED} more")
    stays = [
        f"{numbered(number)} {'stays' if number == 1 else 'stay'}: {why}"
        for why, number in stay.items()
    ]
    return changing, [f"{verb} {numbered(changing)}:", *named, *stays]
