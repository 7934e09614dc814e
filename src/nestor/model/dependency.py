"""What a task waits for, in words for people."""

from collections.abc import Sequence

import msgspec

from nestor.model.task import FINAL_STATUSES, TaskStatus

_NAMED = 5


class Unmet(msgspec.Struct, frozen=True, kw_only=True):
    """A dependency that is not verified. ``status`` None: nobody has submitted it yet."""

    task_id: str
    status: TaskStatus | None

    @property
    def ended(self) -> bool:
        """Tell that it came to an end, and was not verified."""
        return self.status in FINAL_STATUSES


def waiting_text(unmet: Sequence[Unmet]) -> str:
    """Say what a task waits for; "" when it waits for none."""
    said = [
        f"{one.task_id}, which {_state(one.status)}" for one in list(unmet)[:_NAMED]
    ]
    if len(unmet) > _NAMED:
        said.append(f"{len(unmet) - _NAMED} more")
    return f"waits for {'; and '.join(said)}" if said else ""


def failed_text(task_id: str, broken: Sequence[Unmet]) -> str:
    """Say which dependencies ended unverified, and what brings the task on."""
    said = ", ".join(f"{one.task_id} ended {one.status}" for one in broken[:_NAMED])
    more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    first = broken[0].task_id
    return (
        f"It was not started, because not every task it needs was verified: {said}{more}."
        f" Retry that one first (nestor retry {first}), then this: nestor retry {task_id}"
    )


def circle_text(circle: Sequence[str]) -> str:
    """Spell a circle of dependencies out; its first and last are the same."""
    return (
        f"they go in a circle, so that none could ever start: {' → '.join(circle)}"
        " (each needs the next); leave one of these out"
    )


def _state(status: TaskStatus | None) -> str:
    return "nobody has submitted yet" if status is None else f"is {status}"
