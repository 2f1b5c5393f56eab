"""Output has no control characters, fits the terminal, and is plain text in a pipe."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.errors import UNSAFE, clean
from modelctl.views.values import to_json
from modelctl.views.views import VIEWS
from tests import ROOT, commands
from tests.commands import PROGRAM, Cli, Result, add, plain, run, seen, shell, sql

LONG = ("hf:" + "long-organisation/" * 10).ljust(200, "x")
NO_COLOR = {"NO_COLOR": "1"}
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


# --- any text at all


@given(ANY_TEXT)
def test_clean_leaves_nothing_unsafe(text: str) -> None:
    """No output of `clean` can move a cursor or break a line, whatever its input."""
    shown = clean(text)
    assert not UNSAFE.search(shown)
    assert not commands.CONTROLS.search(shown)
    assert "\n" not in shown
    assert "\t" not in shown
    shown.encode()
    if not UNSAFE.search(text):
        assert shown == text


@given(ANY_TEXT, st.integers(1, 30))
def test_clean_cuts(text: str, longest: int) -> None:
    """A longer text is cut to the length and marked, a shorter one is whole."""
    cut = clean(text, longest=longest)
    if len(text) <= longest:
        assert cut == clean(text)
    else:
        assert cut == clean(text[: longest - 1]) + "…"


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_safe_and_exact(value: object) -> None:
    """JSON shows no control characters and reads back as what it was."""
    text = to_json(value)
    assert not UNSAFE.search(text)
    text.encode()
    assert json.loads(text) == value


def test_success_rates_are_exact(fleet: None, cli: Cli) -> None:
    """The rate in JSON is the quotient of its counts, to the last digit."""
    sql("UPDATE models SET success_count = 421, failure_count = 1 WHERE id = 'acme/one'")
    assert cli("leaderboard", "-o", "json").json[0]["success_rate"] == 421 / 422
    assert json.loads(cli("leaderboard", "-o", "jsonl").lines[0])["success_rate"] == 421 / 422


CLEANED = {
    "a\tb\nc\rd": r"a\tb\nc\rd",
    "\x1b[31mred\x07": r"\x1b[31mred\x07",
    "\x7f\x9b": r"\x7f\x9b",
    "a\u202eb\u2066c": r"a\u202eb\u2066c",
    "a\u2028b": r"a\u2028b",
    "\udcff": r"\udcff",
    "[red]fine[/] ✓ 模型": "[red]fine[/] ✓ 模型",
}


@pytest.mark.parametrize(("text", "shown"), CLEANED.items(), ids=CLEANED.values())
def test_controls_become_visible(text: str, shown: str) -> None:
    """A control character is shown as the escape that a programmer would write."""
    assert clean(text) == shown


def test_every_view_is_registered_with_the_type_that_it_shows() -> None:
    """Each function in the table of views takes the type under which it is registered."""
    files = [*ROOT.glob("modelctl/*/results.py"), ROOT / "modelctl/count/reports.py"]
    types = {name for file in files for name in re.findall(r"^class (\w+)", file.read_text(), re.M)}
    for name, function in VIEWS.items():
        assert function.__annotations__["result"] == name
        assert name in types


# --- pipes


def test_nothing_is_cut_in_a_pipe(fleet: None, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id of 200 characters is whole in every form; a table alone obeys COLUMNS, if it is set."""
    add(LONG)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for form in ("table", "json", "jsonl", "csv", "tsv", "name"):
        if form != "table":
            monkeypatch.setenv("COLUMNS", "80")
        result = cli("list", "-o", form)
        assert result.code == 0
        assert sum(LONG in line for line in result.lines) == 1
    narrow = cli("list", "-o", "table")
    assert max(map(len, narrow.lines)) <= 80
    assert LONG in "".join(line.split()[0] for line in narrow.lines[2:] if not line.startswith("("))
    assert "no room for" in narrow.out
    assert f"\n{LONG}\t" in run("list").out


def test_csv_is_quoted(fleet: None, cli: Cli) -> None:
    """Commas, quotes and newlines inside of values survive a CSV reader."""
    sql("UPDATE models SET display_name = ? WHERE id = 'acme/one'", 'a, "b"\nc')
    rows = list(csv.DictReader(io.StringIO(cli("list", "-o", "csv").out)))
    assert [row["display_name"] for row in rows if row["id"] == "acme/one"] == ['a, "b"\nc']


