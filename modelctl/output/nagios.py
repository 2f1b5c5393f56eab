"""One line and an exit code for Nagios, Icinga and others that run its plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import clean
from modelctl.model import numbered

if TYPE_CHECKING:
    from modelctl.doctor.results import Diagnosis

# The exit codes of a plugin. They are not those of `ExitCode`.
OK, WARNING, CRITICAL, UNKNOWN = range(4)
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_LONGEST = 1000


def nagios_line(result: Diagnosis) -> tuple[int, str]:
    """Return the exit code, and the line: the word, what is wrong first, the performance data."""
    wrong = [f"{check.check}: {check.detail}" for check in result.checks if not check.ok]
    warnings = [f"{check.check}: {check.detail}" for check in result.checks if check.warning]
    code = CRITICAL if wrong else WARNING if warnings else OK
    text = "; ".join([*wrong, *warnings]) or f"{numbered(len(result.checks), 'check')} passed"
    data = " ".join(f"{name}={_number(number)}" for name, number in result.numbers.items())
    return code, _line(code, text) + (f" | {data}" if data else "")


def unknown_line(why: str) -> tuple[int, str]:
    """Return the exit code and the line of a check that could not be made."""
    return UNKNOWN, _line(UNKNOWN, why)


def _line(code: int, text: str) -> str:
    # After a | come the numbers.
    return f"{_WORDS[code]} - {clean(text.replace('|', '/'), longest=_LONGEST)}"


def _number(value: float) -> str:
    return f"{value:.3f}s" if isinstance(value, float) else f"{value};;;0"
