"""Ask models that are off whether they work, and record the failures of those that do not."""

from __future__ import annotations

from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from modelctl.database.lease import claim
from modelctl.database.sql import text
from modelctl.errors import InvalidConfigError, ModelctlError, RefusedError
from modelctl.model import ModelStatus, numbered
from modelctl.models.events import NewEvent, log
from modelctl.probe.ask import Target, ask
from modelctl.tables.application import assignments, write
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import check_found, check_storable, quoted
from modelctl.tables.odd_values import readable
from modelctl.tables.selection import selected_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.config.probes import ProbeConfig
    from modelctl.database.database import Database
    from modelctl.probe.results import ProbeResult
    from modelctl.tables.selection import Selection

_FAILED = {"id": "text", "failure_type": "text", "reason": "text"}


def configured(config: Config) -> Mapping[str, ProbeConfig]:
    """Return the probes by provider; raises `InvalidConfigError` if there is none."""
    if not config.probes:
        hint = "see [probe.NAME] in: modelctl config example"
        raise InvalidConfigError("no probe is configured", hint=hint)
    return config.probes


class Prober:
    """Asks models that are off, and records what failed."""

    AT_ONCE = 8

    def __init__(
        self,
        probing: Probing,
        probes: Mapping[str, ProbeConfig],
        *,
        actor: str,
        warn: Callable[[str], None],
        progress: Callable[[int], None],
    ) -> None:
        """*probes*: by provider. *progress* is called with the number of models that answered."""
        self.probes = probes
        self.answers: dict[str, ProbeResult] = {}
        self._probing = probing
        self._actor = actor
        self._warn = warn
        self._progress = progress

    def models(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return id and provider of each model if all of them may be asked.

        Raises:
            InvalidConfigError: no probe is configured for the provider of a model.
            ModelNotFoundError: an id is unknown.
            RefusedError: a model is active.
        """
        models = self._probing.models(ids)
        for model_id, provider, status in models:
            if status is ModelStatus.ACTIVE:
                raise RefusedError(
                    f"'{model_id}' is active, and only models that are off are asked",
                    hint="a probe costs money; an application's own calls tell how it is",
                )
            if provider not in self.probes:
                raise InvalidConfigError(
                    f"no probe is configured for '{provider}', the provider of '{model_id}'",
                    hint="see [probe.NAME] in: modelctl config example",
                )
        return [(model_id, provider) for model_id, provider, _ in models]

    def off(self, selection: Selection) -> list[tuple[str, str]]:
        """Return id and provider of each model of a selection that is off and has a probe.

        Raises:
            InvalidConfigError: none of them has a probe.
            ModelNotFoundError: no model of the selection is off.
        """
        found = self._probing.off(selection)
        models = [(model_id, provider) for model_id, provider in found if provider in self.probes]
        if not models:
            providers = sorted({provider for _, provider in found})
            raise InvalidConfigError(
                f"no probe is configured for {quoted(providers)}",
                hint="see [probe.NAME] in: modelctl config example",
            )
        if others := len(found) - len(models):
            self._warn(f"{numbered(others)} not asked: no probe is configured for their providers")
        return models

    def ask(self, models: Sequence[tuple[str, str]]) -> list[ProbeResult]:
        """Ask each model (id, provider) once; start the cooldown of those that fail again."""
        answers: list[ProbeResult] = []
        for start in range(0, len(models), self.AT_ONCE):
            targets = [Target(*model) for model in models[start : start + self.AT_ONCE]]
            # All are asked at the same time, so the slowest one needs no more than its own timeout.
            deadline = max(self.probes[target.provider].timeout for target in targets) + 5
            asking = ask(targets, self.probes, concurrency=self.AT_ONCE, deadline=deadline)
            with closing(asking):
                for answer in asking:
                    answers.append(answer)
                    self.answers[answer.id] = answer
                    self._progress(len(self.answers))
        failed = []
        for answer in answers:
            if answer.failure_type is not None:
                failed.append((answer.id, str(answer.failure_type), answer.reason))
            elif not answer.healthy:  # the fault of the probe, not of the model
                self._warn(f"{answer.id} could not be asked: {answer.reason}")
        if failed:
            self._probing.failed(failed, actor=self._actor)
        return answers

    @contextmanager
    def claimed(self) -> Iterator[Callable[[], bool]]:
        """Give a function that claims, or prolongs, the right to ask; at the end the claim ends.

        It returns False if another process has the claim.
        """
        owner = f"{self._actor} {uuid4()}"
        seconds = 2 * max(probe.timeout for probe in self.probes.values()) + 60
        ours = True

        def prolong() -> bool:
            nonlocal ours
            ours = self._probing.claim(seconds, owner)
            return ours

        try:
            yield prolong
        finally:
            if ours:
                with suppress(ModelctlError):
                    self._probing.claim(0, owner)


class Probing:
    """The statements of probes: the models to ask, the claim, and the failures."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql

    def models(self, ids: Sequence[str]) -> list[tuple[str, str, ModelStatus]]:
        """Return id, provider and status of each; `ModelNotFoundError` names the missing ones."""
        check_storable(ids)
        sql = f"SELECT id, coalesce(provider, ''), {STATUS} FROM models WHERE {self._sql.ids}"
        wanted = {"ids": self._sql.list_of_texts(ids)}
        with self._database.reading() as connection:
            found = {row[0]: row for row in connection.execute(text(sql), wanted)}
        check_found(ids, found)
        return [(i, readable(found[i][1]), ModelStatus(found[i][2])) for i in ids]

    def off(self, selection: Selection) -> list[tuple[str, str]]:
        """Return id and provider of each model of a selection that is off."""
        ids = selected_ids(self._database, selection, only_off=True)
        return [(model_id, provider) for model_id, provider, _ in self.models([*ids])]

    def claim(self, seconds: float, owner: str) -> bool:
        """Claim the right to send probes for *seconds*; return whether *owner* has it now.

        The same *owner* may prolong its claim, or end it with 0 seconds.
        """
        return claim(self._database, "probe", seconds, owner)

    def failed(self, failures: Iterable[tuple[str, str, str | None]], *, actor: str) -> None:
        """Record failed probes as (id, failure type, reason): the cooldown of each starts again.

        A model that was switched on in the meantime is left alone.
        """
        answers = {model_id: (kind, reason) for model_id, kind, reason in failures}
        lock = (
            f"SELECT id, {STATUS} FROM models WHERE {self._sql.ids} AND active IS NOT TRUE"
            f" ORDER BY id{self._sql.lock}"
        )

        def work(connection: sa.Connection) -> None:
            wanted = {"ids": self._sql.list_of_texts(answers)}
            off = connection.execute(text(lock), wanted).all()
            rows = [
                (model_id, kind, reason and self._database.storable(reason))
                for model_id, _ in off
                for kind, reason in [answers[model_id]]
            ]
            values = assignments(
                self._database,
                failure_count="coalesce(failure_count, 0) + 1",
                last_failure_at=self._sql.now,
                failure_type="failed.failure_type",
                failure_reason="failed.reason",
                updated_at=self._sql.now,
            )
            update = (
                f"UPDATE models SET {values} FROM {self._sql.rows('failed', _FAILED)}"
                " WHERE models.id = failed.id RETURNING models.id"
            )
            # A trigger of the application may have left some rows as they were.
            written = {*connection.execute(text(update), self._sql.values(_FAILED, rows)).scalars()}
            events = [
                NewEvent(model_id, "probe-failed", status, status, reason, kind)
                for model_id, status in off
                if model_id in written
                for kind, reason in [answers[model_id]]
            ]
            log(self._database, connection, sorted(events), actor)

        write(self._database, work)
