"""What the configuration file and the environment say, before it becomes a `Config`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelctl.config.sections import (
    FILE_SECTIONS,
    KEYS,
    NAMED_SECTIONS,
    SECTIONS,
    TRUSTED_SECTIONS,
)
from modelctl.errors import InvalidConfigError, UsageError, clean
from modelctl.model import storable

SYSTEM_FILE = Path("/etc/modelctl/config.toml")
_LARGEST_FILE = 1_000_000
# The variables that Kubernetes sets in a container for a service called modelctl-redis.
_KUBERNETES = "_(SERVICE_(HOST|PORT)|PORT_[0-9]+_(TCP|UDP))(_|$)"


def home_folder(environ: Mapping[str, str], variable: str, below: str) -> Path | None:
    """Return a base folder of the XDG specification, which says to ignore a relative path."""
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home, below) if os.path.isabs(home) else None


# ── The file ──


def read_file(
    path: str | Path | None, environ: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    """Find the file and return it with its contents.

    Raises:
        InvalidConfigError: the file cannot be read, is not TOML, or could have been written by
            another user although it may run commands.
    """
    named = path if path is not None else environ.get("MODELCTL_CONFIG") or None
    home = home_folder(environ, "XDG_CONFIG_HOME", ".config")
    usual = [home / "modelctl" / "config.toml"] if home else []
    for file in [*usual, SYSTEM_FILE] if named is None else [Path(named)]:
        try:
            with file.open("rb") as stream:
                data = stream.read(_LARGEST_FILE + 1)
                opened = os.fstat(stream.fileno())
        except (OSError, ValueError) as exc:
            if named is None and isinstance(exc, FileNotFoundError | NotADirectoryError):
                continue
            why = getattr(exc, "strerror", None) or exc
            raise InvalidConfigError(
                f"cannot read the file {file}: {why}",
                hint="make the file readable, or name another with --config or MODELCTL_CONFIG",
            ) from exc
        tables = _parse(file, data)
        if not TRUSTED_SECTIONS.isdisjoint(tables):
            _check_trust(file, opened)
        return file, tables
    return None, {}


def _parse(file: Path, data: bytes) -> dict[str, Any]:
    import tomllib

    hint = "correct the file; modelctl config example prints every key"
    if len(data) > _LARGEST_FILE:
        raise InvalidConfigError(f"{file} is too large for a configuration", hint=hint)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        wrong = f"is not UTF-8 at byte {exc.start}"
    except RecursionError:
        wrong = "is nested too deeply"
    except ValueError as exc:
        wrong = f"is not valid TOML: {exc}"
    # Not in the handlers: an exception in the chain may hold the text of the file with a password.
    raise InvalidConfigError(f"{file} {wrong}", hint=hint)


def _check_trust(file: Path, opened: os.stat_result) -> None:
    from modelctl.config.trust import distrusted

    try:
        wrong = distrusted(str(file), opened)
    except OSError as exc:
        wrong = f"its folders cannot be checked: {exc.strerror}"
    if wrong:
        hint = "make it and all folders above it belong to you or root: chown, chmod go-w"
        if wrong.endswith("is not a regular file"):
            hint = "write it into a file that only you or root can change"
        raise InvalidConfigError(f"the file {file} may run commands, and {wrong}", hint=hint)


# ── Names ──


def check_names(file: Path | None, tables: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Check that modelctl knows every section and key of *file*, and every variable that looks like its own.

    Raises:
        InvalidConfigError: names the unknown name and the known name that is most similar.
    """
    known_sections = (*SECTIONS, *NAMED_SECTIONS, *FILE_SECTIONS)
    for name, table in tables.items():
        if name not in known_sections:
            what = "section [{}]" if isinstance(table, dict) else "key {} outside a section"
            hint = f"the nearest section is [{_closest(name, known_sections)}]"
            raise InvalidConfigError(f"unknown {what.format(name)} in {file}", hint=hint)
        if not isinstance(table, dict):
            shown = f"[{name}.NAME]" if name in NAMED_SECTIONS else f"[{name}]"
            hint = f"write {shown} on a line of its own, and its keys below"
            raise InvalidConfigError(f"{name} in {file} must be a section", hint=hint)
        if name in SECTIONS:
            _check_keys(file, name, table)
    variables = [key.variable for key in KEYS]
    variables += [f"{key.variable}_FILE" for key in KEYS if key.secret]
    known = {*variables, "MODELCTL_CONFIG", "MODELCTL_ACTOR", *_named_variables(tables)}
    for name in sorted(environ):
        if name.startswith("MODELCTL_") and name not in known:
            _check_variable(name, environ[name], variables)


