"""What an error of PostgreSQL, a pooler or libpq means to the operator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from modelctl.errors import (
    DatabaseUnavailableError,
    InvalidConfigError,
    MissingSchemaError,
    ModelctlError,
    RefusedError,
    UsageError,
)

if TYPE_CHECKING:
    from modelctl.config.config import Config


class NoAnswerError(psycopg.OperationalError):
    """The time of the call is over, and the server has not answered."""


class Answer(NamedTuple):
    """What one address said when it refused a connection.

    *state*: the SQLSTATE, REFUSED, or "" if no server answered.
    """

    state: str
    words: str


class NoConnectionError(psycopg.OperationalError):
    """No address accepted a connection; *answers*: what each of them said."""

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__("; ".join(answer.words for answer in answers))
        self.answers = answers


# ── A connection that was refused ──

REFUSED = "refused"  # a server refused the connection, and its SQLSTATE is not known
# SQLSTATEs, or their first characters, of conditions that pass: no resources, shutting down or
# starting up, an internal error, a database that is being created.
_TEMPORARY = ("53", "57", "58", "40", "XX", "55006")
# Poolers report every refusal as a protocol violation (08P01), and only in English.
_TEMPORARY_WORDS = (
    "cannot connect",
    "connect failed",
    "timeout",
    "try again",
    "no more connections",
    "too many",
    "shut",
    "starting up",
    "recovery mode",
    "not yet accepting",
    "connection slots",
    "terminating connection",
    "out of memory",
    "server conn",
    "disabled",
    "failing",
)
# Messages of libpq itself, always in English, that a retry does not change.
_PERMANENT_WORDS = (
    "authentication failed",
    "authentication method",
    "no password supplied",
    "certificate",
    "invalid connection option",
    "invalid sslmode",
    "invalid port",
    "server does not support SSL",
    "SSL connection has been closed unexpectedly",
)
# A message of the server begins with its severity, in the server's language, and two blanks.
_SERVER_MESSAGE = re.compile(r"(?P<severity>failed: [^\n:]+):  (?:(?P<state>[0-9A-Z]{5}): )?")


def read_answer(message: str) -> Answer:
    """Read what libpq reports about an address that accepted no connection."""
    message = re.sub(r"(?m)^(DETAIL|HINT|CONTEXT|LOCATION|SCHEMA NAME):.*\n?", "", message)
    found = list(_SERVER_MESSAGE.finditer(message))
    state = (found[-1]["state"] or REFUSED) if found else ""
    return Answer(state, " ".join(_SERVER_MESSAGE.sub(r"\g<severity>: ", message).split()))


def _is_permanent(answer: Answer) -> bool:
    """Whether a retry is of no use."""
    state, words = answer
    # For a while PgBouncer repeats the last error of the server, which tells more than its own words.
    repeated = words.partition("cached error: ")[2].removesuffix("(server_login_retry)")
    words = repeated.strip() or words
    if not state:
        return any(word in words for word in _PERMANENT_WORDS)
    if state == REFUSED or state.startswith("08"):
        return not any(word in words for word in _TEMPORARY_WORDS)
    return not state.startswith(_TEMPORARY)


def _not_connected(exc: NoConnectionError, text: str, config: Config) -> ModelctlError:
    origin = f"database.url ({config.origin('database.url')})"
    if any(map(_is_permanent, exc.answers)):
        return InvalidConfigError(
            f"the database refused the connection ({text})",
            hint=f"check user, password and database name in {origin}",
        )
    return DatabaseUnavailableError(
        f"the database is not available ({text})",
        hint=f"try again later, or check the host and port in {origin}",
    )


# ── An error of a statement ──


class _Meaning(NamedTuple):
    """What some SQLSTATEs (or classes of them, their first two characters) mean."""

    states: tuple[str, ...]
    error: type[ModelctlError]
    message: str
    hint: str | None = None


# Cases that the SQLSTATE alone does not tell; see `_case`.
_HIDDEN_ROWS = "42501 of row level security"
_REWRITTEN = "0A000 of a rule"
_CONSOLE = "08P01 of a pooler's console"

_MEANINGS = (
    _Meaning(
        ("42P01", "42703", "3F000", "42883"),  # undefined table, column, schema, function
        MissingSchemaError,
        "the database lacks modelctl's schema",
        "run: modelctl db upgrade",
    ),
    _Meaning(
        # Mismatch, no cast, unknown type; a text that is no number or no time, which our statements
        # send only if the column has another type than ours.
        ("42804", "42846", "42P18", "22P02", "22007"),
        InvalidConfigError,
        "a column of models does not have the type that modelctl needs",
        "see what is in the way: modelctl db upgrade --dry-run",
    ),
    _Meaning(
        ("25006",),  # read-only transaction
        InvalidConfigError,
        "the database takes no changes",
        "name the primary in database.url, not a standby",
    ),
    _Meaning(
        (_HIDDEN_ROWS,),
        InvalidConfigError,
        "row level security hides models from this role",
        "modelctl must see every row, and a policy cannot grant that: ALTER ROLE ..."
        " BYPASSRLS (a superuser may), or use the owner of the table without FORCE ROW LEVEL"
        " SECURITY",
    ),
    _Meaning(
        ("28", "3D"),  # authorization, database name
        InvalidConfigError,
        "the database refused the connection",
        "check user, password and database name in database.url",
    ),
    _Meaning(
        ("42501",),  # insufficient privilege
        InvalidConfigError,
        "the database role may not do this",
        "see: modelctl doctor, which names each right that is missing",
    ),
    _Meaning(
        ("42809", "55000"),  # wrong object type, object not in the state that is needed
        InvalidConfigError,
        "what the database calls models is no table that can be used",
        "see: modelctl doctor",
    ),
    _Meaning(
        # Constraints, CHECK OPTION of a view, an exception raised by a trigger, and a rule with which
        # the server cannot rewrite our statements.
        ("23", "44", "P0", _REWRITTEN),
        RefusedError,
        "the database refused the change",
        "the table has rules of its own; make this change with the application that owns it",
    ),
    _Meaning(("22",), UsageError, "the database does not take this value"),
    _Meaning(
        ("55P03", "57014", "40001", "40P01"),  # lock timeout, canceled, serialization, deadlock
        DatabaseUnavailableError,
        "the database is busy",
        "try again",
    ),
    _Meaning(
        (_CONSOLE,),
        InvalidConfigError,
        "this is the console of PgBouncer, not a database",
        "name a database that it serves in database.url",
    ),
    _Meaning(
        # None at all; connection, resources, operator, system, transaction state.
        ("", "08", "53", "57", "58", "25"),
        DatabaseUnavailableError,
        "the database is not available",
        "try again later",
    ),
)
_BY_STATE = {state: meaning for meaning in _MEANINGS for state in meaning.states}


def translate(exc: BaseException, config: Config) -> ModelctlError:
    """Return the error of modelctl that tells the operator what an error of psycopg means."""
    state = getattr(exc, "sqlstate", None)
    text = config.hide(primary_message(exc))
    if isinstance(exc, NoConnectionError):
        error = _not_connected(exc, text, config)
    else:
        error = _of_statement(exc, state or "", text)
    error.sqlstate = state
    return error


def _of_statement(exc: BaseException, state: str, text: str) -> ModelctlError:
    if state == "22P05" and (error := _cannot_be_converted(text)):
        return error
    meaning = _BY_STATE.get(_case(exc, state, text)) or _BY_STATE.get(state[:2])
    if meaning is None:
        return ModelctlError(f"the database failed ({state}: {text})")
    return meaning.error(f"{meaning.message} ({text})", hint=meaning.hint)


def _case(exc: BaseException, state: str, text: str) -> str:
    """Return the SQLSTATE, or the case that it alone does not tell."""
    # Told by where the error was raised in the server: its words are in the server's language.
    diag = getattr(exc, "diag", None)
    if state == "42501" and diag and diag.source_function == "check_enable_rls":
        return _HIDDEN_ROWS
    if state == "0A000" and diag and diag.source_file == "rewriteHandler.c":
        return _REWRITTEN
    if state == "08P01" and "SHOW HELP" in text:
        return _CONSOLE
    return state


def primary_message(exc: BaseException) -> str:
    """Return the message of an error without DETAIL and CONTEXT, which show rows of other people."""
    diag = getattr(exc, "diag", None)
    words = (diag and diag.message_primary) or re.split(
        r"\n(?:DETAIL|HINT|CONTEXT|LINE \d+|LOCATION):", str(exc)
    )[0]
    if diag and diag.constraint_name and diag.constraint_name not in words:
        words += f' (constraint "{diag.constraint_name}")'
    return " ".join(words.split())


def _cannot_be_converted(text: str) -> ModelctlError | None:
    """Name the character that the database's encoding lacks, or report a stored text that is invalid.

    Return None if the message shows no bytes.
    """
    shown = "".join(re.findall("0x([0-9a-f]{2})", text))
    if not shown:
        return None
    encodings = [name for name in re.findall('"([A-Z0-9_]+)"', text) if name != "UTF8"]
    encoding = encodings[0] if encodings else "another encoding than UTF8"
    try:
        character = bytes.fromhex(shown).decode()
    except ValueError:  # bytes that are in the database
        character = ""
    if len(character) != 1:
        return InvalidConfigError(
            f"the database is in {encoding}, and a text in it has bytes that this encoding does not"
            f" define ({text})",
            hint="write that text anew, or move the data to a database in UTF8",
        )
    return lacking(encoding, character)


def lacking(encoding: str, character: str) -> UsageError:
    """Return the error that the encoding of the database does not have *character*."""
    error = UsageError(
        f"the database is in {encoding}, which lacks '{character}' (U+{ord(character):04X})",
        hint="leave the character out, or use a database in UTF8; nothing was changed",
    )
    error.character = character
    return error
