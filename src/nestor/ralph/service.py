"""Ralph as the faces see it: submit, look, steer, answer, and run what is queued."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from nestor.errors import NotFound, Unavailable
from nestor.model import event as events
from nestor.model.access import ADMIN, Principal
from nestor.model.health import Dependency, HealthStatus
from nestor.model.task import (
    Iteration,
    Task,
    TaskSpec,
    TaskStatus,
    Verdict,
)
from nestor.ports.sandbox import Sandbox
from nestor.ports.task_engine import TaskEngine
from nestor.ports.task_store import (
    TaskEvent,
    TaskFilter,
    TaskStore,
    TaskTotals,
)
from nestor.ports.workspace import Workspaces
from nestor.ralph.access import known, refuse_hidden, seen_by
from nestor.ralph.approving import Approving, bound
from nestor.ralph.control import Control
from nestor.ralph.forking import Forking
from nestor.ralph.isolation import Isolation
from nestor.ralph.loop import TaskLoop
from nestor.ralph.outbox import OutboxRelay
from nestor.ralph.parts import count_tasks, told_of
from nestor.ralph.records import Carried
from nestor.ralph.sealing import Sealing, followed, seal
from nestor.ralph.waiting import Waiting
from nestor.telemetry.learning_client import LearningClient


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The stored task; ``created`` False: the same one was submitted before."""

    task: Task
    created: bool
    position: int
    """Queued tasks that go before it, itself included; 0: it waits for others, or not at all."""


