"""The program: ``modelctl``, and ``python -m modelctl``."""

import os
import sys


def run() -> None:
    """Console entry point: Ctrl-C at any time ends it with 130 and no traceback."""
    try:
        import signal
    except BaseException:  # Ctrl-C, which may come as an error of the class that was being made
        os._exit(130)
    try:
        usual = signal.getsignal(signal.SIGINT)
        guarded = (
            usual is signal.default_int_handler
        )  # not ignored, as in the background of a shell
        # Nothing is at work yet, and an exception inside of an import may be printed by Python.
        if guarded:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        code = _version() if sys.argv[1:] in (["--version"], ["-V"]) else None
        if code is None:
            from modelctl import cli

            signal.signal(signal.SIGINT, usual)
            code = cli.run()
        if guarded:  # all is done; only the interpreter has to end
            signal.signal(signal.SIGINT, lambda *_: os._exit(code))
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
