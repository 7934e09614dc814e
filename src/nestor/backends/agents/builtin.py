"""The agent that comes with Nestor, seen from the host: ``builtin_program`` in the sandbox."""

from pathlib import Path

import msgspec

from nestor.backends.agents.command import how_it_ended
from nestor.model.task import Network
from nestor.ports.agent import AgentCommand, AgentEnd, AgentLook, Brief
from nestor.ports.sandbox import Mount, SandboxResult

PROGRAM = Path(__file__).with_name("builtin_program")
INSIDE = f"/nestor/{PROGRAM.name}"
START = (
    "import os, sys; sys.path.append(os.path.dirname(sys.argv[1]));"
    f" from {PROGRAM.name}.main import main; sys.exit(main())"
)
"""Run with ``-c``: a package's own folder is in no isolated interpreter's path."""
END = "NESTOR-AGENT-END "
"""Begins the last line that the program prints."""
REFUSED = "NESTOR-REFUSED "
"""Begins each line that tells what its policy did not let it do."""
_FAILURES = {"refused", "agent_error", "usage_error", "blocked", "timeout"}
_NOT_STARTED = {126, 127}
_MAX_REFUSED, _REFUSED_CHARS = 50, 300


class _End(msgspec.Struct, frozen=True):
    claims_done: bool
    summary: str
    turns: int
    error: str | None


class BuiltinAgent:
    """Implements ``ports.agent.AgentBackend``: a small bash agent on the Coordinator's models."""

    name = "builtin"
    needs_model = True

    def look(self) -> AgentLook:
        """See AgentBackend.look: it is a part of this installation."""
        return AgentLook(path=str(PROGRAM))

    def unavailable(self) -> str | None:
        """See AgentBackend.unavailable: it needs only ``python3`` in the sandbox."""
        return None

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. Equal prompts make equal model requests."""
        told = {
            "prompt": brief.prompt.encode(errors="replace").decode(),
            "model_base_url": brief.model_base_url,
            "model": brief.model,
            "network": brief.network,
            "hosts": list(brief.hosts),
            "time_s": brief.time_s,
        }
        return AgentCommand(
            argv=["python3", "-I", "-c", START, INSIDE],
            env={"PAGER": "cat", "GIT_TERMINAL_PROMPT": "0", "TERM": "dumb"},
            stdin=msgspec.json.encode(told),
            mounts=[Mount(host=PROGRAM, inside=INSIDE)],
            asks=brief.network is Network.COORDINATOR,
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. Without an end line the program did not end by itself."""
        refused = _find_refused(result.output)
        end = _find_end(result.output)
        if end is None or result.exit_code is None:
            started = result.exit_code not in _NOT_STARTED
            return AgentEnd(
                failure="agent_error" if started else "usage_error",
                claims_done=False,
                summary=how_it_ended(result),
                refused=refused,
            )
        failure = (
            end.error if end.error in _FAILURES or not end.error else "agent_error"
        )
        return AgentEnd(
            failure=failure or None,
            claims_done=end.claims_done and not failure,
            summary=end.summary,
            refused=refused,
        )


def _find_end(output: str) -> _End | None:
    for line in reversed(output.splitlines()):
        if line.startswith(END):
            try:
                return msgspec.json.decode(line.removeprefix(END), type=_End)
            except (msgspec.DecodeError, UnicodeEncodeError):
                return None
    return None


def _find_refused(output: str) -> list[str]:
    """Return what was refused, each once; lines that are not as the program prints are left."""
    found: dict[str, None] = {}
    for line in output.splitlines():
        if line.startswith(REFUSED) and len(found) < _MAX_REFUSED:
            try:
                said = msgspec.json.decode(line.removeprefix(REFUSED), type=str)
            except (msgspec.DecodeError, UnicodeEncodeError):
                continue
            found[said[:_REFUSED_CHARS]] = None
    return list(found)
