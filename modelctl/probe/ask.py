"""Ask models whether they work: one small request, or one command, each. Knows no database."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from modelctl.config.probes import PLACE, ProbeConfig, check_probe, script_of
from modelctl.errors import InvalidConfigError, UsageError
from modelctl.health import failure_type_of_status
from modelctl.model import FailureType
from modelctl.redact import storable_reason
from modelctl.reports import ProbeResult

if TYPE_CHECKING:
    import ssl
    from typing import IO

_LIMIT = 65536  # bytes of an answer that are read, and of a command's stderr that are kept
_REASON_LENGTH = 500
_POLL_SECONDS = 0.02
# Addresses that no public service has, by IANA's registries of special ones. A list of our own,
# because what ipaddress calls private differs from Python to Python.
_PRIVATE_4 = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # what each machine of Azure asks about itself
    )
]
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
_PRIVATE_6 = [
    ipaddress.ip_network(network)
    # Protocols of the IETF (Teredo, ORCHID, benchmarks), examples, 6to4, examples again.
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The lower half of ISATAP's addresses, which end in one of IPv4.
_ISATAP = (0x5EFE, 0x200_5EFE)

# Without a type it is the fault of the probe, not of the model.
_Failure = tuple[FailureType | None, str]


@dataclass(frozen=True, slots=True)
class Target:
    """A model to ask."""

    id: str
    provider: str

    @property
    def name(self) -> str:
        """The id without a leading ``<provider>/``."""
        return self.id.removeprefix(f"{self.provider}/")


def _ignore(done: int) -> None:
    pass


def ask(
    targets: Iterable[Target],
    probes: Mapping[str, ProbeConfig],
    *,
    concurrency: int = 8,
    deadline: float = 60.0,
    progress: Callable[[int], None] = _ignore,
) -> Generator[ProbeResult, None, None]:
    """Ask each model once, also if it is given twice, and yield the answers as they come.

    *probes*: by provider. *concurrency*: how many are asked at the same time. What is not answered
    *deadline* seconds after the first answer was waited for has failed as a timeout. *progress* is
    told how many have answered. Closing the iterator ends all connections and commands.

    Raises:
        UsageError: a probe, or *concurrency*, makes no sense.
        InvalidConfigError: a provider has no probe, a key cannot be read, or httpx is not there;
            at once, before any model is asked.
    """
    asked = {target.id: target for target in targets}
    if concurrency < 1:
        raise UsageError("concurrency must be at least 1")
    keys: dict[str, str] = {}
    for provider in dict.fromkeys(target.provider for target in asked.values()):
        if provider not in probes:
            raise InvalidConfigError(f"provider '{provider}' has no probe")
        check_probe(probes[provider])
        keys[provider] = _key(probes[provider])
    web = _Web(_tls() if any(probes[provider].url for provider in keys) else None)
    jobs = [_Job(t, probes[t.provider], keys[t.provider], web) for t in asked.values()]
    return _answers(jobs, concurrency, deadline, progress)


def _key(config: ProbeConfig) -> str:
    """Return the key, empty if none is configured. No message and no exception has it."""
    if config.key_env:
        place, key = f"environment variable {config.key_env}", os.environ.get(config.key_env, "")
    elif config.key_file:
        place = f"file {config.key_file}"
        try:
            with open(config.key_file, "rb") as file:
                key = file.readline(_LIMIT).decode("latin-1").strip()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "not a file name"
            raise InvalidConfigError(f"cannot read the key from {place}: {why}") from None
    else:
        return ""
    provider = f"the key of provider '{config.provider}'"
    if not key:
        raise InvalidConfigError(f"{provider} is missing: {place} is not set or empty")
    if not re.fullmatch("[!-~]+", key):
        raise InvalidConfigError(f"{provider}, in {place}, has characters that no key has")
    return key


def _tls() -> ssl.SSLContext:
    """Return whom to trust: SSL_CERT_FILE or SSL_CERT_DIR if set, else the CAs of certifi."""
    try:
        import httpx
    except ImportError:
        raise InvalidConfigError(
            "asking a model over HTTP needs httpx", hint="pip install 'modelctl[probe]'"
        ) from None
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        why = exc.strerror or "no certificates in it"
        raise InvalidConfigError(f"cannot read SSL_CERT_FILE or SSL_CERT_DIR: {why}") from exc


def _answers(
    jobs: list[_Job], concurrency: int, deadline: float, progress: Callable[[int], None]
) -> Generator[ProbeResult, None, None]:
    """Run an event loop in a thread of its own, so that time limits hold while the caller works."""
    done: SimpleQueue[ProbeResult | BaseException] = SimpleQueue()
    waiting = iter(jobs)
    loop = asyncio.new_event_loop()

    async def work(end: float) -> None:
        for job in waiting:
            done.put(await job.answer(end))

    async def work_together() -> None:
        end = loop.time() + deadline
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(jobs))):
                group.create_task(work(end))

    def run() -> None:
        end: BaseException = RuntimeError("an answer is missing")
        try:
            loop.run_until_complete(task)
        except BaseException as exc:
            end = exc
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            done.put(end)  # seen only by a caller who would wait for ever

    task = loop.create_task(work_together())
    thread = threading.Thread(target=run, name="modelctl-probe", daemon=True)
    thread.start()
    try:
        for number in range(1, len(jobs) + 1):
            answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            progress(number)
            yield answer
    finally:
        with suppress(RuntimeError):  # all is answered, the loop is closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


@dataclass(frozen=True, slots=True)
class _Job:
    target: Target
    config: ProbeConfig
    key: str = field(repr=False)
    web: _Web

    async def answer(self, end: float) -> ProbeResult:
        """Ask, until the model's timeout or *end*, the deadline of all."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = min(self.config.timeout, end - started)
        failure: _Failure | None = (None, "not asked before the deadline of all")
        if limit > 0:
            try:
                async with asyncio.timeout(limit):
                    failure = await (self.request() if self.config.url else self.run())
            except TimeoutError:
                failure = FailureType.TIMEOUT, f"no answer in {limit:.1f}s"
        seconds = loop.time() - started
        if failure is None:
            return ProbeResult(self.target.id, True, None, None, seconds)
        reason = failure[1]
        if self.key:
            reason = reason.replace(self.key, "***")
        said = storable_reason(" ".join(reason.split()), _REASON_LENGTH)
        return ProbeResult(self.target.id, False, failure[0], said, seconds)

    def fill(self, template: str, *, quoted: bool = False) -> str:
        """Put id and name into *template*; *quoted*: as words of a shell.

        Not shlex.quote: it leaves some words bare, and they would merge with what is beside them.
        """
        values = {"{id}": self.target.id, "{name}": self.target.name}
        if quoted:
            values = {
                place: "'" + value.replace("'", "'\"'\"'") + "'" for place, value in values.items()
            }
        return re.sub(PLACE, lambda match: values[match[0]], template)

    async def request(self) -> _Failure | None:
        """Send the request to a checked address; another one is tried only if connecting failed."""
        import httpx

        parts = urlsplit(self.config.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            addresses = await self.web.addresses(host, port)
            refused = [address for address in addresses if not _is_public(address)]
            if refused and not self.config.allow_private:
                return None, (
                    f"{host} is {refused[0]}, not a public address; allow_private permits it"
                )
            while True:
                # The address itself stands in the URL, so that nobody resolves the name again.
                address = addresses.pop(0)
                place = f"[{address}]" if ":" in address else address
                url = f"{parts.scheme}://{place}:{port}{parts.path.rstrip('/')}/chat/completions"
                try:
                    return await self.post(url, parts.netloc, host, share=1 + len(addresses))
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if not addresses:
                        raise
        except httpx.TimeoutException:
            return FailureType.TIMEOUT, "no connection in time"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
            return FailureType.NETWORK_ERROR, _why(exc)

    async def post(self, url: str, place: str, host: str, share: int) -> _Failure | None:
        """Send the request to *url*, as *host*, which TLS verifies."""
        import httpx

        headers = {
            "Host": place,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "modelctl",
        }
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        ping: dict[str, Any] = {
            "model": self.fill(self.config.model),
            "messages": [{"role": "user", "content": "ping"}],
        }
        if self.config.max_tokens:
            ping[self.config.max_tokens_field] = self.config.max_tokens
        if self.config.stream:
            ping["stream"] = True
        connections: list[Any] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                connections.append(info["return_value"])

        request = httpx.Request(
            "POST",
            url,
            headers=headers,
            content=json.dumps(ping).encode(),  # ASCII, so that it holds lone surrogates too
            extensions={
                "sni_hostname": host,
                "timeout": {"connect": self.config.timeout / share},
                "trace": trace,
            },
        )
        try:
            # No client around it: nothing follows redirects, keeps cookies or logs.
            async with (
                httpx.AsyncHTTPTransport(verify=self.web.tls or True, trust_env=False) as transport,
                aclosing(await transport.handle_async_request(request)) as response,
            ):
                body = b""
                async for part in response.aiter_raw():  # raw: nothing that grows by unpacking
                    body += part
                    if len(body) > _LIMIT or (self.config.stream and _has_answered(body)):
                        break
                return _judge(response.status_code, body, stream=self.config.stream)
        finally:
            for connection in connections:  # httpcore forgets it if a TLS handshake is cancelled
                await connection.aclose()

    async def run(self) -> _Failure | None:
        """Run the command; what it leaves behind in its process group ends with it."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # every exit would look like 0
            return None, "SIGCHLD is ignored, so exit codes are lost"
        script = script_of(self.config.command)
        words = [self.fill(w, quoted=n == script > 0) for n, w in enumerate(self.config.command)]
        target = {
            "MODELCTL_ID": self.target.id,
            "MODELCTL_NAME": self.target.name,
            "MODELCTL_PROVIDER": self.target.provider,
        }
        try:
            "".join(target.values()).encode()  # a lone surrogate would become some other byte
            child = subprocess.Popen(  # noqa: S603 - what the operator configured
                words,
                bufsize=0,
                env=os.environ | target,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except ValueError:
            return None, "the id cannot be an argument: NUL, or not Unicode"
        except OSError as exc:
            return None, f"cannot run {words[0]}: {exc.strerror}"
        return await _watch(child)


async def _watch(child: subprocess.Popen[bytes]) -> _Failure | None:
    """Wait until *child* ends, and kill its group then or when cancelled.

    Not asyncio's own processes: they wait for everybody who inherited stderr.
    """
    tail = b""
    with cast("IO[bytes]", child.stderr) as pipe:
        os.set_blocking(pipe.fileno(), False)
        try:
            while child.poll() is None:
                await asyncio.sleep(_POLL_SECONDS)
                tail = (tail + (pipe.read(_LIMIT) or b""))[-_LIMIT:]
        finally:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # not ours to kill: it changed its user
                child.wait(1)
        tail += pipe.read(_LIMIT) or b""
    if child.returncode == 0:
        return None
    if len(tail) >= _LIMIT:  # its first line is cut, and could show half of a key
        tail = tail[-_LIMIT:].partition(b"\n")[2]
    lines = tail.decode(errors="replace").strip().splitlines()
    how = f"exit {child.returncode}" if child.returncode > 0 else f"signal {-child.returncode}"
    # What a shell says of a program that cannot be run, or is not there.
    kind = None if child.returncode in (126, 127) else FailureType.UNKNOWN
    return kind, ": ".join([how, *lines[-1:]])


class _Web:
    """What the requests of one `ask` share: whom to trust, and the addresses of each host."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self._found: dict[tuple[str, int], asyncio.Future[list[str] | Exception]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Resolve *host*, once, in a thread that nobody needs to wait for."""
        loop = asyncio.get_running_loop()

        def resolve() -> None:
            result: list[str] | Exception
            try:
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                result = list(dict.fromkeys(str(info[4][0]) for info in infos))
            except (OSError, UnicodeError) as exc:
                result = exc
            with suppress(RuntimeError):  # too late, the loop is closed
                loop.call_soon_threadsafe(found.set_result, result)

        if (host, port) not in self._found:
            found = self._found[host, port] = loop.create_future()
            threading.Thread(target=resolve, name="modelctl-resolve", daemon=True).start()
        result = await asyncio.shield(self._found[host, port])
        if isinstance(result, Exception):
            raise result
        return list(result)


def _is_public(address: str) -> bool:
    """Tell whether *address* is an ordinary one of the Internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in _PRIVATE_4)
    embedded = str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    if ip in _NAT64:  # an IPv4 address, as a network without IPv4 writes it
        return _is_public(embedded)
    if (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP and not _is_public(embedded):
        return False
    return ip in _PUBLIC_6 and ip.is_global and not any(ip in network for network in _PRIVATE_6)


# Statuses that speak of the request or its key, whichever model it names: the key (401, 403, 407),
# an unpaid bill (402), the method or path (405), the formats and sizes (406, 411, 413, 414, 415,
# 417, 431), too many requests (429), a caller that went away (499).
_OF_THE_REQUEST = {401, 402, 403, 405, 406, 407, 411, 413, 414, 415, 417, 429, 431, 499}
# What a 400, 404 or 422 says when the request does not fit: a parameter, the kind of endpoint, the
# path, the key, the bill. Everything else is the model's: it is gone, or refuses a plain "ping".
_REQUEST_DOES_NOT_FIT = re.compile(
    r"unsupported[ _](?:parameter|value|country)|(?:unknown|unrecognized|invalid|unexpected|extra)[ _]"
    r"(?:request[ _])?(?:parameter|argument|field|key|input|property|url|path|route|endpoint)"
    r"|missing[ _]required|field required|extra[ _](?:inputs|fields)?[ _]?(?:are not permitted|forbidden)"
    r"|max_(?:completion_|output_)?tokens|not a chat model|chat model|chat/completions|v1/\w+"
    r"|chat[ _]completions?|(?:only|not) support\w*[^.]*(?:stream|chat|audio|image|embedding|messages)"
    r"|stream(?:ing)?['\"` ]*(?:must|is required|=|only|parameter)|(?:embedding|rerank\w*|image|audio"
    r"|speech|transcription|moderation) model|api[ _-]?key|credit|billing|quota|balance|payment",
    re.IGNORECASE,
)
# Fields and comments of Server-Sent Events; no JSON begins so.
_EVENT_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")
# A path that leads to no API answers with a page, or with these words alone.
_NO_SUCH_PATH = re.compile(r"(?:404 )?(?:(?:page|path|route|url) )?not found\.?", re.IGNORECASE)


def _judge(status: int, body: bytes, *, stream: bool) -> _Failure | None:
    """Return what is wrong with an answer; without a failure type it is the probe's own fault."""
    if status == 200 and _EVENT_STREAM.match(body):
        return _judge_stream(body, stream=stream)
    document = _json(body) if len(body) <= _LIMIT else None
    said = document if isinstance(document, dict) else {}
    if status == 200 and isinstance(choices := said.get("choices"), list) and choices:
        return None
    message, words = _error(said)
    if status == 200 and (status_inside := _status_of(said)):
        # What stands between passes on what it was answered (OpenRouter, for one).
        return _judge(status_inside, json.dumps(said).encode(), stream=stream)
    if len(body) > _LIMIT:
        message = message or "larger than 64 KiB"
    if status == 400 and re.search("max_(completion_|output_)?tokens.*reached", message):
        return None  # it thought for longer than we let it
    if 300 <= status <= 399:
        return None, f"HTTP {status}: a redirect, refused"
    if 400 <= status <= 599:
        its_own_fault = (
            status in _OF_THE_REQUEST
            or (status in (400, 404, 422) and _REQUEST_DOES_NOT_FIT.search(words))
            or (status == 404 and (not message or _NO_SUCH_PATH.fullmatch(message.strip())))
        )
        kind = None if its_own_fault else failure_type_of_status(status)
        return kind, f"HTTP {status}: {message}" if message else f"HTTP {status}"
    return FailureType.PARSE_ERROR, f"HTTP {status}: {message or 'not a JSON object with choices'}"


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _status_of(said: dict[str, Any]) -> int | None:
    """The HTTP status that stands in an error, where that came with 200."""
    error = said.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code <= 599 else None


def _error(said: dict[str, Any]) -> tuple[str, str]:
    """Return the message of an error as the OpenAI-compatible servers write it, and all its words."""
    error = said.get("error", said)
    message = error.get("message") if isinstance(error, dict) else error
    if isinstance(error, dict) and not isinstance(message, str):
        message = error.get("detail")  # FastAPI; a list where fields are wrong
        if isinstance(message, list):
            message = json.dumps(message)[:_REASON_LENGTH]
    message = message if isinstance(message, str) else ""
    if not isinstance(error, dict):
        return message, message
    codes = (error.get(name) for name in ("code", "type", "param", "status"))
    return message, " ".join([message, *(code for code in codes if isinstance(code, str))])


def _chunks(body: bytes) -> list[Any]:
    """Return the JSON values of the whole events in *body* (Server-Sent Events)."""
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    found = (line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:"))
    return [_json(data) for data in found if data != b"[DONE]"]


def _has_answered(body: bytes) -> bool:
    """Whether a stream has said enough: a choice, or an error."""
    return any(isinstance(c, dict) and (c.get("choices") or "error" in c) for c in _chunks(body))


def _judge_stream(body: bytes, *, stream: bool) -> _Failure | None:
    """Return what is wrong with an event stream."""
    if not stream:
        return None, "HTTP 200: an event stream where JSON was asked for; set stream = true"
    for chunk in _chunks(body + b"\n"):
        said = chunk if isinstance(chunk, dict) else {}
        if status_inside := _status_of(said):
            return _judge(status_inside, json.dumps(said).encode(), stream=stream)
        if "error" in said:
            message, _ = _error(said)
            return FailureType.SERVER_ERROR, f"HTTP 200: {message or 'an error in the stream'}"
        if isinstance(choices := said.get("choices"), list) and choices:
            return None
    large = " in its first 64 KiB" if len(body) > _LIMIT else ""
    return FailureType.PARSE_ERROR, f"HTTP 200: a stream without choices{large}"


def _why(error: BaseException) -> str:
    """Say why a connection failed in the system's words; those of HTTP may quote the server."""
    import ssl

    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"certificate refused: {inner.verify_message}"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return "the connection broke, or does not speak HTTP"
