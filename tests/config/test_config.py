from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.config import load as module
from modelctl.config.config import Config
from modelctl.config.durations import format_duration, parse_duration
from modelctl.config.load import default_actor
from modelctl.config.sections import (
    KEYS,
    CacheConfig,
    DatabaseConfig,
    HealthConfig,
    RecoveryConfig,
    RedisConfig,
)
from modelctl.config.settings import settings
from modelctl.config.urls import mask_url
from modelctl.errors import InvalidConfigError, UsageError
from modelctl.health import cooldowns
from modelctl.model import FailureType
from tests import ROOT

EXAMPLE = ROOT / "config.example.toml"
POSTGRES = "postgresql://host/db"


@pytest.fixture(autouse=True)
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the system-wide file where no real one is."""
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    monkeypatch.setattr(module, "SYSTEM_FILE", file)
    return file


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return an empty home folder."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def load(home: Path, text: str | bytes | None = None, **environ: str) -> Config:
    """Load *text* as a named file below the environment."""
    file = None
    if text is not None:
        file = home / "named.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.load(file, environ={"HOME": str(home), **environ})


def database(url: str) -> Config:
    """Load with this database and nothing else."""
    return Config.load(environ={"HOME": "/nowhere", "MODELCTL_DATABASE_URL": url})


def redis(url: str) -> Config:
    """Load with this Redis beside a PostgreSQL without a password."""
    environ = {"HOME": "/nowhere", "MODELCTL_DATABASE_URL": POSTGRES, "MODELCTL_REDIS_URL": url}
    return Config.load(environ=environ)


def everything(error: InvalidConfigError) -> str:
    """All that a person, a log or a traceback could show of *error*."""
    return f"{error.message} {error.hint} {error!r} {error.__cause__!r}"


# --- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("1.5h", 5400),
        ("1.1h", 3960),
        ("2d", 172800),
        ("0.25s", 0.25),
        ("3650d", 3650 * 86400),
        ("1w", 604800),
        ("2h30m", 9000),
        ("1w2d3h4m5.5s", 604800 + 2 * 86400 + 3 * 3600 + 4 * 60 + 5.5),
        ("1d0h1s", 86401),
    ],
)
def test_duration_is_numbers_and_their_units(text: str, seconds: float) -> None:
    """A duration is read in seconds."""
    assert parse_duration(text) == seconds


NO_DURATIONS = (
    "60 s -1s +1s 1 30m1h 1h1h 1h30 1H 1ms 1y nan nans infs 1e3s .5h 1.h 1,5h ٣s 3651d 522w 3650d1s"
)


@pytest.mark.parametrize(
    "text", [*NO_DURATIONS.split(), "", "1 h", " 1h", "1h ", "1h\n", "9" * 5000 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Signs, words, other units, other digits and more than ten years are usage errors."""
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "0.5s"), (60, "1m"), (90, "90s"), (3600, "1h"), (5400, "90m"), (86400, "1d")],
)
def test_duration_is_written_in_the_largest_unit_that_divides_it(seconds: float, text: str) -> None:
    """The largest unit that keeps the number whole is shown; parts of a second stay decimal."""
    assert format_duration(seconds) == text


@given(st.integers(0, 3650 * 86400 * 10**6))
def test_durations_survive_the_round_trip(microseconds: int) -> None:
    """What is written can be read and is the same."""
    seconds = microseconds / 10**6
    assert parse_duration(format_duration(seconds)) == seconds


# --- which file, and what wins


def test_defaults_need_no_file(home: Path) -> None:
    """Without a file and variables everything has its default and says so."""
    config = load(home)
    assert config.file is None
    assert config.database == DatabaseConfig()
    assert config.redis == RedisConfig()
    assert config.cache == CacheConfig()
    assert config.health == HealthConfig()
    assert config.recovery == RecoveryConfig()
    assert config.embedded
    assert config.sqlite_path == home / ".local/share/modelctl/modelctl.db"
    assert config.postgres_url == ""
    assert set(config.origins.values()) == {"default"}
    assert set(config.origins) == {str(key) for key in KEYS}


def test_environment_wins_over_file_wins_over_default(home: Path) -> None:
    """Each value comes from the strongest source, and the origin names it."""
    config = load(
        home,
        '[cache]\nttl = "30s"\ncount_key = "n"\n',
        MODELCTL_CACHE_TTL="15s",
        XDG_DATA_HOME="/d",
    )
    assert config.cache == CacheConfig(ttl=15.0, count_key="n")
    assert config.origins["cache.ttl"] == "environment MODELCTL_CACHE_TTL"
    assert config.origins["cache.count_key"] == "file"
    assert config.origins["cache.clear"] == "default"
    assert config.file == home / "named.toml"
    assert config.sqlite_path == Path("/d/modelctl/modelctl.db")


