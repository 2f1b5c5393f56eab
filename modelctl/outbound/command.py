"""Run a command that the operator configured, and end its process group with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

_LARGEST_TAIL = 65536  # bytes of stderr that are kept
_POLL_SECONDS = 0.02
# The commands that are running; each is the leader of a process group.
_running: set[int] = set()


class CannotRunError(Exception):
    """The command was not run; the message says why."""


class TooMuchOutputError(Exception):
    """The command wrote more than it may."""


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: a signal), and the last line of its stderr."""

    code: int
    last_line: str

    @property
    def cannot_run(self) -> bool:
        """Whether a shell says that the program cannot be run, or does not exist."""
        return self.code in (126, 127)

    def __str__(self) -> str:
        how = f"exit {self.code}" if self.code >= 0 else f"signal {-self.code}"
        return f"{how}: {self.last_line}" if self.last_line else how


async def run(
    words: Sequence[str],
    environment: Mapping[str, str],
    content: bytes = b"",
    *,
    output: IO[bytes] | None = None,
    largest: int = 0,
) -> Ended:
    """Run the command, with *environment* added to ours and *content* on its stdin.

    Its process group ends with it, and with the task that waits for it. *output*: a file that gets
    its stdout, of at most *largest* bytes.

    Raises:
        CannotRunError: the program cannot be started.
        TooMuchOutputError: it wrote more than *largest* bytes, and was killed.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # every exit code would look like 0
        raise CannotRunError("SIGCHLD is ignored, so exit codes are lost")
    try:
        "".join(environment.values()).encode()  # a lone surrogate would become some other byte
        with TemporaryFile() as stdin:  # not a pipe, which would have to be filled meanwhile
            stdin.write(content)
            stdin.seek(0)
            child = subprocess.Popen(  # noqa: S603 - what the operator configured
                words,
                bufsize=0,
                env=os.environ | environment,
                stdin=stdin,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
    except ValueError:
        raise CannotRunError(
            "a word of the command cannot be an argument: NUL, or not Unicode"
        ) from None
    except OSError as exc:
        raise CannotRunError(f"cannot run {words[0]}: {exc.strerror}") from None
    return await _watch(child, output, largest)


async def _watch(child: subprocess.Popen[bytes], output: IO[bytes] | None, largest: int) -> Ended:
    """Wait until *child* ends; kill its process group then, or if we are cancelled.

    asyncio's subprocesses are no help: they wait for every process that inherited stderr.
    """
    tail = b""
    with cast("IO[bytes]", child.stderr) as pipe:
        os.set_blocking(pipe.fileno(), False)
        _running.add(child.pid)
        try:
            while child.poll() is None:
                await asyncio.sleep(_POLL_SECONDS)
                tail = (tail + (pipe.read(_LARGEST_TAIL) or b""))[-_LARGEST_TAIL:]
                _check_size(output, largest)
        finally:
            _kill(child.pid)
            _running.discard(child.pid)
            # A process that changed its user cannot be killed by us.
            with suppress(subprocess.TimeoutExpired):
                child.wait(1)
        tail += pipe.read(_LARGEST_TAIL) or b""
    _check_size(output, largest)
    if len(tail) >= _LARGEST_TAIL:  # its first line is cut, and could show half of a key
        tail = tail[-_LARGEST_TAIL:].partition(b"\n")[2]
    lines = tail.decode(errors="replace").strip().splitlines()
    return Ended(child.returncode, lines[-1] if lines else "")


def _check_size(output: IO[bytes] | None, largest: int) -> None:
    if output is not None and os.fstat(output.fileno()).st_size > largest:
        raise TooMuchOutputError


def kill_all() -> None:
    """Kill the commands that still run; for a process that ends without waiting for its threads."""
    for group in tuple(_running):
        _kill(group)


def _kill(group: int) -> None:
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)
