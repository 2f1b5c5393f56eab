"""Every command: its name, and the function that carries it out.

To add a command, write a function in the file of its subject and add a line here. The docstring of
the function is the help of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class CommandGroup(NamedTuple):
    """Commands that are called by two words, such as ``cache show``; *help*: of the first word."""

    help: str
    commands: Mapping[str, str]


# "module:function", so that a module is imported only when its command runs, or for the help.
COMMANDS: dict[str, str | CommandGroup] = {
    "count": "count:count",
    "list": "read:list_models",
    "show": "read:show",
    "stats": "read:stats",
    "leaderboard": "read:leaderboard",
    "events": "history:events",
    "availability": "availability:availability",
    "add": "change:add",
    "remove": "change:remove",
    "disable": "change:disable",
    "enable": "change:enable",
    "undo": "history:undo",
    "record-success": "outcomes:record_success",
    "record-failure": "outcomes:record_failure",
    "record-batch": "outcomes:record_batch",
    "recover": "recovery:recover",
    "probe": "recovery:probe",
    "pause": "recovery:pause",
    "resume": "recovery:resume",
    "import": "catalog:import_models",
    "doctor": "upkeep:doctor",
    "metrics": "upkeep:metrics",
    "prune": "upkeep:prune",
    "cache": CommandGroup(
        "Look at the cache, clear it, deliver queued invalidations.",
        {
            "show": "count:cache_show",
            "clear": "count:cache_clear",
            "drain": "count:cache_drain",
        },
    ),
    "db": CommandGroup(
        "Create, repair or look at the schema.",
        {
            "upgrade": "upkeep:db_upgrade",
            "status": "upkeep:db_status",
            "detach": "upkeep:db_detach",
        },
    ),
    "config": CommandGroup(
        "Look at the configuration.",
        {"show": "upkeep:config_show"},
    ),
}
