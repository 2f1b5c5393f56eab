"""Files that a command writes: beside their place, then renamed, so that no reader sees half of one."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from modelctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


@contextmanager
def replacing(name: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of *name* at the end, unless there is an error.

    A file that was there keeps its mode; a new one has that of the umask, or, if *private*,
    only its owner can read it. A link stays a link.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        place = os.path.realpath(name)
        if os.path.isdir(place) or not os.path.basename(name):
            raise UsageError(f"cannot write {name}: it is a folder")
        if os.path.exists(place) and not os.path.isfile(place):  # a device would be lost
            raise UsageError(f"cannot write {name}: it is not a regular file")
        beside = f"{place}.{secrets.token_hex(4)}.tmp"
        rights = 0o600 if private else 0o666
        with open(beside, "xb", opener=lambda path, flags: os.open(path, flags, rights)) as file:
            try:
                yield file
                file.flush()
                with suppress(FileNotFoundError):
                    os.chmod(beside, os.stat(place).st_mode & 0o777)
                os.fsync(file.fileno())
                os.replace(beside, place)
            except BaseException:
                with suppress(OSError):
                    os.unlink(beside)
                raise
    except OSError as exc:
        raise UsageError(f"cannot write {name}: {exc.strerror}") from exc
    except ValueError:  # a NUL character, or a lone surrogate that stands for no byte
        raise UsageError(f"'{name}' is not a file name") from None
