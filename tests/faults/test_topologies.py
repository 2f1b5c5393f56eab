"""A long-lived fleet counts right on groups of servers while their roles change.

The part about PgBouncer is collected where one is installed (the header of the run says so):
no wheel carries it, and a pooler is not what a newcomer's first test run should wait for.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psycopg
import pytest

from modelctl import Fleet, crash_points
from modelctl.database.locks import RECOVER_LOCK
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    ModelctlError,
    StaleCacheError,
)
from tests import servers
from tests.fleets import DEFAULT_PATIENCE, opened, seed, sql, trip
from tests.servers import PgBouncer, Postgres, Redis, RedisGroup, Standby
from tests.waiting import at_most, until
from tests.world import KEY, LEASE, VOUCH

OWN = (KEY, LEASE, VOUCH)
IDS = [f"m{number}" for number in range(8)]
# What Redis being away may add to a count and to a change, and what a busy machine adds.
COUNT_SECONDS = 1.0 + 0.5
CHANGE_SECONDS = 3.0 + 1.0


def truth(url: str) -> int:
    """Return the count that everybody must see."""
    return int(sql(url, "SELECT count(*) FROM models WHERE active")[0][0])


def counts_until(
    fleet: Fleet, url: str, condition: Callable[[], bool], *, queued: bool = False
) -> None:
    """Count until something happens; each count is quick, and right.

    *queued*: a change said that its invalidation is not delivered, so a cached count may be old.
    """

    def condition_after_a_count() -> bool:
        with at_most(COUNT_SECONDS):
            count = fleet.count()
        assert count.active == truth(url) or (queued and count.source == "cache")
        return condition()

    until(condition_after_a_count)


def deliver(fleet: Fleet) -> None:
    """Drain until Redis lets everything through."""

    def drained() -> bool:
        with contextlib.suppress(StaleCacheError):
            return fleet.drain().queued == 0
        return False

    until(drained)


def is_cached(fleet: Fleet, url: str) -> None:
    """The second count at the latest comes from the cache, and both are right."""
    fleet.count()
    count = fleet.count()
    assert (count.active, count.source) == (truth(url), "cache")


def settle_now(url: str) -> None:
    """Let the second deletion be due at once."""
    sql(url, "UPDATE modelctl_outbox SET due = clock_timestamp() WHERE settle")


@contextlib.contextmanager
def fleet_on(url: str, redis_url: str = "") -> Iterator[Fleet]:
    """Open a fleet that keeps its warnings to itself."""
    settings = {"redis_url": redis_url} if redis_url else {}
    with opened(url, redis_timeout=DEFAULT_PATIENCE, **settings) as fleet:
        fleet.on_warning = lambda _: None
        yield fleet


# ── Redis Cluster ──


def slot_of(group: RedisGroup, key: str = KEY) -> int:
    """Return the slot of a key, by a server's own reckoning."""
    return int(group.nodes[0].ask("CLUSTER", "KEYSLOT", key))


def owner(group: RedisGroup, key: str = KEY) -> Redis:
    """Return the primary that holds the slot of a key, by its own word."""
    slot = slot_of(group, key)
    for node in group.nodes:
        (mine,) = (line.split() for line in _nodes(node) if "myself" in line)
        ranges = (text.split("-") for text in mine[8:] if not text.startswith("["))
        if "master" in mine[2] and any(int(r[0]) <= slot <= int(r[-1]) for r in ranges):
            return node
    raise AssertionError("nobody holds the slot")


def _nodes(node: Redis) -> list[str]:
    return str(node.ask("CLUSTER", "NODES")).splitlines()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisGroup]:
    """Run three primaries without replicas; tests leave them running, with any slots."""
    with servers.redis_cluster() as group:
        yield group


@pytest.fixture
def on_cluster(cluster: RedisGroup, pg_database: str) -> Iterator[Fleet]:
    """Open a fleet on an empty cluster, with some models."""
    for node in cluster.nodes:
        node.recover()
        until(lambda node=node: "cluster_state:ok" in node.ask("CLUSTER", "INFO"))  # type: ignore[misc]
        node.ask("FLUSHALL")
    with fleet_on(pg_database, cluster.url) as fleet:
        seed(fleet, IDS)
        yield fleet


