"""Calls a model with each SDK and HTTP client, as applications do, for the tests of `classify`.

A function gets the base URL of an API and whether to ask for a stream; it raises what the SDK raises.
Each is called without retries and with a short time limit. The SDKs are the extra `sdk-tests`.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from tests.failures.answers import EXPECTED

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 0.4  # seconds
# LiteLLM would fetch a list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
_OPTIONS: dict[str, Any] = {"api_key": "k", "timeout": TIMEOUT, "max_retries": 0}
_MESSAGES: Any = [{"role": "user", "content": "hi"}]


def openai(url: str, *, stream: bool, **options: Any) -> None:
    """The client of OpenAI."""
    from openai import OpenAI

    with OpenAI(base_url=url, **{**_OPTIONS, **options}) as client:
        answer = client.chat.completions.create(model="m", messages=_MESSAGES, stream=stream)
        if stream:
            for _ in answer:
                pass
        else:
            answer.choices[0].message.content.strip()


def openai_async(url: str, *, stream: bool, **options: Any) -> None:
    """The asyncio client of OpenAI."""
    from openai import AsyncOpenAI

    async def call() -> None:
        async with AsyncOpenAI(base_url=url, **{**_OPTIONS, **options}) as client:
            answer = await client.chat.completions.create(
                model="m", messages=_MESSAGES, stream=stream
            )
            if stream:
                async for _ in answer:
                    pass
            else:
                answer.choices[0].message.content.strip()

    asyncio.run(call())


def anthropic(url: str, *, stream: bool, **options: Any) -> None:
    """The client of Anthropic."""
    from anthropic import Anthropic

    with Anthropic(base_url=url, **{**_OPTIONS, **options}) as client:
        answer = client.messages.create(model="m", messages=_MESSAGES, max_tokens=9, stream=stream)
        if stream:
            for _ in answer:
                pass
        else:
            answer.content[0].text.strip()


def anthropic_async(url: str, *, stream: bool, **options: Any) -> None:
    """The asyncio client of Anthropic."""
    from anthropic import AsyncAnthropic

    async def call() -> None:
        async with AsyncAnthropic(base_url=url, **{**_OPTIONS, **options}) as client:
            answer = await client.messages.create(
                model="m", messages=_MESSAGES, max_tokens=9, stream=stream
            )
            if stream:
                async for _ in answer:
                    pass
            else:
                answer.content[0].text.strip()

    asyncio.run(call())


def google(url: str, *, stream: bool) -> None:
    """The client of Gemini."""
    from google import genai

    options = {"base_url": url, "timeout": int(TIMEOUT * 1000)}
    client = genai.Client(api_key="k", http_options=options)
    if stream:
        for _ in client.models.generate_content_stream(model="m", contents="hi"):
            pass
    else:
        answer = client.models.generate_content(model="m", contents="hi")
        answer.candidates[0].content.parts[0].text.strip()


def google_async(url: str, *, stream: bool) -> None:
    """The asyncio client of Gemini, on httpx or aiohttp."""
    from google import genai

    async def call() -> None:
        options = {"base_url": url, "timeout": int(TIMEOUT * 1000)}
        client = genai.Client(api_key="k", http_options=options).aio
        try:
            if stream:
                async for _ in await client.models.generate_content_stream(
                    model="m", contents="hi"
                ):
                    pass
            else:
                answer = await client.models.generate_content(model="m", contents="hi")
                answer.candidates[0].content.parts[0].text.strip()
        finally:
            await client.aclose()

    asyncio.run(call())


def mistral(url: str, *, stream: bool) -> None:
    """The client of Mistral."""
    from mistralai.client import Mistral

    with Mistral(api_key="k", server_url=url, timeout_ms=int(TIMEOUT * 1000)) as client:
        if stream:
            for _ in client.chat.stream(model="m", messages=_MESSAGES):
                pass
        else:
            answer = client.chat.complete(model="m", messages=_MESSAGES)
            answer.choices[0].message.content.strip()


def cohere(url: str, *, stream: bool) -> None:
    """The client of Cohere."""
    from cohere import ClientV2

    client = ClientV2("k", base_url=url, timeout=TIMEOUT, max_retries=0)
    if stream:
        for _ in client.chat_stream(model="m", messages=_MESSAGES):
            pass
    else:
        answer = client.chat(model="m", messages=_MESSAGES)
        answer.message.content[0].text.strip()


def bedrock(url: str, *, stream: bool) -> None:
    """The client of Amazon Bedrock (botocore)."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
        config=Config(
            read_timeout=TIMEOUT, connect_timeout=TIMEOUT, retries={"total_max_attempts": 1}
        ),
    )
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    answer = client.converse(modelId="m", messages=messages)
    answer["output"]["message"]["content"][0]["text"].strip()


