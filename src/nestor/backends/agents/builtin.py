"""The agent that comes with Nestor, seen from the host: ``builtin_agent.py`` in the sandbox."""

from pathlib import Path

import msgspec

from nestor.backends.agents.command import how_it_ended
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import Mount, SandboxResult

PROGRAM = Path(__file__).with_name("builtin_agent.py")
INSIDE = "/nestor/agent.py"
END = "NESTOR-AGENT-END "
"""Begins the last line that the program prints."""
_FAILURES = {"refused", "agent_error", "usage_error"}
_NOT_STARTED = {126, 127}


class _End(msgspec.Struct, frozen=True):
    claims_done: bool
    summary: str
    turns: int
    error: str | None


class BuiltinAgent:
    """Implements ``ports.agent.AgentBackend``: a small bash agent on the Coordinator's models."""

    name = "builtin"
    needs_model = True

    def unavailable(self) -> str | None:
        """See AgentBackend.unavailable: it needs only ``python3`` in the sandbox."""
        return None

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. Equal prompts make equal model requests."""
        told = {
            "prompt": brief.prompt.encode(errors="replace").decode(),
            "model_base_url": brief.model_base_url,
            "model": "auto",
        }
        return AgentCommand(
            argv=["python3", "-I", INSIDE],
            env={"PAGER": "cat", "GIT_TERMINAL_PROMPT": "0", "TERM": "dumb"},
            stdin=msgspec.json.encode(told),
            mounts=[Mount(host=PROGRAM, inside=INSIDE)],
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. Without an end line the program did not end by itself."""
        end = _find_end(result.output)
        if end is None or result.exit_code is None:
            started = result.exit_code not in _NOT_STARTED
            return AgentEnd(
                failure="agent_error" if started else "usage_error",
                claims_done=False,
                summary=how_it_ended(result),
            )
        failure = (
            end.error if end.error in _FAILURES or not end.error else "agent_error"
        )
        return AgentEnd(
            failure=failure or None,
            claims_done=end.claims_done and not failure,
            summary=end.summary,
        )


def _find_end(output: str) -> _End | None:
    for line in reversed(output.splitlines()):
        if line.startswith(END):
            try:
                return msgspec.json.decode(line.removeprefix(END), type=_End)
            except (msgspec.DecodeError, UnicodeEncodeError):
                return None
    return None