def test_a_cluster_does_all_that_one_server_does(
    on_cluster: Fleet, cluster: RedisGroup, pg_database: str
) -> None:
    """In a cluster counts are cached, and changes invalidate, all in one slot of one node."""
    fleet = on_cluster
    is_cached(fleet, pg_database)
    assert fleet.disable("m1").cache == "invalidated"
    assert fleet.count().source == "database"
    is_cached(fleet, pg_database)
    verified = fleet.verify()
    assert (verified.active, verified.cached, verified.match) == (7, 7, True)
    report = {key.key: key for key in fleet.cache_report().keys}
    home = owner(cluster)
    run_id = home.ask("INFO", "server")["run_id"]
    assert (report[KEY].value, report[OWN[2]].value) == ("7", f"7 {run_id}")
    assert {slot_of(cluster, key) for key in OWN} == {slot_of(cluster)}
    assert {key: home.ask("EXISTS", key) for key in OWN} == {OWN[0]: 1, OWN[1]: 0, OWN[2]: 1}

    settle_now(pg_database)
    assert fleet.drain().cache == "invalidated"
    assert home.ask("EXISTS", KEY) == 0
    assert fleet.drain().delivered == 0
    assert fleet.doctor().ok


def test_a_change_sweeps_every_primary(
    on_cluster: Fleet, cluster: RedisGroup, pg_database: str
) -> None:
    """Leaderboard entries go on all primaries, whatever their slot, and nothing else does."""
    for number in range(20):
        for name in (f"db:leaderboard:{number}", f"db:leaderboards:{number}"):
            owner(cluster, name).ask("SET", name, 1)
    for node in cluster.nodes:
        assert node.ask("KEYS", "db:leaderboard:*")
    owner(cluster, "db:stats:overall").ask("SET", "db:stats:overall", 1)
    assert on_cluster.disable("m1").cache == "invalidated"
    left = [key for node in cluster.nodes for key in node.ask("KEYS", "*")]
    assert sorted(left) == sorted(f"db:leaderboards:{n}" for n in range(20))


def test_a_slot_without_a_node(on_cluster: Fleet, cluster: RedisGroup, pg_database: str) -> None:
    """Without its primary, counts come from the database and changes queue until it is back."""
    fleet = on_cluster
    is_cached(fleet, pg_database)
    home, other = owner(cluster), next(n for n in cluster.nodes if n is not owner(cluster))
    home.kill()
    with at_most(CHANGE_SECONDS):
        assert fleet.disable("m1").cache == "queued"

    def down() -> bool:
        return "cluster_state:fail" in str(other.ask("CLUSTER", "INFO"))

    counts_until(fleet, pg_database, down)
    with at_most(COUNT_SECONDS):
        assert (fleet.count().active, fleet.count().source) == (7, "database")
    home.start()
    # A count does not sweep; the next change delivers what was queued.
    counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
    assert fleet.cache_report().queued == 1
    assert fleet.disable("m2").cache == "invalidated"
    assert fleet.cache_report().queued == 0
    is_cached(fleet, pg_database)


def test_a_slot_that_moves(on_cluster: Fleet, cluster: RedisGroup, pg_database: str) -> None:
    """While a slot moves changes deliver or queue; afterwards the same fleet uses its new home."""
    fleet = on_cluster
    is_cached(fleet, pg_database)
    source = owner(cluster)
    target = next(node for node in cluster.nodes if node is not source)
    slot, ids = slot_of(cluster), [node.ask("CLUSTER", "MYID") for node in (source, target)]
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    counts_until(fleet, pg_database, lambda: True)
    source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", KEY)
    with at_most(CHANGE_SECONDS):
        assert fleet.disable("m1").cache == "queued"
    counts_until(fleet, pg_database, lambda: True)
    if keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source, *cluster.nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert fleet.count(strong=True).active == 7
    deliver(fleet)
    counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
    assert owner(cluster) is target
    assert fleet.disable("m2").cache == "invalidated"
    is_cached(fleet, pg_database)
    assert target.ask("GET", KEY) == "6"


