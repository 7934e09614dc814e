"""opencode: chat completions, JSON events one a line."""

import json
from typing import Any

from nestor.backends.agents.ends import ended, objects, text_of
from nestor.backends.agents.program_agent import KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_HELP = "run opencode with a message"
_REASONS = {"stop", "end_turn"}


class OpencodeAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``opencode run``."""

    name = "opencode"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is its stdin."""
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": brief.model_base_url, "apiKey": KEY},
            "models": {brief.model: {"name": brief.model, "tool_call": True}},
        }
        model = f"nestor/{brief.model}"
        config = {
            "provider": {"nestor": provider},
            "enabled_providers": ["nestor"],
            "model": model,
            "small_model": model,
            "autoupdate": False,
            "share": "disabled",
        }
        return self.launch(
            brief,
            ["run", "--format", "json", "--auto", "--title", "nestor", "-m", model],
            env={
                "OPENCODE_CONFIG_CONTENT": json.dumps(config),
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
                "OPENCODE_DISABLE_MODELS_FETCH": "1",
            },
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read."""
        summary, failed, finished = "", "", False
        for one in objects(result.output):
            part = one.get("part")
            part = part if isinstance(part, dict) else {}
            match one.get("type"):
                case "text":
                    summary = text_of(part.get("text")) or summary
                case "step_finish":
                    finished = part.get("reason") in _REASONS
                case "error":
                    failed = _error(one) or "an error without words"
        return ended(
            result,
            summary=summary,
            failed=None if finished and not failed else failed,
            usage=lambda r: not finished and _HELP in r.output,
        )


def _error(event: dict[str, Any]) -> str:
    error = event.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    if not isinstance(data, dict):
        return text_of(json.dumps(error))
    status = data.get("statusCode")
    return (
        f"HTTP {status}: {text_of(data.get('message'))}"
        if isinstance(status, int)
        else text_of(data.get("message"))
    )
