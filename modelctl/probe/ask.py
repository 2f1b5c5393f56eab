"""Ask models whether they work: one small request, or one command, each. Uses no database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

from modelctl.config.probes import PLACE, ProbeConfig, check_probe, script_of
from modelctl.config.secrets import read_key
from modelctl.errors import InvalidConfigError, UsageError
from modelctl.model import FailureType
from modelctl.outbound import command
from modelctl.outbound.loop import running
from modelctl.outbound.web import Web, trusted_certificates
from modelctl.probe.http import Request
from modelctl.probe.judge import REASON_LENGTH
from modelctl.probe.results import Failure, ProbeResult
from modelctl.redact import storable_reason
from modelctl.signals import STEP_SECONDS

T = TypeVar("T")


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
    """Ask each model once, even if it is given twice, and yield the answers as they come.

    *probes*: by provider. *concurrency*: how many models are asked at the same time. A model without
    an answer *deadline* seconds after the first `next` has failed with a timeout. *progress* is
    called with the number of answers. Closing the iterator ends all connections and commands.

    Raises:
        UsageError: a probe, or *concurrency*, makes no sense.
        InvalidConfigError: a provider has no probe, a key cannot be read, or httpx is not
            installed. Raised by the call itself, before any model is asked.
    """
    asked = {target.id: target for target in targets}
    if concurrency < 1:
        raise UsageError("concurrency must be at least 1")
    keys: dict[str, str] = {}
    for provider in dict.fromkeys(target.provider for target in asked.values()):
        if provider not in probes:
            raise InvalidConfigError(f"provider '{provider}' has no probe")
        check_probe(probes[provider])
        config = probes[provider]
        what = f"the key of provider '{provider}'"
        keys[provider] = read_key(what, config.key_env, config.key_file)
    needs_http = any(probes[provider].url for provider in keys)
    certificates = trusted_certificates("asking a model over HTTP", "probe") if needs_http else None
    web = Web(certificates)
    jobs = [_Job(t, probes[t.provider], keys[t.provider], web) for t in asked.values()]
    return _answers(jobs, concurrency, deadline, progress)


def _answers(
    jobs: list[_Job], concurrency: int, deadline: float, progress: Callable[[int], None]
) -> Generator[ProbeResult, None, None]:
    """Run an event loop in a thread of its own, so that timeouts hold while the caller works."""
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
            # Wakes a caller that still waits for an answer; after the last answer nobody reads it.
            done.put(end)

    task = loop.create_task(work_together())
    with running(run, loop, task, "modelctl-probe"):
        for number in range(1, len(jobs) + 1):
            answer = _next(done)
            if isinstance(answer, BaseException):
                raise answer
            progress(number)
            yield answer


def _next(done: SimpleQueue[T]) -> T:
    """Return what comes next, in steps: see `signals.STEP_SECONDS`."""
    while True:
        with suppress(Empty):
            return done.get(timeout=STEP_SECONDS)


@dataclass(frozen=True, slots=True)
class _Job:
    """One model to ask, with all that this needs."""

    target: Target
    config: ProbeConfig
    key: str = field(repr=False)
    web: Web

    async def answer(self, end: float) -> ProbeResult:
        """Ask, for at most the timeout of the model, and until *end*, the deadline of all models."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = min(self.config.timeout, end - started)
        failure: Failure | None = Failure(None, "not asked before the deadline of all")
        if limit > 0:
            try:
                async with asyncio.timeout(limit):
                    failure = await self._ask()
            except TimeoutError:
                failure = Failure(FailureType.TIMEOUT, f"no answer in {limit:.1f}s")
        seconds = loop.time() - started
        if failure is None:
            return ProbeResult(self.target.id, True, None, None, seconds)
        reason = failure.reason
        if self.key:
            reason = reason.replace(self.key, "***")
        stored = storable_reason(" ".join(reason.split()), REASON_LENGTH)
        return ProbeResult(self.target.id, False, failure.failure_type, stored, seconds)

    async def _ask(self) -> Failure | None:
        """Send the request, or run the command."""
        if self.config.url:
            model = self._fill(self.config.model)
            return await Request(self.config, model, self.key, self.web).send()
        script = script_of(self.config.command)
        words = [
            self._fill(word, quoted=number == script > 0)
            for number, word in enumerate(self.config.command)
        ]
        environment = {
            "MODELCTL_ID": self.target.id,
            "MODELCTL_NAME": self.target.name,
            "MODELCTL_PROVIDER": self.target.provider,
        }
        try:
            ended = await command.run(words, environment)
        except command.CannotRunError as exc:
            return Failure(None, str(exc))
        if ended.code == 0:
            return None
        return Failure(None if ended.cannot_run else FailureType.UNKNOWN, str(ended))

    def _fill(self, template: str, *, quoted: bool = False) -> str:
        """Put id and name into *template*; *quoted*: as words of a shell.

        shlex.quote is no help: it leaves some words bare, which would merge with the text beside
        them.
        """
        values = {"{id}": self.target.id, "{name}": self.target.name}
        if quoted:
            values = {
                place: "'" + value.replace("'", "'\"'\"'") + "'" for place, value in values.items()
            }
        return re.sub(PLACE, lambda match: values[match[0]], template)
