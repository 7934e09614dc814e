"""Each layer's OpenAPI document, made from its routes: what they take and all they answer.

A handler's signature gives the body, the query and the usual reply. What a signature
cannot say stands in the handler's ``opt``:

- ``raises``: what it ends with besides what every call can: an exception or a status;
- ``replies``: ``{status: type}`` of successes, and of a 503 with a body of its own; a
  tuple of types where there are several, None where there is no body;
- ``body``: the type of a body that the handler reads without one (OpenAI's shapes);
- ``raw_body``: content type of a body that is no JSON, whatever it holds;
- ``media``: content types of success, when they are not the handler's own;
- ``reply_headers``: names of headers, each of which may be absent;
- ``request_headers``: ``{name: schema}`` of headers that mean something to this call;
- ``dialect``: errors have the shape of that dialect of models.

Statuses come from ``errors.STATUS``, so that a document cannot say another than is sent.
500 is in no document: it is a bug, whoever asks.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args, get_origin

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from nestor import __version__, errors
from nestor.model.ids import TASK_ID
from nestor.web import auth, schemas
from nestor.web.errors import STATUS, Problem

Json = dict[str, Any]

MEDIA_TYPE = "application/vnd.oai.openapi+json"
_VERSION = "3.1.0"
_JSON = "application/json"
_PROBLEM = "application/problem+json"

EVERY_CALL = (400, 403, 408, 413, 414, 415, 421, 431, 503)
"""What ``web.edge`` answers by itself, whatever is asked: see ``_WHY``."""
KEYED_CALL = (401,)
PATH_CALL = (404,)

_WHY = {
    400: "The request cannot be read or served as written; ``errors`` names the fields.",
    401: "No key, or one that nobody knows.",
    402: "The money, the tokens or the time granted are spent.",
    403: "The key's scopes do not reach this, or a page of another origin asks.",
    404: "Nothing is there.",
    408: "The request did not arrive in time.",
    409: "The state is not what the request takes it to be.",
    413: "The body is over the limit.",
    414: "The request target is too long.",
    415: "The body has a Content-Encoding.",
    421: "The Host is not one of this server's names.",
    429: "Too many requests; ``retry-after`` says when to come back.",
    431: "Too many headers, or too long.",
    502: "What was asked in turn answered with an error.",
    503: "A part that is needed does not answer, or the server is busy; try again later.",
    504: "What was asked in turn did not answer in time.",
}
_DONE = {200: "Done.", 201: "Made.", 202: "Accepted.", 204: "Done; there is no body."}
_HEADERS: dict[str, Json] = {
    "x-trace-id": {
        "description": "Under this id the request stands in the logs.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "retry-after": {
        "description": "Seconds to wait.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "www-authenticate": {
        "description": "How to send a key.",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
}
_OF_STATUS = {401: "www-authenticate", 429: "retry-after", 503: "retry-after"}
_EVENT: Json = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}
_DIALECT_ERROR: Json = {
    "type": "object",
    "description": "An error in the dialect's own shape.",
    "properties": {"error": {"type": "object"}},
    "required": ["error"],
}
"""Problems come from the wire alone there: of messages that are no HTTP."""
_IDS: Json = {"task_id": {"pattern": f"^{TASK_ID.pattern}$"}}
"""What the ids in paths look like; of the others only their maker knows the form."""


def handler(layer: str) -> HTTPRouteHandler:
    """Return the route of the document; it is made once, when it is first asked for."""

    @functools.cache
    def rendered(app: Litestar) -> bytes:
        return msgspec.json.encode(document(app, layer))

    @get(
        "/schema/openapi.json",
        opt={"scope": "read", "replies": {200: dict[str, Any]}, "media": [MEDIA_TYPE]},
        sync_to_thread=False,
    )
    def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Describe this layer's calls, for programs."""
        return Response(rendered(request.app), media_type=MEDIA_TYPE)

    return openapi


