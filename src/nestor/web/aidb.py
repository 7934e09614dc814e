"""AIDB over HTTP: context for a query, documents, and search."""

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import UNSET, UnsetType

from nestor.errors import InvalidInput
from nestor.model.knowledge import (
    Added,
    Collection,
    ContextRequest,
    ContextResult,
    Document,
    NewDocument,
)
from nestor.web.auth import charge_to
from nestor.web.views import Reindexed, Several, Shelf
from nestor.wiring import Nestor

_MAX_ITEMS = 1_000
_READ = {"scope": "read"}
_WRITE = {"scope": ("admin", "service")}
"""What is in the knowledge base reaches every agent's prompt: not for every key."""


class AddDocuments(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /documents``: the fields of one document, or ``items`` of several.

    There is no ``url``: AIDB never fetches what a request names.
    """

    project: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    collection: Collection | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    items: list[NewDocument] | UnsetType = UNSET

    def one(self) -> NewDocument:
        """Return the single document. Raises ``InvalidInput`` that names what is missing."""
        given = msgspec.structs.asdict(self)
        fields = {key: value for key, value in given.items() if value is not UNSET}
        for name in ("project", "path", "content"):
            if name not in fields:
                raise InvalidInput.at(name, "missing")
        return NewDocument(**fields)


class SearchDocuments(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Body of ``POST /search``."""

    query: str
    limit: int = 10
    collections: list[Collection] | None = None
    leg: str = "fused"
    """``fused``, ``bm25`` (the index alone) or ``fulltext`` (SQL alone)."""


@post("/context", status_code=200, opt=_READ)
async def context(
    request: Request[Any, Any, Any], data: ContextRequest
) -> ContextResult:
    """Find the best context for a query, with sources."""
    nestor: Nestor = request.app.state.nestor
    charge_to(data.task_id, request.user)
    return await nestor.aidb.get_context(data)


@post("/search", status_code=200, opt=_READ)
async def search(
    request: Request[Any, Any, Any], data: SearchDocuments
) -> ContextResult:
    """Search as it is: every hit of one leg or of both, best first."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.search(
        data.query, limit=data.limit, collections=data.collections, leg=data.leg
    )


@post("/documents", opt={**_WRITE, "replies": {200: (Added, Several), 201: Added}})
async def add(
    request: Request[Any, Any, Any], data: AddDocuments
) -> Response[Added | Several]:
    """Remember one text (201, or 200 when nothing changed) or several (200)."""
    nestor: Nestor = request.app.state.nestor
    if data.items is UNSET:
        added = await nestor.aidb.add(data.one())
        return Response(added, status_code=200 if added.unchanged else 201)
    items = _several(data)
    several: Several = {"items": list(await nestor.aidb.add_all(items))}
    return Response(several, status_code=200)


@get("/documents", opt=_READ)
async def documents(request: Request[Any, Any, Any]) -> Shelf:
    """List documents by project and path (the first 1,000), and count all."""
    nestor: Nestor = request.app.state.nestor
    found = await nestor.aidb.all(limit=1_000)
    return {"documents": found, "counts": await nestor.aidb.counts()}


@get("/documents/{document_id:str}", opt=_READ)
async def document(request: Request[Any, Any, Any], document_id: str) -> Document:
    """Read what is known of one document; its text comes with ``/search``."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.get(document_id)


@delete("/documents/{document_id:str}", status_code=204, opt=_WRITE)
async def forget(request: Request[Any, Any, Any], document_id: str) -> None:
    """Forget one document."""
    nestor: Nestor = request.app.state.nestor
    await nestor.aidb.delete(document_id)


@post("/reindex", status_code=200, opt=_WRITE)
async def reindex(request: Request[Any, Any, Any]) -> Reindexed:
    """Empty the search index and fill it from SQL; replies when that is done."""
    nestor: Nestor = request.app.state.nestor
    return {"chunks": await nestor.aidb.reindex()}


def handlers() -> list[HTTPRouteHandler]:
    """Return every route of the layer."""
    return [context, search, add, documents, document, forget, reindex]


def _several(data: AddDocuments) -> Sequence[NewDocument]:
    for name in ("project", "path", "content", "collection", "metadata"):
        if getattr(data, name) is not UNSET:
            raise InvalidInput.at(name, "not beside items")
    assert data.items is not UNSET
    if not 1 <= len(data.items) <= _MAX_ITEMS:
        raise InvalidInput.at("items", f"must be 1 to {_MAX_ITEMS} documents")
    return data.items