def test_first_file_found_is_the_only_one_read(home: Path, no_system_file: Path) -> None:
    """Argument, MODELCTL_CONFIG, the user's file, the system's file: in this order, never merged."""
    environ = {"HOME": str(home)}

    def file_in_use(path: Path | None = None) -> Path | None:
        return Config.load(path, environ=environ).file

    no_system_file.write_text("")
    assert file_in_use() == no_system_file
    mine = home / ".config" / "modelctl" / "config.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("")
    assert file_in_use() == mine
    environ["XDG_CONFIG_HOME"] = "relative/is/ignored"
    assert file_in_use() == mine
    environ["XDG_CONFIG_HOME"] = str(home / "xdg")
    assert file_in_use() == no_system_file
    environ["MODELCTL_CONFIG"] = ""
    assert file_in_use() == no_system_file
    environ["MODELCTL_CONFIG"] = str(home / "variable.toml")
    (home / "variable.toml").write_text("")
    assert file_in_use() == home / "variable.toml"
    (home / "argument.toml").write_text("")
    assert file_in_use(home / "argument.toml") == home / "argument.toml"


def test_current_directory_is_never_searched(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that lies where modelctl happens to be started has no effect."""
    for name in ("config.toml", "modelctl.toml", "modelctl/config.toml"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("nonsense")
    monkeypatch.chdir(home)
    assert Config.load(environ={"HOME": "/nowhere", "XDG_CONFIG_HOME": "."}).file is None


def test_named_file_must_be_there(home: Path) -> None:
    """A missing file, a folder, and a name no file can have are errors that name it."""
    for name in ("missing.toml", ".", "named.toml/below", "nul\0nul"):
        (home / "named.toml").write_text("")
        with pytest.raises(InvalidConfigError, match="cannot read the file"):
            Config.load(home / name, environ={"HOME": str(home)})
    with pytest.raises(InvalidConfigError, match=r"missing\.toml: No such file"):
        load(home, MODELCTL_CONFIG=str(home / "missing.toml"))
    with pytest.raises(InvalidConfigError, match="cannot read the file"):
        Config.load("", environ={"HOME": str(home)})


def test_usual_file_must_be_readable_if_it_is_there(home: Path, no_system_file: Path) -> None:
    """A file in a usual place is not skipped because something is wrong with it."""
    no_system_file.symlink_to(no_system_file)
    with pytest.raises(InvalidConfigError, match="Too many levels of symbolic links"):
        load(home)
    no_system_file.unlink()
    no_system_file.mkdir()
    with pytest.raises(InvalidConfigError, match="Is a directory"):
        load(home)


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home the embedded database is refused, and a named one works."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(InvalidConfigError, match="no home folder"):
        Config.load(environ={})
    assert Config.load(environ={"MODELCTL_DATABASE_URL": POSTGRES}).sqlite_path is None
    assert Config.load(environ={"XDG_DATA_HOME": "/d"}).embedded


def test_byte_order_mark_and_crlf_are_no_fault(home: Path) -> None:
    """A file written by a Windows editor is read."""
    assert load(home, b'\xef\xbb\xbf[cache]\r\nttl = "5s"\r\n').cache.ttl == 5


# --- bad files


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"\xff", ["named.toml", "not UTF-8 at byte 0"]),
        ("[cache]\nttl == 1", ["named.toml", "not valid TOML", "line 2"]),
        ("[cache]\nttl = '1s'\nttl = '2s'\n", ["not valid TOML", "line 3"]),
        ("[cache]\nttl = " + "9" * 5000, ["not valid TOML"]),
        ("[health]\nthreshold = 0x" + "f" * 50_000, ["health.threshold", "1 to 1000000"]),
        ("a = " + "[" * 100_000, ["nested too deeply"]),
        ("#" * 2_000_000, ["too large"]),
        ("cache = 1", ["cache in", "must be a section"]),
        ("[[cache]]\nttl = '1s'", ["must be a section"]),
        ("[chache]\n", ["unknown section [chache]", "named.toml", "[cache]"]),
        ("ttl = '1s'", ["unknown key ttl outside a section"]),
        ("[cache]\ntll = '1s'", ["unknown key cache.tll", "named.toml", "nearest is cache.ttl"]),
        ("[health]\ncooldown = '1h'", ["unknown key health.cooldown", "recovery.cooldown"]),
        ("[cache]\n" + "x" * 50_000 + " = 1", ["unknown key"]),
        ('[cache]\n"\\u001b[31m" = 1', ["unknown key cache.\\x1b[31m"]),
        ("[cache]\nttl = 60", ["cache.ttl in", "named.toml", "duration with its unit", '"90s"']),
        ("[cache]\nttl = '60'", ["cache.ttl in", "'60' is not a duration", "90s, 15m"]),
        ("[cache]\nttl = '-1s'", ["not a duration"]),
        ("[cache]\nttl = '0s'", ["cache.ttl in", "1s to 1h"]),
        ("[cache]\nttl = '61m'", ["1s to 1h"]),
        ("[recovery]\ncooldown = '9999d'", ["recovery.cooldown", "longer than 3650d"]),
        ("[database]\npool_size = true", ["database.pool_size", "whole number"]),
        ('[database]\nschema = ""', ["database.schema", "plain identifier"]),
        ('[database]\nschema = "Fleet"', ["database.schema", "plain identifier"]),
        ('[database]\nschema = "a.b"', ["database.schema", "plain identifier"]),
        ('[database]\nschema = "pg_fleet"', ["database.schema", "plain identifier"]),
        ('[database]\nschema = "2nd"', ["database.schema", "plain identifier"]),
        ("[database]\npool_size = 5.0", ["whole number"]),
        ("[database]\npool_size = '5'", ["whole number"]),
        ("[database]\npool_size = 0", ["1 to 1000"]),
        ("[redis]\npool_size = 1001", ["redis.pool_size", "1 to 1000"]),
        ("[health]\nthreshold = 0", ["health.threshold", "1 to"]),
        ("[health]\nreason_length = 10001", ["1 to 10000"]),
        ("[recovery]\nrestart_failures = -1", ["recovery.restart_failures", "0 to"]),
        ("[recovery]\nrestart_failures = 5", ["less than health.threshold", "5"]),
        ("[health]\nthreshold = 2", ["recovery.restart_failures (default)", "health.threshold"]),
        ("[recovery]\nmax_cooldown = '59m'", ["recovery.max_cooldown in", "59m is less than 1h"]),
        (
            "[recovery]\ncooldown = '2d'\nmax_cooldown = '1d'",
            ["recovery.max_cooldown in", "recovery.cooldown", "1d is less than 2d", "leave it out"],
        ),
        ("[health]\ncounted = 'parse-error'", ["health.counted", "list of strings"]),
        ("[health]\ncounted = [1]", ["list of strings"]),
        ("[health]\ncounted = ['parse-eror']", ["'parse-eror'", "nearest is 'parse-error'"]),
        ("[cache]\ncount_key = ''", ["cache.count_key"]),
        ("[cache]\ncount_key = '{k}'", ["cache.count_key", "without { and }"]),
        ('[cache]\ncount_key = "a\\nb"', ["control characters"]),
        ("[cache]\ncount_key = 1979-05-27", ["a string"]),
        ("[cache]\nclear = ['*']", ["cache.clear", "literal character"]),
        ("[cache]\nclear = ['?x']", ["literal character"]),
        ("[cache]\nclear = ['[a-z]*']", ["literal character"]),
        ("[cache]\nclear = ['\\*']", ["literal character"]),
        ("[cache]\nclear = ['']", ["literal character"]),
        ("[cache]\nclear = ['db:models:count:active']", ["cache.clear", "cache.count_key"]),
        ("[cache]\nclear = ['{db*']", ["cache.clear in", "named.toml", "cache.count_key"]),
        ("[cache]\nclear = ['{db:models:count:active}:vouch']", ["cache.count_key"]),
        ("[cache]\ncount_key = 'db:stats:overall'", ["cache.clear (default)", "cache.count_key"]),
        ("[database]\nurl = 5", ["database.url in", "a string"]),
        ("[redis]\nurl = 'redis://h'", ["redis.url in", "Redis needs PostgreSQL"]),
    ],
)
def test_bad_file_says_what_and_where(home: Path, text: str | bytes, parts: list[str]) -> None:
    """Every fault of a file is one error that names the file or key and what is expected."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, text)
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.hint}"


