"""modelctl works with the rights that docs/postgresql.md names, and needs each of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from modelctl.cli.main import main
from modelctl.doctor import rights
from tests import ROOT, fleets
from tests.backup.exports import PAUSE, export_of, held, model
from tests.servers import Postgres, Redis, redis_cluster, redis_sentinel

PAGE = ROOT / "docs" / "postgresql.md"
ID = "openai/gpt-5"


def _block(language: str) -> str:
    """Return the one fenced block of the page in *language*."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)
    return str(found)


@pytest.fixture
def roles(postgres: Postgres, pg_database: str) -> Iterator[str]:
    """Make a role with the page's GRANTs, and a website's role with rights on `models` alone."""
    name = pg_database.rpartition("/")[2]
    for role in ("modelctl", "website"):
        postgres.execute(f"CREATE ROLE {role} LOGIN", name)
    postgres.execute(_block("sql"), name)
    postgres.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON models TO website", name)
    yield name
    for role in ("modelctl", "website"):
        postgres.execute(f"DROP OWNED BY {role}", name)
        postgres.execute(f"DROP ROLE {role}", name)


@pytest.fixture
def as_modelctl(postgres: Postgres, roles: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let commands be the role `modelctl` in its database, which has a model; return its name."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url(roles, user="modelctl"))
    postgres.execute("INSERT INTO models (id) VALUES ('a')", roles)
    return roles


@pytest.fixture
def narrow_redis() -> Iterator[Redis]:
    """Run a Redis where the user `modelctl` has the page's ACL and `default` has nothing."""
    with Redis() as server:
        server.ask(*_block("text").replace("PASSWORD", "s3cret-word").split())
        server.ask("SET", "db:stats:overall", "1")
        server.ask("SET", "db:leaderboard:week", "1")
        server.ask("SET", "somebody:else", "1")
        yield server


CONFIG = """
[recovery]
cooldown_factor = 2
min_active = 1
max_auto_disabled_percent = 50
incident_models = 1
max_ejections = 5
limit = 10
expect_every = "15m"
[probe.openai]
command = ["true"]
[notify]
command = ["true"]
min_active = 1
"""
COMMANDS = [
    f"add {ID} --provider openai",
    "count",
    "count",
    "count --fresh",
    "count --strong",
    "count --verify",
    "list",
    f"show {ID}",
    f"record-failure {ID} --type parse-error",
    f"record-success {ID}",
    f"disable {ID} --reason why --force",
    f"enable {ID}",
    f"disable {ID} --dry-run --force",
    "record-batch {outcomes}",  # the rule spares a model, and an incident begins
    f"record-failure {ID} --type parse-error",
    f"record-success {ID}",
    f"disable {ID} --for 2h --force",
    f"probe {ID} --dry-run -o json",
    f"probe {ID}",
    "pause --for 1h --provider openai --reason maintenance",
    "pause --for 1h",
    "recover",
    "recover --dry-run",
    "list",
    f"show {ID}",
    "resume",
    "resume --provider openai",
    "recover --probe --limit 1",
    "recover --check",
    f"disable {ID} --until 2999-12-01T08:00Z --force",
    f"edit {ID} --name New --tag eu --tag prod",
    f"edit {ID} --untag prod",
    "list --tag eu",
    f"rename {ID} openai/new",
    f"rename openai/new {ID}",
    f"edit {ID} --untag eu",
    "stats",
    "leaderboard",
    "events",
    "availability",
    "ignore new/*",
    "ignore --list",
    "import {catalog}",
    "ignore --undo new/*",
    "export",
    "restore {export} --yes --force",
    "restore {export} --dry-run",
    "cache show",
    "cache clear",
    "cache drain",
    "db status",
    "config show",
    "metrics",
    "notify -o json",
    f"disable {ID} --reason why --force",
    "notify",
    f"enable {ID}",
    "prune --before 90d --dry-run",
    "doctor",
    "doctor --nagios",
    f"remove {ID} --yes",
]


def test_every_command_works_with_the_rights_of_the_readme(
    postgres: Postgres,
    roles: str,
    narrow_redis: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No command needs a right that the page does not name, whatever guards are configured."""
    outcomes = tmp_path / "outcomes.jsonl"
    success = f'{{"id": "{ID}", "outcome": "success"}}\n'
    failure = f'{{"id": "{ID}", "outcome": "failure", "type": "parse-error"}}\n'
    outcomes.write_text(success + 5 * failure)
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    monkeypatch.setenv("MODELCTL_CONFIG", str(config))
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text('{"id": "a/b"}\n')
    export = tmp_path / "export.jsonl"
    export.write_bytes(export_of(held(ID, tags=["eu"]), model("a/b"), {"pause": PAUSE}))
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url(roles, user="modelctl"))
    url = narrow_redis.url().replace("redis://", "redis://modelctl:s3cret-word@")
    monkeypatch.setenv("MODELCTL_REDIS_URL", url)
    for command in COMMANDS:
        words = command.format(outcomes=outcomes, catalog=catalog, export=export).split()
        code = main(words)
        shown = capfd.readouterr()
        assert (command, code, shown.err) == (command, 0, "")
    kinds = postgres.execute("SELECT DISTINCT event FROM modelctl_events", roles)
    assert {"would-disable", "incident", "paused", "resumed"} <= {kind for (kind,) in kinds}
    assert narrow_redis.ask("KEYS", "db:leaderboard:*") == []
    assert narrow_redis.ask("GET", "somebody:else") == "1"


def granted() -> list[tuple[str, str]]:
    """Return every right of the page's GRANTs with the table or schema that it is on."""
    lines = re.findall(r"GRANT (.*) ON (.*) TO modelctl;", _block("sql"))
    return [(right, where) for rights, where in lines for right in rights.split(", ")]


def looked(capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """Run the doctor; return its exit code and what is wrong."""
    capfd.readouterr()
    code = main(["doctor", "-o", "json"])
    checks = json.loads(capfd.readouterr().out)["checks"]
    return code, {check["check"]: check["detail"] for check in checks if not check["ok"]}


def test_the_doctor_knows_what_the_readme_grants() -> None:
    """The doctor tries exactly the rights that the page names."""
    tried = {(right, table) for table, them in rights.NEEDED.items() for right in them}
    named = {(right, where.rpartition(".")[2]) for right, where in granted()}
    assert named == tried | {("USAGE", "SCHEMA modelctl")}


def test_pruning_needs_what_the_page_grants() -> None:
    """The one right that only prune needs is on the page about operation, and the doctor knows it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    granted_there = re.findall(r"GRANT (.*) ON modelctl\.(.*) TO modelctl;", page)
    needed = [(right, name) for name, them in rights.NEEDED_TO_PRUNE.items() for right in them]
    assert granted_there == needed
    assert not set(needed) & {(right, where.rpartition(".")[2]) for right, where in granted()}


def test_the_doctor_names_each_right_that_is_taken_away(
    postgres: Postgres, as_modelctl: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each GRANT of the page in turn: the doctor says which right is missing on which table."""
    assert looked(capfd) == (0, {})
    for right, where in granted():
        postgres.execute(f"REVOKE {right} ON {where} FROM modelctl", as_modelctl)
        code, wrong = looked(capfd)
        postgres.execute(f"GRANT {right} ON {where} TO modelctl", as_modelctl)
        where = where if "." in where or "SCHEMA" in where else f"public.{where}"
        assert (code, f"GRANT {right} ON {where} TO modelctl" in str(wrong)) == (1, True), (
            right,
            where,
            wrong,
        )
    assert looked(capfd) == (0, {})


def test_the_doctor_names_all_missing_rights_at_once(
    postgres: Postgres, as_modelctl: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A role without any right is told all of them in one run, and no line sends it to doctor."""
    postgres.execute("DROP OWNED BY modelctl", as_modelctl)
    code, wrong = looked(capfd)
    assert code == 1
    assert "modelctl doctor" not in str(wrong)
    grants = re.findall(r"GRANT [^;]*", wrong["rights"])
    for grant in grants:
        postgres.execute(grant, as_modelctl)
    assert looked(capfd) == (0, {})
    assert len(grants) == len({where for _, where in granted()})


def test_the_doctor_names_the_right_to_temporary_tables(
    postgres: Postgres,
    roles: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Where nobody may create temporary tables, import is refused, and the doctor says what to grant."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", postgres.url(roles, user="modelctl"))
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text('{"id": "a"}\n')
    postgres.execute(f"REVOKE TEMPORARY ON DATABASE {roles} FROM PUBLIC", roles)
    assert main(["import", str(catalog)]) == 3
    assert "temporary tables" in capfd.readouterr().err
    grant = f"GRANT TEMPORARY ON DATABASE {roles} TO modelctl"
    code, wrong = looked(capfd)
    assert (code, grant in str(wrong)) == (1, True)
    postgres.execute(grant, roles)
    assert main(["import", str(catalog)]) == 0
    assert looked(capfd) == (0, {})


def acl() -> tuple[list[str], list[str]]:
    """Return the page's ACL as the words that make the user, and its rights one by one."""
    words = _block("text").replace("PASSWORD", "s3cret-word").split()
    return words[:5], words[5:]


@pytest.fixture(params=["standalone", "sentinel", "cluster"])
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[Redis], set[str]]]:
    """Run a Redis of each kind; give its URL, its servers, and the rights that it does not need."""
    idle = {"+select", "+cluster|slots", "+command"}
    with contextlib.ExitStack() as stack:
        if request.param == "standalone":
            server = stack.enter_context(Redis())
            url, servers = server.url(), [server]
        else:
            made = redis_cluster() if request.param == "cluster" else redis_sentinel()
            group = stack.enter_context(made)
            url, servers = group.url, group.nodes
            idle = {"+select"} if request.param == "cluster" else idle
        yield url.replace("://", "://modelctl:s3cret-word@"), servers, idle


def test_the_doctor_names_each_right_of_redis_that_is_taken_away(
    guarded: tuple[str, list[Redis], set[str]],
    pg_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each command and key of the page's ACL in turn: the doctor names it, or nothing needs it."""
    url, servers, idle = guarded
    user, each = acl()
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", url)
    for server in servers:
        server.ask(*user, *each)
    kept = dict.fromkeys(("db:stats:overall", "db:leaderboard:week"), "1")
    for server in servers:
        for name, value in kept.items():
            with contextlib.suppress(redis.RedisError):  # of another node, or a replica
                server.ask("SET", name, value)
    main(["add", ID])
    main(["count"])

    def seen() -> list[object]:
        return [sorted(server.ask("KEYS", "*")) for server in servers]

    assert looked(capfd) == (0, {})
    before = seen()
    for right in each:
        for server in servers:
            server.ask(*user, "resetkeys", "-@all", *(other for other in each if other != right))
        code, wrong = looked(capfd)
        if right in idle:
            assert (right, code, wrong) == (right, 0, {})
        else:
            named = right.partition("|")[0].lstrip("+~").lower()
            assert (code, named in wrong["cache"].lower()) == (1, True), (right, wrong)
    assert seen() == before
    for server in servers:
        server.ask(*user, *each)
    assert looked(capfd) == (0, {})


def test_the_rights_suffice_in_another_database_and_on_a_cluster(
    pg_database: str,
    narrow_redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same ACL serves `redis://.../1` and every node of a cluster."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    acl = _block("text").replace("PASSWORD", "s3cret-word").split()
    with redis_cluster() as cluster:
        for node in cluster.nodes:
            node.ask(*acl)
        for url in (narrow_redis.url(1), cluster.url):
            monkeypatch.setenv("MODELCTL_REDIS_URL", url.replace("://", "://modelctl:s3cret-word@"))
            # A process with another Redis on the same database would be wrong.
            fleets.sql(pg_database, "DELETE FROM modelctl.modelctl_state")
            for command in ("import -", "count", "count", "cache show", "cache clear", "doctor"):
                words = [
                    str(ROOT / "examples/fleet.jsonl") if w == "-" else w for w in command.split()
                ]
                assert (command, main(words), capfd.readouterr().err) == (command, 0, "")


def test_a_website_without_rights_on_our_tables_writes_models(
    postgres: Postgres, roles: str
) -> None:
    """The triggers write the outbox and the history for a role that may not even read them."""
    url = f"{postgres.url(roles, user='website')}?application_name=shop"
    with psycopg.connect(url, autocommit=True) as website:
        website.execute("INSERT INTO models (id) VALUES ('a'), ('b')")
        website.execute("UPDATE models SET active = false WHERE id = 'a'")
        website.execute("UPDATE models SET active = true WHERE id = 'a'")
        website.execute("DELETE FROM models WHERE id = 'b'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            website.execute("SELECT count(*) FROM modelctl.modelctl_outbox")
    assert postgres.execute("SELECT count(*) FROM modelctl.modelctl_outbox", roles) == [(4,)]
    told = "SELECT event, actor, details ->> 'application_name' FROM modelctl.modelctl_events ORDER BY id"
    assert postgres.execute(told, roles) == [
        (event, "website", "shop") for event in ("added", "added", "disabled", "enabled", "removed")
    ]


def test_only_modelctl_writes_holds(postgres: Postgres, roles: str) -> None:
    """modelctl may set, change and lift a hold; a website may not even look."""
    with psycopg.connect(postgres.url(roles, user="modelctl"), autocommit=True) as modelctl:
        modelctl.execute("INSERT INTO modelctl.modelctl_holds (scope, until) VALUES ('*', now())")
        modelctl.execute("UPDATE modelctl.modelctl_holds SET until = until + interval '1 hour'")
        assert modelctl.execute("SELECT scope FROM modelctl.modelctl_holds").fetchall() == [("*",)]
        modelctl.execute("DELETE FROM modelctl.modelctl_holds")
    with psycopg.connect(postgres.url(roles, user="website"), autocommit=True) as website:
        for statement in (
            b"SELECT FROM modelctl.modelctl_holds",
            b"DELETE FROM modelctl.modelctl_holds",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                website.execute(statement)