def test_a_cluster_that_fails_over(pg_database: str) -> None:
    """A replica takes over: counts stay right, nothing is lost, the same fleet goes on."""
    with (
        servers.redis_cluster(replicas=True) as group,
        fleet_on(pg_database, group.url) as fleet,
    ):
        seed(fleet, IDS)
        is_cached(fleet, pg_database)
        home = owner(group)
        heir = group.nodes[group.nodes.index(home) + 3]
        home.kill()
        with at_most(CHANGE_SECONDS):
            queued = fleet.disable("m1").cache == "queued"
        counts_until(fleet, pg_database, lambda: heir.ask("ROLE")[0] == "master", queued=queued)
        deliver(fleet)
        counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
        assert fleet.disable("m2").cache == "invalidated"
        is_cached(fleet, pg_database)
        assert heir.ask("GET", KEY) == "6"

        # Back as a replica, and then by an orderly handover, in which nothing at all gets lost.
        home.start()
        until(lambda: home.ask("ROLE")[0] == "slave" and home.ask("ROLE")[3] == "connected")
        home.ask("CLUSTER", "FAILOVER")
        with fleet_on(pg_database, group.url) as another:
            changes = itertools.cycle([fleet.disable, another.enable])

            def handed_over() -> bool:
                assert next(changes)("m3").cache == "invalidated"
                assert another.count().active == fleet.count().active == truth(pg_database)
                return bool(home.ask("ROLE")[0] == "master")

            until(handed_over)
            for _ in range(4):
                handed_over()


# ── Sentinel ──


def master_by(group: RedisGroup) -> int:
    """Return the port of the master, by the word of the first Sentinel."""
    question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
    return int(group.sentinels[0].ask(*question)[1])


def test_a_master_that_dies(pg_database: str) -> None:
    """Sentinels name another master: counts stay right, and the same fleet delivers to it."""
    with servers.redis_sentinel() as group, fleet_on(pg_database, group.url) as fleet:
        master, replica = group.nodes
        seed(fleet, IDS)
        is_cached(fleet, pg_database)
        master.kill()
        with at_most(CHANGE_SECONDS):
            assert fleet.disable("m1").cache == "queued"
        counts_until(fleet, pg_database, lambda: master_by(group) == replica.port, queued=True)
        # It has the number from before the change that could not be delivered.
        assert fleet.count(strong=True).active == 7
        deliver(fleet)
        counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
        assert fleet.disable("m2").cache == "invalidated"
        is_cached(fleet, pg_database)
        assert replica.ask("GET", KEY) == "6"


@pytest.mark.long
def test_a_master_that_hands_over(pg_database: str) -> None:
    """While there are two masters a deletion may reach the wrong one; the second deletion repairs that."""
    with servers.redis_sentinel() as group, fleet_on(pg_database, group.url) as fleet:
        master, replica = group.nodes
        seed(fleet, IDS)
        is_cached(fleet, pg_database)
        group.sentinels[0].ask("SENTINEL", "FAILOVER", "mymaster")
        until(lambda: master_by(group) == replica.port)
        with at_most(CHANGE_SECONDS):
            assert fleet.disable("m1").cache in ("queued", "invalidated")

        def demoted() -> bool:
            with at_most(COUNT_SECONDS):
                fleet.count()
            return bool(master.ask("ROLE")[0] == "slave")

        until(demoted)
        assert fleet.count(fresh=True).active == 7
        settle_now(pg_database)
        deliver(fleet)
        counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
        assert fleet.disable("m2").cache == "invalidated"
        is_cached(fleet, pg_database)
        assert replica.ask("GET", KEY) == "6"


# ── A failover that loses the deletion ──


def promoted(group: RedisGroup, home: Redis, heir: Redis, change: Callable[[], None]) -> None:
    """Run *change*, of which the replica hears nothing, and make the replica take over."""
    # Killed on this side: in the socket of a frozen process the deletion would only wait.
    heir.pause()
    home.ask("CLIENT", "KILL", "TYPE", "replica")
    change()
    home.kill()
    heir.resume()
    until(lambda: bool(heir.ask("ROLE")[0] == "master"))
    if group.sentinels:
        until(lambda: master_by(group) == heir.port)


@pytest.mark.parametrize("kind", ["cluster", pytest.param("sentinel", marks=pytest.mark.long)])
def test_a_deletion_that_a_failover_loses(pg_database: str, kind: str) -> None:
    """The new master has the old number and its vouch, which names another server: a miss."""
    started = (
        servers.redis_sentinel() if kind == "sentinel" else servers.redis_cluster(replicas=True)
    )
    with started as group, fleet_on(pg_database, group.url) as fleet:
        seed(fleet, IDS)
        is_cached(fleet, pg_database)
        home = group.nodes[0] if group.sentinels else owner(group)
        heir = group.nodes[1 if group.sentinels else group.nodes.index(home) + 3]

        def change() -> None:
            assert fleet.disable("m1").cache == "invalidated"

        promoted(group, home, heir, change)
        assert heir.ask("GET", KEY) == "8"
        counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
        assert fleet.verify().match
        for model in ("m2", "m3"):
            is_cached(fleet, pg_database)
            assert fleet.disable(model).cache == "invalidated"
            assert fleet.count().active == truth(pg_database)


