"""How the work can fail, and how a single call can."""

from __future__ import annotations


class AgentError(Exception):
    """The work cannot go on. ``kind``: ``refused``, ``agent_error``, ``blocked``, ``timeout``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ToolError(Exception):
    """Told to the model, which may do better."""


class Refused(ToolError):  # noqa: N818 - what happened, not a mistake
    """The policy, or a person, does not allow it. ``what``: for the record of refusals."""

    def __init__(self, message: str, *, what: str) -> None:
        super().__init__(message)
        self.what = what


class TooLong(Exception):  # noqa: N818 - a reason to trim, not an error yet
    """The conversation does not fit the model's window; ``limit``: tokens, if it was told."""

    def __init__(self, message: str, limit: int | None) -> None:
        super().__init__(message)
        self.limit = limit
