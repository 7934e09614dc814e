"""AIDB as the other services see it."""

from typing import Protocol

from nestor.model.knowledge import ContextRequest, ContextResult


class KnowledgeBase(Protocol):
    """Finds context for a query."""

    async def get_context(self, request: ContextRequest) -> ContextResult:
        """Return the best items with their sources; says what could not be reached."""
        ...
