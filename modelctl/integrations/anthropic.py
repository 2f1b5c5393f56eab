"""Record how each request of the client of Anthropic went.

client = Anthropic(http_client=recording_client(recorder))
client = AsyncAnthropic(http_client=recording_async_client(recorder))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.integrations.http_client import recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.integrations.http_client import Ids
    from modelctl.integrations.reporting import RecordsOutcomes

# What asks a model, and the field that a good answer has.
_ENDPOINTS = {
    "messages": "content",
    "complete": "completion",
}


def recording_client(
    recorder: RecordsOutcomes,
    *,
    id: Ids | None = None,  # noqa: A002 - what it is
    on_warning: Callable[[str], None] | None = None,
    **options: Any,
) -> Any:
    """Return an HTTP client for ``Anthropic(http_client=...)`` that records each request of a model.

    The client is the SDK's own (``anthropic.DefaultHttpxClient``); *options* are for that. A retry of the SDK is
    a request, and is recorded. A stream is a success when it has ended; a stream that the application does
    not read to its end is recorded as nothing. Recording never fails a request: *on_warning* (default: the
    log) is told, and ``reported`` of the client counts.

    *id*: the id in the fleet for the model that a request names: a mapping, or a function that may return
    None to ignore the request. By default, and for what the mapping lacks, ``anthropic/MODEL``.
    """
    from anthropic import DefaultHttpxClient

    return recording(
        *(DefaultHttpxClient, recorder, on_warning, options),
        provider="anthropic",
        ids=id,
        endpoints=_ENDPOINTS,
    )


def recording_async_client(
    recorder: RecordsOutcomes,
    *,
    id: Ids | None = None,  # noqa: A002 - what it is
    on_warning: Callable[[str], None] | None = None,
    **options: Any,
) -> Any:
    """Return an HTTP client for ``AsyncAnthropic(http_client=...)``, as `recording_client` does."""
    from anthropic import DefaultAsyncHttpxClient

    return recording(
        *(DefaultAsyncHttpxClient, recorder, on_warning, options),
        provider="anthropic",
        ids=id,
        endpoints=_ENDPOINTS,
    )
