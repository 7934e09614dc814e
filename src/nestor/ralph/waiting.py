"""Why nobody works on a task, in words for people. Observed here and now."""

from collections.abc import Sequence

import msgspec

from nestor.model.task import Task, TaskStatus
from nestor.ports.task_engine import TaskEngine
from nestor.ralph.gate import Gate
from nestor.ralph.queue import DependencyQueue


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """All that a task may wait for, queued or begun by a process that is gone."""

    dependencies: DependencyQueue
    gate: Gate
    workers: int

    async def why(
        self, tasks: Sequence[Task], engine: TaskEngine, *, working: bool
    ) -> dict[str, str]:
        """Return the reason by task id; without one a task is about to start, or unknown."""
        running = await engine.running()
        said = {
            one.task_id: self._why(one, running, working=working)
            for one in tasks
            if one.status is TaskStatus.QUEUED
        }
        begun = {
            one.task_id: one
            for one in tasks
            if one.status is TaskStatus.RUNNING and one.task_id not in running
        }
        if begun:
            attempts = {name: one.attempt for name, one in begun.items()}
            for name in await engine.held_by_nobody(attempts):
                why = self._why(begun[name], running, working=working)
                said[name] = f"goes on after the restart{why and ': '}{why}"
        return {name: why for name, why in said.items() if why}

    def _why(self, task: Task, running: Sequence[str], *, working: bool) -> str:
        if task.task_id in running:
            return ""  # it was taken a moment ago
        if task.waits_for:
            return task.detail
        if not working:
            return "no task is started here now; it goes on at the next start"
        # While all are busy nobody asks the gate, so what it said last is old.
        if len(running) >= self.workers:
            every = "the only worker is" if self.workers == 1 else "all workers are"
            return f"{every} busy: {len(running)} of {self.workers}"
        return self.gate.waits.get(task.task_id, "")