def document(app: Litestar, layer: str) -> Json:
    """Return the OpenAPI document of every route of ``app``."""
    found = list(_operations(app))
    types = list(dict.fromkeys(t for _, _, call in found for t in call.types()))
    known, parts = schemas.of(types, Problem)
    paths: dict[str, Json] = {}
    statuses: set[int] = set()
    for path, method, call in found:
        statuses |= call.problems()
        paths.setdefault(path, {})[method] = call.described(known)
    return {
        "openapi": _VERSION,
        "info": {"title": f"Nestor {layer}", "version": __version__},
        "paths": paths,
        "security": [{"bearer": []}, {"key": []}],
        "components": {
            "schemas": parts,
            "responses": {_name(s): _problem(s) for s in sorted(statuses)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "name": "X-API-Key", "in": "header"},
            },
        },
    }


class Call:
    """One operation: a method on a path, as its handler declares it."""

    def __init__(self, route: HTTPRoute, method: Any) -> None:
        self._handler, self._model = route.route_handler_map[method]
        self._method = method.lower()
        self._path = route.path_format
        self._ids = list(route.path_parameters)
        self._opt = self._handler.opt
        data = self._handler.parsed_fn_signature.parameters.get("data")
        self._body = self._opt.get("body", data.annotation if data else None)
        self._optional_body = data is not None and type(None) in get_args(self._body)
        self._replies: dict[int, Any] = self._opt.get("replies") or {
            self._handler.status_code: _unwrapped(
                self._handler.parsed_fn_signature.return_type.annotation
            )
        }
        self._query = list(self._declared())

    def types(self) -> Iterator[Any]:
        """Every type that needs a schema."""
        if self._body is not None:
            yield self._body
        for of in self._replies.values():
            yield from () if of is None else _each(of)
        yield from (of for _, of, _, _ in self._query)

    def problems(self) -> set[int]:
        """Statuses that come with a problem."""
        found = {*EVERY_CALL, *map(_status, self._opt.get("raises", ()))}
        if not self._is_open():
            found |= set(KEYED_CALL)
        if self._ids:
            found |= set(PATH_CALL)
        return found

    def described(self, known: Mapping[Any, Json]) -> Json:
        """Return the operation object."""
        told: Json = {
            "operationId": _slug(f"{self._method}-{self._path}"),
            "summary": self._handler.handler_name.replace("_", " ").capitalize(),
            "description": (self._handler.fn.__doc__ or "").strip(),
            "responses": self._responses(known),
        }
        if self._is_open():
            told["security"] = []
        if parameters := [*self._path_parameters(), *self._parameters(known)]:
            told["parameters"] = parameters
        if self._body is not None:
            told["requestBody"] = {
                "required": not self._optional_body,
                "content": {_JSON: {"schema": known[self._body]}},
            }
        if raw := self._opt.get("raw_body"):
            told["requestBody"] = {"required": True, "content": {raw: {}}}
        return told

    def _is_open(self) -> bool:
        return auth.scopes_of(self._opt) is None

    def _responses(self, known: Mapping[Any, Json]) -> Json:
        found: Json = {}
        headers = {"x-trace-id": _HEADERS["x-trace-id"]} | {
            name: {"schema": {"type": "string"}}
            for name in self._opt.get("reply_headers", ())
        }
        for status, of in self._replies.items():
            told: Json = {"description": _DONE.get(status, _WHY.get(status, ""))}
            told["headers"] = headers
            if of is not None:
                told["content"] = {
                    m: {"schema": _of_media(m, of, known)} for m in self._media()
                }
            found[str(status)] = told
        for status in sorted(self.problems()):
            if "dialect" in self._opt:
                found[str(status)] = _problem(status)
                found[str(status)]["content"][_JSON] = {"schema": _DIALECT_ERROR}
            elif str(status) in found:  # both are sent: the content type tells which
                found[str(status)]["content"] |= _problem(status)["content"]
            else:
                found[str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}
        return found

    def _media(self) -> Sequence[str]:
        media: Sequence[str] = self._opt.get("media", (_JSON,))
        return media

    def _path_parameters(self) -> Iterator[Json]:
        for name in self._ids:
            schema = {"type": "string", "minLength": 1, **_IDS.get(name, {})}
            yield {"name": name, "in": "path", "required": True, "schema": schema}

    def _parameters(self, known: Mapping[Any, Json]) -> Iterator[Json]:
        for name, of, required, bounds in self._query:
            schema = schemas.narrowed(known[of], bounds)
            yield {"name": name, "in": "query", "required": required, "schema": schema}
        for name, schema in self._opt.get("request_headers", {}).items():
            yield {"name": name, "in": "header", "required": False, "schema": schema}

    def _declared(self) -> Iterator[tuple[str, Any, bool, Json]]:
        """Yield name, type, whether it is needed, and bounds of each query parameter."""
        signatures = [
            self._handler.parsed_fn_signature,
            *(
                p.parsed_fn_signature
                for p in self._handler.resolve_dependencies().values()
            ),
        ]
        fields = {n: f for s in signatures for n, f in s.parameters.items()}
        for wanted in sorted(
            self._model.expected_query_params, key=lambda p: p.field_alias
        ):
            field = fields[wanted.field_name]
            bounds = _bounds(field.kwarg_definition)
            if wanted.default is not None:
                bounds["default"] = wanted.default
            of = _without_none(field.annotation)
            yield wanted.field_alias, of, wanted.is_required, bounds