_LITELLM_OPTIONS: dict[str, Any] = {
    "messages": _MESSAGES,
    "api_key": "k",
    "timeout": TIMEOUT,
    "num_retries": 0,
    "max_retries": 0,
}


def _litellm(provider: str, url: str, *, stream: bool) -> None:
    import litellm

    litellm.suppress_debug_info = True
    answer = litellm.completion(
        model=f"{provider}/m", api_base=url, stream=stream, **_LITELLM_OPTIONS
    )
    if stream:
        for _ in answer:
            pass
    else:
        answer.choices[0].message.content.strip()


def litellm_openai(url: str, *, stream: bool) -> None:
    """LiteLLM, and an OpenAI-compatible service behind it."""
    _litellm("openai", url, stream=stream)


def litellm_anthropic(url: str, *, stream: bool) -> None:
    """LiteLLM, and Anthropic behind it."""
    _litellm("anthropic", url, stream=stream)


def litellm_gemini(url: str, *, stream: bool) -> None:
    """LiteLLM, and Gemini behind it."""
    _litellm("gemini", url, stream=stream)


def litellm_mistral(url: str, *, stream: bool) -> None:
    """LiteLLM, and Mistral behind it."""
    _litellm("mistral", url, stream=stream)


def litellm_async(url: str, *, stream: bool) -> None:
    """LiteLLM with asyncio, and an OpenAI-compatible service behind it."""
    import litellm

    async def call() -> None:
        answer = await litellm.acompletion(
            model="openai/m", api_base=url, stream=stream, **_LITELLM_OPTIONS
        )
        if stream:
            async for _ in answer:
                pass
        else:
            answer.choices[0].message.content.strip()

    litellm.suppress_debug_info = True
    asyncio.run(call())


def _httpx(module: Any, url: str, *, stream: bool) -> None:
    with module.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        if stream:
            with client.stream("POST", url, json={}) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        json.loads(line[5:])["choices"][0]
        else:
            answer = client.post(url, json={})
            answer.raise_for_status()
            answer.json()["choices"][0]["message"]["content"].strip()


def httpx(url: str, *, stream: bool) -> None:
    """httpx alone."""
    import httpx as module

    _httpx(module, url, stream=stream)


def httpx2(url: str, *, stream: bool) -> None:
    """httpx2 alone."""
    import httpx2 as module

    _httpx(module, url, stream=stream)


def requests(url: str, *, stream: bool) -> None:
    """Requests alone."""
    import requests as module

    with module.post(url, json={}, timeout=TIMEOUT, stream=stream) as answer:
        answer.raise_for_status()
        if stream:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    json.loads(line[5:])["choices"][0]
        else:
            answer.json()["choices"][0]["message"]["content"].strip()


def aiohttp(url: str, *, stream: bool) -> None:
    """aiohttp alone."""
    import aiohttp as module

    async def call() -> None:
        timeout = module.ClientTimeout(total=TIMEOUT)
        async with (
            module.ClientSession(timeout=timeout) as session,
            session.post(url, json={}) as answer,
        ):
            answer.raise_for_status()
            if stream:
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        json.loads(line[5:])["choices"][0]
            else:
                (await answer.json())["choices"][0]["message"]["content"].strip()

    asyncio.run(call())


def urllib3(url: str, *, stream: bool) -> None:
    """urllib3 alone, which raises nothing for a status."""
    import urllib3 as module

    with module.PoolManager(retries=False, timeout=TIMEOUT) as pool:
        answer = pool.request("POST", url, json={}, preload_content=not stream)
        if stream:
            for _ in answer.stream():
                pass
        else:
            json.loads(answer.data)["choices"][0]["message"]["content"].strip()


