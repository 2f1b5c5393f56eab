"""Records what the SDKs raise, for the tests that run without them.

    python -m tests.failures.record

calls each SDK against the server of `answers` and writes recorded.jsonl: for each failure the classes of
the exception and of its causes, and their attributes. `test_recorded` makes classes of the same names.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from modelctl.failures import facts
from tests.failures.answers import EXPECTED, serve
from tests.failures.sdks import OTHERWISE, SDKS

RECORDED = Path(__file__).with_name("recorded.jsonl")
_ATTRIBUTES = ("status_code", "status", "code", "type", "body", "details", "message", "errno")
# Of these SDKs every failure is kept; of the others one for each sequence of classes and each type.
_WHOLE = ("openai", "anthropic", "litellm-openai", "litellm-anthropic")


def _short(value: Any) -> Any:
    return value[:300] if isinstance(value, str) else value


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int | dict | list)


def describe(exception: BaseException, *, explicit: bool) -> dict[str, Any]:
    """Return one exception as JSON."""
    mro = [cls for cls in type(exception).__mro__ if issubclass(cls, BaseException)]
    own = exception.__dict__
    response = own.get("response")
    if response is not None and not isinstance(response, dict):
        content = response.__dict__.get("_content")
        response = {
            "status_code": facts.status_of(response),
            "_content": content.decode()[:300] if isinstance(content, bytes) else None,
        }
    return {
        "classes": [
            f"{cls.__module__}.{cls.__name__}" for cls in mro if cls.__module__ != "builtins"
        ],
        "base": next(cls.__name__ for cls in mro if cls.__module__ == "builtins"),
        "args": [
            _short(arg)
            for arg in exception.args
            if isinstance(arg, str | int) and arg != own.get("message")
        ],
        "attributes": {n: _short(own[n]) for n in _ATTRIBUTES if n in own and _is_json(own[n])},
        "response": response,
        "explicit": explicit,
    }


def record(name: str, failure: str, exception: BaseException) -> dict[str, Any]:
    """Return a failure of an SDK as JSON."""
    chain: list[dict[str, Any]] = []
    explicit = True
    at: BaseException | None = exception
    while at is not None and len(chain) < 10:
        chain.append(describe(at, explicit=explicit))
        at, explicit = facts.cause(at)
    is_ = OTHERWISE.get((name, failure), EXPECTED[failure])
    return {"sdk": name, "failure": failure, "is": is_, "chain": chain}


def main() -> None:
    """Call all SDKs and write the file."""
    warnings.simplefilter("ignore")
    seen, lines = set(), []
    with serve() as server:
        for name, (api, call) in SDKS.items():
            for failure in EXPECTED:
                try:
                    call(server.url(failure, api), stream=failure.startswith("stream"))
                except Exception as exc:
                    found = record(name, failure, exc)
                else:
                    continue
                if not found["chain"][0]["classes"]:
                    continue  # an IndexError in the application: its traceback decides
                sequence = tuple(tuple(each["classes"]) for each in found["chain"])
                if name in _WHOLE or (sequence, found["is"]) not in seen:
                    seen.add((sequence, found["is"]))
                    lines.append(json.dumps(found, default=str))
    RECORDED.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
