"""Who could have written a file: what ssh and sudo ask before they do what it says."""

from __future__ import annotations

import errno
import os
import stat

_MOST_LINKS = 40


def distrusted(path: str, opened: os.stat_result) -> str | None:
    """Say why another user could have written the file at *path*; None: only root and we could.

    Looks at the file, which is *opened*, at every folder above it, and at every symbolic link on
    the way and what is above that.

    Raises:
        OSError: it cannot be looked at.
    """
    if not stat.S_ISREG(opened.st_mode):
        return f"{path} is not a regular file"
    place, found, links = "/", os.lstat("/"), 0
    names = os.path.join(os.getcwd(), path).split("/")[::-1]
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":  # of a folder that was looked at on the way
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
    if found.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to another user (uid {found.st_uid})"
    # Everybody may write to a link as to what it points to. In a folder such as /tmp nobody may
    # rename or remove what belongs to others.
    shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if stat.S_ISLNK(found.st_mode) or shared or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    if os.statvfs(place).f_flag & os.ST_RDONLY:  # as configurations in a container may be
        return None
    whose = "everybody" if found.st_mode & stat.S_IWOTH else f"its group (gid {found.st_gid})"
    return f"{place} can be written by {whose}"
