"""AIDB's tools. Imported by ``web.mcp`` where first used."""

from typing import Any

from nestor.errors import Forbidden
from nestor.model.access import SERVICE, Principal
from nestor.model.knowledge import Added, ContextRequest, ContextResult, NewDocument
from nestor.web.aidb import SearchDocuments
from nestor.web.auth import charge_to
from nestor.web.edge import Scope
from nestor.web.mcp_tools import Tool, Tools


async def _context(aidb: Any, scope: Scope, given: ContextRequest) -> Any:
    charge_to(given.task_id, scope["user"])
    return await aidb.get_context(given)


async def _search(aidb: Any, _: Scope, given: SearchDocuments) -> Any:
    return await aidb.search(
        given.query, limit=given.limit, where=given.where(), leg=given.leg
    )


async def _add(aidb: Any, scope: Scope, given: NewDocument) -> Any:
    user: Principal = scope["user"]
    if not user.may(SERVICE):
        message = (
            "this key may read, not add: a key with the scope service or admin may"
        )
        raise Forbidden(message)
    return await aidb.documents.add(given)


_TOOLS = (
    Tool(
        "get_context",
        "Find what the knowledge base holds about a query: documents, code and learned"
        " patterns, each with its source. Says in degraded what could not be reached.",
        ContextRequest,
        ContextResult,
        _context,
        reads_only=True,
    ),
    Tool(
        "search_context",
        "Search the knowledge base as it is: every hit of one way of searching (leg: bm25,"
        " dense, fulltext) or of all (fused), filtered by project, path or metadata.",
        SearchDocuments,
        ContextResult,
        _search,
        reads_only=True,
    ),
    Tool(
        "add_document",
        "Remember a text under a project and a path; what stood there is replaced.",
        NewDocument,
        Added,
        _add,
    ),
)


def tools(nestor: Any) -> Tools:
    """Make the application that serves them."""
    return Tools("aidb", nestor.aidb, _TOOLS)
