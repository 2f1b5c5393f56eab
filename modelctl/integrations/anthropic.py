"""Record how each request of the client of Anthropic went.

client = Anthropic(http_client=recording_client(recorder))
client = AsyncAnthropic(http_client=recording_async_client(recorder))
"""

from __future__ import annotations

from modelctl.integrations.http_client import Sdk

# What asks a model, and the field that a good answer has.
_SDK = Sdk(
    "anthropic",
    {
        "messages": "content",
        "complete": "completion",
    },
)
recording_client = _SDK.recording_client
recording_async_client = _SDK.recording_async_client
