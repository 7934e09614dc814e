"""The meter's memory in SQL: one row a settled model call."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import select

from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.backends.sql.schema import model_call
from nestor.model.routing import ModelCall
from nestor.model.task import Usage
from nestor.ports.router import Meter


class _Metered(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a ``ModelCall`` that is added up; the rest is not decoded."""

    side: str
    model: str
    ok: bool
    usage: Usage
    cost_usd: Decimal | None
    replayed: bool = False


class SqlCallLedger:
    """``ports.call_ledger.CallLedger``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, call: ModelCall) -> None:
        """Keep a settled call; a second one under the same interaction id changes nothing."""
        async with self._database.write() as connection:
            await connection.execute(
                insert(self._database, model_call)
                .values(
                    interaction_id=call.interaction_id,
                    task_id=call.task_id,
                    iteration=call.iteration,
                    at=time_text(call.at),
                    body=encode(call),
                )
                .on_conflict_do_nothing()
            )

    async def meter(self, task_id: str, *, iteration: int | None = None) -> Meter:
        """Add up a task's calls, or those of one iteration."""
        query = _of_task(task_id)
        if iteration is not None:
            query = query.where(model_call.c.iteration == iteration)
        async with self._database.read() as connection:
            bodies = (await connection.execute(query)).scalars().all()
        calls = [msgspec.json.decode(body, type=_Metered) for body in bodies]
        return Meter(
            calls=len(calls),
            usage=_usage(calls),
            cost_usd=_cost(calls),
            models=list(dict.fromkeys(call.model for call in calls)),
            routes=list(dict.fromkeys(call.side for call in calls)),
            replayed=any(call.replayed for call in calls),
        )

    async def calls(self, task_id: str) -> list[ModelCall]:
        """Read a task's calls, oldest first."""
        async with self._database.read() as connection:
            bodies = (await connection.execute(_of_task(task_id))).scalars().all()
        return [msgspec.json.decode(body, type=ModelCall) for body in bodies]

    async def totals(self) -> list[dict[str, Any]]:
        """Calls, tokens and cost by model and route; None is unknown.

        Keys: ``model``, ``route``, ``calls``, ``failed``, ``input_tokens``,
        ``output_tokens``, ``cached_tokens``, ``cost_usd`` (``Decimal`` or None).
        """
        groups: dict[tuple[str, str], list[_Metered]] = {}
        async with self._database.read() as connection:
            for body in (await connection.execute(select(model_call.c.body))).scalars():
                call = msgspec.json.decode(body, type=_Metered)
                groups.setdefault((call.model, call.side), []).append(call)
        return [
            {
                "model": model,
                "route": route,
                "calls": len(calls),
                "failed": sum(not call.ok for call in calls),
                **msgspec.structs.asdict(_usage(calls)),
                "cost_usd": _cost(calls),
            }
            for (model, route), calls in sorted(groups.items())
        ]


def _of_task(task_id: str) -> Any:
    return (
        select(model_call.c.body)
        .where(model_call.c.task_id == task_id)
        .order_by(model_call.c.at, model_call.c.interaction_id)
    )


def _usage(calls: Iterable[_Metered]) -> Usage:
    calls = list(calls)
    return Usage(
        input_tokens=_known_sum(call.usage.input_tokens for call in calls),
        output_tokens=_known_sum(call.usage.output_tokens for call in calls),
        cached_tokens=_known_sum(call.usage.cached_tokens for call in calls),
    )


def _known_sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cost(calls: Iterable[_Metered]) -> Decimal | None:
    total = Decimal(0)
    for call in calls:
        if call.cost_usd is None:
            return None  # one unknown part makes the sum unknown
        total += call.cost_usd
    return total
