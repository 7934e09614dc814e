"""An agent backend: turns one iteration's brief into a command line, and reads its end."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from nestor.model.task import TaskSpec
from nestor.ports.sandbox import Mount, SandboxResult


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent is told in one iteration."""

    task_id: str
    spec: TaskSpec
    iteration: int
    prompt: str
    """Goal, context with sources, guidance, and what verification said last time."""
    model_base_url: str
    """Inside the sandbox: an OpenAI-compatible ``…/v1``; needs no key there."""


class AgentCommand(msgspec.Struct, frozen=True, kw_only=True):
    """The command that runs the agent inside the sandbox, in the workspace."""

    argv: Sequence[str]
    env: Mapping[str, str] = {}
    stdin: bytes = b""
    mounts: Sequence[Mount] = ()
    """Read-only parts of the agent itself (its program, its configuration)."""


class AgentEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's end means; the tree decides between changed and unchanged.

    ``failure``: None, or ``blocked``, ``agent_error``, ``refused``, ``usage_error``.
    ``claims_done``: the agent says it is finished; never believed, only verified.
    """

    failure: str | None
    claims_done: bool
    summary: str = ""


class AgentBackend(Protocol):
    """One kind of agent."""

    name: str
    needs_model: bool

    def unavailable(self) -> str | None:
        """Say why this backend cannot run here, with the remedy; None when it can."""
        ...

    def command(self, brief: Brief) -> AgentCommand:
        """Build the command line. Raises ``InvalidInput`` when the task lacks a field."""
        ...

    def read(self, result: SandboxResult) -> AgentEnd:
        """Interpret how it ended."""
        ...
