"""Claude Code: Anthropic's messages, a JSON object at the end."""

from nestor.backends.agents.ends import ended, objects, text_of
from nestor.backends.agents.program_agent import KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_UNKNOWN_OPTION = "error: unknown option"


class ClaudeAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``claude -p``.

    Its own permission questions are off: the sandbox decides. Only the workspace's own
    settings and ``CLAUDE.md`` are read; none of the user's.
    """

    name = "claude"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is its stdin."""
        base_url = brief.model_base_url.removesuffix("/v1")
        return self.launch(
            brief,
            [
                "-p",
                "--output-format",
                "json",
                "--model",
                brief.model,
                "--permission-mode",
                "bypassPermissions",
                "--setting-sources",
                "project",
                "--strict-mcp-config",
                "--no-session-persistence",
            ],
            env={
                "ANTHROPIC_BASE_URL": base_url,
                "ANTHROPIC_API_KEY": KEY,
                "ANTHROPIC_SMALL_FAST_MODEL": brief.model,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "2",
                "DISABLE_AUTOUPDATER": "1",
                "IS_SANDBOX": "1",
            },
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. ``subtype`` says success either way: ``is_error`` counts."""
        end = None
        for one in objects(result.output):
            if one.get("type") == "result":
                end = one
        summary = text_of(end.get("result")) if end else ""
        if end is None or end.get("is_error") is not False:
            return ended(
                result,
                failed=summary,
                usage=lambda r: end is None and _UNKNOWN_OPTION in r.output,
            )
        return ended(result, summary=summary)
