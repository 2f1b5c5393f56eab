"""The program: ``modelctl``, and ``python -m modelctl``."""

import sys


def run() -> None:
    """Console entry point. The version needs nothing of what the commands load."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from modelctl import __version__

        try:
            sys.stdout.write(f"modelctl {__version__}\n")
            sys.stdout.flush()
            return
        except (OSError, AttributeError):  # closed: the command line says so
            pass
    from modelctl import cli

    cli.run()


if __name__ == "__main__":
    run()
