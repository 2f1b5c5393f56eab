"""ModelStore: reads of models and events, changes of single models.

Reads are Core expressions. What changes a status is in `changes`, many models at once in
`batches`, and what `recover` does in `recovery`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import sqlalchemy as sa

from modelctl import health
from modelctl.database.bulk import rows_of
from modelctl.database.database import Database
from modelctl.database.sql import text
from modelctl.errors import RefusedError, clean
from modelctl.model import ModelStatus, numbered, storable
from modelctl.models.changes import (
    DISABLE,
    ENABLE,
    REMOVE,
    Change,
    Changes,
    as_it_was_to_be,
)
from modelctl.models.events import iter_events
from modelctl.models.guards import take_guard_lock
from modelctl.models.results import (
    Event,
    LeaderboardEntry,
    Model,
    ProviderStats,
    Stats,
    StatusChange,
)
from modelctl.tables.application import filled_to, refusing
from modelctl.tables.columns import AUTO_OFF, COUNTERS, MODELS, ON, StoredFlag, UtcTime
from modelctl.tables.ids import check_found, check_storable, is_storable, quoted
from modelctl.tables.odd_values import OddRows, as_declared, is_number, readable, whole
from modelctl.times import time_at

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from modelctl.config.config import Config

T = TypeVar("T")


class Survey(NamedTuple):
    """How many models there are, how many are on, and how many of these are odd.

    *contradictory*: on and auto-disabled. *failing*: the last call failed, in a way that does not
    count. *unreadable*: values are not what their columns are for; *such_as*: one of these models.
    *filling*: the counters of 4 bytes that come near their end, *full*: those that are at it.
    """

    models: int
    active: int
    contradictory: int
    failing: int
    unreadable: int
    such_as: str
    filling: str
    full: str


# Of a counter of 4 bytes: the last number, and one that leaves months to widen it.
FULL, NEARLY_FULL = 2**31 - 1, 2_000_000_000
_NEAR_AMONG = 20_000  # models among which those with a similar id are looked for
# Of a row of models: what a flag is, and where the texts are.
_FLAGS = (True, False, None)
_TEXTS = tuple(i for i, column in enumerate(MODELS.c) if isinstance(column.type, sa.Text))

_SORTS: dict[str, tuple[Any, ...]] = {
    "id": (),
    "name": (
        sa.type_coerce(
            sa.func.coalesce(sa.func.nullif(MODELS.c.display_name, ""), MODELS.c.id), sa.Text
        ),
    ),
    "provider": (sa.type_coerce(sa.func.coalesce(MODELS.c.provider, ""), sa.Text),),
    "status": (
        MODELS.c.active.desc().nulls_last(),
        MODELS.c.auto_disabled.desc().nulls_last(),
    ),
    "failures": (
        sa.func.coalesce(MODELS.c.consecutive_failures, 0).desc(),
        sa.func.coalesce(MODELS.c.failure_count, 0).desc(),
    ),
    "updated": (MODELS.c.updated_at.desc().nulls_last(),),
}
SORT_KEYS = tuple(_SORTS)


class ModelStore:
    """The rows of the fleet in one database, PostgreSQL or SQLite.

    Every method is one transaction and raises `DatabaseUnavailableError`, `InvalidConfigError`
    or `MissingSchemaError` where the database says so.
    """

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._changes = Changes(config, database)
        self._usual: set[tuple[type, ...]] = set()
        self._on_sqlite, self._sql = self._changes.on_sqlite, self._changes.sql

    # ── Reads ──

    def iter_models(
        self,
        *,
        status: ModelStatus | None = None,
        provider: str | None = None,
        sort: str = "id",
        limit: int | None = None,
    ) -> Iterator[Model]:
        """Give the models that match; *sort* is one of `SORT_KEYS`.

        All are read at once; nothing is held in the database while they are worked through.
        """
        c = MODELS.c
        query = self._rows().order_by(*map(self._sorted, _SORTS[sort]), self._sorted(c.id))
        query = query.limit(limit)
        if status is ModelStatus.ACTIVE:
            query = query.where(c.active.is_(sa.true()))
        elif status is not None:
            automatic = c.auto_disabled.is_(sa.true())
            wanted = (
                automatic if status is ModelStatus.AUTO_DISABLED else automatic.is_not(sa.true())
            )
            query = query.where(c.active.is_not(sa.true()), wanted)
        if provider is not None:
            query = query.where(sa.func.coalesce(c.provider, "") == storable(provider))
        yield from self._models(rows_of(self._database, query, limit))

    def _models(self, rows: Iterable[Any]) -> Iterator[Model]:
        odd = OddRows(self._database.warn)
        for row in rows:
            yield self._model(row, odd)
        odd.finish()

    def get(self, model_id: str) -> Model:
        """Return one model; `ModelNotFoundError` where there is none."""
        check_storable([model_id])
        with self._database.reading() as connection:
            found = connection.execute(self._rows().where(MODELS.c.id == model_id)).all()
        check_found([model_id], [row.id for row in found])
        return next(self._models(found))

    def complete(self, prefix: str) -> list[str]:
        """Return at most 100 ids that begin with *prefix* and mean nothing to a shell."""
        sql = (
            "SELECT id FROM models WHERE starts_with(id, :prefix) AND id ~ :plain"
            f" ORDER BY {self._sql.by_id} LIMIT 100"
        )
        values = {"prefix": prefix, "plain": "^[a-zA-Z0-9._/:@+][a-zA-Z0-9._/:@+-]*$"}
        with self._database.reading() as connection:
            return [*connection.execute(text(sql), values).scalars()]

    def _sorted(self, expression: Any) -> Any:
        """Sort text by code points, so that both databases and every locale agree."""
        if not isinstance(expression.type, sa.Text):
            return expression
        return expression.collate("BINARY" if self._on_sqlite else "C")

    def nearest(self, model_id: str) -> list[str]:
        """Return at most 3 ids that *model_id* was perhaps meant to be, the nearest first.

        Bounded work, however many models there are: its neighbours in the index, and of the first
        `_NEAR_AMONG` models those of about its length that begin or end alike.
        """
        from modelctl.look_alikes import nearest

        wanted = storable(model_id, 200)
        last = re.split("[/:]", wanted.lower())[-1]
        patterns = {"head": f"{_literal(wanted[:2])}%", "tail": f"%{_literal(last[-2:])}"}
        same = " OR ".join(f"lower(id) LIKE :{name} ESCAPE '!'" for name in (*patterns, "whole"))
        parts = (
            "SELECT id FROM models WHERE id >= :id ORDER BY id LIMIT 50",
            "SELECT id FROM models WHERE id < :id ORDER BY id DESC LIMIT 50",
            f"SELECT id FROM (SELECT id FROM models LIMIT {_NEAR_AMONG}) AS these WHERE {same}"
            " ORDER BY abs(length(id) - :length) LIMIT 200",
        )
        sql = " UNION ".join(
            f"SELECT id FROM ({part}) AS part_{number}" for number, part in enumerate(parts)
        )
        values = {"id": wanted, "length": len(wanted), "whole": f"%{_literal(last)}", **patterns}
        with self._database.reading() as connection:
            found = connection.execute(text(sql), values).scalars().all()
        return nearest(wanted, [i for i in found if isinstance(i, str) and is_storable(i)])

    def look_alikes(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of one of *ids* and another model whose id looks the same."""
        from modelctl.look_alikes import ASCII_ALIKE, skeleton

        wanted: dict[str, list[str]] = {}
        for model_id in ids:
            wanted.setdefault(skeleton(model_id), []).append(model_id)
        # The others are ASCII, and their skeleton can be told in SQL.
        if self._on_sqlite:
            odd, folded = "id GLOB '*[^!-~]*'", "lower(id)"
            for one, other in zip(*ASCII_ALIKE, strict=True):
                folded = f"replace({folded}, '{one}', '{other}')"
        else:
            capitals, small = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghljklmnopqrstuvwxyz"
            alike, same = (f"{a}{b}" for a, b in zip((capitals, small), ASCII_ALIKE, strict=True))
            odd, folded = "id ~ '[^!-~]'", f"translate(id, '{alike}', '{same}')"
        sql = (
            f"SELECT id FROM models WHERE {odd} OR {self._sql.is_among(folded)}"
            f" ORDER BY {self._sql.by_id}"
        )
        found = self._changes.spooled(
            text(sql), {"ids": self._changes.ids(wanted)}, lambda row: row[0]
        )
        return [
            (model_id, other)
            for other in found
            for model_id in wanted.get(skeleton(other), ())
            if model_id != other
        ]

    def _rows(self) -> sa.Select[Any]:
        """All columns of the models, the clock that their cooldowns run by, and when they come back."""
        now = sa.literal_column(self._sql.now, UtcTime).label("now")
        retry = sa.text(f"{self._changes.retry} AS retry").bindparams(
            max_ejections=self._config.recovery.max_ejections, **self._changes.ladder()
        )
        return sa.select(MODELS, now, retry)

    def _as_declared(self, row: Sequence[Any], odd: OddRows) -> Sequence[Any]:
        """Make each value what its column is for; name the model where one was not."""
        values, columns = as_declared(MODELS.c, row)
        if columns:
            odd.add(quoted([values[0]]), columns)
        else:
            self._usual.add(tuple(map(type, row)))
        return values

    def _model(self, row: Any, odd: OddRows) -> Model:
        usual = tuple(map(type, row)) in self._usual and row[3] in _FLAGS and row[4] in _FLAGS
        if not usual or not all(row[i] is None or is_storable(row[i]) for i in _TEXTS):
            row = self._as_declared(row, odd)
        # By position: a list of all models spends its time here.
        (
            model_id,
            display_name,
            provider,
            active,
            auto_disabled,
            consecutive_failures,
            ejections,
            success_count,
            failure_count,
            last_success_at,
            last_failure_at,
            failure_type,
            failure_reason,
            disabled_at,
            disabled_by,
            disabled_reason,
            disabled_until,
            recovered_at,
            would_disable,
            created_at,
            updated_at,
            now,
            retry,
        ) = row
        retry_at = left = None
        if retry is not None:
            retry_at = time_at(retry, now.timestamp(), self._database.sql.digits_of_a_second)
            left = max(0.0, (retry_at - now).total_seconds())
        return Model(
            model_id,
            display_name or "",
            provider or "",
            active == 1,
            auto_disabled == 1,
            consecutive_failures or 0,
            ejections or 0,
            success_count or 0,
            failure_count or 0,
            last_success_at,
            last_failure_at,
            failure_type or None,
            failure_reason or None,
            disabled_at,
            disabled_by or None,
            disabled_reason or None,
            disabled_until,
            recovered_at,
            (would_disable or None) if active == 1 else None,
            created_at,
            updated_at,
            health.status_of(active == 1, auto_disabled == 1),
            retry_at,
            left,
        )

    def stats(self) -> Stats:
        """Return the totals, in one statement over the rows."""
        counted = (MODELS.c.id, MODELS.c.provider, MODELS.c.success_count, MODELS.c.failure_count)
        odd = self._odd(counted) if self._on_sqlite else ""
        if odd:
            odd = f", count(*) FILTER (WHERE {odd}), min(id) FILTER (WHERE {odd})"
        sql = (
            f"SELECT provider, count(*), count(*) FILTER (WHERE {ON}),"
            f" count(*) FILTER (WHERE {AUTO_OFF}), coalesce(sum({self._summed('success_count')}), 0),"
            f" coalesce(sum({self._summed('failure_count')}), 0){odd} FROM models GROUP BY provider"
        )
        warn = self._database.warn
        # Of each provider: models, active, auto-disabled, successes, failures.
        providers: dict[str, list[int]] = {}
        with self._database.reading() as connection:
            for provider, *rest in connection.execute(text(sql)):
                if odd and rest.pop(-2):
                    warn(f"{quoted([readable(rest[5])])} has values that cannot be counted")
                elif provider is not None and not is_storable(readable(provider)):
                    warn(f"the provider '{clean(provider)}' of {numbered(rest[0])} cannot be read")
                if not all(map(is_number, rest[3:5])):
                    of = clean(readable(provider))
                    warn(f"the calls of provider '{of}' cannot be summed: one of them is no number")
                provider, numbers = readable(provider), [*map(whole, rest[:5])]
                # NULL is as good as empty; asking the database for that costs a quarter more.
                of_one = providers.setdefault(provider or "", [0] * 5)
                of_one[:] = [a + b for a, b in zip(of_one, numbers, strict=True)]
        shares = tuple(
            ProviderStats(name, models, active, models - active - auto_off, auto_off, good, bad)
            for name, (models, active, auto_off, good, bad) in sorted(providers.items())
        )
        return Stats(
            models=sum(share.models for share in shares),
            active=sum(share.active for share in shares),
            disabled=sum(share.disabled for share in shares),
            auto_disabled=sum(share.auto_disabled for share in shares),
            providers=shares,
            success_count=sum(share.success_count for share in shares),
            failure_count=sum(share.failure_count for share in shares),
        )

    def _odd(self, columns: Iterable[sa.Column[Any]]) -> str:
        """Whether values of a row are not what these columns are for, as far as SQL can tell."""
        tests = ["id IS NULL"]
        for column in columns:
            name, kind = column.name, column.type
            if isinstance(kind, UtcTime):
                fine = f"{self._sql.is_finite(name)} IS TRUE"
                if not self._on_sqlite:
                    fine = f"{name} BETWEEN '0001-01-01' AND '9999-12-30'"
                    fine += f" OR {name} = 'infinity'" if name == "disabled_until" else ""
                tests.append(f"{name} IS NOT NULL AND NOT ({fine})")
            elif not self._on_sqlite:
                continue
            elif isinstance(kind, StoredFlag):
                tests.append(f"{name} NOT IN (0, 1)")
            else:
                type_ = "integer" if isinstance(kind, sa.Integer) else "text"
                tests.append(f"typeof({name}) NOT IN ('{type_}', 'null')")
        return f"({' OR '.join(tests)})"

    def _summed(self, column: str) -> str:
        """On SQLite a sum of integers fails where it is too long, so none may be beyond belief."""
        if not self._on_sqlite:
            return column
        return f"min(max(CAST({column} AS integer), -1000000000000000), 1000000000000000)"

    def leaderboard(
        self, *, top: int | None, provider: str | None, untested: bool
    ) -> tuple[LeaderboardEntry, ...]:
        """Return the *top* active models (None: all) by the lower bound of their success rate.

        *untested*: also those without a call, which come last.
        """
        c = MODELS.c
        successes, failures = (sa.func.coalesce(n, 0) for n in (c.success_count, c.failure_count))
        good, bad = sa.cast(successes, sa.Double), sa.cast(failures, sa.Double)
        # Neither infinite nor no number at all, as a column of another type may have them.
        calls = sa.case(((good + bad).between(-1e300, 1e300), sa.func.nullif(good + bad, 0.0)))
        rate, score = good / calls, _lower_bound(good, bad, calls)
        query = (
            sa.select(c.id, c.display_name, c.provider, successes, failures, rate, score)
            .where(c.active.is_(sa.true()))
            .order_by(score.desc().nulls_last(), bad, self._sorted(c.id))
            .limit(top)
        )
        if not untested:
            query = query.where(calls.is_not(None))
        if provider is not None:
            query = query.where(sa.func.coalesce(c.provider, "") == storable(provider))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        odd = OddRows(self._database.warn)
        entries = []
        for rank, row in enumerate(rows, 1):
            known = c.id, c.display_name, c.provider, c.success_count, c.failure_count
            values, columns = as_declared(known, row[:5])
            if columns:
                odd.add(quoted(values[:1]), columns)
            model_id, name, of, good, bad = values
            entries.append(LeaderboardEntry(rank, model_id, name, of, row[5], good, bad, row[6]))
        odd.finish()
        return tuple(entries)

    def iter_events(
        self, model_id: str | None, *, since: float | datetime | None, limit: int | None
    ) -> Iterator[Event]:
        """See `events.iter_events`."""
        return iter_events(self._database, model_id, since=since, limit=limit)

    # ── Changes of status ──

    def enable(self, ids: Sequence[str], **how: Any) -> tuple[StatusChange, ...]:
        """Switch models on, as healthy ones. All or none."""
        return self._change(ENABLE, ids, **how)

    def disable(
        self,
        ids: Sequence[str],
        *,
        until: float | None = None,
        floor: int = 0,
        force: bool = False,
        **how: Any,
    ) -> tuple[StatusChange, ...]:
        """Switch models off by hand. All or none.

        *until*: when `recover` may bring them back (seconds since 1970); a model that is disabled
        without an end is left as it is, unless *force*. *floor*: how many must stay on; raises
        `RefusedError` where fewer would, unless *force*.
        """
        floor = 0 if force else floor
        return self._change(DISABLE, ids, until=until, floor=floor, force=force, **how)

    def remove(self, ids: Sequence[str], **how: Any) -> tuple[StatusChange, ...]:
        """Delete models. All or none; the history stays. One that it knows is gone already."""
        return self._change(REMOVE, ids, **how)

    def _change(
        self,
        change: Change,
        ids: Sequence[str],
        *,
        actor: str,
        reason: str | None = None,
        dry_run: bool = False,
        floor: int = 0,
        **parameters: Any,
    ) -> tuple[StatusChange, ...]:
        wanted = list(dict.fromkeys(ids))
        check_storable(wanted)
        parameters |= {"actor": actor, "reason": reason, "failure_type": None}
        parameters["ids"] = self._changes.ids(wanted)
        # In the order of the ids: that keeps two changes from a deadlock.
        lock = self._sql.lock_to_delete if change is REMOVE else self._sql.lock
        which = f"{self._sql.ids} ORDER BY id{lock}"
        # What switches off by hand takes its turn with what does so beside the guards.
        turn = change in (DISABLE, REMOVE) and self._config.recovery.guarded

        def work(connection: sa.Connection) -> list[StatusChange]:
            if turn:
                take_guard_lock(connection, self._database)
            done = self._changes.apply(connection, change, which, parameters)
            if change is REMOVE:
                done += self._gone(connection, {*wanted} - {c.id for c in done})
            done = checked(done)
            if floor and any(c.before is ModelStatus.ACTIVE for c in done):
                _leave(floor, connection.scalar(text(f"SELECT count(*) FROM models WHERE {ON}")))
            return done

        def checked(done: list[StatusChange]) -> list[StatusChange]:
            check_found(wanted, {c.id for c in done})
            return done

        def alone() -> list[StatusChange]:
            look = self._changes.statuses(change.standing)
            sql = f"{self._changes.one_statement(change, which)}; {look}"
            return self._database.change(
                sql, parameters, lambda answers: checked(as_it_was_to_be(*answers))
            )

        if len(wanted) > 1 or dry_run or turn or self._on_sqlite or change is REMOVE:
            done = self._changes.write(work, dry_run=dry_run)
        else:
            done = refusing(self._database, alone)
        found = {c.id: c for c in done}
        return tuple(found[model_id] for model_id in wanted if model_id in found)

    def _gone(self, connection: sa.Connection, ids: Collection[str]) -> list[StatusChange]:
        """Return those of *ids* that the history knows as models: they were removed."""
        if not ids:
            return []
        asked = self._sql.rows("asked", {"id": "text"})
        sql = (
            f"SELECT id FROM {asked} WHERE EXISTS"
            f" (SELECT 1 FROM {self._changes.own}modelctl_events e WHERE e.model_id = asked.id)"
            " AND id <> ''"  # events of the fleet have no id
        )
        values = self._sql.values(("id",), [(model_id,) for model_id in ids])
        found = connection.execute(text(sql), values).scalars()
        return [StatusChange(model_id, None, None, False) for model_id in found]

    # ── For doctor ──

    def survey(self) -> Survey:
        """Count what `doctor` looks at, in one statement over the rows."""
        failed, worked = (self._sql.epoch(c) for c in ("last_failure_at", "last_success_at"))
        counted = self._sql.is_among("failure_type")
        odd = self._odd(MODELS.c)
        sql = (
            f"SELECT count(*), count(*) FILTER (WHERE {ON}),"
            f" count(*) FILTER (WHERE {ON} AND auto_disabled IS TRUE),"
            f" count(*) FILTER (WHERE {ON} AND failure_type IS NOT NULL AND NOT ({counted})"
            f" AND {failed} > coalesce({worked}, 0)),"
            f" count(*) FILTER (WHERE {odd}), min(id) FILTER (WHERE {odd}),"
            f" {self._filled_to(NEARLY_FULL)}, {self._filled_to(FULL)} FROM models"
        )
        kinds = self._changes.ids(self._config.health.counted)
        with self._database.reading() as connection:
            found = Survey(*connection.execute(text(sql), {"ids": kinds}).one())
        survey = found._replace(such_as=readable(found.such_as))
        return survey if survey.unreadable else survey._replace(**self._odd_texts())

    def _filled_to(self, limit: int) -> str:
        """The names of the counters that are at *limit* in some row."""
        if self._on_sqlite:  # whose integers are all of 8 bytes
            return "''"
        names = (
            f"CASE WHEN bool_or({filled_to(name, limit)}) THEN '{name}' END" for name in COUNTERS
        )
        return f"concat_ws(', ', {', '.join(names)})"

    def _odd_texts(self) -> dict[str, Any]:
        """Look for texts that are not UTF-8 in a database without an encoding."""
        if not self._database.unchecked:
            return {}
        texts = [column.name for column in MODELS.c if isinstance(column.type, sa.Text)]
        beyond = "GLOB '*[^ -~]*'" if self._on_sqlite else "~ '[^ -~]'"
        where = " OR ".join(f"{name} {beyond}" for name in texts)
        query = text(f"SELECT {', '.join(texts)} FROM models WHERE {where}")
        found = [
            row[0]
            for row in self._changes.spooled(query)
            if not all(is_storable(readable(value)) for value in row)
        ]
        return {"unreadable": len(found), "such_as": readable(found[0])} if found else {}


def _literal(text: str) -> str:
    """Write text so that LIKE, with ! as its escape character, takes it as it is."""
    return re.sub("([%_!])", r"!\1", text.lower())


def _leave(floor: int, active: int | None) -> None:
    if (active or 0) < floor:
        raise RefusedError(
            f"{numbered(active or 0)} would stay on, and recovery.min_active is {floor};"
            " nothing was changed",
            hint="say --force if it must be",
        )


def _lower_bound(good: Any, bad: Any, calls: Any) -> Any:
    """The lower bound of the success rate, with 95 % confidence (Wilson's score interval, 1927).

    So that 420 of 421 calls are better than 1 of 1. Of three numbers as expressions: *calls* is
    NULL where there are none.
    """
    z = 1.959964  # the quantile of 97.5 % of the normal distribution
    spread = z * sa.func.sqrt(good * bad / calls + z * z / 4)
    bound = (good + z * z / 2 - spread) / (calls + z * z)
    # At no success the difference of equal numbers is not always 0, and at counters that another
    # program left negative there is no root.
    return sa.case((calls.is_(None), None), (sa.or_(good <= 0, bad < 0), 0.0), else_=bound)
