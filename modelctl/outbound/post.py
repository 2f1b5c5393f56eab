"""POST a document over HTTP, to an address that was checked; no redirect is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.outbound.web import request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelctl.outbound.web import Web

# Bytes of an answer that are read.
LARGEST_ANSWER = 65536


class Answer(NamedTuple):
    """What the server answered; *retry_after*: that header."""

    status: int
    body: bytes
    retry_after: str | None


def is_too_large(body: bytes) -> bool:
    """Whether the answer is longer than any that is read to its end."""
    return len(body) > LARGEST_ANSWER


async def post(
    url: str,
    content: bytes,
    headers: Mapping[str, str],
    web: Web,
    *,
    timeout: float,
    allow_private: bool,
    enough: Callable[[bytes], bool] = is_too_large,
) -> Answer:
    """Send JSON and return the answer; *enough* says whether more of the body is needed.

    *timeout*, *allow_private* and the errors are those of `request`.
    """

    async def read(response: Any) -> Answer:
        body = b""
        async for part in response.aiter_raw():  # raw: a packed answer is not unpacked
            body += part
            if enough(body):
                break
        return Answer(response.status_code, body, response.headers.get("Retry-After"))

    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
    return await request(
        "POST",
        url,
        headers,
        web,
        read,
        content=content,
        timeout=timeout,
        allow_private=allow_private,
    )
