"""Agents that do the work of an iteration."""

from pathlib import Path

from nestor.backends.agents.aider import AiderAgent
from nestor.backends.agents.builtin import BuiltinAgent
from nestor.backends.agents.claude import ClaudeAgent
from nestor.backends.agents.cn import ContinueAgent
from nestor.backends.agents.codex import CodexAgent
from nestor.backends.agents.command import CommandAgent
from nestor.backends.agents.goose import GooseAgent
from nestor.backends.agents.mini import MiniAgent
from nestor.backends.agents.opencode import OpencodeAgent
from nestor.ports.agent import AgentBackend


def backends(folder: Path | None = None) -> dict[str, AgentBackend]:
    """Return every agent backend by its name.

    ``folder``: where ``nestor agents install`` puts programs; None: they are on PATH.
    """
    every: list[AgentBackend] = [
        BuiltinAgent(),
        CommandAgent(),
        AiderAgent(folder),
        ClaudeAgent(folder),
        CodexAgent(folder),
        ContinueAgent(folder),
        GooseAgent(folder),
        MiniAgent(folder),
        OpencodeAgent(folder),
    ]
    return {backend.name: backend for backend in every}
