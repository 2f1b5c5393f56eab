"""Administer a fleet of LLM models kept as rows in a database.

    from modelctl import Fleet

    with Fleet.open() as fleet:
        print(fleet.count().active)

``__init__.pyi`` lists the public names. Each is loaded on first use: ``import modelctl`` alone
costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; loading typing takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.2.0"


def _modules() -> dict[str, str]:
    """Return the module of each public name, as the stub lists them."""
    import re

    stub = __loader__.get_data(f"{__file__}i").decode()
    return {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as", stub, re.M)}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*_modules()]
    # The other public names are classes. The import system asks here for submodules too.
    if (name == "classify" or name[:1].isupper()) and (module := _modules().get(name)):
        from importlib import import_module

        value = globals()[name] = getattr(import_module(module), name)
        return value
    raise AttributeError(f"module 'modelctl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*_modules(), "__version__"]
