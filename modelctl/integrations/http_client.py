"""Clients of httpx and httpx2 that tell a recorder how each request of a model went.

They derive from the client of an SDK, so the SDK's time limits, proxies and redirects stay. Each request
over HTTP is one outcome: also each retry of the SDK, because the model was asked again.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from modelctl.integrations.answers import (
    LONGEST_BODY,
    NOTHING,
    SUCCESS,
    Events,
    Verdict,
    endpoint_of,
    judge,
    model_of,
)
from modelctl.integrations.reporting import Reporter, named
from modelctl.model import FailureType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from modelctl.integrations.reporting import RecordsOutcomes, Reported

# A mapping from what a request names to the id in the fleet, or a function; it returns None to ignore it.
Ids = Mapping[str, str] | Callable[[str], str | None]


class Watcher:
    """Knows which requests ask a model, and which."""

    def __init__(
        self,
        reporter: Reporter,
        provider: str,
        ids: Ids | None,
        endpoints: Mapping[str, str | None],
    ) -> None:
        """*endpoints*: the ends of paths that ask a model, and the field that a good answer has."""
        self.reporter = reporter
        self._provider = provider
        self._ids = ids
        self._endpoints = endpoints

    def begin(self, request: Any) -> Exchange | None:
        """Return the exchange that begins with this request; None: it asks no model of the fleet."""
        with self.reporter.guarded():
            end = endpoint_of(request.url.path, self._endpoints)
            if request.method != "POST" or end is None:
                return None
            model = model_of(request.content)
            if model_id := model and self._id(model):
                return Exchange(self.reporter, model_id, self._endpoints[end])
            self.reporter.ignored()
        return None

    def _id(self, model: str) -> str | None:
        if callable(self._ids):
            return self._ids(model)
        default = f"{self._provider}/{model}"
        return named(self._ids, default, model) or default


class Exchange:
    """One request of a model and its answer: one outcome."""

    def __init__(self, reporter: Reporter, model_id: str, field: str | None) -> None:
        self.reporter = reporter
        self._model_id = model_id
        self._field = field
        self._open = True

    def finish(self, verdict: Verdict) -> None:
        """Record the outcome, if it was not known before."""
        if not self._open:
            return
        self._open = False
        if verdict.good:
            self.reporter.success(self._model_id)
        elif verdict.type is None:
            self.reporter.ignored()
        else:
            self.reporter.failure(self._model_id, verdict.type, verdict.reason)

    def broke(self, exception: BaseException) -> None:
        """Record that the request, or reading its answer, raised."""
        if self._open:
            self._open = False
            self.reporter.raised(self._model_id, exception)

    def answered(self, response: Any, *, stream: bool) -> None:
        """Record the outcome of an answer: now, or when its stream has ended."""
        with self.reporter.guarded():
            if stream and not response.is_closed:
                response.stream = _watched(response, StreamWatch(self, response))
            else:
                self.finish(self.judge(response, response.content))

    def judge(self, response: Any, body: bytes) -> Verdict:
        """Return what a whole answer says."""
        content_type = response.headers.get("content-type", "")
        return judge(response.status_code, content_type, body, self._field)


class StreamWatch:
    """Watches the bytes of an answer while the application reads them."""

    def __init__(self, exchange: Exchange, response: Any) -> None:
        self._exchange = exchange
        self._response = response
        is_events = "text/event-stream" in response.headers.get("content-type", "")
        self._events = Events() if is_events and response.status_code < 300 else None
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        # gzip and deflate. What has another encoding is not looked into.
        self._unzip = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None
        self._readable = self._unzip is not None or encoding == "identity"
        self._body = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Look at some bytes."""
        with self._exchange.reporter.guarded():
            if not self._readable:
                return
            if self._unzip:
                chunk = self._unzip.decompress(chunk)
            if self._events is None:
                self._body += chunk[: LONGEST_BODY + 1 - len(self._body)]
            elif verdict := self._events.feed(chunk):
                self._exchange.finish(verdict)

    def ended(self) -> None:
        """The last byte was read."""
        with self._exchange.reporter.guarded():
            if not self._readable and self._response.status_code < 300:
                self._exchange.finish(SUCCESS)
            elif self._events is None:
                self._exchange.finish(self._judged())
            elif self._events.any or not self._readable:
                self._exchange.finish(SUCCESS)
            else:
                self._exchange.finish(Verdict(FailureType.PARSE_ERROR, "the stream has no events"))

    def broke(self, exception: BaseException) -> None:
        """Reading raised. The status of an error counts more than that."""
        with self._exchange.reporter.guarded():
            if self._response.status_code >= 300:
                self._exchange.finish(self._judged())
        self._exchange.broke(exception)

    def closed(self) -> None:
        """The application reads no further: an error has its status; of another answer nothing is known."""
        with self._exchange.reporter.guarded():
            failed = self._response.status_code >= 300
            self._exchange.finish(self._judged() if failed else NOTHING)

    def _judged(self) -> Verdict:
        return self._exchange.judge(self._response, bytes(self._body))


