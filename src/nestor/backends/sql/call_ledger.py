"""The meter's memory in SQL: one row a settled model call, and what they add up to."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nestor.backends.sql.budget_store import charge, forget_holder
from nestor.backends.sql.database import Database
from nestor.backends.sql.rows import encode, insert, time_text
from nestor.backends.sql.schema import journal, model_call
from nestor.backends.sql.spend import (
    COST,
    TOKENS,
    add_spend,
    by_model,
    numbers,
    view,
)
from nestor.model.ids import new_id
from nestor.model.money import usd_of
from nestor.model.routing import Charge, Dialect, ModelCall, Side
from nestor.model.task import Usage
from nestor.ports.call_journal import Settled
from nestor.ports.call_ledger import SpendBy
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

    async def fold(self, settled: Settled) -> int:
        """See CallLedger.fold. One transaction; only rows that are new cost anybody."""
        async with self._database.write() as connection:
            return await self._fold(connection, settled)

    async def rehearse(self) -> None:
        """See CallLedger.rehearse: a transaction that is rolled back."""
        try:
            async with self._database.write() as connection:
                await self._fold(connection, _plain())
                raise _RolledBackError  # noqa: TRY301 - what ends a transaction so
        except _RolledBackError:
            return

    async def _fold(self, connection: AsyncConnection, settled: Settled) -> int:
        calls = {call.interaction_id: call for call in reversed(settled.calls)}
        rows = [_row(call) for call in calls.values()]
        if not await self._advance(connection, settled):
            return 0
        found = await connection.execute(
            insert(self._database, model_call)
            .on_conflict_do_nothing(index_elements=["interaction_id"])
            .returning(model_call.c.interaction_id),
            rows,
        )
        new = [calls[interaction_id] for interaction_id in found.scalars()]
        await add_spend(self._database, connection, new)
        await charge(
            self._database,
            connection,
            holder=settled.journal,
            charges=[one for call in new for one in call.charges],
        )
        return len(new)

    async def _advance(self, connection: AsyncConnection, settled: Settled) -> bool:
        """Move the journal's place; False where it is there already.

        It comes first: on PostgreSQL the row's lock keeps a second fold of the same
        journal out until this one is committed.
        """
        statement = insert(self._database, journal).values(
            id=settled.journal, position=settled.position
        )
        moved = await connection.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={"position": settled.position},
                where=journal.c.position < settled.position,
            ).returning(journal.c.id)
        )
        return moved.first() is not None

    async def folded_to(self, journal_id: str) -> int:
        """See CallLedger.folded_to."""
        query = select(journal.c.position).where(journal.c.id == journal_id)
        async with self._database.read() as connection:
            return int(await connection.scalar(query) or 0)

    async def forget(self, journal_id: str) -> None:
        """See CallLedger.forget."""
        async with self._database.write() as connection:
            await forget_holder(connection, journal_id)
            await connection.execute(delete(journal).where(journal.c.id == journal_id))

    async def has(self, interaction_id: str) -> bool:
        """See CallLedger.has."""
        query = select(model_call.c.interaction_id).where(
            model_call.c.interaction_id == interaction_id
        )
        async with self._database.read() as connection:
            return await connection.scalar(query) is not None

    async def call(self, interaction_id: str) -> ModelCall | None:
        """See CallLedger.call."""
        query = select(model_call.c.body).where(
            model_call.c.interaction_id == interaction_id
        )
        async with self._database.read() as connection:
            body = await connection.scalar(query)
        return None if body is None else msgspec.json.decode(body, type=ModelCall)

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

        Keys: ``model``, ``route``, ``calls``, ``failed``, tokens as in ``Usage``,
        ``cost_usd`` (``Decimal`` or None).
        """
        async with self._database.read() as connection:
            rows = (await connection.execute(by_model())).all()
        found = []
        for row in rows:
            sums = numbers(row)
            found.append(
                {
                    "model": row.model,
                    "route": row.side,
                    "calls": sums["calls"],
                    "failed": sums["failed"],
                    **{name: sums[name] for name in TOKENS},
                    # One unknown part makes the sum unknown.
                    "cost_usd": None if sums["unpriced"] else usd_of(sums[COST]),
                }
            )
        return found

    async def spend(
        self, by: SpendBy, *, since: date | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """See CallLedger.spend."""
        async with self._database.read() as connection:
            query = view(by, since=since, limit=limit)
            rows = (await connection.execute(query)).all()
        return [
            {
                "by": row.by or None,
                **{name: value for name, value in sums.items() if name != COST},
                "cost_usd": usd_of(sums[COST]),
            }
            for row, sums in ((row, numbers(row)) for row in rows)
        ]


class _RolledBackError(Exception):
    """Ends a transaction that is to leave nothing."""


def _plain() -> Settled:
    """Return a call that nothing can be wrong with, under names that nobody has."""
    name = new_id()
    call = ModelCall(
        interaction_id=name,
        at=datetime.now(UTC),
        deployment="",
        side=Side.LOCAL,
        model="",
        dialect=Dialect.OPENAI,
        route_reason="",
        ok=True,
        usage=Usage(input_tokens=1, output_tokens=1),
        cost_usd=Decimal(1),
        latency_ms=0.0,
        charges=(Charge(account=f"key:{name}", usd=Decimal(1), tokens=2),),
    )
    return Settled(journal=name, position=1, calls=[call])


def _row(call: ModelCall) -> dict[str, Any]:
    return {
        "interaction_id": call.interaction_id,
        "task_id": call.task_id,
        "iteration": call.iteration,
        "at": time_text(call.at),
        "body": encode(call),
    }


def _of_task(task_id: str) -> Any:
    return (
        select(model_call.c.body)
        .where(model_call.c.task_id == task_id)
        .order_by(model_call.c.at, model_call.c.interaction_id)
    )


def _usage(calls: Sequence[_Metered]) -> Usage:
    return Usage(
        **{
            name: _known_sum(getattr(call.usage, name) for call in calls)
            for name in TOKENS
        }
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
