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


def none_of(query: Mapping[str, object], otherwise: str) -> str:
    """Say what there is none of, when only some were asked for."""
    status, phase, priority = query["status"], query["phase"], query["priority"]
    if status is None and phase is None and priority is None:
        return otherwise
    said = "no task"
    said += "" if priority is None else f" of priority {priority}"
    said += "" if phase is None else f" in phase {phase}"
    return f"{said} is {status}" if status else f"{said} to show"
