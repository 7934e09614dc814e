"""Agents that do the work of an iteration."""

from nestor.backends.agents.builtin import BuiltinAgent
from nestor.backends.agents.command import CommandAgent
from nestor.ports.agent import AgentBackend


def backends() -> dict[str, AgentBackend]:
    """Return every agent backend by its name."""
    every: list[AgentBackend] = [BuiltinAgent(), CommandAgent()]
    return {backend.name: backend for backend in every}
