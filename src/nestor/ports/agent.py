"""An agent backend: turns one iteration's brief into a command line, and reads its end."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from nestor.model.task import Network, TaskSpec
from nestor.ports.sandbox import Mount, SandboxResult


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent is told in one iteration."""

    task_id: str
    spec: TaskSpec
    iteration: int
    prompt: str
    """Goal, context with sources, guidance, and what verification said last time."""
    model_base_url: str
    """Inside the sandbox: the Coordinator's ``…/v1``, which speaks every dialect; needs no
    key there."""
    model: str = "auto"
    network: Network = Network.COORDINATOR
    """The mode in force, grants included."""
    hosts: Sequence[str] = ()
    """``name:port`` that may be reached besides the Coordinator."""
    time_s: float | None = None
    """What the agent may take, without the time it waits for a person; None: not said."""


class AgentCommand(msgspec.Struct, frozen=True, kw_only=True):
    """The command that runs the agent inside the sandbox, in the workspace."""

    argv: Sequence[str]
    env: Mapping[str, str] = {}
    stdin: bytes = b""
    mounts: Sequence[Mount] = ()
    """Read-only parts of the agent itself (its program, its configuration)."""
    asks: bool = False
    """It asks a person (``SandboxRun.ask``) and keeps ``Brief.time_s`` by itself."""


class AgentEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's end means; the tree decides between changed and unchanged.

    ``failure``: None, or ``blocked``, ``agent_error``, ``refused``, ``usage_error``, or
    ``timeout`` by a clock of its own.
    ``claims_done``: the agent says it is finished; never believed, only verified.
    """

    failure: str | None
    claims_done: bool
    summary: str = ""
    refused: Sequence[str] = ()
    """What its own policy did not let it do."""


class AgentLook(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of an agent's program on this machine."""

    path: str | None
    """None: not found."""
    version: str | None = None
    """As it says itself; None: it was not asked, or said none."""
    tested: str = ""
    """The versions that Nestor's tests run: ``2.1``; "": none."""
    fault: str | None = None
    """Why it cannot be used, or only with care; None: nothing speaks against it."""
    remedy: str = ""
    """How to install or mend it."""


class AgentBackend(Protocol):
    """One kind of agent."""

    name: str
    needs_model: bool

    def look(self) -> AgentLook:
        """Find the program and ask its version. Starts it: seconds, not for the event loop."""
        ...

    def unavailable(self) -> str | None:
        """Say why this backend cannot run here, with the remedy; None when it can."""
        ...

    def command(self, brief: Brief) -> AgentCommand:
        """Build the command line. Raises ``InvalidInput`` when the task lacks a field."""
        ...

    def read(self, result: SandboxResult) -> AgentEnd:
        """Interpret how it ended."""
        ...