def _named_variables(tables: Mapping[str, Any]) -> Iterator[str]:
    """Give the variables that sections of the file name as those of a secret."""
    named = [tables[word] for word in NAMED_SECTIONS if isinstance(tables.get(word), dict)]
    for table in (tables.get("notify"), *(table for group in named for table in group.values())):
        if isinstance(table, dict):
            yield from (str(v) for key, v in table.items() if key.endswith("_env"))


def _check_keys(file: Path | None, section: str, table: Mapping[str, Any]) -> None:
    keys = [str(key) for key in KEYS]
    for name in table:
        if f"{section}.{name}" not in keys:
            elsewhere = [str(key) for key in KEYS if key.field.name == name]
            near = elsewhere[0] if elsewhere else _closest(f"{section}.{name}", keys)
            hint = f"the nearest is {near}"
            raise InvalidConfigError(f"unknown key {section}.{name} in {file}", hint=hint)


def _check_variable(name: str, value: str, known: list[str]) -> None:
    from modelctl.config.spelling import is_misspelt

    # A misspelt section is an error too: without its URL another fleet would be used.
    sections = (*SECTIONS, *FILE_SECTIONS)
    of_section = name.startswith(tuple(f"MODELCTL_{section.upper()}_" for section in sections))
    by_kubernetes = re.search(_KUBERNETES, name) or value.startswith(("tcp://", "udp://"))
    if (of_section or is_misspelt(name, known)) and not by_kubernetes:
        hint = f"the nearest is {_closest(name, known)}"
        for section in FILE_SECTIONS:
            if name.startswith(f"MODELCTL_{section.upper()}_"):
                hint = f"only the file sets [{section}]; url_env or token_env there may name it"
        raise InvalidConfigError(f"unknown environment variable {name}", hint=hint)


def _closest(name: str, known: Iterable[str]) -> str:
    # Loaded only for a fault.
    from modelctl.config.spelling import closest_name

    return closest_name(name, known)


# ── Values ──


def read_values(
    file: Path | None, tables: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return what was set, by section and key, and where the value of each key comes from.

    Raises:
        InvalidConfigError: a value is wrong.
    """
    environ = _with_secrets(environ)
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins = {}
    for key in KEYS:
        name, section = key.field.name, values[key.section]
        where, origins[str(key)] = "", "default"
        try:
            # Check the value in the file even if the environment overrides it: otherwise the error
            # would appear only when the variable is unset.
            if name in tables.get(key.section, {}):
                where, origins[str(key)] = f"{key} in {file}", "file"
                section[name] = key.read(tables[key.section][name])
            # An empty database URL is a variable that was forgotten; an empty Redis URL means no Redis.
            forgotten = str(key) == "database.url" and not environ.get(key.variable, "").strip()
            if key.variable in environ and not forgotten:
                variable = key.variable + "_FILE" * (f"{key.variable}_FILE" in environ)
                where, origins[str(key)] = variable, f"environment {variable}"
                section[name] = key.read_text(environ[key.variable])
        except UsageError as exc:
            raise InvalidConfigError(f"{where}: {exc.message}", hint=exc.hint) from None
    return values, origins


def _with_secrets(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Add the contents of the files that ``MODELCTL_DATABASE_URL_FILE`` and its like name.

    Docker and Kubernetes pass a secret as a file.
    """
    found = dict(environ)
    for variable in (key.variable for key in KEYS if key.secret):
        named = f"{variable}_FILE"
        if not (path := environ.get(named, "").strip()):
            found.pop(named, None)
            continue
        if environ.get(variable, "").strip():
            raise InvalidConfigError(f"{variable} and {named} are both set", hint="unset one")
        try:
            with Path(path).open("rb") as stream:
                data = stream.read(_LARGEST_FILE)
            found[variable] = data.decode().strip()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "it is not text"
            raise InvalidConfigError(
                f"{named}: cannot read the file {clean(path)}: {why}",
                hint="name a file that holds only the URL",
            ) from None
        if not found[variable]:
            raise InvalidConfigError(
                f"{named}: the file {clean(path)} is empty",
                hint="name a file that holds only the URL",
            )
    return found


# ── The actor ──


def default_actor(environ: Mapping[str, str] | None = None) -> str:
    """Return the actor of a command without --actor: MODELCTL_ACTOR, else user@host.

    Under sudo the user is the one who called it: alice@host (sudo).
    """
    environ = os.environ if environ is None else environ
    actor = environ.get("MODELCTL_ACTOR")
    if not actor:
        user = environ.get("LOGNAME") or environ.get("USER") or _user_name()
        # The same as socket.gethostname(), without loading the socket module.
        actor = f"{user}@{os.uname().nodename}"
        # Not root: a script of root that drops its rights is not a person behind another user.
        caller = environ.get("SUDO_USER")
        if caller and caller not in (user, "root"):
            actor = f"{caller}@{os.uname().nodename} (sudo)"
    return storable(actor, 200)


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
