"""Stage verify: the checks on the snapshot, then the meter."""

import time

import msgspec

from nestor.errors import SandboxError, WorkspaceError
from nestor.model.task import Reason, Task
from nestor.ports.workspace import Snapshot
from nestor.ralph.decision import proving
from nestor.ralph.flaky import Known
from nestor.ralph.parts import CANCELLED, Parts, failed, say, until_cancelled
from nestor.ralph.protection import protected
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
    try:
        checked = await _judge(p, task, n, snapshot, turns)
    except WorkspaceError as error:
        return Checked(end=failed(Reason.WORKSPACE_ERROR, str(error)))
    except SandboxError as error:
        return Checked(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    return msgspec.structs.replace(
        checked,
        duration_s=time.monotonic() - begun,
        total=await p.router.meter(task.task_id),
        iteration=await p.router.meter(task.task_id, iteration=n),
    )


async def _judge(
    p: Parts, task: Task, n: int, snapshot: Snapshot, turns: Turns
) -> Checked:
    if not task.spec.all_checks:
        return Checked(judged=snapshot)
    base = turns.prepared.base
    is_protected = protected(task.spec, await p.workspaces.files(task.task_id, base))
    judged, restored = await p.workspaces.restore(
        task.task_id, snapshot.commit, protected=is_protected, base=base
    )
    if (before := turns.checked_before(judged.tree)) is not None:
        same, verdicts = before
        verdicts = [msgspec.structs.replace(v, phase="after") for v in verdicts]
        return Checked(
            judged=judged, verdicts=verdicts, restored=restored, same_tree_as=same
        )
    found = await p.verifier.run(
        Subject(
            task_id=task.task_id,
            spec=task.spec,
            commit=judged.commit,
            is_protected=is_protected,
            phase="after",
            label=f"after-{n}",
            setup=turns.prepared.setup,
        ),
        before=turns.prepared.base_reports,
        known=_known(task, turns),
    )
    return Checked(judged=judged, verdicts=found.verdicts, restored=restored)


def _known(task: Task, turns: Turns) -> Known:
    """Say what the base and the last iteration have shown."""
    base = turns.prepared.base_verdicts
    passed = {verdict.check for verdict in base if verdict.passed}
    if turns.before or turns.turns:
        failed = {verdict.check for verdict in turns.failing}
        passed |= {check.name for check in task.spec.all_checks} - failed
    return Known(
        proving=frozenset(verdict.check for verdict in proving(base)),
        passed=frozenset(passed),
        flaky=frozenset(turns.flaky),
    )