@pytest.mark.parametrize("kind", ["cluster", pytest.param("sentinel", marks=pytest.mark.long)])
def test_a_primary_that_comes_back_without_a_deletion(pg_database: str, kind: str) -> None:
    """A former primary is promoted again with its old run id; what it vouched for is not believed."""
    started = (
        servers.redis_sentinel() if kind == "sentinel" else servers.redis_cluster(replicas=True)
    )
    with started as group, fleet_on(pg_database, group.url) as fleet:
        seed(fleet, IDS)
        first = group.nodes[0] if group.sentinels else owner(group)
        second = group.nodes[1 if group.sentinels else group.nodes.index(first) + 3]
        is_cached(fleet, pg_database)
        vouch = first.ask("GET", OWN[2])
        run_id = first.ask("INFO", "server")["run_id"]

        def follows() -> bool:
            role = first.ask("ROLE")
            return bool(role[0] == "slave" and role[3] == "connected")

        if group.sentinels:
            group.sentinels[0].ask("SENTINEL", "FAILOVER", "mymaster")
        else:
            second.ask("CLUSTER", "FAILOVER")
        until(follows)

        def change() -> None:
            # Nobody counts before, or it would be the second that vouches.
            assert fleet.disable("m1").cache == "invalidated"

        promoted(group, second, first, change)
        assert [first.ask("GET", key) for key in (KEY, OWN[2])] == ["8", vouch]
        assert first.ask("INFO", "server")["run_id"] == run_id == vouch.split()[1]
        counts_until(fleet, pg_database, lambda: fleet.count().source == "cache")
        with fleet_on(pg_database, group.url) as another:
            assert another.count().active == 7


# ── A primary and its standby ──


def both(first: Postgres, second: Postgres, database: str) -> str:
    """Return a URL that names two servers."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in (first, second))
    return f"postgresql://postgres@{hosts}/{database}"


def caught_up(primary: Postgres, standby: Standby) -> None:
    """Wait until the standby has replayed what the primary has written."""
    ((position,),) = primary.execute("SELECT pg_current_wal_lsn()")
    sql = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
    until(lambda: standby.execute(sql) == [(True,)])


def new_fleet(primary: Postgres) -> str:
    """Make a database with our schema and some models."""
    name = primary.create_database()
    with opened(primary.url(name)) as fleet:
        fleet.upgrade()
        seed(fleet, IDS)
    return name


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Postgres, Standby]]:
    """Run a primary and a standby that follows it."""
    with servers.postgres_pair() as two:
        yield two


@pytest.fixture
def replicated(pair: tuple[Postgres, Standby]) -> str:
    """Name a database that both have."""
    name = new_fleet(pair[0])
    caught_up(*pair)
    return name


@pytest.mark.parametrize("standby_first", [True, False])
def test_the_primary_is_used_wherever_it_stands(
    pair: tuple[Postgres, Standby], replicated: str, standby_first: bool
) -> None:
    """With several hosts in the URL every command uses the host that takes changes."""
    primary, standby = pair
    url = both(standby, primary, replicated) if standby_first else both(*pair, replicated)
    with fleet_on(url) as fleet:
        assert fleet.count().active == 8
        assert fleet.disable("m1").changes[0].after == "disabled"
        assert fleet.count(fresh=True).active == 7
        assert fleet.show("m1").status == "disabled"
        assert fleet.recover().busy is False
        assert fleet.doctor().ok
    assert truth(primary.url(replicated)) == 7


def test_a_standby_alone_is_refused(
    pair: tuple[Postgres, Standby], replicated: str, redis_url: str
) -> None:
    """A URL that names only the standby is a wrong configuration: for a count, and for a change."""
    _, standby = pair
    with fleet_on(standby.url(replicated), redis_url) as fleet:
        counts: list[Callable[[], object]] = [
            fleet.count,
            lambda: fleet.count(fresh=True),
            fleet.verify,
        ]
        for count in counts:
            with pytest.raises(InvalidConfigError, match="is a standby") as refused:
                count()
            assert refused.value.exit_code == 3
        changes: list[Callable[[], object]] = [
            lambda: fleet.disable("m1"),
            lambda: fleet.remove("m1", "m2"),
            lambda: fleet.record_success("m1"),
            lambda: fleet.add("new"),
            fleet.recover,
        ]
        for change in changes:
            with pytest.raises(InvalidConfigError, match="takes no changes") as refused:
                change()
            assert refused.value.exit_code == 3
            assert "primary" in str(refused.value.hint)


def test_a_strong_count_does_not_ask_a_standby(
    pair: tuple[Postgres, Standby], replicated: str, redis_url: str
) -> None:
    """A standby that lags knows nothing of a committed change: a strong count refuses it."""
    primary, standby = pair
    with fleet_on(primary.url(replicated), redis_url) as fleet:
        is_cached(fleet, primary.url(replicated))
    standby.execute("SELECT pg_wal_replay_pause()")
    try:
        sql(primary.url(replicated), "UPDATE models SET active = false WHERE id = 'm1'")
        with (
            fleet_on(standby.url(replicated), redis_url) as fleet,
            pytest.raises(InvalidConfigError, match="standby"),
        ):
            fleet.count(strong=True)
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")


def test_a_group_without_a_primary_is_temporary(
    pair: tuple[Postgres, Standby], replicated: str
) -> None:
    """Between the primary's end and the promotion the database is unavailable, not misconfigured."""
    primary, standby = pair
    with fleet_on(both(standby, primary, replicated)) as fleet:
        assert fleet.count().active == 8
        primary.kill()
        try:
            for work in (fleet.count, fleet.stats, lambda: fleet.disable("m1")):
                with pytest.raises(DatabaseUnavailableError) as away:
                    work()
                assert away.value.exit_code == 5
        finally:
            primary.start()
        assert fleet.disable("m1").changes[0].changed