def _operations(app: Litestar) -> Iterator[tuple[str, str, Call]]:
    for route in sorted(app.routes, key=lambda r: r.path):
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in sorted(route.route_handler_map.items()):
                if method == "OPTIONS" or not handler.resolve_include_in_schema():
                    continue
                yield route.path_format, method.lower(), Call(route, method)


def _status(raised: type[errors.NestorError] | int) -> int:
    return raised if isinstance(raised, int) else STATUS[raised]


def _unwrapped(annotation: Any) -> Any:
    """``Response[T]`` → T; no reply at all → None."""
    of = annotation
    if get_origin(annotation) is Response:
        (of,) = get_args(annotation)
    return None if of is type(None) else of


def _without_none(annotation: Any) -> Any:
    """Take None from a text: ``null`` in a query is four letters there, else it is None."""
    if not {str, type(None)} <= {*get_args(annotation)}:
        return annotation
    kept = [of for of in get_args(annotation) if of is not type(None)]
    return functools.reduce(lambda a, b: a | b, kept)


def _bounds(declared: Any) -> Json:
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum", "pattern": "pattern"}  # fmt: skip
    given = {name: getattr(declared, name, None) for name in names}
    found = {names[n]: value for n, value in given.items() if value is not None}
    return {**found, **(getattr(declared, "schema_extra", None) or {})}


def _of_media(media: str, of: Any, known: Mapping[Any, Json]) -> Json:
    if media == "text/event-stream":
        return _EVENT
    if not media.endswith("json"):
        return {"type": "string"}
    several = [known[one] for one in _each(of)]
    return several[0] if len(several) == 1 else {"anyOf": several}


def _each(of: Any) -> tuple[Any, ...]:
    """Several types stand in a tuple: msgspec knows no union of two objects."""
    return of if isinstance(of, tuple) else (of,)


def _problem(status: int) -> Json:
    headers = {
        name: _HEADERS[name] for name in ("x-trace-id", _OF_STATUS.get(status)) if name
    }
    schema = {"$ref": schemas.REF.format(name="Problem")}
    return {
        "description": _WHY.get(status, HTTPStatus(status).phrase),
        "headers": headers,
        "content": {_PROBLEM: {"schema": schema}},
    }


def _name(status: int) -> str:
    return _slug(HTTPStatus(status).phrase)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
