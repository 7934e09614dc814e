"""Any command line as an agent: it reads the prompt on stdin and edits the workspace.

Exit 0 claims to be done. Exit 2 is a usage error, as with most programs, unless the last
line of output is exactly the value of ``NESTOR_BLOCK_MARKER``: then the command says
"blocked, go on". 126 and 127 mean that it could not be started.
"""

import hashlib
import hmac
import re
import secrets

from nestor.errors import InvalidInput
from nestor.model.ids import derived_id
from nestor.ports.agent import AgentCommand, AgentEnd, AgentLook, Brief
from nestor.ports.sandbox import SandboxResult

_MARKER = re.compile(r"nestor-blocked-([0-9a-f-]{36})-([0-9a-f]{32})")
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
_SUMMARY_LIMIT = 500


class CommandAgent:
    """Implements ``ports.agent.AgentBackend`` for the task's own ``command``."""

    name = "command"
    needs_model = False

    def __init__(self) -> None:
        # The end is read without the brief, so the marker proves by itself that it was
        # planted here; one from before a restart counts for nothing.
        self._secret = secrets.token_bytes(32)

    def look(self) -> AgentLook:
        """See AgentBackend.look: which program it is stands in the task."""
        return AgentLook(path="/bin/sh")

    def unavailable(self) -> str | None:
        """See AgentBackend.unavailable: it can always be tried."""
        return None

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. A string runs in ``/bin/sh``."""
        command = brief.spec.command
        if not command or (isinstance(command, str) and not command.strip()):
            raise InvalidInput.at("command", "is needed for backend 'command'")
        if not command[0]:
            raise InvalidInput.at("command.0", "must name a program")
        prompt = brief.prompt.encode(errors="replace")
        nonce = derived_id(brief.task_id, brief.iteration, prompt.decode())
        return AgentCommand(
            argv=["/bin/sh", "-c", command] if isinstance(command, str) else command,
            env={
                "NESTOR_TASK_ID": brief.task_id,
                "NESTOR_ITERATION": str(brief.iteration),
                "NESTOR_MODEL_BASE_URL": brief.model_base_url,
                "NESTOR_BLOCK_MARKER": f"nestor-blocked-{nonce}-{self._proof(nonce)}",
            },
            stdin=prompt,
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read."""
        last = last_line(result.output)
        match result.exit_code:
            case 0:
                failure = None
            case 2 if self._planted(last):
                failure = "blocked"
            case 2 | 126 | 127:
                failure = "usage_error"
            case _:
                failure = "agent_error"
        return AgentEnd(
            failure=failure,
            claims_done=failure is None,
            summary=last if failure in {None, "blocked"} else how_it_ended(result),
        )

    def _proof(self, nonce: str) -> str:
        return hmac.new(self._secret, nonce.encode(), hashlib.sha256).hexdigest()[:32]

    def _planted(self, line: str) -> bool:
        match = _MARKER.fullmatch(line)
        return match is not None and hmac.compare_digest(
            self._proof(match[1]), match[2]
        )


def last_line(output: str) -> str:
    """Return the last line that is not blank, cut to a readable length."""
    lines = [line.strip() for line in output[-8192:].splitlines() if line.strip()]
    return lines[-1][:_SUMMARY_LIMIT] if lines else ""


def how_it_ended(result: SandboxResult) -> str:
    """Say in one line how a run failed."""
    if result.timed_out:
        how = "stopped at its time limit"
    elif result.limit is not None:
        how = f"killed at its {result.limit} limit"
    elif result.exit_code is None:
        how = f"killed by signal {result.signal}" if result.signal else "killed"
    elif result.exit_code == _NOT_FOUND:
        how = "command not found in the sandbox (exit code 127)"
    elif result.exit_code == _NOT_EXECUTABLE:
        how = "command cannot be executed (exit code 126)"
    else:
        how = f"exit code {result.exit_code}"
    last = last_line(result.output)
    return f"{how}: {last}" if last else how
