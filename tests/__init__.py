"""The tests of modelctl: a folder for each of its wings, and `faults` for whole scenarios.

Shared by all: `fleets` (a fleet and its tables),
`commands` (the program), `servers` (PostgreSQL and Redis), `conftest` (the fixtures).
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