def test_a_database_that_fails_over(redis_url: str) -> None:
    """Nothing acknowledged is lost, the outbox goes with it, and the same fleet goes on."""
    with servers.postgres_pair(synchronous=True) as (primary, standby):
        name = new_fleet(primary)
        url = both(primary, standby, name)
        acknowledged: list[str] = []
        stop = threading.Event()

        def add_models(fleet: Fleet, writer: int) -> None:
            number = 0
            while not stop.is_set():
                model = f"w{writer}-{number}"
                try:
                    fleet.add(model)
                except ModelctlError:
                    stop.wait(0.02)
                    continue
                acknowledged.append(model)
                number += 1

        with fleet_on(url, redis_url) as fleet, ThreadPoolExecutor(3) as writers:
            try:
                done = [writers.submit(add_models, fleet, writer) for writer in range(3)]
                until(lambda: len(acknowledged) > 60)
                primary.kill()
                with pytest.raises(ModelctlError):
                    fleet.stats()
                before = len(acknowledged)
                standby.promote()
                until(lambda: len(acknowledged) > before + 30)
            finally:
                stop.set()
            for future in done:
                future.result()
        there = {row[0] for row in sql(standby.url(name), "SELECT id FROM models")}
        assert set(acknowledged) <= there


def test_a_commit_that_a_failover_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost COMMIT is not taken for the transaction with the same id on the promoted server."""
    with servers.postgres_pair(synchronous=True) as (primary, standby):
        name = new_fleet(primary)
        caught_up(primary, standby)
        # From here on the standby hears nothing, so that no COMMIT is answered.
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        standby.execute("SELECT pg_reload_conf()")
        until(lambda: primary.execute("SELECT 1 FROM pg_stat_replication") == [])

        def fail_over(_: float) -> None:
            if standby.execute("SELECT pg_is_in_recovery()") == [(True,)]:
                standby.promote()
                for _ in range(50):
                    standby.execute("SELECT pg_current_xact_id()")

        clock = SimpleNamespace(sleep=fail_over, monotonic=time.monotonic)
        monkeypatch.setattr("modelctl.database.database.time", clock)
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        with fleet_on(both(primary, standby, name)) as fleet, ThreadPoolExecutor(1) as pool:
            recorded = pool.submit(fleet.record_failure, "m1", "timeout")
            until(lambda: primary.execute(waits) != [])
            primary.kill()
            with pytest.raises(DatabaseUnavailableError, match="it is not known whether"):
                recorded.result()
            assert fleet.show("m1").failure_count == 0


def test_an_outbox_that_fails_over(redis_url: str) -> None:
    """The promoted server delivers what was queued on the old primary."""
    with servers.postgres_pair(synchronous=True) as (primary, standby):
        name = new_fleet(primary)
        with fleet_on(both(primary, standby, name), redis_url) as fleet:
            fleet.drain()
            is_cached(fleet, primary.url(name))
            sql(primary.url(name), "UPDATE models SET active = false WHERE id = 'm1'")
            assert fleet.count().active == 8
            primary.kill()
            standby.promote()
            assert fleet.cache_report().queued == 1
            assert fleet.count(strong=True).active == 7
            assert fleet.cache_report().queued == 1
            sql(standby.url(name), "UPDATE models SET active = false WHERE id = 'm2'")
            assert fleet.drain().delivered == 2
            is_cached(fleet, standby.url(name))
            assert fleet.disable("m3").cache == "invalidated"
            assert fleet.count().active == 5


# ── PgBouncer ──


class TestPgBouncer:
    """Transaction pooling: the next transaction may be on another connection of the server."""

    # No wheel carries the program, so these are collected only where it is installed.
    __test__ = servers.pgbouncer_binary() is not None

    @pytest.fixture
    def pooler(self, postgres: Postgres) -> Iterator[PgBouncer]:
        """Run a pooler with the one setting that it needs."""
        with PgBouncer(postgres, "ignore_startup_parameters = options") as server:
            yield server

    @pytest.fixture
    def name(self, pg_database: str) -> str:
        """Name a database with some models."""
        with opened(pg_database) as fleet:
            seed(fleet, IDS)
        return pg_database.rpartition("/")[2]

    @pytest.mark.parametrize("setting", [(), ("ignore_startup_parameters = options",)])
    def test_settings_reach_each_transaction(
        self, postgres: Postgres, name: str, setting: tuple[str, ...]
    ) -> None:
        """modelctl's settings are in force in each transaction, also where a pooler drops startup options."""
        seen: list[tuple[str, ...]] = []
        shown = ("row_security", "lock_timeout", "statement_timeout", "search_path")
        sql = ", ".join(f"current_setting('{name}')" for name in shown)
        options = "?options=-c%20search_path%3Dpublic,other"
        with (
            PgBouncer(postgres, *setting) as pooler,
            fleet_on(pooler.url(name) + options) as fleet,
        ):
            for _ in range(2):
                with fleet._store.database.reading() as connection:
                    seen.append(tuple(connection.exec_driver_sql(f"SELECT {sql}").one()))
                assert fleet.count().active == 8
            fleet._store.database.write(
                lambda c: seen.append(tuple(c.exec_driver_sql(f"SELECT {sql}").one()))
            )
            assert fleet.disable("m1").changes[0].changed
            assert fleet.disable("m2", "m3").changes[0].changed
            assert fleet.show("m1").disabled_at
        reads = ("off", "2s", "10s", "public,other")
        assert seen == [reads, reads, ("off", "150ms", *reads[2:])]

    def test_every_statement_more_often_than_it_is_prepared_after(
        self, pooler: PgBouncer, name: str
    ) -> None:
        """Threads repeat every statement on connections of a pooler, and no statement fails."""

        def work(fleet: Fleet, mine: list[str]) -> None:
            one, two = mine
            for _ in range(12):
                fleet.count()
                fleet.count(strong=True)
                fleet.show(one)
                fleet.stats()
                fleet.leaderboard()
                fleet.events(one)
                assert fleet.disable(one).changes[0].after == "disabled"
                assert fleet.enable(*mine).changes[0].after == "active"
                fleet.record_failure(two, "parse-error")
                assert fleet.record_success(two).changes[0].after == "active"

        def work_in_transactions(fleet: Fleet, mine: list[str]) -> None:
            one = mine[0]
            for number in range(12):
                assert fleet.disable(*mine, dry_run=True).changes[1].after == "disabled"
                assert fleet.list_models(limit=3)
                fleet.record_batch({"id": i, "outcome": "success"} for i in mine)
                fleet.add(f"{one}-{number}")
                fleet.remove(f"{one}-{number}", reason="why")
                fleet.recover()
                fleet.drain()

        with fleet_on(pooler.url(name)) as fleet, ThreadPoolExecutor(4) as threads:
            pairs = [IDS[0:2], IDS[2:4], IDS[4:6], IDS[6:8]]
            works = [work, work, work, work_in_transactions]
            done = [threads.submit(do, fleet, ids) for do, ids in zip(works, pairs, strict=True)]
            for future in done:
                future.result()
            assert fleet.count().active == 8

    def test_two_programs_do_not_run_each_others_statements(
        self, postgres: Postgres, name: str
    ) -> None:
        """A statement that one program prepared on a server connection is not run by another program."""
        with (
            PgBouncer(postgres, "ignore_startup_parameters = options", connections=2) as pooler,
            fleet_on(pooler.url(name)) as one,
            fleet_on(pooler.url(name)) as two,
            psycopg.connect(pooler.url(name)) as first,
            psycopg.connect(pooler.url(name)) as second,
        ):
            # Each holds one of the two connections, so that the others get the other one.
            first.execute("SELECT 1")
            for _ in range(8):
                one.disable("m1")
            second.execute("SELECT 1")
            first.rollback()
            for _ in range(8):
                two.enable("m1")
            first.execute("SELECT 1")
            second.rollback()
            assert two.enable("m1").changes[0].after == "active"
            assert truth(postgres.url(name)) == 8

    def test_recover_holds_its_lock_for_a_transaction(
        self, postgres: Postgres, pooler: PgBouncer, name: str
    ) -> None:
        """Behind a pooler only one run is active at a time, and no lock stays on the server connections."""
        with (
            fleet_on(pooler.url(name)) as fleet,
            psycopg.connect(pooler.url(name)) as other,
        ):
            trip(fleet, "m1", "m2")
            other.execute(f"SELECT pg_advisory_xact_lock({RECOVER_LOCK})".encode())
            assert fleet.recover(cooldown=0).busy
            other.rollback()
            assert sorted(fleet.recover(cooldown=0).recovered) == ["m1", "m2"]
            held = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            assert not postgres.execute(
                f"{held} WHERE locktype = 'advisory' AND datname = '{name}'"
            )

    def test_a_listing_leaves_no_setting_behind(self, postgres: Postgres, name: str) -> None:
        """A setting that a listing makes on its connection is gone for the next user of the connection."""
        with (
            PgBouncer(postgres, "ignore_startup_parameters = options", connections=1) as pooler,
            fleet_on(pooler.url(name)) as fleet,
            psycopg.connect(pooler.url(name), autocommit=True) as other,
        ):
            show = "SHOW idle_in_transaction_session_timeout"
            other.execute("SET idle_in_transaction_session_timeout = '42s'")
            assert len(fleet.list_models()) == 8
            assert other.execute(show).fetchall() == [("42s",)]

    @pytest.mark.parametrize("ids", [("m1",), ("m1", "m2")])
    def test_a_server_connection_that_ends_before_commit(
        self,
        postgres: Postgres,
        pooler: PgBouncer,
        name: str,
        ids: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The pooler cannot say what became of the change; another connection can, and it is made anew."""
        held = f"FROM pg_stat_activity WHERE datname = '{name}' AND state LIKE 'idle in%'"

        def end(point: str) -> None:
            monkeypatch.setattr(crash_points, "hook", None)
            postgres.execute(f"SELECT pg_terminate_backend(pid, 5000) {held}")

        with fleet_on(pooler.url(name)) as fleet:
            monkeypatch.setattr(crash_points, "hook", end)
            with pytest.raises(DatabaseUnavailableError, match="the change was not made"):
                fleet.disable(*ids)
            assert fleet.count().active == truth(postgres.url(name)) == 8
            assert fleet.disable(*ids).changes[-1].changed
            assert truth(postgres.url(name)) == 8 - len(ids)

    def test_time_limits_of_the_role_are_in_force(self, postgres: Postgres, name: str) -> None:
        """The pooler drops our time limits; those of the role act in their place."""
        limits = {"lock_timeout": "300ms", "statement_timeout": "10s"}
        for limit, value in limits.items():
            postgres.execute(f"ALTER ROLE postgres IN DATABASE \"{name}\" SET {limit} = '{value}'")
        with (
            PgBouncer(postgres, "ignore_startup_parameters = options") as pooler,
            fleet_on(pooler.url(name)) as fleet,
            psycopg.connect(postgres.url(name)) as holder,
        ):
            holder.execute("UPDATE models SET active = true WHERE id = 'm1'")
            with at_most(3), pytest.raises(DatabaseUnavailableError, match="lock timeout"):
                fleet.disable("m1")
            holder.rollback()
            assert fleet.disable("m1").changes[0].changed