def test_a_cooldown_beyond_the_default_cap(home: Path) -> None:
    """Only a cap that somebody wrote is held against a longer cooldown, which then does not grow."""
    rule = load(
        home, MODELCTL_RECOVERY_COOLDOWN="2d", MODELCTL_RECOVERY_COOLDOWN_FACTOR="2"
    ).recovery
    assert cooldowns(rule) == (2 * 86400,)
    equal = load(home, "[recovery]\nmax_cooldown = '1h'").recovery
    assert equal.cooldown == equal.max_cooldown
    with pytest.raises(InvalidConfigError, match=r"^recovery.max_cooldown in .*1d is less than 2d"):
        load(home, "[recovery]\nmax_cooldown = '1d'", MODELCTL_RECOVERY_COOLDOWN="2d")
    with pytest.raises(InvalidConfigError, match="environment MODELCTL_RECOVERY_MAX_COOLDOWN"):
        load(home, MODELCTL_RECOVERY_MAX_COOLDOWN="1m")


def test_file_is_checked_where_the_environment_wins(home: Path) -> None:
    """A fault in the file does not wait for the day on which the variable is gone."""
    with pytest.raises(InvalidConfigError, match=r"cache\.ttl in"):
        load(home, "[cache]\nttl = 1", MODELCTL_CACHE_TTL="1s")


# --- the environment


