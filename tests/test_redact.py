"""What looks like a key or a password never reaches the database with a reason."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl import Fleet
from modelctl.redact import redact, storable_reason
from tests import fleets
from tests.waiting import at_most

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
# What may follow a known beginning, in the alphabets of the providers.
TAIL = "9aB8cD7eF6gH5iJ4kL3mN2oP1qR0"
KEYS = [
    "sk-1234",
    "sk-abcdEFGHijklMNOPqrst",
    f"sk-proj-{TAIL}_x-y",
    f"sk-ant-api03-{TAIL}-{TAIL}AA",
    f"sk-or-v1-{TAIL}",
    "sk-abc***************xyz9",
    f"pk-lf-{TAIL}",
    f"sk_live_{TAIL}",
    f"gsk_{TAIL}",
    f"AIzaSy{TAIL}",
    f"ya29.{TAIL}",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    f"ABSK{TAIL}==",
    JWT,
    f"ghp_{TAIL}",
    f"github_pat_{TAIL}",
    f"hf_{TAIL}",
    f"r8_{TAIL}",
    f"xai-{TAIL}",
    f"pplx-{TAIL}",
    f"nvapi-{TAIL}",
    f"xoxb-{TAIL}",
    "dapi0123456789abcdef0123456789abcdef",
    f"SK-{TAIL.upper()}",
    "SK-1234",
    f"glc_eyJ{TAIL}=",
    f"glsa_{TAIL}_1a2b3c4d",
    f"sntrys_eyJ{TAIL}=_{TAIL}",
    f"pypi-{TAIL}",
    f"lsv2_pt_{TAIL}",
    f"pcsk_{TAIL}",
    f"hvs.{TAIL}",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "text",
    ["{}", "Incorrect API key provided: {}. See https://x.test", "key={}&b=1", '("{}")', "<{}>"],
)
def test_a_key_that_is_known_by_its_beginning_goes(key: str, text: str) -> None:
    """A key of a provider is hidden wherever it stands, and the words around it stay."""
    said = redact(text.format(key))
    assert key not in said
    assert not any(part in said for part in key.split("***") if len(part) > 4)
    assert said.startswith(text.partition("{}")[0])
    assert "***" in said


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("authorization: Bearer abcdef", "authorization: ***"),
        ("sent Bearer abc.def-ghi to x", "sent Bearer *** to x"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        (
            "{'Authorization': 'Bearer abcdef', 'Host': 'x'}",
            "{'Authorization': '***', 'Host': 'x'}",
        ),
        ("x-api-key: 0123456789abcdef", "x-api-key: ***"),
        ("Ocp-Apim-Subscription-Key: 0123456789abcdef", "Ocp-Apim-Subscription-Key: ***"),
        ('{"api_key": "with blanks", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("OPENAI_API_KEY=abc next", "OPENAI_API_KEY=*** next"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = ***"),
        ("GET /v1?key=abcdef&alt=json", "GET /v1?key=***&alt=json"),
        (
            "/x?X-Amz-Signature=abc&X-Amz-Security-Token=def",
            "/x?X-Amz-Signature=***&X-Amz-Security-Token=***",
        ),
        ("password=hunter2, user=x", "password=***, user=x"),
        ("PGPASSWORD: 'it''s'", "PGPASSWORD: '***''s'"),
        ("cannot reach postgres://u:p%40ss@h:5432/db", "cannot reach postgres://***@h:5432/db"),
        ("redis://:secret@h", "redis://***@h"),
        ("https://user:pa@ss@h/x, ask a@b.test", "https://***@h/x, ask a@b.test"),
        ("Bearer: abcdef123456", "Bearer: ***"),
        ("token=abc123", "token=***"),
        ("AccountKey=abcd1234==;EndpointSuffix=x", "AccountKey=***;EndpointSuffix=x"),
        (f"Mistral key {TAIL} is wrong", "Mistral key *** is wrong"),
        ("id / wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "id / ***"),
        (f"https://{TAIL}@h/x", "https://***@h/x"),
        ("set-cookie: sid=1; path=/", "set-cookie: ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nx\n-----END RSA PRIVATE KEY----- end", "*** end"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "***"),
        ("the password is hunter2, try it", "the password is ***, try it"),
        ("Your password was letmein", "Your password was ***"),
        ("password is 'correct horse'", "password is '*** horse'"),
        ("DB_PASSWORD is swordfish!", "DB_PASSWORD is ***"),
        ("login with password hunter2 failed", "login with password *** failed"),
        ("its passphrase is not-so-secret", "its passphrase is ***"),
        ("the key is 0a1b2c3d4e", "the key is ***"),
        ("its token was abc-123-def", "its token was ***"),
    ],
)
def test_what_its_name_calls_secret_goes(text: str, left: str) -> None:
    """The value of a header, field, variable or URL that is secret is hidden; its name stays."""
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "max_tokens: 16 is too large, max_completion_tokens=32",
        "context_length_exceeded: 8192 tokens, prompt_tokens: 9000",
        "Unexpected token: <, at position 0",
        "Unexpected token < in JSON",
        "sk-learn is no model",
        "SK-Learn and SK Hynix are no keys",
        "the password is wrong",
        "password is not set; the password was rejected, or is expired.",
        "Password is too short",
        "the token is invalid, the next token is [",
        "the API key is missing; a secret is required",
        "its key is 5",
        "a password field of 12 characters",
        "glc is not gcc",
        "password authentication failed for user x",
        "see https://platform.example.com/account/api-keys",
        "http://127.0.0.1:8000/v1/chat/completions answered 502",
        "hf:org/model and key-value stores",
        "basic tier, bearer of news",
        "12:30:45 request_id=req_123",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "https://h:8080 failed, ask admin@x.test",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    """A reason without a secret is stored as it was given."""
    assert redact(text) == text


@given(st.text(), st.sampled_from(KEYS), st.text())
def test_no_text_around_it_saves_a_key(before: str, key: str, after: str) -> None:
    """A key that stands as a word of its own is hidden whatever stands around it."""
    assert key not in redact(f"{before} {key} {after}")


@given(st.text())
def test_twice_is_as_once_in_what_it_hides(text: str) -> None:
    """Looking through any text ends, and gives text."""
    assert isinstance(redact(text), str)


def test_a_key_at_the_cut_is_hidden_first() -> None:
    """A reason is cut after its keys are hidden, so that no part of a key is left."""
    key = f"sk-proj-{TAIL}"
    assert storable_reason(f"{'x' * 490} {key}", 500) == f"{'x' * 490} ***"


@pytest.mark.parametrize(
    "part",
    ["a-", "api_key='", "://a:", "eyJabcdefg.", "secret_", "bearer ", "password ", "password-is "],
)
def test_a_long_text_takes_time_in_proportion(part: str) -> None:
    """No text makes the search quadratic: ten times the text takes less than fifty times as long."""

    def seconds(times: int) -> float:
        text = part * times
        began = time.perf_counter()
        redact(text)
        return time.perf_counter() - began

    short = min(seconds(5_000) for _ in range(3))
    assert seconds(50_000) < 50 * short + 0.5


def test_no_way_into_the_database_keeps_a_key(fleet: Fleet, fleet_url: str) -> None:
    """Whatever stores a reason hides keys in it: people, single outcomes, batches, pauses."""
    key = f"sk-proj-{TAIL}"
    fleet.add("a")
    fleet.record_failure("a", "parse-error", reason=f"1 {key}")
    failure = {"id": "a", "outcome": "failure", "type": "parse-error", "reason": f"2 {key}"}
    fleet.record_batch([failure] * 4)
    fleet.enable("a", reason=f"3 {key}")
    fleet.disable("a", reason=f"4 {key}")
    fleet.pause(60, reason=f"5 {key}")
    fleet.resume(reason=f"6 {key}")
    stored = repr(fleets.everything(fleet_url))
    assert key not in stored
    assert all(f"{n} ***" in stored for n in (2, 3, 4, 6))


def test_only_the_beginning_of_a_huge_reason_is_looked_at() -> None:
    """A reason of 10 MB costs no more than its beginning; a key at the end of what is stored is hidden."""
    with at_most(5):
        assert storable_reason("no " * 3_000_000, 500) == ("no " * 200)[:500]
    assert storable_reason(f"{'- ' * 45_000}sk-proj-{TAIL}", 90_010) == f"{'- ' * 45_000}***"
