"""Catalogues of real services give the models that they should; the files are in catalogues/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from modelctl import Fleet, UsageError
from modelctl.catalog.formats import FORMATS
from modelctl.catalog.parse import Catalog, parse
from modelctl.catalog_format import CatalogFormat
from tests import fleets
from tests.catalog.texts import rows, text
from tests.commands import Cli, commands

FOLDER = Path(__file__).parent / "catalogues"


def read(name: str, **how: Any) -> Catalog:
    """Read one of the files."""
    return parse((FOLDER / name).read_bytes(), **how)


@pytest.mark.parametrize(
    ("name", "format_", "expected"),
    [
        ("alias.json", "litellm", [("gpt-x-2", "", "openai"), ("gpt-x-latest", "", "openai")]),
        ("dup.json", "litellm", [("a/m", "", "last")]),
        (
            "together.json",
            "jsonl",
            [
                ("meta-llama/Llama-Small", "Llama Small", "Meta"),
                ("vendor-x/embedder-1", "Embedder 1", "Vendor X"),
            ],
        ),
        (
            "requesty_bare.json",
            "jsonl",
            [("nvidia/alpha-1", "", "nvidia"), ("google/beta-2", "", "google")],
        ),
        ("github_models.json", "jsonl", [("openai/gpt-x", "OpenAI GPT-X", "OpenAI")]),
        ("lmstudio_v0.json", "openai", [("vendor/model-a", "", "vendor")]),
        ("ollama_tags.json", "ollama", [("llama3:8b", "", "ollama")]),
        (
            "openwebui_api_models.json",
            "openai",
            [
                ("gpt-4o", "gpt-4o", "openai"),
                ("llama3:8b", "llama3:8b", "ollama"),
                ("anthropic/claude-x", "Claude X", "openai"),
            ],
        ),
        ("openwebui_export.json", "jsonl", [("team-helper", "Team helper", "")]),
        ("litellm_model_info.json", "litellm-proxy", [("smart", "", "openai")]),
        ("litellm_config.yaml", "litellm-proxy", [("gpt-x", "", "openai")]),
        ("newapi_pricing.json", "newapi", [("gpt-x", "", "")]),
        (
            "bedrock.json",
            "bedrock",
            [
                ("vendor-a.chat-x-v1:0", "Chat X", "Vendor A"),
                ("vendor-b.embed-y-v2", "Embed Y", "Vendor B"),
            ],
        ),
        (
            "fireworks.json",
            "fireworks",
            [
                ("accounts/fireworks/models/alpha-8b", "Alpha 8B", "fireworks"),
                ("accounts/someone/models/tuned", "", "fireworks"),
            ],
        ),
        (
            "huggingface.json",
            "huggingface",
            [("org-a/alpha-8b", "", "org-a"), ("beta", "", "")],
        ),
        ("openai_owned_by.json", "openai", [("gpt-4o", "", ""), ("gpt-4o-ft", "", "")]),
        ("models_own_export.jsonl", "jsonl", [("a/m1", "M1", "a"), ("a/m2", "M2", "a")]),
        (
            "providers_list.json",
            "providers",
            [("claude-a", "Claude A", "anthropic"), ("gpt-x", "", "openai")],
        ),
    ],
)
def test_what_each_service_gives(
    name: str, format_: str, expected: list[tuple[str, str, str]]
) -> None:
    """The models of every service arrive with their ids, names and providers."""
    found = read(name)
    assert (found.format, rows(found), [*found.rejected]) == (format_, expected, [])
    assert rows(read(name, format=CatalogFormat(format_))) == expected


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("anthropic_page1.json", "has_more", [("claude-a", "Claude A", "anthropic")]),
        (
            "gemini_models.json",
            "nextPageToken",
            [("gemini-x-pro", "Gemini X Pro", "google"), ("embedding-x", "Embedding X", "google")],
        ),
        ("cohere.json", "next_page_token", [("command-x", "", "cohere")]),
    ],
)
def test_one_page_of_a_list(name: str, field: str, expected: list[tuple[str, str, str]]) -> None:
    """One page of a longer list is refused with the field that says so; --partial takes the page."""
    with pytest.raises(UsageError, match=f'one page of a longer list \\("{field}"') as raised:
        read(name)
    assert "--partial" in (raised.value.hint or "")
    assert rows(read(name, partial=True)) == expected


MODEL = {"id": "m", "object": "model", "owned_by": "p"}


@pytest.mark.parametrize(
    "more",
    [
        {"next": "https://x.test/?page=2"},
        {"next_cursor": "abc"},
        {"has_next_page": True},
        {"links": {"next": "https://x.test/2"}},
        {"pagination": {"next_page": 2}},
        {"meta": {"next": "/2"}},
        {"result_info": {"page": 1, "per_page": 1, "total_count": 3}},
        {"result_info": {"page": 1, "total_pages": 2}},
        {"total": 100, "limit": 1, "offset": 0},
        {"totalSize": 2},
        {"page": 1, "total_pages": 4},
        {"last_page": 2},
        {"meta": {"total": 100, "page": 1, "per_page": 1}},
        {"meta": {"current_page": 1, "last_page": 2}},
    ],
)
def test_other_ways_to_say_that_there_is_more(more: dict[str, Any]) -> None:
    """Any of the ways to say that a list continues makes its page refused."""
    with pytest.raises(UsageError, match="one page of a longer list"):
        parse(text({"data": [MODEL]} | more))
    assert rows(parse(text({"data": [MODEL]} | more), partial=True)) == [("m", "", "p")]


@pytest.mark.parametrize(
    "last",
    [
        {"has_more": False},
        {"next": None},
        {"nextPageToken": ""},
        {"result_info": {"page": 3, "per_page": 1, "total_count": 3}},
        {"total": 1, "page": 1, "pages": 1},
        {"total": 3, "offset": 2, "limit": 2},
        {"meta": {}},
    ],
)
def test_the_last_page_is_taken(last: dict[str, Any]) -> None:
    """A list that says it ends here is whole."""
    assert rows(parse(text({"data": [MODEL]} | last))) == [("m", "", "p")]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("price_rows.json", "price table"),
        ("error_body.json", "an error message: The access token is not valid"),
        ({"error": "no\x1b[2J"}, r"an error message: no\x1b[2J"),
        ({"error": {"message": "bad key"}, "data": []}, "an error message: bad key"),
        ({"errors": [{"message": "quota"}]}, "an error message: quota"),
        ({"success": False, "message": "log in", "data": [MODEL]}, "an error message: log in"),
        ({"detail": "Not authenticated"}, "an error message: Not authenticated"),
        ({"code": 401, "message": "Unauthorized"}, "an error message: Unauthorized"),
        ([{"id": "anthropic", "name": "Anthropic", "env": ["KEY"], "npm": "x"}], "providers"),
        ({"data": [{"slug": "openai", "name": "OpenAI", "privacy_policy_url": "x"}]}, "providers"),
        ({"object": "list", "data": [{"id": "file-1", "object": "file"}]}, 'calls "file"'),
        ({"data": [{"id": "org-1", "name": "Org", "object": "organization"}]}, "organization"),
        ([{"id": "1", "name": "Ann", "email": "a@x", "role": "user"}], '"email"'),
        ([{"id": "u", "name": "Ann", "avatar_url": "https://x"}], "nothing that marks a model"),
        ([{"id": "p", "name": "Project", "created_by": "ann"}], "nothing that marks a model"),
        ([{"id": "v", "name": "Voice", "gender": "f"}], "nothing that marks a model"),
        ([{"id": "w", "type": "workspace", "name": "W"}], 'calls "workspace"'),
        ({"data": [{"id": "k", "type": "api_key", "name": "K"}]}, 'calls "api_key"'),
        ([{"id": "us", "name": "US East", "country": "us"}], "nothing that marks a model"),
        ([{"id": "r", "name": "Admin", "permissions": ["all"]}], "nothing that marks a model"),
        # The hub's datasets, and another list of AWS.
        ([{"_id": "5", "id": "org/data", "likes": 1, "downloads": 2}], "marks a model"),
        ({"guardrails": [{"id": "g", "arn": "x", "name": "G", "status": "READY"}]}, "no models"),
        ({"models": [{"name": "projects/p/models/m", "displayName": "M"}]}, "marks a model"),
        ([{"id": "1", "model": "gpt-x", "price": 1}], "price table"),
        ([{"id": "batch_req_1", "custom_id": "1", "response": {}}], "nothing that marks a model"),
        ({"models": []}, "no models"),
        ([1, 2], "no models"),
    ],
)
def test_what_is_no_list_of_models(document: object, words: str) -> None:
    """A list of other things is refused in words that say what it is."""
    source = text(document) if not isinstance(document, str) else (FOLDER / document).read_bytes()
    with pytest.raises(UsageError) as raised:
        parse(source)
    assert words in raised.value.message


@pytest.mark.parametrize(
    "document",
    [
        {"code": 1, "msg": "no token"},
        {"statusCode": 403, "message": "no token", "timestamp": "2026-11-29"},
        {"__type": "AccessDeniedException", "Message": "no token"},
        {"object": "error", "message": "no token", "type": "x", "param": None, "code": 404},
        {"status": "error", "reason": "no token"},
        {"detail": [{"loc": ["query", "key"], "msg": "no token", "type": "missing"}]},
        [{"error": {"code": 400, "message": "no token", "status": "INVALID_ARGUMENT"}}],
        {"data": [], "error": {"message": "no token"}},
        {"success": False, "errors": [{"code": 1, "message": "no token"}], "result": None},
    ],
)
def test_however_a_service_says_that_it_failed(document: object) -> None:
    """An error document of any service is recognized as an error, and its text is shown."""
    with pytest.raises(UsageError, match="an error message: no token"):
        parse(text(document))


def test_no_key_in_the_words_of_an_error() -> None:
    """A service that repeats the key in its error does not bring it into a log."""
    with pytest.raises(UsageError, match=r"Incorrect API key provided: \*\*\*") as caught:
        parse(text({"error": {"message": "Incorrect API key provided: sk-abc123def456ghi789"}}))
    assert "sk-abc" not in caught.value.message


def test_the_models_of_a_list_called_models() -> None:
    """xAI has what OpenAI has, under another name."""
    assert rows(parse(text({"models": [MODEL | {"owned_by": "xai"}]}))) == [("m", "", "xai")]


def test_a_bare_list_of_ids_and_names_is_ours() -> None:
    """An id and a name are enough on lines and in an array of ours, whatever the type of the model."""
    own = [{"id": "a", "name": "A"}, {"id": "b", "name": "B", "type": "chat"}, {"id": "c"}]
    assert rows(parse(text(own))) == [("a", "A", ""), ("b", "B", ""), ("c", "", "")]
    mixed = parse(text([*own, {"id": "u", "name": "Ann", "type": "user"}]))
    assert [(r.id, r.why) for r in mixed.rejected] == [("u", "is called user, not a model")]


def test_a_broken_alias_is_rejected_by_name() -> None:
    """An alias of an alias, or of nothing, is no model, and its reason names the target."""
    found = parse(
        text(
            {
                "a": {"litellm_provider": "p"},
                "one": {"alias_of": "a"},
                "two": {"alias_of": "one"},
                "three": {"alias_of": "gone"},
                "four": {"alias_of": ["a"]},
            }
        )
    )
    assert rows(found) == [("a", "", "p"), ("one", "", "p")]
    assert [rejection.id for rejection in found.rejected] == ["two", "three", "four"]
    assert "alias of 'one', which is no model" in found.rejected[0].why


def test_models_inside_of_their_providers_by_name() -> None:
    """Providers by name, with models by name, as models.dev writes them."""
    models = {"claude-a": {"id": "claude-a", "name": "Claude A", "tool_call": True}}
    document = {"anthropic": {"id": "anthropic", "name": "Anthropic", "env": [], "models": models}}
    assert rows(parse(text(document))) == [("claude-a", "Claude A", "anthropic")]


def test_cloudflare_and_lm_studio_name_models_in_their_own_way() -> None:
    """The id is where the service has it."""
    task = {"id": "1", "name": "Text Generation"}
    cloudflare = {
        "success": True,
        "errors": [],
        "result": [{"id": "0b6f", "name": "@cf/x", "task": task}],
    }
    assert rows(parse(text(cloudflare))) == [("@cf/x", "", "cloudflare")]
    local = {"models": [{"type": "llm", "publisher": "v", "key": "m-1", "display_name": "M"}]}
    assert rows(parse(text(local))) == [("m-1", "M", "v")]


YAML = b"""
# a proxy
model_list:
  - model_name: fast
    litellm_params: {model: groq/llama, api_key: sk-1234567890}
  - model_name: fast
    litellm_params: {model: azure/gpt}
  - model_name: "openai/*"
    litellm_params: {model: "openai/*"}
  - model_name: lost
  - litellm_params: {model: openai/x}
