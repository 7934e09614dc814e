"""The gate in front of every layer: what comes in, what goes out, in what order.

A request is refused before its body is read: first for how it is addressed (target, Host,
Origin), then for who sends it (``auth``), then for how much it carries. No middleware of
a framework does this here: those hold streams back and hide cancellation.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote_plus

from nestor.errors import Forbidden, InvalidInput, TooLarge
from nestor.model.ids import new_trace_id
from nestor.telemetry import metrics
from nestor.telemetry.logs import get_logger
from nestor.telemetry.trace import parse_traceparent, trace
from nestor.web.errors import Headers, Refused, render
from nestor.web.headers import SECURITY_HEADERS
from nestor.web.protocol import target_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 32 << 20
LARGE_BODIES = frozenset({"/documents"})
MAX_TARGET_BYTES = 8 << 10
LINGER_S = 2.0
LINGER_BYTES = 64 * 1024 * 1024
"""How much of a refused body is thrown away before the connection is closed."""
MAX_IN_FLIGHT = 512
"""Requests of one layer at one time."""

OWN_SITES = frozenset({"same-origin", "none"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]", "nestor.localhost"})
KEY_NAMES = frozenset({"api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token"})  # fmt: skip

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ODD_PATH = re.compile(
    rb"//|/\.\.?(?:/|$)|\\|%(?:2f|5c|[01][0-9a-f]|7f)", re.IGNORECASE
)
_DOTS = re.compile(r"/\.\.?(?:/|$)")

_CHECKED = (
    b"host",
    b"origin",
    b"sec-fetch-site",
    b"content-encoding",
    b"transfer-encoding",
)

_access = get_logger("nestor.access")


class Edge:
    """One layer's gate. ``drain`` makes endless replies end; the rest may finish."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        layer: str,
        authenticate: Callable[[Scope], Awaitable[None]],
        allowed_hosts: Iterable[str] = (),
        refuse_target: Callable[[bytes], None] = lambda _: None,
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
        self._timer = timer
        self._in_flight = 0
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End the streams that would never end by themselves."""
        self._draining.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises what a request caused."""
        if scope["type"] != "http":
            return
        began = self._timer()
        exchange = _Exchange(scope, receive, send, self._draining)
        self._in_flight += 1
        try:
            with trace(exchange.trace_id):
                await self._serve(scope, exchange)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499
            raise
        finally:
            self._in_flight -= 1
            self._note(scope, exchange, self._timer() - began)

    async def _serve(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            self._check_room()
            check_target(scope, self._refuse_target)
            self._check_headers(
                scope["headers"], (scope.get("server") or (None, None))[1]
            )
            await self._authenticate(scope)
            exchange.check_announced()
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            status, headers, body = render(error, exchange.trace_id)
            if not exchange.status:
                await exchange.reply(status, headers, body)
        else:
            await exchange.finish()

    def _check_room(self) -> None:
        if self._in_flight > MAX_IN_FLIGHT:
            raise Refused(503, "too many requests at once", retry_after_s=1)

    def _check_headers(self, headers: Headers, port: int | None) -> None:
        found: dict[bytes, list[str]] = {name: [] for name in _CHECKED}
        for name, value in headers:
            if name in found:
                found[name].append(value.decode("latin-1").lower())
        hosts, origins = found[b"host"], found[b"origin"]
        if len(hosts) != 1:
            raise Refused(400, "exactly one Host header is needed")
        if not self._is_ours(hosts[0], port):
            raise Refused(421, "this server is not known by that name (ALLOWED_HOSTS)")
        if len(origins) > 1 or not all(self._is_our_origin(o, port) for o in origins):
            raise Forbidden("requests from pages of other origins are refused")
        if not OWN_SITES.issuperset(found[b"sec-fetch-site"]):
            raise Forbidden("requests from pages of other sites are refused")
        if any(coding != "chunked" for coding in found[b"transfer-encoding"]):
            raise Refused(400, "the only Transfer-Encoding read here is chunked")
        if any(coding != "identity" for coding in found[b"content-encoding"]):
            raise Refused(415, "send the body without a Content-Encoding")

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

    def _note(self, scope: Scope, exchange: "_Exchange", took_s: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        status = exchange.status or 500
        metrics.HTTP_REQUESTS.labels(self._layer, method, str(status)).inc()
        metrics.HTTP_SECONDS.labels(self._layer).observe(took_s)
        user = scope.get("user")
        # The path as it was sent (ASCII, escaped), cut, and never the query's values.
        _access.info(
            "request",
            layer=self._layer,
            method=method,
            path=scope["raw_path"][:200].decode("latin-1"),
            status=status,
            duration_ms=round(took_s * 1000, 2),
            key_id=getattr(user, "key_id", None),
            trace_id=exchange.trace_id,
        )


class _Exchange:
    """One request and its reply on their way through the gate."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, draining: asyncio.Event
    ) -> None:
        self.trace_id = _trace_id_of(scope["headers"])
        self.status = 0
        self._method = scope["method"]
        self._receive = receive
        self._send = send
        self._draining = draining
        large = scope["path"] in LARGE_BODIES
        self._limit = MAX_DOCUMENT_BYTES if large else MAX_BODY_BYTES
        self._announced, self._chunked = _announced(scope["headers"])
        self._received = 0
        self._read_whole = not (self._announced or self._chunked)
        self._endless = False
        self._complete = False
        self._closes = False

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
        await self._send(message)

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request that no service saw to its end."""
        await self.send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        body = b"" if self._method == "HEAD" else body
        if self._closes:
            part = {"type": "http.response.body", "body": body, "more_body": True}
            await self.send(part)
            await self._linger()
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def _linger(self) -> None:
        """Throw away some of what is still being sent.

        Closing on a client that is busy sending resets the connection, and the reply that
        says why is lost with it (RFC 9112, 9.6).
        """
        thrown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while thrown < LINGER_BYTES:
                    message = await self._receive()
                    thrown += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break

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
        names = {name for name, _ in kept}
        kind = next((v for n, v in kept if n == b"content-type"), b"")
        # A GET that streams events goes on until somebody stops it; a model's answer
        # (POST) ends, and is worth waiting for.
        self._endless = self._method == "GET" and kind.startswith(b"text/event-stream")
        kept += [pair for pair in SECURITY_HEADERS if pair[0] not in names]
        kept.append((b"x-trace-id", self.trace_id.encode()))
        if not self._read_whole and (self._chunked or self._announced > self._limit):
            # What is still to come has no bound: the connection cannot be used again.
            kept.append((b"connection", b"close"))
            self._closes = True
        return kept

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._limit} bytes")


def check_target(
    scope: Scope, refuse: Callable[[bytes], None] = lambda _: None
) -> None:
    """Hold the request line to plain origin-form. Raises ``Refused``, ``InvalidInput``."""
    noted = target_of(scope)
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
    refuse(raw)
    path: str = scope["path"]
    # U+FFFD stands where the bytes were not UTF-8 (overlong forms of a slash or a dot).
    if (
        _ODD_PATH.search(raw.partition(b"?")[0])
        or _DOTS.search(path)
        or "\ufffd" in path
    ):
        raise Refused(404, "nothing is served at this path")
    for part in re.split(rb"[&;]", scope["query_string"]):
        name = unquote_plus(part.partition(b"=")[0].decode("latin-1"))
        if name.strip().lower() in KEY_NAMES:
            raise InvalidInput.at(
                name.strip().lower(),
                "keys are taken from headers only, never from the URL",
            )


def _trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"traceparent":
            return parse_traceparent(value.decode("latin-1")) or new_trace_id()
    return new_trace_id()


def _announced(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bool]:
    length, chunked = 0, False
    for name, value in headers:
        if name == b"content-length":
            length = int(value)  # the parser lets digits through only
        elif name == b"transfer-encoding":
            chunked = True
    return length, chunked
