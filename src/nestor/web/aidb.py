"""AIDB over HTTP: context for a query, documents, learned patterns, and search."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from msgspec import UNSET, UnsetType

from nestor.aidb.ingest import MAX_NAME, Source
from nestor.aidb.verify import Verified
from nestor.errors import InvalidInput
from nestor.model.knowledge import (
    Added,
    Collection,
    ContextRequest,
    ContextResult,
    Document,
    Metadata,
    NewDocument,
    PathPrefix,
    Projects,
    Shelves,
    Skill,
    Where,
)
from nestor.web import mcp
from nestor.web.auth import charge_to
from nestor.web.errors import decode
from nestor.web.views import Reindexed, Several, Shelf, SkillChanged, SkillList
from nestor.wiring import Nestor

_MAX_ITEMS = _PAGE = 1_000
_Name = Annotated[str, Parameter(min_length=1, max_length=MAX_NAME)]
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
    collections: Shelves | None = None
    projects: Projects | None = None
    path_prefix: PathPrefix | None = None
    metadata: Metadata | None = None
    leg: str = "fused"
    """``fused``, ``bm25`` or ``dense`` (the index alone), or ``fulltext`` (SQL alone)."""

    def where(self) -> Where:
        """Return what the hits must be of."""
        return Where(
            collections=self.collections,
            projects=self.projects,
            path_prefix=self.path_prefix,
            metadata=self.metadata,
        )


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
        data.query, limit=data.limit, where=data.where(), leg=data.leg
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


@put(
    "/documents/file",
    opt={
        **_WRITE,
        "replies": {200: Added, 201: Added},
        "raw_body": "application/octet-stream",
    },
)
async def add_file(
    request: Request[Any, Any, Any],
    project: _Name,
    path: _Name,
    collection: Collection = Collection.CODEBASE_CONTEXT,
    metadata: str = "{}",
) -> Response[Added]:
    """Remember a file, sent as it is: text in any encoding, code, HTML or PDF.

    ``path`` says what it is, else the Content-Type, else how it begins. ``metadata``: a
    JSON object of texts. 201, or 200 when nothing changed.
    """
    nestor: Nestor = request.app.state.nestor
    told = _metadata(metadata)
    async with nestor.spool.take(request.stream()) as file:
        source = Source(
            project=project,
            path=path,
            collection=collection,
            metadata=told,
            content_hash=file.content_hash,
            size_bytes=file.size_bytes,
        )
        media = request.headers.get("content-type")
        added = await nestor.aidb.documents.add_file(file.path, source, media=media)
    return Response(added, status_code=200 if added.unchanged else 201)


@get("/documents", opt=_READ)
async def documents(
    request: Request[Any, Any, Any],
    project: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Parameter(ge=1, le=_PAGE)] = _PAGE,
) -> Shelf:
    """List documents by project and path, with the hash of each, and count all.

    ``after``: ``next`` of the reply before.
    """
    nestor: Nestor = request.app.state.nestor
    found, last = await nestor.aidb.documents.page(
        project=project, after=_place(after), limit=limit
    )
    return {
        "documents": found,
        "counts": await nestor.aidb.counts(),
        "next": None if last is None else _token(last),
    }


@get("/documents/{document_id:str}", opt=_READ)
async def document(request: Request[Any, Any, Any], document_id: str) -> Document:
    """Read what is known of one document; its text comes with ``/search``."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.documents.get(document_id)


@delete("/documents/{document_id:str}", status_code=204, opt=_WRITE)
async def forget(request: Request[Any, Any, Any], document_id: str) -> None:
    """Forget one document."""
    nestor: Nestor = request.app.state.nestor
    await nestor.aidb.documents.delete(document_id)


@post("/skills", status_code=200, opt=_WRITE)
async def add_skill(request: Request[Any, Any, Any], data: Skill) -> SkillChanged:
    """Store or replace a learned pattern; it is found while its status is ``active``."""
    nestor: Nestor = request.app.state.nestor
    return {"id": data.id, "changed": await nestor.aidb.skills.put(data)}


@get("/skills", opt=_READ)
async def skills(request: Request[Any, Any, Any]) -> SkillList:
    """List learned patterns of every status, newest first (1,000 at most)."""
    nestor: Nestor = request.app.state.nestor
    return {"skills": await nestor.aidb.skills.all(limit=_PAGE)}


@get("/skills/{skill_id:str}", opt=_READ)
async def skill(request: Request[Any, Any, Any], skill_id: str) -> Skill:
    """Read one learned pattern."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.skills.get(skill_id)


@post("/skills/{skill_id:str}/retire", status_code=200, opt=_WRITE)
async def retire(request: Request[Any, Any, Any], skill_id: str) -> Skill:
    """Let a learned pattern be found no more; it is kept."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.skills.retire(skill_id)


@post("/verify", status_code=200, opt=_READ)
async def verify(request: Request[Any, Any, Any]) -> Verified:
    """Compare SQL, the search index and the vectors, chunk by chunk."""
    nestor: Nestor = request.app.state.nestor
    return await nestor.aidb.verify()


@post("/reindex", status_code=200, opt=_WRITE)
async def reindex(request: Request[Any, Any, Any]) -> Reindexed:
    """Fill a new search index from SQL while the old one answers; replies when it took over."""
    nestor: Nestor = request.app.state.nestor
    return {"chunks": await nestor.aidb.reindex()}


def handlers() -> list[HTTPRouteHandler]:
    """Return every route of the layer."""
    return [
        context,
        search,
        add,
        add_file,
        documents,
        document,
        forget,
        add_skill,
        skills,
        skill,
        retire,
        verify,
        reindex,
        mcp.handler("aidb", scope="read"),
    ]


def _metadata(given: str) -> dict[str, str]:
    try:
        return decode(given.encode(errors="replace"), dict[str, str])
    except InvalidInput as error:
        message = f"a JSON object of texts is needed: {error}"
        raise InvalidInput.at("metadata", message) from None


def _token(last: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(last)).decode()


def _place(token: str | None) -> tuple[str, str] | None:
    if token is None:
        return None
    try:
        raw = base64.b64decode(token.encode(errors="replace"), b"-_", validate=True)
        return msgspec.json.decode(raw, type=tuple[str, str])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        message = "not what an earlier reply gave as next"
        raise InvalidInput.at("after", message) from error


def _several(data: AddDocuments) -> Sequence[NewDocument]:
    for name in ("project", "path", "content", "collection", "metadata"):
        if getattr(data, name) is not UNSET:
            raise InvalidInput.at(name, "not beside items")
    assert data.items is not UNSET
    if not 1 <= len(data.items) <= _MAX_ITEMS:
        raise InvalidInput.at("items", f"must be 1 to {_MAX_ITEMS} documents")
    return data.items
