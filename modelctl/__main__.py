"""The entry point: ``modelctl``, and ``python -m modelctl``."""

import _signal  # type: ignore[import-not-found]  # built in: `signal` would have to be loaded
import os
import sys

# While modules are imported, Ctrl-C ends the process at once: no work has begun, and a
# KeyboardInterrupt inside of an import may be printed as a traceback. This must come before all other
# imports. If the caller ignores SIGINT, as a shell does for background jobs, it stays ignored.
_PYTHONS_HANDLER = _signal.getsignal(_signal.SIGINT)
_SIGINT_IS_IGNORED = _PYTHONS_HANDLER is not _signal.default_int_handler


def _exit_on_interrupt(code: int) -> None:
    if not _SIGINT_IS_IGNORED:
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(code))


_exit_on_interrupt(130)


def run() -> None:
    """Run the program; Ctrl-C at any time ends it with 130 and without a traceback."""
    try:
        code = _print_version() if sys.argv[1:] in (["--version"], ["-V"]) else None
        if code is None:
            from modelctl.cli import main as cli

            _signal.signal(_signal.SIGINT, _PYTHONS_HANDLER)
            code = cli.run()
        _exit_on_interrupt(code)  # the work is done, and only the interpreter has to end
    except KeyboardInterrupt:
        os._exit(130)
    sys.exit(code)


def _print_version() -> int | None:
    """Print the version without importing the command line; None: stdout cannot be written.

    Then the command line is run, which reports the error.
    """
    from modelctl import __version__

    try:
        sys.stdout.write(f"modelctl {__version__}\n")
        sys.stdout.flush()
        return 0
    except (OSError, AttributeError):  # stdout is full or closed
        return None


if __name__ == "__main__":
    run()