class Ralph:
    """The task service. ``start`` begins running tasks; without it, it only stores them."""

    def __init__(
        self,
        *,
        store: TaskStore,
        engine: TaskEngine,
        loop: TaskLoop,
        workspaces: Workspaces,
        sandbox: Sandbox,
        relay: OutboxRelay,
        learning: LearningClient,
        sealing: Sealing,
        waiting: Waiting,
        budget_changed: Callable[[str], None] = lambda _task_id: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._engine = engine
        self._loop = loop
        self._workspaces = workspaces
        self._sandbox = sandbox
        self._relay = relay
        self._learning = learning
        self._sealing = sealing
        self._waiting = waiting
        self._clock = clock
        self._isolation = Isolation(sandbox, clock=clock)
        self._working_since: datetime | None = None
        shared: dict[str, Any] = {
            "store": store,
            "relay": relay,
            "learning": learning,
            "clock": clock,
        }
        control = Control(
            workspaces=workspaces, budget_changed=budget_changed, **shared
        )
        answers = Approving(refuses_mount=sealing.refuses_mount, **shared)
        self.cancel = control.cancel
        self.resume = control.resume
        self.retry = control.retry
        self.rollback = control.rollback
        self.fork = Forking(control=control, sealing=sealing, **shared).fork
        self.approve = answers.approve
        self.grant = answers.grant

    async def start(self) -> None:
        """Send what telemetry waits, then take tasks; those a dead process left come first."""
        self._relay.start()
        await self._engine.start(self._loop.run)
        self._waiting.dependencies.start()
        self._working_since = self._clock()

    async def drain(self, limit_s: float) -> list[str]:
        """Take no more tasks; let running ones end their step, for ``limit_s`` at most.

        Returns the ids of those that still run. Submits are stored and wait.
        """
        self._working_since = None
        return await self._engine.drain(limit_s)

    async def stop(self) -> None:
        """Take no more tasks; running ones go on at the next start."""
        self._working_since = None
        await self._waiting.dependencies.stop()
        await self._engine.stop()
        await self._relay.stop()

    async def submit(self, spec: TaskSpec, principal: Principal) -> Submitted:
        """Seal and store a task and queue it, or ask for its approval, in one commit.

        Raises ``InvalidInput`` naming each wrong field, ``Conflict`` when the id is taken
        by another body or by a task that this key may not see, ``Forbidden`` for a
        repository outside the roots of this key.
        """
        task, digest = seal(spec, principal, self._sealing, now=self._clock())
        there = await known(self._store, task.task_id)
        if there is not None:
            refuse_hidden(there, principal)
        else:
            # Only for a new task: a repeat must give the old one, whatever became of its
            # repository.
            inside = None if principal.may(ADMIN) else self._sealing.workspace_roots
            await self._workspaces.inspect(task.spec, inside=inside)
            task = msgspec.structs.replace(
                task,
                spec=followed(task.spec),
                bound_to=None if inside is None else [str(root) for root in inside],
            )
        task = bound(task, digest, at=self._clock())
        questions = [{"what": q.what, "approval_id": q.id} for q in task.approvals]
        stored, created = await self._store.add(
            task,
            digest=digest,
            enqueue=task.status is TaskStatus.QUEUED,
            # Else what it waits for would tell of tasks that this key may not see.
            any_owner=principal.may("read"),
            telemetry=[
                told_of(self._learning, task, events.APPROVAL_REQUESTED, data)
                for data in questions
            ],
            live=[("approval", data) for data in questions],
        )
        if created:
            self._relay.nudge()
        else:
            refuse_hidden(stored, principal)
        await count_tasks(self._store)
        position = await self._waiting.dependencies.position(stored)
        return Submitted(task=stored, created=created, position=position)

    async def get(self, task_id: str, *, by: Principal | None = None) -> Task:
        """Read one task. ``by`` None: the operator in person, or ourselves.

        Raises ``NotFound``, in the same words for a task that this key may not see.
        """
        return await seen_by(self._store, task_id, by)

    async def waits(self, tasks: Sequence[Task]) -> dict[str, str]:
        """Say of each task that nobody works on why that is, as far as is known here."""
        working = self._working_since is not None
        return await self._waiting.why(tasks, self._engine, working=working)

    async def newest(self, which: TaskFilter, *, limit: int) -> tuple[list[Task], bool]:
        """Read the newest tasks, newest first, and tell whether there are older ones."""
        found = await self._store.all(which, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def totals(self) -> TaskTotals:
        """Add up all tasks."""
        return await self._store.totals()

    async def counts(self) -> dict[str, int]:
        """Count tasks by status."""
        return await count_tasks(self._store)

    async def iterations(self, task_id: str) -> list[Iteration]:
        """Read the iterations of a task."""
        return await self._store.iterations(task_id)

    async def base_verdicts(self, task_id: str) -> list[Verdict]:
        """Read what the checks said before any work; empty while they were not run."""
        carried = await self._store.carried(task_id)
        if carried is None:
            return []
        return msgspec.json.decode(carried, type=Carried).prepared.base_verdicts

    async def live(self, task_id: str, *, after: int) -> list[TaskEvent]:
        """Read live events newer than ``after``."""
        return await self._store.live(task_id, after=after)

    async def diff(self, task_id: str, *, iteration: int | None = None) -> str:
        """Unified diff of what its branch stands at against the base; "" before there is any.

        That is the newest snapshot, or the iteration that it was rolled back to;
        ``iteration``: that one's instead. Raises ``NotFound`` for one that is not there.
        """
        task = await self._store.get(task_id)
        commits = {i.n: i.commit for i in await self._store.iterations(task_id)}
        if iteration is not None and iteration not in commits:
            known = f"1 to {max(commits)}" if commits else "none yet"
            raise NotFound.at(
                "iteration", f"there is no {iteration}; recorded: {known}"
            )
        at = max(commits, default=0)
        if iteration is not None:
            at = iteration
        elif task.rolled_back_to is not None:
            at = task.rolled_back_to
        commit = commits.get(at)
        if commit is None or task.base is None:
            return ""
        return await self._workspaces.diff(task_id, commit, task.base)

    async def workers(self) -> list[dict[str, Any]]:
        """What this process is working on now; empty when it does not work."""
        if self._working_since is None:
            return []
        running = await self._engine.running()
        return [
            {
                "since": self._working_since,
                "sandbox": self._sandbox.name,
                "running": running,
            }
        ]

    async def dependencies(self) -> list[Dependency]:
        """Look at what tasks need, now."""
        now = self._clock()
        try:
            await self._store.counts()
            database = HealthStatus.HEALTHY, "answers"
        except Unavailable as error:
            database = HealthStatus.UNHEALTHY, str(error)
        working = self._working_since is not None
        return [
            Dependency(
                name="database",
                status=database[0],
                message=database[1],
                last_observed=now,
                required=True,
            ),
            Dependency(
                name="task engine",
                status=HealthStatus.HEALTHY if working else HealthStatus.UNHEALTHY,
                message="takes tasks" if working else "does not take tasks",
                last_observed=now,
                required=True,
            ),
            await self._isolation.dependency(),
        ]
