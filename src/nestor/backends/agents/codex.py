"""codex: OpenAI's responses, JSON events one a line."""

import json
from typing import Any

from nestor.backends.agents.ends import ended, objects, text_of
from nestor.backends.agents.program_agent import KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_USAGE_EXIT = 2


class CodexAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``codex exec``.

    Its own sandbox and approvals are off: it runs in one already, where no other starts.
    """

    name = "codex"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is its stdin.

        The models' address stands in a file: without isolation it opens them to this
        task, and every user of the machine can read a command line.
        """
        provider = {
            "name": "nestor",
            "base_url": brief.model_base_url,
            "wire_api": "responses",
            "env_key": "NESTOR_MODEL_KEY",
            "request_max_retries": 0,
            "stream_max_retries": 1,
        }
        table = "".join(f"{name} = {json.dumps(v)}\n" for name, v in provider.items())
        return self.launch(
            brief,
            [
                "exec",
                "--json",
                "--ephemeral",
                "--skip-git-repo-check",
                "--dangerously-bypass-approvals-and-sandbox",
                "-c",
                "check_for_update_on_startup=false",
                "-c",
                "web_search=disabled",
                "-c",
                "analytics.enabled=false",
                "-c",
                "features.unbounded_connection_retries=false",
                "-c",
                "features.plugins=false",  # it fetches a list of them at its start
                "-m",
                brief.model,
                "-",
            ],
            env={"NESTOR_MODEL_KEY": KEY},
            files={
                ".codex/config.toml": 'model_provider = "nestor"\n'
                f"[model_providers.nestor]\n{table}"
            },
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. It ends with 0 only when its turn was completed."""
        completed, summary, failed = False, "", ""
        for one in objects(result.output):
            match one.get("type"):
                case "item.completed":
                    summary = _said(one.get("item")) or summary
                case "turn.completed":
                    completed = True
                case "turn.failed":
                    failed = _error(one) or failed
                case "error":
                    failed = text_of(one.get("message")) or failed
        return ended(
            result,
            summary=summary,
            failed=None if completed else failed,
            usage=lambda r: r.exit_code == _USAGE_EXIT,
        )


def _said(item: object) -> str:
    if isinstance(item, dict) and item.get("type") == "agent_message":
        return text_of(item.get("text"))
    return ""


def _error(event: dict[str, Any]) -> str:
    error = event.get("error")
    return text_of(error.get("message")) if isinstance(error, dict) else ""