class _Stream:
    """A stream of httpx that is watched. Its other attributes are those of the stream."""

    def __init__(self, stream: Any, watch: StreamWatch) -> None:
        self._stream = stream
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _SyncStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                self._watch.feed(chunk)
                yield chunk
        except GeneratorExit:  # the application reads no further
            raise
        except BaseException as exc:
            self._watch.broke(exc)
            raise
        self._watch.ended()

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._watch.closed()


class _AsyncStream(_Stream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                self._watch.feed(chunk)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as exc:
            self._watch.broke(exc)
            raise
        self._watch.ended()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._watch.closed()


def _watched(response: Any, watch: StreamWatch) -> Any:
    package = type(response).__module__.partition(".")[0]  # httpx or httpx2
    is_async = hasattr(response.stream, "__aiter__")
    return _stream_class(package, is_async=is_async)(response.stream, watch)


@functools.cache
def _stream_class(package: str, *, is_async: bool) -> Any:
    own, name = (_AsyncStream, "AsyncByteStream") if is_async else (_SyncStream, "SyncByteStream")
    return type(f"Watched{name}", (own, getattr(sys.modules[package], name)), {})


class _Client:
    """What the two clients share."""

    _watcher: Watcher

    @property
    def reported(self) -> Reported:
        """What this client has told its recorder."""
        return self._watcher.reporter.stats


class _SyncClient(_Client):
    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        client: Any = super()
        exchange = self._watcher.begin(request)
        if exchange is None:
            return client.send(request, stream=stream, **options)
        try:
            response = client.send(request, stream=stream, **options)
        except BaseException as exc:
            exchange.broke(exc)
            raise
        exchange.answered(response, stream=stream)
        return response


class _AsyncClient(_Client):
    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        client: Any = super()
        exchange = self._watcher.begin(request)
        if exchange is None:
            return await client.send(request, stream=stream, **options)
        try:
            response = await client.send(request, stream=stream, **options)
        except BaseException as exc:
            exchange.broke(exc)
            raise
        exchange.answered(response, stream=stream)
        return response


def recording(
    base: Any,
    recorder: RecordsOutcomes,
    on_warning: Callable[[str], None] | None,
    options: dict[str, Any],
    *,
    provider: str,
    ids: Ids | None,
    endpoints: Mapping[str, str | None],
) -> Any:
    """Return a client of the class *base*, made with *options*, that records what it sends."""
    own = _AsyncClient if hasattr(base, "aclose") else _SyncClient
    client = type(f"Recording{base.__name__.lstrip('_')}", (own, base), {})(**options)
    client._watcher = Watcher(Reporter(recorder, on_warning), provider, ids, endpoints)
    return client


class Sdk:
    """Makes HTTP clients for an SDK whose package has the name of its provider."""

    def __init__(self, provider: str, endpoints: Mapping[str, str | None]) -> None:
        """*endpoints*: the ends of paths that ask a model, and the field that a good answer has."""
        self._provider = provider
        self._endpoints = endpoints

    def recording_client(
        self,
        recorder: RecordsOutcomes,
        *,
        id: Ids | None = None,  # noqa: A002 - what it is
        on_warning: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Any:
        """Return an HTTP client for the SDK's ``http_client=`` that records each request of a model.

        The client is the SDK's own (``DefaultHttpxClient``); *options* are for that. A retry of the SDK
        is a request, and is recorded. A stream is a success when it has ended; a stream that the
        application does not read to its end is recorded as nothing. Recording never fails a request:
        *on_warning* (default: the log) is told, and ``reported`` of the client counts.

        *id*: the id in the fleet for the model that a request names: a mapping, or a function that may
        return None to ignore the request. By default, and for what the mapping lacks,
        ``PROVIDER/MODEL``.
        """
        return self._recording("DefaultHttpxClient", recorder, on_warning, options, id)

    def recording_async_client(
        self,
        recorder: RecordsOutcomes,
        *,
        id: Ids | None = None,  # noqa: A002 - what it is
        on_warning: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Any:
        """Return an HTTP client for the SDK's asynchronous client, as `recording_client` does."""
        return self._recording("DefaultAsyncHttpxClient", recorder, on_warning, options, id)

    def _recording(
        self,
        name: str,
        recorder: RecordsOutcomes,
        on_warning: Callable[[str], None] | None,
        options: dict[str, Any],
        ids: Ids | None,
    ) -> Any:
        base = getattr(import_module(self._provider), name)
        return recording(
            *(base, recorder, on_warning, options),
            provider=self._provider,
            ids=ids,
            endpoints=self._endpoints,
        )