def test_empty_results(fleet: None, cli: Cli) -> None:
    """An empty result is an empty array, a header alone, or nothing; a table says that it is empty."""
    nothing = ("list", "--provider", "nobody", "-o")
    printed = {form: cli(*nothing, form).out for form in ("json", "csv", "tsv", "jsonl", "name")}
    assert json.loads(printed["json"]) == []
    assert printed["csv"].count("\n") == 1
    assert printed["tsv"] + printed["jsonl"] + printed["name"] == ""
    assert cli(*nothing, "table").out == "nothing to show\n"


def test_text_beyond_the_locale(fleet: None) -> None:
    """Names in any script pass through a pipe as UTF-8, whatever the locale can write."""
    add("模型/é")
    for form in ("json", "table"):
        result = run("list", "-o", form, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
        assert (result.code, result.err) == (0, "")
        assert "模型/é" in result.out


def test_reader_that_goes_away(fleet: None) -> None:
    """When the reader has read enough the program stops without an error."""
    add(*(f"many/{n:05d}" for n in range(3000)))
    for form in ("tsv", "table"):
        with subprocess.Popen(
            [*PROGRAM, "list", "-o", form], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(commands.SECONDS) == 0


@pytest.mark.parametrize("form", ["tsv", "json", "table"])
def test_full_disk(fleet: None, form: str) -> None:
    """Output that cannot be written is exit 1 with a word on stderr, and the change stays."""
    result = shell(f"$modelctl disable acme/one -o {form} > /dev/full")
    assert (result.code, result.out) == (1, "")
    assert "No space left on device" in result.err
    assert "stays changed" in result.err
    assert sql("SELECT active FROM models WHERE id = 'acme/one'") == [(0,)]


FULL_OR_CLOSED = {
    "--help > /dev/full": (1, "No space left"),
    "--version > /dev/full": (1, "No space left"),
    "count >&-": (1, "cannot write to standard output"),
    "list -o json >&-": (1, "cannot write to standard output"),
    "show nobody -o json >&-": (4, ""),
    "show nobody 2>&-": (4, ""),
    "nonsense 2> /dev/full": (2, ""),
    "record-batch - <&-": (2, "cannot read standard input"),
    "import - <&-": (2, "cannot read standard input"),
    "remove acme/one <&-": (8, "nobody can be asked"),
    "count <&- >/dev/null 2>&-": (0, ""),
}


@pytest.mark.parametrize(
    ("line", "code", "words"), [(k, *v) for k, v in FULL_OR_CLOSED.items()], ids=FULL_OR_CLOSED
)
def test_closed_streams(fleet: None, line: str, code: int, words: str) -> None:
    """A closed output stream is an error that is reported where possible, never a crash."""
    result = shell(f"$modelctl {line}")
    assert result.code == code
    assert words in result.err
    assert sql("SELECT count(*) FROM models") == [(5,)]


def test_words_never_reach_a_piped_stdout(fleet: None, cli: Cli) -> None:
    """Data is on stdout, words are on stderr."""
    cli("show", "nobody").failed(4)
    result = cli("list", "--status", "active")
    assert (len(result.lines), result.err) == (2, "")


# --- terminals


def test_table_on_a_terminal(fleet: None) -> None:
    """On a terminal the default is a coloured table, and the count a sentence too."""
    code, shown = seen("list", columns=150)
    assert code == 0
    assert "\x1b[" in shown
    title, line, *rows = plain(shown).splitlines()
    assert title.split()[:4] == ["id", "name", "provider", "status"]
    assert set(line) <= set("─ ")
    assert [row.split()[0] for row in rows] == [
        *("acme/off", "acme/one", "acme/two", "other/due", "other/tripped")
    ]
    _, shown = seen("count")
    assert "2 models active, fresh from the database" in plain(shown)
    _, shown = seen("count")
    assert re.search(r"2 models active, cached \d+\.\d s ago", plain(shown))


def test_no_color(fleet: None) -> None:
    """Neither with NO_COLOR nor on a terminal without colours is an escape sequence printed."""
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        code, shown = seen("list", environ={name: value})
        assert code == 0
        assert "\x1b" not in shown
        assert "acme/one" in shown


@pytest.mark.parametrize("command", ["list", "show", "disable"])
def test_narrow_terminal_shows_whole_ids(fleet: None, command: str) -> None:
    """On 40 columns every id can be read whole, folded, and no line is too long."""
    add(LONG)
    sql("UPDATE models SET failure_reason = ? WHERE id = ?", "long reason " * 20, LONG)
    words = [command] if command == "list" else [command, LONG]
    code, shown = seen(*words, columns=40, environ=NO_COLOR)
    assert code == 0
    assert all(len(line) <= 40 for line in shown.splitlines())
    assert folded(shown, LONG)


def folded(shown: str, model_id: str) -> bool:
    """Whether *model_id* stands in the lines, each continuing where the last one ended."""
    rest = model_id
    for line in shown.splitlines():
        for word in line.split():
            if rest.startswith(word):
                rest = rest[len(word) :]
                break
        if not rest:
            return True
    return False


def test_the_sentences_of_one_model_stand_under_one_word(fleet: None) -> None:
    """Of several sentences the first has the word "why" before it, the others have blanks."""
    _, shown = seen("show", "acme/off", columns=80, environ=NO_COLOR)
    table = [line for line in shown.splitlines() if not line.startswith(" ")]
    assert sum(line.startswith("why ") for line in table) == 1
    assert not [line for line in table if line.startswith("-")]
    for sentence in ("It has been off", "It has 0 of 5 failures", "The next recover leaves it off"):
        assert [line for line in shown.splitlines() if line[5:].strip().startswith(sentence)]


def test_columns_without_room_are_named(fleet: None) -> None:
    """Columns that a terminal has no room for are named below the table."""
    add("x" * 60)
    _, shown = seen("list", columns=80, environ=NO_COLOR)
    assert "(no room for name, provider" in shown
    _, shown = seen("list", columns=200, environ=NO_COLOR)
    assert "no room" not in shown


def test_80_columns_have_room_for_what_a_command_is_for(fleet: None) -> None:
    """On 80 columns the history says who did something, and `config show` where a value came from."""
    run("disable", "acme/one", "--reason", "bills too high", "--actor", "ann@web1")
    _, shown = seen("events", columns=80, environ=NO_COLOR)
    assert "ann@web1" in shown
    _, shown = seen("config", "show", columns=80, environ=NO_COLOR | {"MODELCTL_CACHE_TTL": "2m"})
    [ttl] = [line.split() for line in shown.splitlines() if line.startswith("cache.ttl ")]
    assert ttl == ["cache.ttl", '"2m"', "environment"]


def test_table_at_once_in_a_pipe_has_all_columns(fleet: None, cli: Cli) -> None:
    """A table in a pipe is as wide as it needs to be, with every column."""
    title, _, *rows = cli("list", "-o", "table").lines
    assert re.split(r"  +", title.strip()) == [
        *("id", "name", "provider", "status", "would disable"),
        *("failures in a row", "successes", "failures", "retry at"),
    ]
    assert len(rows) == 5


def test_result_on_a_terminal_names_the_cache(fleet: None) -> None:
    """On a terminal a change says what became of the cache, and that a dry run changed nothing."""
    _, shown = seen("disable", "acme/one", "--dry-run", environ=NO_COLOR)
    assert "would be disabled" in shown
    assert "dry run: nothing was changed" in shown
    _, shown = seen("disable", "acme/one", environ=NO_COLOR)
    assert "cache: invalidated" in shown


# --- ids that are meant to do harm

HOSTILE = [
    *("[red]x[/red]", "[/]", "\x1b[31mred", "two\nlines", "tab\there", "bell\x07", "del\x7f"),
    *("c1\x9b31m", "bidi\u202egpj.exe", "iso\u2066late", "line\u2028sep", "cr\rback"),
    *("[link=http://x]y[/link]", ":smile:", "{braces}%s", '"quoted"', "back\\slash", "-", "=1+1"),
]


@pytest.fixture
def hostile(fleet: None) -> list[str]:
    """Put ids into the table that modelctl itself would refuse; another program did."""
    add(*HOSTILE)
    for model_id in HOSTILE:
        sql(
            "UPDATE models SET display_name = ?, provider = ?, failure_reason = ?,"
            " disabled_reason = ?, disabled_by = ? WHERE id = ?",
            *[model_id] * 6,
        )
    return HOSTILE


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "tsv", "name"])
def test_hostile_rows_in_every_output(hostile: list[str], cli: Cli, form: str) -> None:
    """Rows with hostile ids are listed, shown, counted and changed, and print no control."""
    disabled = cli("disable", "-o", form, "--reason", "\x1b[2J", "--actor", "a\nb", "--", *hostile)
    assert disabled.code == 0
    assert sql("SELECT count(*) FROM models WHERE active") == [(2,)]
    printed = [cli(command, "-o", form) for command in ("list", "events", "stats", "leaderboard")]
    printed += [cli("show", "-o", form, "--", model_id) for model_id in hostile]
    printed += [cli("events", "-o", form, "--", model_id) for model_id in hostile]
    assert {(result.code, result.err) for result in printed} == {(0, "")}
    listing = printed[0]
    if form == "json":
        assert set(hostile) <= {model["id"] for model in listing.json}
    elif form != "csv":
        for model_id in hostile:
            assert model_id in listing.out or clean(model_id) in listing.out or form == "jsonl"
    if form in ("tsv", "jsonl", "name"):
        assert len(listing.lines) == 5 + len(hostile)