litellm_settings: {drop_params: true}
"""


def test_the_configuration_of_a_proxy() -> None:
    """Deployments with the same name are one model; a pattern or an entry without a model is rejected."""
    found = parse(YAML)
    assert rows(found) == [("fast", "", "groq")]
    assert found.notes == ("1 further deployment of the same models: each model is imported once",)
    assert [(r.id, r.why) for r in found.rejected] == [
        ("openai/*", "is a pattern, not a model"),
        ("lost", 'has no "model" in its "litellm_params"'),
        ("entry 5", 'has no "id"'),
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"model_list: [a\n", "is not YAML"),
        (b"model_list:\n  - !!python/object/apply:os.system [id]\n", "is not YAML"),
        (b"model_list: sk-secret: x\n", "is not YAML"),
        (b"model_list: 1\n", "has no models"),
        (b"model_list:\n" + b"- [" * 3000, "is not YAML"),
        (b"model_list:\n" + b" # x\n" * 300_000, "at most 1 MiB"),
    ],
    ids=range(6),
)
def test_broken_yaml(source: bytes, words: str) -> None:
    """Broken YAML is a usage error that quotes nothing of it, since it may hold keys."""
    with pytest.raises(UsageError) as raised:
        parse(source)
    assert words in raised.value.message
    assert "secret" not in raised.value.message


def test_repeated_keys_are_named() -> None:
    """The last value of a repeated key counts, and a note names the key."""
    assert read("dup.json").notes == ("the last of repeated keys counts: 'a/m'",)
    many = "{" + ",".join(f'"k{n % 9}": {{"litellm_provider": "p"}}' for n in range(18)) + "}"
    (note,) = parse(many.encode()).notes
    assert note == "the last of repeated keys counts: 'k0', 'k1', 'k2', 'k3', 'k4', and more"


def test_every_format_has_a_row_and_is_offered() -> None:
    """The table has every format once, and the help of import names all of them."""
    assert set(FORMATS) == set(CatalogFormat)
    options = {p.opts[-1]: p.help for p in commands()[("import",)].params}
    assert set(re.split(r", | or |;", options["--format"] or "")) >= set(CatalogFormat)


# Into the fleet


def test_a_provider_that_is_given_wins(fleet: Fleet) -> None:
    """provider= is the provider of all models, whatever the catalogue says."""
    fleet.import_models((FOLDER / "together.json").read_bytes(), provider="together")
    assert {model.provider for model in fleet.list_models()} == {"together"}


def test_an_owner_that_is_no_provider_overwrites_none(fleet: Fleet) -> None:
    """A row keeps its provider where the catalogue names an owner that is not a provider."""
    fleet.add("gpt-4o", provider="openai")
    result = fleet.import_models((FOLDER / "openai_owned_by.json").read_bytes())
    assert (result.added, result.unchanged) == (1, 1)
    assert {m.id: m.provider for m in fleet.list_models()} == {"gpt-4o": "openai", "gpt-4o-ft": ""}


def test_a_changed_provider_is_in_the_history(fleet: Fleet) -> None:
    """The event of an update names the provider before and after."""
    fleet.add("m", provider="openai")
    fleet.import_models(b'{"id": "m", "provider": "x"}')
    event = fleet.events("m")[0]
    assert event.event == "updated"
    assert event.details is not None
    assert event.details["old"]["provider"] == "openai"
    assert event.details["new"]["provider"] == "x"


@pytest.mark.parametrize("source", [b"[]", b'{"data": []}', b'[{"id": 7}]', b'[{"id": "x "}, 5]'])
def test_nothing_taken_is_an_error(fleet: Fleet, fleet_url: str, source: bytes) -> None:
    """A catalogue of which nothing is taken is a usage error, and nothing is written."""
    before = fleets.everything(fleet_url)
    with pytest.raises(UsageError):
        fleet.import_models(source)
    assert fleets.everything(fleet_url) == before


def test_strict_takes_all_or_nothing(fleet: Fleet, fleet_url: str) -> None:
    """With --strict a single entry that is not a model prevents the whole import."""
    source = b'{"id": "a"}\n{"id": "b", "name": 5}\n'
    before = fleets.everything(fleet_url)
    with pytest.raises(UsageError, match='1 entry is rejected; b: "name" is not text'):
        fleet.import_models(source, strict=True)
    assert fleets.everything(fleet_url) == before
    result = fleet.import_models(source)
    assert (result.added, len(result.rejected)) == (1, 1)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_status_that_the_fleet_does_not_share_is_counted(fleet: Fleet, dry_run: bool) -> None:
    """Each entry whose status differs from the row's counts as one ignored status."""
    for model_id in ("on", "off", "asked"):
        fleet.add(model_id)
    fleet.disable("off", "asked")
    entries: list[tuple[str, dict[str, Any], int]] = [
        ("off", {"active": True}, 1),
        ("off", {"active": False}, 0),
        ("off", {"status": "active", "disabled_reason": ""}, 1),
        ("off", {"status": "ACTIVE"}, 1),
        ("off", {"enabled": True, "auto_disabled": False}, 1),
        ("off", {"disabled": False}, 1),
        ("off", {"status": "auto-disabled"}, 0),
        ("off", {}, 0),
        ("on", {"active": True, "status": "active", "disabled_reason": None}, 0),
        ("on", {"active": False}, 1),
        ("on", {"disabled_reason": "CVE"}, 1),
        ("on", {"status": "inactive"}, 1),
        ("on", {"status": "beta"}, 0),  # as in models.dev: it works
        ("new", {"active": False}, 1),
        ("new", {"active": True}, 0),
    ]
    for model_id, more, ignored in entries:
        source = text({"id": model_id, "name": "N", **more})
        result = fleet.import_models(source, dry_run=dry_run)
        assert (more, result.ignored_status) == (more, ignored)
    both = b'{"id": "on", "active": false}\n{"id": "off", "active": true}\n{"id": "asked"}'
    for policy in ("update", "skip", "fail"):
        result = fleet.import_models(both, on_conflict=policy, dry_run=dry_run)
        assert result.ignored_status == 2
    assert [m.active for m in (fleet.show("on"), fleet.show("off"))] == [True, False]


