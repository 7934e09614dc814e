"""Where a task stands, in words for people."""

from collections.abc import Mapping
from typing import Any


def standing(task: Mapping[str, Any]) -> str:
    """Return the status, or ``cancelling`` while its processes still run."""
    if task.get("status") == "running" and task.get("cancel_requested"):
        return "cancelling"
    return str(task.get("status"))


def iteration(task: Mapping[str, Any]) -> int:
    """Return the iteration that runs, else how many were recorded."""
    done, most = int(task.get("iteration") or 0), task.get("max_iterations")
    if task.get("status") != "running" or not task.get("base"):
        return done
    return min(done + 1, int(most or done + 1))


def doing(task: Mapping[str, Any]) -> str:
    """Return what goes on in a running task; empty for another."""
    if task.get("status") != "running":
        return ""
    # The base is known once the clone, its environment and the first checks are done.
    return ", running" if task.get("base") else ", preparing the environment"


def ended(task: Mapping[str, Any]) -> bool:
    """Tell whether it has come to an end, whichever."""
    return task.get("status") not in {"queued", "awaiting_approval", "running"}


def how_to_go_on(task: Mapping[str, Any]) -> str:
    """Return the command that gives an exhausted task more; empty for another."""
    if task.get("status") != "exhausted":
        return ""
    given = {
        "budget_usd": " --budget-usd USD",
        "budget_tokens": " --budget-tokens N",
        "budget_seconds": " --budget-seconds S",
    }.get(str(task.get("reason")), "")
    return f"let it go on with: nestor resume {task.get('task_id')}{given}"


def ended_before(task: Mapping[str, Any]) -> str:
    """Say that a submit met a task that has ended, and what can be done instead."""
    name, status = task.get("task_id"), task.get("status")
    said = f"task {name} was submitted before and is {status}: nothing was begun"
    if status in {"verified", "rejected"}:
        return f"{said}; for a new one submit under another --id"
    again = f"nestor resume {name}, nestor retry {name}"
    return f"{said}; go on with it ({again}), or submit under another --id"


def none_of(query: Mapping[str, object], otherwise: str) -> str:
    """Say what there is none of, when only some were asked for."""
    status, phase, priority = query["status"], query["phase"], query["priority"]
    if status is None and phase is None and priority is None:
        return otherwise
    said = "no task"
    said += "" if priority is None else f" of priority {priority}"
    said += "" if phase is None else f" in phase {phase}"
    return f"{said} is {status}" if status else f"{said} to show"