def test_every_key_has_a_variable(home: Path) -> None:
    """Durations, numbers, names and lists are read from the environment, blanks around them cut."""
    config = load(
        home,
        MODELCTL_DATABASE_URL=f" {POSTGRES}\n",
        MODELCTL_DATABASE_POOL_SIZE=" 7 ",
        MODELCTL_DATABASE_POOL_TIMEOUT="1s",
        MODELCTL_DATABASE_TIMEOUT="20s",
        MODELCTL_DATABASE_SCHEMA="fleet_2",
        MODELCTL_REDIS_URL="redis://h",
        MODELCTL_REDIS_POOL_SIZE="8",
        MODELCTL_REDIS_TIMEOUT="0.25s",
        MODELCTL_CACHE_TTL="1s",
        MODELCTL_CACHE_COUNT_KEY="n",
        MODELCTL_CACHE_CLEAR="a, b:*,a",
        MODELCTL_HEALTH_THRESHOLD="3",
        MODELCTL_HEALTH_COUNTED="timeout",
        MODELCTL_HEALTH_REASON_LENGTH="9",
        MODELCTL_RECOVERY_COOLDOWN="0s",
        MODELCTL_RECOVERY_COOLDOWN_FACTOR="1.5",
        MODELCTL_RECOVERY_MAX_COOLDOWN="2d",
        MODELCTL_RECOVERY_RESTART_FAILURES="0",
        MODELCTL_RECOVERY_MIN_ACTIVE="1",
        MODELCTL_RECOVERY_MAX_AUTO_DISABLED_PERCENT="50",
        MODELCTL_RECOVERY_INCIDENT_MODELS="3",
        MODELCTL_RECOVERY_INCIDENT_WINDOW="5m",
        MODELCTL_RECOVERY_MAX_EJECTIONS="4",
        MODELCTL_RECOVERY_LIMIT="10",
        MODELCTL_RECOVERY_EXPECT_EVERY="15m",
    )
    assert config.database == DatabaseConfig(POSTGRES, 7, 1.0, 20.0, "fleet_2")
    assert config.redis == RedisConfig("redis://h", 8, 0.25)
    assert config.cache == CacheConfig(1.0, "n", ("a", "b:*"))
    assert config.health == HealthConfig(3, (FailureType.TIMEOUT,), 9)
    assert config.recovery == RecoveryConfig(0.0, 1.5, 172800.0, 0, 1, 50, 3, 300.0, 4, 10, 900.0)
    assert set(config.origins.values()) == {f"environment {key.variable}" for key in KEYS}


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("MODELCTL_CACHE_TTL", "", ["MODELCTL_CACHE_TTL", "empty", "unset"]),
        ("MODELCTL_CACHE_TTL", "60", ["MODELCTL_CACHE_TTL", "'60' is not a duration"]),
        ("MODELCTL_CACHE_CLEAR", "", ["empty"]),
        ("MODELCTL_CACHE_CLEAR", "a,,b", ["MODELCTL_CACHE_CLEAR", "literal character"]),
        ("MODELCTL_CACHE_CLEAR", "a,*", ["literal character"]),
        ("MODELCTL_CACHE_COUNT_KEY", "\udcff", ["control characters"]),
        ("MODELCTL_DATABASE_POOL_SIZE", "five", ["MODELCTL_DATABASE_POOL_SIZE", "whole number"]),
        ("MODELCTL_DATABASE_POOL_SIZE", "1_0", ["whole number"]),
        ("MODELCTL_DATABASE_POOL_SIZE", "٥", ["whole number"]),
        ("MODELCTL_DATABASE_POOL_SIZE", "9" * 5000, ["whole number"]),
        ("MODELCTL_DATABASE_POOL_SIZE", "-5", ["1 to 1000"]),
        ("MODELCTL_HEALTH_COUNTED", "timeouts", ["'timeouts'", "nearest is 'timeout'"]),
        ("MODELCTL_REDIS_URL", "redis://h", ["redis.url", "Redis needs PostgreSQL"]),
        ("MODELCTL_CACHE_TTI", "1s", ["unknown", "MODELCTL_CACHE_TTI", "is MODELCTL_CACHE_TTL"]),
        ("MODELCTL_REDIS_PORT", "6379", ["unknown", "MODELCTL_REDIS_PORT"]),
    ],
)
def test_bad_variable_is_named(home: Path, variable: str, value: str, parts: list[str]) -> None:
    """Every fault of the environment is one error that names the variable."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, **{variable: value})
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.hint}"


def test_empty_url_in_the_environment(home: Path) -> None:
    """An empty Redis URL means no Redis, whatever the file says; an empty database URL, nothing."""
    text = f"[database]\nurl = '{POSTGRES}'\n[redis]\nurl = 'redis://h'"
    assert load(home, text, MODELCTL_REDIS_URL="").redis.url == ""
    config = load(home, text, MODELCTL_DATABASE_URL="")
    assert (config.database.url, config.origins["database.url"]) == (POSTGRES, "file")
    assert load(home, MODELCTL_DATABASE_URL=" ").embedded


@pytest.mark.parametrize(
    "name", ["MODELCTL_DATABSE_URL", "MODELCTL_DB_URL", "MODELCTL_DATABASEURL", "MODELCTL_REDISURL"]
)
def test_a_mistyped_section_is_not_passed_over(home: Path, name: str) -> None:
    """A variable that is nearly one of ours is an error: without it the fleet would be another."""
    with pytest.raises(InvalidConfigError, match=name) as caught:
        load(home, **{name: POSTGRES})
    assert "_URL" in str(caught.value.hint)


def test_variables_of_others_are_left_alone(home: Path) -> None:
    """Variables outside the sections, and those that Kubernetes adds for a service, are no faults."""
    load(
        home,
        MODELCTL_ACTOR="me",
        MODELCTL_WHATEVER="x",
        MODELCTL_REDIS_SERVICE_HOST="10.0.0.1",
        MODELCTL_REDIS_SERVICE_PORT_RESP="6379",
        MODELCTL_REDIS_PORT="tcp://10.0.0.1:6379",
        MODELCTL_REDIS_PORT_6379_TCP_ADDR="10.0.0.1",
    )


# --- URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///models.db", "models.db"),
        ("sqlite:////var/lib/models.db", "/var/lib/models.db"),
        ("sqlite:////home/me@corp/50%25%20a.db", "/home/me@corp/50% a.db"),
    ],
)
def test_sqlite_url_names_a_file(url: str, path: str) -> None:
    """Three slashes are relative, four absolute, and escapes are undone."""
    config = database(url)
    assert config.sqlite_path == Path(path)
    assert not config.embedded
    assert config.postgres_url == ""
    assert mask_url(url) == url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgres_schemes_mean_the_same(scheme: str) -> None:
    """Each spelling of the scheme becomes the one that libpq knows."""
    config = database(f"{scheme}://me:pw%40x@host:5432/db?sslmode=require")
    assert config.postgres_url == "postgresql://me:pw%40x@host:5432/db?sslmode=require"
    assert config.sqlite_path is None


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/db?host=/tmp",
        "host",
        "me@host/db",
        "me:@host/db",
        "me:a:b^c|d+e!@host/db",
        "h1:5432,h2:5433/db?target_session_attrs=read-write",
        "[::1]:5432/db",
        "[fe80::1%25eth0]/db",
        "%2Fvar%2Frun/db",
        "host/d%C3%A9j%C3%A0?options=-c%20x%3D1&application_name=",
    ],
)
def test_postgres_url_forms(rest: str) -> None:
    """Sockets, several hosts, IPv6, users without a password and parameters are accepted."""
    assert database(f"postgresql://{rest}").postgres_url == f"postgresql://{rest}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://h:6379/0",
        "rediss://:secret@h",
        "redis://me:secret@[::1]:6379/15?socket_timeout=1",
        "unix:///run/redis.sock?db=1&password=secret",
        "unix://me:secret@/run/redis.sock",
        "redis+sentinel://h1:26379,h2:26379/master",
        "rediss+sentinel://:secret@h1,h2/master/3",
        "redis+cluster://h1:6379,h2:6379",
        "rediss+cluster://h1/0",
    ],
)
def test_redis_url_forms(url: str) -> None:
    """One server, a socket, Sentinel and Cluster are accepted."""
    assert redis(url).redis.url == url


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///%3Amemory%3A", "must name a file"),
        ("sqlite:///file:x?mode=memory", "must name a file"),
        ("sqlite:////x.db?mode=ro", "must name a file"),
        ("sqlite:////x%zz.db", "must name a file"),
        ("sqlite://me:zq7secret@host/db", "must name a file"),
        ("mysql://me:zq7secret@host/db", "neither a PostgreSQL nor a SQLite URL"),
        ("postgresql+asyncpg://me:zq7secret@host/db", "neither"),
        ("POSTGRESQL://me:zq7secret@host/db", "neither"),
        ("zq7secret", "neither"),
        ("postgresql:me:zq7secret@host/db", "neither"),
        ("postgresql://me:pa@zq7secret@host/db", "percent-encoded (for example @ as %40)"),
        ("postgresql://me:pa/zq7secret@host/db", "percent-encoded"),
        ("postgresql://me:12/zq7secret@host/db", "percent-encoded"),
        ("postgresql://me:12?zq7secret@host/db", "percent-encoded"),
        ("postgresql://me:12?zq7=secret@host/db", "percent-encoded"),
        ("postgresql://me:12#zq7secret@host/db", "percent-encoded"),
        ("postgresql://me:pa%zq7secret@host/db", "percent-encoded"),
        ("postgresql://me:zq7secret%ff@host/db", "percent-encoded"),
        ("postgresql://me:zq7secret%00@host/db", "percent-encoded"),
        ("postgresql://me:zq7secret %20@host/db", "percent-encoded"),
        ("postgresql://me:zq7secret\u2100@host/db", "percent-encoded"),
        ("postgresql://me:[zq7secret]@host/db", "percent-encoded"),
        ("postgresql://me:zq7secret\n@host/db", "control characters"),
        ("postgresql://me:zq7secret@host:port/db", "a port is a number"),
        ("postgresql://me:zq7secret@host:0/db", "a port is a number"),
        ("postgresql://me:zq7secret@host:65536/db", "a port is a number"),
        ("postgresql://me:zq7secret", "a port is a number"),
        ("postgresql://[::1/db", "well-formed"),
        ("postgresql://host/db?zq7secret", "well-formed"),
        ("postgresql://host/db?password=zq7secret=&x=1", "well-formed"),
        ("postgresql://host/db?password=zq7@secret", "well-formed"),
        ("postgresql://host/db@zq7secret", "well-formed"),
    ],
)
def test_bad_database_url_is_not_shown(home: Path, url: str, part: str) -> None:
    """A URL that a driver would misread is refused, in a file too, and its password never shown."""
    with pytest.raises(InvalidConfigError) as caught:
        database(url)
    assert caught.value.message.startswith("MODELCTL_DATABASE_URL: ")
    assert part in caught.value.message
    assert "zq7" not in everything(caught.value)
    assert "zq7" not in mask_url(url) or url.startswith("sqlite:///")
    with pytest.raises(InvalidConfigError, match=r"database\.url in .*named\.toml: ") as caught:
        load(home, f'[database]\nurl = "{url}"'.replace("\n@", "\\n@"))
    assert "zq7" not in everything(caught.value)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://:zq7secret@h", "is not a Redis URL"),
        ("redis", "well-formed"),
        ("redis://:zq7secret@h/name", "must have the form of redis://"),
        ("redis://:zq7secret@h1,h2/0", "must have the form of redis://"),
        ("redis://:zq7/secret@h/0", "percent-encoded"),
        ("redis://:zq7#secret@h/0", "percent-encoded"),
        ("unix://run/redis.sock?password=zq7secret", "must have the form of unix:///"),
        ("unix://", "must have the form of unix:///"),
        ("redis+sentinel://:zq7secret@h1,h2", "h2:26379/master"),
        ("redis+sentinel://h1/master/zq7secret", "h2:26379/master"),
        ("redis+sentinel://h1,,h2/master", "h2:26379/master"),
        ("redis+cluster://:zq7secret@", "redis+cluster://h1"),
        ("rediss+cluster://:zq7secret@h1/1", "redis+cluster://h1"),
    ],
)
def test_bad_redis_url_is_not_shown(url: str, part: str) -> None:
    """A Redis URL of the wrong form is refused with the form of its scheme, and never shown."""
    with pytest.raises(InvalidConfigError) as caught:
        redis(url)
    assert caught.value.message.startswith("MODELCTL_REDIS_URL: ")
    assert part in caught.value.message
    assert "zq7" not in everything(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        (POSTGRES, POSTGRES),
        ("postgresql://me:pw@h/db", "postgresql://me:***@h/db"),
        ("postgresql://h/db?user=me&password=pw&x=1", "postgresql://h/db?user=me&password=***&x=1"),
        (
            "postgresql://h?sslpassword=pw&p%61ssword=x",
            "postgresql://h?sslpassword=***&p%61ssword=***",
        ),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("unix:///s?db=1&password=pw", "unix:///s?db=1&password=***"),
        ("postgresql://me:p@w@h/db", "postgresql://***"),
        ("me:pw@h", "***"),
    ],
)
def test_masked_url_keeps_all_but_the_passwords(url: str, shown: str) -> None:
    """Each password becomes three stars; of an unreadable URL only the scheme is left."""
    assert mask_url(url) == shown


def test_hide_knows_both_forms_of_every_password() -> None:
    """Passwords of both URLs vanish from a text, as written and decoded, the longest first."""
    config = Config(
        DatabaseConfig("postgresql://me:abcd%2Fefgh@h/db?sslpassword=abcd"),
        RedisConfig("unix:///s?password=un+der%2B"),
    )
    text = "abcd%2Fefgh abcd/efgh abcd un+der%2B un+der+ un der+ rest"
    assert config.hide(text) == "*** *** *** *** *** *** rest"
    assert Config().hide(text) == text
    assert "abcd" not in repr(config)
    assert "un+der" not in repr(config)


# The marker is in no message of ours, so that nothing is found by accident.
SECRETS = st.text(st.characters(codec="utf-8"), min_size=4, max_size=30).map("ZQ7{}".format)
PLACES = [
    "postgresql://me:{}@host/db",
    "postgresql://host/db?user=me&password={}",
    "postgresql://host/db?sslpassword={}&x=1",
]


@given(st.sampled_from(PLACES), SECRETS.filter(lambda text: "\0" not in text))
def test_encoded_password_is_never_revealed(place: str, secret: str) -> None:
    """Any password that is percent-encoded is accepted, and neither shown nor left in a text."""
    url = place.format(quote(secret, safe=""))
    config = database(url)
    assert "ZQ7" not in mask_url(url)
    assert "ZQ7" not in config.hide(f"connection to {url} failed for '{secret}'")
    assert not [row for row in settings(config) if "ZQ7" in str(row.value)]
    assert "ZQ7" not in repr(config)


@given(st.sampled_from(PLACES), SECRETS)
def test_raw_password_is_never_revealed(place: str, secret: str) -> None:
    """Any password that is not encoded either loads or fails without being shown."""
    url = place.format(secret)
    try:
        shown = database(url).hide(url)
    except InvalidConfigError as exc:
        shown = everything(exc)
    assert "ZQ7" not in shown
    assert "ZQ7" not in mask_url(url)


@given(SECRETS)
def test_raw_redis_password_is_never_revealed(secret: str) -> None:
    """The same holds for every kind of Redis URL."""
    for url in (
        f"redis://:{secret}@h/0",
        f"unix:///s?password={secret}",
        f"redis+sentinel://:{secret}@h/m",
    ):
        try:
            shown = redis(url).hide(url)
        except InvalidConfigError as exc:
            shown = everything(exc)
        assert "ZQ7" not in shown
        assert "ZQ7" not in mask_url(url)


def test_each_schema_has_a_count_of_its_own(home: Path) -> None:
    """The default name of the count carries the schema; a name that was given stays."""
    config = load(home, MODELCTL_DATABASE_SCHEMA="fleet_2")
    assert config.cache.count_key == "db:models:count:active:fleet_2"
    (shown,) = [row for row in settings(config) if row.key == "cache.count_key"]
    assert shown.origin == "default for this database.schema"
    config = load(home, MODELCTL_DATABASE_SCHEMA="fleet_2", MODELCTL_CACHE_COUNT_KEY="n")
    assert config.cache.count_key == "n"
    assert (
        load(home, MODELCTL_DATABASE_SCHEMA="modelctl").cache.count_key == "db:models:count:active"
    )


# --- config show, the example file, the actor


def test_settings_show_each_key_as_the_file_would(home: Path) -> None:
    """A row has the key, its value as in TOML, its origin and its variable; passwords are hidden."""
    config = load(
        home, "[cache]\nttl = '90s'", MODELCTL_DATABASE_URL="postgresql://me:zq7secret@h/db"
    )
    rows = {row.key: row for row in settings(config)}
    assert list(rows) == [str(key) for key in KEYS]
    assert rows["database.url"].value == "postgresql://me:***@h/db"
    assert rows["database.url"].origin == "environment MODELCTL_DATABASE_URL"
    assert rows["cache.ttl"].value == "90s"
    assert rows["cache.ttl"].origin == "file"
    assert rows["cache.ttl"].variable == "MODELCTL_CACHE_TTL"
    assert rows["health.counted"].value == ("parse-error", "client-error")
    for row in rows.values():
        tomllib.loads(f"value = {json.dumps(row.value)}")
    assert settings(Config())[0].origin == "default"


def test_example_file_is_the_defaults() -> None:
    """The example loads, changes nothing, and writes out every key but the URLs."""
    config = Config.load(EXAMPLE, environ={"HOME": "/nowhere"})
    assert config == Config(
        file=EXAMPLE, origins=config.origins, data_home=Path("/nowhere/.local/share")
    )
    assert {key for key, origin in config.origins.items() if origin == "default"} == {
        "database.url",
        "redis.url",
    }


def test_example_file_explains_every_key() -> None:
    """Above each key stand its unit, its sense and its variable, and beside it its default."""
    text = EXAMPLE.read_text()
    for key, row in zip(KEYS, settings(Config()), strict=True):
        section = text.split(f"[{key.section}]\n")[1]
        blocks = [block for block in section.split("\n\n") if f"# {key.variable}" in block]
        unit, sense = key.field.metadata["unit"], key.field.metadata["help"]
        assert blocks[0].startswith(f"# {unit}: {sense}")
        value = '# url = "' if key.secret else f"\n{key.field.name} = {json.dumps(row.value)}"
        assert value in blocks[0]


def test_urls_of_the_example_file_are_valid() -> None:
    """Each URL that the example proposes can be taken over."""
    text = EXAMPLE.read_text().partition("# [probe.")[0]
    lines = [line[2:] for line in text.splitlines() if line.startswith("# url = ")]
    assert len(lines) >= 4
    for line in lines:
        url = tomllib.loads(line)["url"]
        assert database(url) if url.startswith(("postgresql", "sqlite")) else redis(url)


def test_the_recommended_guards_can_be_taken_over(home: Path) -> None:
    """The block that the example recommends for [recovery] is valid, and switches every guard on."""
    text = EXAMPLE.read_text().partition("# Recommended for an unattended fleet")[2]
    block = text.partition("\n\n")[0].splitlines()[1:]
    config = load(home, "[recovery]\n" + "\n".join(line.removeprefix("# ") for line in block))
    rule = config.recovery
    assert (rule.cooldown_factor, rule.min_active, rule.max_auto_disabled_percent) == (2, 1, 50)
    assert (rule.incident_models, rule.max_ejections, rule.limit) == (3, 5, 10)
    assert rule.expect_every == 900


def test_the_probes_of_the_example_can_be_taken_over(home: Path) -> None:
    """Each [probe.NAME] that the example proposes is valid."""
    text = "[probe." + EXAMPLE.read_text().partition("# [probe.")[2]
    lines = [line.removeprefix("# ").removeprefix("#") for line in text.splitlines()]
    config = load(home, "\n".join(line for line in lines if not line.startswith("key_file")))
    assert {*config.probes} == {"openai", "my lab"}
    assert config.probes["openai"].max_tokens == 16


def test_settings_show_how_each_provider_is_asked(home: Path) -> None:
    """All that matters to a probe, set or not, as the file would write it; no words of a command."""
    config = load(
        home,
        "[probe.p]\nurl = 'http://h/v1'\nkey_env = 'KEY'\nallow_http = true\ntimeout = '90s'\n"
        "[probe.'my lab']\ncommand = ['ask', '--password=zq7secret']\nmodel = '{id}'",
    )
    rows = settings(config)[len(KEYS) :]
    assert [(row.key, row.value, row.origin) for row in rows] == [
        ("probe.p.url", "http://h/v1", "file"),
        ("probe.p.key_env", "KEY", "file"),
        ("probe.p.model", "{name}", "default"),
        ("probe.p.max_tokens", 16, "default"),
        ("probe.p.max_tokens_field", "max_tokens", "default"),
        ("probe.p.stream", False, "default"),
        ("probe.p.timeout", "90s", "file"),
        ("probe.p.allow_http", True, "file"),
        ("probe.p.allow_private", False, "default"),
        ('probe."my lab".command', ["ask", "..."], "file"),
        ('probe."my lab".model', "{id}", "file"),
        ('probe."my lab".timeout', "10s", "default"),
    ]
    for row in rows:
        tomllib.loads(f"{row.key} = {json.dumps(row.value)}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[probe.p]\nurl = 'http://h/v1'", ['probe."p"', "plain http"]),
        ("[probe.p]\nurll = 'x'", ["urll", "nearest is url"]),
        ("[probe.p]\ncommand = 'x'", ["command", "list of strings"]),
        ("[probe.p]\ncommand = []", ["command"]),
        ("[probe.p]\ncommand = ['x']\ntimeout = 5", ["timeout", "duration"]),
        ("[probe.p]\ncommand = ['x']\nallow_http = 1", ["allow_http", "true or false"]),
        ("[probe.p]\ncommand = ['x']\nmax_tokens = '1'", ["max_tokens", "whole number"]),
        ("[probe]\np = 1", ["probe.p", "section"]),
        ("[recovery]\ncooldown_factor = 1.05", ["cooldown_factor", "1.1 to 10"]),
        ("[recovery]\ncooldown_factor = nan", ["cooldown_factor", "1.1 to 10"]),
        ("[recovery]\ncooldown_factor = '2'", ["cooldown_factor", "a number"]),
        ("[recovery]\nmax_auto_disabled_percent = 101", ["0 to 100"]),
    ],
)
def test_bad_guards_and_probes(home: Path, text: str, words: list[str]) -> None:
    """What is wrong with a guard or a probe is one error that says where and what is expected."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, text)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_default_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable wins, else it is user@host; it is cut and can be stored."""
    host = os.uname().nodename
    assert default_actor({"MODELCTL_ACTOR": "ci", "USER": "me"}) == "ci"
    assert default_actor({"MODELCTL_ACTOR": "", "LOGNAME": "me", "USER": "you"}) == f"me@{host}"
    assert default_actor({"USER": "you"}) == f"you@{host}"
    assert default_actor({"MODELCTL_ACTOR": "x" * 300}) == "x" * 200
    assert default_actor({"MODELCTL_ACTOR": "a\udcff"}) == "a\ufffd"
    assert default_actor({}).endswith(f"@{host}")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert default_actor({}) == f"4000000@{host}"


