"""URLs of databases and of Redis are understood in every form, and their passwords are never shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.config.config import Config
from modelctl.config.sections import DatabaseConfig, RedisConfig
from modelctl.config.settings import settings
from modelctl.errors import InvalidConfigError
from modelctl.urls.url import mask_url
from tests.config.loading import POSTGRES, database, load, redis


def everything(error: InvalidConfigError) -> str:
    """All that a person, a log or a traceback could show of *error*."""
    return f"{error.message} {error.hint} {error!r} {error.__cause__!r}"


# ── URLs ──


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
    """A single server, a socket, Sentinel and Cluster are accepted."""
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
    """A raw password is hidden in every kind of Redis URL."""
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
    """A wrong parameter of Redis is refused when a command starts, not only after a change is committed."""
    environ = {"MODELCTL_DATABASE_URL": POSTGRES, "MODELCTL_REDIS_URL": url}
    with pytest.raises(InvalidConfigError, match=f"MODELCTL_REDIS_URL.*'{name}'"):
        Config.load(environ=environ)


@pytest.mark.parametrize(
    ("parameter", "hint"),
    [("schema=app", "search_path"), ("pgbouncer=true", "leave it out"), ("sslmod=x", "'sslmode'")],
)
def test_a_parameter_of_postgresql_is_named(parameter: str, hint: str) -> None:
    """A parameter that PostgreSQL does not know is named, with what to do about it."""
    from modelctl import Fleet

    config = Config.load(environ={"MODELCTL_DATABASE_URL": f"postgresql://u:zq7@h/db?{parameter}"})
    with pytest.raises(InvalidConfigError, match=f"'{parameter.partition('=')[0]}'") as caught:
        Fleet.open(config).disable("m")
    assert hint in str(caught.value.hint)
    assert "zq7" not in everything(caught.value)
