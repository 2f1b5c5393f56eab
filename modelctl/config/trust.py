"""Whether another user could have written a file, checked as ssh and sudo check their files."""

from __future__ import annotations

import errno
import os
import stat

_MOST_LINKS = 40


def distrusted(path: str, opened: os.stat_result) -> str | None:
    """Return why another user could have written the file at *path*; None: only we and root could.

    Checks the file, every folder above it, every symbolic link on the way, and every folder above
    that. *opened*: the state of the file that was read.

    Raises:
        OSError: the state of a folder or a link cannot be read.
    """
    if not stat.S_ISREG(opened.st_mode):
        return f"{path} is not a regular file"
    place, found, links = "/", os.lstat("/"), 0
    names = os.path.join(os.getcwd(), path).split("/")[::-1]
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":  # the folder above was checked on the way down
            place = os.path.dirname(place)
            continue
        place = os.path.join(place, name)
        found = os.lstat(place)
        if wrong := _wrong(place, found):
            return wrong
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(place)
            place = "/" if target.startswith("/") else os.path.dirname(place)
            names += target.split("/")[::-1]
    if not os.path.samestat(found, opened):
        return f"{path} was changed while it was read"
    return None


def _wrong(place: str, found: os.stat_result) -> str | None:
    """Return why another user could change what is at *place*."""
    if found.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to another user (uid {found.st_uid})"
    # The mode of a link has no meaning: what it points to is checked. In a sticky folder such as /tmp
    # nobody can rename or remove files of other users.
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if stat.S_ISLNK(found.st_mode) or sticky or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    if (
        os.statvfs(place).f_flag & os.ST_RDONLY
    ):  # a configuration mounted into a container, for example
        return None
    whose = "everybody" if found.st_mode & stat.S_IWOTH else f"its group (gid {found.st_gid})"
    return f"{place} can be written by {whose}"