def test_import_and_load_without_a_file_stay_cheap(home: Path) -> None:
    """Nothing that only a file, a fault or a nameless user needs is loaded at start."""
    code = (
        "import sys, modelctl.config.load as l; from modelctl.config.config import Config;"
        "l.SYSTEM_FILE = l.Path('/nowhere'); Config.load(); l.default_actor();"
        "print(*{'tomllib', 'difflib', 'pwd', 'json', 'socket'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "USER": "me"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


# Secrets in files, and parameters of URLs


def test_a_url_in_a_file_of_its_own(tmp_path: Path) -> None:
    """Docker and Kubernetes give a secret as a file, which a variable with _FILE names."""
    secret = tmp_path / "secret"
    secret.write_text("postgresql://u:zq7@h/db\n")
    config = Config.load(environ={"MODELCTL_DATABASE_URL_FILE": str(secret)})
    assert config.database.url == "postgresql://u:zq7@h/db"
    assert config.origin("database.url") == "environment MODELCTL_DATABASE_URL_FILE"
    assert "zq7" not in repr(config)


@pytest.mark.parametrize(
    ("written", "more", "words"),
    [
        (None, {}, "cannot read"),
        (b"\xff", {}, "not text"),
        (b"\n", {}, "empty"),
        (b"ftp://h:zq7", {}, "MODELCTL_DATABASE_URL_FILE: is neither"),
        (b"postgresql://h/db", {"MODELCTL_DATABASE_URL": "postgresql://h/x"}, "both set"),
    ],
)
def test_a_wrong_file_of_a_secret(
    tmp_path: Path, written: bytes | None, more: dict[str, str], words: str
) -> None:
    """The message names the variable, and shows nothing of what is in the file."""
    secret = tmp_path / "secret"
    if written is not None:
        secret.write_bytes(written)
    with pytest.raises(InvalidConfigError, match=words) as caught:
        Config.load(environ={"MODELCTL_DATABASE_URL_FILE": str(secret), **more})
    assert "MODELCTL_DATABASE_URL" in caught.value.message
    assert "zq7" not in everything(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://h?decode_responses=true", "decode_responses"),
        ("redis://h?socket_timeout=soon", "socket_timeout"),
        ("redis+sentinel://h/main?nonsense=1", "nonsense"),
        ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
        ("rediss://h?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
    ],
)
def test_a_parameter_of_redis_is_refused_at_once(url: str, name: str) -> None:
    """Not only after a change is committed."""
    environ = {"MODELCTL_DATABASE_URL": POSTGRES, "MODELCTL_REDIS_URL": url}
    with pytest.raises(InvalidConfigError, match=f"MODELCTL_REDIS_URL.*'{name}'"):
        Config.load(environ=environ)


@pytest.mark.parametrize(
    ("parameter", "hint"),
    [("schema=app", "search_path"), ("pgbouncer=true", "leave it out"), ("sslmod=x", "'sslmode'")],
)
def test_a_parameter_of_postgresql_is_named(parameter: str, hint: str) -> None:
    """What other programs write into their URLs is unknown to PostgreSQL: which one, and what to do."""
    from modelctl import Fleet

    config = Config.load(environ={"MODELCTL_DATABASE_URL": f"postgresql://u:zq7@h/db?{parameter}"})
    with pytest.raises(InvalidConfigError, match=f"'{parameter.partition('=')[0]}'") as caught:
        Fleet.open(config).disable("m")
    assert hint in str(caught.value.hint)
    assert "zq7" not in everything(caught.value)
