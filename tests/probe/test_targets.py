"""A probe goes only where it may: public addresses, the right certificate, no redirect, no proxy."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from modelctl.config.probes import ProbeConfig
from modelctl.errors import InvalidConfigError
from modelctl.model import FailureType
from modelctl.outbound.addresses import is_public
from modelctl.probe.ask import ask
from tests.probe.provider import KEY, Server, ask_one, failed, secured, serving, targets


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Make models.test these addresses, once; return the names that are asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "models.test":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        now = addresses if len(asked) == 1 else ("127.0.0.3",)
        return [info for address in now for info in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A redirect is a failure, and no other server sees the request or the key."""
    monkeypatch.setenv("KEY", KEY)
    with serving() as other:
        server.elsewhere = f"http://{other.place}/ok"
        answer = ask_one(server.config(f"redirect/{status}", key_env="KEY"))
        failed(answer, None, f"HTTP {status}: a redirect, refused")
        assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",  # a name, here without a resolver of our own
        "127.1",
        "0x7f000001",
        "2130706433",
        "0.0.0.0",  # noqa: S104 - to connect to
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:8.8.8.8]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::808:808]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "192.0.0.8",
        "192.0.0.192",  # asked by machines of Oracle about themselves
        "168.63.129.16",  # of Azure
        "100.100.100.200",  # of Alibaba
        "192.88.99.1",
        "198.18.0.1",
        "[64:ff9b::a9fe:a9fe]",  # 169.254.169.254
        "[64:ff9b::a83f:8110]",  # 168.63.129.16
        "[::ffff:0:10.0.0.1]",
        "[::10.0.0.1]",
        "[2001:0:7f00:1::]",  # Teredo
        "[2606:4700::5efe:10.0.0.1]",  # ISATAP
        "[2606:4700::200:5efe:10.0.0.1]",
        "[3fff::1]",
        "[5f00::1]",
        "[fd00:ec2::254]",
    ],
)
def test_private_addresses_are_refused(server: Server, host: str) -> None:
    """Without allow_private only addresses of the public Internet are connected to."""
    url = f"http://{host}:{server.server_port}/ok"
    answer = ask_one(server.config("", url=url, allow_private=False))
    failed(answer, None, "not a public address")
    assert server.requests == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    """Public addresses are allowed, also an IPv4 address in the form of an IPv6-only network."""
    assert is_public(address)


@given(
    st.one_of(
        st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
        st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
        st.integers(0x2000 << 112, (0x2004 << 112) - 1).map(ipaddress.IPv6Address),
        st.sampled_from(["192.0.0.0", "192.0.1.0", "168.63.129.0"]).flatmap(
            lambda start: st.integers(0, 255).map(lambda n: ipaddress.ip_address(start) + n)
        ),
    )
)
def test_what_any_python_calls_private_is_refused(ip: Any) -> None:
    """modelctl refuses every address that this Python calls private."""
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_loopback:
        assert not is_public(str(ip))


def test_one_private_address_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has a public and a private address is refused."""
    resolving(monkeypatch, "8.8.8.8", "127.0.0.1")
    url = f"http://models.test:{server.server_port}/ok"
    answer = ask_one(server.config("", url=url, allow_private=False))
    failed(answer, None, "models.test is 127.0.0.1")
    assert server.requests == []


def test_a_name_is_resolved_once(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was checked is connected to, while TLS and Host have the name."""
    with secured(authority, "models.test") as server:
        asked = resolving(monkeypatch, "127.0.0.2", "127.0.0.1")  # nobody listens at the first
        url = f"https://models.test:{server.server_port}/ok"
        answers = list(ask(targets(5), {"p": server.config("", url=url)}))
        assert [answer.healthy for answer in answers] == [True] * 5
        assert asked == ["models.test"]
        assert server.names == ["models.test"] * 5
        assert {h["Host"] for _, h, _ in server.requests} == {f"models.test:{server.server_port}"}


def test_an_address_that_hangs(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable address leaves the other addresses their share of the time."""
    with secured(authority, "models.test") as server:
        resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
        url = f"https://models.test:{server.server_port}/ok"
        with socket.create_server(("127.0.0.2", server.server_port)):  # begins no TLS
            answer = ask_one(server.config("", url=url, timeout=2))
        assert answer.healthy
        assert 0.9 < answer.seconds < 2


def test_what_was_sent_is_not_sent_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address is tried only if nothing was sent to the previous address."""
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    url = f"http://models.test:{server.server_port}/cut/head"
    with socket.create_server(("127.0.0.2", server.server_port)) as other:
        failed(ask_one(server.config("", url=url, timeout=2)), FailureType.NETWORK_ERROR)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert len(server.requests) == 1


def test_ipv6() -> None:
    """An IPv6 address in a URL is connected to."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        url = f"http://[::1]:{listener.getsockname()[1]}/v1"
        config = ProbeConfig("p", url=url, allow_http=True, allow_private=True, timeout=0.5)
        failed(ask_one(config), FailureType.TIMEOUT)
        connection, _ = listener.accept()
        with connection:
            assert f"Host: {url[7:-3]}\r\n".encode() in connection.recv(65536)


def test_tls(authority: trustme.CA) -> None:
    """A certificate that is trusted and of the right host is accepted, by address too."""
    with secured(authority, "127.0.0.1") as server:
        assert ask_one(server.config("ok")).healthy


def test_certificate_of_another_name(authority: trustme.CA) -> None:
    """A certificate of another host is refused before anything is sent."""
    with secured(authority, "other.example") as server:
        url = f"https://localhost:{server.server_port}/ok"
        failed(
            ask_one(server.config("", url=url)),
            FailureType.NETWORK_ERROR,
            "certificate refused: Hostname mismatch",
        )
        assert server.requests == []


def test_certificate_of_a_stranger(authority: trustme.CA) -> None:
    """A certificate that no trusted CA signed is refused."""
    with secured(trustme.CA(), "127.0.0.1") as server:
        answer = ask_one(server.config("ok"))
        failed(answer, FailureType.NETWORK_ERROR, "certificate refused: ")
        assert server.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A wrong SSL_CERT_FILE is a matter of configuration, not of the models."""
    if content:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(InvalidConfigError, match="SSL_CERT_FILE"):
        ask(targets(1), {"p": ProbeConfig("p", url="https://models.test")})


def test_proxies_and_netrc_are_ignored(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the environment sends a request elsewhere or adds a password."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.place}")
        assert ask_one(server.config("ok")).healthy
        assert proxy.requests == []
    assert "Authorization" not in server.requests[0][1]
