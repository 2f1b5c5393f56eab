"""What `db schema` prints, in the schema file of an application, is what `db upgrade` adds."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelctl.schema.declared import INDEXES, MODELS, MODELS_COLUMNS
from tests import commands
from tests.fleets import is_sqlite, opened, sql
from tests.migrations.schemas import WEBSITE, columns, connected
from tests.servers import Postgres

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

PRISMA = """
generator client {
  provider   = "prisma-client-js"
  engineType = "client"
}
datasource db {
  provider = "postgresql"
  url      = env("DATABASE_URL")
}
model Models {
  id          String   @id @db.VarChar(80)
  displayName String   @map("display_name") @db.VarChar(120)
  slug        String?  @unique
  createdAt   DateTime @default(now())

  @@map("models")
}
"""
# The engine in WebAssembly, as the other one is no package. It needs help with the driver, which
# does not know the catalog's type "char", and drops a database to which it is still connected.
PRISMA_CONFIG = """
import { PrismaPg } from "@prisma/adapter-pg";
import { defineConfig } from "prisma/config";

function knowsChar(adapter) {
  const driver = Object.getPrototypeOf(Object.getPrototypeOf(adapter));
  const { performIO, queryRaw } = driver;
  if (driver.isChar) return adapter;
  driver.isChar = (field) => field.dataTypeID === 18;
  driver.performIO = async function (query) {
    const result = await performIO.call(this, query);
    this.chars = (result.fields ?? []).map(this.isChar);
    for (const field of (result.fields ?? []).filter(this.isChar)) field.dataTypeID = 25;
    return result;
  };
  driver.queryRaw = async function (query) {
    const result = await queryRaw.call(this, query);
    result.columnTypes = result.columnTypes.map((type, i) => (this.chars[i] ? 6 : type));
    return result;
  };
  return adapter;
}

class Driver extends PrismaPg {
  async connect() {
    return knowsChar(await super.connect());
  }
  async connectToShadowDb() {
    const adapter = knowsChar(await super.connectToShadowDb());
    adapter.dispose = async () => {
      await adapter.client.end();
      const main = await super.connect();
      await main.executeScript(`DROP DATABASE "${adapter.client.options.database}"`);
      await main.dispose();
    };
    return adapter;
  }
}

const url = new URL(process.env.DATABASE_URL);
const database = url.pathname.slice(1);
export default defineConfig({
  schema: "schema.prisma",
  experimental: { adapter: true },
  engine: "js",
  adapter: async () =>
    new Driver({ host: url.hostname, port: Number(url.port), user: url.username, database }),
});
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
    """The SQL, and the classes of SQLAlchemy, make the table as an upgrade makes it; again it does nothing."""
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
    for _ in range(2):
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


def test_names_that_an_application_has_too(empty_pg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field has the name of its column, so it is none that the application has for another one."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", empty_pg)
    sql(empty_pg, 'CREATE TABLE models (id text PRIMARY KEY, "createdAt" timestamptz)')
    for tool in ("drizzle", "prisma"):
        fields = re.findall(r"^  (\w+):? ", printed(tool), re.MULTILINE)
        assert set(fields) - {"index"} == MODELS_COLUMNS.keys() - {"id"}


def test_conditions_of_prisma(pg_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prisma compares the condition of an index with PostgreSQL's own text, so that is printed."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    source = printed("prisma")
    shown = "SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = ?::regclass"
    for name in OURS:
        [[condition]] = sql(pg_database, shown, name)
        assert f'// @@index([id], map: "{name}", where: raw("{condition}"))\n' in source


@pytest.mark.long
def test_prisma_finds_nothing_to_do(
    empty_pg: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a migration and the declarations `migrate` and `push` find nothing to do, and no value is lost."""
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed")
    for name in [name for name in os.environ if name.startswith("PG") or name == "CI"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHECKPOINT_DISABLE", "1")  # it asks the network for a newer version
    (tmp_path / "package.json").write_text(json.dumps({"name": "x", "private": True}))
    packages = ("prisma@6.19.3", "@prisma/adapter-pg@7.10.1")
    install = [npm, "install", "--silent", "--ignore-scripts", *packages]
    subprocess.run(install, cwd=tmp_path, check=True)
    (tmp_path / "prisma.config.ts").write_text(PRISMA_CONFIG)
    schema = tmp_path / "schema.prisma"
    schema.write_text(PRISMA)

    def prisma(*words: str) -> str:
        """Run Prisma on a terminal; return what it says."""
        command = [str(tmp_path / "node_modules" / ".bin" / "prisma"), *words]
        terminal, end = pty.openpty()
        with open(end, "w") as typed:
            done = subprocess.run(
                command, cwd=tmp_path, stdin=typed, capture_output=True, text=True, timeout=120
            )
        os.close(terminal)
        return done.stdout + done.stderr

    def finds_nothing_to_do(url: str) -> None:
        assert "Already in sync" in prisma("migrate", "dev", "--skip-generate")
        assert "Database schema is up to date" in prisma("migrate", "status")
        assert "already in sync" in prisma("db", "push", "--skip-generate")
        adds_no_column(url)

    def uses(url: str) -> None:
        monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
        monkeypatch.setenv("DATABASE_URL", url)

    uses(empty_pg)
    assert "in sync" in prisma("migrate", "dev", "--name", "first", "--skip-generate")
    with opened(empty_pg) as fleet:
        fleet.upgrade()
    sql(empty_pg, "INSERT INTO models (id, display_name, success_count) VALUES ('m', 'M', 7)")
    assert "Drift detected" in prisma("migrate", "dev", "--skip-generate")
    fields = printed("prisma").partition("model Models {\n")[2].partition("  @@map")[0]
    schema.write_text(PRISMA.replace("  @@map", f"{fields}  @@map"))
    migration = tmp_path / "migrations" / "99990101000000_modelctl"
    migration.mkdir()
    (migration / "migration.sql").write_text(printed("sql"))
    assert "successfully applied" in prisma("migrate", "deploy")
    finds_nothing_to_do(empty_pg)
    assert sql(empty_pg, "SELECT id, success_count FROM models") == [("m", 7)]
    developer = postgres.create_database()
    uses(postgres.url(developer))
    assert "successfully applied" in prisma("migrate", "deploy")
    finds_nothing_to_do(postgres.url(developer))
    postgres.drop_database(developer)


def test_a_schema_of_its_own(empty_pg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in another schema than public is declared there, whatever the name of the schema."""
    url = f"{empty_pg}?options=-csearch_path%3D%22My%5C%20App%22"
    monkeypatch.setenv("MODELCTL_DATABASE_URL", url)
    sql(empty_pg, 'CREATE SCHEMA "My App"')
    source = printed("sqlalchemy")
    with connected(empty_pg) as connection:
        metadata(source).create_all(connection)
        connection.commit()
    adds_no_column(url)
    with opened(url) as fleet:
        fleet.uninstall()
    sql(empty_pg, 'DROP TABLE "My App".models')
    for statement in printed("sql").split(";\n")[:-1]:
        sql(empty_pg, statement)
    adds_no_column(url)
    with opened(url) as fleet:
        fleet.uninstall()
    sql(empty_pg, 'DROP TABLE "My App".models')
    with opened(url) as fleet:
        fleet.upgrade()
    assert 'export const schema = pgSchema("My App");' in printed("drizzle")
    assert 'export const models = schema.table("models", {' in printed("drizzle")
    assert '@@schema("My App")' in printed("prisma")


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
