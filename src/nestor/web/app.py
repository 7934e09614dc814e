"""One ASGI application a layer: the service's own routes and those that all layers share."""

import asyncio
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

from litestar import Litestar, MediaType, Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, LitestarDeprecationWarning
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types.empty import Empty

from nestor.errors import InvalidInput
from nestor.ports.key_store import KeyStore
from nestor.ports.session_store import SessionStore
from nestor.telemetry import metrics
from nestor.telemetry.access_log import AccessLog
from nestor.web import auth, errors, health, openapi
from nestor.web.edge import Edge, Receive, Scope, Send
from nestor.web.health import Dependencies, Health

_BREAKER_STATES = ("closed", "half-open", "open")
_DOCS = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="color-scheme" content="light dark"><title>Nestor: {layer}</title>
<h1>Nestor: {layer}</h1>
<p>The interface is described in OpenAPI: <a href="/schema/openapi.json">/schema/openapi.json</a>.</p>
<pre>curl -H "Authorization: Bearer $(nestor key)" http://HOST:PORT/schema/openapi.json</pre>
<p>Health: /health/live, /health/ready, /health/startup (open), /health/detailed, /metrics.</p></html>"""


class Parts(Protocol):
    """What the shell itself needs of ``nestor.wiring.Nestor``."""

    @property
    def settings(self) -> Any:
        """``allowed_hosts``, and whatever the layer's handlers read."""
        ...

    @property
    def keys(self) -> KeyStore:
        """Keys that the admin made."""
        ...

    @property
    def api_key(self) -> str:
        """The admin's secret."""
        ...

    @property
    def service_key(self) -> str:
        """The secret by which layers of this process call each other; made at each start."""
        ...

    @property
    def sessions(self) -> SessionStore:
        """Browsers that were signed in to the page."""
        ...


class LayerApp:
    """An ASGI application with the two facts that its server tells it: started, stopping."""

    def __init__(
        self, layer: str, litestar: Litestar, edge: Edge, state: Health
    ) -> None:
        self.layer = layer
        self.litestar = litestar
        self.health = state
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._edge(scope, receive, send)

    def start(self, ports: dict[str, int]) -> None:
        """Say that the layer serves, and where all layers of this process listen."""
        self.litestar.state.ports = ports
        self.health.started = True

    def unready(self) -> None:
        """``/health/ready`` turns 503; all else is served as before."""
        self.health.draining = True

    def drain(self) -> None:
        """``/health/ready`` turns 503, endless streams end; other requests may finish."""
        self.health.draining = True
        self._edge.drain()

    def note_refusal(self, *refused: Any) -> None:
        """Note what was refused before it was a request (``wire.NoteRefusal``)."""
        self._edge.note(*refused)


class StrictRequest(Request[Any, Any, Any]):
    """Reads a JSON body straight into the type that the handler's ``data`` declares.

    Litestar's own way (decode to plain values, then convert leniently) would take ``"5"``
    for 5 and ``1`` for true. The content type does not matter: ``curl -d`` sends JSON too.
    """

    async def json(self) -> Any:
        """Raises ``InvalidInput`` that names the field."""
        if self._json is Empty:
            wanted = self.route_handler.parsed_fn_signature.parameters.get("data")
            of = Any if wanted is None else wanted.annotation
            self._json = errors.decode(await self.body(), of)
        return self._json


def create_app(
    layer: str,
    nestor: Parts,
    handlers: Sequence[HTTPRouteHandler | Router],
    *,
    dependencies: Dependencies,
    access_log: AccessLog | None = None,
    refuse_target: Callable[[bytes], None] = lambda _: None,
) -> LayerApp:
    """Build the application of ``layer`` over parts that are already running.

    Handlers find the parts at ``request.app.state.nestor`` and the caller at
    ``request.user``; ``opt={"scope": …}`` says which keys reach them.
    """
    state = Health(layer, dependencies, breakers=_breakers)
    gate = _Gate()
    with warnings.catch_warnings():
        # ``data: Body`` and ``phase: int`` without markers are served in all of 2.x.
        warnings.simplefilter("ignore", LitestarDeprecationWarning)
        litestar = Litestar(
            route_handlers=[*handlers, *health.handlers(state), *_shared(layer)],
            before_request=gate.check,
            exception_handlers={Exception: errors.handle, HTTPException: errors.handle},
            request_class=StrictRequest,
            # The edge counts bodies; two limits would answer in two ways.
            request_max_body_size=None,
            # ``web.openapi`` makes the document: this one would know no problems.
            openapi_config=None,
            logging_config=None,
            debug=False,
            pdb_on_exception=False,
        )
    litestar.state.nestor = nestor
    litestar.state.ports = {}
    gate.learn(litestar)
    routes = _Routes(litestar, gate)
    edge = Edge(
        routes,
        layer=layer,
        authenticate=auth.Authenticator(
            layer=layer,
            api_key=nestor.api_key,
            service_key=nestor.service_key,
            keys=nestor.keys,
            sessions=nestor.sessions,
            opened=open_targets(litestar),
            **_page_rules(layer, nestor, litestar),
        ),
        allowed_hosts=nestor.settings.allowed_hosts,
        access_log=access_log,
        renderers=routes.renderers,
        refuse_target=refuse_target,
    )
    return LayerApp(layer, litestar, edge, state)


def open_targets(litestar: Litestar) -> frozenset[auth.Target]:
    """Return what is reached without a key: exact paths of handlers with scope None."""
    return frozenset(
        (method, route.path.encode())
        for route in litestar.routes
        if isinstance(route, HTTPRoute) and not route.path_parameters
        for method, (handler, _) in route.route_handler_map.items()
        if auth.scopes_of(handler.opt) is None
    )