def test_hostile_rows_on_a_terminal(hostile: list[str]) -> None:
    """On a terminal the only escapes are our own colours."""
    for command in (["list"], ["show", "--", "\x1b[31mred"]):
        code, shown = seen(*command, columns=150)
        assert code == 0
        assert not commands.CONTROLS.search(plain(shown))
        assert r"\x1b[31mred" in plain(shown)
        assert command != ["list"] or "[red]x[/red]" in plain(shown)


@pytest.mark.parametrize("model_id", HOSTILE, ids=map(ascii, HOSTILE))
def test_hostile_id_as_an_argument(fleet: None, cli: Cli, model_id: str) -> None:
    """An id with control characters cannot be added, and an unknown id is shown without them."""
    shown = cli("show", "--", model_id)
    shown.failed(4, f"no model '{clean(model_id)}'")
    assert cli("disable", "-o", "json", "--", model_id).json["error"]["code"] == "model_not_found"
    added = cli("add", "--", model_id)
    if UNSAFE.search(model_id):
        added.failed(2, "control characters", clean(model_id))
    else:
        assert added.code == 0


@pytest.mark.parametrize("model_id", ["", " a", "a ", "\u00a0a", "x" * 201, "x" * 10_000])
def test_bad_id_as_an_argument(fleet: None, cli: Cli, model_id: str) -> None:
    """An empty, padded or overlong id cannot be added, and no message repeats it at length."""
    cli("add", model_id).failed(2, "a model id")
    missing = cli("show", model_id)
    missing.failed(4, "no model")
    assert len(missing.err) < 300


