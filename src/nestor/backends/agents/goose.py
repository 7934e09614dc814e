"""goose, as its documentation says. No test runs it: it cannot be had where they run."""

from nestor.backends.agents.ends import ended
from nestor.backends.agents.program_agent import HOME, KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_PROMPT = "nestor-prompt.md"
_TURNS = 100
_USAGE_EXIT = 2


class GooseAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``goose run``."""

    name = "goose"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is a file in its HOME."""
        return self.launch(
            brief,
            [
                "run",
                "--no-session",
                "-q",
                "--max-turns",
                str(_TURNS),
                "-i",
                f"{HOME}/{_PROMPT}",
            ],
            env={
                "GOOSE_PROVIDER": "openai",
                "GOOSE_MODEL": brief.model,
                "GOOSE_MODE": "auto",
                "GOOSE_DISABLE_KEYRING": "1",
                "OPENAI_HOST": brief.model_base_url.removesuffix("/v1"),
                "OPENAI_API_KEY": KEY,
            },
            prompt_in=_PROMPT,
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read."""
        return ended(result, usage=lambda r: r.exit_code == _USAGE_EXIT)
