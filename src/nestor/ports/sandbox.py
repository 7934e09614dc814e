"""Run a command where it can do no harm. tests/contracts/test_sandbox.py."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from nestor.model.task import Network

DISK_BYTES = 8 * 1024**3
"""What a command may add to its writable mounts when nothing else is said."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One folder or file of the host as seen inside."""

    host: Path
    inside: str
    writable: bool = False


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question from inside, for a person. ``kind``: one of ``ApprovalKind`` but ``start``."""

    kind: str
    subject: str
    why: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``approved`` None: nobody answered in time."""

    approved: bool | None
    note: str = ""


class SandboxRun(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one sandboxed command. Only what is named here is visible inside."""

    name: str
    """For people and logs: ``task-1/agent-2``."""
    argv: Sequence[str]
    cwd: str
    """A path inside."""
    mounts: Sequence[Mount]
    env: Mapping[str, str] = {}
    stdin: bytes = b""
    network: Network = Network.NONE
    task_key: str | None = None
    """For network ``coordinator``: the forwarder adds it; it is never visible inside."""
    hosts: Sequence[str] = ()
    """For network ``coordinator``: ``name:port`` that an HTTPS proxy inside also admits."""
    ask: Callable[[Ask], Awaitable[Answer]] | None = None
    """For network ``coordinator``: answers ``POST /nestor/ask`` from inside; None: 403."""
    trace_id: str = ""
    iteration: int | None = None
    timeout_s: float
    run_dir: Path
    """A host folder for output, lock and result files; never visible inside. While a run
    holds its lock no second run in the same folder starts."""
    output_limit_bytes: int = 8 * 1024 * 1024
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    """What the writable mounts may hold together; None: a default."""
    processes: int = 512


class SandboxResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the command ended."""

    exit_code: int | None
    """None: killed (``timed_out``, ``cancelled``, or by ``signal``)."""
    signal: int | None = None
    timed_out: bool = False
    cancelled: bool = False
    output: str
    """stdout and stderr as they came, decoded with replacement; the newest part when cut."""
    truncated: bool = False
    duration_s: float
    sandboxed: bool
    limit: str | None = None
    """``memory``, ``disk`` or ``processes`` when that limit killed it."""
    refused: list[str] = []
    """What it tried and was not let: ``host pypi.org:443``, ``request POST /v1/files``."""


class Sandbox(Protocol):
    """Starts each command under a guardian that outlives nobody.

    When this process dies, or stops for 8 s, the whole group of the command is killed.
    """

    name: str
    """``bubblewrap``, ``landlock`` or ``none``, for status views."""

    async def run(self, run: SandboxRun) -> SandboxResult:
        """Run to the end, the time limit, or cancellation (which kills, then re-raises).

        Returns only once every process of the command is gone. Raises ``SandboxError``
        when it cannot be started, also when an earlier run in ``run_dir`` is still alive
        after 10 s.
        """
        ...

    def probe(self) -> str | None:
        """Look whether commands can be run as promised; say why not, with the remedy.

        May start a process and take seconds: not for the event loop.
        """
        ...

    def refuses_mount(self, host: Path) -> str | None:
        """Say why a task may not have ``host`` mounted at the same path; None: it may.

        ``run`` looks again: what stands there may change.
        """
        ...

    async def kill(self, run_dir: Path) -> None:
        """Kill what runs with this ``run_dir`` and wait until it is gone; nothing running is fine."""
        ...