def urllib3_retries(url: str, *, stream: bool) -> None:
    """urllib3 with its retries, which also raise for a status."""
    import urllib3 as module

    retries = module.Retry(1, status_forcelist=range(400, 600), allowed_methods=None)
    with module.PoolManager(retries=retries, timeout=TIMEOUT) as pool:
        answer = pool.request("POST", url, json={})
        json.loads(answer.data)["choices"][0]["message"]["content"].strip()


def urllib(url: str, *, stream: bool) -> None:
    """urllib.request of the standard library."""
    from urllib.request import urlopen

    with urlopen(url, data=b"{}", timeout=TIMEOUT) as answer:  # noqa: S310 - our own server
        json.loads(answer.read())["choices"][0]["message"]["content"].strip()


# The API that the server has to speak, and the function.
SDKS: dict[str, tuple[str, Callable[..., None]]] = {
    "openai": ("openai", openai),
    "openai-async": ("openai", openai_async),
    "anthropic": ("anthropic", anthropic),
    "anthropic-async": ("anthropic", anthropic_async),
    "google-genai": ("google", google),
    "google-genai-async": ("google", google_async),
    "mistralai": ("mistral", mistral),
    "cohere": ("cohere", cohere),
    "botocore": ("bedrock", bedrock),
    "litellm-openai": ("openai", litellm_openai),
    "litellm-openai-async": ("openai", litellm_async),
    "litellm-anthropic": ("anthropic", litellm_anthropic),
    "litellm-gemini": ("google", litellm_gemini),
    "litellm-mistral": ("mistral", litellm_mistral),
    "httpx": ("openai", httpx),
    "httpx2": ("openai", httpx2),
    "requests": ("openai", requests),
    "aiohttp": ("openai", aiohttp),
    "urllib3": ("openai", urllib3),
    "urllib3-retries": ("openai", urllib3_retries),
    "urllib": ("openai", urllib),
}

# What differs from `answers.EXPECTED`, because the SDK does not pass on what the server said.
OTHERWISE: dict[tuple[str, str], str | None] = {
    # Only OpenAI and Anthropic say that the limit is one of money. Google's words for it, and its code,
    # are those of the limits per minute.
    **{
        (name, "429quota"): "rate-limit"
        for name in ("google-genai", "google-genai-async", "mistralai", "cohere")
    },
    **{(name, "429quota"): "rate-limit" for name in ("litellm-gemini", "litellm-mistral")},
    # These give no body with the error.
    **{
        (name, failure): is_
        for name in ("aiohttp", "urllib3-retries", "urllib")
        for failure, is_ in (
            ("400ctx", "client-error"),
            ("400policy", "client-error"),
            ("429quota", "rate-limit"),
        )
    },
    # Mistral takes half an event, and an error in OpenAI's form, for events.
    ("mistralai", "streamcut"): "parse-error",
    ("mistralai", "streamerr"): "parse-error",
    # botocore takes half an answer for an answer without fields, follows no redirect, and 424 means that
    # the model has failed.
    ("botocore", "424"): "server-error",
    ("botocore", "trunc"): "parse-error",
    ("botocore", "streamerr"): "parse-error",
    ("botocore", "redirect"): "unknown",
    # Without an SDK the application reads JSON itself. If it does so in an expression that begins with the
    # response, that can be seen; else its KeyError says nothing.
    **{(name, "streamerr"): None for name in ("httpx", "httpx2", "requests", "aiohttp")},
    **{
        (name, failure): is_
        for name in ("urllib3", "urllib3-retries", "urllib")
        for failure, is_ in (
            ("nochoices", None),
            ("error200", None),
            ("streamerr", "parse-error"),
        )
    },
    # urllib3 without retries raises nothing for a status.
    **{("urllib3", failure): None for failure in EXPECTED if failure[0].isdigit()},
    ("urllib3", "413html"): "parse-error",
    ("urllib3", "502html"): "parse-error",
    ("urllib3", "redirect"): "parse-error",
}
# Where nothing is raised: the clients read less than the others.
NO_ERROR = {
    ("cohere", "nochoices"),
    ("cohere", "streamerr"),
    ("botocore", "nochoices"),
    ("urllib3", "streamerr"),
}
