"""A stand-in for a Qdrant server: real HTTP, answered by qdrant-client's in-memory mode.

No Qdrant server can be had here. Each request is held against the models that Qdrant
generates from its published OpenAPI (unknown fields are refused there) before it is
answered, and written down. ``script`` answers instead, byte for byte, for what goes wrong.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, TypeAdapter
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.models import models as generated

Script = Callable[["Request"], Awaitable[bytes]]


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class _Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    options: frozenset[str]
    body: Any
    answer: Callable[["QdrantStandIn", str, Any], Awaitable[Any]]


class QdrantStandIn:
    def __init__(self) -> None:
        self.client = AsyncQdrantClient(location=":memory:")
        self.requests: list[Request] = []
        self.refused: list[str] = []
        """What did not follow the OpenAPI."""
        self.script: Script | None = None
        self.version = "1.19.0"
        self.base_url = ""

    @property
    def asked(self) -> list[str]:
        """``METHOD /path`` of every request."""
        return [f"{r.method} {r.path}" for r in self.requests]

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                if self.script is not None:
                    writer.write(await self.script(request))
                else:
                    writer.write(await self._answer(request))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request) -> bytes:
        for route in _ROUTES:
            match = route.path.fullmatch(request.path)
            if match is None or route.method != request.method:
                continue
            name = match.groupdict().get("name", "")
            try:
                unknown = request.query.keys() - route.options
                assert not unknown, f"no such options: {unknown}"
                body = _parsed(route.body, request.body)
            except (ValueError, AssertionError) as error:
                return self._refuse(request, str(error))
            try:
                result = await route.answer(self, name, body)
            except ValueError as error:
                status = 404 if "not found" in str(error) else 400
                return reply(status, {"status": {"error": str(error)}, "time": 0.0})
            if route.path.pattern == "/":
                return reply(200, result)
            return reply(200, {"result": _plain(result), "status": "ok", "time": 0.0})
        return self._refuse(request, "no such route")

    def _refuse(self, request: Request, why: str) -> bytes:
        self.refused.append(f"{request.method} {request.path}: {why}")
        return reply(400, {"status": {"error": why}, "time": 0.0})


def reply(
    status: int, body: object, *headers: str, kind: str = "application/json"
) -> bytes:
    """A whole reply; ``body``: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data)}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


@asynccontextmanager
async def qdrant_stand_in() -> AsyncIterator[QdrantStandIn]:
    """Run one until the end of the block; nothing it was asked may be against the OpenAPI."""
    stand_in = QdrantStandIn()
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(stand_in.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0, limit=2**26)
    port = server.sockets[0].getsockname()[1]
    stand_in.base_url = f"http://127.0.0.1:{port}"
    try:
        yield stand_in
        assert stand_in.refused == []
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stand_in.client.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.split("\r\n")
    method, target, _ = line.split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (one.partition(":") for one in lines if one)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Request(method, parts.path, parse_qs(parts.query), headers, body)


def _parsed(model: Any, body: bytes) -> Any:
    if model is None:
        assert body == b"", "no body belongs here"
        return None
    return TypeAdapter(model).validate_json(body)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return json.loads(value.model_dump_json())
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


async def _root(server: QdrantStandIn, _: str, __: Any) -> Any:
    return {"title": "qdrant - vector search engine", "version": server.version}


async def _aliases(server: QdrantStandIn, _: str, __: Any) -> Any:
    return await server.client.get_aliases()


async def _change_aliases(server: QdrantStandIn, _: str, body: Any) -> Any:
    return await server.client.update_collection_aliases(body.actions)


async def _collections(server: QdrantStandIn, _: str, __: Any) -> Any:
    return await server.client.get_collections()


async def _collection(server: QdrantStandIn, name: str, _: Any) -> Any:
    return await server.client.get_collection(name)


async def _create(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.create_collection(
        name,
        vectors_config=body.vectors,
        sparse_vectors_config=body.sparse_vectors,
        metadata=body.metadata,
    )


async def _update(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.update_collection(name, metadata=body.metadata)


async def _delete(server: QdrantStandIn, name: str, _: Any) -> Any:
    return await server.client.delete_collection(name)


async def _field_index(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.create_payload_index(
        name, body.field_name, field_schema=body.field_schema
    )


async def _upsert(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.upsert(name, body.points)


async def _vectors(server: QdrantStandIn, name: str, body: Any) -> Any:
    await server.client.update_vectors(name, body.points)
    return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)


async def _delete_points(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.delete(name, points_selector=body)


async def _retrieve(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.retrieve(
        name, body.ids, with_payload=body.with_payload, with_vectors=body.with_vector
    )


async def _scroll(server: QdrantStandIn, name: str, body: Any) -> Any:
    records, after = await server.client.scroll(
        name,
        limit=body.limit,
        offset=body.offset,
        with_payload=body.with_payload,
        with_vectors=body.with_vector,
    )
    return models.ScrollResult(points=records, next_page_offset=after)


async def _count(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.count(name, exact=body.exact)


async def _query(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.query_points(
        name, query=body.query, limit=body.limit, with_payload=body.with_payload
    )


async def _query_batch(server: QdrantStandIn, name: str, body: Any) -> Any:
    return await server.client.query_batch_points(name, body.searches)


_NAME = r"/collections/(?P<name>[A-Za-z0-9_-]+)"
_WRITE = frozenset({"wait", "ordering", "timeout"})
_READ = frozenset({"consistency", "timeout"})
_NONE: frozenset[str] = frozenset()


def _route(
    method: str, path: str, options: frozenset[str], body: Any, answer: Any
) -> _Route:
    return _Route(method, re.compile(path), options, body, answer)


_ROUTES = (
    _route("GET", "/", _NONE, None, _root),
    _route("GET", "/aliases", _NONE, None, _aliases),
    _route(
        "POST",
        "/collections/aliases",
        frozenset({"timeout"}),
        generated.ChangeAliasesOperation,
        _change_aliases,
    ),
    _route("GET", "/collections", _NONE, None, _collections),
    _route("GET", _NAME, _NONE, None, _collection),
    _route("PUT", _NAME, frozenset({"timeout"}), generated.CreateCollection, _create),
    _route("PATCH", _NAME, frozenset({"timeout"}), generated.UpdateCollection, _update),
    _route("DELETE", _NAME, frozenset({"timeout"}), None, _delete),
    _route("PUT", f"{_NAME}/index", _WRITE, generated.CreateFieldIndex, _field_index),
    _route("PUT", f"{_NAME}/points", _WRITE, generated.PointInsertOperations, _upsert),
    _route("PUT", f"{_NAME}/points/vectors", _WRITE, generated.UpdateVectors, _vectors),
    _route(
        "POST",
        f"{_NAME}/points/delete",
        _WRITE,
        generated.PointsSelector,
        _delete_points,
    ),
    _route("POST", f"{_NAME}/points", _READ, generated.PointRequest, _retrieve),
    _route("POST", f"{_NAME}/points/scroll", _READ, generated.ScrollRequest, _scroll),
    _route("POST", f"{_NAME}/points/count", _READ, generated.CountRequest, _count),
    _route("POST", f"{_NAME}/points/query", _READ, generated.QueryRequest, _query),
    _route(
        "POST",
        f"{_NAME}/points/query/batch",
        _READ,
        generated.QueryRequestBatch,
        _query_batch,
    ),
)