def _page_rules(layer: str, nestor: Parts, litestar: Litestar) -> dict[str, Any]:
    """Return what the page's layer alone has: sessions, and paths it does not serve."""
    if layer != auth.PAGE_LAYER:
        return {}
    served = re.compile(
        b"|".join(
            b"".join(b"/" + _segment(part) for part in route.path_components) or b"/"
            for route in litestar.routes
            if isinstance(route, HTTPRoute)
        )
    )
    return {
        "page_hosts": auth.page_hosts(nestor.settings),
        "serves": lambda raw_path: served.fullmatch(raw_path) is not None,
    }


def _segment(part: Any) -> bytes:
    return re.escape(part).encode() if isinstance(part, str) else b"[^/]+"


class _Routes:
    """Litestar, with a short way for paths without parameters.

    Which handler serves such a path is known beforehand; and what a handler raises
    becomes a problem in the edge, as it would in Litestar's own layers in between. A
    handler with ``opt={"asgi": make}`` is served by ``make(nestor)``, an ASGI
    application, and by itself only describes it. ``opt={"render": …}`` says errors of
    its path in a shape of their own, as such an application's ``render`` does.
    """

    def __init__(self, litestar: Litestar, gate: "_Gate") -> None:
        self._litestar: Any = litestar
        self._gate = gate
        self.plain = {
            path: handler.opt["asgi"](litestar.state.nestor)
            for path, handler in _plain_handlers(litestar)
        }
        self.renderers = {path: app.render for path, app in self.plain.items()}
        self._known: dict[tuple[str, str], tuple[Any, BaseRouteHandler]] = {
            (method, route.path): (route.handle, handler)
            for route in litestar.routes
            if isinstance(route, HTTPRoute) and not route.path_parameters
            for method, (handler, _) in route.route_handler_map.items()
        }
        self.renderers |= {
            path: handler.opt["render"]
            for (_, path), (_, handler) in self._known.items()
            if "render" in handler.opt
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        known = self._known.get((scope["method"], scope["path"]))
        if known is None:
            await self._litestar(scope, receive, send)
            return
        serve, handler = known
        scope["route_handler"] = handler
        scope["app"] = scope["litestar_app"] = self._litestar
        scope["path_template"] = scope["path"]
        scope["path_params"], scope["state"] = {}, {}
        if "asgi" in handler.opt:
            self._gate.check_scope(scope)
            serve = self.plain[scope["path"]]
        await serve(scope, receive, send)


def _plain_handlers(litestar: Litestar) -> Iterator[tuple[str, BaseRouteHandler]]:
    for route in litestar.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if "asgi" in handler.opt:
                    yield route.path, handler


class _Gate:
    """In front of every handler, behind the router: the caller's scopes, then the query's names.

    Query parameters that a handler does not declare are errors, like unknown fields of a
    body; a handler that reads the query by itself says so with ``opt={"query": "any"}``.
    Neither guards nor middleware: for each of these Litestar does as much again at each
    request as all of the edge does.
    """

    def __init__(self) -> None:
        self._known: dict[BaseRouteHandler, frozenset[str]] = {}

    def learn(self, litestar: Litestar) -> None:
        """Take the names from the routes, once they are registered."""
        for route in litestar.routes:
            if isinstance(route, HTTPRoute):
                for handler, model in route.route_handler_map.values():
                    names = {p.field_alias for p in model.expected_query_params}
                    known = self._known.get(handler, frozenset())
                    self._known[handler] = known | names

    async def check(self, request: Request[Any, Any, Any]) -> None:
        """Runs before the body is read. Raises ``Unauthorized``, ``Forbidden``, ``InvalidInput``."""
        self.check_scope(cast("Any", request.scope))

    def check_scope(self, scope: Scope) -> None:
        """Do the same by the ASGI scope of a request."""
        handler = scope["route_handler"]
        auth.check_scope(scope, handler.opt)
        if not scope["query_string"] or handler.opt.get("query") == "any":
            return
        known = self._known.get(handler, frozenset())
        query: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(cast("Any", scope))
        for name in query.query_params:
            if name not in known:
                raise InvalidInput.at(name, "unknown query parameter")


def _shared(layer: str) -> list[HTTPRouteHandler]:
    @get(
        "/metrics",
        opt={
            "scope": ("metrics", "service"),
            "replies": {200: str},
            "media": ["text/plain"],
        },
    )
    async def scrape() -> Response[bytes]:
        """Tell this process's metrics, for Prometheus."""
        # Rendering takes milliseconds of pure Python: not on the loop that serves.
        body = await asyncio.to_thread(metrics.render)
        # As a media type it would be given a second charset.
        return Response(body, headers={"content-type": metrics.CONTENT_TYPE})

    @get(
        "/docs",
        opt={"scope": "read", "media": ["text/html"]},
        sync_to_thread=False,
    )
    def docs() -> Response[str]:
        """Say, for people, where the descriptions are."""
        return Response(_DOCS.format(layer=layer), media_type=MediaType.HTML)

    return [scrape, docs, openapi.handler(layer)]


def _breakers() -> dict[str, str]:
    """Each circuit breaker that has reported a state in this process."""
    return {
        sample.labels["name"]: _BREAKER_STATES[int(sample.value)]
        for metric in metrics.BREAKER_STATE.collect()
        for sample in metric.samples
    }
