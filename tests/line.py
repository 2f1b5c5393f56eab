"""A line to a server that goes silent, gets slow or is cut in the middle of an answer."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Line:
    """Passes bytes to a server and back, until *at* bytes came from one side; then *how*.

    ``stop``: nothing more passes. ``drip``: a byte at a time, ten a second. ``delay``: the rest
    comes a moment later. ``cut``: the connection ends.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self.side, self.at, self.how = "", 0, ""
        self.passed = {"up": 0, "down": 0}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """End all."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)  # it may have accepted a connection just now
        for it in self._sockets:
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = socket.create_connection(("127.0.0.1", self._server))
                self._sockets.append(server)
                for ends in (("up", client, server), ("down", server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, side: str, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if side == self.side and self.passed[side] + len(data) > self.at:
                    keep = max(0, self.at - self.passed[side])
                    target.sendall(data[:keep])
                    self.passed[side] += keep
                    data = data[keep:]
                    if self.how == "cut":
                        break
                    if self.how == "stop":
                        return
                    if self.how == "delay":
                        time.sleep(0.3)
                    if self.how == "drip":
                        for number in range(len(data)):
                            time.sleep(0.1)
                            target.sendall(data[number : number + 1])
                        continue
                target.sendall(data)
                self.passed[side] += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
