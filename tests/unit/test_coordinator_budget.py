"""A task asks no model once its money or tokens are spent; a refused call is not billed."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.servers.coordinator_rig import Rig, rig
from tests.servers.scripted_model import Rule

from nestor.errors import BudgetExceeded
from nestor.model.routing import RouteRequest
from nestor.model.task import Budget, Task, TaskSpec, TaskStatus
from nestor.ports.task_store import TaskChange

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
CALL = Decimal("0.000092")
"""What one answer of the scripted model costs here; it has 18 tokens."""


async def a_task(r: Rig, budget: Budget) -> None:
    task = Task(
        task_id="t1",
        name="n",
        description="d",
        status=TaskStatus.RUNNING,
        priority="P2",
        phase=None,
        backend="builtin",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        max_iterations=1,
        budget=budget,
        trace_id="0" * 32,
        spec=TaskSpec(task="d"),
    )
    await r.tasks.add(task, digest="d", enqueue=False)


async def ask(r: Rig, how: str, task_id: str | None = "t1") -> None:
    if how == "route":
        await r.coordinator.route(RouteRequest(query="hi", task_id=task_id, context=[]))
        return
    request = {**ASK, "stream": True} if how == "stream" else ASK
    done = await r.chat(request, task_id=task_id, iteration=1)
    if done.streamed:
        async for _ in done:
            pass


@pytest.mark.parametrize("how", ["chat", "stream", "route"])
@pytest.mark.parametrize(
    ("budget", "allowed"),
    [
        (Budget(tokens=18), 1),
        (Budget(tokens=19), 2),
        (Budget(usd=CALL), 1),
        (Budget(usd=CALL * 2), 2),
        (Budget(usd=Decimal(1), tokens=36), 2),
    ],
)
async def test_what_is_spent_is_not_overdrawn(
    tmp_path: Path, budget: Budget, allowed: int, how: str
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")] * 9) as r:
        await a_task(r, budget)
        for _ in range(allowed):
            await ask(r, how)
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match="t1"):
                await ask(r, how)
        assert len(r.local.chats) == allowed
        assert len(await r.calls()) == allowed
        assert len(r.events("model_called")) == allowed


@pytest.mark.parametrize("how", ["chat", "stream", "route"])
async def test_a_budget_that_a_person_raises_binds_at_the_next_call(
    tmp_path: Path, how: str
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")] * 9) as r:
        await a_task(r, Budget(tokens=18))
        await ask(r, how)
        with pytest.raises(BudgetExceeded, match="18 of 18"):
            await ask(r, how)
        await r.tasks.change("t1", TaskChange(budget=Budget(tokens=36)))
        r.coordinator.budget_changed("t1")
        await ask(r, how)
        with pytest.raises(BudgetExceeded, match="36 of 36"):
            await ask(r, how)
        assert len(r.local.chats) == 2


async def test_a_budget_that_another_process_changed_binds_within_a_second(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")] * 9) as r:
        await a_task(r, Budget(tokens=18))
        await ask(r, "chat")
        await r.tasks.change("t1", TaskChange(budget=Budget(tokens=54)))
        r.clock.now += 1.0
        await ask(r, "chat")
        assert len(r.local.chats) == 2


async def test_calls_without_a_budget_are_not_held(tmp_path: Path) -> None:
    async with rig(tmp_path, local=[Rule(reply="ok")] * 9) as r:
        await a_task(r, Budget(seconds=1))
        for task_id in ("t1", "t1", None, "of-no-task", "of-no-task"):
            await ask(r, "chat", task_id)
        assert len(r.local.chats) == 5


async def test_what_nobody_knows_the_price_of_is_charged_as_it_was_reserved(
    tmp_path: Path,
) -> None:
    rules = [Rule(reply="x y z", cut_after_chunks=2), Rule(reply="ok")]
    async with rig(tmp_path, local=rules, remote=None) as r:
        await a_task(r, Budget(usd=CALL))
        await ask(r, "stream")
        assert (await r.coordinator.meter("t1")).cost_usd is None
        with pytest.raises(BudgetExceeded):
            await ask(r, "chat")
