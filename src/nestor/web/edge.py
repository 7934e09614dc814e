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
from urllib.parse import unquote_plus

from nestor.errors import Forbidden, InvalidInput, TooLarge
from nestor.model.ids import new_trace_id
from nestor.telemetry import metrics
from nestor.telemetry.access_log import AccessLog
from nestor.telemetry.trace import enter, leave, parse_traceparent
from nestor.web import auth, wire
from nestor.web.auth import Sent
from nestor.web.errors import Headers, Refused, render
from nestor.web.headers import SECURITY_HEADERS, SECURITY_NAMES
from nestor.web.wire import MAX_TARGET_BYTES, Address, Lingering, Room

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 32 << 20
LARGE_BODIES = frozenset({"/documents"})
MAX_IN_FLIGHT = 512
"""Requests of one layer at one time; of those that need no key as many more."""
_ALWAYS = b"/health/"

OWN_SITES = frozenset({"same-origin", "none"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]", "nestor.localhost"})
KEY_NAMES = frozenset({"api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token"})  # fmt: skip

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
# One spelling for each path: no slash at the end, nothing escaped that needs no escape.
_ODD_PATH = re.compile(
    rb"//|./$|/\.\.?(?:/|$)|\\|%(?:[01][0-9a-f]|2[def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef])",
    re.IGNORECASE,
)
_DOTS = re.compile(r"/\.\.?(?:/|$)")

_PLAIN_PATH = re.compile(rb"/(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*(?:/(?!$)|$))*")
"""What nearly every path looks like; any other is looked at closely."""
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
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``allowed_hosts``: more names a Host may carry, each with or without a port.

        ``refuse_target`` raises for a request-target that the layer does not want to see;
        it is given the bytes as they were sent.
        """
        self._app = app
        self._layer = layer
        self._authenticate = authenticate
        self._hosts = frozenset(h.lower() for h in allowed_hosts)
        self._refuse_target = refuse_target
        self._access = access_log or AccessLog()
        self._timer = timer
        self._known_hosts: set[tuple[bytes, int | None]] = set()
        self._counts: dict[tuple[str, int], Any] = {}
        self._seconds = metrics.HTTP_SECONDS.labels(layer)
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
            status, headers, body = render(error, exchange.trace_id)
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
        count = self._counts.get((method, status))
        if count is None:
            count = metrics.HTTP_REQUESTS.labels(self._layer, method, str(status))
            self._counts[method, status] = count
        count.inc()
        self._access.note(
            self._layer, method, path, status, took_s, key_id, trace_id, client
        )

    def _note(self, scope: Scope, exchange: "_Exchange", took_s: float) -> None:
        # A client that the wire answered saw none of ours.
        refused = scope.get(wire.REFUSED)
        status, trace_id = refused or (exchange.status or 500, exchange.trace_id)
        self._seconds.observe(took_s)
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
        self._lingering = lingering
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._draining = draining
        self._limit = (
            MAX_DOCUMENT_BYTES if scope["path"] in LARGE_BODIES else MAX_BODY_BYTES
        )
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
            message = {**message, "headers": self._headers(message.get("headers", []))}
        elif not message.get("more_body", False):
            self._complete = True
            if self._closes and not self._read_whole:
                await self._send({**message, "more_body": True})
                self.leave_room()
                await self._lingering.linger(self._receive)
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

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

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> Headers:
        kept = [(name.lower(), value) for name, value in given]
        own, kind = SECURITY_HEADERS, b""
        for name, value in kept:
            if name == b"content-type":
                kind = value
            elif name in SECURITY_NAMES:
                own = tuple(pair for pair in own if pair[0] != name)
        # A GET that streams events goes on until somebody stops it; a model's answer
        # (POST) ends, and is worth waiting for.
        self._endless = self._method == "GET" and kind.startswith(b"text/event-stream")
        kept += own
        kept.append((b"x-trace-id", self.trace_id.encode()))
        # What is still to come has no bound: the connection cannot be used again.
        self._closes = not self._read_whole and (
            self._chunked or self._announced > self._limit
        )
        if self._closes or not self.addressed:
            kept.append((b"connection", b"close"))
        return kept

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._limit} bytes")


def check_target(
    scope: Scope, refuse: Callable[[bytes], None] = lambda _: None
) -> None:
    """Hold the request line to plain origin-form. Raises ``Refused``, ``InvalidInput``."""
    noted = wire.target_of(scope)
    raw: bytes = noted["raw"]
    if scope["method"] not in METHODS:
        allow = ", ".join(sorted(METHODS))
        raise Refused(405, "this method is not served", allow=allow)
    if len(raw) > MAX_TARGET_BYTES:
        raise Refused(414, f"the request target is over {MAX_TARGET_BYTES} bytes")
    if noted["head_too_large"]:
        raise Refused(431, "too many headers, or too long")
    if not raw.startswith(b"/"):
        raise Refused(400, "only paths are served, not proxy requests")
    if noted["malformed"]:
        raise Refused(400, "this is not a valid HTTP/1.1 message")
    refuse(raw)
    if not _PLAIN_PATH.fullmatch(raw):
        _look_closely(raw, scope["path"])
    if not scope["query_string"]:
        return
    for part in re.split(rb"[&;]", scope["query_string"]):
        name = unquote_plus(part.partition(b"=")[0].decode("latin-1"))
        if name.strip().lower() in KEY_NAMES:
            raise InvalidInput.at(
                name.strip().lower(),
                "keys are taken from headers only, never from the URL",
            )


def _look_closely(raw: bytes, path: str) -> None:
    if b"#" in raw:
        raise Refused(400, "a request target has no fragment")
    raw_path = raw.partition(b"?")[0]
    # U+FFFD stands where the bytes were not UTF-8 (overlong forms of a slash or a dot).
    if _ODD_PATH.search(raw_path) or _DOTS.search(path) or "\ufffd" in path:
        raise Refused(404, "nothing is served at this path")