def test_bytes_that_are_not_text(fleet: None, cli: Cli) -> None:
    """An argument that is not UTF-8 is exit 2 or 4, and shown as an escape."""
    run("add", b"a\xff").failed(2, r"a\udcff")
    cli("show", "a\udcff").failed(4, r"a\udcff")
    assert cli("disable", "a\udcff", "-o", "json").json["error"]["code"] == "model_not_found"
    cli("import", "/nowhere/\udcff").failed(2, r"\udcff")
    cli("list", "--sort", "\udcff").failed(2, r"\udcff")
    assert cli("disable", "acme/one", "--reason", "\udcff", "--actor", "\udcff").code == 0


def test_provider_that_is_not_text(fleet: None, cli: Cli) -> None:
    """A provider that no row can have has no models."""
    for command in ("list", "leaderboard"):
        assert cli(command, "--provider", "a\udcff") == Result(0, "", "")


def test_file_name_of_the_configuration(tmp_path: Path, cli: Cli) -> None:
    """A hostile file name is cleaned in the message too."""
    cli("--config", str(tmp_path / "\x1b[31m"), "count").failed(3, r"\x1b[31m")


def test_a_dry_run_of_recover_shows_the_reasons_on_80_columns(fleet: None) -> None:
    """If a terminal has no room for all columns of recover, the reasons are folded, not left out."""
    add("acme/a-model-with-a-name-of-usual-length")
    words = ("disable", "acme/a-model-with-a-name-of-usual-length", "--for", "2h")
    assert seen(*words)[0] == 0
    code, shown = seen("recover", "--dry-run", columns=80, environ=NO_COLOR)
    assert code == 0
    assert "switched" in shown
    assert "2.0 h" in shown
    assert "(no room for retry at; -o csv has all)" in shown


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize(
    "line",
    [
        *("list", "show acme/one", "stats", "leaderboard", "events", "recover --dry-run", "doctor"),
        *("disable acme/one --dry-run", "remove acme/one --dry-run", "config show", "cache show"),
        *("record-failure acme/one --type timeout", "pause --for 1h --reason because", "db status"),
    ],
)
def test_every_view_on_narrow_terminals(fleet: None, line: str, columns: int) -> None:
    """No line of a table is wider than the terminal, and what has no room is named below."""
    sql("UPDATE models SET display_name = 'A model with quite a long name', provider = 'provider'")
    code, shown = seen(*line.split(), columns=columns, environ=NO_COLOR)
    assert code == 0
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown)
    assert max(map(len, re.split("[\r\n]+", text))) <= columns
    if line == "list":
        assert ("name" in text.splitlines()[0].split()) != ("no room for name" in text)
