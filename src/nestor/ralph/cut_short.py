"""A command that Nestor's own lapse ended: it says nothing of the work, so it runs again."""

from nestor.errors import SandboxError

TRIES = 3
"""How often a command is begun that is ended by no fault of its own."""


class CutShort(Exception):  # noqa: N818 - names say what happened
    """``worked_s``: how long it had worked."""

    def __init__(self, worked_s: float) -> None:
        super().__init__(f"cut short after {worked_s:.1f} s")
        self.worked_s = worked_s


def every_time(what: str) -> SandboxError:
    """Make the error for ``what``, which was cut short at each of ``TRIES``."""
    return SandboxError(
        f"{what} was ended {TRIES} times by Nestor's side: the worker stood still for 8 s,"
        " or was told to stop. Give the machine room (fewer NESTOR_WORKERS), then"
        " submit the task again"
    )
