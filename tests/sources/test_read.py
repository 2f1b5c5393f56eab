"""What a source may do: refuse, throttle, fail half way, answer something else; and what comes of it."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import trustme

from modelctl.config.sources import SourceConfig
from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    ModelctlError,
    UsageError,
)
from modelctl.sources import fetch
from modelctl.sources.read import read_source
from tests.sources.server import KEY, Handler, Lists, listing, models, status

LIST = {"object": "list", "data": models("a", "b")}
TEXT = json.dumps(LIST).encode()


def ids(config: SourceConfig) -> list[str]:
    """Read a source and return its ids."""
    found = read_source(config)
    return [model.id for model in found.models]


def cut(handler: Handler) -> None:
    """Send half of an answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + TEXT)


def cut_in_a_chunk(handler: Handler) -> None:
    """Send half of an answer whose length is not said before."""
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n"
    handler.wfile.write(start + TEXT[:20])


def silent(handler: Handler) -> None:
    """Answer nothing until the client goes away."""
    handler.rfile.read(1)


def slow(handler: Handler) -> None:
    """Send one blank after another."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def endless(handler: Handler) -> None:
    """Send as much as the client takes."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 65536)


def echo(handler: Handler) -> None:
    """Show what was sent, as a careless server does."""
    said = f"bad header {handler.headers['Authorization']} " * 40
    handler.send({"error": {"message": said + "\x1b[31m"}}, 401)


PACKED = gzip.compress(TEXT)
LATER, NEVER, CONTENT = DatabaseUnavailableError, InvalidConfigError, UsageError


@pytest.mark.parametrize(
    ("answer", "error", "words", "tries"),
    [
        (status(401, {"error": {"message": "no such key"}}), NEVER, "HTTP 401: no such key", 1),
        (status(404, b"<html>lost</html>"), NEVER, "HTTP 404", 1),
        (echo, NEVER, r"bad header Bearer \*\*\*", 1),
        (status(429, b"", Retry_After="0"), LATER, "HTTP 429", 5),
        (status(429, b"", Retry_After="600"), LATER, "HTTP 429; it asks to wait 600 s", 1),
        (status(500, b"\xff"), LATER, "HTTP 500", 5),
        (status(503, {"message": "busy"}), LATER, "HTTP 503: busy", 5),
        (status(204), LATER, "HTTP 204", 5),
        (status(302, b"", Location="http://127.0.0.1:1/"), NEVER, "redirect to another server", 1),
        (status(307, b"", Location="/v1/models"), NEVER, "more than 5 redirects", 6),
        (status(302), LATER, "HTTP 302", 5),
        (cut, LATER, "connection broke", 5),
        (cut_in_a_chunk, LATER, "connection broke", 5),
        (lambda handler: None, LATER, "connection broke", 5),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), LATER, "speak HTTP", 5),
        (silent, LATER, "no whole answer within", 1),
        (slow, LATER, "no whole answer within", 1),
        (endless, NEVER, "the answer has more than", 1),
        (b"<!DOCTYPE html><p>Log in", NEVER, "a page of HTML", 1),
        (status(200, b"[]", Content_Type="text/html; charset=utf-8"), NEVER, "page of HTML", 1),
        ({"error": {"message": f"bad key {KEY}"}}, CONTENT, r"error message: bad key \*\*\*", 1),
        (b"", CONTENT, "is empty", 1),
        (b"not JSON", CONTENT, "is not JSON", 1),
        (TEXT[:30], CONTENT, "is not JSON", 1),
        ({"data": [{"id": "u", "email": "x"}]}, CONTENT, "has no models", 1),
        ({"data": [{"id": " ", "object": "model"}]}, CONTENT, "no entry is a model; entry 1", 1),
        (status(200, PACKED[:-9], Content_Encoding="gzip"), LATER, "ended too early", 5),
        (status(200, PACKED + b"x", Content_Encoding="gzip"), NEVER, "goes on after its end", 1),
        (status(200, TEXT, Content_Encoding="gzip"), NEVER, "is not packed as it says", 1),
        (status(200, TEXT, Content_Encoding="br"), NEVER, "packed with br", 1),
        (
            status(200, gzip.compress(b" " * (3 << 20)), Content_Encoding="gzip"),
            NEVER,
            "the answer has more than 2 MiB",
            1,
        ),
    ],
)
def test_a_source_that_cannot_be_read(
    server: Lists,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    error: type[ModelctlError],
    words: str,
    tries: int,
) -> None:
    """The error names the source and says why; what may pass is tried again, and no key is shown."""
    monkeypatch.setattr(fetch, "LARGEST", 2 << 20)
    monkeypatch.setenv("CATALOGUE_KEY", KEY)
    waits = answer in (silent, slow)
    source = server.source(answer, key_env="CATALOGUE_KEY", timeout=0.5 if waits else 30)
    with pytest.raises(error, match=words) as caught:
        read_source(source)
    message = f"{caught.value.message} {caught.value.hint}"
    assert message.startswith("source 'mine': ")
    assert len(server.asked) == tries or waits  # for so little that a slow machine may not even ask
    assert KEY[:8] not in message
    assert server.url not in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    "answers",
    [
        [status(503), status(429, b"", Retry_After="1"), LIST],
        [cut, LIST],
        [cut_in_a_chunk, LIST],
        [status(302, b"", Location="/elsewhere?x=1"), LIST],
        [status(308, b"", Location="elsewhere"), LIST],
        [status(200, PACKED, Content_Encoding="gzip")],
        [status(200, zlib.compress(TEXT), Content_Encoding="deflate")],
        [status(200, zlib.compress(TEXT)[2:-4], Content_Encoding="Deflate")],
        [status(200, b"\xef\xbb\xbf" + TEXT, Content_Type="text/plain")],
        [b'{"id": "a"}\n{"id": "b"}\n'],
    ],
)
def test_a_source_that_is_read_in_the_end(server: Lists, answers: list[Any]) -> None:
    """What a server throttles, breaks off, moves or packs is read nevertheless, and once."""
    assert ids(server.source(*answers)) == ["a", "b"]


