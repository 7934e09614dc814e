"""AIDB's health and metrics at the dashboard: five fixed addresses, and nothing else.

Which request is passed on is decided on the request-target as it was sent, byte for byte;
no part of it is decoded, cut or put together into the address that is asked. Nothing of
the caller's request goes on, and of the reply only status, content type and body return.
"""

import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote_to_bytes

import aiohttp
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from yarl import URL

from nestor.errors import Forbidden, RateLimited, UpstreamError, UpstreamTimeout
from nestor.model.health import HealthReport
from nestor.ports.rate_limiter import RateLimiter
from nestor.telemetry.logs import get_logger
from nestor.telemetry.trace import traceparent
from nestor.web.client_address import ClientAddresses

PREFIX = "/aidb"
TIMEOUT_S = 2.0
"""For all of it: a connection of the pool, the reply, its last byte."""
MAX_CONNECTIONS = 10
KEEP_ALIVE_S = 15
"""Shorter than layers keep idle connections, so that none is used as it closes."""
MAX_HEALTH_BYTES = 1 << 20
MAX_METRICS_BYTES = 4 << 20

_PASSED_ON = frozenset({200, 503})
"""503 is how ``ready`` and ``startup`` say no; any other status is not AIDB's answer."""
_LAYERS_OWN = ("metrics", "read")
_KINDS = frozenset({"application/json", "text/plain", "application/openmetrics-text"})
_KIND = re.compile(r'[a-z/-]{1,40}(?:; ?[a-z]{1,20}="?[A-Za-z0-9._-]{1,40}"?){0,4}')
_SENT_BY_ITSELF = ("User-Agent", "Accept", "Accept-Encoding")

_log = get_logger("nestor.proxy")


class Page(NamedTuple):
    """One address of AIDB that the dashboard passes on."""

    path: str
    scope: str | tuple[str, ...] | None
    does: str
    max_bytes: int = MAX_HEALTH_BYTES
    replies: dict[int, Any] = {200: HealthReport}  # noqa: RUF012 - never changed
    media: str = "application/json"


_BOTH = {200: HealthReport, 503: HealthReport}
PAGES = (
    Page("/health/live", None, "Tell that AIDB answers."),
    Page("/health/ready", None, "Tell whether AIDB can do its job.", replies=_BOTH),
    Page("/health/startup", None, "Tell whether AIDB has started.", replies=_BOTH),
    Page("/health/detailed", _LAYERS_OWN, "Name what AIDB leans on, and how that is."),
    Page(
        "/metrics",
        "metrics",
        "Tell AIDB's metrics, for Prometheus.",
        max_bytes=MAX_METRICS_BYTES,
        replies={200: str},
        media="text/plain",
    ),
)
TARGETS = frozenset(f"{PREFIX}{page.path}".encode() for page in PAGES)


def refuse_target(raw: bytes) -> None:
    """Raise ``Forbidden`` for what begins like the proxy and is none of its addresses.

    Another spelling (``/%61idb``) begins like it too: the router would decode it.
    """
    if raw not in TARGETS and unquote_to_bytes(raw).startswith(PREFIX.encode()):
        raise Forbidden("only AIDB's health and metrics are passed on here")


class Answer(NamedTuple):
    """What is left of a reply."""

    status: int
    content_type: str
    body: bytes


