"""The tests of modelctl: a folder for each of its wings.

Besides, `faults` has whole scenarios, and `packaging` checks what is published (a long run).

Shared by all of them:

- `world`: a fleet, and its database and its Redis as other programs see them
- `fleets`: open a fleet, and read and write its tables (`put`, `alter`, `sql`)
- `commands`: run the program (`run`)
- `servers`: PostgreSQL, Redis and poolers; `line`: a line to them that breaks
- `waiting`: wait until something is true, or fail if it takes too long
- `conftest`: the fixtures
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
