"""What a reader must know of a task before trusting it: the same words in every view."""

from typing import Any


def flags(task: dict[str, Any]) -> str:
    """Return `` [replayed model] [no sandbox]``, as far as they hold; often nothing."""
    found = []
    if task.get("replayed"):
        found.append("replayed model")
    if task.get("sandboxed") is False:
        found.append("no sandbox")
    # None: the defaults protect; only an empty list protects nothing.
    if task.get("protected") == []:
        found.append("nothing protected")
    if task.get("guard_only"):
        found.append("guard only")
    return "".join(f" [{one}]" for one in found)
