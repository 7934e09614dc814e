"""Whose task it is: who may see it, who may steer it, and what the others are told."""

from nestor.errors import Conflict, Forbidden, NotFound
from nestor.model.access import ADMIN, Principal
from nestor.model.task import Task
from nestor.ports.task_store import TaskStore

OPERATOR = "operator"
"""In the audit log: somebody at this machine, without a key."""


def may_see(task: Task, reader: Principal) -> bool:
    """Tell whether a task is there for this key: its own, or all for some scopes.

    Who approves must see what it is about, and what became of it: of tasks that ask.
    """
    return (
        task.submitted_by == reader.key_id
        or reader.may("read")
        or (reader.may("approve") and bool(task.approvals))
    )


async def known(store: TaskStore, task_id: str) -> Task | None:
    """Read a task; None: there is none."""
    try:
        return await store.get(task_id)
    except NotFound:
        return None


async def seen_by(store: TaskStore, task_id: str, by: Principal | None) -> Task:
    """Read one task. ``by`` None: the operator in person, or ourselves.

    Raises ``NotFound``, in the same words for a task that this key may not see.
    """
    task = await known(store, task_id)
    if task is None or not (by is None or may_see(task, by)):
        raise NotFound.at("task_id", f"there is no task {task_id}")
    return task


async def steered_by(store: TaskStore, task_id: str, by: Principal | None) -> Task:
    """Read a task that this key may end, resume, roll back or fork.

    Those are the tasks it submitted, an admin's all. Raises ``Forbidden``; ``NotFound``
    for one that it may not even see.
    """
    task = await seen_by(store, task_id, by)
    if by is not None and task.submitted_by != by.key_id and not by.may(ADMIN):
        raise Forbidden(
            "only the key that submitted a task, or an admin's, may do this"
        )
    return task


def refuse_hidden(task: Task, principal: Principal) -> None:
    """Say the same of every task that this key may not see, whatever it holds."""
    if not may_see(task, principal):
        raise Conflict(f"task_id: {task.task_id} is taken; use another")


def actor(by: Principal | None) -> str:
    """Name who did it, for the audit log."""
    return OPERATOR if by is None else by.key_id
