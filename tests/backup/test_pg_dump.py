"""What docs/backup.md says of pg_dump."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.backup.exports import exported
from tests.fleets import DISABLED, opened, put_hold, seed, sql, status
from tests.servers import Postgres, postgres_binary

# A build of PostgreSQL may come without them.
TOOLS = postgres_binary().path.parent
PAGE = (ROOT / "docs" / "backup.md").read_text()


@pytest.mark.skipif(not (TOOLS / "pg_dump").exists(), reason="this PostgreSQL has no pg_dump")
def test_a_dump_restores_a_fleet(
    postgres: Postgres, pg_database: str, empty_pg: str, tmp_path: Path
) -> None:
    """The commands of the page bring back models, tags, pauses, history and triggers."""
    with opened(pg_database) as fleet:
        seed(fleet, "abc")
        fleet.disable("a", reason="hold")
        tags = "INSERT INTO modelctl_tags (model_id, tags) VALUES ('b', '{eu}')"
        sql(pg_database, tags)
        put_hold(pg_database, "fleet", since="2026-01-01", until="2100-01-01")
        before, history = exported(fleet), fleet.events()
    names = {"app": pg_database, "app_new": empty_pg}
    for line in re.findall(r"^    (pg_(?:dump|restore) .*)$", PAGE, re.MULTILINE):
        tool, *words = shlex.split(line.replace("fleet.dump", str(tmp_path / "fleet.dump")))
        for name, url in names.items():
            words = [re.sub(rf"^(--dbname=)?{name}$", rf"\g<1>{url}", word) for word in words]
        done = subprocess.run([TOOLS / tool, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    with opened(empty_pg) as fleet:
        queued = sql(empty_pg, "SELECT count(*) FROM modelctl.modelctl_outbox")
        assert exported(fleet) == before
        assert fleet.events() == history
        assert fleet.upgrade().up_to_date
        assert fleet.schema_status().findings == ()
        sql(empty_pg, "UPDATE models SET active = false WHERE id = 'b'")
        assert sql(empty_pg, "SELECT count(*) FROM modelctl.modelctl_outbox") > queued
        assert status(fleet, "b") == [DISABLED]
