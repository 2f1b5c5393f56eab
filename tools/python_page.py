"""docs/python.md: every public name of the library, with its docstring.

The sources are read, not the objects: these are wrapped, and Python versions show them differently.
`tools/by_hand/python.md` is the beginning of the page.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from enum import Enum
from pathlib import Path
from typing import Any

import modelctl
from tools.markdown import made_from

BY_HAND = Path(__file__).parent / "by_hand" / "python.md"
PACKAGE = Path(modelctl.__file__).parent
FIRST = ("Fleet", "AsyncFleet", "Recorder", "Call", "classify", "Selection", "Outcome", "Config")


def page() -> str:
    """Return the whole page."""
    names = {name: getattr(modelctl, name) for name in _names()}
    groups: dict[str, list[str]] = {
        "To work with": [*FIRST],
        "Results": [],
        "Values": [],
        "Errors": [],
    }
    for name, value in names.items():
        if name not in FIRST:
            groups[_group(value)].append(name)
    contents = [
        f"- **{group}**: {', '.join(f'[`{name}`](#{name.lower()})' for name in members)}"
        for group, members in groups.items()
    ]
    blocks = [BY_HAND.read_text().strip(), "\n".join(contents)]
    for members in groups.values():
        for name in members:
            blocks += [f"## {name}", *_described(name, names[name])]
    return made_from("the docstrings") + "\n" + "\n\n".join(blocks) + "\n"


def _names() -> list[str]:
    return [name for name in dir(modelctl) if not name.startswith("_")]


def _group(value: Any) -> str:
    if issubclass(value, Exception):
        return "Errors"
    return "Values" if issubclass(value, Enum) else "Results"


def _described(name: str, value: Any) -> list[str]:
    node: Any = _definition(value)
    if isinstance(node, ast.FunctionDef):
        return [_signature(node, node.name), *_docstring(node)]
    blocks = _docstring(node)
    if issubclass(value, Exception):
        return [
            *blocks,
            f"Exit code {value.exit_code.value}; `code` is `{value.exit_code.name.lower()}`.",
        ]
    if fields := _fields(value):
        blocks.append("```python\n" + "\n".join(fields) + "\n```")
    if issubclass(value, Enum):
        return blocks
    for method in _methods(value):
        decorators = {ast.unparse(each) for each in method.decorator_list}
        title = f"{name}.{method.name}"
        blocks += [f"### {title}"]
        if "property" in decorators:
            blocks += [
                f"```python\n{title}: {ast.unparse(method.returns)}\n```" if method.returns else ""
            ]
        else:
            of = (
                name
                if decorators & {"classmethod", "staticmethod"}
                else re.sub(".*(?=[A-Z])", "", name).lower()
            )
            blocks.append(_signature(method, f"{of}.{method.name}"))
        blocks += _docstring(method)
    return [block for block in blocks if block]


# ── Sources ──


@functools.cache
def _tree(module: str) -> tuple[ast.Module, list[str]]:
    file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    return ast.parse(file.read_text()), file.read_text().splitlines()


def _definition(value: Any) -> ast.AST:
    tree, _ = _tree(value.__module__)
    return next(node for node in tree.body if getattr(node, "name", None) == value.__name__)


def _own_classes(value: Any) -> list[Any]:
    return [base for base in value.__mro__ if base.__module__.startswith("modelctl")]


def _methods(value: Any) -> list[Any]:
    """Return the public methods with a docstring, also the inherited ones, in the order of the classes."""
    found: dict[str, Any] = {}
    for base in sorted(
        _own_classes(value), key=lambda base: base.__name__ == "OpenedFleet", reverse=True
    ):
        for node in _definition(base).body:  # type: ignore[attr-defined]  # a class
            is_method = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_method and not node.name.startswith("_") and ast.get_docstring(node):
                found.setdefault(node.name, node)
    return [*found.values()]


def _fields(value: Any) -> list[str]:
    """Return a line for each field of a class or member of an enum, with the comments above it."""
    lines: dict[str, list[str]] = {}
    for base in reversed(_own_classes(value)):
        _, source = _tree(base.__module__)
        for node in _definition(base).body:  # type: ignore[attr-defined]  # a class
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                plain = node.value is None or not isinstance(node.value, ast.Call)
                text = _source(node) if plain else ast.unparse(node).partition(" = ")[0]
                name = ast.unparse(node.target)
            elif isinstance(node, ast.Assign) and issubclass(value, Enum):
                text, name = _source(node), ast.unparse(node.targets[0])
            else:
                continue
            if name.startswith("_"):
                continue
            above: list[str] = []
            at = node.lineno - 2
            while source[at].strip().startswith("#"):
                above.insert(0, source[at].strip())
                at -= 1
            lines[name] = [*above, text]
    return [line for each in lines.values() for line in each]


def _signature(node: Any, name: str) -> str:
    """Return the call of a function, in one line or with a line for each parameter."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(parameters) - len(arguments.defaults)) + arguments.defaults
    texts = [_parameter(each, default) for each, default in zip(parameters, defaults, strict=True)]
    if parameters and parameters[0].arg in ("self", "cls"):
        texts.pop(0)
    if arguments.vararg:
        texts.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        texts.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    texts += [_parameter(each, default) for each, default in pairs]
    if arguments.kwarg:
        texts.append("**" + _parameter(arguments.kwarg, None))
    ending = f") -> {ast.unparse(node.returns)}" if node.returns else ")"
    kind = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    line = f"{kind}{name}({', '.join(texts)}{ending}"
    if len(line) > 88:
        line = "\n".join([f"{kind}{name}(", *(f"    {text}," for text in texts), ending])
    return f"```python\n{line}\n```"


def _source(node: ast.AST) -> str:
    return re.sub(r"'([^']*)'", r'"\1"', ast.unparse(node))


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    return text if default is None else f"{text} = {_source(default)}"


# ── Docstrings ──


def _docstring(node: Any) -> list[str]:
    """Return the paragraphs of a docstring, as Markdown."""
    text = inspect.cleandoc(ast.get_docstring(node) or "").replace("``", "`")
    blocks = []
    for part in re.split(r"\n\s*\n", text):
        if part.startswith(("Raises:", "Yields:", "Returns:")):
            blocks += _errors(part)
        else:
            blocks.append(part)
    return blocks


def _errors(part: str) -> list[str]:
    """Return what a function raises, as a list."""
    title, *lines = part.split("\n")
    items: list[str] = []
    for line in lines:
        if re.match(r"    \w+:", line):
            items.append(re.sub(r"^    (\w+):", r"- `\1`:", line))
        else:
            items.append("  " + line.strip())
    return [title, "\n".join(items)]
