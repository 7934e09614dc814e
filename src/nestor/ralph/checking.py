"""Stage verify: the checks on the snapshot, then the meter."""

import time

import msgspec

from nestor.errors import SandboxError, WorkspaceError
from nestor.model.task import Reason, Task
from nestor.ports.workspace import Snapshot
from nestor.ralph.parts import CANCELLED, Parts, failed, say, until_cancelled
from nestor.ralph.records import Checked
from nestor.ralph.turns import Turns
from nestor.ralph.verification import Subject


async def verify(
    p: Parts, task: Task, n: int, snapshot: Snapshot, turns: Turns
) -> Checked:
    """Run the checks on the snapshot, then read the meter."""
    await say(p, task, n, "verify")
    result = await until_cancelled(p, task, _verify(p, task, n, snapshot, turns))
    return result or Checked(end=CANCELLED)


async def _verify(
    p: Parts, task: Task, n: int, snapshot: Snapshot, turns: Turns
) -> Checked:
    begun = time.monotonic()
    before = turns.checked_before(snapshot.tree)
    if before is not None:
        same, verdicts = before
        verdicts = [msgspec.structs.replace(v, phase="after") for v in verdicts]
        restored = turns.restored
    else:
        subject = Subject(
            task_id=task.task_id,
            spec=task.spec,
            commit=snapshot.commit,
            base=turns.prepared.base,
            phase="after",
            label=f"after-{n}",
            setup=turns.prepared.setup,
        )
        try:
            found = await p.verifier.run(
                subject, base_verdicts=turns.prepared.base_verdicts
            )
        except WorkspaceError as error:
            return Checked(end=failed(Reason.WORKSPACE_ERROR, str(error)))
        except SandboxError as error:
            return Checked(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
        same, verdicts, restored = None, found.verdicts, found.restored
    return Checked(
        verdicts=verdicts,
        restored=restored,
        same_tree_as=same,
        duration_s=time.monotonic() - begun,
        total=await p.router.meter(task.task_id),
        iteration=await p.router.meter(task.task_id, iteration=n),
    )
