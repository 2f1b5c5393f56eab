"""Record how each request of the client of OpenAI went.

client = OpenAI(http_client=recording_client(recorder))
client = AsyncOpenAI(http_client=recording_async_client(recorder))
"""

from __future__ import annotations

from modelctl.integrations.http_client import Sdk

# What asks a model, and the field that a good answer has.
_SDK = Sdk(
    "openai",
    {
        "chat/completions": "choices",
        "completions": "choices",
        "responses": "output",
        "embeddings": "data",
        "images/generations": "data",
        "moderations": "results",
        "audio/speech": None,  # sound
    },
)
recording_client = _SDK.recording_client
recording_async_client = _SDK.recording_async_client
