"""The program: ``modelctl``, and ``python -m modelctl``."""

import _signal  # type: ignore[import-not-found]  # built in: `signal` would have to be loaded
import os
import sys

# Ctrl-C while modules are loaded ends the process: nothing is at work yet, and Python may print an
# exception that is raised inside of an import. Set before all else; only the start of Python itself
# comes earlier. Not where SIGINT is ignored, as in the background of a shell.
_USUAL = _signal.getsignal(_signal.SIGINT)
_GUARDED = _USUAL is _signal.default_int_handler


def _on_interrupt(code: int) -> None:
    if _GUARDED:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(code))


_on_interrupt(130)


def run() -> None:
    """Console entry point: Ctrl-C at any time ends it with 130 and no traceback."""
    try:
        code = _version() if sys.argv[1:] in (["--version"], ["-V"]) else None
        if code is None:
            from modelctl.cli import main as cli

            _signal.signal(_signal.SIGINT, _USUAL)
            code = cli.run()
        _on_interrupt(code)  # all is done; only the interpreter has to end
    except KeyboardInterrupt:
        os._exit(130)
    sys.exit(code)


def _version() -> int | None:
    """Print the version, for which nothing is loaded; None: the command line says why it cannot."""
    from modelctl import __version__

    try:
        sys.stdout.write(f"modelctl {__version__}\n")
        sys.stdout.flush()
        return 0
    except (OSError, AttributeError):  # closed
        return None


if __name__ == "__main__":
    run()
