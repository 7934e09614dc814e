"""Continue's ``cn``: chat completions, a JSON object at the end."""

import json

from nestor.backends.agents.ends import ended, objects, text_of
from nestor.backends.agents.program_agent import HOME, KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_CONFIG = "nestor-continue.yaml"


class ContinueAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``cn -p``."""

    name = "continue"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is its stdin."""
        model = {
            "name": brief.model,
            "provider": "openai",
            "model": brief.model,
            "apiBase": brief.model_base_url,
            "apiKey": KEY,
            "roles": ["chat", "edit", "apply"],
            "capabilities": ["tool_use"],
        }
        config = {
            "name": "nestor",
            "version": "1.0.0",
            "schema": "v1",
            "models": [model],
        }
        return self.launch(
            brief,
            # What follows -p is taken for a prompt, and stdin is then not read.
            ["--auto", "--format", "json", "--config", f"{HOME}/{_CONFIG}", "-p"],
            # JSON is YAML, as long as no text in it is unusual: these are names.
            files={_CONFIG: json.dumps(config)},
            env={"CONTINUE_TELEMETRY_ENABLED": "0"},
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. SIGTERM ends it with 0, and without a word."""
        summary, failed = "", None if result.output.strip() else ""
        for one in objects(result.output):
            if one.get("status") == "error":
                failed = text_of(one.get("message"))
            elif "response" in one:
                summary = text_of(one.get("response"))
        return ended(
            result,
            summary=summary,
            failed=failed,
            # In this mode it swallows what it would say about its options.
            usage=lambda r: r.exit_code == 1 and not r.output.strip(),
        )
