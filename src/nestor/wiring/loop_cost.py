"""What one iteration of the loop costs besides its agent: ``nestor bench ralph``.

A stack of its own in a scratch folder works on one task whose agent writes a line and
whose check reads it and fails. What this process uses is the engine's: loop, durable steps,
SQL, context. What its children use is git's and the sandbox's.
"""

import asyncio
import resource
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nestor.backends.sandbox.choice import sandbox_of
from nestor.errors import NestorError
from nestor.model.access import ADMIN, Principal
from nestor.model.task import FINAL_STATUSES, Check, Network, Task, TaskSpec, TaskStatus
from nestor.ports.sandbox import SandboxRun
from nestor.settings import Settings
from nestor.wiring.stack import Nestor, running

WORDS = "head -c 24 /dev/urandom | base64 | tr -d '0-9+/=' > words"
"""The agent: another line each time, or the loop would stop for want of progress."""
CHECK = "cat words; false"
RUNS_AN_ITERATION = 2
"""Sandboxed commands: the agent, and the check."""
_NOBODY = "http://127.0.0.1:9"
_POLL_S, _IDLE_S, _WITHIN_S = 0.5, 3.0, 600.0
"""Asking whether a task has ended costs, too: seldom."""
Say = Callable[[str], None]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU in milliseconds for one iteration, idle share taken off; times in milliseconds."""

    iterations: int
    engine_cpu_ms: float
    """Of this process."""
    children_cpu_ms: float
    """Of git, the guardian, the sandbox and what runs in it."""
    sandbox_cpu_ms: float
    """Of these, the sandboxed commands: two runs of ``true`` as measured alone."""
    wall_ms: float
    idle_cpu_share: float
    """Of one core, by a stack that has nothing to do; taken off ``engine_cpu_ms``."""
    starts_ms: list[float]
    """From the submit's commit to the first step, one task after the other."""


async def measure(
    home: Path, *, iterations: int, starts: int, say: Say = lambda _: None
) -> Cost:
    """Measure on this machine, now. ``home``: a folder for it, empty.

    Raises ``NestorError`` when the task does not go as it should.
    """
    settings = Settings(home=home, max_iterations=100)
    async with running(settings, coordinator_url=_NOBODY) as nestor:
        await nestor.ralph.start()
        say("warming up")
        await _ended(nestor, _spec("warm", 2))
        say("idle")
        begun, before = time.monotonic(), _cpu(resource.RUSAGE_SELF)
        await asyncio.sleep(_IDLE_S)
        idle = (_cpu(resource.RUSAGE_SELF) - before) / (time.monotonic() - begun)
        say("starting tasks")
        waits = []
        for number in range(starts):
            done = await _ended(nestor, _spec(f"start-{number}", 1))
            if done.started_at is not None:
                waits.append((done.started_at - done.created_at).total_seconds() * 1e3)
        say("iterating")
        begun = time.monotonic()
        ours = _cpu(resource.RUSAGE_SELF)
        theirs = _cpu(resource.RUSAGE_CHILDREN)
        done = await _ended(nestor, _spec("loop", iterations))
        wall = time.monotonic() - begun
        ours = _cpu(resource.RUSAGE_SELF) - ours - idle * wall
        theirs = _cpu(resource.RUSAGE_CHILDREN) - theirs
        if done.iteration != iterations or done.status is not TaskStatus.EXHAUSTED:
            raise NestorError(
                f"it ended as {done.status} after {done.iteration}: {done}"
            )
    say("the sandbox alone")
    alone = await _sandbox_cpu(settings, home, runs=10)
    per = 1e3 / iterations
    return Cost(
        iterations=iterations,
        engine_cpu_ms=round(ours * per, 3),
        children_cpu_ms=round(theirs * per, 3),
        sandbox_cpu_ms=round(alone * 1e3 * RUNS_AN_ITERATION, 3),
        wall_ms=round(wall * per, 3),
        idle_cpu_share=round(idle, 4),
        starts_ms=[round(wait, 1) for wait in waits],
    )


def _spec(task_id: str, iterations: int) -> TaskSpec:
    return TaskSpec(
        task_id=task_id,
        task="write a line",
        backend="command",
        command=WORDS,
        checks=[Check(name="never", run=CHECK)],
        max_iterations=iterations,
        use_hybrid=False,
    )


async def _ended(nestor: Nestor, spec: TaskSpec) -> Task:
    who = Principal(key_id="bench", scopes=frozenset({ADMIN}))
    await nestor.ralph.submit(spec, who)
    async with asyncio.timeout(_WITHIN_S):
        while True:
            task = await nestor.ralph.get(spec.task_id)
            if task.status in FINAL_STATUSES:
                return task
            await asyncio.sleep(_POLL_S)


async def _sandbox_cpu(settings: Settings, home: Path, *, runs: int) -> float:
    """Return the CPU seconds of one sandboxed ``true``, all processes around it included."""
    sandbox = await asyncio.to_thread(
        sandbox_of, settings.sandbox, coordinator_url=_NOBODY, home=home
    )
    before = _cpu(resource.RUSAGE_CHILDREN)
    for number in range(runs):
        await sandbox.run(
            SandboxRun(
                name=f"bench/{number}",
                argv=["/bin/true"],
                cwd="/tmp",  # noqa: S108 - the sandbox's own
                mounts=[],
                network=Network.NONE,
                timeout_s=60,
                run_dir=home / "tasks" / "bench" / f"run-{number}",
            )
        )
    return (_cpu(resource.RUSAGE_CHILDREN) - before) / runs


def _cpu(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime
