"""Read models: a listing, or one by its id."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl import health
from modelctl.database.bulk import rows_of
from modelctl.forks import cached_property
from modelctl.models.results import Model, SourcedModel
from modelctl.models.returning import cooldown_parameters, retry_at
from modelctl.tables import origins
from modelctl.tables.columns import MODELS, UtcTime, tags_table
from modelctl.tables.ids import check_found, check_storable, is_storable, quoted
from modelctl.tables.odd_values import OddRows, as_declared, readable
from modelctl.tables.selection import condition, parameters
from modelctl.tables.tags import read_tags
from modelctl.times import time_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.tables.selection import Selection

_texts = itemgetter(*(i for i, column in enumerate(MODELS.c) if isinstance(column.type, sa.Text)))
_ACTIVE, _AUTO_DISABLED, _SPARED = (
    MODELS.c.keys().index(name) for name in ("active", "auto_disabled", "would_disable")
)
_FLAGS = (True, False, None)

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
    "since": (
        sa.case((MODELS.c.active.is_not(sa.true()), MODELS.c.disabled_at)).desc().nulls_last(),
    ),
}
SORT_KEYS = tuple(_SORTS)


def by_code_points(database: Database, expression: Any) -> Any:
    """Make a text a sort key that both databases and every locale sort alike."""
    if not isinstance(expression.type, sa.Text):
        return expression
    return expression.collate("BINARY" if database.on_sqlite else "C")


def _as_results_have_it(column: sa.Column[Any]) -> Any:
    """Select a column without NULL or '' where `Model` has the other one of them."""
    if column.primary_key:
        return column
    if column.name in ("display_name", "provider"):
        return sa.func.coalesce(column, "")
    if isinstance(column.type, sa.Integer):
        return sa.func.coalesce(column, 0)
    if isinstance(column.type, sa.Text):
        return sa.func.nullif(column, "")
    return column


class Models:
    """Reads models. Each call is one statement."""

    def __init__(self, config: Config, database: Database) -> None:
        self._rule = config.recovery
        self._database = database
        # The types of the values of rows that needed no correction.
        self._usual: set[tuple[type, ...]] = set()

    def iter_models(
        self,
        selection: Selection | None = None,
        *,
        off: bool = False,
        sort: str = "id",
        limit: int | None = None,
        with_source: bool = False,
    ) -> Iterator[Model]:
        """Give the models of a selection; *sort* is one of `SORT_KEYS`.

        *off*: only those that are off, and those that a guard keeps on. *with_source*: each as a
        `SourcedModel`.
        All rows are read before the first one is given, so that a slow caller holds no connection.
        """
        c = MODELS.c
        keys = (by_code_points(self._database, key) for key in (*_SORTS[sort], c.id))
        select = self._select_with_source if with_source else self._select
        query = select.order_by(*keys).limit(limit)
        if selection is not None:
            values = parameters(self._database.sql, selection)
            query = query.where(sa.text(condition(self._database, selection)).bindparams(**values))
        if off:
            query = query.where(c.active.is_not(sa.true()) | (c.would_disable != ""))
        rows = rows_of(self._database, query, limit)
        yield from self._sourced_models(rows) if with_source else self._models(rows)

    def get(self, model_id: str) -> SourcedModel:
        """Return one model; `ModelNotFoundError` if there is none."""
        check_storable([model_id])
        query = self._select_with_source.where(MODELS.c.id == model_id)
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        check_found([model_id], [row.id for row in found])
        return next(self._sourced_models(found))

    @cached_property  # making it takes longer than the statement of one row
    def _select(self) -> sa.Select[Any]:
        """Select the columns of the models, their tags, the clock, and when each model comes back."""
        now = sa.literal_column(self._database.sql.now, UtcTime).label("now")
        retry = sa.text(f"{retry_at(self._database)} AS retry").bindparams(
            max_ejections=self._rule.max_ejections,
            **cooldown_parameters(self._database.sql, self._rule),
        )
        of_model = tags_table(None if self._database.on_sqlite else self._database.schema)
        their_id = MODELS.c.id.collate("BINARY" if self._database.on_sqlite else "default")
        return sa.select(
            *map(_as_results_have_it, MODELS.c), of_model.c.tags, now, retry
        ).select_from(MODELS.outerjoin(of_model, of_model.c.model_id == their_id))

    @cached_property
    def _select_with_source(self) -> sa.Select[Any]:
        return origins.with_origins(self._database, self._select)

    def _models(self, rows: Iterable[Any]) -> Iterator[Model]:
        odd = OddRows(self._database.warn)
        for row in rows:
            yield Model(*self._fields(row, odd))
        odd.finish()

    def _sourced_models(self, rows: Iterable[Any]) -> Iterator[SourcedModel]:
        odd = OddRows(self._database.warn)
        for row in rows:
            *of_model, source, first_seen_at, last_seen_at, gone_since = row
            fields = self._fields(of_model, odd)
            fields += [source and readable(source), first_seen_at, last_seen_at, gone_since]
            yield SourcedModel(*fields)
        odd.finish()

    def _fields(self, row: Sequence[Any], odd: OddRows) -> list[Any]:
        """Return the values of the fields of `Model`."""
        # Looking at each value costs as much as all the rest, and nearly all rows have usual types.
        usual = tuple(map(type, row)) in self._usual
        usual = usual and row[_ACTIVE] in _FLAGS and row[_AUTO_DISABLED] in _FLAGS
        if not usual or not is_storable("".join(filter(None, _texts(row)))):
            row = self._corrected(row, odd)
        active, auto_disabled = row[_ACTIVE] == 1, row[_AUTO_DISABLED] == 1
        stored_tags, now, retry = row[-3:]
        at = left = None
        if retry is not None:
            at = time_at(retry, now.timestamp(), self._database.sql.digits_of_a_second)
            left = max(0.0, (at - now).total_seconds())
        tags = () if stored_tags is None else read_tags(stored_tags)
        if tags is None:
            odd.add(quoted([row[0]]), ["tags"])
        fields = [*row[:-3], health.status_of(active, auto_disabled), at, left, tags or ()]
        fields[_ACTIVE], fields[_AUTO_DISABLED] = active, auto_disabled
        if not active:  # a guard spares only what is on
            fields[_SPARED] = None
        return fields

    def _corrected(self, row: Sequence[Any], odd: OddRows) -> Sequence[Any]:
        """Make each value what its column is for, and add the row to *odd* if one was not."""
        values, columns = as_declared(MODELS.c, row)
        if columns:
            odd.add(quoted([values[0]]), columns)
        else:
            self._usual.add(tuple(map(type, row)))
        return values
