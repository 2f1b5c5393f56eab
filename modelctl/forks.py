"""What a child process forgets after a fork: the connections and the locks of its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

_holders: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def watch(holder: Any, forget: Callable[[Any], None]) -> None:
    """Call *forget* with *holder* in each child of this process, as long as the holder lives.

    It drops connections without a word to their servers, and makes new locks: the thread that holds
    an old one does not live in the child.
    """
    _holders[holder] = forget


def _in_child() -> None:
    for holder, forget in list(_holders.items()):
        forget(holder)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_in_child)
