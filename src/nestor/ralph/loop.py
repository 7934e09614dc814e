"""The task loop: prepare → context → guidance → agent → snapshot → verify → decide.

Start reading at ``TaskLoop.run``. Every arrow is a durable step: once it has returned, a
crash does not run it again; while it runs, a crash runs it again from its start, so each
step first clears away what an earlier attempt at it may have left.
"""

from nestor.model.task import Spent, Task
from nestor.ports.task_engine import Steps
from nestor.ports.workspace import Snapshot
from nestor.ralph import acting, checking, judging, preparing, recording
from nestor.ralph.decision import decide
from nestor.ralph.parts import Parts
from nestor.ralph.recording import TurnRecord
from nestor.ralph.records import (
    AgentRun,
    Begun,
    Checked,
    Context,
    Decided,
    End,
    Guidance,
    Judged,
    Taken,
)
from nestor.ralph.turns import Turns, facts_of, turn_of


class TaskLoop:
    """Runs tasks; everything with an effect is a stage."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, task_id: str, steps: Steps) -> None:
        """Work on one task until it has ended, or waits for a person. Pure between steps."""
        # Only what was sealed at submit, or set before this attempt began, is used of
        # this: it does not change while the attempt runs.
        p = self._parts
        task = await p.store.get(task_id)
        if task.attempt != steps.attempt or task.waits_for:
            # Left over: a person has let it begin again since, or it was cancelled first.
            return
        begun = await steps.run("prepare-1", Begun, lambda: preparing.prepare(p, task))
        if begun.over:
            return
        turns = None if begun.carried is None else Turns(begun, begun.carried)
        end = begun.end
        while end is None and turns is not None:
            end = await self._iteration(task, steps, turns)
        last = end or preparing.NOT_PREPARED
        await steps.run("finish", End, lambda: recording.finish(p, task, last, turns))

    async def _iteration(self, task: Task, steps: Steps, turns: Turns) -> End | None:
        """One turn; returns how the task ends, None to go on."""
        p = self._parts
        n = turns.before + len(turns.turns) + 1
        if turns.turns:
            again = await steps.run(
                f"prepare-{n}",
                Begun,
                lambda: preparing.prepare_again(p, task, n),
            )
            if again.end is not None:
                return again.end
            turns.begun = again.at
        context, guidance = await self._advised(task, steps, n, turns)
        if (cut := context.end or guidance.end) is not None:
            return cut
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
        checked = await self._checked(task, steps, n, agent, snapshot, turns)
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

    async def _advised(
        self, task: Task, steps: Steps, n: int, turns: Turns
    ) -> tuple[Context, Guidance]:
        """What the agent is told besides its task."""
        p = self._parts
        context = await steps.run(
            f"context-{n}", Context, lambda: acting.context(p, task, n)
        )
        if context.end is not None or not task.spec.use_hybrid:
            return context, Guidance()
        guidance = await steps.run(
            f"guidance-{n}",
            Guidance,
            lambda: acting.guidance(p, task, n, context, turns),
        )
        return context, guidance

    async def _checked(
        self,
        task: Task,
        steps: Steps,
        n: int,
        agent: AgentRun,
        snapshot: Snapshot,
        turns: Turns,
    ) -> Checked:
        """Checks, then a judge where one could say something."""
        p = self._parts
        checked = await steps.run(
            f"verify-{n}", Checked, lambda: checking.verify(p, task, n, snapshot, turns)
        )
        tree = checked.judged or snapshot
        if checked.end is not None or not judging.wanted(
            task, turns, agent, tree, checked
        ):
            return checked
        said = await steps.run(
            f"judge-{n}", Judged, lambda: judging.judge(p, task, n, tree, turns)
        )
        if said.end is not None:
            return Checked(end=said.end)
        return judging.with_judgement(checked, said)
