"""Ask a model by a command that the operator configured: exit 0 means that it is healthy."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from modelctl.model import FailureType
from modelctl.probe.results import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

_LARGEST_TAIL = 65536  # bytes of stderr that are kept
_POLL_SECONDS = 0.02


async def run(words: Sequence[str], environment: Mapping[str, str]) -> Failure | None:
    """Run the command, with *environment* added to ours; its process group ends with it."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # every exit code would look like 0
        return Failure(None, "SIGCHLD is ignored, so exit codes are lost")
    try:
        "".join(environment.values()).encode()  # a lone surrogate would become some other byte
        child = subprocess.Popen(  # noqa: S603 - what the operator configured
            words,
            bufsize=0,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except ValueError:
        return Failure(None, "the id cannot be an argument: NUL, or not Unicode")
    except OSError as exc:
        return Failure(None, f"cannot run {words[0]}: {exc.strerror}")
    return await _watch(child)


async def _watch(child: subprocess.Popen[bytes]) -> Failure | None:
    """Wait until *child* ends; kill its process group then, or if we are cancelled.

    asyncio's subprocesses are no help: they wait for every process that inherited stderr.
    """
    tail = b""
    with cast("IO[bytes]", child.stderr) as pipe:
        os.set_blocking(pipe.fileno(), False)
        try:
            while child.poll() is None:
                await asyncio.sleep(_POLL_SECONDS)
                tail = (tail + (pipe.read(_LARGEST_TAIL) or b""))[-_LARGEST_TAIL:]
        finally:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            # A process that changed its user cannot be killed by us.
            with suppress(subprocess.TimeoutExpired):
                child.wait(1)
        tail += pipe.read(_LARGEST_TAIL) or b""
    if child.returncode == 0:
        return None
    if len(tail) >= _LARGEST_TAIL:  # its first line is cut, and could show half of a key
        tail = tail[-_LARGEST_TAIL:].partition(b"\n")[2]
    lines = tail.decode(errors="replace").strip().splitlines()
    how = f"exit {child.returncode}" if child.returncode > 0 else f"signal {-child.returncode}"
    # With these codes a shell says that a program cannot be run, or does not exist.
    kind = None if child.returncode in (126, 127) else FailureType.UNKNOWN
    return Failure(kind, ": ".join([how, *lines[-1:]]))