def test_import_on_the_command_line(tool: Cli, tmp_path: Path) -> None:
    """What was left out or ignored is said on stderr and in the JSON, with the right exit codes."""

    def file(name: str) -> str:
        return str(FOLDER / name)

    done = tool("import", file("models_own_export.jsonl"))
    assert done.code == 0
    assert "1 status" in done.err
    assert "ignored" in done.err
    assert "restore" in done.err
    done = tool("import", file("models_own_export.jsonl"), "-o", "json")
    assert (done.json["unchanged"], done.json["ignored_status"]) == (2, 1)
    # The other way round, and without writing.
    on = tmp_path / "on.jsonl"
    on.write_text('{"id": "a/m1", "active": true}\n{"id": "a/m2", "status": "active"}\n')
    assert tool("disable", "a/m1", "a/m2").code == 0
    done = tool("import", "--dry-run", str(on))
    assert "note: 2 statuses were ignored (on in the fleet and off in the catalogue, or" in done.err
    assert "use enable or disable" in done.err
    assert tool("enable", "a/m1", "a/m2").code == 0
    assert "ignored" not in tool("import", str(on)).err
    assert "1 status" in tool("import", file("openwebui_export.json")).err
    assert "'a/m'" in tool("import", file("dup.json")).err
    assert "1 further deployment" in tool("import", file("litellm_model_info.json")).err
    tool("import", file("anthropic_page1.json")).failed(2, "has_more", "--partial")
    assert tool("import", "--partial", file("anthropic_page1.json")).code == 0
    tool("import", file("error_body.json")).failed(2, "The access token is not valid")
    tool("import", file("price_rows.json")).failed(2, "price table")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"id": "a"}\n{"id": "b", "response": {}}\n')
    done = tool("import", str(mixed))
    assert (done.code, "rejected: b: " in done.err) == (0, True)
    tool("import", "--strict", str(mixed)).failed(2, "rejected")
    empty = tmp_path / "empty.json"
    empty.write_text('{"data": []}')
    tool("import", str(empty)).failed(2, "no models")
