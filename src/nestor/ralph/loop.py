"""The task loop: prepare → context → guidance → agent → snapshot → verify → decide.

Start reading at ``TaskLoop.run``. Every arrow is a durable step: once it has returned, a
crash does not run it again; while it runs, a crash runs it again from its start, so each
step first clears away what an earlier attempt at it may have left.
"""

from nestor.model.task import Spent, Task
from nestor.ports.task_engine import Steps
from nestor.ralph import acting, checking, preparing, recording
from nestor.ralph.decision import decide
from nestor.ralph.parts import Parts
from nestor.ralph.recording import TurnRecord
from nestor.ralph.records import (
    AgentRun,
    Checked,
    Context,
    Decided,
    End,
    Guidance,
    Prepared,
    Taken,
)
from nestor.ralph.turns import Turns, facts_of, turn_of


class TaskLoop:
    """Runs tasks; everything with an effect is a stage."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, task_id: str, steps: Steps) -> None:
        """Work on one task until it has ended. Pure between steps."""
        # Only what was sealed at submit is used of this: it never changes.
        p = self._parts
        task = await p.store.get(task_id)
        prepared = await steps.run(
            "prepare-1", Prepared, lambda: preparing.prepare(p, task)
        )
        turns = Turns(prepared)
        end = prepared.end
        n = 0
        while end is None:
            n += 1
            end = await self._iteration(task, steps, n, turns)
        last = end
        await steps.run("finish", End, lambda: recording.finish(p, task, last, turns))

    async def _iteration(
        self, task: Task, steps: Steps, n: int, turns: Turns
    ) -> End | None:
        """One turn; returns how the task ends, None to go on."""
        p = self._parts
        if n > 1:
            again = await steps.run(
                f"prepare-{n}",
                Prepared,
                lambda: preparing.prepare_again(p, task, n),
            )
            if again.end is not None:
                return again.end
            turns.begun = again.at
        context = await steps.run(
            f"context-{n}", Context, lambda: acting.context(p, task, n)
        )
        guidance = await steps.run(
            f"guidance-{n}",
            Guidance,
            lambda: acting.guidance(p, task, n, context, turns),
        )
        agent = await steps.run(
            f"agent-{n}",
            AgentRun,
            lambda: acting.agent(p, task, n, context, guidance, turns),
        )
        if agent.end is not None:
            return agent.end
        taken = await steps.run(
            f"snapshot-{n}", Taken, lambda: acting.snapshot(p, task, n, turns)
        )
        snapshot = taken.snapshot
        if snapshot is None:
            return taken.end
        checked = await steps.run(
            f"verify-{n}", Checked, lambda: checking.verify(p, task, n, snapshot, turns)
        )
        if checked.end is not None:
            return checked.end
        spent = Spent(
            usd=checked.total.cost_usd,
            tokens=checked.total.usage.total,
            seconds=turns.spent.seconds + agent.duration_s + checked.duration_s,
        )
        turns.add(
            turn_of(turns, agent, snapshot, checked),
            snapshot=snapshot,
            checked=checked,
            spent=spent,
        )
        decision = decide(facts_of(task, turns))
        record = TurnRecord(
            n=n,
            context=context,
            guidance=guidance,
            agent=agent,
            snapshot=snapshot,
            checked=checked,
            decision=decision,
        )
        decided = await steps.run(
            f"decide-{n}", Decided, lambda: recording.record(p, task, record, turns)
        )
        return decided.end
