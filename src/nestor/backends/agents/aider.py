"""aider: chat completions; its exit code says nothing about the model's server."""

import re
from collections import deque

from nestor.backends.agents.ends import ended, text_of
from nestor.backends.agents.program_agent import HOME, KEY, ProgramAgent
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import SandboxResult

_PROMPT = "nestor-prompt.md"
_CONFIG = "nestor-aider.yml"
_PRICES = ".aider/caches/model_prices_and_context_window.json"
"""Where it keeps what it knows of models for a day. It fetches that where the file is
absent, old or says nothing; what is not in it, it then finds in its own package."""
_USAGE_EXIT = 2
_ERROR = re.compile(r"^litellm\.(\w+):.*$", re.MULTILINE)
_AGAIN = re.compile(r"^Retrying in ", re.MULTILINE)
_OFF = (
    "pretty", "stream", "check-update", "show-model-warnings", "show-release-notes",
    "detect-urls", "suggest-shell-commands", "gitignore", "auto-commits",
    "dirty-commits", "auto-lint", "fancy-input", "check-model-accepts-settings",
)  # fmt: skip
"""Commits are the harness's business; its shell suggestions would wait for an answer."""


class AiderAgent(ProgramAgent):
    """Implements ``ports.agent.AgentBackend`` for ``aider --message-file``.

    It sees the files that the task names, and those that the model asks for by name. Its
    map of the repository is off, as its cache could only be kept in the workspace; so are
    the workspace's own ``.aider.conf.yml`` and ``.env``.
    """

    name = "aider"

    def command(self, brief: Brief) -> AgentCommand:
        """See AgentBackend.command. The prompt is a file in its HOME."""
        return self.launch(
            brief,
            [
                "--message-file",
                f"{HOME}/{_PROMPT}",
                "--yes-always",
                "--model",
                f"openai/{brief.model}",
                "--edit-format",
                "diff",
                *(f"--no-{name}" for name in _OFF),
                "--analytics-disable",
                "--map-tokens",
                "0",
                "--timeout",
                "600",
                "--config",
                f"{HOME}/{_CONFIG}",
                "--env-file",
                "/dev/null",
                "--input-history-file",
                f"{HOME}/.aider.input",
                "--chat-history-file",
                f"{HOME}/.aider.chat",
                *(f"--file={name}" for name in brief.spec.files),
            ],
            env={
                "OPENAI_API_BASE": brief.model_base_url,
                "OPENAI_API_KEY": KEY,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
            files={_CONFIG: "{}", _PRICES: '{"nothing": {}}'},
            prompt_in=_PROMPT,
        )

    def read(self, result: SandboxResult) -> AgentEnd:
        """See AgentBackend.read. An error of the model after which it did not try again."""
        failed, output = None, result.output
        last = deque(_ERROR.finditer(output), maxlen=1)
        if last and not _AGAIN.search(output, last[0].end()):
            failed = text_of(last[0][0])
        return ended(result, failed=failed, usage=lambda r: r.exit_code == _USAGE_EXIT)
