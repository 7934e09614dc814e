"""mini-swe-agent: chat completions, one command in a code block a turn."""

import re

import msgspec

from nestor.backends.agents.ends import ended, text_of
from nestor.backends.agents.program_agent import HOME, KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_TASK = "nestor-task.yaml"
_USAGE_EXIT = 2
_STEPS = 200
_BOX_END = "\N{BOX DRAWINGS LIGHT ARC UP AND RIGHT}\N{BOX DRAWINGS LIGHT HORIZONTAL}"
_GAVE_UP = re.compile(r"\b(RepeatedFormatError|LimitsExceeded|TimeExceeded)\b")


class MiniAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``mini``."""

    name = "mini"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is in a configuration file in its HOME."""
        command = self.launch(
            brief,
            [
                "-y",
                "--exit-immediately",
                "-l",
                "0",
                "-m",
                f"openai/{brief.model}",
                "--model-class",
                "litellm_textbased",
                "-c",
                "mini_textbased.yaml",
                "-c",
                f"agent.step_limit={_STEPS}",
                "-c",
                "model.model_kwargs.max_retries=0",
                "-c",
                f"{HOME}/{_TASK}",
                "-o",
                f"{HOME}/trajectory.json",
            ],
            env={
                "OPENAI_API_BASE": brief.model_base_url,
                "OPENAI_API_KEY": KEY,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "MSWEA_CONFIGURED": "true",
                "MSWEA_COST_TRACKING": "ignore_errors",
                "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "2",
                "MSWEA_SILENT_STARTUP": "1",
            },
            prompt_in=_TASK,
        )
        task = _quoted(command.stdin.decode())
        stdin = f"run:\n  task: {task}\n".encode()
        return msgspec.structs.replace(command, stdin=stdin)

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. It ends with 0 as well when it gives up."""
        gave_up = _GAVE_UP.search(result.output[-4096:])
        failed = f"it gave up: {gave_up[1]}" if gave_up else None
        if _BOX_END in result.output and result.exit_code == 1:
            # The error stands below a box with lines of programs, which name others.
            failed = text_of(result.output.rpartition(_BOX_END)[2].partition("\n")[2])
        return ended(
            result,
            failed=failed,
            usage=lambda r: r.exit_code == _USAGE_EXIT,
        )


def _quoted(text: str) -> str:
    """Write a text of any characters in YAML."""
    plain = (
        c if c.isascii() and c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}"
        for c in text
    )
    return f'"{"".join(plain)}"'
