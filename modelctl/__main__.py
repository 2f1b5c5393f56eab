"""``python -m modelctl``."""

from modelctl.cli import run

if __name__ == "__main__":
    run()
