"""Signing a browser in to the page: a link that works once, then a cookie.

The link's token travels in the fragment, which browsers send to no server; the page's
script posts it once. Times are the wall clock's: they end later or sooner by as much as
the clock is moved.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from nestor.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
)
from nestor.model.access import SECRET, PageSession
from nestor.model.network import is_loopback
from nestor.ports.rate_limiter import RateLimiter
from nestor.resilience.rate_limit import MovingWindow
from nestor.web.auth import (
    COOKIE,
    PAGE_LAYER,
    PageCaller,
    csrf_token,
    is_page_host,
    page_hosts,
)
from nestor.web.client_address import ClientAddresses
from nestor.web.errors import Refused

MAX_SIGN_IN_BYTES = 1 << 10
ATTEMPTS, ATTEMPTS_WINDOW_S = 10, 60.0
"""Wrong links that one client is told of as such: the call is open."""


class SignIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /session``."""

    link: str
    """The token of a link, from its fragment."""


class SignInLink(msgspec.Struct, frozen=True, kw_only=True):
    """Reply of ``POST /session/links``."""

    url: str
    expires_at: datetime


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Until when a browser is signed in, and what its changes must carry."""

    csrf_token: str
    """The header ``X-CSRF-Token`` of whatever is not GET or HEAD."""
    expires_at: datetime


def page_url(settings: Any, port: int) -> str:
    """Return the page's address, where a browser can be signed in.

    On loopback the name that no other program of the machine uses; else the first that
    was chosen in ALLOWED_HOSTS, the only names under which anybody else can open it.
    """
    own, *chosen = page_hosts(settings)
    host = own if is_loopback(settings.host) or not chosen else chosen[0]
    has_port = host.rpartition(":")[2].isdigit()
    return f"http://{host}/" if has_port else f"http://{host}:{port}/"


def page_port(connection: ASGIConnection[Any, Any, Any, Any]) -> int:
    """Return the port of the layer that was called: the page's."""
    known: int = connection.app.state.ports.get(PAGE_LAYER, 0)
    server = connection.scope.get("server")
    return known or (server[1] if server else None) or 0


def link_url(settings: Any, port: int, token: str) -> str:
    """Return what an operator opens to be signed in. Whoever reads it can do the same."""
    return f"{page_url(settings, port)}#link={token}"


def handlers(
    attempts: RateLimiter | None = None, clients: ClientAddresses | None = None
) -> list[HTTPRouteHandler]:
    """Return the routes. ``attempts`` bounds how often each client brings a wrong link."""
    failures = attempts or MovingWindow(ATTEMPTS, ATTEMPTS_WINDOW_S)
    known = clients or ClientAddresses()

    async def redeem(
        request: Request[Any, Any, Any], token: str
    ) -> tuple[PageSession, str]:
        """Count what was wrong, after it was: a right link works whatever others tried."""
        try:
            redeemed: tuple[PageSession, str]
            redeemed = await request.app.state.nestor.sessions.redeem(token)
        except Unauthorized:
            if not SECRET.fullmatch(token):
                raise
            wait_s = await failures.admit(known.client_of(request.scope))
            if wait_s is None:
                raise
            message = "too many wrong links were tried; a right one still works"
            raise RateLimited(message, retry_after_s=wait_s) from None
        return redeemed

    @post(
        "/session",
        opt={
            "scope": None,
            "raises": (Unauthorized, RateLimited),
            "replies": {201: SignedIn},
            "reply_headers": ["set-cookie"],
        },
        guards=[_from_the_page, _small],
    )
    async def sign_in(
        request: Request[Any, Any, Any], data: SignIn
    ) -> Response[SignedIn]:
        """Redeem a link: sets the session's cookie. Works once, from the page's own script."""
        session, secret = await redeem(request, data.link)
        body = _view(session, csrf_token(secret.encode()))
        seconds = round((session.expires_at - session.created_at).total_seconds())
        secure = request.headers["origin"].lower().startswith("https:")
        cookie = _cookie(secret, seconds, secure=secure)
        return Response(body, status_code=201, headers={"set-cookie": cookie})

    return [make_link, end_all, sign_in, session, sign_out]


