"""Every command: its name, and the function that carries it out.

To add a command, write a function in the file of its subject, in `commands` or in `admin`, and add a line here. The docstring of
the function is the help of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class CommandGroup(NamedTuple):
    """Commands that are called by two words, such as ``cache show``; *help*: of the first word."""

    help: str
    commands: Mapping[str, str]


# "wing.module:function", so that a module is imported only when its command runs, or for the help.
COMMANDS: dict[str, str | CommandGroup] = {
    "count": "commands.count:count",
    "list": "commands.read:list_models",
    "show": "commands.read:show",
    "stats": "commands.read:stats",
    "leaderboard": "commands.read:leaderboard",
    "events": "commands.history:events",
    "availability": "commands.availability:availability",
    "add": "commands.change:add",
    "remove": "commands.change:remove",
    "disable": "commands.change:disable",
    "enable": "commands.change:enable",
    "edit": "commands.edit:edit",
    "rename": "commands.edit:rename",
    "undo": "commands.history:undo",
    "record-success": "commands.outcomes:record_success",
    "record-failure": "commands.outcomes:record_failure",
    "record-batch": "commands.outcomes:record_batch",
    "recover": "commands.recovery:recover",
    "probe": "commands.recovery:probe",
    "pause": "commands.recovery:pause",
    "resume": "commands.recovery:resume",
    "import": "commands.catalog:import_models",
    "sync": "admin.sync:sync",
    "formats": "admin.sync:formats",
    "ignore": "commands.catalog:ignore",
    "export": "admin.backup:export",
    "restore": "admin.backup:restore",
    "doctor": "admin.installation:doctor",
    "metrics": "admin.monitoring:metrics",
    "watch": "admin.watch:watch",
    "prune": "admin.housekeeping:prune",
    "notify": "admin.notify:notify",
    "run": "admin.jobs:run",
    "cache": CommandGroup(
        "Look at the cache, clear it, deliver queued invalidations.",
        {
            "show": "commands.count:cache_show",
            "clear": "commands.count:cache_clear",
            "drain": "commands.count:cache_drain",
        },
    ),
    "db": CommandGroup(
        "Create, repair, look at or remove the schema.",
        {
            "upgrade": "admin.installation:db_upgrade",
            "status": "admin.installation:db_status",
            "schema": "admin.installation:db_schema",
            "detach": "admin.installation:db_detach",
            "uninstall": "admin.installation:db_uninstall",
        },
    ),
    "config": CommandGroup(
        "Look at the configuration; print examples.",
        {
            "show": "admin.installation:config_show",
            "example": "admin.installation:config_example",
        },
    ),
    "completion": "admin.installation:completion",
}
