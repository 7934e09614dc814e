"""What calls came to, added up: rows of ``spend``, and the views of them."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Final

from sqlalchemy import Column, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import bounded, insert, sum_of, time_text
from nestor.backends.sql.schema import spend
from nestor.model.money import pico
from nestor.model.routing import ModelCall
from nestor.ports.call_ledger import SpendBy

KEY: Final = ("day", "key_id", "task_id", "deployment", "model", "side")
COUNTS: Final = ("calls", "failed", "unsettled", "cached", "unpriced")
TOKENS: Final = (
    *("input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "reasoning_tokens"),
)
COST: Final = "cost_pico_usd"
_PART: Final = 10**12
_HIGH, _LOW = "cost_high", "cost_low"
_COLUMNS: Final[Mapping[SpendBy, Column[Any]]] = {
    SpendBy.MODEL: spend.c.model,
    SpendBy.DEPLOYMENT: spend.c.deployment,
    SpendBy.TASK: spend.c.task_id,
    SpendBy.KEY: spend.c.key_id,
    SpendBy.DAY: spend.c.day,
}


async def add_spend(
    database: Database, connection: AsyncConnection, calls: Iterable[ModelCall]
) -> None:
    """Add calls to ``spend``, in the caller's transaction."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for call in calls:
        key = _key(call)
        row = rows.get(key)
        if row is None:
            row = rows[key] = dict(zip(KEY, key, strict=True))
            row |= dict.fromkeys((*COUNTS, COST), 0) | dict.fromkeys(TOKENS)
        _add(row, call)
    if not rows:
        return
    statement = insert(database, spend)
    new = statement.excluded
    sums: dict[str, Any] = {name: spend.c[name] + new[name] for name in COUNTS}
    sums[COST] = sum_of(database, spend.c[COST], new[COST])
    for name in TOKENS:  # null, where nobody reported any, takes no part
        sums[name] = func.coalesce(spend.c[name] + new[name], spend.c[name], new[name])
    # In one order everywhere, so that two processes never wait for each other's rows.
    await connection.execute(
        statement.on_conflict_do_update(index_elements=list(KEY), set_=sums),
        [rows[key] for key in sorted(rows)],
    )


def _key(call: ModelCall) -> tuple[str, ...]:
    return (
        time_text(call.at)[:10],
        call.key_id or "",
        call.task_id or "",
        call.deployment,
        call.model,
        str(call.side),
    )


def _add(row: dict[str, Any], call: ModelCall) -> None:
    row["calls"] += 1
    row["failed"] += not call.ok
    row["unsettled"] += call.unsettled
    row["cached"] += call.cached
    if call.cost_usd is None:
        row["unpriced"] += 1
    else:
        row[COST] = bounded(row[COST] + pico(call.cost_usd))
    for name in TOKENS:
        count = getattr(call.usage, name)
        if count is not None:
            row[name] = (row[name] or 0) + count


def view(by: SpendBy, *, since: date | None, limit: int) -> Select[Any]:
    """Select one row a group; see ``CallLedger.spend``."""
    column = _COLUMNS[by]
    query = select(column.label("by"), *_sums())
    if since is not None:
        query = query.where(spend.c.day >= since.isoformat())
    first = [column.desc()] if by is SpendBy.DAY else [part.desc() for part in _cost()]
    return query.group_by(column).order_by(*first, column).limit(limit)


def by_model() -> Select[Any]:
    """Select one row a model and route."""
    columns = (spend.c.model, spend.c.side)
    return select(*columns, *_sums()).group_by(*columns).order_by(*columns)


def _sums() -> list[Any]:
    names = (*COUNTS, *TOKENS)
    counts = [func.sum(spend.c[name]).label(name) for name in names]
    high, low = _cost()
    return [*counts, high.label(_HIGH), low.label(_LOW)]


def _cost() -> tuple[Any, Any]:
    """Return the cost of a group: how often ``_PART``, and the rest.

    A row may have as much as a column holds; SQLite refuses a sum that is more than that.
    """
    low = func.sum(spend.c[COST] % _PART)
    return func.sum(spend.c[COST] // _PART) + low // _PART, low % _PART


def numbers(row: Any) -> dict[str, Any]:
    """Return counts, tokens and cost of a row; PostgreSQL's sums are ``numeric``."""
    found = {name: getattr(row, name) for name in (*COUNTS, *TOKENS)}
    cost = int(getattr(row, _HIGH)) * _PART + int(getattr(row, _LOW))
    sums = {name: None if sum_ is None else int(sum_) for name, sum_ in found.items()}
    return {**sums, COST: cost}
