"""What `db schema` prints, in the schema file of an application, is what `db upgrade` adds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelctl.schema.declared import INDEXES, MODELS
from tests import commands
from tests.fleets import is_sqlite, opened, sql
from tests.migrations.schemas import WEBSITE, columns, connected

OURS = [name for name, index in INDEXES.items() if index.table == MODELS]
APPLICATION = """
    id = mapped_column(sa.String(80), primary_key=True)
    display_name = mapped_column(sa.String(120), nullable=False)
    slug = mapped_column(sa.Text(), unique=True)
"""
DRIZZLE = """
  id: text("id").primaryKey(),
  displayName: text("display_name").notNull(),
  slug: text("slug").unique(),
"""


def printed(tool: str) -> str:
    """Return the declarations for a tool."""
    result = commands.run("db", "schema", "--for", tool)
    assert (result.code, result.err) == (0, "")
    return result.out


def adds_no_column(url: str) -> None:
    """Hold that an upgrade adds neither a column nor an index to what is there."""
    with opened(url) as fleet:
        added = [sql for sql in fleet.upgrade(dry_run=True).sql if "ADD COLUMN" in sql]
        added += [sql for sql in fleet.upgrade(dry_run=True).sql if any(n in sql for n in OURS)]
        assert added == []
        fleet.upgrade()
        assert fleet.schema_status().up_to_date


def test_a_table_that_was_made_of_the_declarations(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SQL, and the classes of SQLAlchemy, make the table as an upgrade makes it."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    sql(url, "CREATE VIEW unrelated AS SELECT 1 AS one")  # so that the file exists
    if not is_sqlite(url):
        source = printed("sqlalchemy")
        with connected(url) as connection:
            metadata(source).create_all(connection)
            connection.commit()
        adds_no_column(url)
        sql(url, "DROP TABLE models")
        sql(url, "DROP SCHEMA modelctl CASCADE")
    for statement in printed("sql").split(";\n")[:-1]:
        sql(url, statement)
    adds_no_column(url)


def metadata(source: str) -> Any:
    """Return the metadata of a module of SQLAlchemy."""
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - as an application imports it
    return names["Base"].metadata


def test_a_table_of_an_application(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the application lacks is printed, before and after the adoption."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    sql(url, WEBSITE["sqlite" if is_sqlite(url) else "postgresql"])
    before = columns(url)
    source = printed("sql")
    with opened(url) as fleet:
        fleet.upgrade()
        assert printed("sql") == source
        for name in columns(url):
            assert (f"COLUMN {name} " in source.replace("IF NOT EXISTS ", "")) == (
                name not in before
            )
        fleet.uninstall()
    for statement in source.split(";\n")[:-1]:
        sql(url, statement)
    adds_no_column(url)


def test_tools_that_are_not_known(
    sqlite_database: str, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool without declarations is named, with those that have some."""
    for url, known in ((sqlite_database, "one of: sql\n"), (pg_database, "drizzle, prisma")):
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        commands.run("db", "schema", "--for", "hibernate").failed(2, "'hibernate'", known)
    assert '@@map("models")' in printed("prisma")
    assert 'pgTable("models"' in printed("drizzle")


@pytest.mark.long
def test_alembic_and_drizzle_find_nothing_to_do(
    empty_pg: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the declarations the real tools find nothing to do; without them they drop columns."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    monkeypatch.delenv("PGOPTIONS", raising=False)  # the search path of the tests is another one
    sql(
        empty_pg,
        "CREATE TABLE models (id varchar(80) PRIMARY KEY, display_name varchar(120) NOT NULL,"
        " slug text CONSTRAINT models_slug_unique UNIQUE)",
    )
    with opened(empty_pg) as fleet:
        fleet.upgrade()
    base = "from sqlalchemy.orm import DeclarativeBase\nclass Base(DeclarativeBase):\n    pass\n"
    declared = printed("sqlalchemy").replace("class Models(Base):", f"{base}class Models(Base):")
    name = '    __tablename__ = "models"\n'
    with_ours = declared.replace(name, name + APPLICATION)
    without = f"{declared.partition('class Models')[0]}class Models(Base):\n{name}{APPLICATION}"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = str(tmp_path / "venv" / "bin" / "pip")
    subprocess.run([pip, "install", "-q", "alembic", "psycopg[binary]"], check=True)
    program = tmp_path / "compare.py"
    url = empty_pg.replace("postgresql://", "postgresql+psycopg://")
    for source, nothing in ((with_ours, True), (without, False)):
        program.write_text(
            f"{source}\nfrom alembic.autogenerate import compare_metadata\n"
            "from alembic.migration import MigrationContext\n"
            f"with sa.create_engine({url!r}).connect() as c:\n"
            "    options = {'compare_server_default': True}\n"
            "    context = MigrationContext.configure(c, opts=options)\n"
            "    print(len(compare_metadata(context, Base.metadata)))\n"
        )
        done = subprocess.run(
            [str(tmp_path / "venv" / "bin" / "python"), str(program)],
            capture_output=True,
            text=True,
        )
        assert (done.stdout.strip() == "0") is nothing, done
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed")
    (tmp_path / "package.json").write_text(json.dumps({"name": "x", "private": True}))
    packages = ("drizzle-kit@0.31", "drizzle-orm@0.45", "pg@8")
    subprocess.run([npm, "install", "--silent", *packages], cwd=tmp_path, check=True)
    lines = printed("drizzle")
    opening = 'pgTable("models", {\n'
    schema = lines.replace(opening, opening + DRIZZLE.replace("text(", "varchar("))
    schema = schema.replace('varchar("id")', 'varchar("id", { length: 80 })')
    schema = schema.replace('varchar("display_name")', 'varchar("display_name", { length: 120 })')
    schema = schema.replace('varchar("slug")', 'text("slug")')
    schema = schema.replace("timestamp }", "timestamp, varchar }")
    (tmp_path / "schema.ts").write_text(schema)
    (tmp_path / "drizzle.config.ts").write_text(
        'export default { dialect: "postgresql", schema: "./schema.ts",'
        f" dbCredentials: {{ url: {json.dumps(empty_pg)} }} }};"
    )
    push = [str(tmp_path / "node_modules" / ".bin" / "drizzle-kit"), "push"]
    done = subprocess.run(
        push, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert "No changes detected" in done.stdout, done
    with opened(empty_pg) as fleet:
        assert fleet.schema_status().up_to_date