class Aidb:
    """AIDB as the dashboard asks it: a pool of connections, bounds on all."""

    def __init__(
        self,
        address: tuple[str, int],
        service_key: str,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """``address``: of its listening socket; where that is all addresses, loopback."""
        host, port = address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what was bound
        self._base = URL.build(scheme="http", host=host, port=port)
        # Under this name every layer knows itself, whatever address it was bound to.
        self._host = f"127.0.0.1:{port}"
        self._service_key = service_key
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        """Make the pool; nothing is asked yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, page: Page) -> Answer:
        """GET one page. Raises ``UpstreamTimeout``, ``UpstreamError``."""
        try:
            async with self._session.get(
                self._base.with_path(page.path),
                headers=self._headers(page),
                skip_auto_headers=_SENT_BY_ITSELF,
                allow_redirects=False,
            ) as reply:
                try:
                    return await _answer(reply, page.max_bytes)
                finally:
                    if not reply.content.is_eof():
                        reply.close()  # what is left of it has no bound
        except TimeoutError:
            _log.warning("proxy_timeout", path=page.path)
            raise UpstreamTimeout(
                f"AIDB did not answer within {self._timeout_s:g} s; it may be busy:"
                " try again, and read Nestor's log if it stays so"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may hold what was sent; its name says enough.
            _log.warning("proxy_failed", path=page.path, error=type(error).__name__)
            raise UpstreamError(
                "AIDB cannot be reached, or broke off; it may be starting or stopping:"
                " try again, and read Nestor's log if it stays so"
            ) from None

    def _headers(self, page: Page) -> dict[str, str]:
        headers = {
            "Host": self._host,
            "Accept-Encoding": "identity",
            "traceparent": traceparent(),
        }
        if page.scope is not None:
            headers["Authorization"] = f"Bearer {self._service_key}"
        return headers


async def _answer(reply: aiohttp.ClientResponse, max_bytes: int) -> Answer:
    if reply.status not in _PASSED_ON:
        raise _refused(f"its status is {reply.status}")
    kinds = reply.headers.getall("Content-Type", [])
    kind = kinds[0] if len(kinds) == 1 else ""
    if not _KIND.fullmatch(kind) or kind.partition(";")[0] not in _KINDS:
        raise _refused("it is of another type than health and metrics are")
    if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _refused("it is compressed, which was not asked for")
    if (reply.content_length or 0) > max_bytes:
        raise _refused(f"it is over {max_bytes} bytes")
    body = bytearray()
    async for part in reply.content.iter_any():
        body += part
        if len(body) > max_bytes:
            raise _refused(f"it is over {max_bytes} bytes")
    return Answer(reply.status, kind, bytes(body))


def _refused(why: str) -> UpstreamError:
    _log.warning("proxy_refused_reply", why=why)
    return UpstreamError(
        f"AIDB's answer is not passed on: {why}; see with `nestor doctor` whether it is"
        " AIDB that listens on its port"
    )


def handlers(
    aidb: Aidb, limiter: RateLimiter, clients: ClientAddresses
) -> list[HTTPRouteHandler]:
    """Return the five routes. ``limiter`` counts what was let in, for each client."""
    return [_route(page, aidb, limiter, clients) for page in PAGES]


def _route(
    page: Page, aidb: Aidb, limiter: RateLimiter, clients: ClientAddresses
) -> HTTPRouteHandler:
    async def forward(request: Request[Any, Any, Any]) -> Response[bytes]:
        # A key counts for itself: what strangers ask behind the same address must not
        # keep the operator's monitoring out.
        client = (
            clients.client_of(request.scope)
            if request.user is None
            else f"key {request.user.key_id}"
        )
        wait_s = await limiter.admit(client)
        if wait_s is not None:
            raise RateLimited(
                "too many requests; come back after the seconds that Retry-After says",
                retry_after_s=wait_s,
            )
        answer = await aidb.ask(page)
        return Response(
            answer.body,
            status_code=answer.status,
            headers={"content-type": answer.content_type},
        )

    named: Callable[[Request[Any, Any, Any]], Any] = forward
    named.__name__ = "aidb" + page.path.replace("/", "_")
    named.__doc__ = f"{page.does} 60 requests a minute for each client or key."
    return get(
        f"{PREFIX}{page.path}",
        opt={
            "scope": page.scope,
            "replies": page.replies,
            "media": [page.media],
            "raises": (RateLimited, UpstreamError, UpstreamTimeout),
        },
    )(named)