def _by_key_alone(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    if connection.scope.get("auth") is not None:
        raise Forbidden("this needs the admin key, in a terminal: nestor page")


@post("/session/links", opt={"scope": "admin"}, guards=[_by_key_alone])
async def make_link(request: Request[Any, Any, Any]) -> SignInLink:
    """Make a link that signs one browser in, once, within five minutes."""
    state = request.app.state
    link = await state.nestor.sessions.make_link()
    url = link_url(state.nestor.settings, page_port(request), link.token)
    return SignInLink(url=url, expires_at=link.expires_at)


@delete(
    "/sessions",
    status_code=204,
    opt={"scope": "admin", "replies": {204: None}},
    guards=[_by_key_alone],
)
async def end_all(request: Request[Any, Any, Any]) -> None:
    """End every session of the page, and links that were not used."""
    await request.app.state.nestor.sessions.end_all()


@get("/session", opt={"scope": "admin", "raises": (NotFound,)}, sync_to_thread=False)
def session(request: Request[Any, Any, Any]) -> SignedIn:
    """Tell until when this browser is signed in, and what its changes must carry."""
    caller = _caller(request)
    return _view(caller.session, caller.csrf_token)


@delete(
    "/session",
    status_code=204,
    opt={
        "scope": "admin",
        "raises": (NotFound,),
        "replies": {204: None},
        "reply_headers": ["set-cookie"],
    },
)
async def sign_out(request: Request[Any, Any, Any]) -> Response[None]:
    """End this browser's session: its cookie is refused from now on."""
    caller = _caller(request)
    await request.app.state.nestor.sessions.end(caller.session.id)
    return Response(None, status_code=204, headers={"set-cookie": _cookie("", 0)})


def _caller(request: Request[Any, Any, Any]) -> PageCaller:
    caller = request.scope.get("auth")
    if not isinstance(caller, PageCaller):
        raise NotFound("this call came with a key; sessions are for browsers")
    return caller


def _view(session: PageSession, token: str) -> SignedIn:
    return SignedIn(csrf_token=token, expires_at=session.expires_at)


def _cookie(secret: str, seconds: int, *, secure: bool = False) -> str:
    kept = f"{COOKIE.decode()}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}"
    return f"{kept}; Secure" if secure else kept


def _from_the_page(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Take sign-ins from the page's own script alone. Raises ``Refused``, ``Forbidden``.

    ``web.edge`` refused the origins of others; here one must be given, so that nothing
    but a page can be signed in.
    """
    settings = connection.app.state.nestor.settings
    hosts = _values(connection, b"host")
    if not is_page_host(hosts, page_hosts(settings)):
        raise Refused(
            421,
            "nobody is signed in under this name, because programs on other ports of it"
            f" would be sent the cookie; open {page_url(settings, page_port(connection))},"
            " or list a name for the page alone in NESTOR_ALLOWED_HOSTS",
        )
    origins = [origin.lower() for origin in _values(connection, b"origin")]
    if origins not in (
        [b"http://" + hosts[0].lower()],
        [b"https://" + hosts[0].lower()],
    ):
        raise Forbidden("sign in with the page: it sends its Origin along")
    kind = b"".join(_values(connection, b"content-type")).partition(b";")[0]
    if kind.strip().lower() != b"application/json":
        raise Refused(415, "send the link as application/json")


def _small(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Hold the body to a length that is known before it is read."""
    length = _values(connection, b"content-length")
    if len(length) != 1 or not length[0].isdigit():
        raise InvalidInput.at("content-length", "is needed here: send the body whole")
    if int(length[0]) > MAX_SIGN_IN_BYTES:
        raise TooLarge(f"the body is over {MAX_SIGN_IN_BYTES} bytes")


def _values(
    connection: ASGIConnection[Any, Any, Any, Any], wanted: bytes
) -> Sequence[bytes]:
    return [v for name, v in connection.scope["headers"] if name == wanted]
