"""Tell systemd how the service is: the protocol of sd_notify, datagrams to the socket that it names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Systemd:
    """The service manager that has started this process, if there is one."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take its variables out of *environ*: they are meant for this process, not for its children."""
        self._socket = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        for_us = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        watched = self._socket and for_us and microseconds.isdecimal()
        # Within this time it expects WATCHDOG=1; None: it does not.
        self.watchdog_seconds = int(microseconds) / 1e6 if watched else None

    def tell(self, *assignments: str) -> None:
        """Send assignments such as ``READY=1``. If that fails, the service goes on without."""
        if self._socket[:1] not in ("/", "@"):
            return
        # An abstract socket: its name begins with NUL, which is written as @.
        place = os.fsencode(self._socket)
        address = b"\0" + place[1:] if place[:1] == b"@" else place
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1.0)
            sender.sendto("\n".join(assignments).encode(errors="replace"), address)
