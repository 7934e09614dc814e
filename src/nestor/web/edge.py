"""The gate in front of every layer: what comes in, what goes out, in what order.

A request is refused before its body is read: first for how it is addressed (target, Host,
Origin), then for who sends it (``auth``), then for how much it carries. No middleware of
a framework does this here: those hold streams back and hide cancellation.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from nestor.errors import Forbidden, InvalidInput, TooLarge
from nestor.model.ids import new_trace_id
from nestor.telemetry.access_log import AccessLog
from nestor.telemetry.http_metrics import counts_of
from nestor.telemetry.trace import enter, leave, parse_traceparent
from nestor.web import auth, wire
from nestor.web.auth import Sent
from nestor.web.errors import Headers, Refused, render
from nestor.web.headers import SECURITY_BLOCK, SECURITY_HEADERS, SECURITY_NAMES
from nestor.web.reply import BLOCK
from nestor.web.target import METHODS, check_target
from nestor.web.wire import Address, Lingering, Room

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Render = Callable[[Exception, str], tuple[int, Headers, bytes]]
"""From an exception and a trace id to status, headers and body."""

MAX_BODY_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 32 << 20
MAX_MODEL_BODY_BYTES = 8 << 20
LARGE_BODIES = {
    "/documents": MAX_DOCUMENT_BYTES,
    "/documents/file": MAX_DOCUMENT_BYTES,
    # A long conversation of an agent, with pictures in it.
    "/v1/chat/completions": MAX_MODEL_BODY_BYTES,
    "/v1/messages": MAX_MODEL_BODY_BYTES,
    "/v1/responses": MAX_MODEL_BODY_BYTES,
    "/v1/embeddings": MAX_MODEL_BODY_BYTES,
}
MAX_IN_FLIGHT = 512
"""Requests of one layer at one time; of those that need no key as many more."""
_ALWAYS = b"/health/"

OWN_SITES = frozenset({"same-origin", "none"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]", "nestor.localhost"})

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ADDRESSING = frozenset({b"origin", b"sec-fetch-site", b"content-encoding", b"transfer-encoding"})  # fmt: skip
_READ = _ADDRESSING | auth.CREDENTIALS | {b"host", b"content-length", b"traceparent"}
_MAX_KNOWN_HOSTS = 64


class Edge:
    """One layer's gate. ``drain`` makes endless replies end; the rest may finish."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        layer: str,
        authenticate: Callable[[Scope, Sent], Awaitable[None]],
        allowed_hosts: Iterable[str] = (),
        refuse_target: Callable[[bytes], None] = lambda _: None,
        access_log: AccessLog | None = None,
        renderers: Mapping[str, Render] | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``allowed_hosts``: more names a Host may carry, each with or without a port.

        ``refuse_target`` raises for a request-target that the layer does not want to see;
        it is given the bytes as they were sent. ``renderers``: for paths whose errors are
        no problems (RFC 9457) but have a shape of their own.
        """
        self._app = app
        self._layer = layer
        self._authenticate = authenticate
        self._hosts = frozenset(h.lower() for h in allowed_hosts)
        self._refuse_target = refuse_target
        self._access = access_log or AccessLog()
        self._renderers = renderers or {}
        self._timer = timer
        self._known_hosts: set[tuple[bytes, int | None]] = set()
        self._counts = counts_of(layer)
        self._known, self._strangers = Room(MAX_IN_FLIGHT), Room(MAX_IN_FLIGHT)
        self._lingering = Lingering()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End the streams that would never end by themselves."""
        self._draining.set()
        self._access.flush()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises what a request caused."""
        if scope["type"] != "http":
            return
        began = self._timer()
        exchange = _Exchange(scope, receive, send, self._draining, self._lingering)
        token = enter(exchange.trace_id)
        try:
            await self._serve(scope, exchange)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499
            if not exchange.is_gone():
                raise
        finally:
            leave(token)
            exchange.leave_room()
            self._note(scope, exchange, self._timer() - began)

    async def _serve(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            check_target(scope, self._refuse_target)
            self._check_headers(exchange.sent, (scope.get("server") or (None, None))[1])
            exchange.addressed = True
            await self._authenticate(scope, exchange.sent)
            self._find_room(scope, exchange)
            exchange.check_announced()
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            said = self._renderers.get(scope["path"], render)
            status, headers, body = said(error, exchange.trace_id)
            if not exchange.status:
                await exchange.reply(status, headers, body)
        else:
            await exchange.finish()

    def _find_room(self, scope: Scope, exchange: "_Exchange") -> None:
        # Strangers must not take the places of those who have a key, nor make the layer
        # look dead; how many of them there are at all is bounded by the connections.
        room = self._known
        if scope.get("user") is None:
            if scope["raw_path"].startswith(_ALWAYS):
                return
            room = self._strangers
        if not room.enter():
            raise Refused(503, "too many requests at once", retry_after_s=1)
        exchange.room = room

    def _check_headers(self, sent: Sent, port: int | None) -> None:
        hosts = sent.get(b"host", ())
        if len(hosts) != 1:
            raise Refused(400, "exactly one Host header is needed")
        if (hosts[0], port) not in self._known_hosts:
            self._learn_host(hosts[0], port)
        if not _ADDRESSING.isdisjoint(sent):
            self._check_others(
                {
                    name: [v.decode("latin-1").lower() for v in sent.get(name, ())]
                    for name in _ADDRESSING
                },
                port,
            )

    def _check_others(self, found: Mapping[bytes, list[str]], port: int | None) -> None:
        origins = found[b"origin"]
        if len(origins) > 1 or not all(self._is_our_origin(o, port) for o in origins):
            raise Forbidden("requests from pages of other origins are refused")
        if not OWN_SITES.issuperset(found[b"sec-fetch-site"]):
            raise Forbidden("requests from pages of other sites are refused")
        if any(coding != "chunked" for coding in found[b"transfer-encoding"]):
            raise Refused(400, "the only Transfer-Encoding read here is chunked")
        if any(coding != "identity" for coding in found[b"content-encoding"]):
            raise Refused(415, "send the body without a Content-Encoding")

    def _learn_host(self, host: bytes, port: int | None) -> None:
        """Raise ``Refused`` for a name that is not ours; the next time it is known."""
        if not self._is_ours(host.decode("latin-1").lower(), port):
            raise Refused(
                421,
                "this server is not known by that name; add it to NESTOR_ALLOWED_HOSTS",
            )
        if len(self._known_hosts) < _MAX_KNOWN_HOSTS:
            self._known_hosts.add((host, port))

    def _is_ours(
        self, host: str, port: int | None, *, default: int | None = None
    ) -> bool:
        """``default``: the port that a missing one stands for; None: any will do."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        if match[0] in self._hosts:
            return True
        given = int(match["port"]) if match["port"] else default
        if given is not None and given != port:
            return False
        return match["name"] in LOOPBACK_NAMES or match["name"] in self._hosts

    def _is_our_origin(self, origin: str, port: int | None) -> bool:
        scheme, separator, host = origin.partition("://")
        if not separator:
            return False
        if scheme == "https":  # only through a proxy, whose name the operator listed
            return host in self._hosts
        return scheme == "http" and self._is_ours(host, port, default=80)

    def note(
        self,
        method: str,
        path: bytes,
        status: int,
        client: Address | None,
        trace_id: str,
        took_s: float | None = None,
        key_id: str | None = None,
    ) -> None:
        """Note an answer; also of requests that came no further than the wire."""
        method = method if method in METHODS else "other"
        self._counts.answered(method, status)
        self._access.note(
            self._layer, method, path, status, took_s, key_id, trace_id, client
        )

    def _note(self, scope: Scope, exchange: "_Exchange", took_s: float) -> None:
        # A client that the wire answered saw none of ours.
        refused = scope.get(wire.REFUSED)
        status, trace_id = refused or (exchange.status or 500, exchange.trace_id)
        self._counts.took(took_s)
        user, client = scope.get("user"), scope.get("client")
        key_id = None if user is None else user.key_id
        path = scope["raw_path"]
        self.note(scope["method"], path, status, client, trace_id, took_s, key_id)


