"""Ralph's tools. Imported by ``web.mcp`` where first used."""

from typing import Any

import msgspec

from nestor.errors import Forbidden
from nestor.model.access import Principal
from nestor.model.task import Task, TaskSpec
from nestor.web.edge import Scope
from nestor.web.mcp_tools import Tool, Tools
from nestor.web.ralph import accepted, result_view
from nestor.web.task_view import task_view
from nestor.web.views import Accepted, ResultView, TaskView


class OneTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task."""

    task_id: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer to what a task asks a person. There is no default answer."""

    task_id: str
    approved: bool
    action: str | None = None
    """Id of the question that is meant; needed where several are open."""
    note: str | None = None


def _user(scope: Scope, needs: str) -> Principal:
    """Whose key it is. Raises ``Forbidden`` unless its scopes reach this tool."""
    user: Principal = scope["user"]
    if not user.may(needs):
        raise Forbidden(f"this key lacks the scope {needs}")
    return user


async def _submit(nestor: Any, scope: Scope, given: TaskSpec) -> Any:
    return accepted(await nestor.ralph.submit(given, _user(scope, "submit")))


async def _seen(nestor: Any, scope: Scope, task_id: str) -> Task:
    # Whoever may use any of the tools sees what its key is to see.
    task: Task = await nestor.ralph.get(task_id, by=scope["user"])
    return task


async def _status(nestor: Any, scope: Scope, given: OneTask) -> Any:
    return task_view(await _seen(nestor, scope, given.task_id), scope["user"])


async def _results(nestor: Any, scope: Scope, given: OneTask) -> Any:
    return await result_view(nestor, await _seen(nestor, scope, given.task_id))


async def _cancel(nestor: Any, scope: Scope, given: OneTask) -> Any:
    user = _user(scope, "submit")
    return task_view(await nestor.ralph.cancel(given.task_id, by=user), user)


async def _approve(nestor: Any, scope: Scope, given: Answer) -> Any:
    user = _user(scope, "approve")
    answered = await nestor.ralph.approve(
        given.task_id,
        approved=given.approved,
        note=given.note,
        principal=user,
        action=given.action,
    )
    return task_view(answered, user)


_TOOLS = (
    Tool(
        "submit_task",
        "Submit a task for an agent. It counts as done only when its checks pass on a fresh"
        " checkout of the result. Returns at once: look with task_status.",
        TaskSpec,
        Accepted,
        _submit,
    ),
    Tool(
        "task_status",
        "Where a task stands: its status and why, its iteration, what it spent, and which"
        " questions to a person are open.",
        OneTask,
        TaskView,
        _status,
        reads_only=True,
    ),
    Tool(
        "task_results",
        "What a task has come to so far: the verdicts of its newest iteration, its change,"
        " its cost, its branch. success is true only when it is verified.",
        OneTask,
        ResultView,
        _results,
        reads_only=True,
    ),
    Tool(
        "cancel_task",
        "Ask for the end of a task. It is cancelled once its processes are gone: look with"
        " task_status.",
        OneTask,
        TaskView,
        _cancel,
    ),
    Tool(
        "approve_task",
        "Answer what a task asks a person, in that person's name: ask them first. The key"
        " that submitted a task cannot answer for it.",
        Answer,
        TaskView,
        _approve,
    ),
)


def tools(nestor: Any) -> Tools:
    """Make the application that serves them."""
    return Tools("ralph", nestor, _TOOLS)