def test_an_emptied_list_is_no_error(server: Lists) -> None:
    """A list without models is read as such; it is for the plan to refuse it."""
    assert ids(server.source({"object": "list", "data": []})) == []


def test_what_is_taken(server: Lists) -> None:
    """Patterns, modes, prefix and provider of the source are applied."""
    answer = {
        "data": [
            {"id": f"x/{n}", "canonical_slug": "s", "name": n, "architecture": {"modality": mode}}
            for n, mode in [("a", "text->text"), ("b", "text->image"), ("c:free", "text->text")]
        ]
    }
    found = read_source(
        server.source(
            answer, only=("router/x/*",), except_=("*:free",), modes=("chat",), prefix="router/"
        )
    )
    assert [(m.id, m.display_name, m.provider) for m in found.models] == [("router/x/a", "a", "x")]
    assert found.left_out == 2
    found = read_source(server.source(answer, provider="router"))
    assert {m.provider for m in found.models} == {"router"}
    with pytest.raises(UsageError, match="leaves out all the models of the catalogue: 3 models"):
        read_source(server.source(answer, only=("nothing",)))


@pytest.mark.parametrize(
    ("keys", "headers"),
    [
        ({}, {"Authorization": f"Bearer {KEY}"}),
        ({"format": "anthropic"}, {"x-api-key": KEY, "anthropic-version": "2023-06-01"}),
        ({"format": "gemini"}, {"x-goog-api-key": KEY}),
        ({"key_header": "api-key"}, {"api-key": KEY}),
    ],
)
def test_the_key_goes_to_its_own_host_alone(
    server: Lists,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    keys: dict[str, str],
    headers: dict[str, str],
) -> None:
    """The key is in the header of the format, or in the one that is named, and nowhere else."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    with listing() as other:
        answer = status(302, b"", Location=other.url)
        with pytest.raises(InvalidConfigError, match="redirect"):
            read_source(server.source(answer, key_file=str(tmp_path / "key"), **keys))
        assert other.asked == []
    [(path, sent)] = server.asked
    assert path == "/v1/models"
    assert headers.items() <= sent.items()
    assert sum(KEY in value for value in sent.values()) == 1
    monkeypatch.setenv("CATALOGUE_KEY", "two\nlines")
    with pytest.raises(InvalidConfigError, match="has characters that no key has"):
        read_source(server.source(LIST, key_env="CATALOGUE_KEY"))
    with pytest.raises(InvalidConfigError, match="NO_SUCH_KEY is not set"):
        read_source(server.source(LIST, key_env="NO_SUCH_KEY"))
    assert len(server.asked) == 1


def test_no_private_address_and_nobody_there(server: Lists) -> None:
    """A private address is refused before anything is sent; a refused connection is temporary."""
    with pytest.raises(InvalidConfigError, match=r"127.0.0.1 is not public; allow_private permits"):
        read_source(server.source(LIST, allow_private=False))
    assert server.asked == []
    with pytest.raises(DatabaseUnavailableError, match="Connection refused"):
        read_source(server.source(LIST, url="http://127.0.0.1:9/x"))


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https the certificate of the server must be trusted, and packed pages are read."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with listing(context) as server:
        source = server.source(status(200, PACKED, Content_Encoding="gzip"), allow_http=False)
        with pytest.raises(DatabaseUnavailableError, match="certificate refused"):
            read_source(source)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert ids(source) == ["a", "b"]


# ── Files and commands ──


def test_a_file(tmp_path: Path) -> None:
    """A file is read as `import` reads it; one that is not there or not whole is an error."""
    file = tmp_path / "models.json"
    file.write_bytes(TEXT)
    assert ids(SourceConfig("mine", file=str(file))) == ["a", "b"]
    file.write_text(json.dumps(LIST | {"has_more": True}))
    with pytest.raises(UsageError, match="source 'mine': it is one page of a longer list"):
        read_source(SourceConfig("mine", file=str(file)))
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    not_regular = "not a regular file|Is a directory"
    for name, why in [("none", "No such file"), ("", not_regular), ("pipe", not_regular)]:
        with pytest.raises(InvalidConfigError, match=why):
            read_source(SourceConfig("mine", file=f"{tmp_path}/{name}"))


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo password=zq7secret >&2; exit 3", LATER, r"exit 3: password=\*\*\*"),
        ("exit 0", CONTENT, "is empty"),
        ("echo no JSON", CONTENT, "is not JSON"),
        ("no-such-program", NEVER, "exit 127"),
        ("sleep 60", LATER, "did not end within 1 s"),
        ("yes", NEVER, "printed more than 2 MiB"),
    ],
)
def test_a_command_that_gives_no_catalogue(
    monkeypatch: pytest.MonkeyPatch, script: str, error: type[ModelctlError], words: str
) -> None:
    """A command that fails, hangs or prints something else is an error that says so."""
    monkeypatch.setattr("modelctl.sources.read.LARGEST", 2 << 20)
    timeout = 1 if "sleep" in script else 30
    with pytest.raises(error, match=words):
        read_source(SourceConfig("mine", command=("sh", "-c", script), timeout=timeout))


def test_a_command(tmp_path: Path) -> None:
    """What a command prints is its catalogue, and no shell is between."""
    (tmp_path / "$(x)").write_bytes(TEXT)
    program = "import sys; print(open(sys.argv[1]).read())"
    words = (sys.executable, "-c", program, str(tmp_path / "$(x)"))
    assert ids(SourceConfig("mine", command=words)) == ["a", "b"]
    with pytest.raises(InvalidConfigError, match="cannot run /no/such/program"):
        read_source(SourceConfig("mine", command=("/no/such/program",)))


def test_what_is_said_of_an_entry_has_no_key(
    server: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may repeat the key in an id; nothing that is said of rejected entries has it."""
    monkeypatch.setenv("CATALOGUE_KEY", KEY)
    answer = {"data": [*models("a"), {"id": f"{KEY}\t", "object": "model"}]}
    [entry] = read_source(server.source(answer, key_env="CATALOGUE_KEY")).rejected
    assert (entry.id, KEY in entry.why) == (r"***\t", False)