class _Exchange:
    """One request and its reply on their way through the gate."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        draining: asyncio.Event,
        lingering: Lingering,
    ) -> None:
        self.status = 0
        self.room: Room | None = None
        self._scope = scope
        self._on_our_wire = wire.CYCLE in (scope.get("extensions") or ())
        self._lingering = lingering
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._draining = draining
        self._limit = LARGE_BODIES.get(scope["path"], MAX_BODY_BYTES)
        sent: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                sent.setdefault(name, []).append(value)
        self.sent: Sent = sent
        """The headers that are read here and by ``auth``, each with all its values."""
        # The parser lets digits through only, and no second length.
        self._announced = (
            int(sent[b"content-length"][0]) if b"content-length" in sent else 0
        )
        self._chunked = b"transfer-encoding" in sent
        given = sent.get(b"traceparent")
        parent = parse_traceparent(given[0].decode("latin-1")) if given else None
        self.trace_id = parent or new_trace_id()
        self._received = 0
        self._read_whole = not (self._announced or self._chunked)
        self._endless = False
        self._complete = False
        self._closes = False
        self.addressed = False
        """False: what follows on this connection may not be what its sender meant."""

    def check_announced(self) -> None:
        """Raises ``TooLarge`` for a body that says it is too long."""
        if self._announced > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """Count what comes in. Raises ``TooLarge`` at the first byte over the limit."""
        if self._endless and self._read_whole:
            return await self._until_drained()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if not self._read_whole:
                raise InvalidInput("the client left before the body was complete")
            return message
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise self._too_large()
        if not message.get("more_body", False):
            self._read_whole = True
        return message

    async def send(self, message: Message) -> None:
        """Add what every reply carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = self._start(message)
        elif not message.get("more_body", False):
            self._complete = True
            if self._closes and not self._read_whole:
                await self._send({**message, "more_body": True})
                self.leave_room()
                await self._lingering.linger(self._receive)
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def is_gone(self) -> bool:
        """Tell whether the client has left, as far as the wire knows."""
        cycle = (self._scope.get("extensions") or {}).get(wire.CYCLE)
        return cycle is not None and bool(cycle.disconnected)

    def leave_room(self) -> None:
        """Give back the place that this request took, if any."""
        if self.room is not None:
            self.room.leave()
            self.room = None

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request that no service saw to its end."""
        await self.send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        body = b"" if self._method == "HEAD" else body
        await self.send({"type": "http.response.body", "body": body})

    async def finish(self) -> None:
        """Close the stream that ``drain`` cut, so that the client sees a clean end."""
        if self._endless and self._draining.is_set() and not self._complete:
            await self.send({"type": "http.response.body", "body": b""})

    async def _until_drained(self) -> Message:
        """Wait for the client to leave, or for the layer to stop."""
        gone = asyncio.ensure_future(self._receive())
        stop = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({gone, stop}, return_when=asyncio.FIRST_COMPLETED)
            return gone.result() if gone.done() else {"type": "http.disconnect"}
        finally:
            gone.cancel()
            stop.cancel()

    def _start(self, message: Message) -> Message:
        kept: Headers = []
        given: set[bytes] = set()
        kind = b""
        for name, value in message.get("headers", ()):
            name = name.lower()  # noqa: PLW2901 - of ten headers each request
            kept.append((name, value))
            if name == b"content-type":
                kind = value
            elif name in SECURITY_NAMES:
                given.add(name)
        # A GET that streams events goes on until somebody stops it; a model's answer
        # (POST) ends, and is worth waiting for.
        self._endless = self._method == "GET" and kind.startswith(b"text/event-stream")
        kept.append((b"x-trace-id", self.trace_id.encode()))
        # What is still to come has no bound: the connection cannot be used again.
        self._closes = not self._read_whole and (
            self._chunked or self._announced > self._limit
        )
        if self._closes or not self.addressed:
            kept.append((b"connection", b"close"))
        sent = {"type": message["type"], "status": self.status, "headers": kept}
        if self._on_our_wire and not given:
            sent[BLOCK] = SECURITY_BLOCK
        else:
            kept += [pair for pair in SECURITY_HEADERS if pair[0] not in given]
        return sent

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._limit} bytes")
