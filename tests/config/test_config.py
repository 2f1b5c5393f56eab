"""The configuration is found, read and checked: environment over file over default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelctl.config.config import Config
from modelctl.config.sections import (
    KEYS,
    CacheConfig,
    DatabaseConfig,
    HealthConfig,
    HistoryConfig,
    RecoveryConfig,
    RedisConfig,
)
from modelctl.errors import InvalidConfigError
from modelctl.health import cooldowns
from modelctl.model import FailureType
from tests.config.loading import POSTGRES, load

# ── which file, and what wins ──


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
    """Without a home folder the embedded database is refused, and a database that is named works."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(InvalidConfigError, match="no home folder"):
        Config.load(environ={})
    assert Config.load(environ={"MODELCTL_DATABASE_URL": POSTGRES}).sqlite_path is None
    assert Config.load(environ={"XDG_DATA_HOME": "/d"}).embedded


def test_byte_order_mark_and_crlf_are_no_fault(home: Path) -> None:
    """A file written by a Windows editor is read."""
    assert load(home, b'\xef\xbb\xbf[cache]\r\nttl = "5s"\r\n').cache.ttl == 5


# ── bad files ──


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
    """Each mistake in a file is one error that names the file or key and what is expected."""
    with pytest.raises(InvalidConfigError) as caught:
        load(home, text)
    for part in parts:
        assert part in f"{caught.value.message} {caught.value.hint}"


def test_a_cooldown_beyond_the_default_cap(home: Path) -> None:
    """A cooldown longer than the default cap is an error only if the user set the cap."""
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


# ── the environment ──


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
        MODELCTL_HISTORY_KEEP="90d",
    )
    assert config.database == DatabaseConfig(POSTGRES, 7, 1.0, 20.0, "fleet_2")
    assert config.redis == RedisConfig("redis://h", 8, 0.25)
    assert config.cache == CacheConfig(1.0, "n", ("a", "b:*"))
    assert config.health == HealthConfig(3, (FailureType.TIMEOUT,), 9)
    assert config.history == HistoryConfig(7776000.0)
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
    """Each mistake in the environment is one error that names the variable."""
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
    """A variable that is nearly one of modelctl's is an error, because it would be ignored otherwise."""
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
